"""The commands of the cases: what each reads, writes and answers."""

from dataclasses import dataclass, field
from pathlib import Path

CAUSAL = ("llama", "neox", "phi3", "gemma", "bloom", "granite", "olmo2", "smollm3")
BERT = ("bert",)

SOURCE = ["adapter", "--model", "base", "--nncf-config", "space.json"]
STEPS = ["--steps", "4", "--save-steps", "1", "--log-steps", "1", "--batch-size", "2", "--lr", "0.01", "--device", "cpu"]
STEPS += ["--max-length", "64"]
TRAIN_CHAT = ["train", "--model", "base", "--nncf-config", "space.json", "--rank", "8", "--alpha", "16", *STEPS]
TRAIN = [*TRAIN_CHAT, "--prompt", "question", "--data", "data.json"]
SEARCH = ["--num-prompts", "4", "--cost", "macs", "--json"]
EVAL = ["--datasets", "datasets", "--tasks", "boolq", "--protocol", "option-text", "--batch-size", "4", "--json"]
_GLUE = ["--tasks", "RTE", "--datasets", "glue", "--json"]
_BENCH = ["--rounds", "1", "--starts", "1", "--prompt-len", "4", "--new-tokens", "2", "--json"]

_CONFIGS = ["base/config.json", "adapter/adapter_config.json", "space.json"]
_WEIGHTS = ["base/config.json", "base/model.safetensors"]
_TOKENIZER = ["base/tokenizer.json", "base/tokenizer_config.json"]
_BASE = [*_WEIGHTS, "base/generation_config.json", "base/chat_template.jinja", *_TOKENIZER]
_ADAPTER = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
_SUPER = [f"super/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "training.json")]
_SUPER += ["super/channel_order.safetensors", "super/nncf_config.json"]
_IR = ["ir/*.xml", "ir/*.bin", "ir/*.json", "ir/*.jinja"]


@dataclass(frozen=True)
class Command:
    """A command that a case runs.

    Attributes:
        arguments: The command line.
        reads: Patterns of the files that it reads, one of which is mutated; the part before the first slash is copied.
        kind: How its success is judged.
        weight: How often it is drawn.
        families: The families that it is drawn for.
        writes: Patterns of the paths that it may leave.
        seconds: The limit after which it counts as hanging.
    """

    arguments: list[str]
    reads: list[str]
    kind: str
    weight: int
    families: tuple[str, ...] = ("llama",)
    writes: list[str] = field(default_factory=lambda: ["in/out", "in/out/*"])
    seconds: float = 45

    def needs(self, home: Path) -> list[str]:
        """Names to copy from a family's directory: those on the command line, and the parents of the mutated files."""
        named = {pattern.partition("/")[0] for pattern in self.reads} | {*self.arguments}
        named |= {"base"} if "super" in named else set()  # it was trained on this
        return sorted(path.name for path in home.iterdir() if path.name in named)


def _export(source: list[str], *options: str) -> list[str]:
    return ["export", *source, *(options or ("--stage", "checkpoint")), "--output", "out"]


def _variant(suffix: str, adapter: str = "adapter") -> list[str]:
    return [adapter, "--model", f"base-{suffix}", "--nncf-config", "space.json"]


_SUBNET = ("--subnet", "subnet.json", "--stage", "checkpoint")
_SHARDED = ["base-sharded/*.safetensors", *["base-sharded/model.safetensors.index.json"] * 3, "adapter/adapter_config.json"]
_PICKLED = ["base-pickled/pytorch_model.bin", "adapter-pickled/adapter_model.bin", "space.json"]
_CHECKPOINTS = [f"out.partial/checkpoint-{step}/*" for step in (2, 3)]
_TRAINING = ["in/out", "in/out/*", "in/out.partial", "in/out.partial/*"]
COMMANDS = {
    "inspect": Command(
        ["inspect", *SOURCE, "--subnet", "subnet.json", "--json"],
        [*_CONFIGS, "subnet.json"],
        "inspect",
        8,
        (*CAUSAL, *BERT),
        [],
    ),
    "inspect-super": Command(["inspect", "super", "--json"], [*_SUPER, "base/config.json"], "inspect", 5, writes=[]),
    "space": Command(["space", "--model", "base", "--output", "out.json"], _WEIGHTS[:1], "space", 4, CAUSAL, ["in/out.json"]),
    "export-checkpoint": Command(_export(SOURCE), [*_BASE, *_ADAPTER, "space.json"], "checkpoint", 18, CAUSAL),
    "export-subnet": Command(_export(SOURCE, *_SUBNET), ["subnet.json", "space.json"], "checkpoint", 4),
    "export-solve": Command(
        _export(SOURCE, "--stage", "checkpoint", "--solve", "data.json", "--num-prompts", "4"),
        [*_BASE, *_ADAPTER, "space.json", *["data.json"] * 6],
        "other",
        5,
    ),
    "export-super": Command(_export(["super"]), [*_SUPER, *_WEIGHTS], "checkpoint", 10),
    "export-sharded": Command(_export(_variant("sharded")), [*_SHARDED, "space.json"], "checkpoint", 6),
    "export-pickled": Command(_export(_variant("pickled", "adapter-pickled")), _PICKLED, "checkpoint", 8),
    "export-ir": Command(_export(SOURCE, "--weight-format", "fp32"), [*_BASE, *_ADAPTER, "space.json"], "ir", 8),
    "export-base": Command(_export(["base"]), _BASE, "checkpoint", 4, CAUSAL),
    "train": Command([*TRAIN, "--output", "out"], [*_BASE, "space.json", *["data.json"] * 3], "adapter", 9),
    "train-resume": Command(
        [*TRAIN, "--output", "out", "--resume"],
        [*_CHECKPOINTS, *["out.partial/partial.json", "out.partial/channel_order.safetensors"] * 3, *_CONFIGS[::2]],
        "resumed",
        14,
        writes=_TRAINING,
    ),
    "train-chat": Command(
        [*TRAIN_CHAT, "--data", "chat.jsonl", "--output", "out"],
        [*["chat.jsonl"] * 3, "base/chat_template.jinja", *_TOKENIZER, "space.json"],
        "adapter",
        4,
    ),
    "train-teacher": Command(
        [*TRAIN, "--teacher", "checkpoint", "--output", "out"], ["checkpoint/*", "data.json"], "adapter", 4
    ),
    "train-from": Command(
        ["train", "--from", "super", "--subnet", "subnet.json", "--data", "data.json", *STEPS, "--output", "out"],
        [*_SUPER, "subnet.json", "data.json", *_WEIGHTS],
        "adapter",
        5,
    ),
    "search": Command(
        ["search", *SOURCE, "--data", "data.json", "--prompt", "question", "--evals", "5", *SEARCH, "--output", "out"],
        [*_BASE, *_ADAPTER, "space.json", *["data.json"] * 3],
        "search",
        6,
        CAUSAL,
        seconds=90,
    ),
    "search-resume": Command(
        ["search", "super", "--data", "data.json", "--evals", "5", *SEARCH, "--output", "searched"],
        [*["searched/search.json", "searched/study.log"] * 3, *_SUPER, "data.json"],
        "search",
        5,
        writes=["in/searched/*"],
        seconds=90,
    ),
    "train-glue": Command(
        [*TRAIN_CHAT, "--data", "RTE/train.tsv", "--output", "out"],
        [*_WEIGHTS, *_TOKENIZER, "space.json", *["RTE/train.tsv"] * 3],
        "adapter",
        6,
        BERT,
    ),
    "export-bert": Command(
        _export(SOURCE, *_SUBNET), [*_WEIGHTS, *_TOKENIZER, *_ADAPTER, "space.json", "subnet.json"], "classifier", 8, BERT
    ),
    "export-bert-super": Command(_export(["super"]), [*_SUPER, *_WEIGHTS], "classifier", 5, BERT),
    "eval-glue": Command(["eval", "ir", *_GLUE], [*_IR, *["glue/RTE/dev.tsv"] * 3], "eval", 5, BERT, []),
    "search-glue": Command(
        ["search", "super", "--data", "RTE/train.tsv", "--evals", "5", *SEARCH, "--output", "out"],
        [*_SUPER, *_WEIGHTS, *["RTE/train.tsv"] * 3],
        "search",
        4,
        BERT,
        seconds=90,
    ),
    "eval-ir": Command(["eval", "ir", *EVAL], [*_IR, "datasets/boolq/test.json"], "eval", 10, writes=[]),
    "eval-card": Command(
        ["eval", "ir", *EVAL, "--card"],
        ["ir/lonas_edge_eval.json", "ir/lonas_edge.json", "ir/lonas_edge_runtime.json"],
        "eval",
        3,
        writes=["in/ir/README.md", "in/ir/lonas_edge_eval.json"],
    ),
    "eval-base": Command(["eval", "base", *EVAL], [*_BASE, "datasets/boolq/test.json"], "eval", 6, writes=[]),
    "eval-adapter": Command(["eval", *SOURCE, *EVAL], [*_BASE, *_ADAPTER, "space.json"], "eval", 5, writes=[]),
    "eval-super": Command(["eval", "super", *EVAL], [*_SUPER, *_WEIGHTS], "eval", 5, writes=[]),
    "eval-checkpoint": Command(["eval", "checkpoint", *EVAL], ["checkpoint/*"], "eval", 5, writes=[]),
    "bench": Command(["bench", "ir", "--arms", "subnet", *_BENCH], _IR, "bench", 3, writes=[], seconds=180),
    "bench-tune": Command(
        ["bench", "ir", "--tune", *_BENCH],
        _IR,
        "bench",
        1,
        writes=["in/ir/openvino_model.xml", "in/ir/lonas_edge_runtime.json", "in/ir/README.md"],
        seconds=300,
    ),
}
