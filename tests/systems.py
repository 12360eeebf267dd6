"""Features of the operating system that tests need."""

import os
import signal

import pytest

SIGNALS = pytest.mark.skipif(os.name != "posix", reason="Windows sends no signals to other processes")
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)


def may_write_anywhere() -> bool:
    """Whether permissions do not restrict this user: root, or anybody on Windows."""
    return not hasattr(os, "geteuid") or os.geteuid() == 0
