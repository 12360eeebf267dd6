"""Answers of encoders, in batches."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from lonas_edge.data.encoding import collate_pairs
from lonas_edge.evaluate.answer_log import LoggedTarget
from lonas_edge.evaluate.encoders import Encoder
from lonas_edge.progress import Progress


def answered(
    logged: LoggedTarget,
    title: str,
    encoded: Mapping[int, dict[str, list[int]]],
    run: Callable[[Mapping[str, np.ndarray], Encoder], list[Any]],
    progress: Progress,
) -> dict[int, Any]:
    """Answer tokenized texts, the longest first.

    Args:
        logged: The target.
        title: A title for the progress.
        encoded: Texts by index, as `encode_pairs` makes them.
        run: Computes an answer to each text of a batch, as JSON.
        progress: Reports the progress.

    Returns:
        Answers by index, in ascending order.
    """
    target, answers = logged.target, dict[int, Any]()
    order = sorted(encoded, key=lambda index: (-len(encoded[index]["input_ids"]), index))
    pad = target.tokenizer.pad_token_id or 0
    for start in range(0, len(order), target.batch_size):
        progress(f"{target.name}  {title}", start / len(order))
        batch = order[start : start + target.batch_size]
        rows = [{**encoded[index], "labels": 0} for index in batch]
        arrays = {name: tensor.numpy() for name, tensor in collate_pairs(rows, pad).items() if name != "labels"}
        of_batch = logged.answers(rows, len(rows), partial(run, arrays))
        answers |= dict(zip(batch, of_batch, strict=True))
    return dict(sorted(answers.items()))
