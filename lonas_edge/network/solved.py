"""Record of a least-squares reconstruction."""

from dataclasses import dataclass

SOLVE_PROMPTS = 512  # by default


@dataclass(frozen=True)
class Solved:
    """Result of a least-squares reconstruction.

    Attributes:
        data: Name of the prompts' file.
        sha256: Its hash.
        prompts: Number of prompts.
        tokens: Number of their tokens.
        shrinkage: Regularization towards the trained weights.
        held_out: Number of prompts for the evaluation.
        before: Mean KL from the maximal network on those without the correction, in nats per position.
        after: The same with the correction.
        kept: Whether the correction is used: not if it made the KL worse.
    """

    data: str
    sha256: str
    prompts: int
    tokens: int
    shrinkage: float
    held_out: int
    before: float
    after: float
    kept: bool

    @property
    def told(self) -> str:
        """The result in a sentence."""
        effect = f"{self.before:.3f} nats without, {self.after:.3f} with"
        kept = "Least-squares reconstruction" if self.kept else "No correction, since least squares was no better"
        on = f"{self.prompts:,} prompts of `{self.data}`"
        return f"{kept} ({on}; mean KL from the maximal network on {self.held_out} held-out prompts: {effect})."
