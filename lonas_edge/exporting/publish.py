"""What lonas-edge wrote, published on a model hub: checked, listed, and uploaded in one commit."""

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
from lonas_edge.exporting.exported import file_faults
from lonas_edge.exporting.manifest import CARD, MANIFEST, Manifest
from lonas_edge.files import TEXT_LIMIT, read_text
from lonas_edge.network.adapters import CONFIG, adapter_file
from lonas_edge.network.source import TRAINING
from lonas_edge.network.training_record import TrainingRecord

RECORDS = (MANIFEST, TRAINING)  # a directory that is published has one of them, and so has a repository that is replaced
_OF_THE_HUB = (".gitattributes",)  # what the hub puts into a new repository by itself
_SECRET_FILES = (
    *(".env", ".env.*", ".netrc", "_netrc", ".git-credentials", ".npmrc", ".pypirc", "*.pem", "*.key", "*.p12", "*.pfx"),
    *("id_rsa*", "id_ed25519*", "id_ecdsa*", "token", "*.token", "credentials", "credentials.json", "stored_tokens"),
)
_SECRETS = {
    "a token of Hugging Face": r"\bhf_[A-Za-z0-9]{30,}",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,})",
    "a key of AWS": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a key of OpenAI": r"\bsk-(?:proj-)?[A-Za-z0-9]{32,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
}
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.png")
_TOKENS = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "vocab.txt")  # tokens may be called /home/x
# a path in a text, of the places where people work; not the end of an address such as https://host/home/x
_PLACES = re.compile(
    r"(?<![\w./:-])(?:/(?:home|Users|root|tmp|mnt|media|work|workspace|scratch|data|opt|var|srv|content|private)/[\w.+-]"
    r"|[A-Za-z]:\\{1,2}Users\\|file://)[^\s\"'`<>|)]*"
)
_WHOLE_PATH = re.compile(r"(?:/[^/\s]+){2,}/?|~[\w-]*/\S+|[A-Za-z]:[\\/]\S+|\\\\\S+")  # a JSON value that is one
_HEADER_LIMIT = 2**27  # bytes of a safetensors header, as the library has it


@dataclass(frozen=True)
class Upload:
    """What would be published.

    Attributes:
        folder: The directory.
        files: Its files, by their path in it and in the repository, with their bytes.
        title: The first line of the model card.
    """

    folder: Path
    files: dict[str, int]
    title: str


@dataclass(frozen=True)
class Published:
    """What was published: where it is to be seen, and the commit."""

    url: str
    commit: str


def prepare(folder: Path) -> Upload:
    """Look at a directory that is to be published. Nothing is sent.

    Args:
        folder: An exported directory or a super-adapter.

    Returns:
        What would be published.

    Raises:
        LonasEdgeError: If it is neither, or is not whole, or holds what looks like a secret, or tells a place on this machine;
            every fault is listed.
    """
    if not folder.is_dir():
        raise LonasEdgeError(f"{folder}: no such directory; expected one that `lonas-edge export` or `train` wrote")
    _require_whole(folder)
    paths, faults = _found(folder)
    faults += [f"{name}: {fault}" for name, path in paths.items() for fault in _file_faults(path)]
    raise_all(
        f"{folder}: not fit to be published:",
        faults,
        "Nothing was sent. Take them out, or correct them, and push again; what once was public stays known.",
    )
    card = read_text(folder / CARD, "the model card")
    title = next((line.removeprefix("# ") for line in card.splitlines() if line.startswith("# ")), folder.name)
    return Upload(folder, {name: path.stat().st_size for name, path in paths.items()}, title)


def _require_whole(folder: Path) -> None:
    if (folder / MANIFEST).exists():
        faults = file_faults(folder, Manifest.read(folder / MANIFEST))
    elif (folder / TRAINING).exists():
        TrainingRecord.read(folder / TRAINING)
        faults = [] if (folder / CONFIG).exists() else [f"{CONFIG}: missing"]
        adapter_file(folder)
    else:
        raise LonasEdgeError(
            f"{folder}: neither {MANIFEST} nor {TRAINING}; expected a directory that `lonas-edge export` or `train` wrote"
        )
    faults += [] if (folder / CARD).exists() else [f"{CARD}: missing, the model card"]
    raise_all(f"{folder}: damaged:", faults, "Export or train it again.")


def _found(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """All files, and what is no file of its own."""
    paths, faults = {}, []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            paths[name] = path
        elif not stat.S_ISDIR(mode):
            faults.append(f"{name}: {'a link' if stat.S_ISLNK(mode) else 'no file'}; put the file itself there")
    return paths, faults


def _file_faults(path: Path) -> Iterator[str]:
    if any(fnmatch(path.name.lower(), pattern) for pattern in _SECRET_FILES):
        yield "files of that name hold secrets"
        return
    weights = any(fnmatch(path.name, pattern) for pattern in _WEIGHTS)
    if weights and path.suffix != ".safetensors":
        return
    text = _header(path) if weights else _text(path)
    for what, pattern in _SECRETS.items():
        if found := re.search(pattern, text):
            yield f"line {_line(text, found)} holds what looks like {what}, {found[0][:6]}…"
    if path.name in _TOKENS:
        return
    paths = [f"{place}: {told}" for place, told in _places(path, text)]
    if paths:
        more = f", and {len(paths) - 1} more" if len(paths) > 1 else ""
        yield f"tells a place on this machine: {one_line(paths[0])}{more}"


def _places(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """What tells a place on this machine, with where it stands: a line, or a value of a JSON document."""
    values: list[tuple[str, str]] = []
    if path.suffix == ".json":
        with suppress(ValueError):
            values = list(_values(json.loads(text)))
    for place, value in values:
        if found := _WHOLE_PATH.fullmatch(value) or _PLACES.search(value):
            yield place, found[0]
    if not values:
        yield from ((f"line {_line(text, found)}", found[0]) for found in _PLACES.finditer(text))


def _text(path: Path) -> str:
    """What no weights are: text, and of anything else the bytes that are letters."""
    with path.open("rb") as file:
        return file.read(TEXT_LIMIT).decode("utf-8", "replace")


def _header(path: Path) -> str:
    """The header of a safetensors file, in which its metadata is."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(min(length, _HEADER_LIMIT)).decode("utf-8", "replace")


def _line(text: str, found: "re.Match[str]") -> int:
    return text.count("\n", 0, found.start()) + 1


def _values(content: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of a JSON document that are text, with where they are."""
    if isinstance(content, str):
        yield place, content
    named = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, inner in named:
        if isinstance(name, str):
            yield f"the name of a field in {place or 'the object'}", name
        yield from _values(inner, f"{place}.{name}".lstrip("."))


def push(
    upload: Upload,
    repo_id: str,
    private: bool = False,
    overwrite: bool = False,
    message: str | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Published:
    """Publish a directory as a model repository, in one commit: all of its files appear, or none.

    Args:
        upload: What `prepare` gave.
        repo_id: The repository, owner/name; made where there is none.
        private: Whether a new repository is private; one that is there must be, then.
        overwrite: Whether a repository that lonas-edge's files are in is replaced: in the same commit, what else is in it goes.
        message: Of the commit.
        report: Called with what is being done.

    Returns:
        Where it is.

    Raises:
        LonasEdgeError: If there is no token, the hub cannot be reached or refuses, or the repository is there and may not be
            replaced. The repository is as it was, or new and empty.
    """
    _require_name(repo_id)
    if not get_token():
        raise LonasEdgeError(f"{repo_id}: no token for the hub. `hf auth login` keeps one, or set HF_TOKEN. Nothing was sent.")
    api = HfApi()
    report(f"Asking the hub for {repo_id}")
    with _told(repo_id):
        head, there = _repository(api, repo_id, private)
    _refuse_repository(repo_id, there, overwrite)
    if head is None:
        with _told(repo_id):
            api.create_repo(repo_id, repo_type="model", private=private, exist_ok=False)
    size = sum(upload.files.values())
    report(f"Uploading {len(upload.files)} files, {size / 1e6:,.1f} MB")
    operations: list[Any] = [CommitOperationAdd(name, upload.folder / name) for name in upload.files]
    operations += [CommitOperationDelete(name) for name in there if name not in upload.files]
    with _told(repo_id):
        done = api.create_commit(
            repo_id,
            operations,
            commit_message=message or f"{upload.title}, by lonas-edge",
            repo_type="model",
            parent_commit=head,
        )
    return Published(str(done.repo_url), str(done.oid))


def _require_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise LonasEdgeError(f"{repo_id}: not the name of a repository: {one_line(str(error))}") from None
    if "/" not in repo_id:
        raise LonasEdgeError(f"{repo_id}: expected owner/name, the owner a user or an organization of the hub")


def _repository(api: HfApi, repo_id: str, private: bool) -> tuple[str | None, list[str]]:
    """The commit that a repository is at, and its files but for the hub's own; None where there is no repository."""
    try:
        info = api.model_info(repo_id)
    except RepositoryNotFoundError:
        return None, []
    if private and not info.private:
        raise LonasEdgeError(f"{repo_id}: exists and is public; --private makes new repositories private. Nothing was sent.")
    return info.sha, [file.rfilename for file in info.siblings or [] if file.rfilename not in _OF_THE_HUB]


def _refuse_repository(repo_id: str, there: list[str], overwrite: bool) -> None:
    if not there:
        return
    if not overwrite:
        raise LonasEdgeError(
            f"{repo_id}: exists, with {len(there)} files, and is kept as it is. Choose another name, or give --overwrite. "
            "Nothing was sent."
        )
    if not set(RECORDS) & set(there):
        raise LonasEdgeError(
            f"{repo_id}: --overwrite replaces only what lonas-edge wrote; this holds {', '.join(sorted(there)[:3])}, and none "
            f"of its records ({', '.join(RECORDS)}). Choose another name. Nothing was sent."
        )


@contextmanager
def _told(repo_id: str) -> Iterator[None]:
    """The hub's client raises dozens of types; what the hub says is in their first line."""
    try:
        yield
    except (LonasEdgeError, MemoryError):
        raise
    except LocalTokenNotFoundError as error:
        raise LonasEdgeError(f"{repo_id}: no token for the hub. `hf auth login` keeps one, or set HF_TOKEN.") from error
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = one_line((str(error).strip().splitlines() or [type(error).__name__])[0])
        way_out = "Push again; what the hub has already is not sent again."
        if status in (401, 403):
            way_out = "The token must be valid and may write there: `hf auth login`, or HF_TOKEN."
        elif status is None:
            way_out = f"Is the network there, and HF_HUB_OFFLINE not set? {way_out}"
        raise LonasEdgeError(
            f"{repo_id}: the hub did not take it: {type(error).__name__}: {reason}\n"
            f"Nothing of this push is to be seen there. {way_out}"
        ) from error
