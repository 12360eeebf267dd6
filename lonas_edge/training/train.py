"""Train a super-adapter: elastic LoRA, from data to a directory that `export` accepts as it is.

Every step activates a sub-network of the search space. Inactive parts are not computed, get no gradient, and the optimizer
leaves them and their moments unchanged (`elastic_trainer.py`). Mixed precision, accumulation, checkpointing, data
parallelism under torchrun, logging and resuming are the work of the Hugging Face Trainer.
"""

import copy
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, ProgressCallback, TrainerState, TrainingArguments, set_seed
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from lonas_edge.data.task import Batch
from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import read_by, read_json, replace_text
from lonas_edge.formats import DTYPES
from lonas_edge.network.adapters import CONFIG
from lonas_edge.network.channel_order import ChannelOrder, by_importance, read_channel_order
from lonas_edge.network.modeling import load_model
from lonas_edge.network.source import SEARCH_SPACE, check_base
from lonas_edge.network.super_network import SuperNetwork
from lonas_edge.network.training_record import TrainingRecord
from lonas_edge.output import OutputDirectory
from lonas_edge.training.checkpoints import STATE, step_of
from lonas_edge.training.elastic_trainer import ElasticTrainer, InactiveKept, Progress, Watch, restore_adapter
from lonas_edge.training.inputs import (
    Inputs,
    adapter_ranks,
    base_dtype,
    check,
    default_lr,
    device_of,
    lora_config,
    precision_of,
    with_defaults,
)
from lonas_edge.training.mixed import FILE as INT8_LAYERS
from lonas_edge.training.mixed import choose_int8_layers, is_mixed
from lonas_edge.training.options import EVAL_LOSS, TrainOptions
from lonas_edge.training.record import make_record
from lonas_edge.training.sampler import EpochSampler, per_epoch
from lonas_edge.training.schedule import Schedule, make_schedule
from lonas_edge.training.super_adapter import write_super_adapter
from lonas_edge.training.tokens import Tokenized, check_vocabulary, tokenize
from lonas_edge.training.working import RUNS, Hashes, identity, newest_complete, stopping

_PATIENCE = timedelta(hours=6)  # other processes wait while the first loads, hashes and calibrates
_EVAL_BATCH = 16  # held-out examples at a time
_CALIBRATION_EXAMPLES = 64  # to measure the importance of channels


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
    inputs = inputs.with_prompt(options.prompt)
    others = [each.folder for each in (inputs.start and inputs.start.located, inputs.teacher) if each]
    files = [*inputs.data.files, *(inputs.eval_data.files if inputs.eval_data else ())]
    used = [inputs.base.folder, *(file.path for file in files), inputs.nncf_config, *others]
    directory = OutputDirectory(output, overwrite, used)
    with stopping():
        run = _prepared(inputs, options, directory, resume, report, notify)
        if run.state.is_main_process:
            return run.lead(resume)
        run.trained()
        run.state.wait_for_everyone()
    return None


def _prepared(
    inputs: Inputs,
    options: TrainOptions,
    directory: OutputDirectory,
    resume: bool,
    report: Progress,
    notify: Callable[[str], None],
) -> "_Run":
    state = PartialState(cpu=device_of(options) == "cpu", timeout=_PATIENCE)
    if options.precision == "auto":
        before = directory.identity().get("options", {}).get("precision") if resume else None
        precision = [str(before or precision_of(options)) if state.is_main_process else ""]
        broadcast_object_list(precision)  # the speeds that processes measure may differ
        options = replace(options, precision=precision[0])
    set_seed(options.seed)
    tokens = tokenize(inputs, options)
    for index, file in enumerate(inputs.data.files):
        if dropped := tokens.dropped(file, index):
            notify(
                f"{file.path.name}: {dropped} of {file.count} examples dropped: longer than --max-length {options.max_length}, "
                "or without output"
            )
    schedule = _schedule(inputs, options, sum(per_epoch(count, weight) for count, weight in tokens.counts))
    if tokens.also_trained:
        notify(f"{tokens.also_trained} of {len(tokens.held_out)} held-out examples also occur in the training data")
    arguments = _arguments(schedule, options, state.num_processes, directory.partial, inputs.eval_data is not None)
    return _Run(inputs, options, schedule, tokens, directory, state, arguments, report, notify)


def _schedule(inputs: Inputs, options: TrainOptions, examples: int) -> Schedule:
    if inputs.start is None:
        return make_schedule(inputs.space, options, examples, None, default_lr(inputs))
    space = replace(inputs.space, stages=())  # the stages are those of the super-network's training
    return make_schedule(space, options, examples, inputs.start.subnetwork.widths, default_lr(inputs))


def _arguments(schedule: Schedule, options: TrainOptions, processes: int, working: Path, evaluated: bool) -> TrainingArguments:
    accumulation = options.accumulation(processes)
    tenth = max(1, schedule.steps // 10)
    log_steps = min(options.log_steps or min(10, tenth), schedule.steps)
    try:
        for callback in get_reporting_integration_callbacks(options.report_to):
            callback()  # fails if its package is missing, as it would in the Trainer
        arguments = TrainingArguments(
            output_dir=str(working),
            max_steps=schedule.steps,
            per_device_train_batch_size=options.batch_size // accumulation // processes,
            gradient_accumulation_steps=accumulation,
            average_tokens_across_devices=True,
            bf16=options.precision == "bf16",
            fp16=options.precision == "fp16",
            use_cpu=device_of(options) == "cpu",
            gradient_checkpointing=options.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if options.gradient_checkpointing else None,
            remove_unused_columns=False,
            logging_steps=log_steps,
            logging_nan_inf_filter=False,
            include_num_input_tokens_seen="non_padding",
            eval_strategy="steps" if evaluated else "no",
            eval_steps=options.eval_steps or tenth,
            eval_on_start=evaluated,
            save_steps=options.save_steps
            or -(-min(200, tenth) // log_steps) * log_steps,  # a checkpoint does not split a log interval
            report_to=options.report_to,
            seed=options.seed,
            disable_tqdm=True,
            ddp_find_unused_parameters=schedule.space.has_blocks,  # those of a removed block
            dataloader_pin_memory=device_of(options) == "cuda",
        )
    except (ValueError, RuntimeError, ImportError) as error:  # an unknown or missing integration, a card without bf16
        chosen = f"--report-to {options.report_to}, --precision {options.precision}"
        raise LonasEdgeError(f"the Trainer refuses one of {chosen}: {error}") from error
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several cards need torchrun; DataParallel would split the kept positions
    return arguments


def _needed_bytes(inputs: Inputs, options: TrainOptions) -> int:
    """Estimate the size of the adapter and, at the peak, three checkpoints with two moments each, in fp32."""
    ranks = inputs.start.source.ranks() if inputs.start and inputs.start.config else adapter_ranks(options, inputs.architecture)
    sizes = inputs.architecture.linears
    return 40 * sum(rank * (sizes[name].in_features + sizes[name].out_features) for name, rank in ranks.items())


def _continued(base: Any, folder: Path, lora: LoraConfig, dropout: float) -> Any:
    config = copy.deepcopy(lora)
    config.lora_dropout, config.inference_mode = dropout, False
    with read_by("peft", folder / CONFIG):
        return PeftModel.from_pretrained(base, str(folder), is_trainable=True, config=config)


def _in_fp32(model: Any) -> Any:
    """Train a classifier's head in fp32, too: PEFT (0.21) casts LoRA factors only."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


class _Trained(NamedTuple):
    """The result of a process."""

    network: SuperNetwork
    order: ChannelOrder
    state: TrainerState
    int8_layers: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    """A running training in one of its processes."""

    inputs: Inputs
    options: TrainOptions
    schedule: Schedule
    tokens: Tokenized
    directory: OutputDirectory
    state: PartialState
    arguments: TrainingArguments
    report: Progress
    notify: Callable[[str], None]

    def lead(self, resume: bool) -> TrainingRecord:
        """Train in the first process, which alone holds the working directory and writes the output."""
        inputs, options, directory, schedule = self.inputs, self.options, self.directory, self.schedule
        directory.check(0 if resume else _needed_bytes(inputs, options), resumable=True)
        nncf_config = inputs.nncf_config.read_bytes() if inputs.nncf_config else b""
        hashes = Hashes.of(inputs)
        settings = identity(inputs, hashes, options, schedule, self.state.num_processes)
        if inputs.start:
            check_base(inputs.start.source.training, hashes.base, inputs.base.folder)
        restart = directory.overwrite and not resume
        with directory.resume("train", settings, resume, restart), stopping(directory.partial):
            resumption = newest_complete(directory.partial)
            if resume:
                self.notify(str(resumption))
            start = time.perf_counter()
            network, order, state, int8_layers = self.trained(resumption.checkpoint)
            seconds = time.perf_counter() - start
            record = make_record(
                inputs, options, schedule, hashes, state, self.tokens, bool(order), int8_layers, resumption, self.state, seconds
            )
            with directory.publish() as folder:
                pooling = inputs.data.pooling
                write_super_adapter(folder, network.model, inputs.base, directory.path, order, record, pooling)
                if inputs.space.groups:
                    (folder / SEARCH_SPACE).write_bytes(nncf_config)
                if (directory.partial / RUNS).exists():
                    shutil.copytree(directory.partial / RUNS, folder / RUNS)
        self.state.wait_for_everyone()
        return record

    def trained(self, checkpoint: Path | None = None) -> _Trained:
        """Load and train; the first process names the checkpoint to continue from."""
        checkpoint, order = self._agreed(checkpoint)
        network = self._super_network(order)
        int8_layers = self._int8_layers(network)
        trainer = self._trainer(network, int8_layers)
        if checkpoint and step_of(checkpoint) == self.schedule.steps:  # killed between the last step and the output
            restore_adapter(network.model, checkpoint)
            return _Trained(network, order, TrainerState.load_from_json(str(checkpoint / STATE)), int8_layers)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.held_out and trainer.state.global_step not in {
            entry["step"] for entry in trainer.state.log_history if EVAL_LOSS in entry
        }:
            trainer.evaluate()
        return _Trained(network, order, trainer.state, int8_layers)

    def _agreed(self, checkpoint: Path | None) -> tuple[Path | None, ChannelOrder]:
        """Send the first process's checkpoint and channel order to all processes."""
        agreed: list[Any] = [None, None]
        if self.state.is_main_process:
            agreed = [checkpoint and str(checkpoint), dict(self._order(checkpoint is not None).columns)]
        broadcast_object_list(agreed)
        order = ChannelOrder.of(self.inputs.architecture, agreed[1] or {})
        return (Path(agreed[0]) if agreed[0] else None), order

    def _order(self, resumed: bool) -> ChannelOrder:
        if self.inputs.start:
            return self.inputs.start.source.order
        elasticity, folder = self.inputs.elasticity, self.directory.partial
        if not (self.options.reorder and elasticity.in_group):
            return ChannelOrder()
        order = read_channel_order(folder, elasticity.architecture)
        if order:
            return order
        if resumed:
            raise LonasEdgeError(f"{folder}: the channel order is missing. Start again with --overwrite, without --resume.")
        count = len(self.inputs.data.inputs)
        chosen = Random(self.options.seed).sample(range(count), min(_CALIBRATION_EXAMPLES, count))
        order = by_importance(self._base().to(self.state.device), elasticity, self._calibration(chosen))
        order.save(folder)
        return order

    def _calibration(self, indices: list[int]) -> Iterator[dict[str, torch.Tensor]]:
        assert self.options.max_length
        for batch in self.inputs.data.prompts(indices, self.tokens.tokenizer, self.options.max_length):
            check_vocabulary(batch["input_ids"].flatten().tolist(), self.inputs)
            yield {name: tensor.to(self.state.device) for name, tensor in batch.items()}

    def _base(self) -> Any:
        inputs, dtype = self.inputs, DTYPES[base_dtype(self.inputs, self.options)].torch
        new_head = inputs.architecture.family.kind.new_head
        base: Any = load_model(inputs.architecture, inputs.base.folder, dtype, new_head)
        base.config.use_cache = False
        if self.inputs.teacher:
            for module in base.modules():
                if isinstance(module, nn.Dropout):  # of BERT: noise on an exact target
                    module.p = 0.0
        return base

    def _super_network(self, order: ChannelOrder) -> SuperNetwork:
        set_seed(self.options.seed)  # a missing head is initialized at random
        base, start = self._base(), self.inputs.start
        if start and start.config:
            model = _in_fp32(_continued(base, start.located.folder, start.config.lora, self.options.dropout))
            order.apply_to_model(model)
            return SuperNetwork(model, self.inputs.elasticity, self.inputs.data)
        order.apply_to_model(base)
        set_seed(self.options.seed)
        config = lora_config(self.options, self.inputs.architecture)
        return SuperNetwork(_in_fp32(get_peft_model(base, config)), self.inputs.elasticity, self.inputs.data)

    def _int8_layers(self, network: SuperNetwork) -> tuple[str, ...]:
        """Choose the layers that stay INT8 in the first process."""
        if not is_mixed(self.options):
            return ()
        agreed: list[tuple[str, ...]] = [()]
        if self.state.is_main_process:
            file = self.directory.partial / INT8_LAYERS
            if not file.exists():
                device = self.arguments.device
                chosen = choose_int8_layers(network, self.inputs, self.tokens, self.schedule, self.options, device)
                replace_text(file, json.dumps({"layers": chosen}))
                self.notify(f"{len(chosen)} layers stay INT8: they lose most by rounding, for their size")
            agreed = [tuple(read_json(file)["layers"])]
        broadcast_object_list(agreed)
        return agreed[0]

    def _held_out(self) -> list[Batch]:
        """Batches of the held-out examples, those of similar length together."""
        collate = self.inputs.data.collator(self.tokens.tokenizer)
        examples = sorted(self.tokens.held_out, key=lambda example: len(example["input_ids"]))
        return [collate(examples[start : start + _EVAL_BATCH]) for start in range(0, len(examples), _EVAL_BATCH)]

    def _trainer(self, network: SuperNetwork, int8_layers: tuple[str, ...]) -> ElasticTrainer:
        options, tokens, teacher = self.options, self.tokens, self.inputs.teacher
        trainable = [parameter for parameter in network.model.parameters() if parameter.requires_grad]
        optimizer = AdamW(trainable, lr=1.0, weight_decay=options.weight_decay)  # the scheduler gives the learning rate itself
        lengths = [len(example["input_ids"]) for example in tokens.examples]
        trainer = ElasticTrainer(
            network,
            self.schedule,
            EpochSampler(lengths, options.batch_size, options.seed, tokens.counts),
            teacher.load(DTYPES[options.precision].torch).to(self.arguments.device) if teacher else None,
            options.weight_format,
            int8_layers,
            self._held_out(),
            self.inputs.data.distilled,
            args=self.arguments,
            eval_dataset=tokens.held_out or None,
            train_dataset=tokens.examples,
            data_collator=self.inputs.data.collator(tokens.tokenizer),
            optimizers=(optimizer, LambdaLR(optimizer, self.schedule.learning_rate)),
            callbacks=[Watch(self.report)],
        )
        for noisy in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(noisy)
        InactiveKept(optimizer, lambda: network.inactive_parts(self.schedule.subnetwork(trainer.state.global_step)))
        return trainer
