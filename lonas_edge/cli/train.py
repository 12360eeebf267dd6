"""`lonas-edge train`: a super-adapter, a plain LoRA adapter, or the recovery of one sub-network."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic.dataclasses import dataclass

from lonas_edge.cli.command import SUBNET_HELP, SUBNET_UNSET, SearchSpaceFile, command
from lonas_edge.cli.terminal import console, progress
from lonas_edge.files import exists
from lonas_edge.options import PathOrName, UserPath, base_model, from_text, option, user_path
from lonas_edge.output import OutputDirectory
from lonas_edge.progress import Progress
from lonas_edge.space.selection import is_name
from lonas_edge.training.options import EVAL_LOSS, MOST_EPOCHS, TrainOptions

if TYPE_CHECKING:
    from lonas_edge.network.training_record import TrainingRecord
    from lonas_edge.training.inputs import Inputs


def _portion(text: str) -> tuple[Path, float]:
    """Split FILE:WEIGHT; a file whose name ends like this comes first."""
    path, (name, colon, number) = Path(user_path(text)), text.rpartition(":")
    if not colon or not name or path.exists():
        return path, 1.0
    try:
        weight = float(number)
    except ValueError:
        return path, 1.0  # the colon belongs to the name
    if not 0 < weight <= MOST_EPOCHS:
        raise ValueError(f"a weight must be more than 0 and at most {MOST_EPOCHS:g}")
    return Path(user_path(name)), weight


@dataclass(frozen=True, kw_only=True)
class TrainCommand(TrainOptions):
    """All options of the command."""

    model: PathOrName | None = base_model("that of --from")
    data: tuple[Annotated[tuple[Path, float], from_text(_portion)], ...] = option(
        metavar="FILE[:WEIGHT]",
        repeat=True,
        help="Training data: JSON, JSON Lines, CSV or Parquet; TSV of a GLUE task. WEIGHT: repetitions per epoch.",
    )
    eval_data: UserPath | None = option(
        None, exists=True, panel="Data", metavar="FILE", help="Held-out data; their loss is logged every tenth of the steps."
    )
    output: UserPath = option(metavar="DIR", help="Directory of the adapter; it appears when the training is done.")
    nncf_config: SearchSpaceFile | None = option(
        None,
        metavar="FILE",
        help="Search space: an NNCF configuration (`lonas-edge space` writes one), or the name of a shipped one.",
        unset="that of --from",
    )
    start: PathOrName | None = option(
        None,
        flag="from",
        metavar="SOURCE",
        help="Fine-tune (recover) one sub-network of this super-adapter or base model, or a plain LoRA adapter.",
        unset="a new adapter",
    )
    subnet: PathOrName | None = option(None, panel="Model", metavar="SUBNET", help=SUBNET_HELP, unset=SUBNET_UNSET)
    elastic: bool = option(True, panel="Model", help="Train a super-adapter; --no-elastic: plain LoRA.")
    teacher: PathOrName | None = option(
        None,
        panel="Model",
        metavar="MODEL",
        help="Adapter, checkpoint or model to distill from; same tokenizer.",
    )
    resume: bool = option(False, panel="Output", help="Continue an interrupted training.")
    overwrite: bool = option(
        False, panel="Output", help="Replace an existing output; without --resume, an unfinished training, too."
    )

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        yield from (f"--data {path}: no such file" for path, _ in self.data if not exists(path))
        if self.subnet and not self.start:
            yield "--subnet needs --from"
        for name in ("rank", "alpha", "elastic"):
            if self.start and self.given(name):
                no = "no-" if name == "elastic" else ""
                yield f"--{no}{name.replace('_', '-')} cannot be combined with --from"
        if not (self.start or self.model):
            yield "pass --model MODEL, or --from SOURCE"
        elif self.elastic and not (self.start or self.nncf_config):
            yield (
                "pass --nncf-config FILE (`lonas-edge space --model MODEL --output FILE` writes one), or --no-elastic "
                "(plain LoRA)"
            )


@command
def run(options: TrainCommand) -> None:
    """Train a super-adapter (elastic LoRA) or a plain LoRA adapter, or recover one sub-network (--from).

    A causal language model learns instructions, conversations or texts; a classifier learns the labels of texts, a GLUE
    task, or a teacher's outputs; an embedding model learns pairs, or a teacher's embeddings of texts. The output is a SOURCE
    of the other commands.
    On several GPUs: torchrun --nproc-per-node N -m lonas_edge train …
    """
    with progress(shown=int(os.environ.get("RANK", "0")) == 0) as report:
        from lonas_edge.training.train import train

        files = [options.subnet] if options.subnet and not is_name(options.subnet) else []
        data = [*(path for path, _ in options.data), options.eval_data]
        used = (options.model, *data, options.nncf_config, options.start, options.teacher, *files)
        OutputDirectory(options.output, options.overwrite, used).check(0, resumable=True)  # before a base is downloaded
        inputs = _inputs(options)
        if not inputs.data.kind.generates:
            options.refuse_idle(("template",), f"a {inputs.data.kind.name} has no prompt template")
        record = train(
            inputs,
            options.output,
            options.part(TrainOptions),
            options.resume,
            options.overwrite,
            _steps(report),
            lambda line: report(f"{line}\nLoading", None),
        )
    if record:
        _print(record, options.output)


def _inputs(options: TrainCommand) -> "Inputs":
    from lonas_edge.network.vocabulary_record import vocabulary_of
    from lonas_edge.training.inputs import open_inputs, open_recovery, with_eval_data, with_teacher

    space = options.nncf_config
    if options.start:
        inputs = open_recovery(options.start, options.data, options.subnet, options.model, space)
    else:
        inputs = open_inputs(str(options.model), options.data, space, options.elastic, labels=not options.teacher)
    inputs = with_eval_data(inputs, options.eval_data) if options.eval_data else inputs
    if not options.teacher:
        return inputs
    # an adapter that teaches itself
    same = options.teacher == options.start and vocabulary_of(inputs.source.base.folder) is None
    return with_teacher(inputs, options.teacher, options.model if same else None)


def _steps(report: Progress) -> Callable[[int, int, Mapping[str, float]], None]:
    """Show each step in the progress bar; a step with a log entry stays on the terminal."""
    last = ""

    def show(step: int, steps: int, log: Mapping[str, float]) -> None:
        nonlocal last
        if "loss" in log:
            last = f"  loss {float(log['loss']):.3f}  lr {float(log['learning_rate']):.1e}"
        line = f"step {step}/{steps}{last}"
        if EVAL_LOSS in log:
            report(f"step {step}/{steps}  held-out loss {float(log[EVAL_LOSS]):.4g}\n{line}", step / steps)
        else:
            report(f"{line}\n{line}" if "loss" in log else line, step / steps)

    return show


def _print(record: "TrainingRecord", output: Path) -> None:
    shown = console(soft_wrap=True)
    options, losses, special = record.options, record.losses, record.recovered
    elastic = f"{special.subnetwork} sub-network" if special else "super-adapter"
    kind = elastic if record.search_space else "LoRA adapter"
    steps = record.steps - (record.resumed_from_step or 0)
    pace = f"{record.seconds:.0f} s" + (f", {record.seconds / steps:.2f} s per step" if steps else "")
    shown.print(
        f"{output}: {kind}, rank {options['rank']}, {record.steps} steps of {options['batch_size']} examples on "
        f"{record.device} ({record.precision}), {pace}"
    )
    if losses:
        shown.print(f"loss {losses[0].loss:.3f} at step {losses[0].step}, {losses[-1].loss:.3f} at the end")
    if record.eval_data and record.eval_data.losses:
        data, best = record.eval_data, min(record.eval_data.losses, key=lambda entry: entry.loss)
        shown.print(
            f"held-out loss {data.losses[-1].loss:.4g} at the end, lowest {best.loss:.4g} at step {best.step}, on "
            f"{data.examples} examples of {data.name}; {data.also_trained} of them also occur in the training data"
        )
    if record.search_space or special:
        stored = f" --weight-format {options['weight_format']}" if options["weight_format"] else ""
        shown.print(f"next: lonas-edge export {output}{'' if special else ' --subnet heuristic'}{stored} --output DIR")
