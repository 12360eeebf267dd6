"""Train a super-adapter: elastic LoRA on the Hugging Face Trainer, unpatched.

Every step activates a sub-network drawn from the search space. What is inactive is not computed, gets no gradient, and is left
by the optimizer exactly as it was, moments included. All else (mixed precision, accumulation, checkpointing, data parallelism
under torchrun, logging, resuming) is the Trainer's.
"""

import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoTokenizer, PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from lonas_edge.adapters import AdapterConfig, rank_misfits
from lonas_edge.architecture import Elasticity
from lonas_edge.channel_order import ChannelOrder, by_importance, read_channel_order
from lonas_edge.checkpoints import OutputDirectory, open_base, read_json, sha256
from lonas_edge.elastic import SuperNetwork, load_base
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.instructions import IGNORED, TEMPLATES, Collator, Example, encode
from lonas_edge.model_card import super_adapter_card
from lonas_edge.source import SEARCH_SPACE, TRAINING, Located
from lonas_edge.training_plan import Plan, TrainOptions, make_plan
from lonas_edge.versions import versions

SETTINGS = "settings.json"
COMPLETE = "complete"  # a checkpoint without this file was being written when the training was killed
_FREE_TO_CHANGE = {"save_steps", "log_steps", "report_to", "device", "precision", "micro_batch_size", "lr"}
_PACKAGES = ("lonas-edge", "torch", "transformers", "peft", "accelerate")

Progress = Callable[[int, int, Mapping[str, float]], None]  # step, steps in all, the last record of the log


@dataclass(frozen=True)
class Inputs:
    """What a training works on. `nncf_config` is None for plain LoRA."""

    base: Located
    elasticity: Elasticity
    nncf_config: Path | None
    data: Path
    examples: list[Example]


def working_directory(output: Path) -> Path:
    """Where checkpoints and the order lie until the training is done: beside the output, which appears whole."""
    return output.with_name(f"{output.name}.training")


def check(inputs: Inputs, options: TrainOptions) -> None:
    """Refuse, before the model is loaded, what cannot be trained.

    Args:
        inputs: Base model, search space and data.
        options: How to train.

    Raises:
        LonasEdgeError: Lists every misfit of the search space and of the target modules.
    """
    architecture = inputs.elasticity.architecture
    problems = [
        f"target module {target!r}: the model has no such linear layer"
        for target in options.target_modules
        if not any(name == target or name.endswith(f".{target}") for name in architecture.linears)
    ]
    leaves = sorted({name.rpartition(".")[2] for name in architecture.linears})
    raise_all(f"{inputs.base.name}: --target-modules do not fit the model:", problems, f"It has {', '.join(leaves)}.")
    ranks = AdapterConfig(Path("--target-modules"), _lora_config(options)).ranks(architecture)
    raise_all(
        f"{inputs.nncf_config}: the search space does not fit --rank and --target-modules:",
        rank_misfits(inputs.elasticity, ranks),
        "Raise --rank, add the module, or write a search space with smaller ranks.",
    )
    if options.device == "cuda" and not torch.cuda.is_available():
        raise LonasEdgeError("--device cuda: PyTorch sees no CUDA device; take --device cpu")
    if options.precision == "fp16" and _device(options) == "cpu":
        raise LonasEdgeError("--precision fp16 needs CUDA; on a CPU take bf16 or fp32")
    open_base(inputs.base.folder, architecture)


def _lora_config(options: TrainOptions) -> LoraConfig:
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(options.target_modules),
        task_type="CAUSAL_LM",
    )


def _device(options: TrainOptions) -> str:
    return "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"


def _precision(options: TrainOptions) -> str:
    if options.precision != "auto":
        return options.precision
    if _device(options) == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


class ElasticTrainer(Trainer):
    """The Trainer, with sub-networks activated around its own training step.

    Loss: cross-entropy of the learned tokens, averaged over the tokens of the optimizer step; with `distill` λ,
    (1 - λ) · cross-entropy + λ · KL(maximal network ‖ sub-network), the teacher without gradient (in-place distillation, Yu &
    Huang, ICCV 2019). A network that is maximal itself has the cross-entropy alone.
    """

    def __init__(self, network: SuperNetwork, plan: Plan, distill: float = 0.0, **arguments: Any):
        """Set up.

        Args:
            network: The super-network; its model is trained.
            plan: Says the sub-networks and the learning rate of every step.
            distill: Share of the distillation in the loss, 0 to 1.
            **arguments: As of `Trainer`.
        """
        self.network, self.plan, self.distill = network, plan, distill
        self._maximal = tuple(group.widths[0] for group in plan.space.groups)
        self._passes = 1
        self._teacher: torch.Tensor | None = None
        super().__init__(model=network.model, **arguments)
        self.model_accepts_loss_kwargs = True  # the loss below divides by the tokens of the whole step

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward of a micro-batch through each sub-network of the step.

        Args:
            model: The (wrapped) model.
            inputs: A batch of `Collator`.
            num_items_in_batch: Learned tokens of the optimizer step, over all devices.

        Returns:
            The loss.

        Raises:
            LonasEdgeError: If the loss is not finite.
        """
        inputs = self._prepare_inputs(inputs)
        trained = self.plan.trained(self.state.global_step)
        self._passes, self._teacher = len(trained), None
        losses = []
        for chosen in trained:
            if self.distill and chosen != self._maximal and self._teacher is None:
                self._teacher = self._maximal_logits(model, inputs)
            self.network.activate(chosen)
            losses.append(super().training_step(model, dict(inputs), num_items_in_batch))
        loss = torch.stack(losses).sum()
        if not torch.isfinite(loss):
            raise NotFiniteError(f"the loss is {loss.item()} at step {self.state.global_step + 1}")
        return loss

    def _maximal_logits(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        self.network.activate(self._maximal)
        model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            return model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False).logits

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of the activated sub-network; see the class.

        Args:
            model: The (wrapped) model.
            inputs: A batch of `Collator`; `labels` are those of the positions that are kept.
            return_outputs: Whether the model's output is wanted too.
            num_items_in_batch: Learned tokens of the optimizer step, over all devices; those of the batch when None.

        Returns:
            The loss, and the output if wanted.
        """
        labels = inputs.pop("labels").flatten()
        outputs = model(**inputs, use_cache=False)
        learned = labels != IGNORED
        logits = outputs.logits.flatten(0, 1)[learned].float()
        total = F.cross_entropy(logits, labels[learned], reduction="sum")
        if self._teacher is not None:
            teacher = self._teacher.flatten(0, 1)[learned].float()
            kl = F.kl_div(logits.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True)
            total = (1 - self.distill) * total + self.distill * kl
        count = learned.sum() if num_items_in_batch is None else num_items_in_batch
        # data parallelism averages over processes what was counted over all of them
        loss = total / count / self._passes * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def active_of_step(self) -> tuple[int, ...]:
        """What the step's sub-networks have in common with none left out: the widest of each group."""
        return tuple(max(widths) for widths in zip(*self.plan.trained(self.state.global_step), strict=True))


class NotFiniteError(LonasEdgeError):
    """The loss or the adapter is NaN or Inf."""


class InactiveKept:
    """Optimizer hooks that leave inactive parts of the parameters as they were, with their moments.

    AdamW would move them: by momentum of earlier steps and by weight decay. A part that a step does not have gets no step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parts: Callable[[], Iterator[tuple[Any, tuple[slice, ...]]]]):
        """Register.

        Args:
            optimizer: The optimizer.
            parts: Gives the inactive parts of the step at hand.
        """
        self._parts = parts
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        optimizer.register_step_pre_hook(self._keep)
        optimizer.register_step_post_hook(self._restore)

    def _keep(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for parameter, part in self._parts():
            state = optimizer.state.get(parameter, {}).values()
            tensors = [parameter.data, *(t for t in state if torch.is_tensor(t) and t.shape == parameter.shape)]
            self._kept += [(tensor[part], tensor[part].clone()) for tensor in tensors]

    def _restore(self, *_: Any) -> None:
        for view, value in self._kept:
            view.copy_(value)
        self._kept.clear()


class _Watch(TrainerCallback):
    """Reports progress, refuses to save what is not finite, and marks checkpoints that are whole."""

    def __init__(self, report: Progress):
        self._report = report

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.is_world_process_zero:
            self._report(state.global_step, state.max_steps, {})
        if control.should_save and not all(p.isfinite().all() for p in model.parameters() if p.requires_grad):
            raise NotFiniteError(f"the adapter holds NaN or Inf after step {state.global_step}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            self._report(state.global_step, state.max_steps, logs)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a working directory that was written to its end."""
    found = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).exists()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def train(
    inputs: Inputs,
    output: Path,
    options: TrainOptions,
    resume: bool = False,
    overwrite: bool = False,
    report: Progress = lambda _step, _steps, _log: None,
) -> dict[str, Any]:
    """Train a super-adapter and write its directory.

    Args:
        inputs: Base model, search space and data.
        output: The super-adapter's directory; it appears when the training is done.
        options: How to train.
        resume: Whether to go on from the last checkpoint of a training that was killed or stopped.
        overwrite: Whether an existing output, or an unfinished training of it, is replaced.
        report: Called after every step.

    Returns:
        The record, as written to `training.json`.

    Raises:
        LonasEdgeError: If the inputs do not fit, the output exists, or the loss is not finite.
    """
    check(inputs, options)
    state = PartialState(cpu=_device(options) == "cpu")
    set_seed(options.seed)
    tokenizer = _tokenizer(inputs.base.folder)
    template = TEMPLATES[options.prompt]
    encoded = encode(inputs.examples, template, tokenizer, options.max_length, options.train_on_prompt)
    if not encoded:
        raise LonasEdgeError(
            f"{inputs.data}: each of its {len(inputs.examples)} examples is longer than --max-length {options.max_length} "
            "tokens. Raise it."
        )
    plan = make_plan(inputs.elasticity.space, options, len(encoded))
    options.accumulation(state.num_processes)
    directory = OutputDirectory(output, overwrite)
    working = working_directory(output)
    settings = _settings(inputs, options)
    if state.is_main_process:
        directory.check(_needed_bytes(inputs, options))
        _open_working_directory(working, settings, resume, overwrite)
    state.wait_for_everyone()
    start = time.perf_counter()
    network, order = _super_network(inputs, options, state, working, tokenizer, template)
    trainer = _trainer(network, plan, options, state, working, encoded, tokenizer, report)
    checkpoint = last_complete_checkpoint(working) if resume else None
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except NotFiniteError as error:
        raise LonasEdgeError(_stopped(error, working)) from error
    record = _record(inputs, options, plan, trainer, order, len(encoded), time.perf_counter() - start, checkpoint)
    if state.is_main_process:
        with directory.open() as folder:
            _write(folder, output, inputs, network, order, record)
        shutil.rmtree(working, ignore_errors=True)
    state.wait_for_everyone()
    return record


def _stopped(error: NotFiniteError, working: Path) -> str:
    last = last_complete_checkpoint(working)
    kept = f"The last good checkpoint is kept: {last}." if last else "No checkpoint had been written yet."
    return (
        f"Training stopped: {error}. {kept} Run again with --resume and a lower --lr (or --precision fp32); "
        "without a checkpoint, with --overwrite."
    )


def _tokenizer(folder: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise LonasEdgeError(f"{folder}: training needs the model's tokenizer, which cannot be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise LonasEdgeError(f"{folder}: the tokenizer has no EOS token; set one in tokenizer_config.json")
    return tokenizer


def _needed_bytes(inputs: Inputs, options: TrainOptions) -> int:
    """Adapter and two checkpoints of it with two moments each, in fp32."""
    ranks = AdapterConfig(Path(), _lora_config(options)).ranks(inputs.elasticity.architecture)
    linears = inputs.elasticity.architecture.linears
    weights = sum(rank * (linears[name].in_features + linears[name].out_features) for name, rank in ranks.items())
    return 4 * weights * 7


def _settings(inputs: Inputs, options: TrainOptions) -> dict[str, Any]:
    """What must not change between a training and its resumption."""
    return {
        "base": {"config.json": sha256(inputs.base.folder / "config.json")},
        "data": sha256(inputs.data),
        "search_space": inputs.elasticity.space.hash,
        "options": json.loads(json.dumps(asdict(options))),
    }


def _open_working_directory(working: Path, settings: dict[str, Any], resume: bool, overwrite: bool) -> None:
    if resume and working.exists():
        found = read_json(working / SETTINGS)
        problems = [f"{key}: another than before" for key in ("base", "data", "search_space") if found[key] != settings[key]]
        problems += [
            f"{name}: was {found['options'].get(name)!r}, is {value!r}"
            for name, value in settings["options"].items()
            if name not in _FREE_TO_CHANGE and found["options"].get(name) != value
        ]
        raise_all(f"{working}: cannot be resumed with other settings:", problems, "Give the same, or --overwrite.")
        return
    if resume:
        raise LonasEdgeError(f"{working}: there is no unfinished training to --resume")
    if working.exists() and not overwrite:
        raise LonasEdgeError(f"{working}: an unfinished training is kept there. --resume goes on; --overwrite starts again.")
    shutil.rmtree(working, ignore_errors=True)
    try:
        working.mkdir(parents=True)
        (working / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        raise LonasEdgeError(f"{working}: cannot be written: {error}") from error


def _super_network(
    inputs: Inputs, options: TrainOptions, state: PartialState, working: Path, tokenizer: Any, template: Any
) -> tuple[SuperNetwork, ChannelOrder]:
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    base = load_base(inputs.base, dtypes[_precision(options)])
    base.config.use_cache = False
    wanted = options.reorder and options.elastic and bool(inputs.elasticity.in_group)
    if wanted and state.is_main_process and not read_channel_order(working, inputs.elasticity.architecture):
        prompts = [template.prompt(example) for example in inputs.examples[: options.calibration_prompts]]
        by_importance(base, inputs.elasticity, _calibration(prompts, tokenizer, options.max_length)).save(working)
    state.wait_for_everyone()  # every process takes the order of the first
    order = read_channel_order(working, inputs.elasticity.architecture) if wanted else ChannelOrder()
    order.apply_to_model(base)
    model = get_peft_model(base, _lora_config(options))
    return SuperNetwork(model, inputs.elasticity), order


def _calibration(prompts: list[str], tokenizer: Any, max_length: int) -> Iterator[dict[str, torch.Tensor]]:
    for prompt in prompts:
        encoded = tokenizer(prompt, truncation=True, max_length=max_length, return_tensors="pt")
        yield {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


def _trainer(
    network: SuperNetwork,
    plan: Plan,
    options: TrainOptions,
    state: PartialState,
    working: Path,
    encoded: list[dict[str, list[int]]],
    tokenizer: Any,
    report: Progress,
) -> ElasticTrainer:
    precision = _precision(options)
    accumulation = options.accumulation(state.num_processes)
    arguments = TrainingArguments(
        output_dir=str(working),
        max_steps=plan.steps,
        per_device_train_batch_size=options.batch_size // accumulation // state.num_processes,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=options.max_grad_norm,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=_device(options) == "cpu",
        gradient_checkpointing=options.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if options.gradient_checkpointing else None,
        train_sampling_strategy="group_by_length" if options.group_by_length else "random",
        remove_unused_columns=False,
        logging_steps=options.log_steps,
        logging_nan_inf_filter=False,
        save_steps=options.save_steps,
        save_total_limit=2,
        report_to=options.report_to,
        seed=options.seed,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=_device(options) == "cuda",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several cards are for torchrun; DataParallel would split the kept positions
    trainable = [parameter for parameter in network.model.parameters() if parameter.requires_grad]
    base_lr = max(plan.learning_rate(0), 1e-12)
    optimizer = AdamW(trainable, lr=base_lr, weight_decay=options.weight_decay)
    scheduler = LambdaLR(optimizer, functools.partial(_factor, plan, base_lr))
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    trainer = ElasticTrainer(
        network,
        plan,
        options.distill,
        args=arguments,
        train_dataset=encoded,
        data_collator=Collator(pad),
        optimizers=(optimizer, scheduler),
        callbacks=[_Watch(report)],
    )
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    InactiveKept(optimizer, lambda: network.inactive_parts(trainer.active_of_step()))
    return trainer


def _factor(plan: Plan, base_lr: float, step: int) -> float:
    return plan.learning_rate(step) / base_lr


def _record(
    inputs: Inputs,
    options: TrainOptions,
    plan: Plan,
    trainer: ElasticTrainer,
    order: ChannelOrder,
    examples: int,
    seconds: float,
    resumed: Path | None,
) -> dict[str, Any]:
    files = open_base(inputs.base.folder, inputs.elasticity.architecture).files
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "format": 1,
        "base": {
            "name": inputs.base.name,
            "revision": inputs.base.revision,
            "sha256": {path.name: sha256(path) for path in files},
        },
        "search_space": inputs.elasticity.space.hash if inputs.elasticity.space.groups else None,
        "data": {
            "name": inputs.data.name,
            "sha256": sha256(inputs.data),
            "examples": examples,
            "left_out": len(inputs.examples) - examples,
        },
        "prompt": asdict(TEMPLATES[options.prompt]),
        "options": json.loads(json.dumps(asdict(options))),
        "reordered": bool(order),
        "stages": [asdict(stage) for stage in plan.stages],
        "warmup_steps": plan.warmup_steps,
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        "resumed_from_step": int(resumed.name.rpartition("-")[2]) if resumed else None,
        "device": torch.cuda.get_device_name() if _device(options) == "cuda" else "cpu",
        "precision": _precision(options),
        "processes": trainer.accelerator.num_processes,
        "losses": [
            {key: entry[key] for key in ("step", "loss", "learning_rate", "grad_norm") if key in entry} for entry in losses
        ],
        "versions": versions(_PACKAGES),
    }


def _write(
    folder: Path, output: Path, inputs: Inputs, network: SuperNetwork, order: ChannelOrder, record: dict[str, Any]
) -> None:
    """Write the super-adapter. The adapter goes back to the base's channel order: any PEFT client loads it on the base."""
    model = network.model
    order.inverse().apply_to_model(model, lambda name: ".lora_" in name)
    config = next(iter(model.peft_config.values()))
    config.base_model_name_or_path, config.revision = _reference(inputs.base, output), inputs.base.revision
    model.save_pretrained(folder, save_embedding_layers=False)
    if order:
        order.save(folder)
    if inputs.nncf_config:
        shutil.copyfile(inputs.nncf_config, folder / SEARCH_SPACE)
    (folder / TRAINING).write_text(json.dumps(record, indent=2) + "\n")
    (folder / "README.md").write_text(super_adapter_card(record))


def _reference(base: Located, output: Path) -> str:
    """A hub id; or the path to a directory on this disk from the super-adapter, which says nothing about the machine."""
    is_hub = base.revision is not None
    return base.name if is_hub else os.path.relpath(base.folder.absolute(), output.resolve())
