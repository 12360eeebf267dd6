"""Find models and adapters: directories, or repositories of the Hugging Face hub."""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from lonas_edge.data.logit_score import read_logit_score
from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import check_model_folder, json_sha256, sha256
from lonas_edge.network import adapters
from lonas_edge.network.adapters import AdapterConfig
from lonas_edge.network.channel_order import FILE as ORDER
from lonas_edge.network.checkpoints import open_tensors

SEARCH_SPACE = "nncf_config.json"  # a super-adapter directory keeps its search space under this name
TRAINING = "training.json"  # and the record of its training under this one
_SENTENCE_FILES = [
    "modules.json",
    "*_Pooling/config.json",
    "*_LogitScore/config.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
]
_CONFIG_FILES = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    adapters.CONFIG,
    SEARCH_SPACE,
    ORDER,
    TRAINING,
    *_SENTENCE_FILES,
]
_WEIGHT_FILES = ["*.safetensors", "*.bin", "*.json", "*.model", "*.jinja", "*.txt"]
_OTHER_FORMATS = ["openvino/*", "onnx/*"]  # directories of sentence-transformers' repositories


@dataclass(frozen=True)
class Located:
    """A model on this disk. `name` is publishable: a hub id or a directory's last part; `revision` is set for a hub model."""

    name: str
    folder: Path
    revision: str | None = None

    @property
    def reference(self) -> str:
        """The directory or hub id, quoted for a shell."""
        return shlex.quote(self.name if self.revision else str(self.folder))


def locate(reference: str, weights: bool, revision: str | None = None) -> Located:
    """Find a model or an adapter: a directory, or a hub id (downloaded, or from the hub's cache).

    Args:
        reference: The directory, or the hub id, which may end in `@REVISION`: a branch, tag or commit.
        weights: Whether weights are needed, or only configurations.
        revision: The revision of a hub id that names none.
    """
    folder = Path(reference)
    if folder.is_dir():
        located = Located(folder.resolve().name, folder)
    elif folder.exists():
        raise LonasEdgeError(f"{reference}: a file; expected the directory of a model or an adapter, or a hub id")
    else:
        located = _download(reference, weights, revision)
    check_model_folder(located.folder)
    return located


def _download(reference: str, weights: bool, revision: str | None) -> Located:
    name, _, named = reference.rpartition("@")
    if name and named:
        if Path(name).exists():
            raise LonasEdgeError(f"{reference}: {name} is a local path; revisions exist on the hub only. Omit @{named}.")
        reference, revision = name, named
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        patterns = _WEIGHT_FILES if weights else _CONFIG_FILES
        snapshot = snapshot_download(reference, revision=revision, allow_patterns=patterns, ignore_patterns=_OTHER_FORMATS)
    except HFValidationError:
        raise LonasEdgeError(f"{reference}: no such directory, and not a hub id (owner/name or owner/name@REVISION)") from None
    except Exception as error:  # the hub client raises a dozen unrelated types; each means: not to be had
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        at = f"@{revision}" if revision else ""
        raise LonasEdgeError(f"{reference}{at}: no such directory, and not available from the hub: {reason}") from error
    return Located(reference, Path(snapshot), Path(snapshot).name)


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of the configuration and the weights of a model or an adapter, by file name."""
    if (folder / adapters.CONFIG).exists():
        files = [folder / adapters.CONFIG, adapters.adapter_file(folder)]
    else:
        files = [folder / "config.json", *open_tensors(folder).files]
    hashes = {path.name: sha256(path) for path in files}
    if score := read_logit_score(folder):
        hashes["LogitScore"] = json_sha256(asdict(score))
    return hashes


def locate_base(config: AdapterConfig, ours: bool, model: str | None, weights: bool) -> Located:
    """Find the base of an adapter, of one by `train` (`ours`) by its path from there; `model` goes before the named one."""
    reference = model or config.lora.base_model_name_or_path
    if not reference:
        raise LonasEdgeError(f"{config.path}: names no base model; pass --model")
    there = config.path.parent / reference
    if ours and not model and (there / "config.json").exists():
        check_model_folder(there)
        return Located(there.resolve().name, there)  # `train` names a base on this disk by its path from the super-adapter
    try:
        return locate(reference, weights, None if model else config.lora.revision)
    except LonasEdgeError as error:
        hint = "" if model else f" (named by {config.path}; pass --model for another)"
        raise LonasEdgeError(f"{error}{hint}") from error
