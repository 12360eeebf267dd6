"""The model card of a super-adapter, the README.md in its directory."""

from typing import Any


def super_adapter_card(record: dict[str, Any]) -> str:
    """Write the model card of a super-adapter.

    Args:
        record: Content of its `training.json`.

    Returns:
        Markdown, with the metadata block that model hubs read.
    """
    base, options, data = record["base"], record["options"], record["data"]
    elastic = record["search_space"] is not None
    kind = "LoNAS super-adapter" if elastic else "LoRA adapter"
    last = f", last loss {record['losses'][-1]['loss']:.3f}" if record["losses"] else ""
    order = (
        "The MLP channels of base and adapter are put in order of importance first (`channel_order.safetensors`; lonas-edge "
        "does it on loading). The adapter itself is stored in the base's own order: plain PEFT loads it as the maximal network."
    )
    return "\n".join(
        [
            "---",
            "library_name: peft",
            *([f"base_model: {base['name']}"] if base["revision"] else []),
            f"tags: [{'lonas, ' if elastic else ''}lora, text-generation]",
            "pipeline_tag: text-generation",
            "---",
            f"# {kind} for {base['name']}",
            "",
            f"Trained by lonas-edge: rank {options['rank']}, alpha {options['alpha']:g}, {record['steps']} steps of "
            f"{options['batch_size']} examples of `{data['name']}` ({data['examples']} examples), prompt "
            f"`{record['prompt']['name']}`{last}. `training.json` has the whole record.",
            "",
            *([order, ""] if record["reordered"] else []),
            "```",
            "lonas-edge export THIS_DIRECTORY --output DIR" + (" --subnet heuristic" if elastic else ""),
            "```",
            "",
            "The prompt it was trained with:",
            "",
            "```",
            record["prompt"]["without_input"] + record["prompt"]["response"],
            "```",
            "",
        ]
    )
