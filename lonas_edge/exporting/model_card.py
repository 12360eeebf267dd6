"""Model cards: the README.md of an exported directory and of a super-adapter."""

import json
from collections.abc import Mapping
from typing import Any

from lonas_edge.exporting.evaluations import Evaluations


def model_card(
    manifest: dict[str, Any], runtime: Mapping[str, Any] | None = None, evaluations: Evaluations | None = None
) -> str:
    """Write the model card of an exported directory.

    Args:
        manifest: Content of its `lonas_edge.json`.
        runtime: Content of its `lonas_edge_runtime.json`, where `bench --tune` wrote one.
        evaluations: What `eval --card` found.

    Returns:
        Markdown, with the metadata block that model hubs read.
    """
    is_ir = manifest["stage"] == "ir"
    base, adapter = manifest["base"], manifest["adapter"]
    sizes = manifest["sizes"]
    unpruned, chosen = sizes["unpruned"], sizes["subnetwork"]
    fine_tuned = f" fine-tuned with the super-adapter `{adapter['name']}`" if adapter else ""
    tags = ["openvino"] if is_ir else []
    return "\n".join(
        [
            "---",
            f"library_name: {'openvino' if is_ir else 'transformers'}",
            f"tags: [{', '.join(['lonas', 'text-generation', *tags])}]",
            "pipeline_tag: text-generation",
            "---",
            f"# {base['name']}, {manifest['subnetwork']['name']} sub-network, {manifest['weight_format']}",
            "",
            f"`{base['name']}`{fine_tuned}: its `{manifest['subnetwork']['name']}` LoNAS sub-network, sliced and merged by "
            "lonas-edge. `subnetwork.json` has the widths, `lonas_edge.json` versions, input hashes, sizes and parity.",
            "",
            "| | unpruned | this sub-network |",
            "|---|---|---|",
            f"| parameters (merged) | {unpruned['parameters']:,} | {chosen['parameters']:,} |",
            f"| linear weights (adapters unmerged) | {unpruned['linear_weights']:,} | {chosen['linear_weights']:,} |",
            f"| MACs, {chosen['seq_len']} tokens | {unpruned['macs']:.3e} | {chosen['macs']:.3e} |",
            "",
            "## Run",
            "",
            *(_run_ir() if is_ir else _run_checkpoint()),
            "",
            *(_tuned(runtime) if runtime else []),
            *(_evaluated(evaluations) if evaluations and evaluations.by_protocol else []),
            "## Checked",
            "",
            *_checked(manifest),
            "",
        ]
    )


def _run_ir() -> list[str]:
    return [
        "```python",
        "import openvino_genai",
        "",
        'pipe = openvino_genai.LLMPipeline("THIS_DIRECTORY", "CPU")',
        'print(pipe.generate("The sun is", max_new_tokens=32))',
        "```",
        "",
        "`OVModelForCausalLM.from_pretrained`, OpenVINO Model Server and `lm_eval --model openvino --device cpu` take the "
        "directory as it is, too. The development machine has an AMD processor; the model was not run on an Intel CPU, GPU "
        "or NPU there.",
    ]


def _tuned(runtime: Mapping[str, Any]) -> list[str]:
    gains = ", ".join(f"{metric.upper()} {gain['ratio']:.2f} x" for metric, gain in runtime["speedups"].items())
    passed = {name: value for name, value in runtime["properties"].items() if name not in runtime["in_ir"]}
    machine = runtime["conditions"]["machine"]
    inside = ", ".join(f"`{name}={runtime['properties'][name]}`" for name in runtime["in_ir"])
    lines = [
        "## Run-time properties",
        "",
        f"Chosen by `lonas-edge bench --tune` on {machine['device_name']}, {machine['threads']} threads, {runtime['date']}: "
        f"{gains} over the defaults; answers differ by {runtime['mean_kl']:.4f} nats (mean KL). "
        "Another machine may want others.",
        "",
    ]
    lines += [f"In the IR, honoured by every client: {inside}.", ""] if inside else []
    if passed:
        call = f'pipe = openvino_genai.LLMPipeline("THIS_DIRECTORY", "{runtime["device"]}", **{json.dumps(passed)})'
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


def _run_checkpoint() -> list[str]:
    return [
        "Layers may be of unequal widths (`per_layer_config` in config.json), which `AutoModelForCausalLM` of transformers "
        "5.5 refuses. Two lines open it:",
        "",
        "```python",
        "from lonas_edge import load_checkpoint",
        'model = load_checkpoint("THIS_DIRECTORY")',
        "```",
    ]


def _checked(manifest: dict[str, Any]) -> list[str]:
    if not manifest["verified"]:
        return ["Not verified (`--no-verify`)."]
    names = {
        "materialized": "materialized model against the activated super-network",
        "stored": "this checkpoint against the materialized model",
        "ir_stored": "IR (computed in fp32) against the weights stored in it",
        "ir": "IR (computed in fp32) against the materialized model",
    }
    return [
        "| logits | largest difference | mean KL (nats) | same top token | positions |",
        "|---|---|---|---|---|",
        *(
            f"| {names[key]} | {p['max_logit_difference']:.2e} | {p['mean_kl']:.2e} | {p['top1_agreement']:.1%} "
            f"| {p['positions']} |"
            for key, p in manifest["parity"].items()
        ),
    ]


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
