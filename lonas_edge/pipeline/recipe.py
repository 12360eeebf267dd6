"""`recipe.yaml`: the options of a run with all defaults resolved, for `--config`; and what they were used with."""

from collections.abc import Mapping
from typing import Any

from lonas_edge.options import RECIPE as SECTION

RECIPE = "recipe.yaml"


def recipe_text(options: Mapping[str, Any], sha256: Mapping[str, str], versions: Mapping[str, str]) -> str:
    """Write a recipe as YAML.

    Args:
        options: Values by option name; those that are None are not written.
        sha256: Hashes of the inputs by name.
        versions: Versions of packages by name.
    """
    import yaml

    described = {"versions": dict(versions), "sha256": dict(sha256)}
    chosen = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
    content: str = yaml.safe_dump({**chosen, SECTION: described}, sort_keys=False, allow_unicode=True)
    return f"# lonas-edge compress --config recipe.yaml repeats this run.\n{content}"
