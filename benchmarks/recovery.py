"""Study: accuracy and latency of searched sub-networks, recovered in several ways, compared with LoRA.

    python benchmarks/recovery.py models/smollm2-135m --datasets DIR --work DIR --output benchmarks/results/FILE.json
    python benchmarks/recovery.py … --super-network lora --elastic attention --variants "recovered, teacher;INT4 QAT"

For each seed, train LoRA and a super-network: an elastic super-adapter at the compute of LoRA, or (`--super-network lora`) LoRA
whose channels are in order of importance. The first seed's super-network is searched by KL and TPOT with the --elastic
structures, once for each list of them. Every variant of the network picked at --target of the unpruned TPOT is exported.
All networks answer the same examples by `option-text`; differences are paired by example and averaged over the seeds. The
networks of the first seed are measured in one interleaved run. A stopped study continues from its --work.
"""

import argparse
import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study import average, conditions, difference, evaluated, exported, lonas_edge, over_seeds, split_data, timed, trained

from lonas_edge.network.source import open_source

LORA_STEPS = 180
ELASTIC_STEPS = 222  # the compute of 180 LoRA steps: a random sub-network has 0.81 of the work
LORA = "LoRA"
STRUCTURES = ("widths", "attention", "heads")


@dataclass(frozen=True)
class Variant:
    """Steps between a searched sub-network and its IR.

    Attributes:
        reconstruct: Least-squares reconstruction, without recovery.
        recover: Recovery fine-tuning.
        teacher: LoRA as its teacher.
        qat: Quantization-aware training as the last step.
        weight_format: The format of the IR.
        calibrate: INT4 with GPTQ on the training data.
    """

    reconstruct: bool = False
    recover: bool = False
    teacher: bool = False
    qat: bool = False
    weight_format: str = "int8_sym"
    calibrate: bool = False


VARIANTS = {
    "searched": Variant(),
    "reconstructed": Variant(reconstruct=True),
    "recovered": Variant(recover=True),
    "recovered, teacher": Variant(recover=True, teacher=True),
    "INT4": Variant(recover=True, teacher=True, weight_format="int4_sym"),
    "INT4 GPTQ": Variant(recover=True, teacher=True, weight_format="int4_sym", calibrate=True),
    "INT4 QAT": Variant(recover=True, teacher=True, qat=True, weight_format="int4_sym"),
}


class Study:
    """The trainings, searches and exports of one seed."""

    def __init__(self, arguments: argparse.Namespace, seed: int):
        self.arguments, self.seed, self.work = arguments, seed, arguments.work / f"seed-{seed}"
        self.data, self.held_out = split_data(arguments.datasets, arguments.work)
        self.options = ["--data", self.data, "--seed", seed, "--precision", arguments.precision]
        self.recipe = ["--steps", arguments.steps, "--lr", arguments.lr]

    def space(self, structures: str) -> Path:
        """A search space in which these structures alone are elastic."""
        whole, restricted = self.arguments.work / "space.json", self.arguments.work / f"space-{structures}.json"
        if not whole.exists():
            options = ["--ratios", "1,.75,.5,.25", "--ranks", 32, "--heads", "--depth", "attention"]
            options += ["--data", self.held_out, "--prompt", "question"]
            lonas_edge("space", "--model", self.arguments.base, "--output", whole, *options)
        content = json.loads(whole.read_text())
        restricted.write_text(json.dumps(restrict(content, structures.split("+")), indent=1))
        return restricted

    def lora(self) -> Path:
        """LoRA of the unpruned network, its channels in order of importance."""
        space = ["--nncf-config", self.space("+".join(STRUCTURES)), "--subnetworks", "maximal"]
        command = ["--model", self.arguments.base, *space, "--prompt", "question", *self.recipe, *self.options]
        return trained(self.work / "lora", *command)

    def super_network(self, structures: str) -> Path:
        """The network to search."""
        if self.arguments.super_network == "lora":
            return self.lora()
        command = ["--model", self.arguments.base, "--nncf-config", self.space(structures), "--prompt", "question"]
        recipe = ["--steps", ELASTIC_STEPS * self.arguments.steps // LORA_STEPS, "--lr", self.arguments.lr]
        return trained(self.work / f"super-{structures}", *command, *recipe, *self.options)

    def search(self, structures: str) -> Path:
        """The sub-network that is picked."""
        output, arguments = self.work / f"search-{structures}", self.arguments
        record = output / "search.json"
        if not record.exists():
            command = ["search", self.super_network(structures), "--nncf-config", self.space(structures), "--output", output]
            command += ["--data", self.held_out, "--quality", "kl", "--cost", "tpot", "--pick", f"tpot<={arguments.target}x"]
            command += ["--num-prompts", arguments.prompts, "--evals", arguments.evals, "--seed", self.seed, "--no-measure"]
            lonas_edge(*command, environment={"XDG_CACHE_HOME": str(arguments.work.resolve() / "cache")})
        (pick,) = json.loads(record.read_text())["picks"]
        subnet = output / "subnetworks" / f"{pick['file']}.json"
        if arguments.super_network == "elastic":
            return subnet
        whole = open_source(str(arguments.base), None, self.space("+".join(STRUCTURES)))
        widths = {**whole.select("maximal").by_group, **json.loads(subnet.read_text())["widths"]}
        translated = output / "in-the-space-of-lora.json"
        translated.write_text(json.dumps({"widths": widths}))
        return translated

    def network(self, structures: str, subnet: Path, name: str) -> Path:
        """The IR of one variant of a sub-network."""
        variant = VARIANTS[name]
        source, selected = self.super_network(structures), ["--subnet", subnet]
        teacher = ["--teacher", self.lora()] if variant.teacher else []
        if variant.recover:
            steps = f"recovered-{structures}{'-teacher' * variant.teacher}"
            options = [*selected, *teacher, *self.recipe, *self.options]
            source, selected = trained(self.work / steps, "--from", source, *options), []
        if variant.qat:
            recipe = ["--steps", self.arguments.qat_steps, "--lr", self.arguments.qat_lr]
            options = [*teacher, "--weight-format", variant.weight_format, *recipe, *self.options]
            source = trained(self.work / f"{source.name}-qat", "--from", source, *options)
        options = [*selected, "--weight-format", variant.weight_format]
        options += ["--solve", self.data] if variant.reconstruct else []
        options += ["--calibration", self.data] if variant.calibrate else []
        return exported(self.work / "ir" / f"{structures}-{name.replace(', ', '-').replace(' ', '-')}", source, *options)

    def networks(self, subnets: dict[str, Path]) -> dict[str, Path]:
        """All IRs by name."""
        irs = {LORA: exported(self.work / "ir/lora", self.lora(), "--subnet", "maximal")}
        for structures, subnet in subnets.items():
            for name in self.arguments.variants:
                irs[f"{structures}: {name}"] = self.network(structures, subnet, name)
        return irs


def restrict(content: dict[str, Any], structures: list[str]) -> dict[str, Any]:
    """Keep only some structures of a search space elastic; the ranks are fixed."""
    content = copy.deepcopy(content)
    training = content["bootstrapNAS"]["training"]
    width, stage = training["elasticity"]["width"], training["schedule"]["list_stage_descriptions"][0]
    for nodes, values in zip(width["overwrite_groups"], width["overwrite_groups_widths"], strict=True):
        structure = "ranks" if "lora_A" in nodes[0] else "widths" if "mlp" in nodes[0] else "heads"
        if structure not in structures:
            del values[1:]
    if "attention" not in structures:
        del training["elasticity"]["lonas_edge"]
        stage["train_dims"] = ["width"]
    return content


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--datasets", type=Path, required=True, help="TASK/train.json and TASK/test.json")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--super-network", choices=["elastic", "lora"], default="elastic", help="the network to search")
    parser.add_argument("--elastic", default="widths+attention", help=f"comma-separated sums of {', '.join(STRUCTURES)}")
    parser.add_argument("--variants", default="searched;recovered, teacher;INT4 QAT", help="; ".join(VARIANTS))
    parser.add_argument("--target", type=float, default=0.85, help="TPOT relative to the unpruned network")
    parser.add_argument("--steps", type=int, default=LORA_STEPS, help="steps of LoRA and of a recovery")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--qat-steps", type=int, default=LORA_STEPS // 2)
    parser.add_argument("--qat-lr", type=float, default=5e-4)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--prompts", type=int, default=64, help="prompts of the search")
    parser.add_argument("--evals", type=int, default=80, help="evaluations of the search")
    parser.add_argument("--limit", type=int, help="examples of each test set; default: all")
    arguments = parser.parse_args()
    arguments.variants = [name.strip() for name in arguments.variants.split(";")]
    if unknown := [name for name in arguments.variants if name not in VARIANTS]:
        parser.error(f"unknown variants {unknown}; choose from: {'; '.join(VARIANTS)}")
    return arguments


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    studies = {seed: Study(arguments, seed) for seed in map(int, arguments.seeds.split(","))}
    first = next(iter(studies.values()))
    subnets = {structures: first.search(structures) for structures in arguments.elastic.split(",")}
    irs = {seed: study.networks(subnets) for seed, study in studies.items()}
    seeds = [evaluated(irs[seed], study.work / "eval", arguments.datasets, arguments.limit) for seed, study in studies.items()]
    times = timed(irs[first.seed], first.work / "bench")
    means = {name: over_seeds([accuracy[name] for accuracy in seeds]) for name in seeds[0]}
    networks = {}
    for name, mean in means.items():
        sizes = json.loads((irs[first.seed][name] / "lonas_edge.json").read_text())["sizes"]["subnetwork"]
        networks[name] = {
            "accuracy": [average(accuracy[name]) for accuracy in seeds],
            "difference_from_lora": difference(mean, means[LORA]),
            "linear_weights": sizes["linear_weights"],
            **times[name],
        }
        points = networks[name]["difference_from_lora"]
        shown = f"{points['points']:+.1f} ± {points['half_width_95']:.1f}"
        print(f"{name:50} {shown:14} TTFT {times[name]['ttft_ms']:.0f} ms, TPOT {times[name]['tpot_ms']:.2f} ms")
    paths = ("datasets", "work", "output")
    settings = {name: str(value) for name, value in vars(arguments).items() if name not in paths}
    report = {
        "conditions": conditions(),
        "settings": settings,
        "subnetworks": {name: json.loads(file.read_text()) for name, file in subnets.items()},
        "networks": networks,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
