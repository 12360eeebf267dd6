"""Faster imports of large libraries."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Pause garbage collection during imports, and exclude the imported objects from later collections.

    An export of SmolLM2-135M takes one second of fifteen less.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
