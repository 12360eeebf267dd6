"""The oracle, run by every export. Three comparisons, each sharp, so that a fault cannot hide behind quantization:

1. the materialized model, before it is rounded, answers as the activated super-network (1e-8);
2. every stored weight is the materialized one, to one rounding of its format;
3. the IR answers as the weights stored in it (1e-3); llama.cpp, where it is installed, as those in the GGUF file.

What the format costs, the IR's distance from the materialized model, is reported (KL divergence, top-1), not judged: it depends
on the network.

The super-network is an unpatched PEFT model that loads the adapter itself, with the sub-network activated in it, so a fault in
our reading of the adapter, its scale, the slicing or the merging shows. Weights are streamed a layer at a time. All is computed
in float64, norms, rotary tables and the merge too: rounding the merged weights to fp32 once changes logits by up to 2e-4, and
fp32 arithmetic by 5e-4 (SmolLM2-135M, logits up to 40), which either hides what is looked for or refuses what is right.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import openvino as ov
import torch

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import read_json
from lonas_edge.ir.compress import Compressed
from lonas_edge.ir.infer import open_ir, open_model
from lonas_edge.network.checkpoints import open_tensors
from lonas_edge.network.divergence import Parity
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.modeling import Inputs, empty_model, float64_logits, stream_weights
from lonas_edge.network.super_network import empty_super_network, of_adapter, unwrapped

# What a faultless export stays below; `docs/design-notes.md` has the measurements. Logit tolerances are for logits up to
# LOGIT_RANGE and grow in proportion beyond it.
LOGIT_RANGE = 32
CHECKPOINT_TOLERANCE = 1e-8
IR_TOLERANCE, NOISE_ALLOWED = 1e-3, 8  # plugins order their sums otherwise than PyTorch
# llama.cpp's, by how matrices are stored. Of f16 it may round what they are multiplied with, too, to as many digits; of bf16
# and q8_0 it does so coarsely, which is reported and not judged: a network that is cut and untrained then answers otherwise.
LLAMA_CPP_TOLERANCE = {"f32": 1e-3, "f16": 0.5}
_WAY_OUT = "Nothing was written. Please report it; --no-verify exports all the same, and records that."
FP32 = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "PERFORMANCE_HINT": "LATENCY",
}


def super_network_logits(model: MaterializedModel, inputs: Inputs) -> torch.Tensor:
    """Logits of the activated super-network: base and unmerged adapter, loaded by PEFT, the sub-network switched on.

    Args:
        model: Says the source and the sub-network.
        inputs: What it is given by name, each [prompts, tokens].

    Returns:
        [prompts, tokens, vocabulary], or [prompts, classes], float64.
    """
    network = empty_super_network(model.source)
    for name, parameter in network.model.named_parameters():
        if of_adapter(name):
            parameter.data = parameter.data.double()
    network.activate(model.subnetwork.widths)
    base = network.base
    return float64_logits(base, inputs, lambda name: model.corrected_base(unwrapped(name)), lambda name: not of_adapter(name))


def materialized_logits(model: MaterializedModel, inputs: Inputs) -> torch.Tensor:
    """Logits of the materialized model before any rounding to a storage format.

    Args:
        model: The materialized model.
        inputs: What it is given by name, each [prompts, tokens].

    Returns:
        [prompts, tokens, vocabulary], or [prompts, classes], float64.
    """
    return float64_logits(empty_model(model.config()), inputs, model.exact)


def stored_logits(model: MaterializedModel, matrices: Mapping[str, Compressed], inputs: Inputs) -> torch.Tensor:
    """Logits of the weights as an IR stores them; checks on the way that each is the materialized one, to its format's step.

    Args:
        model: The materialized model.
        matrices: Its weight matrices as stored.
        inputs: What it is given by name, each [prompts, tokens].

    Returns:
        [prompts, tokens, vocabulary], or [prompts, classes], float64.

    Raises:
        LonasEdgeError: If a stored weight is further from the materialized one than rounding explains.
    """
    embedding = f"{model.source.architecture.family.embedding}.weight"

    def stored(name: str) -> torch.Tensor:
        name = name if name in model.shapes else embedding  # a tied head
        value = model.exact(name).float()  # not `tensor`, by which what is stored was made
        if name not in matrices:
            return value
        matrix = matrices[name]
        restored, error = matrix.restored(value.numpy())
        what = f"the stored {name} is not the materialized one, in units of its {matrix.scheme.weight_format.name} rounding"
        _require(model.source.folder, what, error, matrix.scheme.weight_format.tolerance)
        return torch.from_numpy(restored)

    return float64_logits(empty_model(model.config()), inputs, stored)


def file_logits(
    model: MaterializedModel, restored: Callable[[str, torch.Tensor], tuple[torch.Tensor, float]], inputs: Inputs
) -> torch.Tensor:
    """Logits of the weights as a GGUF file stores them; checks on the way that each is the materialized one, rounded once.

    Args:
        model: The materialized model.
        restored: As of `GgufFile.restored`.
        inputs: What it is given by name, each [prompts, tokens].

    Returns:
        [prompts, tokens, vocabulary], float64.

    Raises:
        LonasEdgeError: If a stored weight is further from the materialized one than rounding explains.
    """
    embedding = f"{model.source.architecture.family.embedding}.weight"

    def stored(name: str) -> torch.Tensor:
        name = name if name in model.shapes else embedding  # a tied head
        value, error = restored(name, model.exact(name))
        _require(model.source.folder, f"the stored {name} is not the materialized one, in units of its rounding", error, 1.0)
        return value

    return float64_logits(empty_model(model.config()), inputs, stored)


def check_llama_cpp(of: Path, parity: Parity, reference: torch.Tensor, kind: str) -> None:
    """Refuse a GGUF file that llama.cpp does not answer from as the weights stored in it say.

    Args:
        of: The directory it was made from, for the message.
        parity: The comparison.
        reference: Logits of the stored weights.
        kind: How its matrices are stored.

    Raises:
        LonasEdgeError: If it is beyond the tolerance.
    """
    what, tolerance = "llama.cpp does not answer as the weights stored in the GGUF file", LLAMA_CPP_TOLERANCE.get(kind)
    _require(of, what, parity.max_logit_difference, math.inf if tolerance is None else tolerance * _scale(reference))


def checkpoint_logits(folder: Path, inputs: Inputs) -> torch.Tensor:
    """Logits of a checkpoint on disk, read a layer at a time.

    Args:
        folder: The checkpoint's directory.
        inputs: What it is given by name, each [prompts, tokens].

    Returns:
        [prompts, tokens, vocabulary], or [prompts, classes], float64.
    """
    config, tensors = read_json(folder / "config.json"), open_tensors(folder)
    network = empty_model(config, str(folder))
    embedding = next(name for name, module in network.named_modules() if module is network.get_input_embeddings())
    return float64_logits(network, inputs, lambda name: tensors.read(name if name in tensors.shapes else f"{embedding}.weight"))


def ir_logits(path: "Path | ov.Model", inputs: Inputs) -> torch.Tensor:
    """Logits of an IR on the CPU, computed in fp32: what is compared is the stored model, not the plugin's bf16.

    Args:
        path: The .xml file, or the model.
        inputs: What it is given by name, each [prompts, tokens].

    Returns:
        [prompts, tokens, vocabulary], or [prompts, classes], fp32.
    """
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    if inputs.keys() == {"input_ids"}:
        return torch.from_numpy(open_ir(path, "CPU", FP32)(arrays["input_ids"], 0))
    return torch.from_numpy(open_model(path, "CPU", FP32)(arrays))


def check_materialized(of: Path, parity: Parity, reference: torch.Tensor) -> None:
    """Refuse a materialized model that does not answer as the activated super-network.

    Args:
        of: The directory it was made from, for the message.
        parity: The comparison, before any rounding to a storage format.
        reference: The super-network's logits.

    Raises:
        LonasEdgeError: If it is beyond the tolerance.
    """
    what = "the materialized model does not answer as the activated super-network"
    _require(of, what, parity.max_logit_difference, CHECKPOINT_TOLERANCE * _scale(reference))


def check_checkpoint(model: MaterializedModel, folder: Path, dtype: torch.dtype) -> None:
    """Refuse a checkpoint on disk whose tensors are not the materialized ones, rounded once.

    Args:
        model: The materialized model.
        folder: The checkpoint's directory.
        dtype: Its dtype.

    Raises:
        LonasEdgeError: If a tensor differs; all are listed.
    """
    tensors, unit = open_tensors(folder), torch.finfo(dtype)

    def right(name: str) -> bool:
        """Within half a unit in the last place; a hundredth of one more where it was rounded by way of fp32."""
        exact, stored = model.exact(name), tensors.read(name)
        if exact.dtype != torch.float64:  # nothing was merged into it
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
        f"{model.source.folder}: verification failed: the checkpoint does not hold the materialized model:", wrong, _WAY_OUT
    )


def arithmetic_noise(model: MaterializedModel, inputs: Inputs, exact: torch.Tensor) -> float:
    """What computing in fp32 alone changes: the largest difference of a materialized model's logits from those in float64.

    Args:
        model: The materialized model.
        inputs: What it is given by name, each [prompts, tokens].
        exact: Its logits in float64.

    Returns:
        The difference.
    """
    network = empty_model(model.config())
    stream_weights(network, model.tensor, dtype=torch.float32)
    with torch.inference_mode():
        return float((network(**inputs, use_cache=False).logits - exact).abs().max())


def check_ir(of: Path, parity: Parity, reference: torch.Tensor, noise: Callable[[], float]) -> None:
    """Refuse an IR that does not compute what its stored weights say.

    Args:
        of: The directory it was made from, for the message.
        parity: The comparison.
        reference: Logits of the stored weights.
        noise: As of `arithmetic_noise`; asked only beyond the tolerance, since a touchy network needs more.

    Raises:
        LonasEdgeError: If it is beyond the tolerance.
    """
    what, tolerance = "the IR does not answer as the weights stored in it", IR_TOLERANCE * _scale(reference)
    if parity.max_logit_difference > tolerance:
        tolerance = max(tolerance, NOISE_ALLOWED * noise())
    _require(of, what, parity.max_logit_difference, tolerance)


def _scale(reference: torch.Tensor) -> float:
    return max(1.0, reference.abs().max().item() / LOGIT_RANGE)


def _require(of: Path, what: str, value: float, tolerance: float) -> None:
    if value <= tolerance:  # false for NaN
        return
    raise LonasEdgeError(f"{of}: verification failed: {what}: {value:.3g}, allowed {tolerance:.3g}. {_WAY_OUT}")
