"""The undamaged files that commands read, made once, and the commands: what each reads, writes and answers."""

import json
import os
import re
import shutil
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import torch
from runner import Ran, run_command, run_forked
from tiny_bert import TinyBert
from tiny_models import TinyModels, has_heads, random_model, tokenizer

CAUSAL = ("llama", "neox", "phi3", "gemma", "bloom", "granite", "olmo2", "smollm3")
BERT = ("bert",)
OTHERS = ("llama-seed", "llama-tied", "llama-biased", "qwen2", "mistral", "neox", "phi3", "bloom")
_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
_CONTEXT = 1024  # the prompts of the tasks fit
_TASKS = Path(__file__).parent.parent / "evaluate" / "data"

_SOURCE = ["adapter", "--model", "base", "--nncf-config", "space.json"]
_CONFIGS = ["base/config.json", "adapter/adapter_config.json", "space.json"]
_TOKENIZER = ["base/tokenizer.json", "base/tokenizer_config.json"]
_BASE = ["base/config.json", "base/model.safetensors", "base/generation_config.json", "base/chat_template.jinja", *_TOKENIZER]
_ADAPTER = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
_SUPER = [f"super/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "training.json")]
_SUPER += ["super/channel_order.safetensors", "super/nncf_config.json"]
_STEPS = ["--steps", "4", "--save-steps", "1", "--log-steps", "1", "--batch-size", "2", "--lr", "0.01", "--device", "cpu"]
_STEPS += ["--max-length", "64"]
_ON = ["--model", "base", "--nncf-config", "space.json", "--rank", "8", "--alpha", "16"]
_TRAIN_TEXTS = ["train", *_ON, *_STEPS]
_TRAIN = [*_TRAIN_TEXTS, "--prompt", "question"]
_SEARCH = ["--evals", "5", "--population", "2", "--val-set-size", "4", "--json", "--output", "out"]
_SEARCHED = [f"searched/{name}" for name in ("search.json", "study.log")]
_QUICK = ["--datasets", "datasets", "--tasks", "boolq", "--protocol", "option-text", "--batch-size", "4", "--json"]
_BENCH = ["--rounds", "1", "--starts", "1", "--warmup", "0", "--prompt-len", "4", "--new-tokens", "2", "--json"]
_FEW = ["--calibration-prompts", "4"]
_GLUE = ["--tasks", "RTE", "--datasets", "glue", "--json"]
_BERT_BASE = ["base/config.json", "base/model.safetensors", *_TOKENIZER]
_IR = ["ir/*.xml", "ir/*.bin", "ir/*.json", "ir/*.jinja"]
_RECORDS = ("ir/subnetwork.json", "ir/openvino_config.json")  # of an exported directory; no command reads them
_CHECKPOINTS = [f"out.training/checkpoint-{step}/*" for step in (2, 3)]


@dataclass(frozen=True)
class Command:
    """A command that a case runs.

    Attributes:
        arguments: The command line.
        reads: Patterns of the files that it reads, one of which is damaged; what is before the first slash is copied.
        writes: What it may leave: patterns of paths.
        kind: How its success is judged.
        weight: How often it is drawn.
        families: The families that it is drawn for.
        seconds: When it counts as hanging.
    """

    arguments: list[str]
    reads: list[str]
    kind: str
    weight: int
    writes: list[str] = field(default_factory=lambda: ["in/out", "in/out/*"])
    families: tuple[str, ...] = ("llama",)
    seconds: float = 45

    def needs(self, home: Path) -> list[str]:
        """What is copied of a family's directory: what the command line names, and what is damaged."""
        named = {pattern.partition("/")[0] for pattern in self.reads} | {*self.arguments}
        named |= {"base"} if "super" in named else set()  # which it was trained on
        return sorted(path.name for path in home.iterdir() if path.name in named and path.name != "cache")


COMMANDS = {
    "inspect": Command(
        ["inspect", *_SOURCE, "--subnet", "subnet.json", "--json"],
        [*_CONFIGS, "subnet.json"],
        "inspect",
        8,
        [],
        (*CAUSAL, *BERT),
    ),
    "inspect-super": Command(["inspect", "super", "--json"], [*_SUPER, "base/config.json"], "inspect", 5, []),
    "space": Command(
        ["space", "--model", "base", "--output", "out.json"], ["base/config.json"], "space", 4, ["in/out.json"], CAUSAL
    ),
    "export-checkpoint": Command(
        ["export", *_SOURCE, "--subnet", "heuristic", "--stage", "checkpoint", "--output", "out"],
        [*_BASE, *_ADAPTER, "space.json"],
        "checkpoint",
        18,
        families=CAUSAL,
    ),
    "export-subnet": Command(
        ["export", *_SOURCE, "--subnet", "subnet.json", "--stage", "checkpoint", "--output", "out"],
        ["subnet.json", "space.json"],
        "checkpoint",
        4,
    ),
    "export-solve": Command(
        ["export", *_SOURCE, "--stage", "checkpoint", "--solve", "data.json", "--solve-prompts", "4", "--output", "out"],
        [*_BASE, *_ADAPTER, "space.json", *["data.json"] * 6],
        "solved",
        5,
    ),
    "export-int4": Command(
        ["export", *_SOURCE, "--weight-format", "int4_sym", "--ratio", "0.8", "--group-size", "16", "--output", "out"],
        [*_BASE, *_ADAPTER, "space.json"],
        "stored",
        3,
        families=CAUSAL,
        seconds=120,
    ),
    "export-calibration": Command(
        ["export", *_SOURCE, "--weight-format", "int4", "--calibration", "data.json", *_FEW, "--output", "out"],
        ["base/model.safetensors", "adapter/adapter_model.safetensors", "space.json", *["data.json"] * 3],
        "stored",
        2,
        seconds=120,
    ),
    "export-super": Command(
        ["export", "super", "--stage", "checkpoint", "--output", "out"],
        [*_SUPER, "base/config.json", "base/model.safetensors"],
        "checkpoint",
        10,
    ),
    "export-sharded": Command(
        [
            "export",
            "adapter",
            "--model",
            "base-sharded",
            "--nncf-config",
            "space.json",
            "--stage",
            "checkpoint",
            "--output",
            "out",
        ],
        [
            "base-sharded/*.safetensors",
            *["base-sharded/model.safetensors.index.json"] * 3,
            "adapter/adapter_config.json",
            "space.json",
        ],
        "checkpoint",
        6,
    ),
    "export-pickled": Command(
        [
            "export",
            "adapter-pickled",
            "--model",
            "base-pickled",
            "--nncf-config",
            "space.json",
            "--stage",
            "checkpoint",
            "--output",
            "out",
        ],
        ["base-pickled/pytorch_model.bin", "adapter-pickled/adapter_model.bin", "space.json"],
        "checkpoint",
        8,
    ),
    "export-ir": Command(
        ["export", *_SOURCE, "--weight-format", "fp32", "--output", "out"], [*_BASE, *_ADAPTER, "space.json"], "ir", 8
    ),
    "export-base": Command(
        ["export", "base", "--stage", "checkpoint", "--output", "out"], _BASE, "checkpoint", 4, families=CAUSAL
    ),
    "train": Command(
        [*_TRAIN, "--data", "data.json", "--output", "out"], [*_BASE, "space.json", *["data.json"] * 3], "adapter", 9
    ),
    "train-lines": Command([*_TRAIN, "--data", "data.jsonl", "--output", "out"], ["data.jsonl", "space.json"], "adapter", 3),
    "train-resume": Command(
        [*_TRAIN, "--data", "data.json", "--output", "out", "--resume"],
        [
            *_CHECKPOINTS,
            *["out.training/settings.json", "out.training/channel_order.safetensors"] * 3,
            "data.json",
            "base/config.json",
            "space.json",
        ],
        "resumed",
        14,
        ["in/out", "in/out/*", "in/out.training", "in/out.training/*"],
    ),
    "train-chat": Command(
        [*_TRAIN_TEXTS, "--data", "chat.jsonl", "--output", "out"],
        [*["chat.jsonl"] * 3, "base/chat_template.jinja", *_TOKENIZER, "space.json"],
        "adapter",
        4,
    ),
    "train-teacher": Command(
        [*_TRAIN, "--data", "data.json", "--teacher", "checkpoint", "--output", "out"],
        ["checkpoint/*", "data.json"],
        "adapter",
        4,
    ),
    "train-from": Command(
        ["train", "--from", "super", "--subnet", "subnet.json", "--data", "data.json", *_STEPS, "--output", "out"],
        [*_SUPER, "subnet.json", "data.json", "base/config.json", "base/model.safetensors"],
        "adapter",
        5,
    ),
    "train-subnetworks": Command(
        [*_TRAIN, "--data", "data.json", "--subnetworks", "subnets", "--output", "out"],
        ["subnets/*", "space.json"],
        "adapter",
        4,
    ),
    "search": Command(
        ["search", *_SOURCE, "--data", "data.json", "--prompt", "question", *_SEARCH],
        [*_BASE, *_ADAPTER, "space.json", *["data.json"] * 3],
        "search",
        6,
        families=CAUSAL,
        seconds=90,
    ),
    "search-resume": Command(
        ["search", "super", "--data", "data.json", *_SEARCH[:-1], "searched", "--resume"],
        [*_SEARCHED * 3, *_SUPER, "data.json"],
        "search",
        5,
        ["in/searched/*"],
        seconds=90,
    ),
    "train-glue": Command(
        ["train", *_ON, *_STEPS, "--data", "RTE/train.tsv", "--output", "out"],
        [*_BERT_BASE, "space.json", *["RTE/train.tsv"] * 3],
        "adapter",
        6,
        families=BERT,
    ),
    "export-bert": Command(
        ["export", *_SOURCE, "--subnet", "subnet.json", "--stage", "checkpoint", "--output", "out"],
        [*_BERT_BASE, *_ADAPTER, "space.json", "subnet.json"],
        "classifier",
        8,
        families=BERT,
    ),
    "export-bert-super": Command(
        ["export", "super", "--stage", "checkpoint", "--output", "out"],
        [*_SUPER, "base/config.json", "base/model.safetensors"],
        "classifier",
        5,
        families=BERT,
    ),
    "export-bert-ir": Command(
        ["export", *_SOURCE, "--weight-format", "fp32", "--output", "out"],
        [*_BERT_BASE, *_ADAPTER, "space.json"],
        "classifier-ir",
        4,
        families=BERT,
        seconds=90,
    ),
    "eval-glue": Command(["eval", "ir", *_GLUE, "--fresh"], [*_IR, *["glue/RTE/dev.tsv"] * 3], "eval", 5, [], families=BERT),
    "eval-glue-super": Command(
        ["eval", "super", *_GLUE, "--fresh"],
        [*_SUPER, "base/config.json", "base/model.safetensors", "glue/RTE/dev.tsv"],
        "eval",
        4,
        [],
        families=BERT,
    ),
    "search-glue": Command(
        ["search", "super", "--data", "RTE/train.tsv", *_SEARCH],
        [*_SUPER, "base/config.json", "base/model.safetensors", *["RTE/train.tsv"] * 3],
        "search",
        4,
        families=BERT,
        seconds=90,
    ),
    "bench-classifier": Command(
        ["bench", "ir", "--arms", "subnet", "--no-memory", *_BENCH[:8], "--json"],
        _IR,
        "bench",
        1,
        [],
        families=BERT,
        seconds=180,
    ),
    "eval-ir": Command(["eval", "ir", *_QUICK, "--fresh"], [*_IR, "datasets/boolq/test.json"], "eval", 10, []),
    "eval-log": Command(["eval", "ir", *_QUICK], ["cache/lonas-edge/eval/*.jsonl"], "eval", 4, []),
    "eval-card": Command(
        ["eval", "ir", *_QUICK, "--card"],
        ["ir/lonas_edge_eval.json", "ir/lonas_edge.json", "ir/lonas_edge_runtime.json"],
        "eval",
        3,
        ["in/ir/README.md", "in/ir/lonas_edge_eval.json"],
    ),
    "eval-base": Command(["eval", "base", *_QUICK], [*_BASE, "datasets/boolq/test.json"], "eval", 6, []),
    "eval-adapter": Command(["eval", *_SOURCE, *_QUICK], [*_BASE, *_ADAPTER, "space.json"], "eval", 5, []),
    "eval-super": Command(["eval", "super", *_QUICK], [*_SUPER, "base/config.json", "base/model.safetensors"], "eval", 5, []),
    "eval-checkpoint": Command(["eval", "checkpoint", *_QUICK], ["checkpoint/*"], "eval", 5, []),
    "bench": Command(["bench", "ir", "--arms", "subnet", "--no-memory", *_BENCH], _IR, "bench", 3, [], seconds=180),
    "bench-tune": Command(
        ["bench", "ir", "--tune", *_BENCH],
        _IR,
        "bench",
        1,
        ["in/ir/openvino_model.xml", "in/ir/lonas_edge_runtime.json", "in/ir/README.md"],
        seconds=300,
    ),
}


def files_of(command: Command, home: Path) -> list[str]:
    """The files of a family's directory that a command reads, as often as each is to be drawn."""
    every = sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    unread = (*_RECORDS, "*.lock", "*/README.md", "*/complete")
    return [
        name
        for pattern in command.reads
        for name in every
        if fnmatch(name, pattern) and not any(fnmatch(name, other) for other in unread)
    ]


def make_world(folder: Path) -> None:
    """Write everything that the commands read, as users get it: by the libraries, and by lonas-edge itself.

    Args:
        folder: An existing directory; a directory for each family, and `others` with other models' files.

    Raises:
        RuntimeError: If an undamaged command fails.
    """
    models = TinyModels(folder / "tiny")
    logs = folder / "logs"
    logs.mkdir()
    _done(run_forked(lambda: _by_libraries(models, folder), folder, logs, 300), "the tiny models")
    _classifier(folder, logs)
    case = folder / "making"
    shutil.copytree(folder / "llama", case / "in")
    train = [*_TRAIN, "--data", "data.json"]
    made = {
        "super": [*train, "--output", "super"],
        "checkpoint": ["export", *_SOURCE, "--stage", "checkpoint", "--output", "checkpoint"],
        "ir": ["export", *_SOURCE, "--weight-format", "fp32", "--output", "ir"],
        "other-ir": ["export", *_SOURCE, "--subnet", "maximal", "--weight-format", "int8", "--output", "other-ir"],
        "searched": ["search", "super", "--data", "data.json", *_SEARCH[:1], "4", *_SEARCH[2:-1], "searched"],
    }
    for name, arguments in made.items():
        _done(run_command(arguments, case, 300), name)
    _done(run_forked(lambda: _unfinished(train, case), case / "in", logs, 300), "an unfinished training")
    _done(run_forked(lambda: _tuned(case / "in/ir"), case / "in", logs, 300), "run-time properties")
    _done(run_command(["eval", "ir", *_QUICK, "--card"], case, 300), "an evaluation")
    for name in ("super", "checkpoint", "ir", "out.training", "searched"):
        shutil.move(case / "in" / name, folder / "llama" / name)
    for name in ("super/training.json", "ir/lonas_edge.json", "ir/lonas_edge_eval.json", "checkpoint/lonas_edge.json"):
        _without_figures(folder / "llama" / name)
    shutil.move(case / "in/other-ir", folder / "others" / "ir")
    shutil.move(case / "cache", folder / "llama" / "cache")
    shutil.rmtree(case)


def _classifier(folder: Path, logs: Path) -> None:
    """What commands read of a classifier: by the libraries, and by lonas-edge."""
    case, home = folder / "making", folder / "bert"
    _done(run_forked(lambda: _bert_source(TinyBert(folder / "tiny"), home), folder, logs, 300), "the tiny classifier")
    shutil.copytree(home, case / "in")
    made = {
        "super": ["train", *_ON, *_STEPS, "--data", "RTE/train.tsv", "--output", "super"],
        "ir": ["export", *_SOURCE, "--weight-format", "fp32", "--output", "ir"],
    }
    for name, arguments in made.items():
        _done(run_command(arguments, case, 300), f"{name} of the classifier")
        shutil.move(case / "in" / name, home / name)
    for name in ("super/training.json", "ir/lonas_edge.json"):
        _without_figures(home / name)
    shutil.rmtree(case)


def _bert_source(models: TinyBert, home: Path) -> None:
    source = models.source(2)
    home.mkdir()
    shutil.copytree(source.base, home / "base")
    shutil.copytree(source.adapter, home / "adapter")
    shutil.copy(source.space, home / "space.json")
    widths = [values[index % len(values)] for index, values in enumerate(source.groups())]
    (home / "subnet.json").write_text(json.dumps({"widths": widths}))
    lines = ["index\tsentence1\tsentence2\tlabel"]
    for index, words in enumerate(("the good film", "the bad film", "is not good", "is good", "not bad", "is the same")):
        lines.append(f"{index}\t{words}\tthe film is good\t{'entailment' if index % 2 else 'not_entailment'}")
    for name in ("RTE/train.tsv", "glue/RTE/dev.tsv"):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text("\n".join(lines) + "\n")


def _without_figures(path: Path) -> None:
    """Seconds and memory differ each time; a case is the same only where its files are."""
    figures = r'("(?:seconds|peak_rss_bytes|graph_process_peak_rss_bytes)": )[\d.]+'
    path.write_text(re.sub(figures, r"\g<1>1", path.read_text()))


def _done(ran: Ran, what: str) -> None:
    if ran.code != 0:
        raise RuntimeError(f"{what} cannot be made, exit code {ran.code}:\n{ran.out[-1000:]}\n{ran.err[-3000:]}")


def _by_libraries(models: TinyModels, folder: Path) -> None:
    for family in CAUSAL:
        _source(models, family, folder / family)
    _others(models, folder / "others")
    home = folder / "llama"
    shutil.copytree(_with_context(models.base("llama", sharded=True)), home / "base-sharded")
    shutil.copytree(_with_context(models.base("llama", pickled=True)), home / "base-pickled")
    shutil.copytree(models.adapter("llama", safe=False), home / "adapter-pickled")
    examples = json.loads((home / "data.json").read_text())
    (home / "data.jsonl").write_text("".join(f"{json.dumps(example)}\n" for example in examples))
    said = [{"user": example["instruction"], "assistant": f"It is {example['output']}."} for example in examples]
    talks = [[{"role": role, "content": text} for role, text in turns.items()] for turns in said]
    (home / "chat.jsonl").write_text("".join(f"{json.dumps({'messages': talk})}\n" for talk in talks))
    (home / "subnets").mkdir()
    for place in (0, -1):
        widths = [values[place] for values in models.heads_source("llama").groups()]
        (home / "subnets" / f"number-{place + 1}.json").write_text(json.dumps({"widths": widths}))
    for task in ("boolq",):
        shutil.copytree(_TASKS / task, home / "datasets" / task)


def _source(models: TinyModels, family: str, home: Path) -> None:
    home.mkdir(parents=True)
    shutil.copytree(_with_context(models.base(family)), home / "base")
    shutil.copytree(models.adapter(family), home / "adapter")
    source = models.heads_source(family) if has_heads(family) else models.deep_source(family)  # every elastic dimension
    shutil.copy(source.space, home / "space.json")
    widths = [values[index % len(values)] for index, values in enumerate(source.groups())]
    (home / "subnet.json").write_text(json.dumps({"widths": widths}))
    asked = [(a, b) for a in range(2) for b in range(4)]
    examples = [{"instruction": f"What is {a} plus {b}?", "input": "", "output": str(a + b)} for a, b in asked]
    (home / "data.json").write_text(json.dumps(examples, indent=1))


def _with_context(base: Path) -> Path:
    config = json.loads((base / "config.json").read_text()) | {"max_position_embeddings": _CONTEXT}
    (base / "config.json").write_text(json.dumps(config, indent=2))
    (base / "chat_template.jinja").write_text(_TEMPLATE)
    return base


def _others(models: TinyModels, folder: Path) -> None:
    """Files of other models, by the same names: another seed, and other families."""
    for case in OTHERS[1:]:
        home = folder / case
        home.mkdir(parents=True)
        shutil.copytree(models.base(case), home / "base")
        shutil.copytree(models.adapter(case), home / "adapter")
        shutil.copy(models.space(case), home / "space.json")
    seed = folder / OTHERS[0]
    random_model("llama", seed=5).save_pretrained(seed / "base")
    tokenizer().save_pretrained(seed / "base")
    shutil.copytree(models.adapter("llama", r=4), seed / "adapter")


def _unfinished(train: list[str], case: Path) -> None:
    """A training that is interrupted in its 4th step, with two checkpoints."""
    import sys

    from lonas_edge.cli import main
    from lonas_edge.training.elastic_trainer import ElasticTrainer

    stock = ElasticTrainer.training_step

    def interrupted(self: ElasticTrainer, *given: object, **options: object) -> torch.Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return stock(self, *given, **options)  # type: ignore[arg-type]

    ElasticTrainer.training_step = interrupted  # type: ignore[method-assign]
    os.environ["XDG_CACHE_HOME"] = str(case / "cache")
    sys.argv = ["lonas-edge", *train, "--output", "out"]
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 1


def _tuned(folder: Path) -> None:
    from lonas_edge.exporting.exported import store_properties
    from lonas_edge.ir.runtime import Gain, RuntimeProperties

    conditions = {"machine": {"device_name": "a processor", "threads": 2}}
    properties = {"KV_CACHE_PRECISION": "f16", "INFERENCE_PRECISION_HINT": "f32"}
    gains = {"tpot": Gain(1.1, None, None, 3, 1)}
    store_properties(folder, RuntimeProperties("CPU", "2026-01-01", "tpot", properties, gains, 0.001, conditions))


def others_of(world: Path, file: str) -> tuple[Path, ...]:
    """Files of the same name of other models."""
    name = Path(file).name
    stand_in = {"nncf_config.json": "space.json"}.get(name, name)
    return tuple(sorted(path for path in (world / "others").rglob(stand_in) if path.is_file()))
