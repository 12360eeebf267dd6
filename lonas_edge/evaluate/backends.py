"""Language models as models of lm-evaluation-harness: in PyTorch its own `hf` backend, of an IR a backend of our own.

An IR generates greedily by openvino_genai's continuous batching, by beam search through transformers (optimum-intel), and ranks
with an infer request of our own.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.ranking import Likelihood, Ranker, head_of, pad, rank
from lonas_edge.files import read_json
from lonas_edge.ir.core import compiling
from lonas_edge.network.configuration import read_generation_config

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

_SUPPORTED = {"do_sample", "num_beams", "temperature", "until", "max_gen_toks", "length_penalty", "repetition_penalty"}
_PROMPT_TOKENS = 1024  # prompt tokens computed in one step; genai's own default of 256 leaves half the speed
_BEAMS, _BEAM_TOKENS = 64, 16384  # of all prompts that are searched together; every beam has a KV cache of its own


class TorchLM(HFLM):  # type: ignore[misc]
    """The harness's `hf` backend on a live model.

    Requests alone determine how texts are generated, as with an IR: the harness (0.4.13) would also use the repetition penalty
    and the lengths of `generation_config.json`. Of this file only the tokens that end a text stay.
    """

    def __init__(self, **options: Any):
        """Take the arguments of `HFLM`."""
        from transformers import GenerationConfig

        super().__init__(**options)
        named = self.model.generation_config.eos_token_id
        stops = self.tokenizer.eos_token_id if named is None else named
        self.model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=self.tokenizer.pad_token_id)


class OpenVinoLM(TemplateLM):  # type: ignore[misc]
    """Any IR of a language model with its tokenizer. Greedy generation, beam search and ranking compile it when first used."""

    def __init__(
        self, folder: Path, tokenizer: Any, max_length: int, device: str = "CPU", properties: Mapping[str, str] | None = None
    ):
        """Set up an exported directory; `max_length` is the longest sequence in tokens."""
        super().__init__()
        self.folder, self.tokenizer, self.max_length = folder, tokenizer, max_length
        self._device_name, self._properties = device, dict(properties or {})
        self._ranker: Ranker | None = None
        self._pipeline: Any = None
        self._searcher: Any = None

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context, as in the harness's `hf` backend."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, by the rules of the harness's `hf` backend: special tokens as the tokenizer adds them, BOS once."""
        bos = self.tokenizer.bos_token
        if add_special_tokens is None and bos and string.startswith(bos):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **options))

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[Likelihood]:
        """See `TemplateLM`: requests are ((context, continuation), token ids of the context, and of the continuation)."""
        if self._ranker is None:
            with compiling(self.folder, self._device_name, self._properties):
                self._ranker = Ranker(self.folder, self._device_name, self._properties)
        return rank(self._ranker, requests, self.max_length)

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """See `LM`: the log-likelihood of a whole text, in windows of the model's length."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        sums = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            pieces = [(None, *make_disjoint_window(window)) for window in windows]
            sums.append(sum(likelihood for likelihood, _ in self._loglikelihood_tokens(pieces)))
        return sums

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """See `LM`: all requests at once, greedily or by beam search."""
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in self.generate_ids(requests)]
        stops = [normalize_gen_kwargs(request.args[1])["until"] for request in requests]
        return [postprocess_generated_text(text, stop, None) for text, stop in zip(texts, stops, strict=True)]

    def generate_ids(self, requests: "list[Instance]") -> list[list[int]]:
        """Generate the new tokens after each prompt, with the end-of-text token where there is one."""
        parsed = [(request.args[0], self._checked(normalize_gen_kwargs(request.args[1]))) for request in requests]
        room = [max(1, self.max_length - options["max_gen_toks"]) for _, options in parsed]
        ids = [self.tok_encode(prompt)[-longest:] for (prompt, _), longest in zip(parsed, room, strict=True)]
        tokens: dict[int, list[int]] = {}
        for key, indices in _by_options(options for _, options in parsed).items():
            options = dict(key)
            generate = self._search if options.get("num_beams", 1) > 1 else self._greedy
            tokens |= zip(indices, generate([ids[index] for index in indices], options), strict=True)
        return [tokens[index] for index in range(len(parsed))]

    def _checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        unknown = sorted(options.keys() - _SUPPORTED)
        if unknown or options.get("do_sample"):
            raise LonasEdgeError(
                f"generation option {unknown[0] if unknown else 'do_sample'!r} is not supported for an IR, which generates "
                f"greedily or by beam search. Supported: {', '.join(sorted(_SUPPORTED - {'do_sample', 'temperature'}))}."
            )
        return {**options, "until": tuple(text for text in options["until"] if text)}

    def _greedy(self, ids: Sequence[list[int]], options: Mapping[str, Any]) -> list[list[int]]:
        import openvino as ov
        import openvino_genai

        if self._pipeline is None:
            with compiling(self.folder, self._device_name, self._properties):
                self._pipeline = _pipeline(self.folder, self._device_name, self._properties)
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.apply_chat_template = options["max_gen_toks"], False, False
        config.repetition_penalty = options.get("repetition_penalty", 1.0)
        config.stop_token_ids, config.stop_strings = self._stops(), set(options["until"])
        inputs = [ov.Tensor(np.array([tokens], np.int64)) for tokens in ids]
        results = self._pipeline.generate(inputs, [config] * len(inputs))
        return [list(result.m_generation_ids[0]) for result in results]

    def _search(self, ids: Sequence[list[int]], options: Mapping[str, Any]) -> list[list[int]]:
        """Beam search, prompts of like length together."""
        if self._searcher is None:
            with compiling(self.folder, self._device_name, self._properties):
                self._searcher = _searcher(self.folder, self._device_name, self._properties)
        stops, filler = self._stops(), min(self._stops())
        tokens: dict[int, list[int]] = {}
        for part in _searched_together(ids, options):
            length = max(len(ids[index]) for index in part)
            new = self._searcher.generate(
                torch.from_numpy(pad([ids[index] for index in part], length, left=True, filler=filler)),
                attention_mask=torch.from_numpy(pad([[1] * len(ids[index]) for index in part], length, left=True)),
                stopping_criteria=[_StopTexts(self.tokenizer, options["until"], length)] if options["until"] else None,
                max_new_tokens=options["max_gen_toks"], do_sample=False, eos_token_id=sorted(stops), pad_token_id=filler,
                **{name: options[name] for name in ("num_beams", "length_penalty", "repetition_penalty") if name in options},
            )[:, length:].tolist()  # fmt: skip
            tokens |= {index: _until(row, stops) for index, row in zip(part, new, strict=True)}
        self._searcher.request.reset_state()
        return [tokens[index] for index in range(len(ids))]

    def _stops(self) -> set[int]:
        """Tokens that end a generation: as in transformers, those of the generation configuration."""
        vocabulary = read_json(self.folder / "config.json")["vocab_size"]  # checked when the directory was opened
        named = (read_generation_config(self.folder, vocabulary) or {}).get("eos_token_id")
        named = self.eot_token_id if named is None else named
        return set(named if isinstance(named, list) else [named])


def _pipeline(folder: Path, device: str, properties: Mapping[str, str]) -> Any:
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    # Prefix caching saves a fifth of the time, but earlier batches change the last bits: 9 of 192 answers of an INT8 IR
    # differed in a continued run (openvino_genai 2026.4.1).
    scheduler.enable_prefix_caching = False
    scheduler.max_num_batched_tokens = _PROMPT_TOKENS
    return openvino_genai.ContinuousBatchingPipeline(folder, scheduler, device, dict(properties))


def _searcher(folder: Path, device: str, properties: Mapping[str, str]) -> Any:
    """The IR in optimum-intel, for transformers' own beam search.

    That of openvino_genai (2026.4.1) stops by the scores of the previous step, which gave other texts for 3 of 100 prompts, and
    sorts the complete vocabulary for every beam, which takes most of the time of a small model.
    """
    from openvino import opset13 as ops
    from optimum.intel import OVModelForCausalLM
    from optimum.intel.openvino.modeling_decoder import OVModelWithMambaForCausalLM
    from transformers import GenerationConfig

    loading = logging.getLogger("optimum.intel.openvino.modeling_base")
    level = loading.level
    loading.setLevel(logging.ERROR)  # offline, it looks for a directory among the hub's files and says so (2.2.0)
    try:
        model = OVModelForCausalLM.from_pretrained(
            str(folder), export=False, compile=False, device=device, ov_config=dict(properties)
        )
    finally:
        loading.setLevel(level)
    if isinstance(model, OVModelWithMambaForCausalLM):
        raise LonasEdgeError(f"{folder}: optimum-intel mixes up the beams of this model type; pass --num-beams 1")
    head = head_of(model.model)
    last = [ops.constant(np.array([value], np.int64)) for value in (-1, 2**31 - 1, 1, 1)]  # start, stop, step, axis
    head.input(0).replace_source_output(ops.slice(head.input_value(0), *last).output(0))
    model.model.validate_nodes_and_infer_types()
    model.generation_config = GenerationConfig()  # the request counts, not the directory's defaults
    model.compile()
    return model


class _StopTexts:
    """Ends a beam whose new tokens hold a text; transformers' own `stop_strings` (5.5) looks into the prompt, too."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], length: int):
        self._tokenizer, self._texts, self._length = tokenizer, texts, length

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        new = self._tokenizer.batch_decode(input_ids[:, self._length :])
        return torch.tensor([any(stop in text for stop in self._texts) for text in new])


def _searched_together(ids: Sequence[list[int]], options: Mapping[str, Any]) -> Iterator[list[int]]:
    """Indices of prompts of similar length; single ones where a repetition penalty would take padding for text."""
    order = sorted(range(len(ids)), key=lambda index: (len(ids[index]), ids[index]))
    part: list[int] = []
    for index in order:
        beams = options["num_beams"] * (len(part) + 1)
        tokens = beams * (len(ids[index]) + options["max_gen_toks"])
        if part and (beams > _BEAMS or tokens > _BEAM_TOKENS or "repetition_penalty" in options):
            yield part
            part = []
        part.append(index)
    if part:
        yield part


def _until(ids: list[int], stops: set[int]) -> list[int]:
    """Tokens up to and including the first that stops; padding follows it."""
    end = next((index for index, token in enumerate(ids) if token in stops), len(ids))
    return ids[: end + 1]


def _by_options(options: Iterable[Mapping[str, Any]]) -> dict[tuple[tuple[str, Any], ...], list[int]]:
    """Indices of requests by their options."""
    indices: dict[tuple[tuple[str, Any], ...], list[int]] = {}
    for index, each in enumerate(options):
        indices.setdefault(tuple(sorted(each.items())), []).append(index)
    return indices
