"""Versions of what a result depends on."""

import importlib.metadata
import sys
from collections.abc import Sequence


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions of packages, and Python's.

    Args:
        packages: Their names; those that are not installed are left out.

    Returns:
        Version by name.
    """
    found = {"python": sys.version.split()[0]}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
