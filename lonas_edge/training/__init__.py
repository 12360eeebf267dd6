"""Training: the side road that makes super-adapters."""
