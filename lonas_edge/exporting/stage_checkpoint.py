"""Export the sliced and merged Hugging Face checkpoint (`--stage checkpoint`)."""

from lonas_edge.exporting import verify
from lonas_edge.exporting.job import Job, Outcome, verify_weights, write_configs
from lonas_edge.formats import DTYPES
from lonas_edge.network.materialize import write_weights


def export_checkpoint(job: Job) -> Outcome:
    """Write and verify a checkpoint."""
    dtype = DTYPES[job.stored].torch
    with job.steps.step("materialize", "Slicing and merging") as done:
        write_weights(job.model, job.folder, dtype, done)
        write_configs(job, DTYPES[job.stored].torch_name)
        if job.tokenizer is not None:
            job.tokenizer.save_pretrained(job.folder)
    files = job.hash_files()
    if not job.options.verify:
        return Outcome(files)
    materialized, parity = verify_weights(job)
    with job.steps.step("verify_checkpoint", "Comparing the checkpoint with the materialized model"):
        verify.check_checkpoint(job.model, job.folder, dtype)
        stored = job.compare(materialized, verify.checkpoint_logits(job.folder, job.inputs()))
    return Outcome(files, {"materialized": parity, "stored": stored})
