"""Trainings of `compress`: what a recovery opens, and the progress of all of them."""

from collections.abc import Mapping
from pathlib import Path

from lonas_edge.output import OutputDirectory
from lonas_edge.pipeline.plan import Paths
from lonas_edge.progress import Progress
from lonas_edge.training.inputs import Inputs, open_recovery, with_eval_data, with_teacher
from lonas_edge.training.options import EVAL_LOSS, TrainOptions
from lonas_edge.training.train import train


def open_network(paths: Paths, network: Path) -> Inputs:
    """Open the inputs of the recovery of a sub-network; the unpruned model is the teacher."""
    inputs = open_recovery(paths.start, paths.train, str(network), paths.start_base, paths.space)
    return with_teacher(with_eval_data(inputs, paths.held_out), paths.unpruned, paths.unpruned_base)


def train_or_continue(inputs: Inputs, output: Path, options: TrainOptions, progress: Progress) -> None:
    """Train, or continue; held-out losses stay on the terminal."""
    shown = set[int]()

    def report(step: int, steps: int, log: Mapping[str, float]) -> None:
        line = f"step {step}/{steps}"
        if EVAL_LOSS in log and step not in shown:  # the Trainer logs the last one twice
            shown.add(step)
            line = f"{line}  held-out loss {log[EVAL_LOSS]:.3f}\n{line}"
        progress(line, step / steps)

    resume = OutputDirectory(output).partial.exists()
    train(inputs, output, options, resume, False, report, lambda line: progress(f"{line}\nLoading", None))
