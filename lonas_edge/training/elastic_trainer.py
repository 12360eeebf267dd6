"""A training step of a super-network: the Hugging Face Trainer, with a sub-network activated around its step."""

# mypy: disallow-subclassing-any=False
# (transformers has no types that mypy reads)

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback

from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.stored import StoredWeights
from lonas_edge.network.super_network import SuperNetwork
from lonas_edge.training.checkpoints import (
    ADAPTER,
    COMPLETE,
    OPTIMIZER,
    SCHEDULER,
    discard,
    list_checkpoints,
    load,
    loading,
    saving,
)
from lonas_edge.training.options import EVAL_LOSS
from lonas_edge.training.schedule import Schedule

_ADVICE = "Use a lower --lr, or start again with another --dtype."
Progress = Callable[[int, int, Mapping[str, float]], None]  # step, all steps, the last entry of the log


class ElasticTrainer(Trainer):
    """The Trainer; each step trains the schedule's sub-network.

    Loss: cross-entropy of the learned tokens, averaged over the tokens of the optimizer step; of classifiers over sequences; of
    regressions squared errors. With a frozen teacher: KL(teacher ‖ sub-network) at temperature 1 over these tokens, over the
    classes of sequences, the squared distance of regressions, or the cosine distance of embeddings.
    Quantization-aware training computes with the rounded weights, held-out losses too.
    """

    def __init__(
        self,
        network: SuperNetwork,
        schedule: Schedule,
        sampler: Sampler[int] | None = None,
        teacher: Any = None,
        weight_format: str | None = None,
        int8_layers: Collection[str] = (),
        held_out: Sequence[Any] = (),
        **arguments: Any,
    ):
        """Train `network` by `schedule`, with a frozen teacher or in weight formats; `arguments` as of `Trainer`.

        `int8_layers` are not in the weight format; `held_out` are batches of held-out examples.
        """
        self.held_out = held_out
        self.network, self.schedule, self.sampler, self.teacher = network, schedule, sampler, teacher
        self._reference: torch.Tensor | None = None  # the teacher's logits for the batch
        super().__init__(model=network.model, **arguments)
        # now the model is on its device
        self.stored = StoredWeights(network, weight_format, int8_layers) if weight_format else None
        self.model_accepts_loss_kwargs = True  # the loss below divides by all tokens of the step

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        return self.sampler

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        restore_adapter(self.network.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both, but keep the schedule's learning rate."""
        if checkpoint is None:
            return
        for name, part in ((OPTIMIZER, self.optimizer), (SCHEDULER, self.lr_scheduler)):
            part.load_state_dict(load(Path(checkpoint) / name))
        rate = self.schedule.learning_rate(self.lr_scheduler.last_epoch)
        self.lr_scheduler._last_lr = [rate] * len(self.optimizer.param_groups)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with loading(Path(checkpoint or "")):
            super()._load_rng_state(checkpoint)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save; mark the checkpoint as complete when every process is done, then keep one older checkpoint."""
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        with saving(checkpoint):
            super()._save_checkpoint(model, trial)
            PartialState().wait_for_everyone()
            if self.state.is_world_process_zero:
                (checkpoint / COMPLETE).touch()
                for older in list_checkpoints(folder)[2:]:
                    discard(older)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Run forward and backward of a micro-batch through the step's sub-network; return the loss."""
        widths = self.schedule.subnetwork(self.state.global_step)
        if self.teacher is not None:
            self._reference = self._teacher_logits(self._prepare_inputs(inputs))
        self.network.activate(widths)
        with self.stored.active(widths) if self.stored else nullcontext():
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise LonasEdgeError(f"Training stopped: the loss is {loss.item()} at step {self.state.global_step + 1}. {_ADVICE}")
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Log the mean loss on the held-out examples: of the trained sub-network, or of the maximal one.

        An encoder with a teacher has the distance from it, unless it learns labels.
        """
        fixed = self.schedule.fixed
        widths = self.network.elasticity.maximal if fixed is None else fixed
        batches = [self._prepare_inputs(dict(batch)) for batch in self.held_out]
        with self.accelerator.autocast(), self.stored.active(widths) if self.stored else nullcontext():
            if self.teacher is not None and self.network.task.distilled:
                loss = self.network.distances(widths, batches, [self._teacher_logits(batch) for batch in batches])
            else:
                [loss] = self.network.losses([widths], batches)
        self.log({EVAL_LOSS: loss})
        self.control.should_evaluate = False  # as Trainer.evaluate does; it would run again at the end of an epoch
        if self.schedule.plateau:
            self.schedule.plateau.add(self.state.global_step, loss)
            self.state.max_steps = self.schedule.steps
        return {EVAL_LOSS: loss}

    def _teacher_logits(self, batch: dict[str, Any]) -> torch.Tensor:
        self.teacher.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            return self.network.task.logits(self.teacher(**inputs, use_cache=False), batch)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Compute the loss of the activated sub-network; see the class."""
        batch, task = dict(inputs), self.network.task
        labels = inputs.pop("labels")
        outputs = model(**inputs, use_cache=False)
        logits, learned = task.logits(outputs, batch), task.labels(labels)
        loss = task.loss(logits, learned) if self._reference is None else task.distance(self._reference, logits)
        count = len(learned) if num_items_in_batch is None else num_items_in_batch
        # data parallelism averages over processes; the count is over all of them
        loss = loss / count * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


def restore_adapter(model: torch.nn.Module, checkpoint: Path) -> None:
    """Load the adapter of a checkpoint into a PEFT model."""
    path = checkpoint / ADAPTER
    with loading(path):
        set_peft_model_state_dict(model, load_file(path))


class InactiveKept:
    """Optimizer hooks that leave inactive parts of the parameters and their moments unchanged.

    AdamW would move them by the momentum of earlier steps and by weight decay.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parts: Callable[[], Iterator[tuple[Any, tuple[slice, ...]]]]):
        """Register the hooks; `parts` gives the inactive parts of the current step."""
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


class Watch(TrainerCallback):
    """Reports progress, and refuses to save an adapter that is not finite."""

    def __init__(self, report: Progress, schedule: Schedule):
        """Call `report` after every step, and with every entry of the log."""
        self._report, self._schedule = report, schedule

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Use the intervals of this run; the Trainer would take those of the checkpoint."""
        state.save_steps, state.logging_steps, state.eval_steps = args.save_steps, args.logging_steps, args.eval_steps
        state.max_steps = self._schedule.steps

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Report the step, and check the adapter before it is saved."""
        if state.is_world_process_zero:
            self._report(state.global_step, state.max_steps, {})
        if control.should_save and not all(p.isfinite().all() for p in model.parameters() if p.requires_grad):
            raise LonasEdgeError(f"Training stopped: the adapter holds NaN or Inf after step {state.global_step}. {_ADVICE}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Report the loss."""
        if state.is_world_process_zero and logs and ("loss" in logs or EVAL_LOSS in logs):
            self._report(state.global_step, state.max_steps, logs)
