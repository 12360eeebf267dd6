"""The search space and what follows from configurations alone: no weights, no torch."""
