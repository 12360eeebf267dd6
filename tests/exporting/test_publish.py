"""`lonas-edge push`, the hub faked: its client has the real one's signatures, and keeps repositories in a dictionary."""

import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tiny_models import TinyModels

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting import publish
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.publish import prepare, push
from lonas_edge.network.source import open_source

TOKEN = "hf_" + "a" * 34


def answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("POST", "https://hub.test/api"))


@dataclass
class Hub:
    """Repositories by name; each commit replaces the files. `failing` has the errors of calls that fail."""

    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    failing: dict[str, Exception] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        real, own = getattr(huggingface_hub.HfApi, name), getattr(type(self), f"_{name}")

        def call(*arguments: Any, **options: Any) -> Any:
            bound = inspect.signature(real).bind(None, *arguments, **options)  # a call that the real client would take
            self.calls.append(name)
            if name in self.failing:
                raise self.failing[name]
            return own(self, **{key: value for key, value in bound.arguments.items() if key != "self"})

        return call

    def _model_info(self, repo_id: str) -> Any:
        if repo_id not in self.repositories:
            raise RepositoryNotFoundError(f"404: {repo_id}", response=answer(404))
        actual = self.repositories[repo_id]
        siblings = [SimpleNamespace(rfilename=name) for name in actual["files"]]
        return SimpleNamespace(sha=actual["sha"], siblings=siblings, private=actual["private"])

    def _create_repo(self, repo_id: str, repo_type: str, private: bool, exist_ok: bool) -> None:
        assert repo_id not in self.repositories and not exist_ok and repo_type == "model"
        self.repositories[repo_id] = {"sha": "0", "files": {".gitattributes": b""}, "private": private}

    def _create_commit(
        self, repo_id: str, operations: list, commit_message: str, repo_type: str, parent_commit: str | None
    ) -> Any:
        actual = self.repositories[repo_id]
        assert parent_commit in (None, actual["sha"]), "somebody else pushed meanwhile"
        for operation in operations:
            if isinstance(operation, huggingface_hub.CommitOperationDelete):
                del actual["files"][operation.path_in_repo]
            else:
                actual["files"][operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()
        actual |= {"sha": str(int(actual["sha"]) + 1), "message": commit_message}
        return SimpleNamespace(repo_url=f"https://hub.test/{repo_id}", oid=actual["sha"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(publish, "HfApi", lambda: made)
    monkeypatch.setattr(publish, "get_token", lambda: TOKEN)
    return made


@pytest.fixture(scope="module")
def written(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported directory. Not to be changed."""
    folder, opened = tmp_path_factory.mktemp("push") / "out", open_source(str(tiny_models.base("llama")))
    export(opened, opened.select(None), folder, ExportOptions(stage="checkpoint", verify=False))
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "out"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_files_in_one_commit(folder: Path, hub: Hub, run_cli: Callable) -> None:
    ran = run_cli("push", folder, "me/network", "--private", "--json")
    assert ran.code == 0, ran.err
    message = json.loads(ran.out)
    assert message["url"] == "https://hub.test/me/network" and message["commit"] == "1"
    actual = hub.repositories["me/network"]
    assert actual["private"] and actual["files"] == {**contents(folder), ".gitattributes": b""}
    assert actual["files"]["README.md"].startswith(b"---\nlibrary_name: transformers")
    assert message["files"] == {name: len(content) for name, content in contents(folder).items()}
    assert actual["message"].startswith("base-llama, ") and actual["message"].endswith(", by lonas-edge")
    assert hub.calls == ["model_info", "create_repo", "create_commit"]


def test_a_dry_run_sends_nothing(folder: Path, hub: Hub, run_cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "get_token", lambda: None)
    ran = run_cli("push", folder, "me/network", "--dry-run")
    assert ran.code == 0 and not hub.calls and not hub.repositories
    assert all(name in ran.out for name in contents(folder)) and "nothing was sent (--dry-run)" in ran.out
    assert f"{(folder / 'model.safetensors').stat().st_size:,}" in ran.out


def test_the_name_is_checked_without_a_connection_too(folder: Path, hub: Hub, run_cli: Callable) -> None:
    ran = run_cli("push", folder, "network", "--dry-run")
    assert ran.code == 1 and "network: expected owner/name" in ran.err and not ran.out


def test_options_from_a_file(folder: Path, hub: Hub, run_cli: Callable, tmp_path: Path) -> None:
    """The directory has the name in the help."""
    (tmp_path / "push.yaml").write_text(f"dir: {folder}\nrepo: me/network\njson: true\n")
    ran = run_cli("push", "--config", tmp_path / "push.yaml")
    assert ran.code == 0, ran.err
    assert hub.repositories["me/network"]["files"].keys() == {*contents(folder), ".gitattributes"}


# the hub


def test_no_token(folder: Path, hub: Hub, run_cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "get_token", lambda: None)
    ran = run_cli("push", folder, "me/network")
    assert ran.code == 1 and "no token for the hub. Run `hf auth login`, or set HF_TOKEN" in " ".join(ran.err.split())
    assert not hub.calls


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ("model_info", httpx.ConnectError("[Errno -3] Temporary failure in name resolution"), "Check the network"),
        (
            "create_repo",
            HfHubHTTPError("401 Unauthorized", response=answer(401)),
            "Check that the token is valid and may write",
        ),
        ("create_commit", HfHubHTTPError("503 Service Unavailable", response=answer(503)), "Push again"),
        ("create_commit", RuntimeError("Data processing error"), "Push again"),
    ],
)
def test_errors_of_the_hub(call: str, error: Exception, message: str, folder: Path, hub: Hub) -> None:
    """There is no repository, or an empty one, which the next push fills."""
    hub.failing = {call: error}
    with pytest.raises(LonasEdgeError, match=rf"(?s)me/network: the hub refused: .*Nothing of this push.*{message}"):
        push(prepare(folder), "me/network")
    assert hub.repositories.get("me/network", {"files": {".gitattributes": b""}})["files"] == {".gitattributes": b""}
    hub.failing = {}
    push(prepare(folder), "me/network")
    assert hub.repositories["me/network"]["files"] == {**contents(folder), ".gitattributes": b""}


def test_a_repository_that_exists(folder: Path, hub: Hub) -> None:
    push(prepare(folder), "me/network")
    before = dict(hub.repositories["me/network"]["files"])
    hub.calls.clear()
    with pytest.raises(LonasEdgeError, match=r"me/network: exists and has \d+ files\..*--overwrite"):
        push(prepare(folder), "me/network")
    assert hub.calls == ["model_info"] and hub.repositories["me/network"]["files"] == before


def test_a_pushed_repository_is_replaced_in_one_commit(folder: Path, hub: Hub) -> None:
    push(prepare(folder), "me/network")
    hub.repositories["me/network"]["files"]["old.safetensors"] = b"of another network"
    push(prepare(folder), "me/network", overwrite=True, message="again")
    actual = hub.repositories["me/network"]
    assert (
        actual["files"] == {**contents(folder), ".gitattributes": b""} and actual["message"] == "again" and actual["sha"] == "2"
    )


def test_a_repository_of_others_is_not_replaced(folder: Path, hub: Hub) -> None:
    hub.repositories["me/thesis"] = {"sha": "7", "files": {"chapter.tex": b"", ".gitattributes": b""}, "private": False}
    with pytest.raises(LonasEdgeError, match=r"repositories that lonas-edge wrote; this one has chapter\.tex"):
        push(prepare(folder), "me/thesis", overwrite=True)
    assert set(hub.repositories["me/thesis"]["files"]) == {"chapter.tex", ".gitattributes"}


def test_private_needs_a_private_repository(folder: Path, hub: Hub) -> None:
    hub.repositories["me/open"] = {"sha": "7", "files": {}, "private": False}
    with pytest.raises(LonasEdgeError, match="exists and is public"):
        push(prepare(folder), "me/open", private=True)


def test_names_of_repositories(folder: Path, hub: Hub) -> None:
    for name in ("network", "me/net work"):
        with pytest.raises(LonasEdgeError, match=f"{name}: (not a repository name|expected owner/name)"):
            push(prepare(folder), name)
    assert not hub.calls


# the directory


def test_other_directories_are_refused(tmp_path: Path, tiny_models: TinyModels) -> None:
    with pytest.raises(LonasEdgeError, match="no such directory"):
        prepare(tmp_path / "nothing")
    with pytest.raises(LonasEdgeError, match=r"neither lonas_edge\.json nor training\.json; expected a directory that"):
        prepare(tiny_models.base("llama"))


def test_damaged_directories_are_refused(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "config.json").write_text("{}")
    with pytest.raises(LonasEdgeError, match=r"(?s)damaged:.*config\.json: changed.*README\.md: missing"):
        prepare(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (".env", "A=1", r"\.env: files of this name contain secrets"),
        ("sub/id_rsa", "x", "sub/id_rsa: files of this name contain secrets"),
        ("notes.txt", f"a\nuse {TOKEN}", r"notes\.txt: line 2 seems to contain a Hugging Face token, hf_aaa…"),
        ("notes.md", "-----BEGIN OPENSSH PRIVATE KEY-----", "line 1 seems to contain a private key"),
        ("run.sh", "export AWS=AKIA" + "A" * 16, "an AWS key"),
        ("run.yaml", "token: ghp_" + "b" * 36, "a GitHub token"),
        ("notes.md", "made in /home/somebody/models/x", "contains a path of this machine: line 1: /home/somebody/models/x"),
        ("notes.md", r"made in C:\Users\me\x", r"contains a path of this machine: line 1: C:\\Users\\me\\x"),
        ("more.json", '{"a": {"b": ["/srv2/models/base"]}}', r"contains a path of this machine: a\.b\.0: /srv2/models/base"),
        ("more.json", '{"a": "~/models"}', "contains a path of this machine: a: ~/models"),
    ],
)
def test_secrets_and_local_paths_are_refused(
    name: str, content: str, message: str, folder: Path, hub: Hub, run_cli: Callable
) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    with pytest.raises(LonasEdgeError, match=f"(?s)cannot be published:.*{message}") as raised:
        prepare(folder)
    assert TOKEN not in str(raised.value)
    ran = run_cli("push", folder, "me/network")
    assert ran.code == 1 and not hub.calls


def test_work_of_other_tools_is_not_published(folder: Path, hub: Hub) -> None:
    """The hub's client refuses files in .cache and .git; the others are remains of killed runs."""
    before = contents(folder)
    others = (".cache/huggingface/download/config.json.lock", ".git/config", ".changing/README.md", ".untuned/config.json")
    for name in (*others, "sub/.git/HEAD"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("made in /home/somebody/x")
    (folder / ".cache/link").symlink_to("/etc/hostname")
    push(prepare(folder), "me/network")
    assert hub.repositories["me/network"]["files"] == {**before, ".gitattributes": b""}


def test_a_file_that_vanished_creates_no_repository(folder: Path, hub: Hub) -> None:
    upload = prepare(folder)
    (folder / "README.md").unlink()
    with pytest.raises(LonasEdgeError, match=r"(?s)me/network: .*README\.md"):
        push(upload, "me/network")
    assert not hub.repositories


def published_with(base: Path, template: str, folder: Path) -> Path:
    """An export of a base model with a chat template."""
    (base / "chat_template.jinja").write_text(template)
    opened = open_source(str(base))
    export(opened, opened.select(None), folder, ExportOptions(stage="checkpoint", verify=False))
    return folder


def test_paths_that_come_with_a_base_model(tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of other machines are published; those of this one would have to be corrected in the base model."""
    base = Path(shutil.copytree(tiny_models.base("llama"), tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_path": "/fsx/checkpoints/step-100"}))
    assert "chat_template.jinja" in prepare(published_with(base, "Work in /workspace/project.", tmp_path / "out")).files
    (tmp_path / "out/notes.md").write_text("Work in /workspace/project.")
    with pytest.raises(LonasEdgeError, match=r"notes\.md: contains a path of this machine: line 1: /wor") as raised:
        prepare(tmp_path / "out")
    assert "chat_template" not in str(raised.value) and "base model" not in str(raised.value)
    (tmp_path / "out/notes.md").unlink()
    (tmp_path / "workspace").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "workspace")
    for index, local in enumerate((f"{base}.", f"{tmp_path}/workspace/gone", f"({tmp_path}/home/gone)", f"file://{base}")):
        folder = published_with(base, f"Work in {local}", tmp_path / f"out-{index}")
        with pytest.raises(LonasEdgeError, match=r"chat_template\.jinja: contains a path of this machine") as raised:
            prepare(folder)
        assert str(raised.value).endswith(
            "Do not edit chat_template.jinja: correct the base model or adapter, and export or train again."
        )
    assert "/fsx" not in str(raised.value)


def test_metadata_of_weights_is_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "more.safetensors", {"made_from": "/home/somebody/base"})
    with pytest.raises(LonasEdgeError, match=r"more\.safetensors: contains a path of this machine: line 1: /home/some"):
        prepare(folder)


def test_texts_that_look_like_paths(folder: Path) -> None:
    """Tokens of a vocabulary may be paths: they come from texts."""
    content = "see https://hub.test/home/x and docs/home/y, a / b, n/a, 1/2, 1:/2, 3/s\nQ:\nWhy?"
    (folder / "notes.md").write_text(content)
    (folder / "more.json").write_text(json.dumps({"a": content}))
    (folder / "vocab.json").write_text('{"/home/user": 1, "/usr/local/bin": 2}')
    assert {"notes.md", "more.json", "vocab.json"} <= prepare(folder).files.keys()


def test_links_are_not_followed(folder: Path) -> None:
    (folder / "more.txt").symlink_to("/etc/hostname")
    with pytest.raises(LonasEdgeError, match=r"more\.txt: a link; replace it by the file itself"):
        prepare(folder)
