"""Verify every export. Three sharp comparisons, so that an error cannot hide behind quantization:

1. the logits of the materialized model, before it is rounded, equal those of the activated super-network (1e-8); of an
   embedding model the hidden states of all tokens;
2. every stored weight is the materialized one, to one rounding of its format;
3. the logits of the IR equal those of the weights stored in it (1e-3).

The distance of the IR from the materialized model is the effect of the format. It is reported (KL divergence, top-1) and not
judged: it depends on the network. So is the effect of the group of INT8 activations that is stored in the IR; a group that
changes the outputs too much is removed from it.

The super-network is an unpatched PEFT model that loads the adapter itself, with the sub-network activated in it, so an error in
our reading of the adapter, its scale, the slicing or the merging shows. Weights are streamed a layer at a time. All is computed
in float64, norms, rotary tables and the merge too: rounding the merged weights to fp32 once changes logits by up to 2e-4, and
fp32 arithmetic by 5e-4 (SmolLM2-135M, logits up to 40). Either would hide errors or refuse correct models.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import openvino as ov
import torch

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.exporting.float64 import float64_logits, model_outputs, stream_weights, without_padding
from lonas_edge.exporting.parity import Parity
from lonas_edge.files import read_json
from lonas_edge.ir.compress import Compressed
from lonas_edge.ir.core import inputs_of, open_model
from lonas_edge.network.checkpoints import open_tensors
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.modeling import Inputs, empty_model
from lonas_edge.network.super_network import base_name, empty_super_network, in_adapter

# Upper bounds of correct exports; docs/benchmarks/verification.md has the measurements. Logit tolerances are for logits up to
# LOGIT_RANGE and grow in proportion beyond it.
LOGIT_RANGE = 32
CHECKPOINT_TOLERANCE = 1e-8
IR_TOLERANCE, NOISE_ALLOWED = 1e-3, 8  # plugins and PyTorch add in different orders
# What a stored group of activations may add to the distance of these outputs, see `Parity.distance`. Trained language models
# have 0.01 nats (docs/benchmarks/latency.md), MiniLM-L6 a cosine distance of 0.0007.
MAX_OF_GROUP = {"logits": 0.05, "hidden states": 0.01, "scores": 0.05}
_ADVICE = "Nothing was written. Please report it; --no-verify exports anyway, and records that."
FP32 = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "PERFORMANCE_HINT": "LATENCY",
}

# Logits below are [prompts, tokens, vocabulary], or [prompts, classes]; or hidden states [prompts, tokens, hidden] of an
# embedding model. Inputs are by name, each [prompts, tokens].


def super_network_logits(model: MaterializedModel, inputs: Inputs) -> torch.Tensor:
    """Compute the float64 logits of the activated super-network: base and unmerged adapter, loaded by PEFT."""
    network = empty_super_network(model.source)
    for name, parameter in network.model.named_parameters():
        if in_adapter(name):
            parameter.data = parameter.data.double()
    network.activate(model.subnetwork.widths)
    base = network.base
    return float64_logits(base, inputs, lambda name: model.base_tensor(base_name(name)), lambda name: not in_adapter(name))


def materialized_logits(model: MaterializedModel, inputs: Inputs) -> torch.Tensor:
    """Compute the float64 logits of the materialized model before any rounding to a storage format."""
    return float64_logits(empty_model(model.config()), inputs, model.exact)


def stored_logits(model: MaterializedModel, matrices: Mapping[str, Compressed], inputs: Inputs) -> torch.Tensor:
    """Compute the float64 logits of the weights as an IR stores them; tensors that are no matrices are stored in fp32.

    Raises:
        LonasEdgeError: If a stored weight is further from the materialized one than rounding explains.
    """

    embedding = f"{model.source.architecture.family.embedding}.weight"

    def stored(name: str) -> torch.Tensor:
        name = name if name in model.shapes else embedding  # a tied head
        value = model.exact(name).float()  # not `model.tensor`, which made what is stored
        if name not in matrices:
            return value
        matrix, error = matrices[name].restore(value.numpy())
        what = f"the stored {name} differs from the materialized, in units of its rounding"
        _require(model.source.folder, what, error / matrices[name].scheme.weight_format.tolerance, 1.0)
        return torch.from_numpy(matrix)

    return float64_logits(empty_model(model.config()), inputs, stored)


def checkpoint_logits(folder: Path, inputs: Inputs) -> torch.Tensor:
    """Compute the float64 logits of a checkpoint on disk, read a layer at a time."""
    config, tensors = read_json(folder / "config.json"), open_tensors(folder)
    network = empty_model(config, str(folder))
    embedding = next(name for name, module in network.named_modules() if module is network.get_input_embeddings())
    return float64_logits(network, inputs, lambda name: tensors.read(name if name in tensors.shapes else f"{embedding}.weight"))


def ir_logits(path: "Path | ov.Model", inputs: Inputs, properties: Mapping[str, str] = FP32) -> torch.Tensor:
    """Compute the logits of an IR on the CPU, by default in fp32: the stored model is compared, not the plugin's bf16."""
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    if "attention_mask" not in inputs:  # prompts of a language model
        return torch.from_numpy(open_model(path, "CPU", properties)(inputs_of(arrays["input_ids"])))
    outputs = torch.from_numpy(open_model(path, "CPU", properties)(arrays))
    return without_padding(outputs, inputs) if outputs.dim() == 3 else outputs


def arithmetic_noise(model: MaterializedModel, inputs: Inputs, exact: torch.Tensor) -> float:
    """Return the largest difference of a materialized model's fp32 logits from its float64 ones."""
    network = empty_model(model.config())
    stream_weights(network, model.tensor, dtype=torch.float32)
    with torch.inference_mode():
        return float((model_outputs(network(**inputs, use_cache=False), inputs) - exact).abs().max())


def check_materialized(source: Path, parity: Parity, reference: torch.Tensor) -> None:
    """Refuse a materialized model whose logits are not the super-network's (`reference`); the error names `source`."""
    what = f"the {parity.compared} of the materialized model differ from the activated super-network's"
    _require(source, what, parity.max_logit_difference, CHECKPOINT_TOLERANCE * _scale(reference))


def check_checkpoint(model: MaterializedModel, folder: Path, dtype: torch.dtype) -> None:
    """Refuse a checkpoint on disk whose tensors are not the materialized ones, rounded once; list all that differ."""
    tensors, unit = open_tensors(folder), torch.finfo(dtype)

    def right(name: str) -> bool:
        """Allow half a unit in the last place, and a hundredth more if the value was rounded to fp32 first."""
        exact, stored = model.exact(name), tensors.read(name)
        if exact.dtype != torch.float64:  # nothing is merged into it
            return stored.dtype == dtype and torch.equal(stored, exact.to(dtype))
        last_place = torch.minimum(exact.abs(), torch.ldexp(torch.ones_like(exact), torch.frexp(exact).exponent - 1)) * unit.eps
        allowed = 0.51 * last_place + unit.smallest_normal * unit.eps
        return stored.dtype == dtype and bool(((stored.double() - exact).abs() <= allowed).all())

    wrong = [
        f"{name}: not the materialized tensor rounded to {dtype}"
        for name in model.shapes
        if name not in tensors.shapes or not right(name)
    ]
    if read_json(folder / "config.json") != model.config(str(dtype).removeprefix("torch.")):
        wrong.append("config.json: not the materialized model's")
    raise_all(
        f"{model.source.folder}: verification failed: the checkpoint does not hold the materialized model:", wrong, _ADVICE
    )


def check_ir(source: Path, parity: Parity, reference: torch.Tensor, noise: Callable[[], float]) -> None:
    """Refuse an IR whose logits are not those of its stored weights (`reference`); the error names `source`.

    `noise` gives `arithmetic_noise`; it is called only beyond the tolerance, since a sensitive network needs more.
    """
    what = f"the {parity.compared} of the IR differ from those of the weights stored in it"
    tolerance = IR_TOLERANCE * _scale(reference)
    if parity.max_logit_difference > tolerance:
        tolerance = max(tolerance, NOISE_ALLOWED * noise())
    _require(source, what, parity.max_logit_difference, tolerance)


def _scale(reference: torch.Tensor) -> float:
    return max(1.0, reference.abs().max().item() / LOGIT_RANGE)


def _require(source: Path, what: str, value: float, tolerance: float) -> None:
    if value <= tolerance:  # false for NaN
        return
    raise LonasEdgeError(f"{source}: verification failed: {what}: {value:.3g}, allowed {tolerance:.3g}. {_ADVICE}")
