"""Separate adapters (`--adapter separate`): one sliced base as IR, and each adapter's sliced factors in a file next to it.

openvino_genai adds them while it runs, or switches between them. Three comparisons find errors: the merged model with the
activated super-network, as in every export; each layer's product B A with the difference of merged and base weights, to one
rounding of A and B; and the IR's logits with the adapter with those of the merged model. The last one is judged for fp32 only,
since it contains the rounding of the base.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.exporting import verify
from lonas_edge.exporting.job import Job, verify_weights
from lonas_edge.exporting.manifest import Manifest, Origin, SeparateAdapter, Written, adapter_file
from lonas_edge.families import CAUSAL_LM
from lonas_edge.files import read_json
from lonas_edge.ir import MODEL, lora
from lonas_edge.ir.core import openvino_core
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.source import Source
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.options import given
from lonas_edge.output import differences

_OF_BASE = ("group_size", "ratio", "head_format")  # options that the base of an existing export has decided


def name_of(source: Source) -> str:
    """Return the name of an adapter in an exported directory: the last part of its hub id or directory."""
    assert source.adapter
    return re.sub(r"[^\w.-]", "-", source.adapter.name.rpartition("/")[2])


def bare(source: Source) -> Source:
    """Return the super-network without its adapter: the base in the adapter's channel order."""
    return replace(source, adapter=None, adapter_config=None)


def require_separable(source: Source) -> None:
    """Refuse an adapter that is more than factors next to the layers of a language model."""
    source.architecture.require(CAUSAL_LM, "--adapter separate")
    if source.adapter_config is None:
        raise LonasEdgeError(f"{source.folder}: no adapter, which --adapter separate needs. Export the model without it.")
    faults = [f"{name}: replaced as a whole (modules_to_save, or trained biases)" for name in source.replaced()]
    faults += ["lora_bias: the factors have biases"] if source.adapter_config.lora.lora_bias else []
    faults += ["a LoRA on the output head"] if source.architecture.family.head in source.ranks() else []
    if source.trained_as:
        faults.append(f"trained for --weight-format {source.trained_as} (quantization-aware): it is rounded after merging")
    raise_all(
        f"{source.folder}: this adapter cannot be separate from its base:",
        faults,
        "Export it merged, without --adapter separate.",
    )


def refuse_misfits(output: Path, manifest: Manifest, job: Job, source: Source, base: Mapping[str, str]) -> None:
    """Refuse an adapter that was not made for the sliced base in an existing directory, or is in it; `base` are hashes."""
    name, model = name_of(source), job.model
    if name in manifest.adapters and not job.options.overwrite:
        raise LonasEdgeError(
            f"{output}: has an adapter {name!r} already. Pass --overwrite to replace it, or rename {source.folder}."
        )
    other = sorted(name for name in base if base[name] != manifest.base.sha256.get(name))
    faults = [f"other base: {source.base.name} and {manifest.base.name} differ in {', '.join(other)}"] if other else []
    written, own = ({**config, "dtype": None} for config in (read_json(output / "config.json"), model.config()))
    faults += [] if other else [f"other sub-network: {line}" for line in differences(written, own)]
    if not faults and manifest.channels != source.order.kept(model.subnetwork.linears):
        faults.append("other channels: its channel order is not that of the first adapter")
    if source.chat_template and job.tokenizer.chat_template != load_tokenizer(output).chat_template:
        faults.append("other chat template: it was trained with one that is not the directory's")
    if given(job.options, "weight_format") and job.options.weight_format != manifest.weight_format:
        faults.append(f"--weight-format {job.options.weight_format}: the base is stored in {manifest.weight_format}")
    faults += [f"--{name.replace('_', '-')}: the base is stored already" for name in _OF_BASE if given(job.options, name)]
    raise_all(
        f"{source.folder}: does not fit the base in {output} ({manifest.base.name}, {manifest.subnetwork.name} sub-network):",
        faults,
        "Export it to another directory.",
    )


def write_adapter(job: Job, model: MaterializedModel, manifest: Manifest, hashes: dict[str, str]) -> Manifest:
    """Write the adapter of a merged `model` next to the IR of a job, and verify it; return the manifest with it.

    `hashes` are those of the adapter's own files.
    """
    source = model.source
    assert source.adapter
    name = name_of(source)
    path = job.folder / adapter_file(name)
    rows = {layer: widths.out_features for layer, widths in model.subnetwork.linears.items()}
    with job.steps.step("adapter", "Slicing the adapter"):
        graph, factors = openvino_core().read_model(job.folder / MODEL), model.factors()
        layers = lora.products(graph, factors)
        dtype = torch.float32 if job.stored == "fp32" else torch.float16
        tensors = {key: tensor.to(dtype).contiguous() for key, tensor in lora.stacked(layers, factors, rows).items()}
        overflowed = [f"{key}: overflows fp16" for key, tensor in tensors.items() if not tensor.isfinite().all()]
        raise_all(f"{source.folder}: the adapter cannot be stored:", overflowed, "Use --weight-format fp32.")
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)  # a link to the one that it replaces
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors makes it private, and servers run as other users
    parity = {}
    if job.options.verify:
        materialized, parity["materialized"] = verify_weights(replace(job, model=model))
        with job.steps.step("verify_adapter", "Comparing the IR with the adapter"):
            stored = load_file(path)
            verify.check_factors(model, job.model, lora.taken_apart(stored, layers, rows))
            lora.attach(graph, stored)
            parity["ir_adapter"] = job.compare(materialized, verify.ir_logits(graph, job.inputs()))
            if job.stored == "fp32":
                noise = partial(verify.arithmetic_noise, model, job.inputs(), materialized)
                verify.check_ir(source.folder, parity["ir_adapter"], materialized, noise)
    prompt = source.training.prompt.name if source.training and source.training.prompt else None
    adapter = SeparateAdapter(Origin(source.adapter.name, source.adapter.revision, hashes), prompt, parity)
    files = {**manifest.files, adapter_file(name): (Written.of(path),)}
    channels = source.order.kept(model.subnetwork.linears)
    return replace(manifest, adapters={**manifest.adapters, name: adapter}, files=files, channels=channels)
