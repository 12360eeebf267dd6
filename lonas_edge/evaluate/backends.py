"""Language models as models of lm-evaluation-harness: its own `hf` backend, also in front of an IR.

An IR generates greedily by openvino_genai's continuous batching, otherwise through transformers (optimum-intel).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from transformers import GenerationConfig

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.answering import greedy
from lonas_edge.exporting.drafts import Draft
from lonas_edge.ir import MODEL
from lonas_edge.ir.core import compiling, inputs_of, open_model
from lonas_edge.network.configuration import read_generation_config

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

_GREEDY = {"do_sample", "num_beams", "temperature", "until", "max_gen_toks", "length_penalty", "repetition_penalty"}
_WHOLE_PROMPTS = 32_768  # prompt tokens of a step, where no prompt is divided; a longer prompt is refused
_PROMPT_TOKENS = 1024  # prompt tokens computed in one step; genai's own default of 256 leaves half the speed
_RANKED = 16  # sequences that are ranked together; each has logits at all of its positions
_BEAMS, _BEAM_TOKENS = 64, 16384  # of all prompts that are searched together; every beam has a KV cache of its own


class TorchLM(HFLM):  # type: ignore[misc]
    """The harness's `hf` backend on a live model.

    Requests alone determine how texts are generated, as with an IR: the harness (0.4.13) would also use the repetition penalty
    and the lengths of `generation_config.json`. Of this file only the tokens that end a text stay.
    """

    def __init__(self, **options: Any):
        """Take the arguments of `HFLM`."""
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about models that it did not load
        super().__init__(**options)
        named = self.model.generation_config.eos_token_id
        stops = self.tokenizer.eos_token_id if named is None else named
        self.model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=self.tokenizer.pad_token_id)


class OpenVinoLM(TorchLM):
    """Any IR of a language model with its tokenizer. Greedy generation, beam search and ranking compile it when first used."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Any,
        max_length: int,
        device: str = "CPU",
        properties: Mapping[str, str] | None = None,
        draft: Draft | None = None,
    ):
        """Set up an exported directory; `max_length` is the longest sequence in tokens, `draft` speeds up greedy generation."""
        stops = GenerationConfig(eos_token_id=(read_generation_config(folder) or {}).get("eos_token_id"))
        unloaded = SimpleNamespace(config=None, device=torch.device("cpu"), generation_config=stops)
        super().__init__(pretrained=unloaded, tokenizer=tokenizer, max_length=max_length, backend="causal", batch_size=_RANKED)
        self._folder, self._device_name, self._properties, self._draft = folder, device, dict(properties or {}), draft
        self._engines: dict[Callable[..., Any], Any] = {}

    def _engine(self, load: Callable[[Path, str, Mapping[str, str]], Any]) -> Any:
        """Compile the IR for one way to run it, once."""
        if load not in self._engines:
            with compiling(self._folder, self._device_name, self._properties):
                self._engines[load] = load(self._folder, self._device_name, self._properties)
        return self._engines[load]

    def _model_call(self, inps: torch.Tensor, **_: Any) -> torch.Tensor:
        """See `HFLM`: logits [sequences, tokens, vocabulary] of sequences that are padded at the end."""
        return torch.from_numpy(self._engine(_logits)(inputs_of(inps.numpy())))

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """See `LM`: all requests at once; they have the same options, as those of a task have."""
        options = normalize_gen_kwargs(requests[0].args[1])
        num_beams = options.get("num_beams", 1)
        if num_beams == 1 and not options["do_sample"] and options.keys() <= _GREEDY:
            return self._greedy([request.args[0] for request in requests], options)
        longest = max(len(self.tok_encode(request.args[0])) for request in requests)
        together = min(_BEAMS, _BEAM_TOKENS // (longest + options["max_gen_toks"])) // num_beams
        # a repetition penalty would take padding for text
        self.batch_size_per_gpu = 1 if "repetition_penalty" in options else max(1, together)
        searcher = self._engine(_searcher)
        searcher.generation_config = self.model.generation_config  # the request counts, not the directory's defaults
        self._model = searcher
        texts: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        searcher.request.reset_state()
        self.batch_size_per_gpu = _RANKED
        return texts

    def _greedy(self, prompts: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        import openvino as ov

        config, until = greedy(self._folder, options["max_gen_toks"]), options["until"]
        config.repetition_penalty = options.get("repetition_penalty", 1.0)
        config.stop_strings = set(filter(None, until))
        room = max(1, self.max_length - options["max_gen_toks"])
        ids = [self.tok_encode(prompt, left_truncate_len=room) for prompt in prompts]
        inputs = [ov.Tensor(np.array([tokens], np.int64)) for tokens in ids]
        if self._draft:
            config.num_assistant_tokens = self._draft.num_assistant_tokens
        results = self._engine(self._batching).generate(inputs, [config] * len(inputs))
        return [postprocess_generated_text(self.tok_decode(each.m_generation_ids[0]), until, None) for each in results]

    def _batching(self, folder: Path, device: str, properties: Mapping[str, str]) -> Any:
        return batching_pipeline(folder, device, properties, self._draft)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: Sequence[str], **options: Any) -> torch.Tensor:
        """See `HFLM`, whose criterion for stop texts (0.4.13) looks at the first beams of a batch: tokens end a text here."""
        end = self.tok_decode(self.eot_token_id, skip_special_tokens=False)  # the harness adds it
        tokens: torch.Tensor = super()._model_generate(context, max_length, [text for text in stop if text != end], **options)
        return tokens


def _logits(folder: Path, device: str, properties: Mapping[str, str]) -> Any:
    return open_model(folder / MODEL, device, properties)


def batching_pipeline(folder: Path, device: str, properties: Mapping[str, str], draft: Draft | None = None) -> Any:
    """Open an IR in openvino_genai's continuous batching, with or without a draft model."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    # Prefix caching saves a fifth of the time, but earlier batches change the last bits: 9 of 192 answers of an INT8 IR
    # differed in a continued run (openvino_genai 2026.4.1).
    scheduler.enable_prefix_caching = False
    scheduler.max_num_batched_tokens = _PROMPT_TOKENS
    if draft:  # with one, openvino_genai 2026.4.1 loses or repeats first tokens of a prompt that it computes in two steps
        scheduler.dynamic_split_fuse, scheduler.max_num_batched_tokens = False, _WHOLE_PROMPTS
    options = draft.options(device) if draft else {}
    return openvino_genai.ContinuousBatchingPipeline(folder, scheduler, device, {**options, **properties})


def _searcher(folder: Path, device: str, properties: Mapping[str, str]) -> Any:
    """The IR in optimum-intel, for transformers' own beam search.

    That of openvino_genai (2026.4.1) stops by the scores of the previous step, which gave other texts for 3 of 100 prompts, and
    sorts the complete vocabulary for every beam, which takes most of the time of a small model.
    """
    from openvino import opset13 as ops
    from optimum.intel import OVModelForCausalLM
    from optimum.intel.openvino.modeling_decoder import OVModelWithMambaForCausalLM

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
        raise LonasEdgeError(f"{folder}: optimum-intel mixes up the beams of this model type; pass --protocol option-text")
    head = next(node for node in model.model.get_results() if "logits" in node.input_value(0).get_names())
    while head.get_type_name() != "MatMul":  # a conversion, a bias or a soft cap may follow it
        head = head.input_value(0).get_node()
    last = [ops.constant(np.array([value], np.int64)) for value in (-1, 2**31 - 1, 1, 1)]  # start, stop, step, axis
    head.input(0).replace_source_output(ops.slice(head.input_value(0), *last).output(0))
    model.model.validate_nodes_and_infer_types()
    model.compile()
    return model
