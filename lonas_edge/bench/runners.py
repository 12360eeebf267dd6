"""Run a variant in openvino_genai, OpenVINO or PyTorch, inside the variant's own process.

A language model's runner generates a fixed number of tokens greedily and records the time of each. No prompt prefix is cached:
openvino_genai's prefix cache is off, and the others start with an empty KV cache. A classifier's runner computes one pass.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lonas_edge.bench.variants import NPU_LENGTHS, Kind, Timing, Variant
from lonas_edge.formats import DTYPES
from lonas_edge.ir import MODEL, WEIGHTS
from lonas_edge.ir.core import openvino_core, positions

Prompts = Sequence[Sequence[int]]  # [batch, prompt_len]


def generate_greedy(
    prefill: Callable[[], Any], decode: Callable[[Any], Any], new_tokens: int, clock: Callable[[], float]
) -> Timing:
    """Generate a fixed number of tokens, and record the time of each.

    `prefill` computes the prompt and returns the first new token (of each sequence of the batch); `decode` takes the last token
    and returns the next. `clock` returns seconds.
    """
    start = clock()
    token = prefill()
    times = [clock() - start]
    while len(times) < new_tokens:
        token = decode(token)
        times.append(clock() - start)
    return Timing(tuple(times), clock() - start)


def timing_of_genai(first: float, new_token_times: Sequence[float], end_to_end: float, tokens: int) -> Timing:
    """Convert openvino_genai's `RawPerfMetrics`.

    Args:
        first: `m_times_to_first_token[0]`, microseconds.
        new_token_times: `m_new_token_times`, milliseconds on a steady clock, one per step.
        end_to_end: Seconds.
        tokens: New tokens. With a draft a step has several of them, which count as evenly spread over all steps.
    """
    start, last = new_token_times[0], new_token_times[-1]
    if len(new_token_times) != tokens:
        new_token_times = [start + (last - start) * index / (tokens - 1) for index in range(tokens)]
    return Timing(tuple(first / 1e6 + (time - start) / 1e3 for time in new_token_times), end_to_end)


class ClassifierRunner:
    """A classifier's IR in OpenVINO, as `OVModelForSequenceClassification` runs it."""

    framework, modules = "openvino", ("openvino",)

    def __init__(self, variant: Variant, threads: int):
        """Compile the IR."""
        self._variant = variant
        core, properties = openvino_core(), dict(runtime_properties(variant, threads))
        compiled = core.compile_model(core.read_model(variant.path / MODEL), variant.device, properties)
        self._loaded = compiled.create_infer_request()
        self._inputs = [port.any_name for port in compiled.inputs]

    def run(self, prompts: Prompts, new_tokens: int) -> Timing:
        """Compute one pass."""
        import numpy as np

        ids = np.array(prompts, np.int64)
        values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        values["position_ids"] = positions(ids)  # of stock embedding models from decoders
        inputs = {name: values[name] for name in self._inputs}
        start = time.perf_counter()
        self._loaded.infer(inputs)
        return Timing((), time.perf_counter() - start)

    def facts(self) -> dict[str, Any]:
        """Return fields of `Facts` from its files and the loaded model."""
        return {**_ir_facts(self._variant), "kv_precision": ""}


class GenaiRunner:
    """An IR in `openvino_genai.LLMPipeline`, as deployed."""

    framework, modules = "openvino_genai", ("openvino_genai",)

    def __init__(self, variant: Variant, threads: int):
        """Compile the IR."""
        import openvino_genai

        self._variant = variant
        options: dict[str, Any] = dict(runtime_properties(variant, threads))
        options |= {name: int(options[name]) for name in NPU_LENGTHS if name in options}  # text is refused
        if not variant.device.startswith("NPU"):  # its static pipeline has neither scheduler nor prefix cache
            scheduler = openvino_genai.SchedulerConfig()
            scheduler.enable_prefix_caching = False
            scheduler.max_num_batched_tokens = 2**31  # LLMPipeline's default: the prompt in one pass
            options["scheduler_config"] = scheduler
        if variant.draft:
            options["draft_model"] = openvino_genai.draft_model(variant.draft, variant.device)
        self._loaded = openvino_genai.LLMPipeline(variant.path, variant.device, **options)

    def run(self, prompts: Prompts, new_tokens: int) -> Timing:
        """Generate with `LLMPipeline.generate`."""
        import numpy as np
        import openvino as ov
        import openvino_genai

        ends = self._variant.ends
        config = openvino_genai.GenerationConfig()
        if ends:  # of the directory's defaults, the tokens that end a text alone
            config.stop_token_ids = self._loaded.get_generation_config().stop_token_ids
        config.max_new_tokens = new_tokens
        config.ignore_eos, config.do_sample, config.apply_chat_template = not ends, False, False
        if ends:
            config.min_new_tokens = 2  # one token has no TPOT
        if self._variant.draft:
            config.num_assistant_tokens = self._variant.num_assistant_tokens
        ids = np.array(prompts, np.int64)
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        start = time.perf_counter()
        result = self._loaded.generate(inputs, config)
        end_to_end = time.perf_counter() - start
        raw = result.perf_metrics.raw_metrics
        tokens = len(result.tokens[0])
        if tokens != new_tokens and not ends:
            raise RuntimeError(f"expected {new_tokens} new tokens, got {tokens}")
        return timing_of_genai(raw.m_times_to_first_token[0], raw.m_new_token_times, end_to_end, tokens)

    def facts(self) -> dict[str, Any]:
        """Return fields of `Facts` from its files and the loaded model."""
        return {**_ir_facts(self._variant), "kv_precision": self._variant.properties.get("KV_CACHE_PRECISION", "default")}


def _ir_facts(variant: Variant) -> dict[str, Any]:
    return {"disk_bytes": sum((variant.path / name).stat().st_size for name in (MODEL, WEIGHTS))}


def runtime_properties(variant: Variant, threads: int) -> Mapping[str, str]:
    """Return the properties that an IR is compiled with: the variant's own override the fixed ones."""
    fixed = {"PERFORMANCE_HINT": "LATENCY"}
    if variant.device == "CPU":
        fixed["INFERENCE_NUM_THREADS"] = str(threads)
    return fixed | dict(variant.properties)


class TorchRunner:
    """A base model with a PEFT adapter, unmerged or merged, in PyTorch, in a loop with less overhead than `generate()`."""

    framework, modules = "pytorch", ("torch", "transformers", "peft")

    def __init__(self, variant: Variant, threads: int):
        """Load the base, and add or merge the adapter."""
        import torch
        from peft import PeftModel

        from lonas_edge.network.modeling import load_model
        from lonas_edge.network.source import open_source

        self._torch, self._variant = torch, variant
        torch.set_num_threads(threads)
        dtype = DTYPES[variant.precision].torch
        source = open_source(str(variant.adapter) if variant.adapter else None, str(variant.path), elastic=False)
        architecture = source.architecture
        model = load_model(architecture, variant.path, dtype, new_head=architecture.family.kind.new_head)
        if variant.adapter:
            # an fp32 adapter on a 16-bit base would cost a cast per layer
            model = PeftModel.from_pretrained(model, str(variant.adapter), autocast_adapter_dtype=False).to(dtype)
            model = model.merge_and_unload() if variant.merged else model
        self._model = model.eval()

    def run(self, prompts: Prompts, new_tokens: int) -> Timing:
        """Generate with a KV cache."""
        torch, state = self._torch, {"cache": None}

        def step(ids: Any) -> Any:
            output = self._model(input_ids=ids, past_key_values=state["cache"], use_cache=True, logits_to_keep=1)
            state["cache"] = output.past_key_values
            return output.logits[:, -1].argmax(-1, keepdim=True)

        ids = torch.tensor(prompts)
        with torch.inference_mode():
            return generate_greedy(lambda: step(ids), step, new_tokens, time.perf_counter)

    def facts(self) -> dict[str, Any]:
        """Return fields of `Facts` from its files and the loaded model."""
        files = [*self._variant.path.glob("*.safetensors"), *self._variant.path.glob("pytorch_model*.bin")]
        files += [] if self._variant.adapter is None else list(self._variant.adapter.glob("adapter_model.*"))
        return {
            "parameters": sum(p.numel() for p in self._model.parameters()),  # a tied head counts once
            "kv_precision": DTYPES[self._variant.precision].kv_name,
            "disk_bytes": sum(file.stat().st_size for file in files),
        }


class TorchClassifierRunner(TorchRunner):
    """A classifier with a PEFT adapter that contains its head, or an embedding model, in PyTorch."""

    def run(self, prompts: Prompts, new_tokens: int) -> Timing:
        """Compute one pass."""
        torch = self._torch
        ids = torch.tensor(prompts)
        start = time.perf_counter()
        with torch.inference_mode():
            self._model(input_ids=ids, attention_mask=torch.ones_like(ids))
        return Timing((), time.perf_counter() - start)

    def facts(self) -> dict[str, Any]:
        """Return fields of `Facts` from its files and the loaded model."""
        return super().facts() | {"kv_precision": ""}


RUNNERS: dict[Kind, type[ClassifierRunner | GenaiRunner | TorchRunner]] = {
    "ir": GenaiRunner,
    "torch": TorchRunner,
    "ir-classifier": ClassifierRunner,
    "torch-classifier": TorchClassifierRunner,
}
