"""A training step of a super-network: the Hugging Face Trainer, unpatched, with sub-networks activated around its own step."""

# mypy: disallow-subclassing-any=False
# (transformers has no types that mypy reads)

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.stored import StoredWeights
from lonas_edge.network.super_network import SuperNetwork
from lonas_edge.training.checkpoints import ADAPTER, OPTIMIZER, SCHEDULER, checkpoints, discard, load, loading, mark, saving
from lonas_edge.training.plan import Plan

Progress = Callable[[int, int, Mapping[str, float]], None]  # step, steps in all, the last record of the log


class NotFiniteError(LonasEdgeError):
    """The loss or the adapter is NaN or Inf."""


class ElasticTrainer(Trainer):
    """The Trainer, with sub-networks activated around its own training step.

    Loss: cross-entropy of the learned tokens, averaged over the tokens of the optimizer step; with `distill` λ,
    (1 - λ) · cross-entropy + λ · T² · KL(teacher ‖ sub-network), logits divided by the temperature T (Hinton, Vinyals & Dean,
    2015), the teacher without gradient. It is a frozen model; where there is none, the maximal network as it is by then
    (in-place distillation, Yu & Huang, ICCV 2019), and a network that is maximal itself has the cross-entropy alone.
    Of a classifier, the same over sequences; of a regression, squared errors and distances.
    """

    def __init__(
        self,
        network: SuperNetwork,
        plan: Plan,
        distill: float = 0.0,
        batch_examples: int = 1,
        group_by_length: bool = False,
        teacher: Any = None,
        temperature: float = 1.0,
        portions: Sequence[tuple[int, float]] = (),
        weight_format: str | None = None,
        **arguments: Any,
    ):
        """Set up.

        Args:
            network: The super-network; its model is trained.
            plan: Says the sub-networks and the learning rate of every step.
            distill: Share of the distillation in the loss, 0 to 1.
            batch_examples: Examples of an optimizer step, over all devices.
            group_by_length: Whether those are of similar length.
            teacher: A frozen model of the same vocabulary, on the device that is trained on; the maximal network when None.
            temperature: Of the distillation.
            portions: As of `EpochSampler`.
            weight_format: The weight format in which weights are when what is trained computes; as they are when None.
            **arguments: As of `Trainer`.
        """
        self.network, self.plan, self.distill = network, plan, distill
        self.batch_examples, self.group_by_length = batch_examples, group_by_length
        self.portions = portions
        self.frozen, self.temperature = teacher, temperature
        self._maximal = tuple(group.widths[0] for group in plan.space.groups)
        self._passes = 1
        self._teacher: torch.Tensor | None = None
        self._logits: torch.Tensor | None = None
        super().__init__(model=network.model, **arguments)
        # by now the model is where it is trained
        self.stored = StoredWeights(network, weight_format) if weight_format else None
        self.model_accepts_loss_kwargs = True  # the loss below divides by the tokens of the whole step

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        lengths = [len(example["input_ids"]) for example in self.train_dataset]
        return EpochSampler(lengths, self.batch_examples, self.plan.seed, self.group_by_length, self.portions)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The adapter alone, whatever else lies in the directory."""
        restore_adapter(self.network.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both. The rate is ours."""
        if checkpoint is None:
            return
        for name, part in ((OPTIMIZER, self.optimizer), (SCHEDULER, self.lr_scheduler)):
            with loading(Path(checkpoint) / name):
                part.load_state_dict(load(Path(checkpoint) / name))
        rate = self.plan.learning_rate(self.lr_scheduler.last_epoch)
        self.lr_scheduler._last_lr = [rate] * len(self.optimizer.param_groups)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with loading(Path(checkpoint or "")):
            super()._load_rng_state(checkpoint)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, and mark it once every process has written its part; only then the older ones go, but for one."""
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        with saving(checkpoint):
            super()._save_checkpoint(model, trial)
            PartialState().wait_for_everyone()
            if self.state.is_world_process_zero:
                mark(checkpoint)
                for older in checkpoints(folder)[2:]:
                    discard(older)

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
        self._passes = len(trained)
        teacher, losses = None, []
        for chosen in trained:
            taught = self.distill > 0 and (self.frozen is not None or chosen != self._maximal)
            if taught and teacher is None:
                teacher = self._teacher_logits(model, inputs)
            self._teacher = teacher if taught else None
            self.network.activate(chosen)
            with self.stored.active(chosen) if self.stored else nullcontext():
                losses.append(super().training_step(model, dict(inputs), num_items_in_batch))
            if self.distill and self.frozen is None and chosen == self._maximal:
                teacher = self._logits
        self._logits = None
        loss = torch.stack(losses).sum()
        if not torch.isfinite(loss):
            raise NotFiniteError(f"the loss is {loss.item()} at step {self.state.global_step + 1}")
        return loss

    def _teacher_logits(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        if self.frozen is not None:
            model = self.frozen
        else:
            self.network.activate(self._maximal)
        model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            logits: torch.Tensor = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False).logits
        return logits

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
            inputs: A batch of `Collator`, whose `labels` are those of the positions that are kept, or of `PairCollator`.
            return_outputs: Whether the model's output is wanted too.
            num_items_in_batch: Learned tokens of the optimizer step, over all devices; those of the batch when None.

        Returns:
            The loss, and the output if wanted.
        """
        labels, objective = inputs.pop("labels"), self.network.objective
        outputs = model(**inputs, use_cache=False)
        self._logits = outputs.logits.detach() if self.distill else None
        logits, learned = objective.answers(outputs.logits, labels), objective.labels(labels)
        total = objective.loss(logits, learned)
        if self._teacher is not None:
            teacher, heat = objective.answers(self._teacher, labels), self.temperature
            apart = heat**2 * objective.divergence(teacher / heat, logits / heat)
            total = (1 - self.distill) * total + self.distill * apart
        count = len(learned) if num_items_in_batch is None else num_items_in_batch
        # data parallelism averages over processes what was counted over all of them
        loss = total / count / self._passes * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def active_of_step(self) -> tuple[int, ...]:
        """The union of the step's sub-networks: the widest of each group."""
        return tuple(max(widths) for widths in zip(*self.plan.trained(self.state.global_step), strict=True))


def restore_adapter(model: torch.nn.Module, checkpoint: Path) -> None:
    """Give a model the adapter of a checkpoint.

    Args:
        model: The PEFT model.
        checkpoint: The directory.

    Raises:
        LonasEdgeError: If the adapter cannot be loaded or is another network's.
    """
    path = checkpoint / ADAPTER
    with loading(path):
        tensors = load_file(path)
        expected = get_peft_model_state_dict(model, save_embedding_layers=False)
        if tensors.keys() != expected.keys():
            raise LonasEdgeError(f"{path}: holds other tensors than this training's adapter")
        set_peft_model_state_dict(model, tensors)


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


class EpochSampler(Sampler[int]):
    """The order of the examples in an epoch, from the seed and the epoch alone, so that a resumed training has the same.

    transformers' LengthGroupedSampler draws from the global generator when an epoch starts, which a resumed one cannot repeat.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch: int,
        seed: int,
        group_by_length: bool,
        portions: Sequence[tuple[int, float]] = (),
    ):
        """Set up.

        Args:
            lengths: Tokens of each example.
            batch: Examples of an optimizer step, over all devices.
            seed: The training's.
            group_by_length: Whether the examples of a step are of similar length.
            portions: For each file in turn, how many examples it has, and how often an epoch has each of them: 2 is twice, and
                0.3 another 30 % of them each time. All once when empty.
        """
        self._lengths, self._batch, self._seed, self._grouped = list(lengths), batch, seed, group_by_length
        self._portions = portions or [(len(self._lengths), 1.0)]
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate when an epoch starts."""
        self._epoch = epoch

    def __len__(self) -> int:
        """How many examples an epoch has."""
        return sum(per_epoch(count, weight) for count, weight in self._portions)

    def __iter__(self) -> Iterator[int]:
        """Indices of examples."""
        generator = torch.Generator().manual_seed(self._seed + 1_000_003 * self._epoch)
        taken = self._taken(generator)
        if self._grouped:
            lengths = [self._lengths[index] for index in taken]
            places = get_length_grouped_indices(lengths, self._batch, generator=generator)
        else:
            places = torch.randperm(len(taken), generator=generator).tolist()
        return iter([taken[place] for place in places])

    def _taken(self, generator: torch.Generator) -> list[int]:
        """The examples of the epoch; what is less than a whole pass over a file is chosen anew in each."""
        taken: list[int] = []
        first = 0
        for count, weight in self._portions:
            rest = per_epoch(count, weight) - int(weight) * count
            chosen = torch.randperm(count, generator=generator)[:rest].tolist() if rest else []
            taken += [first + index for index in (*list(range(count)) * int(weight), *chosen)]
            first += count
        return taken


def per_epoch(count: int, weight: float) -> int:
    """How many examples an epoch has of a file with so many, at least one."""
    return max(1, round(count * weight))


class Watch(TrainerCallback):
    """Reports progress, and refuses to save what is not finite."""

    def __init__(self, report: Progress):
        """Set up.

        Args:
            report: Called after every step, and with what is logged.
        """
        self._report = report

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the intervals from the arguments; the Trainer takes a resumed training's from its checkpoint."""
        state.save_steps, state.logging_steps = args.save_steps, args.logging_steps

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Report, and look at what is about to be saved."""
        if state.is_world_process_zero:
            self._report(state.global_step, state.max_steps, {})
        if control.should_save and not all(p.isfinite().all() for p in model.parameters() if p.requires_grad):
            raise NotFiniteError(f"the adapter holds NaN or Inf after step {state.global_step}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Report the loss."""
        if state.is_world_process_zero and logs and "loss" in logs:
            self._report(state.global_step, state.max_steps, logs)
