"""When a training with --epochs auto ends: the expected steps follow from the rule, without the code."""

import pytest

from lonas_edge.training.schedule import Plateau

EPOCH = 9  # steps: evaluations after 3, 6, 9, …; at most 45 steps, 33 of them before the decay


def after(*losses: float) -> Plateau:
    """A plateau after these held-out losses, three steps apart."""
    plateau = Plateau(EPOCH)
    for number, loss in enumerate(losses, 1):
        plateau.add(3 * number, loss)
    return plateau


def test_the_rate_is_constant_while_each_epoch_lowers_the_loss() -> None:
    plateau = after(1.0, 0.9, 0.8, 0.7, 0.6)

    assert plateau.decay is None
    assert [plateau.factor(step) for step in (0, 15, 32)] == [1.0, 1.0, 1.0]


def test_the_training_ends_a_third_later_when_an_epoch_gains_less_than_a_twentieth() -> None:
    plateau = after(1.0, 0.8, 0.7, 0.77, 0.765)  # 0.7 is an eighth below 0.8

    assert plateau.decay is None

    plateau.add(18, 0.67)  # the best of the last epoch, 4 % below the best before it

    assert (plateau.decay, plateau.end) == (18, 24)
    assert [round(plateau.factor(step), 6) for step in (17, 18, 21, 23, 24, 30)] == [1, 1, 0.5, 0.166667, 0, 0]


def test_later_losses_change_nothing() -> None:
    plateau = after(1.0, 0.8, 0.8, 0.8, 0.8)
    end = plateau.end
    plateau.add(18, 0.1)

    assert (plateau.decay, plateau.end) == (15, end)


def test_the_training_ends_a_third_later_at_a_thousandth_of_the_first_loss() -> None:
    plateau = after(3.0, 0.01, 0.0031)

    assert plateau.decay is None

    plateau.add(12, 0.003)

    assert (plateau.decay, plateau.end) == (12, 16)
    assert after(0.0, 0.0).decay == 6  # the first loss alone ends nothing


def test_the_decay_begins_in_time_for_five_epochs() -> None:
    plateau = after(*(0.9**number for number in range(11)))

    assert (plateau.decay, plateau.end) == (33, 44)


def test_a_resumed_training_decides_as_an_undisturbed_one() -> None:
    losses = [1.0, 0.8, 0.7, 0.7, 0.7, 0.69]
    resumed = Plateau(EPOCH)
    log = [{"step": 3 * number, "eval_loss": loss} for number, loss in enumerate(losses, 1)]
    resumed.read([{"step": 0, "eval_loss": 3.0}, *log[:3], {"step": 10, "eval_loss": 9.0}, {"step": 9, "loss": 5.0}])
    for entry in log[2:]:  # a resumed training evaluates once more before its first step
        resumed.add(int(entry["step"]), entry["eval_loss"])

    assert (resumed.decay, resumed.end) == (after(*losses).decay, after(*losses).end)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_tiny_epochs_end_too(epoch: int) -> None:
    plateau = Plateau(epoch)
    for step in range(1, 5 * epoch + 1):
        plateau.add(step, 1.0)

    assert plateau.decay is not None
    assert plateau.decay < plateau.end <= 5 * epoch or epoch == 1
