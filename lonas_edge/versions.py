"""Versions of packages."""

import importlib.metadata
import sys
from collections.abc import Sequence


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions by name, Python's first; packages that are not installed are omitted."""
    installed = {"python": sys.version.split()[0]}
    for name in packages:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
