"""Export a file for llama.cpp (`--stage gguf`)."""

import importlib.util

from lonas_edge.errors import raise_all
from lonas_edge.exporting import gguf_file, llama_cpp, verify
from lonas_edge.exporting.job import Job, Outcome, verify_weights
from lonas_edge.network.divergence import compare


def export_gguf(job: Job) -> Outcome:
    """Write and verify a GGUF file; llama.cpp's logits and tokens are compared if llama-cpp-python is installed."""
    assert job.gguf  # read with the inputs
    layout, vocabulary = job.gguf
    path = job.folder / gguf_file.file_name(job.stored)
    with job.steps.step("write", "Slicing, merging and writing the GGUF file") as done:
        gguf_file.write_gguf(layout, job.model, vocabulary, path, job.stored, done)
    files, compression = job.hash_files(), layout.compression(job.stored)
    if not job.options.verify:
        return Outcome(files, compression=compression)
    materialized, parity = verify_weights(job)
    comparisons = {"materialized": parity}
    with job.steps.step("verify_gguf", "Comparing the GGUF file with the materialized model"):
        file = gguf_file.GgufFile(path, layout, job.stored)
        stored = verify.file_logits(job.model, file.restored, job.inputs())
        comparisons["gguf_stored"] = compare(materialized, stored)
    if importlib.util.find_spec("llama_cpp"):
        with job.steps.step("verify_llama_cpp", "Comparing llama.cpp with the weights stored in the file"):
            folder = job.model.source.folder
            parity = compare(stored, llama_cpp.llama_cpp_logits(path, job.inputs()["input_ids"]))
            verify.check_llama_cpp(folder, parity, stored, job.stored)
            comparisons["llama_cpp"] = parity
            raise_all(
                f"{folder}: verification failed: llama.cpp's tokenizer differs from the model's:",
                llama_cpp.tokenizer_faults(path, job.tokenizer),
                "Nothing was written. Please report it.",
            )
    return Outcome(files, comparisons, compression)
