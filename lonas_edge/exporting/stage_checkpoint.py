"""Export the sliced and merged Hugging Face checkpoint (`--stage checkpoint`)."""

from lonas_edge.exporting import verify
from lonas_edge.exporting.job import Job, Outcome
from lonas_edge.exporting.parity import Parity
from lonas_edge.formats import DTYPES
from lonas_edge.network.materialize import write_weights


def export_checkpoint(job: Job) -> Outcome:
    """Write and verify a checkpoint."""
    dtype, parity = DTYPES[job.stored].torch, dict[str, Parity]()
    with job.steps.step("materialize", "Slicing and merging") as done:
        write_weights(job.model, job.folder, dtype, done)
        if job.tokenizer is not None:
            job.tokenizer.save_pretrained(job.folder)
    files = job.hash_files()
    if job.options.verify:
        materialized, parity["materialized"] = job.verify_weights()
        with job.steps.step("verify_checkpoint", "Comparing the checkpoint with the materialized model"):
            verify.check_checkpoint(job.model, job.folder, dtype)
            parity["stored"] = job.compare(materialized, verify.checkpoint_logits(job.folder, job.inputs()))
    return Outcome(files, parity)
