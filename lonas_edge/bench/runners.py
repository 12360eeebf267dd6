"""How an arm is run: openvino_genai, PyTorch, llama.cpp. Used inside an arm's own process; imports are the process's cost.

A language model's runner generates greedily a fixed number of tokens after prompts of token ids, and reports when each token
was there. A cached prompt prefix is impossible: openvino_genai's prefix cache is switched off, the other two start from an
empty KV cache. A classifier's passes the ids through once.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lonas_edge.bench import damage
from lonas_edge.bench.arms import NPU_LENGTHS, Arm
from lonas_edge.bench.timing import Speculated, Timing, from_genai, generate_greedy
from lonas_edge.formats import DTYPES
from lonas_edge.ir import MODEL, WEIGHTS
from lonas_edge.ir.core import openvino_core

Prompts = Sequence[Sequence[int]]  # [batch, prompt_len]
_DEQUANTIZE = ("Convert", "Multiply", "Subtract", "Reshape", "Transpose")


class Runner(Protocol):
    """A loaded arm."""

    def run(self, prompts: Prompts, new_tokens: int) -> Timing:
        """Generate `new_tokens` after each of the prompts, as one batch; none where the model classifies."""
        ...

    def facts(self) -> dict[str, Any]:
        """Fields of `Facts` that its files and the loaded model give."""
        ...

    def compiled(self) -> dict[str, Any]:
        """Fields of `Facts` that compiling it once more gives, where anything is; nothing can be run afterwards."""
        return {}


class IrRunner(Runner):
    """An IR, whatever runs it."""

    _arm: Arm
    _threads: int
    _loaded: Any

    def facts(self) -> dict[str, Any]:
        """See `Runner`."""
        elements, size = matmul_weights(openvino_core().read_model(self._arm.path / MODEL))
        return {
            "macs_per_token": elements,
            "weight_bytes_per_token": size,
            "kv_precision": "",
            "disk_bytes": sum((folder / name).stat().st_size for folder in self._folders() for name in (MODEL, WEIGHTS)),
        }

    def _folders(self) -> list[Path]:
        """Directories of the IRs that are run together."""
        return [self._arm.path]

    def compiled(self) -> dict[str, Any]:
        """See `Runner`."""
        self._loaded = None
        core, properties = openvino_core(), dict(runtime_properties(self._arm, self._threads))
        start = time.perf_counter()
        compiled = [
            core.compile_model(core.read_model(folder / MODEL), self._arm.device, properties) for folder in self._folders()
        ]
        return {"compile_seconds": time.perf_counter() - start, **self._chosen(compiled[0])}

    def _chosen(self, compiled: Any) -> dict[str, Any]:
        """Fields of `Facts` that a compiled model says."""
        return {}


class ClassifierRunner(IrRunner):
    """A classifier's IR in OpenVINO itself, as `OVModelForSequenceClassification` runs it."""

    def __init__(self, arm: Arm, threads: int):
        """Read and compile; see `Engine`."""
        self._arm, self._threads = arm, threads
        core = openvino_core()
        compiled = core.compile_model(core.read_model(arm.path / MODEL), arm.device, dict(runtime_properties(arm, threads)))
        self._loaded = compiled.create_infer_request()
        self._inputs = [place.any_name for place in compiled.inputs]

    def run(self, prompts: Prompts, new_tokens: int) -> Timing:
        """See `Runner`."""
        import numpy as np

        ids = np.array(prompts, np.int64)
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        inputs = {name: given[name] for name in self._inputs}
        start = time.perf_counter()
        self._loaded.infer(inputs)
        return Timing((), time.perf_counter() - start)


class GenaiRunner(IrRunner):
    """An IR in `openvino_genai.LLMPipeline`, as deployed."""

    def __init__(self, arm: Arm, threads: int):
        """Read and compile; see `Engine`."""
        import openvino_genai

        self._arm, self._threads = arm, threads
        options: dict[str, Any] = {**runtime_properties(arm, threads), **self._beside()}
        options |= {name: int(options[name]) for name in NPU_LENGTHS if name in options}  # as text they are refused
        if not arm.device.startswith("NPU"):  # its static pipeline has neither scheduler nor prefix cache
            scheduler = openvino_genai.SchedulerConfig()
            scheduler.enable_prefix_caching = False
            scheduler.max_num_batched_tokens = 2**31  # as LLMPipeline has it: the prompt in one pass
            options["scheduler_config"] = scheduler
        self._loaded = openvino_genai.LLMPipeline(arm.path, arm.device, **options)

    def run(self, prompts: Prompts, new_tokens: int) -> Timing:
        """See `Runner`."""
        import numpy as np
        import openvino as ov
        import openvino_genai

        config = openvino_genai.GenerationConfig(**self._asked())
        config.max_new_tokens = new_tokens
        # min_new_tokens would forbid the end token, and with a draft openvino_genai 2026.4 does so in other places than without
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        ids = np.array(prompts, np.int64)
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        start = time.perf_counter()
        result = self._loaded.generate(inputs, config)
        end_to_end = time.perf_counter() - start
        raw = result.perf_metrics.raw_metrics
        times = self._token_times(raw)
        if len(times) != new_tokens:
            raise RuntimeError(f"{new_tokens} tokens asked for, {len(times)} generated")
        timing = from_genai(raw.m_times_to_first_token[0], times, end_to_end)
        return replace(timing, answers=tuple(map(tuple, result.tokens)), speculated=self._speculated(result))

    def _beside(self) -> dict[str, Any]:
        """What the pipeline is made with beside run-time properties."""
        return {}

    def _asked(self) -> dict[str, Any]:
        """What a generation is asked for beside its length."""
        return {}

    def _token_times(self, raw: Any) -> Sequence[float]:
        """When each token was there, milliseconds: a step gives one token of each prompt."""
        times: Sequence[float] = raw.m_new_token_times
        return times

    def _speculated(self, result: Any) -> Speculated | None:
        return None

    def facts(self) -> dict[str, Any]:
        """See `Runner`."""
        return super().facts() | {"kv_precision": self._arm.properties.get("KV_CACHE_PRECISION", "default")}

    def compiled(self) -> dict[str, Any]:
        """See `Runner`. For an NPU, openvino_genai makes static models of the IR, which OpenVINO alone would not compile."""
        return {} if self._arm.device.startswith("NPU") else super().compiled()

    def _chosen(self, compiled: Any) -> dict[str, Any]:
        if "CPU" not in self._arm.device:
            return {}
        return {"kv_precision": str(compiled.get_property("KV_CACHE_PRECISION").get_type_name())}


class SpeculativeRunner(GenaiRunner):
    """An IR with its draft in `openvino_genai.LLMPipeline`: both on one device, with the same run-time properties.

    Tokens that one pass of the main model gives come together, so that TPOT is the mean over all.
    """

    def _beside(self) -> dict[str, Any]:
        import openvino_genai

        properties = runtime_properties(self._arm, self._threads)
        return {"draft_model": openvino_genai.draft_model(self._arm.draft, self._arm.device, **properties)}

    def _asked(self) -> dict[str, Any]:
        return {"num_assistant_tokens": self._arm.assistant_tokens}

    def _token_times(self, raw: Any) -> Sequence[float]:
        return [time for time, tokens in zip(raw.m_new_token_times, raw.m_batch_sizes, strict=True) for _ in range(tokens)]

    def _speculated(self, result: Any) -> Speculated:
        found = result.extended_perf_metrics
        passes = (found.main_model_metrics.raw_metrics.m_durations, found.draft_model_metrics.raw_metrics.m_durations)
        main, draft = (sum(times[1:]) / max(1, len(times) - 1) / 1e6 for times in map(list, passes))
        steps = tuple(result.perf_metrics.raw_metrics.m_batch_sizes)
        return Speculated(steps, found.get_num_draft_tokens(), found.get_num_accepted_tokens(), main, draft)

    def _folders(self) -> list[Path]:
        return [*super()._folders(), *([self._arm.draft] if self._arm.draft else [])]

    def facts(self) -> dict[str, Any]:
        """See `Runner`; what one token reads depends on how many are accepted."""
        return super().facts() | {"macs_per_token": None, "weight_bytes_per_token": None}


def runtime_properties(arm: Arm, threads: int) -> Mapping[str, str]:
    """The properties an IR is compiled with: the arm's own, over those that a fair comparison fixes."""
    fixed = {"PERFORMANCE_HINT": "LATENCY"}
    if arm.device == "CPU":
        fixed["INFERENCE_NUM_THREADS"] = str(threads)
    return fixed | dict(arm.properties)


def matmul_weights(model: Any) -> tuple[int, int]:
    """What decoding one token reads of an IR.

    Args:
        model: An `openvino.Model`.

    Returns:
        Elements of the matrices that activations are multiplied by, and the bytes of these with their scales and zero points; a
        constant that several share counts once. A row of the embedding is nothing beside them, and left out.
    """
    seen: dict[str, int] = {}
    elements = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        constants = _constants_behind(node.input_value(1).get_node())
        if constants:
            elements += max(_count(constant.shape) for constant in constants)
        for constant in constants:
            bits = constant.get_element_type().bitwidth
            seen[constant.friendly_name] = _count(constant.shape) * bits // 8
    return elements, sum(seen.values())


def _count(shape: Sequence[int]) -> int:
    total = 1
    for extent in shape:
        total *= int(extent)
    return total


def _constants_behind(node: Any) -> list[Any]:
    if node.get_type_name() == "Constant":
        return [node]
    if node.get_type_name() not in _DEQUANTIZE:
        return []  # an activation: attention multiplies two of them
    found = [_constants_behind(node.input_value(index).get_node()) for index in range(node.get_input_size())]
    return [constant for constants in found for constant in constants] if found[0] else []


class TorchRunner(Runner):
    """A base model with a PEFT adapter, unmerged or merged, in PyTorch. The loop is bare: less than `generate()` costs."""

    def __init__(self, arm: Arm, threads: int):
        """Load; see `Engine`."""
        import torch
        from peft import PeftModel

        self._torch, self._arm = torch, arm
        torch.set_num_threads(threads)
        dtype = DTYPES[arm.precision].torch
        model = self._base(dtype=dtype, local_files_only=True, trust_remote_code=False)
        if arm.adapter:
            # an adapter in fp32 on a 16-bit base would be cast at every layer: unfair to the baseline
            model = PeftModel.from_pretrained(model, str(arm.adapter), autocast_adapter_dtype=False).to(dtype)
            model = model.merge_and_unload() if arm.merged else model
        self._model = model.to(arm.device).eval()

    def _base(self, **options: Any) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self._arm.path, **options)

    def run(self, prompts: Prompts, new_tokens: int) -> Timing:
        """See `Runner`."""
        torch, state = self._torch, {"cache": None}

        def step(ids: Any) -> Any:
            output = self._model(input_ids=ids, past_key_values=state["cache"], use_cache=True, logits_to_keep=1)
            state["cache"] = output.past_key_values
            chosen = output.logits[:, -1].argmax(-1, keepdim=True)
            if self._arm.device != "cpu":
                torch.cuda.synchronize()
            return chosen

        ids = torch.tensor(prompts, device=self._arm.device)
        with torch.inference_mode():
            return generate_greedy(lambda: step(ids), step, new_tokens, time.perf_counter)[1]

    def facts(self) -> dict[str, Any]:
        """See `Runner`."""
        torch = self._torch
        parameters = list(self._model.parameters())  # a tied head once
        head = self._model.get_output_embeddings()  # none of a classifier
        embedding = self._model.get_input_embeddings().weight
        tied = head is not None and head.weight is embedding
        skipped = 0 if tied else embedding.numel() * embedding.element_size()
        linears = [module.weight for module in self._model.modules() if isinstance(module, torch.nn.Linear)]
        files = [*self._arm.path.glob("*.safetensors"), *self._arm.path.glob("pytorch_model*.bin")]
        files += [] if self._arm.adapter is None else list(self._arm.adapter.glob("adapter_model.*"))
        return {
            "macs_per_token": sum(weight.numel() for weight in linears),
            "weight_bytes_per_token": sum(p.numel() * p.element_size() for p in parameters) - skipped,
            "parameters": sum(p.numel() for p in parameters),
            "kv_precision": DTYPES[self._arm.precision].kv_name,
            "disk_bytes": sum(file.stat().st_size for file in files),
        }


class TorchClassifierRunner(TorchRunner):
    """A classifier with a PEFT adapter that carries its head, in PyTorch."""

    def _base(self, **options: Any) -> Any:
        from transformers import AutoModelForSequenceClassification

        told = {"num_labels": self._arm.outputs, "ignore_mismatched_sizes": True}  # the adapter's head takes that one's place
        return AutoModelForSequenceClassification.from_pretrained(self._arm.path, **told, **options)

    def run(self, prompts: Prompts, new_tokens: int) -> Timing:
        """See `Runner`."""
        torch = self._torch
        ids = torch.tensor(prompts, device=self._arm.device)
        start = time.perf_counter()
        with torch.inference_mode():
            self._model(input_ids=ids, attention_mask=torch.ones_like(ids))
        if self._arm.device != "cpu":
            torch.cuda.synchronize()
        return Timing((), time.perf_counter() - start)

    def facts(self) -> dict[str, Any]:
        """See `Runner`."""
        return super().facts() | {"kv_precision": ""}


class GgufRunner(Runner):
    """A GGUF file in llama.cpp, by llama-cpp-python's C interface: `Llama.eval` copies all logits at every token.

    llama.cpp's own defaults otherwise: flash attention as it chooses, KV cache in f16, micro-batches of 512 tokens.
    """

    def __init__(self, arm: Arm, threads: int):
        """Load; see `Engine`."""
        import llama_cpp

        self._arm, self._threads, self._api = arm, threads, llama_cpp
        self._model = llama_cpp.llama_model_load_from_file(str(arm.path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError("llama.cpp cannot load the file")
        self._shape: tuple[int, int, int] | None = None
        self._context: Any = None
        self._batch: Any = None

    def _prepare(self, sequences: int, length: int, new_tokens: int) -> None:
        """Make a context for this shape; it is kept while the shape stays the same."""
        api = self._api
        if self._shape == (sequences, length, new_tokens):
            return
        if self._context:
            api.llama_free(self._context)
            api.llama_batch_free(self._batch)
        params = api.llama_context_default_params()
        params.n_seq_max, params.n_batch = sequences, sequences * length
        params.n_ctx = sequences * -(-(length + new_tokens) // 256) * 256  # llama.cpp divides it into whole 256s
        params.n_threads = params.n_threads_batch = self._threads
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise MemoryError("llama.cpp cannot allocate its context")
        self._batch = api.llama_batch_init(sequences * length, 0, 1)
        self._shape = (sequences, length, new_tokens)

    def run(self, prompts: Prompts, new_tokens: int) -> Timing:
        """See `Runner`."""
        import numpy as np

        api, sequences, length = self._api, len(prompts), len(prompts[0])
        self._prepare(sequences, length, new_tokens)
        batch, vocabulary = self._batch, api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        room = (sequences * length,)
        token, position, wanted = (np.ctypeslib.as_array(p, room) for p in (batch.token, batch.pos, batch.logits))
        api.llama_memory_clear(api.llama_get_memory(self._context), False)
        seen = 0

        def step(ids: Any) -> Any:
            nonlocal seen
            each = ids.shape[1]
            count = batch.n_tokens = ids.size
            token[:count], position[:count] = ids.ravel(), np.tile(np.arange(seen, seen + each), sequences)
            wanted[:count] = np.arange(count) % each == each - 1
            for index in range(count):
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, index // each
            seen += each
            if api.llama_decode(self._context, batch):
                raise RuntimeError("llama.cpp could not decode")
            logits = np.ctypeslib.as_array(api.llama_get_logits(self._context), (sequences, vocabulary))
            return logits.argmax(1)[:, None]

        ids = np.array(prompts, np.int32)
        return generate_greedy(lambda: step(ids), step, new_tokens, time.perf_counter)[1]

    def facts(self) -> dict[str, Any]:
        """See `Runner`."""
        from gguf import GGUFReader

        tensors = {tensor.name: tensor for tensor in GGUFReader(self._arm.path).tensors}
        untied = "output.weight" in tensors
        read = [t for name, t in tensors.items() if not (untied and name == "token_embd.weight")]
        return {
            "macs_per_token": sum(int(t.n_elements) for t in read if len(t.shape) > 1),
            "weight_bytes_per_token": sum(int(t.n_bytes) for t in read),
            "parameters": sum(int(t.n_elements) for t in tensors.values()),
            "kv_precision": "f16",
            "disk_bytes": self._arm.path.stat().st_size,
        }


@dataclass(frozen=True)
class Engine:
    """What runs an arm.

    Attributes:
        framework: Its name in reports.
        modules: What it imports.
        extra: The extra of lonas-edge that brings them, where they are not always there.
        runner: Loads an arm; takes the arm and the threads of its computations on a CPU.
        damage: The file of an arm that is damaged, and what is wrong; None where none is.
    """

    framework: str
    modules: tuple[str, ...]
    extra: str | None
    runner: Callable[[Arm, int], Runner]
    damage: Callable[[Arm], str | None]


ENGINES = {
    "ir": Engine("openvino_genai", ("openvino_genai",), "bench", GenaiRunner, damage.in_ir),
    "ir-draft": Engine("openvino_genai", ("openvino_genai",), "bench", SpeculativeRunner, damage.in_ir),
    "torch": Engine("pytorch", ("torch", "transformers", "peft"), None, TorchRunner, damage.in_checkpoint),
    "ir-classifier": Engine("openvino", ("openvino",), None, ClassifierRunner, damage.in_ir),
    "torch-classifier": Engine("pytorch", ("torch", "transformers", "peft"), None, TorchClassifierRunner, damage.in_checkpoint),
    "gguf": Engine("llama.cpp", ("llama_cpp", "gguf"), "llama-cpp", GgufRunner, damage.in_gguf),
}
