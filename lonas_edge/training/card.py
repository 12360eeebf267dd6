"""The model card of a super-adapter, the README.md in its directory."""

from lonas_edge.data.templates import Template
from lonas_edge.families import CAUSAL_LM, CLASSIFICATION
from lonas_edge.network.training_record import Recovered, TrainingRecord
from lonas_edge.training.options import TEACHER_SHARE


def super_adapter_card(record: TrainingRecord) -> str:
    """Write the model card, Markdown with the metadata block that model hubs read."""
    base, options = record.base, record.options
    data = ", ".join(f"`{file.name}` ({file.examples} examples)" for file in record.data)
    pipeline = CAUSAL_LM.pipeline_tag if record.task is None else CLASSIFICATION.pipeline_tag
    learned = f"prompt `{record.prompt.name}`" if record.prompt else f"GLUE's {record.task}"
    special = record.recovered
    elastic = record.search_space is not None and special is None
    kind = "LoNAS super-adapter" if elastic else "LoRA adapter"
    kind = f"LoNAS adapter of one sub-network ({special.subnetwork})" if special and record.search_space else kind
    stored = options.get("weight_format")
    last = f", last loss {record.losses[-1].loss:.3f}" if record.losses else ""
    order = (
        "lonas-edge sorts the channels of base and adapter by importance on loading (`channel_order.safetensors`). The adapter "
        "itself is stored in the base's own order: plain PEFT loads it as the maximal network."
    )
    return "\n".join(
        [
            "---",
            "library_name: peft",
            *([f"base_model: {base.name}"] if base.revision else []),
            f"tags: [{'lonas, ' if record.search_space else ''}lora, {pipeline}]",
            f"pipeline_tag: {pipeline}",
            "---",
            f"# {kind} for {base.name}",
            "",
            f"Trained by lonas-edge: rank {options['rank']}, alpha {options['alpha']:g}, {record.steps} steps of "
            f"{options['batch_size']} examples of {data}, {learned}{last}. `training.json` has the whole record.",
            "",
            *([_of_super_adapter(special, record.search_space is not None), ""] if special else []),
            *([_taught(record), ""] if record.teacher else []),
            *([_of_stored(stored), ""] if stored else []),
            *([order, ""] if record.reordered else []),
            "```",
            "lonas-edge export THIS_DIRECTORY --output DIR"
            + (" --subnet heuristic" if elastic else "")
            + (f" --weight-format {stored}" if stored else ""),
            "```",
            "",
            *(_prompt(record.prompt) if record.prompt else []),
        ]
    )


def _taught(record: TrainingRecord) -> str:
    name = record.teacher.name if record.teacher else ""
    return f"It was distilled from the frozen teacher `{name}`: {TEACHER_SHARE:.0%} of the loss."


def _of_stored(weight_format: str) -> str:
    return (
        f"It was trained as `{weight_format}` stores it (quantization-aware training). Export it in that format, without "
        "calibration; another format changes the weights it was trained for."
    )


def _of_super_adapter(special: Recovered, elastic: bool) -> str:
    if not elastic:
        return f"Training started from the LoRA adapter `{special.super_adapter}`."
    return (
        f"Training started from the super-adapter `{special.super_adapter}`. Only its {special.subnetwork} sub-network was "
        "trained further; lonas-edge loads this one. Parts of other sub-networks are unchanged."
    )


def _prompt(prompt: Template) -> list[str]:
    return ["The prompt it was trained with:", "", "```", prompt.without_input + prompt.response, "```", ""]
