"""Publish a directory on a model hub: check it, list its files, and upload them in one commit."""

import json
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from lonas_edge.errors import LonasEdgeError, one_line, raise_all
from lonas_edge.exporting.exported import CHANGING, UNTUNED, file_faults
from lonas_edge.exporting.manifest import CARD, MANIFEST, Manifest
from lonas_edge.files import TEXT_LIMIT, exists, read_text
from lonas_edge.network.adapters import CONFIG, adapter_file
from lonas_edge.network.source import TRAINING
from lonas_edge.network.training_record import TrainingRecord

RECORDS = (MANIFEST, TRAINING)  # a published directory has one of them, and so has a repository that may be replaced
_OF_THE_HUB = (".gitattributes",)  # files that the hub puts into a new repository
_NOT_OURS = (".git", ".cache", CHANGING, UNTUNED)  # of git, of the hub's client, which refuses both, and of killed runs
_SECRET_FILES = (
    *(".env", ".env.*", ".netrc", "_netrc", ".git-credentials", ".npmrc", ".pypirc", "*.pem", "*.key", "*.p12", "*.pfx"),
    *("id_rsa*", "id_ed25519*", "id_ecdsa*", "token", "*.token", "credentials", "credentials.json", "stored_tokens"),
)
_SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,})",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "an OpenAI key": r"\bsk-(?:proj-)?[A-Za-z0-9]{32,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
}
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.png")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "vocab.txt")  # /home/x may be a token
# a path in a text, of directories where people work; not the end of an address such as https://host/home/x
_LOCAL_PATH = re.compile(
    r"(?<![\w./:-])(?:/(?:home|Users|root|tmp|mnt|media|work|workspace|scratch|data|opt|var|srv|content|private)/[\w.+-]"
    r"|[A-Za-z]:\\{1,2}Users\\|file://)[^\s\"'`<>|)]*"
)
_WHOLE_PATH = re.compile(r"(?:/[^/\s]+){2,}/?|~[\w-]*/\S+|[A-Za-z]:[\\/]\S+|\\\\\S+")  # a JSON value that is a path
_HEADER_LIMIT = 2**27  # bytes of a safetensors header, as in the library


@dataclass(frozen=True)
class Upload:
    """A checked directory, the bytes of its files by their path, and the first line of its model card."""

    folder: Path
    files: dict[str, int]
    title: str


@dataclass(frozen=True)
class Published:
    """Address and commit of a published directory."""

    url: str
    commit: str


def prepare(folder: Path) -> Upload:
    """Check an exported directory or a super-adapter before it is published. Nothing is sent.

    Raises:
        LonasEdgeError: If it is neither, is damaged, or seems to contain a secret or a path of this machine; all are listed.
    """
    if not folder.is_dir():
        raise LonasEdgeError(f"{folder}: no such directory; expected one that `lonas-edge export` or `train` wrote")
    fixed = _require_undamaged(folder)
    paths, faults = _regular_files(folder)
    by_name = {name: list(_file_faults(path, name in fixed)) for name, path in paths.items()}
    faults += [f"{name}: {fault}" for name, found in by_name.items() for fault in found]
    hint = "Nothing was sent. Remove or correct these files, and push again."
    if wrong := [name for name in sorted(fixed) if by_name.get(name)]:
        hint += f" Do not edit {', '.join(wrong)}: correct the base model or adapter, and export or train again."
    raise_all(f"{folder}: cannot be published:", faults, hint)
    card = read_text(folder / CARD, "the model card")
    title = next((line.removeprefix("# ") for line in card.splitlines() if line.startswith("# ")), folder.name)
    return Upload(folder, {name: path.stat().st_size for name, path in paths.items()}, title)


def _require_undamaged(folder: Path) -> set[str]:
    """Refuse another or a damaged directory; return the files that must stay as they were written."""
    if (folder / MANIFEST).exists():
        manifest = Manifest.read(folder / MANIFEST)
        fixed, faults = set(manifest.files), file_faults(folder, manifest)
    elif (folder / TRAINING).exists():
        TrainingRecord.read(folder / TRAINING)
        fixed, faults = {TRAINING}, [] if (folder / CONFIG).exists() else [f"{CONFIG}: missing"]
        adapter_file(folder)
    else:
        raise LonasEdgeError(
            f"{folder}: neither {MANIFEST} nor {TRAINING}; expected a directory that `lonas-edge export` or `train` wrote"
        )
    faults += [] if (folder / CARD).exists() else [f"{CARD}: missing (the model card)"]
    raise_all(f"{folder}: damaged:", faults, "Export or train it again.")
    return fixed


def _regular_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return all files by name, without `_NOT_OURS`, and faults: links and special files."""
    paths, faults = {}, []
    for path in sorted(folder.rglob("*")):
        if any(part in _NOT_OURS for part in path.relative_to(folder).parts):
            continue
        name = path.relative_to(folder).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            paths[name] = path
        elif not stat.S_ISDIR(mode):
            faults.append(f"{name}: {'a link' if stat.S_ISLNK(mode) else 'not a file'}; replace it by the file itself")
    return paths, faults


def _file_faults(path: Path, fixed: bool) -> Iterator[str]:
    """List secrets and paths in a file. A `fixed` one has texts of a base model, whose paths may be of other machines."""
    if any(fnmatch(path.name.lower(), pattern) for pattern in _SECRET_FILES):
        yield "files of this name contain secrets"
        return
    weights = any(fnmatch(path.name, pattern) for pattern in _WEIGHTS)
    if weights and path.suffix != ".safetensors":
        return
    text = _header(path) if weights else _text(path)
    for what, pattern in _SECRETS.items():
        if match := re.search(pattern, text):
            yield f"line {_line(text, match)} seems to contain {what}, {match[0][:6]}…"
    if path.name in _VOCABULARIES:
        return
    paths = [f"{where}: {local}" for where, local in _local_paths(path, text) if not fixed or _is_here(local)]
    if paths:
        more = f", and {len(paths) - 1} more" if len(paths) > 1 else ""
        yield f"contains a path of this machine: {one_line(paths[0])}{more}"


def _local_paths(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """Find paths of this machine, with their line or their position in a JSON document."""
    values: list[tuple[str, str]] = []
    if path.suffix == ".json":
        with suppress(ValueError):
            values = list(_values(json.loads(text)))
    for where, value in values:
        if match := _WHOLE_PATH.fullmatch(value) or _LOCAL_PATH.search(value):
            yield where, match[0]
    if not values:
        yield from ((f"line {_line(text, match)}", match[0]) for match in _LOCAL_PATH.finditer(text))


def _is_here(text: str) -> bool:
    """Whether a path, perhaps with punctuation after it, exists, or lies in the home or the working directory."""
    path, roots = Path(text.removeprefix("file://").rstrip(".,;:!?)]}")), []
    for root in (Path.home, Path.cwd):
        with suppress(OSError, RuntimeError):  # a user without a home; a deleted working directory
            roots.append(root())
    with suppress(RuntimeError):  # no such user
        path = path.expanduser()
    return exists(path) or any(path.is_relative_to(root) for root in roots if root != root.parent)


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(TEXT_LIMIT).decode("utf-8", "replace")


def _header(path: Path) -> str:
    """Read the header of a safetensors file, which contains its metadata."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(min(length, _HEADER_LIMIT)).decode("utf-8", "replace")


def _line(text: str, match: "re.Match[str]") -> int:
    return text.count("\n", 0, match.start()) + 1


def _values(content: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield field names and text values of a JSON document, with their positions."""
    if isinstance(content, str):
        yield where, content
    named = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, inner in named:
        if isinstance(name, str):
            yield f"the name of a field in {where or 'the object'}", name
        yield from _values(inner, f"{where}.{name}".lstrip("."))


def push(
    upload: Upload,
    repo_id: str,
    private: bool = False,
    overwrite: bool = False,
    message: str | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Published:
    """Publish a directory as a model repository, in one commit: all of its files appear, or none.

    `repo_id` is owner/name; the repository is created if it does not exist, privately if `private`. `overwrite` replaces a
    repository that lonas-edge wrote; its other files are deleted in the same commit.
    """
    require_name(repo_id)
    if not get_token():
        raise LonasEdgeError(f"{repo_id}: no token for the hub. Run `hf auth login`, or set HF_TOKEN. Nothing was sent.")
    api = HfApi()
    report(f"Looking up {repo_id}")
    with _hub_errors(repo_id):
        head, existing = _repository(api, repo_id, private)
    _refuse_repository(repo_id, existing, overwrite)
    operations = _operations(upload, repo_id, existing)
    if head is None:
        with _hub_errors(repo_id):
            api.create_repo(repo_id, repo_type="model", private=private, exist_ok=False)
    size = sum(upload.files.values())
    report(f"Uploading {len(upload.files)} files, {size / 1e6:,.1f} MB")
    with _hub_errors(repo_id):
        done = api.create_commit(
            repo_id,
            operations,
            commit_message=message or f"{upload.title}, by lonas-edge",
            repo_type="model",
            parent_commit=head,
        )
    return Published(str(done.repo_url), str(done.oid))


def _operations(upload: Upload, repo_id: str, existing: list[str]) -> list[Any]:
    """Return the parts of the commit; the client reads and checks the files, before a repository is created."""
    try:
        added: list[Any] = [CommitOperationAdd(name, upload.folder / name) for name in upload.files]
    except (OSError, ValueError) as error:
        raise LonasEdgeError(f"{repo_id}: a file cannot be sent: {one_line(str(error))}. Nothing was sent.") from error
    return added + [CommitOperationDelete(name) for name in existing if name not in upload.files]


def require_name(repo_id: str) -> None:
    """Refuse a text that is no name of a repository, owner/name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise LonasEdgeError(f"{repo_id}: not a repository name: {one_line(str(error))}") from None
    if "/" not in repo_id:
        raise LonasEdgeError(f"{repo_id}: expected owner/name, the owner a user or an organization of the hub")


def _repository(api: HfApi, repo_id: str, private: bool) -> tuple[str | None, list[str]]:
    """Return a repository's commit and its files without the hub's own; None if there is no repository."""
    try:
        info = api.model_info(repo_id)
    except RepositoryNotFoundError:
        return None, []
    if private and not info.private:
        raise LonasEdgeError(f"{repo_id}: exists and is public; --private applies to new repositories. Nothing was sent.")
    return info.sha, [file.rfilename for file in info.siblings or [] if file.rfilename not in _OF_THE_HUB]


def _refuse_repository(repo_id: str, existing: list[str], overwrite: bool) -> None:
    if not existing:
        return
    if not overwrite:
        raise LonasEdgeError(
            f"{repo_id}: exists and has {len(existing)} files. Choose another name, or pass --overwrite. Nothing was sent."
        )
    if not set(RECORDS) & set(existing):
        raise LonasEdgeError(
            f"{repo_id}: --overwrite replaces only repositories that lonas-edge wrote; this one has "
            f"{', '.join(sorted(existing)[:3])} and neither {' nor '.join(RECORDS)}. Choose another name. Nothing was sent."
        )


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Translate errors of the hub's client, whose first line is the hub's answer."""
    try:
        yield
    except (LonasEdgeError, MemoryError):
        raise
    except LocalTokenNotFoundError as error:
        raise LonasEdgeError(f"{repo_id}: no token for the hub. Run `hf auth login`, or set HF_TOKEN.") from error
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = one_line((str(error).strip().splitlines() or [type(error).__name__])[0])
        advice = "Push again; files that the hub has already are not sent again."
        if status in (401, 403):
            advice = "Check that the token is valid and may write there: `hf auth login`, or HF_TOKEN."
        elif status is None:
            advice = f"Check the network, and that HF_HUB_OFFLINE is not set. {advice}"
        raise LonasEdgeError(
            f"{repo_id}: the hub refused: {type(error).__name__}: {reason}\nNothing of this push is visible there. {advice}"
        ) from error
