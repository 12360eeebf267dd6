"""`draft`: from a model and prompts to a measured draft model, in one resumable run."""

import shutil
from pathlib import Path
from typing import Any

from lonas_edge.bench import machine
from lonas_edge.drafting.answers import generate_answers
from lonas_edge.drafting.card import draft_card
from lonas_edge.drafting.measure import fastest, measure_draft
from lonas_edge.drafting.network import new_draft
from lonas_edge.drafting.options import DraftOptions
from lonas_edge.drafting.training import train_draft
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.answering import read_prompts
from lonas_edge.exporting.drafts import DraftRecord, check_takes_draft
from lonas_edge.exporting.export import export
from lonas_edge.exporting.exported import open_exported
from lonas_edge.exporting.manifest import CARD, DRAFT
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.files import replace_text, sha256
from lonas_edge.ir import MODEL, WEIGHTS
from lonas_edge.network.source import open_source
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.output import OutputDirectory
from lonas_edge.processes import freed_memory_kept
from lonas_edge.progress import Progress, silent
from lonas_edge.versions import versions

_PACKAGES = ("lonas-edge", "openvino", "openvino-genai", "torch", "transformers")
_LEAST_PROMPTS, _MOST_PROMPTS = 32, 2_000  # 600 are enough for short answers: docs/benchmarks/draft.md
_HELD_OUT, _LEAST_HELD_OUT, _SHARE = 64, 8, 10  # answers that end the training: a tenth of all, within these bounds
_TIMED = 24  # of them are timed
_BYTES = 200_000_000  # of the output and the checkpoint
_TOKENIZER_FILES = ("openvino_tokenizer.*", "openvino_detokenizer.*", "generation_config.json")


def make_draft(options: DraftOptions, progress: Progress = silent) -> DraftRecord:
    """Train a draft for an exported language model on its own answers, export it in INT8, and measure it.

    Raises:
        LonasEdgeError: If the model takes no draft, or there are too few prompts.
    """
    progress("Checking the inputs", None)
    exported = open_exported(options.exported, ours=False)
    check_takes_draft(exported)
    folder, tokenizer = exported.folder, require_tokenizer(exported.folder, "a draft")
    directory = OutputDirectory(options.output, options.overwrite, [folder, options.data])
    directory.check(_BYTES, resumable=True)
    prompts = read_prompts(exported, options.data, options.seed, _LEAST_PROMPTS, _MOST_PROMPTS)
    hashes = {name: sha256(folder / name) for name in (MODEL, WEIGHTS)}
    identity = {"model": hashes, "data": sha256(options.data), "seed": options.seed}
    with directory.resume("draft", identity, restart=options.overwrite):
        work = directory.partial
        answered = generate_answers(folder, prompts, work / "answers.jsonl", progress)
        known = [each for each in answered if each.answer]
        held_out = known[: max(_LEAST_HELD_OUT, min(_HELD_OUT, len(known) // _SHARE))]
        if len(known) < _LEAST_PROMPTS // 2:
            raise LonasEdgeError(f"{folder}: {len(answered) - len(known)} of {len(answered)} answers are empty.")
        train, network = known[len(held_out) :], new_draft(exported, options.seed)
        with freed_memory_kept():
            trained = train_draft(network, train, held_out, tokenizer, options.seed, work / "training.pt", progress)
        export_draft(network, folder, work, progress)
        timed = [each.prompt for each in held_out[:_TIMED]]
        speeds = measure_draft(folder, work / "draft", timed, prompts.limit, progress)
        cut = sum(each.cut for each in answered)
        best = fastest(speeds)
        record = DraftRecord(
            model=hashes,
            num_assistant_tokens=best.num_assistant_tokens,
            precision=best.precision,
            speeds=tuple(speeds),
            prompts={"train": len(train), "held_out": len(held_out), "timed": len(timed), "cut": cut},
            agreement=trained.agreement,
            steps=trained.steps,
            conditions={
                "machine": machine.describe("CPU"),
                "threads": machine.placement().threads,
                "data": options.data.name,
                "seed": options.seed,
                "prompt_tokens": sum(map(len, prompts.tokens)) / len(prompts.tokens),
                "answer_tokens": sum(len(each.answer) for each in answered) / len(answered),
                "answer_limit": prompts.limit,
                "versions": versions(_PACKAGES),
            },
        )
        with directory.publish() as output:
            shutil.copytree(work / "draft", output, dirs_exist_ok=True)
            record.write(output / DRAFT)
            replace_text(output / CARD, draft_card(folder.resolve().name, record))
    return record


def export_draft(network: Any, model: Path, work: Path, progress: Progress) -> None:
    """Write the network in INT8 with the tokenizer files that openvino_genai reads: `draft` in the working directory."""
    checkpoint, ir, output = work / "checkpoint", work / "ir", work / "draft"
    network.save_pretrained(checkpoint)
    source = open_source(str(checkpoint))
    export(source, source.select(None), ir, ExportOptions(weight_format="int8_sym", overwrite=True), progress)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    tokenizer_files = [path for pattern in _TOKENIZER_FILES for path in model.glob(pattern)]
    for path in (ir / MODEL, ir / WEIGHTS, ir / "config.json", ir / "openvino_config.json", *tokenizer_files):
        shutil.copy2(path, output)
