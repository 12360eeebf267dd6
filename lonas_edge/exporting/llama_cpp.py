"""Compute logits and tokens of a GGUF file with llama.cpp, if llama-cpp-python is installed."""

import ctypes
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lonas_edge.errors import LonasEdgeError, one_line
from lonas_edge.exporting.gguf_vocabulary import TOKENIZED_TEXTS


def llama_cpp_logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    """Compute the fp32 logits of llama.cpp with a KV cache in f32: [prompts, tokens] -> [prompts, tokens, vocabulary]."""
    llama = _llama(path, len(ids[0]))
    logits = []
    for prompt in ids.tolist():
        llama.reset()
        llama.eval(prompt)
        logits.append(torch.from_numpy(llama.scores[: len(prompt)].copy()))
    llama.close()
    return torch.stack(logits)


def tokenizer_faults(path: Path, tokenizer: Any) -> list[str]:
    """List texts that llama.cpp tokenizes differently from the transformers tokenizer, one line each."""
    llama = _llama(path, 32)
    faults = []
    for text in TOKENIZED_TEXTS:
        expected, actual = list(tokenizer(text)["input_ids"]), llama.tokenize(text.encode(), add_bos=True, special=True)
        if expected != actual:
            faults.append(f"{text!r}: expected {expected}, found {actual}")
    llama.close()
    return faults


def _llama(path: Path, context: int) -> Any:
    import llama_cpp

    (log, _), f32 = _log(), llama_cpp.GGML_TYPE_F32
    options = {"logits_all": True, "type_k": f32, "type_v": f32, "flash_attn": False, "verbose": False}
    try:
        return llama_cpp.Llama(str(path), n_ctx=context, **options)
    except ValueError as error:
        reason = one_line("".join(log).strip().rpartition("\n")[2])
        raise LonasEdgeError(f"{path.name}: llama.cpp cannot open it: {error}: {reason}") from error


@cache
def _log() -> "tuple[deque[str], Any]":
    """Collect the last lines of llama.cpp's log, which would be printed otherwise; the second value keeps the callback."""
    import llama_cpp

    lines: deque[str] = deque(maxlen=20)
    callback = llama_cpp.llama_log_callback(lambda _level, text, _data: lines.append(text.decode("utf-8", "replace")))
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return lines, callback
