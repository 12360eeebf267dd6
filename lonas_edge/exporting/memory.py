"""Memory that optional parts of an export need in addition."""

import psutil

from lonas_edge.errors import LonasEdgeError


def require_memory(option: str, needed: float) -> None:
    """Refuse an option that needs more bytes of memory than are available."""
    available = psutil.virtual_memory().available
    if needed > available:
        raise LonasEdgeError(
            f"{option} holds the uncompressed sub-network in memory: it needs about {needed / 1e9:.1f} GB, "
            f"{available / 1e9:.1f} GB are available. Without {option}, weights are compressed one by one."
        )
