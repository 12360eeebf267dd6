"""A draft for speculative decoding: a smaller network of the same tokens, whose proposals the main model checks in one pass.

openvino_genai (2026.4) takes it as a model of its own, with its own tokenizer (`openvino_genai.draft_model(DIR/draft)`), so
that a draft is an exported directory in the main model's. The method: Leviathan et al. 2023, arXiv:2211.17192.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.exporting.exported import open_exported
from lonas_edge.exporting.manifest import DRAFT, REWRITTEN
from lonas_edge.families import CAUSAL_LM
from lonas_edge.formats import DRAFT_FORMAT
from lonas_edge.network.source import Source
from lonas_edge.network.tokenizer import load_tokenizer, tokenizer_differences
from lonas_edge.space.subnetwork import Subnetwork


@dataclass(frozen=True)
class DraftOptions:
    """Which draft an export is to have: a sub-network of the same source, or a directory that was exported before.

    Attributes:
        subnetwork: The sub-network; None where there is a directory.
        folder: The directory; None where there is a sub-network.
        weight_format: How the sub-network's weights are stored, one of `FORMATS`.
    """

    subnetwork: Subnetwork | None = None
    folder: Path | None = None
    weight_format: str = DRAFT_FORMAT

    def bytes(self, source: Source) -> int:
        """Bytes of its weights, by its shapes.

        Args:
            source: What a sub-network is of.

        Returns:
            The bytes.
        """
        if self.folder is None:
            return source.sizes(self.subnetwork or source.unpruned).bytes[self.weight_format]
        own = open_exported(self.folder).own_manifest
        return own.sizes.subnetwork.bytes[own.weight_format]


def check_draft(source: Source, asked: DraftOptions, tokenizer: Any) -> None:
    """Refuse a draft that openvino_genai does not run beside the main model, or that proposes other tokens.

    Args:
        source: Base model, adapter and search space of the main model.
        asked: The draft.
        tokenizer: The main model's tokenizer, or None.

    Raises:
        LonasEdgeError: If the main model or the draft is no language model, there is no tokenizer, or the draft's is another.
    """
    source.architecture.require(CAUSAL_LM, "--draft")
    if tokenizer is None:
        raise LonasEdgeError(f"{source.base.folder}: has no tokenizer, without which openvino_genai takes no draft")
    if asked.folder:
        _check_folder(asked.folder, tokenizer, source.base.folder)


def _check_folder(folder: Path, tokenizer: Any, main: Path) -> None:
    found = open_exported(folder, task=CAUSAL_LM)
    if found.own_manifest.draft:
        raise LonasEdgeError(f"{folder}: has a draft of its own, which cannot be a draft's; name {folder / DRAFT}, or another")
    theirs = load_tokenizer(folder)
    if theirs is None:
        raise LonasEdgeError(f"{folder}: has no tokenizer; export it again from a base that has one")
    raise_all(
        f"{folder}: the draft's tokenizer is not the main model's ({main}):",
        tokenizer_differences(theirs, tokenizer),
        "What a draft proposes are numbers of tokens, which must mean the same. Take a draft of the same tokenizer.",
    )


def no_smaller(source: Source, subnetwork: Subnetwork, weight_format: str, asked: DraftOptions) -> str | None:
    """A warning, where a draft is no smaller than the main model: it gains nothing then.

    Args:
        source: Base model, adapter and search space of the main model.
        subnetwork: Its sub-network.
        weight_format: How its weights are stored.
        asked: The draft.

    Returns:
        The warning, or None.
    """
    own, theirs = source.sizes(subnetwork).bytes[weight_format], asked.bytes(source)
    if theirs < own:
        return None
    told = "larger than" if theirs > own else "as large as"
    return (
        f"warning: the draft is {told} the main model ({theirs / 1e6:,.1f} MB, the main model {own / 1e6:,.1f} MB of weights): "
        "each token takes longer with it than without."
    )


def copy_draft(asked: Path, folder: Path) -> None:
    """Take a directory that was exported before as the draft.

    Args:
        asked: The directory.
        folder: Where the draft belongs; nothing is there.
    """
    files = open_exported(asked).own_manifest.files  # not what a user has put beside them
    names = [path.name for path in filter(Path.is_file, asked.iterdir())] if files is None else [*files, *REWRITTEN]
    for name in names:
        if (asked / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(asked / name, folder / name)
