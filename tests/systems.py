"""What tests need of the system that not every one has."""

import os
import signal

import pytest

SIGNALS = pytest.mark.skipif(os.name != "posix", reason="Windows sends no signals to other processes")
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)


def may_write_anywhere() -> bool:
    """Whether permissions of files and directories do not stop who runs the test: root, or anybody on Windows."""
    return not hasattr(os, "geteuid") or os.geteuid() == 0
