"""Train a super-adapter: elastic LoRA, from instruction data to a directory that `export` takes as it is.

Every step activates a sub-network drawn from the search space. What is inactive is not computed, gets no gradient, and is left
by the optimizer exactly as it was, moments included (`elastic_trainer.py`). All else (mixed precision, accumulation,
checkpointing, data parallelism under torchrun, logging, resuming) is the Hugging Face Trainer's.
"""

import copy
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftModel, get_peft_model
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, ProgressCallback, TrainerState, TrainingArguments, set_seed
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import read_by
from lonas_edge.formats import DTYPES
from lonas_edge.network.adapters import CONFIG
from lonas_edge.network.channel_order import ChannelOrder, by_importance, read_channel_order
from lonas_edge.network.correction import Correction
from lonas_edge.network.solved import Solved
from lonas_edge.network.source import SEARCH_SPACE, base_misfits
from lonas_edge.network.speed import quicker_in
from lonas_edge.network.super_network import SuperNetwork, load_base
from lonas_edge.network.training_record import TrainingRecord
from lonas_edge.output import OutputDirectory
from lonas_edge.training.checkpoints import STATE, step_of
from lonas_edge.training.elastic_trainer import ElasticTrainer, InactiveKept, Progress, Watch, per_epoch, restore_adapter
from lonas_edge.training.inputs import (
    Inputs,
    Start,
    adapter_ranks,
    base_dtype,
    check,
    device_of,
    lora_config,
    precision_of,
    settled,
)
from lonas_edge.training.plan import Plan, TrainOptions, make_plan
from lonas_edge.training.record import make_record
from lonas_edge.training.solving import Solving, kept
from lonas_edge.training.super_adapter import write_super_adapter
from lonas_edge.training.tokens import Tokens, refuse_beyond_vocabulary, tokenized
from lonas_edge.training.working import RUNS, Settings, WorkingDirectory

_PATIENCE = timedelta(hours=6)  # how long processes wait while the first loads, hashes and calibrates


def train(
    inputs: Inputs,
    output: Path,
    options: TrainOptions,
    resume: bool = False,
    overwrite: bool = False,
    report: Progress = lambda _step, _steps, _log: None,
    tell: Callable[[str], None] = lambda _line: None,
) -> TrainingRecord | None:
    """Train a super-adapter and write its directory.

    Args:
        inputs: Base model, search space and data.
        output: The super-adapter's directory; it appears when the training is done.
        options: How to train.
        resume: Whether to go on from the last checkpoint of a training that was killed or stopped.
        overwrite: Whether an existing output is replaced; without `resume` an unfinished training of it, too.
        report: Called after every step.
        tell: Called with where a resumed training goes on, and why.

    Returns:
        The record, as written to `training.json`; None in every process but the first.

    Raises:
        LonasEdgeError: If the inputs do not fit, the output exists, the loss is not finite, or something ends it early.
    """
    options = settled(inputs, options)
    check(inputs, options)
    working = WorkingDirectory.of(output)
    with working.kept():
        run = _prepared(inputs, options, working, report, tell)
        if run.state.is_main_process:
            others = [one.folder for one in (inputs.start and inputs.start.located, inputs.teacher) if one]
            used = (inputs.base.folder, *(portion.path for portion in inputs.subject.portions), inputs.nncf_config, *others)
            used += (Path(inputs.solve.data),) if inputs.solve else ()
            return run.lead(OutputDirectory(output, overwrite, used), resume)
        run.trained()
        run.state.wait_for_everyone()
    return None


def _prepared(
    inputs: Inputs, options: TrainOptions, working: WorkingDirectory, report: Progress, tell: Callable[[str], None]
) -> "_Run":
    state = PartialState(cpu=device_of(options) == "cpu", timeout=_PATIENCE)
    set_seed(options.seed)
    tokens = tokenized(inputs, options)
    solving = Solving.of(inputs.start, tokens.tokenizer, inputs.solve) if inputs.start and inputs.solve else None
    plan = _plan(inputs, options, sum(per_epoch(count, weight) for count, weight in tokens.portions))
    arguments = _arguments(plan, options, state.num_processes, working.path)
    return _Run(inputs, options, plan, tokens, solving, working, state, arguments, report, tell)


def _plan(inputs: Inputs, options: TrainOptions, examples: int) -> Plan:
    if inputs.start is None:
        return make_plan(inputs.space, options, examples, str(inputs.nncf_config), options.subnetworks)
    alone = replace(inputs.space, stages=())  # the stages are those of a super-network
    return make_plan(alone, options, examples, given=(inputs.start.subnetwork.widths,))


def _arguments(plan: Plan, options: TrainOptions, processes: int, working: Path) -> TrainingArguments:
    precision = precision_of(options)
    accumulation = options.accumulation(processes)
    log_steps = min(options.log_steps, plan.steps)
    tenth = min(200, max(1, plan.steps // 10))
    try:
        get_reporting_integration_callbacks(options.report_to)
        arguments = TrainingArguments(
            output_dir=str(working),
            max_steps=plan.steps,
            per_device_train_batch_size=options.batch_size // accumulation // processes,
            gradient_accumulation_steps=accumulation,
            average_tokens_across_devices=True,
            max_grad_norm=options.max_grad_norm,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            use_cpu=device_of(options) == "cpu",
            gradient_checkpointing=options.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if options.gradient_checkpointing else None,
            remove_unused_columns=False,
            logging_steps=log_steps,
            logging_nan_inf_filter=False,
            save_steps=options.save_steps or -(-tenth // log_steps) * log_steps,  # a log's interval is not cut by a checkpoint
            report_to=options.report_to,
            seed=options.seed,
            disable_tqdm=True,
            ddp_find_unused_parameters=plan.space.has_blocks,  # those of a block that a step leaves out
            dataloader_pin_memory=device_of(options) == "cuda",
        )
    except (ValueError, RuntimeError) as error:  # an integration that is not known or installed, bf16 that the card lacks
        chosen = f"--report-to {options.report_to}, --precision {precision}"
        raise LonasEdgeError(f"the Trainer refuses one of {chosen}: {error}") from error
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several cards are for torchrun; DataParallel would split the kept positions
    return arguments


def _needed_bytes(inputs: Inputs, options: TrainOptions) -> int:
    """The adapter, and at the peak three checkpoints of it with two moments each, in fp32."""
    ranks = inputs.start.source.ranks() if inputs.start else adapter_ranks(options, inputs.architecture)
    sizes = inputs.architecture.linears
    return 40 * sum(rank * (sizes[name].in_features + sizes[name].out_features) for name, rank in ranks.items())


def _continued(base: Any, start: Start, dropout: float) -> Any:
    """The super-adapter on its base, trainable."""
    config = copy.deepcopy(start.config.lora)
    config.lora_dropout, config.inference_mode = dropout, False
    with read_by("peft", start.located.folder / CONFIG):
        return PeftModel.from_pretrained(base, str(start.located.folder), is_trainable=True, config=config)


class _Trained(NamedTuple):
    """What a process has at the end."""

    network: SuperNetwork
    order: ChannelOrder
    state: TrainerState


@dataclass(frozen=True)
class _Run:
    """One training under way, in one of its processes."""

    inputs: Inputs
    options: TrainOptions
    plan: Plan
    tokens: Tokens
    solving: Solving | None
    working: WorkingDirectory
    state: PartialState
    arguments: TrainingArguments
    report: Progress
    tell: Callable[[str], None]

    def lead(self, directory: OutputDirectory, resume: bool) -> TrainingRecord:
        """The first process alone has the working directory and the output; inputs are recorded as they were at the start."""
        inputs, options = self.inputs, self.options
        directory.check(0 if resume else _needed_bytes(inputs, options))
        nncf_config = inputs.nncf_config.read_bytes() if inputs.nncf_config else b""
        settings = Settings.of(inputs, options, self.plan, self.state.num_processes)
        data = ", ".join(str(portion.path) for portion in inputs.subject.portions)
        files: dict[str, Path | str] = {"base": inputs.base.folder, "tokenizer": inputs.base.folder, "data": data}
        files |= {"search_space": inputs.nncf_config, "stages": inputs.nncf_config} if inputs.nncf_config else {}
        files |= {"teacher": inputs.teacher.folder} if inputs.teacher else {}
        if inputs.start:
            files["start"] = inputs.start.located.folder
            misfits = base_misfits(inputs.start.source.training, settings.base)
            raise_all(f"{inputs.base.folder}: not the base that was trained on:", misfits, "--model names the right one.")
        with self.working.held(settings, resume, directory.overwrite, files) as resumption:
            if resume:
                self.tell(resumption.told())
            elif device_of(options) == "cpu" and options.precision != "fp32":
                self.tell_of_speed()
            start = time.perf_counter()
            network, order, state = self.trained(resumption.checkpoint)
            seconds = time.perf_counter() - start
            correction, solved = self._solved()
            record = make_record(inputs, self.plan, settings, state, self.tokens, bool(order), resumption, seconds, solved)
            with directory.open() as folder:
                write_super_adapter(folder, network.model, inputs.base, directory.path, order, record)
                if correction:
                    correction.save(folder)
                if inputs.space.groups:
                    (folder / SEARCH_SPACE).write_bytes(nncf_config)
                if (self.working.path / RUNS).exists():
                    shutil.copytree(self.working.path / RUNS, folder / RUNS)
            with suppress(OSError):  # the output is there, whatever is left here
                self.working.remove()
            self.state.wait_for_everyone()
        return record

    def tell_of_speed(self) -> None:
        """Say so where this processor is much faster in another precision."""
        if told := quicker_in(precision_of(self.options), "--precision"):
            self.tell(told)

    def trained(self, checkpoint: Path | None = None) -> _Trained:
        """Load and train; the first process says from where."""
        checkpoint, order = self._agreed(checkpoint)
        network = self._super_network(order)
        trainer = self._trainer(network)
        if checkpoint and step_of(checkpoint) == self.plan.steps:  # killed between the last step and the output
            restore_adapter(network.model, checkpoint)
            return _Trained(network, order, TrainerState.load_from_json(str(checkpoint / STATE)))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return _Trained(network, order, trainer.state)

    def _agreed(self, checkpoint: Path | None) -> tuple[Path | None, ChannelOrder]:
        """The checkpoint to go on from and the channel order, as the first process finds them: all must have the same."""
        agreed: list[Any] = [None, None]
        if self.state.is_main_process:
            agreed = [checkpoint and str(checkpoint), dict(self._order(checkpoint is not None).columns)]
            if self.solving:
                self.solving.solved(self.working.path, self.tell)
        broadcast_object_list(agreed)
        found = ChannelOrder.of(self.inputs.architecture, agreed[1] or {})
        return (Path(agreed[0]) if agreed[0] else None), found

    def _order(self, resumed: bool) -> ChannelOrder:
        if self.inputs.start:
            return self.inputs.start.source.order
        elasticity, folder = self.inputs.elasticity, self.working.path
        if not (self.options.reorder and elasticity.in_group):
            return ChannelOrder()
        found = read_channel_order(folder, elasticity.architecture)
        if found:
            return found
        if resumed:
            raise LonasEdgeError(f"{folder}: its channel order is missing; start again with --overwrite, without --resume")
        count, wanted = sum(portion.count for portion in self.inputs.subject.portions), self.options.calibration_prompts
        chosen = Random(self.options.seed).sample(range(count), min(wanted, count))
        found = by_importance(self._base().to(self.state.device), elasticity, self._calibration(chosen))
        found.save(folder)
        return found

    def _calibration(self, places: list[int]) -> Iterator[dict[str, torch.Tensor]]:
        tokens = self.tokens
        for batch in self.inputs.subject.calibration(places, tokens.tokenizer, self.options, tokens.prompting):
            refuse_beyond_vocabulary(batch["input_ids"].flatten().tolist(), self.inputs)
            yield {name: tensor.to(self.state.device) for name, tensor in batch.items()}

    def _solved(self) -> tuple[Correction, Solved | None]:
        """What solving changed in the base, and what it gave; that of an adapter which is trained on further stays."""
        start = self.inputs.start
        if start is None:
            return Correction(), None
        return kept(self.working.path, start) if self.solving else (start.source.correction(start.subnetwork), None)

    def _base(self) -> Any:
        base: Any = load_base(self.inputs.base, self.inputs.architecture, DTYPES[base_dtype(self.inputs, self.options)].torch)
        base.config.use_cache = False
        return base

    def _super_network(self, order: ChannelOrder) -> SuperNetwork:
        set_seed(self.options.seed)  # a head that the base lacks is drawn
        base, start = self._base(), self.inputs.start
        if start:
            model = _continued(base, start, self.options.dropout)
            order.apply_to_model(model)
            network = SuperNetwork(model, self.inputs.elasticity)
            correction, _ = self._solved()
            correction.apply_to_model(network.base, start.subnetwork.linears)
            return network
        order.apply_to_model(base)
        set_seed(self.options.seed)
        config = lora_config(self.options, self.inputs.architecture)
        return SuperNetwork(get_peft_model(base, config), self.inputs.elasticity)

    def _teacher(self) -> Any:
        """The frozen teacher, loaded; None where there is none."""
        if self.inputs.teacher is None:
            return None
        return self.inputs.teacher.load(DTYPES[precision_of(self.options)].torch).to(self.arguments.device)

    def _trainer(self, network: SuperNetwork) -> ElasticTrainer:
        trainable = [parameter for parameter in network.model.parameters() if parameter.requires_grad]
        optimizer = AdamW(trainable, lr=1.0, weight_decay=self.options.weight_decay)  # the scheduler gives the rate itself
        trainer = ElasticTrainer(
            network,
            self.plan,
            self.options.distill or 0.0,
            self.options.batch_size,
            self.options.group_by_length,
            self._teacher(),
            self.options.temperature,
            self.tokens.portions,
            self.options.weight_format,
            args=self.arguments,
            train_dataset=self.tokens.examples,
            data_collator=self.inputs.subject.collator(self.tokens.tokenizer),
            optimizers=(optimizer, LambdaLR(optimizer, self.plan.learning_rate)),
            callbacks=[Watch(self.report)],
        )
        for noisy in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(noisy)
        InactiveKept(optimizer, lambda: network.inactive_parts(trainer.active_of_step()))
        return trainer
