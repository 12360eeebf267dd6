"""The model card of an exported directory, its README.md."""

import json

from lonas_edge.data.templates import CHAT, TEMPLATES
from lonas_edge.exporting.evaluations import Evaluations
from lonas_edge.exporting.manifest import COMPARED, DRAFT, BothSizes, Calibrated, Compression, Draft, Manifest
from lonas_edge.exporting.servers import SERVERS
from lonas_edge.exporting.stages import STAGES
from lonas_edge.families import CAUSAL_LM
from lonas_edge.formats import PER_CHANNEL
from lonas_edge.ir import LABELS
from lonas_edge.ir.runtime import RuntimeProperties
from lonas_edge.network.divergence import TextDivergence
from lonas_edge.space.picture import FILE as PICTURE
from lonas_edge.space.picture import alike, lines
from lonas_edge.space.subnetwork import SearchOrigin


def model_card(manifest: Manifest, runtime: RuntimeProperties | None = None, evaluations: Evaluations | None = None) -> str:
    """Write the model card of an exported directory.

    Args:
        manifest: Its manifest.
        runtime: Its run-time properties, where `bench --tune` chose some.
        evaluations: What `eval --card` found.

    Returns:
        Markdown, with the metadata block that model hubs read.
    """
    stage, base, name = STAGES[manifest.stage], manifest.base.name, manifest.subnetwork.name
    fine_tuned = f" fine-tuned with the super-adapter `{manifest.adapter.name}`" if manifest.adapter else ""
    fine_tuned += f" on GLUE's {manifest.task}" if manifest.task else ""
    lines = [
        "---",
        f"library_name: {stage.library}",
        f"tags: [{', '.join(('lonas', manifest.pipeline, *stage.tags))}]",
        f"pipeline_tag: {manifest.pipeline}",
        "---",
        f"# {base}, {name} sub-network, {manifest.formats}",
        "",
        f"`{base}`{fine_tuned}: its `{name}` LoNAS sub-network, sliced and merged by "
        "lonas-edge. `subnetwork.json` has the widths, `lonas_edge.json` versions, input hashes, sizes and parity.",
        "",
        *(_search_origin(origin) if (origin := manifest.subnetwork.origin) else []),
        *([manifest.solved.told, ""] if manifest.solved else []),
        *_sizes(manifest.sizes),
        "",
        *_compressed(manifest.compression, manifest.calibrated),
        *_picture(manifest),
        "## Run",
        "",
        *stage.run[manifest.pipeline],
        "",
        *_asked(manifest),
        *_served(manifest),
        *(_draft(manifest.draft) if manifest.draft else []),
        *(_for_npu() if as_npus_ask(manifest) else []),
        *(_tuned(runtime) if runtime else []),
        *(_evaluated(evaluations) if evaluations and evaluations.by_protocol else []),
        "## Checked",
        "",
        *(_checked(manifest) if manifest.verified else ["Not verified (`--no-verify`)."]),
        "",
    ]
    return "\n".join(lines)


def as_npus_ask(manifest: Manifest) -> bool:
    """Whether a language model's weights are stored as OpenVINO's guide says that an NPU needs them.

    "OpenVINO GenAI on NPU" (docs.openvino.ai, 2026): all in symmetric INT4, in groups of 128 columns or per channel.

    Args:
        manifest: The manifest.

    Returns:
        Whether they are.
    """
    wanted = {("int4_sym", 128), ("int4_sym", PER_CHANNEL)}
    stored = [(part.weight_format, part.group_size) for part in manifest.compression]
    return manifest.pipeline == CAUSAL_LM.pipeline_tag and len(stored) == 1 and stored[0] in wanted


def _for_npu() -> list[str]:
    return [
        "The weights are stored as OpenVINO's guide for NPUs asks. It was not run on one. There, the longest prompt and the "
        "room for the answer are fixed when the model is loaded:",
        "",
        "```python",
        'pipe = openvino_genai.LLMPipeline("THIS_DIRECTORY", "NPU", MAX_PROMPT_LEN=1024, MIN_RESPONSE_LEN=128)',
        "```",
        "",
    ]


def _search_origin(origin: SearchOrigin) -> list[str]:
    quality, cost = (
        f"{name} {value:.4g} {origin.units.get(name, name)}".removesuffix(f" {name}")
        for name, value in ((origin.quality, origin.quality_value), (origin.cost, origin.cost_value))
    )
    stored = "as the IR stores it" if origin.compressed else "before compression"
    return [
        f"`lonas-edge search` found it: {quality} on {origin.prompts} held-out prompts ({stored}) at {cost} in "
        f"{origin.weight_format}, evaluation {origin.evaluation + 1} of {origin.evaluations} ({origin.proposed_by}).",
        "",
    ]


def _sizes(sizes: BothSizes) -> list[str]:
    unpruned, chosen = sizes.unpruned, sizes.subnetwork
    return [
        "| | unpruned | this sub-network |",
        "|---|---|---|",
        f"| parameters (merged) | {unpruned.parameters:,} | {chosen.parameters:,} |",
        f"| linear weights (adapters unmerged) | {unpruned.linear_weights:,} | {chosen.linear_weights:,} |",
        f"| MACs, {chosen.seq_len} tokens | {unpruned.macs:.3e} | {chosen.macs:.3e} |",
    ]


def _compressed(parts: tuple[Compression, ...], calibrated: Calibrated | None) -> list[str]:
    """What the format's name does not say: groups, and what is stored otherwise."""

    def told(part: Compression) -> str:
        columns = {None: "", PER_CHANNEL: ", a scale a row"}.get(part.group_size, f", a scale for {part.group_size} columns")
        return f"{part.share:.0%} in {part.weight_format}{columns}"

    if all(part.group_size is None for part in parts):
        return []
    looked = f" ({calibrated.method} on {calibrated.prompts:,} prompts of `{calibrated.data}`)" if calibrated else ""
    return [f"Weights between embedding and head: {'; '.join(map(told, parts))}{looked}.", ""]


def _picture(manifest: Manifest) -> list[str]:
    drawn = lines(manifest.layers)
    if not drawn:
        return []
    left_out = any(part.kept == 0 for layer in manifest.layers for part in layer)
    warned = ["Stock transformers would fill the blocks that are left out with random weights.", ""]
    image = [] if alike(manifest.layers) else [f"![What is left of each layer]({PICTURE})", ""]
    picture = ["What is left of each layer:", "", *image, "```text", *drawn, "```", ""]
    return picture + (warned if left_out and manifest.stage == "checkpoint" else [])


def _asked(manifest: Manifest) -> list[str]:
    """The prompt that the adapter was trained with, and what openvino_genai makes of one."""
    openvino, template = manifest.stage == "ir", TEMPLATES.get(manifest.prompt or "")
    if manifest.prompt == CHAT:
        by_itself = ", in which openvino_genai puts what it is asked by itself" if openvino else ""
        return [f"It was trained with the prompt `{CHAT}`: ask it in the chat template that the tokenizer has{by_itself}.", ""]
    if template is None:
        return []
    lines = [
        f"It was trained with the prompt `{template.name}`. Ask it so; its answer takes the place of `{{output}}`:",
        "",
        *("```text", template.without_input + template.response, "```", ""),
        "With an input beside the instruction:",
        "",
        *("```text", template.with_input + template.response, "```", ""),
    ]
    if openvino and "chat_template.jinja" in (manifest.files or {}):
        off = "unless told `apply_chat_template=False`"
        lines += [f"openvino_genai puts what it is asked in the tokenizer's chat template {off}.", ""]
    return lines


def _served(manifest: Manifest) -> list[str]:
    laid_out = [server.run for server in SERVERS.values() if server.files.keys() <= (manifest.files or {}).keys()]
    return [line for run in laid_out for line in (*run, "")]


def _draft(draft: Draft) -> list[str]:
    call = 'openvino_genai.LLMPipeline("THIS_DIRECTORY", "CPU", draft_model=draft)'
    return [
        "## Speculative decoding",
        "",
        f"`{DRAFT}/` is a draft: `{draft.base}`, `{draft.subnetwork}` sub-network, {draft.weight_format}, "
        f"{draft.parameters:,} parameters, {draft.bytes / 1e6:,.1f} MB of weights. It proposes tokens, which this model "
        "checks in one pass: answers are this model's own, but for what rounding decides between tokens that are nearly as "
        "likely. Whether it is faster depends on the text: `lonas-edge bench THIS_DIRECTORY --arms draft --data PROMPTS`.",
        "",
        "```python",
        f'draft = openvino_genai.draft_model("THIS_DIRECTORY/{DRAFT}", "CPU")',
        f"pipe = {call}",
        'print(pipe.generate("The sun is", max_new_tokens=32, num_assistant_tokens=3))',
        "```",
        "",
    ]


def _tuned(runtime: RuntimeProperties) -> list[str]:
    ratios = ", ".join(f"{LABELS[metric]} {ratio.value:.2f}x" for metric, ratio in runtime.ratios.items())
    passed = {name: value for name, value in runtime.properties.items() if name not in runtime.in_ir}
    machine = runtime.conditions["machine"]
    inside = ", ".join(f"`{name}={runtime.properties[name]}`" for name in runtime.in_ir)
    lines = [
        "## Run-time properties",
        "",
        f"Chosen by `lonas-edge bench --tune` on {machine['device_name']}, {machine['threads']} threads, {runtime.date}: "
        f"{ratios} vs defaults; answers differ by {runtime.mean_kl:.4f} nats (mean KL). "
        "Another machine may want others.",
        "",
    ]
    lines += [f"In the IR, honoured by every client: {inside}.", ""] if inside else []
    if passed:
        call = f'pipe = openvino_genai.LLMPipeline("THIS_DIRECTORY", "{runtime.device}", **{json.dumps(passed)})'
        lines += ["To be passed by the client:", "", "```python", call, "```", ""]
    return lines


def _evaluated(evaluations: Evaluations) -> list[str]:
    lines = ["## Answers", "", "Accuracy in percent ± standard error, by `lonas-edge eval`.", ""]
    for found in evaluations.by_protocol.values():
        target = found.target
        cells = [(task.task, task.accuracy, task.accuracy_stderr) for task in target.tasks]
        cells += [("average", target.average, target.average_stderr)] if target.average is not None else []
        properties = ", ".join(f"{name}={value}" for name, value in target.properties.items())
        lines += [
            f"{found.described}. {found.conditions.processor.strip()}, {found.conditions.date}"
            + (f"; run-time properties {properties}." if properties else ", default run-time properties."),
            "",
            f"| {' | '.join(name for name, _, _ in cells)} |",
            f"|{'---|' * len(cells)}",
            f"| {' | '.join(f'{value:.1f}' + (f' ± {error:.1f}' if error else '') for _, value, error in cells)} |",
            "",
        ]
    return lines


def _checked(manifest: Manifest) -> list[str]:
    same = "same top token | positions" if manifest.pipeline == CAUSAL_LM.pipeline_tag else "same answer | texts"
    return [
        f"| logits | largest difference | mean KL (nats) | {same} |",
        "|---|---|---|---|---|",
        *(
            f"| {COMPARED.get(name, name)} | {p.max_logit_difference:.2e} | {p.mean_kl:.2e} | {p.top1_agreement:.1%} "
            f"| {p.positions} |"
            for name, p in manifest.parity.items()
        ),
        *(_texts(texts) if (texts := manifest.texts) else []),
    ]


def _texts(texts: TextDivergence) -> list[str]:
    return [
        "",
        f"Texts, {texts.prompts} of up to {texts.new_tokens} tokens, generated greedily by the IR and by the same sub-network "
        "stored in fp32 (both computed in fp32), in the terms of OpenVINO's who_what_benchmark:",
        "",
        "| first divergent token (FDT) | FDT norm | divergent tokens (SDT) | SDT norm | equal texts |",
        "|---|---|---|---|---|",
        f"| {texts.fdt:.1f} | {texts.fdt_norm:.2f} | {texts.sdt:.1f} | {texts.sdt_norm:.2f} | {texts.equal} |",
    ]
