"""The draft model of a run: trained on the answers of the first target's network, measured with the stock files, too."""

from collections.abc import Mapping
from pathlib import Path

from lonas_edge.commands import Command
from lonas_edge.drafting.options import DraftOptions
from lonas_edge.drafting.run import make_draft
from lonas_edge.errors import LonasEdgeError, one_line
from lonas_edge.evaluate.targets import DRAFTED
from lonas_edge.exporting.drafts import DraftRecord
from lonas_edge.exporting.manifest import DRAFT
from lonas_edge.files import replace_text
from lonas_edge.pipeline.baselines import NAMES
from lonas_edge.pipeline.options import NONE
from lonas_edge.pipeline.plan import Plan
from lonas_edge.pipeline.steps import DRAFT_STEP, EXPORT, Step
from lonas_edge.progress import Progress

REASON = "draft.txt"  # in the working directory: why there is no draft


def drafts(plan: Plan) -> bool:
    """Whether a draft is trained."""
    return plan.options.draft != NONE


def train_draft(plan: Plan) -> Step:
    """Train a draft. If it is impossible or does not pay, the report says why, and the run goes on."""
    paths, seed = plan.paths, plan.options.seed
    target, pick = next(iter(plan.picks.items()))
    model, reason = paths.model(pick), paths.work / REASON

    def work(progress: Progress) -> None:
        why = ""
        try:
            options = DraftOptions(exported=model, data=paths.train, output=paths.draft, seed=seed)
            record = DraftRecord.read(paths.draft / DRAFT) if paths.draft.exists() else make_draft(options, progress)
            why = "" if record.pays else record.verdict
        except (LonasEdgeError, RuntimeError) as error:  # of openvino_genai, too: the model is finished, and is not lost
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise
            why = str(error) if isinstance(error, LonasEdgeError) else f"it failed: {one_line(str(error))}"
            if isinstance(error.__cause__, LonasEdgeError) and why.startswith(str(error.__cause__)):
                why = str(error.__cause__)  # without the advice to continue
        replace_text(reason, why)

    command = Command("lonas-edge draft", None, {"": model, "data": paths.train, "output": paths.draft}, {"seed": seed})
    return Step(DRAFT_STEP, [command], work, (REASON,), (EXPORT + target,), folder=DRAFT_STEP, quick=True)


def paying_draft(work: Path) -> DraftRecord | None:
    """The record of the draft in a working directory; None without one that pays."""
    record = DraftRecord.read(work / DRAFT_STEP / DRAFT) if (work / DRAFT_STEP / DRAFT).exists() else None
    return record if record and record.pays else None


def draft_remarks(plan: Plan) -> list[str]:
    """State why there is no draft, if one was wanted, or in which precision the rows with a draft were measured."""
    reason = plan.paths.work / REASON
    why = reason.read_text(encoding="utf-8") if drafts(plan) and reason.exists() else ""
    record = paying_draft(plan.paths.work) if drafts(plan) else None
    if record and record.precision:
        alone = record.speed(0)
        return [
            f"With the draft, both models compute in {record.precision} (INFERENCE_PRECISION_HINT), which is faster on this "
            f"processor than its default. Without the draft, the result then has {alone.tpot_ratio[0]:.2f}x its TPOT and "
            f"{alone.answer_ratio[0]:.2f}x its time per answer."
        ]
    return [f"No draft: {why}"] if why else []


def drafted(plan: Plan, measured: Mapping[str, Path], ours: str) -> dict[str, Path]:
    """The networks that are measured with the draft, too: the stock files with the same tokenizer, and `ours`."""
    if not (drafts(plan) and paying_draft(plan.paths.work)):
        return {}
    stock = [] if plan.paths.trims else [name for name in NAMES.values() if name in measured]
    return {name + DRAFTED: measured[name] for name in (*stock, ours)}
