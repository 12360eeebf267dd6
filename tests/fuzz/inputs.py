"""The original files of the cases, written once by the libraries and by lonas-edge itself."""

import json
import re
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import torch
from commands import CAUSAL, EVAL, SEARCH, SOURCE, TRAIN, TRAIN_CHAT, Command
from runner import Ran, main_in, run_command, run_forked
from tiny_bert import TinyBert
from tiny_models import TinyModels, TinySource, has_heads, random_model, tokenizer

_OTHERS = ("llama-tied", "llama-biased", "qwen2", "mistral", "neox", "phi3", "bloom")
_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
_CONTEXT = 1024  # tokens; the prompts of the tasks fit
_TASKS = Path(__file__).parent.parent / "evaluate" / "data"
_UNREAD = ("ir/subnetwork.json", "ir/openvino_config.json", "*.lock", "*/README.md", "*/complete")


def files_of(command: Command, home: Path) -> list[str]:
    """The files of a family's directory that a command reads, as often as each is to be drawn."""
    names = sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    names = [name for name in names if not any(fnmatch(name, pattern) for pattern in _UNREAD)]
    return [name for pattern in command.read.split() for name in names if fnmatch(name, pattern)]


def others_of(originals: Path, file: str) -> tuple[Path, ...]:
    """Files of the same name from other models."""
    name = {"nncf_config.json": "space.json"}.get(Path(file).name, Path(file).name)
    return tuple(sorted(path for path in (originals / "others").rglob(name) if path.is_file()))


def make_inputs(folder: Path) -> None:
    """Write a directory for each family, and `others` with files of other models, into an existing directory.

    Raises:
        RuntimeError: If a command fails on original files.
    """
    models, bert = TinyModels(folder / "tiny"), TinyBert(folder / "tiny-bert")
    (folder / "logs").mkdir()
    _in_child(lambda: _write_sources(models, bert, folder), folder, "the tiny models")
    made = {
        "super": TRAIN,
        "checkpoint": f"export {SOURCE} --stage checkpoint",
        "ir": f"export {SOURCE} --weight-format fp32",
        "other-ir": f"export {SOURCE} --subnet maximal --weight-format int8",
        "searched": f"search super --data data.json --evals 4 {SEARCH}",
    }
    _by_commands(made, folder, "llama", _more_of_llama)
    shutil.move(folder / "llama/other-ir", folder / "others/ir")
    made = {"super": f"{TRAIN_CHAT} --data RTE/train.tsv", "ir": made["ir"]}
    _by_commands(made, folder, "bert", lambda case: [])


def _by_commands(made: dict[str, str], folder: Path, family: str, more: Callable[[Path], list[str]]) -> None:
    """Run commands in a copy of a family's directory and keep their outputs."""
    case, home = folder / "making", folder / family
    shutil.copytree(home, case / "in")
    for name, line in made.items():
        _check(run_command(f"{line} --output {name}".split(), case, 300), f"{family}/{name}")
    for name in (*made, *more(case)):
        shutil.move(case / "in" / name, home / name)
    for name in ("super/training.json", "ir/lonas_edge.json", "ir/lonas_edge_eval.json", "checkpoint/lonas_edge.json"):
        if (home / name).exists():
            _fix_figures(home / name)
    shutil.rmtree(case)


def _more_of_llama(case: Path) -> list[str]:
    """An interrupted training and an evaluation in the model card."""
    _in_child(lambda: _interrupt_training(case), case, "llama/training")
    _check(run_command(f"eval ir {EVAL} --card".split(), case, 300), "llama/evaluation")
    return ["out.partial"]


def _in_child(work: Callable[[], None], folder: Path, what: str) -> None:
    inside = folder / "in"
    _check(run_forked(work, inside if inside.is_dir() else folder, folder / "logs", 300), what)


def _check(ran: Ran, what: str) -> None:
    if ran.code != 0:
        raise RuntimeError(f"{what} failed with exit code {ran.code}:\n{ran.out[-1000:]}\n{ran.err[-3000:]}")


def _fix_figures(path: Path) -> None:
    """Replace seconds and memory, which differ each time: a case is the same only if its files are."""
    figures = r'("(?:seconds|peak_rss_bytes|graph_process_peak_rss_bytes)": )[\d.]+'
    path.write_text(re.sub(figures, r"\g<1>1", path.read_text()))


def _write_sources(models: TinyModels, bert: TinyBert, folder: Path) -> None:
    for family in CAUSAL:
        base, adapter = _with_context(models.base(family)), models.adapter(family)
        source = models.heads_source(family) if has_heads(family) else models.deep_source(family)  # all elastic dimensions
        _write_source(source, base, adapter, folder / family)
    for case in _OTHERS:
        shutil.copytree(models.base(case), folder / "others" / case / "base")
        shutil.copytree(models.adapter(case), folder / "others" / case / "adapter")
        shutil.copy(models.space(case), folder / "others" / case / "space.json")
    random_model("llama", seed=5).save_pretrained(folder / "others/seed/base")
    tokenizer().save_pretrained(folder / "others/seed/base")
    shutil.copytree(models.adapter("llama", r=4), folder / "others/seed/adapter")
    home = folder / "llama"
    shutil.copytree(_with_context(models.base("llama", sharded=True)), home / "base-sharded")
    shutil.copytree(_with_context(models.base("llama", pickled=True)), home / "base-pickled")
    shutil.copytree(models.adapter("llama", safe=False), home / "adapter-pickled")
    shutil.copytree(_TASKS / "boolq", home / "datasets/boolq")
    source = bert.source(2)
    _write_source(source, source.base, source.adapter, folder / "bert")
    lines = ["index\tsentence1\tsentence2\tlabel"]
    for index, words in enumerate(("the good film", "the bad film", "is not good", "is good", "not bad", "is the same")):
        lines.append(f"{index}\t{words}\tthe film is good\t{'entailment' if index % 2 else 'not_entailment'}")
    for name in ("RTE/train.tsv", "glue/RTE/dev.tsv"):
        (folder / "bert" / name).parent.mkdir(parents=True)
        (folder / "bert" / name).write_text("\n".join(lines) + "\n")


def _write_source(source: TinySource, base: Path, adapter: Path, home: Path) -> None:
    """Base, adapter, search space, a sub-network and training data."""
    shutil.copytree(base, home / "base")
    shutil.copytree(adapter, home / "adapter")
    shutil.copy(source.space, home / "space.json")
    widths = [values[index % len(values)] for index, values in enumerate(source.groups())]
    (home / "subnet.json").write_text(json.dumps({"widths": widths}))
    sums = [(a, b) for a in range(2) for b in range(4)]
    examples = [{"instruction": f"What is {a} plus {b}?", "input": "", "output": str(a + b)} for a, b in sums]
    (home / "data.json").write_text(json.dumps(examples, indent=1))
    chats = [[("user", row["instruction"]), ("assistant", f"It is {row['output']}.")] for row in examples]
    turns = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in chats]
    (home / "chat.jsonl").write_text("".join(f"{json.dumps(chat)}\n" for chat in turns))


def _with_context(base: Path) -> Path:
    config = json.loads((base / "config.json").read_text()) | {"max_position_embeddings": _CONTEXT}
    (base / "config.json").write_text(json.dumps(config, indent=2))
    (base / "chat_template.jinja").write_text(_TEMPLATE)
    return base


def _interrupt_training(case: Path) -> None:
    """Interrupt a training in its fourth step, after two checkpoints."""
    from lonas_edge.training.elastic_trainer import ElasticTrainer

    stock = ElasticTrainer.training_step

    def interrupted(self: ElasticTrainer, *given: object, **options: object) -> torch.Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return stock(self, *given, **options)  # type: ignore[arg-type]

    ElasticTrainer.training_step = interrupted  # type: ignore[method-assign]
    try:
        main_in(case, f"{TRAIN} --output out".split())
    except SystemExit as ended:
        assert ended.code == 1
