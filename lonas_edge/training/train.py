"""Train a super-adapter: elastic LoRA, from instruction data to a directory that `export` takes as it is.

Every step activates a sub-network drawn from the search space. What is inactive is not computed, gets no gradient, and is left
by the optimizer exactly as it was, moments included (`elastic_trainer.py`). All else (mixed precision, accumulation,
checkpointing, data parallelism under torchrun, logging, resuming) is the Hugging Face Trainer's.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, ProgressCallback, TrainerState, TrainingArguments, set_seed
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from lonas_edge.data.encoding import Collator, encode
from lonas_edge.data.templates import TEMPLATES, Example
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import read_json, sha256
from lonas_edge.network import adapters
from lonas_edge.network.adapters import AdapterConfig, rank_misfits
from lonas_edge.network.channel_order import ChannelOrder, by_importance, read_channel_order
from lonas_edge.network.checkpoints import open_base
from lonas_edge.network.source import SEARCH_SPACE, TRAINING, Located
from lonas_edge.network.super_network import SuperNetwork, load_base
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.output import OutputDirectory, locked
from lonas_edge.space.architecture import Elasticity
from lonas_edge.training.card import super_adapter_card
from lonas_edge.training.elastic_trainer import COMPLETE, ElasticTrainer, InactiveKept, NotFiniteError, Progress, Watch
from lonas_edge.training.plan import Plan, TrainOptions, make_plan
from lonas_edge.versions import versions

SETTINGS = "settings.json"
_FREE_TO_CHANGE = {"save_steps", "log_steps", "report_to", "lr"}
_PACKAGES = ("lonas-edge", "torch", "transformers", "peft", "accelerate")
_PATIENCE = timedelta(hours=6)  # how long processes wait while the first loads, hashes and calibrates


@dataclass(frozen=True)
class Inputs:
    """What a training works on. A search space without groups is plain LoRA; `nncf_config` is its file, or None."""

    base: Located
    elasticity: Elasticity
    nncf_config: Path | None
    data: Path
    examples: list[Example]


def working_directory(output: Path) -> Path:
    """Where checkpoints and the order lie until the training is done: beside the output, which appears whole."""
    path = output.absolute()
    if not path.name:
        raise LonasEdgeError(f"{output}: not a place for a super-adapter; choose another --output")
    return path.with_name(f"{path.name}.training")


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
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a working directory that was written to its end."""
    found = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).exists()]
    return max(found, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


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
        overwrite: Whether an existing output is replaced; without `resume` an unfinished training of it, too.
        report: Called after every step.

    Returns:
        The record, as written to `training.json`.

    Raises:
        LonasEdgeError: If the inputs do not fit, the output exists, or the loss is not finite.
    """
    check(inputs, options)
    working = working_directory(output)
    state = PartialState(cpu=_device(options) == "cpu", timeout=_PATIENCE)
    set_seed(options.seed)
    tokenizer = _tokenizer(inputs)
    encoded = encode(inputs.examples, TEMPLATES[options.prompt], tokenizer, options.max_length, options.train_on_prompt)
    if not encoded:
        raise LonasEdgeError(
            f"{inputs.data}: each of its {len(inputs.examples)} examples is longer than --max-length {options.max_length} "
            "tokens. Raise it."
        )
    _refuse_unknown_tokens(inputs, encoded)
    plan = make_plan(inputs.elasticity.space, options, len(encoded))
    arguments = _arguments(plan, options, state, working)
    run = _Run(inputs, options, plan, output, working, state, tokenizer, encoded)
    with run.opened(resume, overwrite) as directory:
        return run.train(arguments, directory, report)


def _tokenizer(inputs: Inputs) -> Any:
    folder = inputs.base.folder
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise LonasEdgeError(f"{folder}: training needs the model's tokenizer; there are no tokenizer files")
    if tokenizer.eos_token_id is None:
        raise LonasEdgeError(f"{folder}: the tokenizer has no EOS token; set one in tokenizer_config.json")
    return tokenizer


def _refuse_unknown_tokens(inputs: Inputs, encoded: list[dict[str, list[int]]]) -> None:
    size = inputs.elasticity.architecture.config.vocab_size
    largest = max(max(example["input_ids"]) for example in encoded)
    if largest >= size:
        raise LonasEdgeError(
            f"{inputs.base.folder}: the tokenizer gives token {largest}, and the model's vocabulary has {size} entries. "
            "Do tokenizer and model belong together?"
        )


def _arguments(plan: Plan, options: TrainOptions, state: PartialState, working: Path) -> TrainingArguments:
    precision = _precision(options)
    accumulation = options.accumulation(state.num_processes)
    log_steps = min(options.log_steps, plan.steps)
    tenth = min(200, max(1, plan.steps // 10))
    try:
        get_reporting_integration_callbacks(options.report_to)
        arguments = TrainingArguments(
            output_dir=str(working),
            max_steps=plan.steps,
            per_device_train_batch_size=options.batch_size // accumulation // state.num_processes,
            gradient_accumulation_steps=accumulation,
            average_tokens_across_devices=True,
            max_grad_norm=options.max_grad_norm,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            use_cpu=_device(options) == "cpu",
            gradient_checkpointing=options.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if options.gradient_checkpointing else None,
            remove_unused_columns=False,
            logging_steps=log_steps,
            logging_nan_inf_filter=False,
            save_steps=options.save_steps or -(-tenth // log_steps) * log_steps,  # a log's interval is not cut by a checkpoint
            save_total_limit=2,
            report_to=options.report_to,
            seed=options.seed,
            disable_tqdm=True,
            ddp_find_unused_parameters=False,
            dataloader_pin_memory=_device(options) == "cuda",
        )
    except (ValueError, RuntimeError) as error:  # an integration that is not known or installed, bf16 that the card lacks
        chosen = f"--report-to {options.report_to}, --precision {precision}"
        raise LonasEdgeError(f"the Trainer refuses one of {chosen}: {error}") from error
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several cards are for torchrun; DataParallel would split the kept positions
    return arguments


@dataclass
class _Run:
    """One training under way.

    The first process alone has `settings`, what must not change between a training and its resumption, and the content of the
    NNCF configuration, both as they were at the start.
    """

    inputs: Inputs
    options: TrainOptions
    plan: Plan
    output: Path
    working: Path
    state: PartialState
    tokenizer: Any
    encoded: list[dict[str, list[int]]]
    settings: dict[str, Any] = field(default_factory=dict)
    nncf_config: bytes = b""

    @contextmanager
    def opened(self, resume: bool, overwrite: bool) -> Iterator[OutputDirectory]:
        """Hold the working directory. What ends the training says what is kept in it, and nothing is left that is of no use."""
        directory = OutputDirectory(self.output, overwrite)
        if not self.state.is_main_process:
            yield directory
            return
        directory.check(0 if resume else self._needed_bytes())
        self.nncf_config = self.inputs.nncf_config.read_bytes() if self.inputs.nncf_config else b""
        self.settings = self._settings()
        self._open_working_directory(resume, overwrite)
        with locked(self.working) as ours:
            if not ours:
                raise self._busy()
            try:
                yield directory
            except KeyboardInterrupt:
                raise LonasEdgeError(f"Training interrupted. {self._kept()}") from None
            except NotFiniteError as error:
                kept = self._kept("With a lower --lr, or another --precision from the start, it may not happen again.")
                raise LonasEdgeError(f"Training stopped: {error}. {kept}") from error
            except (OSError, SafetensorError) as error:
                raise LonasEdgeError(f"Training stopped: writing failed: {error}. {self._kept()}") from error
            except torch.OutOfMemoryError as error:
                advice = "A smaller --micro-batch-size or --gradient-checkpointing needs less."
                raise LonasEdgeError(f"Training stopped: out of memory. {advice} {self._kept()}") from error
            finally:
                if last_complete_checkpoint(self.working) is None:
                    shutil.rmtree(self.working, ignore_errors=True)

    def _busy(self) -> LonasEdgeError:
        return LonasEdgeError(f"{self.working}: another training is writing there; wait for it, or choose another --output")

    def _kept(self, advice: str = "") -> str:
        last = last_complete_checkpoint(self.working)
        if last is None:
            return f"No checkpoint had been written yet; nothing is kept. {advice}".strip()
        return f"The last good checkpoint is kept: {last}. The same command with --resume goes on from it. {advice}".strip()

    def _needed_bytes(self) -> int:
        """The adapter, and at the peak three checkpoints of it with two moments each, in fp32."""
        architecture = self.inputs.elasticity.architecture
        ranks = AdapterConfig(Path(), _lora_config(self.options)).ranks(architecture)
        sizes = {name: architecture.linears[name] for name in ranks}
        weights = sum(rank * (sizes[name].in_features + sizes[name].out_features) for name, rank in ranks.items())
        return 4 * weights * 10

    def _settings(self) -> dict[str, Any]:
        base, data = self.inputs.base.folder, self.inputs.data
        files = [base / "config.json", *open_base(base, self.inputs.elasticity.architecture).files]
        tokenizer = [path for path in (base / "tokenizer.json", base / "tokenizer.model") if path.exists()]
        stages = [{k: v for k, v in asdict(stage).items() if k != "lr"} for stage in self.plan.stages]
        return {
            "base": {path.name: sha256(path) for path in files},
            "tokenizer": {path.name: sha256(path) for path in tokenizer},
            "data": sha256(data),
            "search_space": self.inputs.elasticity.space.hash,
            "stages": stages,
            "processes": self.state.num_processes,
            "options": json.loads(json.dumps(asdict(self.options))),
        }

    def _open_working_directory(self, resume: bool, overwrite: bool) -> None:
        working = self.working
        if resume:
            self._resume_working_directory()
            return
        if working.exists() and not (working / SETTINGS).exists():
            raise LonasEdgeError(f"{working}: is needed for checkpoints, and is not ours. Move it, or choose another --output.")
        if working.exists() and not overwrite:
            raise LonasEdgeError(
                f"{working}: an unfinished training is kept there. --resume goes on with it; --overwrite starts again."
            )
        if working.exists():
            with locked(working) as free:
                if not free:
                    raise self._busy()
                shutil.rmtree(working)
        try:
            working.mkdir(parents=True)
            (working / SETTINGS).write_text(json.dumps(self.settings, indent=2) + "\n")
        except OSError as error:
            raise LonasEdgeError(f"{working}: cannot be written: {error}") from error

    def _resume_working_directory(self) -> None:
        if not (self.working / SETTINGS).exists():
            raise LonasEdgeError(f"{self.working}: there is no unfinished training to --resume")
        found, now = read_json(self.working / SETTINGS), self.settings
        problems = [f"{key}: not the same as before" for key in now if key != "options" and found.get(key) != now[key]]
        before = found.get("options", {})
        problems += [
            f"{name}: was {before.get(name)!r}, is {value!r}"
            for name, value in now["options"].items()
            if name not in _FREE_TO_CHANGE and before.get(name) != value
        ]
        way_out = "Give the same; or start again, with --overwrite and without --resume."
        raise_all(f"{self.working}: cannot be resumed with other settings:", problems, way_out)
        for path in self.working.glob("checkpoint-*"):
            if not (path / COMPLETE).exists():
                shutil.rmtree(path)

    def train(self, arguments: TrainingArguments, directory: OutputDirectory, report: Progress) -> dict[str, Any]:
        """Load, train, write."""
        start = time.perf_counter()
        checkpoint, order = self._agreed()
        network = self._super_network(order)
        trainer = self._trainer(network, arguments, report)
        if checkpoint and _step_of(checkpoint) >= self.plan.steps:  # killed between the last step and the output
            set_peft_model_state_dict(network.model, load_file(checkpoint / adapters.SAFETENSORS))
            trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if not self.state.is_main_process:
            self.state.wait_for_everyone()
            return {}
        record = self._record(trainer, order, time.perf_counter() - start, checkpoint)
        with directory.open() as folder:
            self._write(folder, network, order, record)
        shutil.rmtree(self.working, ignore_errors=True)
        self.state.wait_for_everyone()
        return record

    def _agreed(self) -> tuple[Path | None, ChannelOrder]:
        """The checkpoint to go on from and the channel order, as the first process finds them: all must have the same."""
        agreed: list[Any] = [None, None]
        if self.state.is_main_process:
            checkpoint = last_complete_checkpoint(self.working)
            agreed = [checkpoint and str(checkpoint), dict(self._order(checkpoint is not None).columns)]
        broadcast_object_list(agreed)
        found = ChannelOrder.of(self.inputs.elasticity.architecture, agreed[1] or {})
        return (Path(agreed[0]) if agreed[0] else None), found

    def _order(self, resumed: bool) -> ChannelOrder:
        elasticity = self.inputs.elasticity
        if not (self.options.reorder and elasticity.in_group):
            return ChannelOrder()
        found = read_channel_order(self.working, elasticity.architecture)
        if found:
            return found
        if resumed:
            raise LonasEdgeError(
                f"{self.working}: its channel order is missing; start again with --overwrite, without --resume"
            )
        base = self._base().to(self.state.device)
        examples = Random(self.options.seed).sample(
            self.inputs.examples, min(self.options.calibration_prompts, len(self.inputs.examples))
        )
        found = by_importance(base, elasticity, self._calibration(examples))
        found.save(self.working)
        return found

    def _calibration(self, examples: list[Example]) -> Iterator[dict[str, torch.Tensor]]:
        template = TEMPLATES[self.options.prompt]
        for example in examples:
            encoded = self.tokenizer(
                template.prompt(example), truncation=True, max_length=self.options.max_length, return_tensors="pt"
            )
            yield {name: encoded[name].to(self.state.device) for name in ("input_ids", "attention_mask")}

    def _base(self) -> Any:
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        base = load_base(self.inputs.base, self.inputs.elasticity.architecture.family.task, dtypes[_precision(self.options)])
        base.config.use_cache = False
        return base

    def _super_network(self, order: ChannelOrder) -> SuperNetwork:
        base = self._base()
        order.apply_to_model(base)
        set_seed(self.options.seed)
        return SuperNetwork(get_peft_model(base, _lora_config(self.options)), self.inputs.elasticity)

    def _trainer(self, network: SuperNetwork, arguments: TrainingArguments, report: Progress) -> ElasticTrainer:
        trainable = [parameter for parameter in network.model.parameters() if parameter.requires_grad]
        optimizer = AdamW(trainable, lr=1.0, weight_decay=self.options.weight_decay)  # the scheduler gives the rate itself
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        trainer = ElasticTrainer(
            network,
            self.plan,
            self.options.distill,
            self.options.batch_size,
            self.options.group_by_length,
            args=arguments,
            train_dataset=self.encoded,
            data_collator=Collator(eos if pad is None else pad),
            optimizers=(optimizer, LambdaLR(optimizer, self.plan.learning_rate)),
            callbacks=[Watch(report)],
        )
        for noisy in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(noisy)
        InactiveKept(optimizer, lambda: network.inactive_parts(trainer.active_of_step()))
        return trainer

    def _record(self, trainer: ElasticTrainer, order: ChannelOrder, seconds: float, resumed: Path | None) -> dict[str, Any]:
        inputs, options = self.inputs, self.options
        return {
            "format": 1,
            "base": {"name": inputs.base.name, "revision": inputs.base.revision, "sha256": self.settings["base"]},
            "search_space": inputs.elasticity.space.hash if inputs.elasticity.space.groups else None,
            "data": {
                "name": inputs.data.name,
                "sha256": self.settings["data"],
                "examples": len(self.encoded),
                "left_out": len(inputs.examples) - len(self.encoded),
            },
            "prompt": asdict(TEMPLATES[options.prompt]),
            "options": json.loads(json.dumps(asdict(options))),
            "reordered": bool(order),
            "stages": [asdict(stage) for stage in self.plan.stages],
            "warmup_steps": self.plan.warmup_steps,
            "steps": trainer.state.global_step,
            "resumed_from_step": _step_of(resumed) if resumed else None,
            "seconds": round(seconds, 1),  # of this run, since the resumption
            "device": torch.cuda.get_device_name() if _device(options) == "cuda" else "cpu",
            "precision": _precision(options),
            "processes": self.state.num_processes,
            "losses": [_logged(entry) for entry in trainer.state.log_history if "loss" in entry],
            "versions": versions(_PACKAGES),
        }

    def _write(self, folder: Path, network: SuperNetwork, order: ChannelOrder, record: dict[str, Any]) -> None:
        """Write the super-adapter, its adapter in the base's own channel order: any PEFT client loads it on the base."""
        model: Any = network.model
        order.inverse().apply_to_model(model, lambda name: ".lora_" in name)
        config = next(iter(model.peft_config.values()))
        config.base_model_name_or_path, config.revision = self._reference(), self.inputs.base.revision
        model.save_pretrained(folder, save_embedding_layers=False)
        written = read_json(folder / adapters.CONFIG)
        written["target_modules"] = sorted(written["target_modules"])  # PEFT writes a set, in any order
        (folder / adapters.CONFIG).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
        if order:
            order.save(folder)
        if self.inputs.elasticity.space.groups:
            (folder / SEARCH_SPACE).write_bytes(self.nncf_config)
        if (self.working / "runs").exists():  # of a logging integration
            shutil.copytree(self.working / "runs", folder / "runs")
        (folder / TRAINING).write_text(json.dumps(record, indent=2) + "\n")
        (folder / "README.md").write_text(super_adapter_card(record))

    def _reference(self) -> str:
        """A hub id; or the path to a directory on this disk from the super-adapter, so that both can be moved together."""
        base, output = self.inputs.base, self.output.absolute()
        if base.revision is not None:
            return base.name
        place = output.parent.resolve() / output.name
        return os.path.relpath(base.folder.absolute(), place)


def _logged(entry: dict[str, float]) -> dict[str, float | None]:
    """What is kept of a log entry. With fp16 a step may be skipped, its gradients not finite, which JSON cannot say."""
    values = {name: entry[name] for name in ("step", "loss", "learning_rate", "grad_norm") if name in entry}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
