"""Speculative decoding in figures: what the main model accepts, what follows for a token's time, and whether texts are equal.

Leviathan et al. 2023 (arXiv:2211.17192): with α the chance that a proposed token is accepted, k tokens proposed at a time and c
the draft's time for a token as a share of the main model's, a pass of the main model gives (1 − α^(k+1)) / (1 − α) tokens
(equation 1), and decoding is (1 − α^(k+1)) / ((1 − α)(kc + 1)) times as fast (theorem 3.8). The formula takes a pass over k + 1
tokens for as long as one over a single token; what it took is reported beside.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lonas_edge.bench.arms import SUBNET, Arm, Case
from lonas_edge.bench.measure import Measured, Prompter, Sample
from lonas_edge.bench.statistics import Speedup, speedup
from lonas_edge.bench.timing import Speculated
from lonas_edge.bench.worker import ArmFailedError, ArmProcess, Placement

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
EXACT_PROMPTS = 4


@dataclass(frozen=True)
class Texts:
    """Texts with a draft beside those without.

    Attributes:
        compared: How many.
        equal: How many are the same, token by token.
        first_difference: Of the others, how many tokens are the same before the first that differs.
    """

    compared: int
    equal: int
    first_difference: tuple[int, ...]


@dataclass(frozen=True)
class Speculation:
    """Speculative decoding of one arm in one case.

    Attributes:
        arm: Its name.
        case: The setting.
        assistant_tokens: Tokens that the draft proposes at a time, k.
        drafted: Tokens that it proposed, in all rounds.
        accepted: How many of them the main model took.
        acceptance: α, the chance that a token is accepted where those before it were; None where none was proposed.
        tokens_per_pass: Tokens that a pass of the main model gave, behind the prompt's.
        draft_cost: c, the draft's time for a token over the sub-network's TPOT.
        pass_cost: The time of a pass that checks over the sub-network's TPOT.
        predicted: The speed-up by the formula.
        measured: The speed-up of TPOT over the sub-network without the draft, paired over rounds.
        texts: Texts of the rounds, at the run's precision.
        exact: Texts computed in fp32, where rounding decides nothing; None where that was not tried.
    """

    arm: str
    case: Case
    assistant_tokens: int
    drafted: int
    accepted: int
    acceptance: float | None
    tokens_per_pass: float
    draft_cost: float
    pass_cost: float
    predicted: float | None
    measured: Speedup
    texts: Texts
    exact: Texts | None

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted tokens of all that were proposed, those behind a refused one included, as openvino_genai counts."""
        return self.accepted / self.drafted if self.drafted else None


def tokens_per_pass(acceptance: float, ahead: int) -> float:
    """Tokens that a pass of the main model is expected to give, its own included.

    Args:
        acceptance: α.
        ahead: k.

    Returns:
        The sum of α^i for i from 0 to k.
    """
    return sum(acceptance**i for i in range(ahead + 1))


def predicted_speedup(acceptance: float, ahead: int, cost: float) -> float:
    """How many times as fast decoding is expected to be.

    Args:
        acceptance: α.
        ahead: k.
        cost: c.

    Returns:
        The speed-up; below 1 it is slower.
    """
    return tokens_per_pass(acceptance, ahead) / (ahead * cost + 1)


def acceptance(found: Iterable[Speculated], ahead: int) -> float | None:
    """α: a pass tells of each proposal until the first that is refused, as trials that succeed with one chance.

    Args:
        found: What was done in each generation.
        ahead: k.

    Returns:
        The maximum-likelihood estimate, accepted / (accepted + refused); None where nothing was proposed. A draft that stops by
        itself before k tokens (it proposed the end of the text) counts as refused.
    """
    accepted = refused = 0
    for one in found:
        left = sum(one.steps) - one.steps[0]
        for given in one.steps[1:]:
            proposed = min(ahead, left - 1)  # the last token is the main model's own
            accepted += given - 1
            refused += given - 1 < proposed
            left -= given
    return accepted / (accepted + refused) if accepted + refused else None


def compared(with_draft: Sequence[Sequence[int]], without: Sequence[Sequence[int]]) -> Texts:
    """Compare texts.

    Args:
        with_draft: Token ids of each, [tokens].
        without: Those of the same prompts without a draft, of the same lengths.

    Returns:
        What is equal.
    """
    places = [
        next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)
        for one, other in zip(with_draft, without, strict=True)
    ]
    differing = tuple(place for place in places if place is not None)
    return Texts(len(places), len(places) - len(differing), differing)


def speculations(
    sessions: Sequence[Measured], arms: Sequence[Arm], cases: Sequence[Case], exact: Mapping[tuple[str, Case], Texts]
) -> list[Speculation]:
    """What speculative decoding gave.

    Args:
        sessions: What was measured.
        arms: The arms.
        cases: The settings.
        exact: What was found in fp32, by arm and case.

    Returns:
        One for each arm with a draft and case that was measured beside the sub-network.
    """
    return [
        _speculation(session, arm, case, exact.get((arm.name, case)))
        for case in cases
        for arm in arms
        for session in sessions
        if arm.draft and session.paired(SUBNET, arm.name, case, lambda timing: timing.tpot)[0]
    ]


def _speculation(session: Measured, arm: Arm, case: Case, exact: Texts | None) -> Speculation:
    plain, drafted, starts = session.paired(SUBNET, arm.name, case, lambda timing: timing.tpot)
    found = [timing.speculated for timing in session.timings(arm.name, case) if timing.speculated]
    alpha, tpot = acceptance(found, arm.assistant_tokens), statistics.median(plain)
    passes = [step for one in found for step in one.steps[1:]]
    cost = statistics.median(one.draft_seconds for one in found) / tpot
    return Speculation(
        arm=arm.name,
        case=case,
        assistant_tokens=arm.assistant_tokens,
        drafted=sum(one.drafted for one in found),
        accepted=sum(one.accepted for one in found),
        acceptance=alpha,
        tokens_per_pass=statistics.fmean(passes),
        draft_cost=cost,
        pass_cost=statistics.median(one.main_seconds for one in found) / tpot,
        predicted=None if alpha is None else predicted_speedup(alpha, arm.assistant_tokens, cost),
        measured=speedup(plain, drafted, starts),
        texts=_texts(session, arm.name, case),
        exact=exact,
    )


def _texts(session: Measured, arm: str, case: Case) -> Texts:
    of: dict[str, dict[int, Sample]] = {SUBNET: {}, arm: {}}
    for sample in session.samples:
        if sample.case == case and sample.arm in of:
            of[sample.arm][sample.round] = sample
    rounds = sorted(of[arm].keys() & of[SUBNET].keys())
    theirs, ours = ([of[name][number].timing.answers[0] for number in rounds] for name in (arm, SUBNET))
    return compared(theirs, ours)


def exact_texts(
    arms: Sequence[Arm], cases: Sequence[Case], prompts: Prompter, place: Placement
) -> dict[tuple[str, Case], Texts]:
    """Compare texts in fp32, where a pass over several tokens differs from one over a single token in the last bits alone.

    Args:
        arms: The sub-network first; those with a draft are compared with it.
        cases: The settings.
        prompts: Gives the prompts.
        place: Where the arms compute.

    Returns:
        By arm and case; an arm that cannot be computed in fp32 is left out.
    """
    speculative = [arm for arm in arms if arm.draft]
    given = {case: [prompts.next(case) for _ in range(EXACT_PROMPTS)] for case in cases if case.batch_size == 1}
    answers: dict[tuple[str, Case], list[tuple[int, ...]]] = {}
    for arm in [arms[0], *speculative] if speculative else []:
        try:
            with ArmProcess(replace(arm, properties={**arm.properties, **EXACT}), place) as process:
                process.wait_loaded()
                for case, asked in given.items():
                    answers[arm.name, case] = [process.run(one, case.new_tokens).answers[0] for one in asked]
        except ArmFailedError:
            continue
    return {
        (arm.name, case): compared(answers[arm.name, case], answers[arms[0].name, case])
        for arm in speculative
        for case in given
        if (arm.name, case) in answers and (arms[0].name, case) in answers
    }
