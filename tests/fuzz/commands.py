"""The commands of the cases: what each reads, writes and answers."""

from dataclasses import dataclass
from pathlib import Path

CAUSAL = ("llama", "neox", "phi3", "gemma", "bloom", "granite", "olmo2", "smollm3")
BERT = ("bert",)

SOURCE = "adapter --model base --nncf-config space.json"
STEPS = "--steps 4 --batch-size 2 --lr 0.01 --device cpu --max-length 64"
TRAIN_CHAT = f"train --model base --nncf-config space.json --rank 8 --alpha 16 {STEPS}"
TRAIN = f"{TRAIN_CHAT} --prompt question --data data.json"
SEARCH = "--num-prompts 4 --cost macs --json"
EVAL = "--datasets datasets --tasks boolq --protocol option-text --batch-size 4 --json"
_GLUE = "--tasks RTE --datasets glue --json"
_BENCH = "--rounds 1 --prompt-len 4 --new-tokens 2 --json"
_CHECKPOINT = "--stage checkpoint --output out"
_SHARDED = "adapter --model base-sharded --nncf-config space.json"
_PICKLED = "adapter-pickled --model base-pickled --nncf-config space.json"

_WEIGHTS = "base/config.json base/model.safetensors"
_TOKENIZER = "base/tokenizer.json base/tokenizer_config.json"
_BASE = f"{_WEIGHTS} base/generation_config.json base/chat_template.jinja {_TOKENIZER}"
_ADAPTER = "adapter/adapter_config.json adapter/adapter_model.safetensors"
_SUPER = "super/adapter_config.json super/adapter_model.safetensors super/training.json super/channel_order.safetensors "
_SUPER += "super/nncf_config.json"
_IR = "ir/*.xml ir/*.bin ir/*.json ir/*.jinja"
_RESUMED = "out.partial/checkpoint-2/* out.partial/checkpoint-3/* " + "out.partial/partial.json " * 3
_RESUMED += "out.partial/channel_order.safetensors base/config.json space.json"
_INDEX = "base-sharded/model.safetensors.index.json " * 3
_DATA, _CHAT, _TSV = "data.json " * 3, "chat.jsonl " * 3, "RTE/train.tsv " * 3  # drawn three times as often


@dataclass(frozen=True)
class Command:
    """A command that a case runs.

    Attributes:
        line: The command line without `lonas-edge`.
        read: Patterns of the files that it reads, one of which is mutated; the part before the first slash is copied.
        kind: How its success is judged.
        weight: How often it is drawn.
        families: The families that it is drawn for.
        write: Patterns of the paths that it may leave.
        seconds: The limit after which it counts as hanging.
    """

    line: str
    read: str
    kind: str
    weight: int
    families: tuple[str, ...] = ("llama",)
    write: str = "in/out in/out/*"
    seconds: float = 45

    @property
    def arguments(self) -> list[str]:
        return self.line.split()

    def needs(self, home: Path) -> list[str]:
        """Names to copy from a family's directory: those on the command line, and the parents of the mutated files."""
        named = {pattern.partition("/")[0] for pattern in self.read.split()} | {*self.arguments}
        named |= {"base"} if "super" in named else set()  # it was trained on this
        return sorted(path.name for path in home.iterdir() if path.name in named)


_EVERY = (*CAUSAL, *BERT)
_CONFIGS = "base/config.json adapter/adapter_config.json space.json subnet.json"
_EVALUATED = "ir/lonas_edge_eval.json ir/lonas_edge.json"
_STUDY = "searched/search.json searched/study.log " * 3
_SUBNET = f"--subnet subnet.json {_CHECKPOINT}"
_FROM = f"train --from super --subnet subnet.json --data data.json {STEPS} --output out"
COMMANDS = {
    "inspect": Command(f"inspect {SOURCE} --subnet subnet.json --json", _CONFIGS, "inspect", 8, _EVERY, write=""),
    "inspect-super": Command("inspect super --json", f"{_SUPER} base/config.json", "inspect", 5, write=""),
    "space": Command("space --model base --output out.json", "base/config.json", "space", 4, CAUSAL, "in/out.json"),
    "trim": Command("trim base --data data.json --prompt question --output out", f"{_BASE} {_DATA}", "trim", 8, CAUSAL),
    "export": Command(f"export {SOURCE} {_CHECKPOINT}", f"{_BASE} {_ADAPTER} space.json", "checkpoint", 18, CAUSAL),
    "export-subnet": Command(f"export {SOURCE} {_SUBNET}", "subnet.json space.json", "checkpoint", 4),
    "export-super": Command(f"export super {_CHECKPOINT}", f"{_SUPER} {_WEIGHTS}", "checkpoint", 10),
    "export-sharded": Command(
        f"export {_SHARDED} {_CHECKPOINT}",
        f"base-sharded/*.safetensors {_INDEX} adapter/adapter_config.json space.json",
        "checkpoint",
        6,
    ),
    "export-pickled": Command(
        f"export {_PICKLED} {_CHECKPOINT}",
        "base-pickled/pytorch_model.bin adapter-pickled/adapter_model.bin space.json",
        "checkpoint",
        8,
    ),
    "export-ir": Command(f"export {SOURCE} --weight-format fp32 --output out", f"{_BASE} {_ADAPTER} space.json", "ir", 8),
    "export-base": Command(f"export base {_CHECKPOINT}", _BASE, "checkpoint", 4, CAUSAL),
    "train": Command(f"{TRAIN} --output out", f"{_BASE} space.json {_DATA}", "adapter", 9),
    "train-resume": Command(
        f"{TRAIN} --output out --resume", _RESUMED, "resumed", 14, write="in/out in/out/* in/out.partial in/out.partial/*"
    ),
    "train-chat": Command(
        f"{TRAIN_CHAT} --data chat.jsonl --output out",
        f"{_CHAT} base/chat_template.jinja {_TOKENIZER} space.json",
        "adapter",
        4,
    ),
    "train-teacher": Command(f"{TRAIN} --teacher checkpoint --output out", "checkpoint/* data.json", "adapter", 4),
    "train-from": Command(_FROM, f"{_SUPER} subnet.json data.json {_WEIGHTS}", "adapter", 5),
    "train-glue": Command(
        f"{TRAIN_CHAT} --data RTE/train.tsv --output out", f"{_WEIGHTS} {_TOKENIZER} space.json {_TSV}", "adapter", 6, BERT
    ),
    "search": Command(
        f"search {SOURCE} --data data.json --prompt question --evals 5 {SEARCH} --output out",
        f"{_BASE} {_ADAPTER} space.json {_DATA}",
        "search",
        6,
        CAUSAL,
        seconds=90,
    ),
    "search-resume": Command(
        f"search super --data data.json --evals 5 {SEARCH} --output searched",
        f"{_STUDY} {_SUPER} data.json",
        "search",
        5,
        write="in/searched/*",
        seconds=90,
    ),
    "search-glue": Command(
        f"search super --data RTE/train.tsv --evals 5 {SEARCH} --output out",
        f"{_SUPER} {_WEIGHTS} {_TSV}",
        "search",
        4,
        BERT,
        seconds=90,
    ),
    "export-bert": Command(
        f"export {SOURCE} {_SUBNET}", f"{_WEIGHTS} {_TOKENIZER} {_ADAPTER} space.json subnet.json", "classifier", 8, BERT
    ),
    "export-bert-super": Command(f"export super {_CHECKPOINT}", f"{_SUPER} {_WEIGHTS}", "classifier", 5, BERT),
    "eval-glue": Command(f"eval ir {_GLUE}", f"{_IR} {'glue/RTE/dev.tsv ' * 3}", "eval", 5, BERT, ""),
    "eval-ir": Command(f"eval ir {EVAL}", f"{_IR} datasets/boolq/test.json", "eval", 10, write=""),
    "eval-card": Command(f"eval ir {EVAL} --card", _EVALUATED, "eval", 3, write="in/ir/README.md in/ir/lonas_edge_eval.json"),
    "eval-base": Command(f"eval base {EVAL}", f"{_BASE} datasets/boolq/test.json", "eval", 6, write=""),
    "eval-super": Command(f"eval super {EVAL}", f"{_SUPER} {_WEIGHTS}", "eval", 5, write=""),
    "eval-checkpoint": Command(f"eval checkpoint {EVAL}", "checkpoint/*", "eval", 5, write=""),
    "bench": Command(f"bench ir --arms subnet {_BENCH}", _IR, "bench", 3, write="", seconds=180),
}
