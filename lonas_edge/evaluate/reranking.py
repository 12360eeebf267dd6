"""Rerankers on the candidate passages of queries: the order of their scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import numpy as np

from lonas_edge.data.encoding import encode_pairs
from lonas_edge.data.retrieval import CANDIDATES, Candidates, read_candidates
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.evaluate.answer_log import LoggedTarget
from lonas_edge.evaluate.batches import answered
from lonas_edge.evaluate.classification import classify
from lonas_edge.evaluate.compare import TaskAnswers
from lonas_edge.evaluate.ordering import judged, ordered_answers
from lonas_edge.evaluate.settings import EvalSettings
from lonas_edge.evaluate.targets import Target
from lonas_edge.progress import Progress


def sets_in(datasets: Path | None) -> tuple[str, ...]:
    """Names of the reranking data in the directory `datasets`."""
    return tuple(sorted(path.parent.name for path in datasets.glob(f"*/{CANDIDATES}"))) if datasets else ()


@dataclass(frozen=True)
class Reranking:
    """Evaluates rerankers."""

    settings: EvalSettings

    @cached_property
    def _sets(self) -> dict[str, dict[int, Candidates]]:
        sets, problems = dict[str, dict[int, Candidates]](), list[str]()
        for name in self.settings.tasks:
            try:
                queries = read_candidates((self.settings.datasets or Path()) / name / CANDIDATES)
            except LonasEdgeError as error:
                problems.append(str(error))
                continue
            sets[name] = {index: queries[index] for index in self.settings.chosen(name, len(queries))}
        raise_all("Test sets that cannot be used:", problems)
        return sets

    def check(self, targets: Sequence[Target]) -> None:
        """Read the data, and refuse targets with several outputs."""
        self._sets  # noqa: B018 - raises errors
        wrong = [f"{each.name}: {len(each.outputs)} outputs; expected 1" for each in targets if len(each.outputs) != 1]
        raise_all("Reranking needs one score for a query and a passage:", wrong, "Pass rerankers (cross-encoders).")

    def prompt_of(self, _target: Target) -> str:
        """Return an empty text: there is no prompt template."""
        return ""

    def run(self, logged: LoggedTarget, progress: Progress) -> list[TaskAnswers]:
        """Evaluate a target."""
        return [_reranked(name, queries, logged, progress) for name, queries in self._sets.items()]


def _reranked(name: str, queries: dict[int, Candidates], logged: LoggedTarget, progress: Progress) -> TaskAnswers:
    """Order each query's candidates; of equal scores a passage that is not relevant comes first. Long pairs are cut."""
    target = logged.target
    pairs = [(each.query, text) for each in queries.values() for text in (*each.negative, *each.positive)]
    longest = int(min(target.tokenizer.model_max_length, target.max_length))
    encoded = dict(enumerate(encode_pairs(pairs, target.tokenizer, longest)))
    scores = (logits[0] for logits in answered(logged, name, encoded, partial(classify, name=target.name), progress).values())
    samples = []
    for index, each in queries.items():
        texts = (*each.negative, *each.positive)
        order = np.argsort(-np.array(list(islice(scores, len(texts)))), kind="stable")
        samples.append(
            {"doc_id": index, "query": each.query, **judged([texts[place] for place in order], dict.fromkeys(each.positive, 1))}
        )
    return ordered_answers(name, samples)
