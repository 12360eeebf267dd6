"""Write the model card of an exported directory, its README.md."""

import json
import re

from lonas_edge.data.pooling import PASSAGE, QUERY, Pooling
from lonas_edge.data.templates import CHAT, TEMPLATES
from lonas_edge.exporting.clients import RUN_SERVER, STAGES
from lonas_edge.exporting.manifest import BothSizes, Calibrated, Compression, Manifest
from lonas_edge.families import CAUSAL_LM
from lonas_edge.formats import METHOD, PER_CHANNEL
from lonas_edge.space.picture import draw
from lonas_edge.space.subnetwork import SearchOrigin
from lonas_edge.tables import Table

COMPARISON = "## Compared with other files of this model"  # of `compress`
_NPU = (
    "The weights are stored as OpenVINO's guide for NPUs requires. It was never run on an NPU. NPUs need the longest "
    "prompt and the room for the answer when the model is loaded:",
    "",
    "```python",
    'pipe = openvino_genai.LLMPipeline("THIS_DIRECTORY", "NPU", MAX_PROMPT_LEN=1024, MIN_RESPONSE_LEN=128)',
    "```",
    "",
)
_SECTION = re.compile(r"^(?=## )", re.MULTILINE)


def model_card(manifest: Manifest) -> str:
    """Return the model card of an exported directory as Markdown, with the metadata block that model hubs read."""
    stage, base, name, pooling = STAGES[manifest.stage], manifest.base.name, manifest.subnetwork.name, manifest.pooling
    tags = ["lonas", manifest.pipeline, *stage.tags]
    tags += ["sentence-transformers"] if pooling else []
    fine_tuned = f" fine-tuned with the adapter `{manifest.adapter.name}`" if manifest.adapter else ""
    fine_tuned += f" on GLUE's {manifest.task}" if manifest.task else ""
    lines = [
        "---",
        f"library_name: {stage.library}",
        f"tags: [{', '.join(tags)}]",
        f"pipeline_tag: {manifest.pipeline}",
        "---",
        f"# {base}, {name} sub-network, {manifest.formats}",
        "",
        f"`{base}`{fine_tuned}: the `{name}` sub-network, sliced and merged by lonas-edge. "
        "`subnetwork.json` has its widths, `lonas_edge.json` versions, hashes of the inputs, sizes and parity.",
        "",
    ]
    if manifest.subnetwork.origin:
        lines += _search(manifest.subnetwork.origin)
    lines += [*_sizes(manifest.sizes), ""]
    lines += _compression(manifest.compression, manifest.head, manifest.calibrated)
    lines += _picture(manifest)
    lines += ["## Run", ""]
    lines += [_with_pooling(line, pooling) for line in stage.run[manifest.pipeline]]
    lines += [""]
    if pooling:
        lines += _pooling(pooling)
    lines += _prompt(manifest)
    if "openvino_tokenizer.xml" in manifest.files and manifest.pipeline == CAUSAL_LM.pipeline_tag:
        lines += [*RUN_SERVER, ""]
    if fits_npu(manifest):
        lines += _NPU
    lines += ["## Verification", ""]
    lines += manifest.parity_table.to_markdown() if manifest.verified else ["Not verified (`--no-verify`)."]
    return "\n".join([*lines, ""])


def _with_pooling(line: str, pooling: Pooling | None) -> str:
    """Fill in an embedding model's arguments of openvino_genai, and its longest text."""
    if pooling is None:
        return line
    mode = {"mean": "MEAN", "cls": "CLS", "lasttoken": "LAST_TOKEN"}[pooling.mode]
    arguments = [f"pooling_type=TextEmbeddingPipeline.PoolingType.{mode}", f"normalize={pooling.normalize}"]
    for argument, names in (("query", QUERY), ("embed", PASSAGE)):
        prompt = pooling.prompt(*names)
        arguments += [f"{argument}_instruction={json.dumps(prompt, ensure_ascii=False)}"] if prompt else []
    return line.replace("LENGTH", str(pooling.max_length)).replace("POOLING", ", ".join(arguments))


def _pooling(pooling: Pooling) -> list[str]:
    """Describe the pooling, and what it leaves out."""
    stated = "" if pooling.stated else " This is what sentence-transformers assumes; the base states none."
    compared = "" if pooling.normalize else " Their lengths are not 1: compare them by the cosine."
    return [f"Pooling: {pooling.description}.{stated}{compared}", ""]


def fits_npu(manifest: Manifest) -> bool:
    """Return whether a language model's weights are stored as OpenVINO's guide for NPUs requires.

    "OpenVINO GenAI on NPU" (docs.openvino.ai, 2026): all in symmetric INT4, in groups of 128 columns or per channel.
    """
    stored = [(part.weight_format, part.group_size) for part in manifest.compression]
    return manifest.pipeline == CAUSAL_LM.pipeline_tag and stored in ([("int4_sym", 128)], [("int4_sym", PER_CHANNEL)])


def _search(origin: SearchOrigin) -> list[str]:
    quality, cost = (
        f"{name} {value:.4g} {origin.units.get(name, name)}".removesuffix(f" {name}")
        for name, value in ((origin.quality, origin.quality_value), (origin.cost, origin.cost_value))
    )
    return [
        f"Searched by `lonas-edge search`: {quality} on {origin.prompts} held-out prompts (before compression) at {cost} in "
        f"{origin.weight_format}, evaluation {origin.evaluation + 1} of {origin.evaluations} ({origin.proposed_by}).",
        "",
    ]


def _sizes(sizes: BothSizes) -> list[str]:
    unpruned, chosen = sizes.unpruned, sizes.subnetwork
    rows = [
        ["parameters (merged)", f"{unpruned.parameters:,}", f"{chosen.parameters:,}"],
        ["linear weights (adapters unmerged)", f"{unpruned.linear_weights:,}", f"{chosen.linear_weights:,}"],
        [f"MACs, {chosen.seq_len} tokens", f"{unpruned.macs:.3e}", f"{chosen.macs:.3e}"],
    ]
    return Table(["", "unpruned", "this sub-network"], rows).to_markdown()


def _compression(parts: tuple[Compression, ...], head: Compression | None, calibrated: Calibrated | None) -> list[str]:
    """Describe groups and mixed formats, which the format's name does not state."""

    def described(part: Compression) -> str:
        groups = {None: "", PER_CHANNEL: ", one scale per row"}.get(part.group_size, f", group size {part.group_size}")
        return f"{part.weight_format}{groups}"

    def on_data(method: str | None) -> str:
        return f" ({method} on {calibrated.prompts:,} prompts of `{calibrated.data}`)" if calibrated and method else ""

    lines = []
    if any(part.group_size is not None for part in parts):
        data = on_data(calibrated.method) if calibrated else ""
        layers = "; ".join(f"{part.share:.0%} in {described(part)}" for part in parts)
        lines += [f"Weights between embedding and head: {layers}{data}.", ""]
    return lines + ([f"Output head: {described(head)}{on_data(METHOD)}.", ""] if head else [])


def _picture(manifest: Manifest) -> list[str]:
    drawn = draw(manifest.layers)
    if not drawn:
        return []
    picture = ["Remaining part of each layer:", "", "```text", *drawn, "```", ""]
    if manifest.renumbered:
        removed = [str(index) for index, layer in enumerate(manifest.layers) if not any(part.kept for part in layer)]
        noun = f"Layer{'s' * (len(removed) > 1)} {', '.join(removed)} removed"
        picture += [f"{noun}; the others are renumbered from 0 on.", ""]
    left = [layer for layer in manifest.layers if not manifest.renumbered or any(part.kept for part in layer)]
    removed_blocks = any(part.kept == 0 for layer in left for part in layer)
    warning = ["Stock transformers would fill the removed blocks with random weights.", ""]
    return picture + (warning if removed_blocks and manifest.stage == "checkpoint" else [])


def _prompt(manifest: Manifest) -> list[str]:
    """Show the prompt template of the training, and whether openvino_genai applies a chat template."""
    openvino, template = manifest.stage == "ir", TEMPLATES.get(manifest.prompt or "")
    if manifest.prompt == CHAT:
        applied = ", which openvino_genai applies by itself" if openvino else ""
        return [f"It was trained with the prompt `{CHAT}`: use the tokenizer's chat template{applied}.", ""]
    if template is None:
        return []
    content = [
        f"It was trained with the prompt `{template.name}`; the answer takes the place of `{{output}}`:",
        "",
        *("```text", template.without_input + template.response, "```", ""),
        "With an input in addition to the instruction:",
        "",
        *("```text", template.with_input + template.response, "```", ""),
    ]
    if openvino and "chat_template.jinja" in manifest.files:
        content += ["openvino_genai applies the tokenizer's chat template unless you pass `apply_chat_template=False`.", ""]
    return content


def replace_section(card: str, heading: str, body: str) -> str:
    """Replace the section of a card with the heading "## …", or add it at the end; without a body, remove it."""
    parts = [part.strip() for part in _SECTION.split(card)]
    headings = [part.partition("\n")[0] for part in parts]
    index = headings.index(heading) if heading in headings else len(parts)
    parts[index : index + 1] = [f"{heading}\n\n{body.strip()}"] if body else []
    return "\n\n".join(filter(None, parts)) + "\n"
