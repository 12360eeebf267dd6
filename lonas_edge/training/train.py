"""Train a super-adapter: elastic LoRA, from data to a directory that `export` accepts as it is.

Every step activates a sub-network of the search space. Inactive parts are not computed, get no gradient, and the optimizer
leaves them and their moments unchanged (`elastic_trainer.py`). Mixed precision, accumulation, checkpointing, data
parallelism under torchrun, logging and resuming are the work of the Hugging Face Trainer.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments, set_seed

from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.location import SEARCH_SPACE
from lonas_edge.network.source import check_base
from lonas_edge.network.training_record import TrainingRecord
from lonas_edge.output import OutputDirectory
from lonas_edge.processes import freed_memory_kept
from lonas_edge.training.checkpoints import clearing, explaining_memory, list_checkpoints, step_of
from lonas_edge.training.defaults import adapter_ranks, check, default_lr, device_of, precision_of, with_defaults
from lonas_edge.training.elastic_trainer import Progress
from lonas_edge.training.inputs import Inputs
from lonas_edge.training.job import Job
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.schedule import Schedule, make_schedule
from lonas_edge.training.super_adapter import Hashes, identity, make_record, write_super_adapter
from lonas_edge.training.tokens import tokenize

_PATIENCE = timedelta(hours=6)  # other processes wait while the first loads, hashes and calibrates


def train(
    inputs: Inputs,
    output: Path,
    options: TrainOptions,
    resume: bool = False,
    overwrite: bool = False,
    report: Progress = lambda _step, _steps, _log: None,
    notify: Callable[[str], None] = lambda _line: None,
) -> TrainingRecord | None:
    """Train an adapter and write its directory.

    Args:
        inputs: Base model, search space and data.
        output: The adapter's directory; it appears when the training is done.
        options: How to train.
        resume: Whether to continue from the last checkpoint of a killed or stopped training.
        overwrite: Whether to replace an existing output; without `resume` an unfinished training of it, too.
        report: Called after every step.
        notify: Called with messages: dropped examples, the first step of a resumed training.

    Returns:
        The record, as written to `training.json`; None in every process but the first.
    """
    options = with_defaults(inputs, options)
    check(inputs, options)
    inputs = inputs.with_prompt(options.template)
    directory = OutputDirectory(output, overwrite, inputs.paths)
    with explaining_memory(), freed_memory_kept():
        state = PartialState(cpu=device_of(options) == "cpu", timeout=_PATIENCE)
        options = replace(options, dtype=_agree_on_precision(options, directory, state, resume))
        set_seed(options.seed)
        assert options.max_length
        tokens = tokenize(inputs, options.max_length, notify)
        # the stages are those of the super-network's training
        space = replace(inputs.source.space, stages=()) if inputs.subnetwork else inputs.source.space
        fixed = inputs.subnetwork.widths if inputs.subnetwork else None
        schedule = make_schedule(space, options, tokens.per_epoch, fixed, default_lr(inputs))
        arguments = _training_arguments(schedule, options, state.num_processes, directory.partial, bool(inputs.eval_data))
        job = Job(inputs, options, schedule, tokens, arguments, state, directory.partial, report, notify)
        record = None
        if state.is_main_process:
            record = _train_and_write(job, directory, resume)
        else:
            job.run()
        state.wait_for_everyone()
    return record


def _train_and_write(job: Job, directory: OutputDirectory, resume: bool) -> TrainingRecord:
    """Train in the first process, which alone holds the working directory and writes the output."""
    inputs = job.inputs
    directory.check(0 if resume else _needed_bytes(inputs, job.options), resumable=True)
    search_space = inputs.nncf_config.read_bytes() if inputs.nncf_config else b""
    hashes = Hashes.of(inputs)
    check_base(inputs.source.training, hashes.base, inputs.source.base.folder)
    restart = directory.overwrite and not resume
    with directory.resume("train", identity(job, hashes), resume, restart), clearing(job.folder):
        checkpoint = next(iter(list_checkpoints(job.folder)), None)
        first = step_of(checkpoint) if checkpoint else None
        if resume:
            where = f"step {first} ({checkpoint})" if checkpoint else "the first step: no checkpoint to use"
            job.notify(f"continuing from {where}")
        start = time.perf_counter()
        trained = job.run(checkpoint)
        record = make_record(job, hashes, trained, first, time.perf_counter() - start)
        with directory.publish() as folder:
            write_super_adapter(folder, job, trained, directory.path, record)
            if inputs.source.space.groups:
                (folder / SEARCH_SPACE).write_bytes(search_space)
    return record


def _agree_on_precision(options: TrainOptions, directory: OutputDirectory, state: PartialState, resume: bool) -> str:
    """Let the first process decide the precision: the speeds that processes measure may differ."""
    if options.dtype != "auto":
        return options.dtype
    before = directory.identity().get("options", {}).get("dtype") if resume else None
    precision = [str(before or precision_of(options)) if state.is_main_process else ""]
    broadcast_object_list(precision)
    return precision[0]


def _training_arguments(
    schedule: Schedule, options: TrainOptions, processes: int, working: Path, evaluated: bool
) -> TrainingArguments:
    accumulation = options.accumulation(processes)
    tenth = max(1, schedule.steps // 10)
    every = schedule.plateau.every if schedule.plateau else options.eval_steps or tenth
    log_steps = min(options.log_steps or min(10, tenth), schedule.steps)
    try:
        arguments = TrainingArguments(
            output_dir=str(working),
            max_steps=schedule.steps,
            per_device_train_batch_size=options.batch_size // accumulation // processes,
            gradient_accumulation_steps=accumulation,
            average_tokens_across_devices=True,
            bf16=options.dtype == "bf16",
            fp16=options.dtype == "fp16",
            use_cpu=device_of(options) == "cpu",
            gradient_checkpointing=options.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if options.gradient_checkpointing else None,
            remove_unused_columns=False,
            logging_steps=log_steps,
            logging_nan_inf_filter=False,
            include_num_input_tokens_seen="non_padding",
            eval_strategy="steps" if evaluated else "no",
            eval_steps=every,
            eval_on_start=evaluated,
            save_steps=options.save_steps
            or -(-min(200, tenth) // log_steps) * log_steps,  # a checkpoint does not split a log interval
            report_to="none",
            seed=options.seed,
            disable_tqdm=True,
            ddp_find_unused_parameters=schedule.space.has_blocks,  # those of a removed block
            dataloader_pin_memory=device_of(options) == "cuda",
        )
    except (ValueError, RuntimeError, ImportError) as error:  # a card without bf16
        raise LonasEdgeError(f"the Trainer refuses --dtype {options.dtype}: {error}") from error
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several cards need torchrun; DataParallel would split the kept positions
    return arguments


def _needed_bytes(inputs: Inputs, options: TrainOptions) -> int:
    """Estimate the size of the adapter and, at the peak, three checkpoints with two moments each, in fp32."""
    ranks = inputs.source.ranks() or adapter_ranks(options, inputs.source.architecture)
    sizes = inputs.source.architecture.linears
    return 40 * sum(rank * (sizes[name].in_features + sizes[name].out_features) for name, rank in ranks.items())
