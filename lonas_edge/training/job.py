"""The parts of a running training in one of its processes: network, INT8 layers, trainer."""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftModel, get_peft_model
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, ProgressCallback, TrainerState, TrainingArguments, set_seed

from lonas_edge.data.task import Encoded
from lonas_edge.files import read_by, read_json, replace_text
from lonas_edge.formats import DTYPES, FORMATS
from lonas_edge.network.channel_order import ChannelOrder, by_importance, read_channel_order
from lonas_edge.network.modeling import load_model
from lonas_edge.network.rounding import attention_inputs, most_sensitive, rounding_costs
from lonas_edge.network.stored import layer_storage
from lonas_edge.network.super_network import CALIBRATION, SuperNetwork
from lonas_edge.training.checkpoints import INT8_LAYERS, STATE, step_of
from lonas_edge.training.defaults import base_dtype, lora_config
from lonas_edge.training.elastic_trainer import ElasticTrainer, InactiveKept, Progress, Watch, restore_adapter
from lonas_edge.training.inputs import Inputs
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.schedule import Schedule
from lonas_edge.training.tokens import EpochSampler, Tokenized

_EVAL_BATCH, _EVAL_TOKENS = 16, 16 * 1024  # held-out examples at a time, and their tokens with padding
_ROUNDING_EXAMPLES, _ROUNDING_TOKENS, _ROUNDING_BATCH = 32, 128, 8  # to measure the costs of rounding: tokens of each


@dataclass(frozen=True)
class Trained:
    """The result of a process."""

    network: SuperNetwork
    order: ChannelOrder
    state: TrainerState
    int8_layers: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """A training in one of its processes. The first one decides what all share; a resumed training finds it in `folder`."""

    inputs: Inputs
    options: TrainOptions
    schedule: Schedule
    tokens: Tokenized
    arguments: TrainingArguments
    state: PartialState
    folder: Path  # the working directory
    report: Progress
    notify: Callable[[str], None]

    def run(self, checkpoint: Path | None = None) -> Trained:
        """Load and train; the first process names the checkpoint to continue from."""
        shared: list[Any] = [None, None]
        if self.state.is_main_process:
            shared = [checkpoint and str(checkpoint), dict(self._decide_order().columns)]
        broadcast_object_list(shared)
        checkpoint = Path(shared[0]) if shared[0] else None
        order = ChannelOrder.of(self.inputs.source.architecture, shared[1] or {})
        network = self._build_network(order)
        int8_layers = self._decide_int8_layers(network)
        trainer = self._make_trainer(network, int8_layers)
        if checkpoint:
            state = TrainerState.load_from_json(str(checkpoint / STATE))
            if self.schedule.plateau:
                self.schedule.plateau.read(state.log_history)
            if step_of(checkpoint) == self.schedule.steps:  # killed before the output
                restore_adapter(network.model, checkpoint)
                return Trained(network, order, state, int8_layers)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return Trained(network, order, trainer.state, int8_layers)

    def _decide_order(self) -> ChannelOrder:
        """The channel order: the adapter's own, or by importance on training examples."""
        if self.inputs.subnetwork:
            return self.inputs.source.order
        elasticity = self.inputs.source.elasticity
        if not (self.options.reorder and elasticity.in_group):
            return ChannelOrder()
        order = read_channel_order(self.folder, elasticity.architecture)
        if not order:
            order = by_importance(self._load_base().to(self.state.device), elasticity, self._prompts())
            order.save(self.folder)
        return order

    def _prompts(self) -> Iterator[dict[str, torch.Tensor]]:
        """A fixed choice of the training's prompts, one by one."""
        count = len(self.inputs.data.inputs)
        indices = Random(self.options.seed).sample(range(count), min(CALIBRATION, count))
        assert self.options.max_length
        for batch in self.inputs.data.prompts(indices, self.tokens.tokenizer, self.options.max_length):
            yield {name: tensor.to(self.state.device) for name, tensor in batch.items()}

    def _load_base(self) -> Any:
        inputs, dtype = self.inputs, DTYPES[base_dtype(self.inputs, self.options)].torch
        new_head = inputs.source.architecture.family.kind.new_head
        base: Any = load_model(inputs.source.architecture, inputs.source.base.folder, dtype, new_head)
        base.config.use_cache = False
        for module in base.modules() if inputs.teacher else ():
            if isinstance(module, nn.Dropout):  # of BERT: noise on an exact target
                module.p = 0.0
        return base

    def _build_network(self, order: ChannelOrder) -> SuperNetwork:
        set_seed(self.options.seed)  # a missing head is initialized at random
        base, source = self._load_base(), self.inputs.source
        if source.adapter_config:
            config = copy.deepcopy(source.adapter_config.lora)
            config.lora_dropout, config.inference_mode = 0.0, False
            path = source.adapter_config.path
            with read_by("peft", path):
                model: Any = PeftModel.from_pretrained(base, str(path.parent), is_trainable=True, config=config)
            order.apply_to_model(model)
        else:
            order.apply_to_model(base)
            set_seed(self.options.seed)
            model = get_peft_model(base, lora_config(self.options, self.inputs.source.architecture))
        for parameter in model.parameters():
            if parameter.requires_grad:  # a classifier's head, too: PEFT (0.21) casts LoRA factors only
                parameter.data = parameter.data.float()
        return SuperNetwork(model, self.inputs.source.elasticity, self.inputs.data)

    def _decide_int8_layers(self, network: SuperNetwork) -> tuple[str, ...]:
        """Choose the layers that quantization-aware training keeps in INT8."""
        weight_format, ratio = self.options.weight_format, self.options.ratio
        if weight_format is None or FORMATS[weight_format].outer is None or ratio == 1:
            return ()
        shared: list[tuple[str, ...]] = [()]
        if self.state.is_main_process:
            file = self.folder / INT8_LAYERS
            if not file.exists():
                chosen = self._most_sensitive_layers(network, weight_format)
                replace_text(file, json.dumps({"layers": chosen}))
                self.notify(f"{len(chosen)} layers stay INT8: they lose most by rounding, for their size")
            shared = [tuple(read_json(file)["layers"])]
        broadcast_object_list(shared)
        return shared[0]

    def _most_sensitive_layers(self, network: SuperNetwork, weight_format: str) -> tuple[str, ...]:
        """The layers that lose most by rounding for their size, with at most a share of 1 - `ratio` of the weights.

        Costs are measured on training examples: of the trained sub-network, or of the maximal one.
        """
        inputs, device = self.inputs, self.arguments.device
        widths = inputs.source.elasticity.maximal if self.schedule.fixed is None else self.schedule.fixed
        examples = self.tokens.examples
        drawn = Random(self.options.seed).sample(examples, min(_ROUNDING_EXAMPLES, len(examples)))
        shortened = [inputs.data.shorten(example, _ROUNDING_TOKENS) for example in drawn]
        size = min(_ROUNDING_BATCH, self.options.micro_batch_size or _ROUNDING_BATCH)
        network.model.to(device)
        batches = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in self._batches(shortened, size)]
        costs = rounding_costs(network, widths, batches, weight_format)
        layers = {name: how.widths for name, how in layer_storage(network, widths, FORMATS[weight_format]).items()}
        in_any_case = inputs.source.architecture.eight_bits
        sizes = {n: w.out_features * w.in_features for n, w in layers.items() if f"{n}.weight" not in in_any_case}
        return most_sensitive(costs, sizes, 1 - self.options.ratio, attention_inputs(inputs.source.architecture))

    def _batches(self, examples: Sequence[Encoded], size: int) -> list[dict[str, Any]]:
        """Batches of examples, those of similar length together."""
        collate = self.inputs.data.collator(self.tokens.tokenizer)
        rest = sorted(examples, key=lambda example: len(example["input_ids"]), reverse=True)
        batches = []
        while rest:
            count = max(1, min(size, _EVAL_TOKENS // len(rest[0]["input_ids"])))
            batches.append(collate(rest[:count]))
            rest = rest[count:]
        return batches

    def _make_trainer(self, network: SuperNetwork, int8_layers: tuple[str, ...]) -> ElasticTrainer:
        options, tokens, teacher, data = self.options, self.tokens, self.inputs.teacher, self.inputs.data
        trainable = [parameter for parameter in network.model.parameters() if parameter.requires_grad]
        optimizer = AdamW(trainable, lr=1.0, weight_decay=options.weight_decay)  # the scheduler gives the learning rate itself
        lengths = [len(example["input_ids"]) for example in tokens.examples]
        trainer = ElasticTrainer(
            network,
            self.schedule,
            EpochSampler(lengths, options.batch_size, options.seed, tokens.counts),
            teacher.load(DTYPES[options.dtype].torch).to(self.arguments.device) if teacher else None,
            options.weight_format,
            int8_layers,
            self._batches(tokens.held_out, _EVAL_BATCH),
            args=self.arguments,
            eval_dataset=tokens.held_out or None,
            train_dataset=tokens.examples,
            data_collator=data.collator(tokens.tokenizer),
            optimizers=(optimizer, LambdaLR(optimizer, self.schedule.learning_rate)),
            callbacks=[Watch(self.report, self.schedule)],
        )
        for noisy in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(noisy)
        InactiveKept(optimizer, lambda: network.inactive_parts(self.schedule.subnetwork(trainer.state.global_step)))
        return trainer
