"""What solving a sub-network gave, as records keep it."""

from dataclasses import dataclass

SOLVE_PROMPTS = 512  # by default


@dataclass(frozen=True)
class Solved:
    """What solving the sub-network gave.

    Attributes:
        data: Name of the file of prompts.
        sha256: Its hash.
        prompts: How many it was solved on.
        tokens: How many tokens those have.
        shrinkage: How strongly weights were drawn to those that they had.
        held_out: How many prompts told what it gives.
        before: Mean KL from the maximal network on those, in nats a position, without the correction.
        after: With it.
        kept: Whether the correction was taken: not where it made the KL worse.
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
        """What it gave, in a sentence."""
        effect = f"{self.before:.3f} nats without, {self.after:.3f} with"
        kept = "What is cut was solved" if self.kept else "The cut is plain: solving made it no better"
        on = f"least squares on {self.prompts:,} prompts of `{self.data}`"
        return f"{kept} ({on}; mean KL from the maximal network, {self.held_out} held-out prompts: {effect})."
