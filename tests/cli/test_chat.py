"""`lonas-edge chat`: answers equal those of a plain LLMPipeline for prompts that transformers renders; what a user sees."""

import io
import json
import os
import re
import select
import shutil
import signal
import string
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import openvino_genai
import pytest
import torch
from systems import SIGNALS
from tiny_models import TinyModels, say_only
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lonas_edge.cli import chat
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.network.source import open_source

CONTEXT = 128
TEMPLATE = (
    "{% for message in messages %}{% if 'refuse' in message['content'] %}{{ raise_exception('not \x1b this') }}{% endif %}"
    "[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}{% if add_generation_prompt %}[assistant]:{% endif %}"
)
TOOLS = "{% for tool in tools or [] %}{{ tool.function.name }}\n{% endfor %}"
NO_TEMPLATE = "No chat template and no recorded prompt template: each prompt is continued as plain text, on its own.\n"


def exported(base: Path, folder: Path, template: str | None) -> Path:
    """The export of a base model with a chat template."""
    if template is not None:
        (base / "chat_template.jinja").write_text(template)
    source = open_source(str(base), None, None)
    export(source, source.select("maximal"), folder, ExportOptions(weight_format="fp32", verify=False))
    return folder


def follow(base: Path, tokens: Sequence[bytes], context: int) -> None:
    """Let a model on disk continue each of these bytes with the next; None of its layers has an effect, only the last token."""
    config = AutoConfig.from_pretrained(base)
    config.max_position_embeddings = context
    model = AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.float32)
    vocabulary = AutoTokenizer.from_pretrained(base)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    torch.nn.init.ones_(model.model.norm.weight)
    torch.nn.init.zeros_(model.lm_head.weight)
    characters = _characters()
    ids = [vocabulary.convert_tokens_to_ids(characters[token[0]]) if token else vocabulary.eos_token_id for token in tokens]
    embedding = torch.nn.functional.normalize(model.model.embed_tokens.weight.data, dim=-1)
    for token, following in pairwise(ids):
        model.lm_head.weight.data[following] += embedding[token]
    model.save_pretrained(base)


def _characters() -> list[str]:
    """The characters of byte-level BPE (GPT-2) for the bytes 0 to 255."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [code for code in range(256) if code not in shown]
    return [chr(code) if code in shown else chr(256 + others.index(code)) for code in range(256)]


@pytest.fixture(scope="module")
def model(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports once: `model("letters"|"plain"|"tools"|"bytes"|"endless")`. Not to be changed."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("chat")
            base = shutil.copytree(tiny_models.base("llama"), folder / "base")
            if name in ("letters", "plain", "tools"):
                say_only(base, string.ascii_lowercase)
            else:
                text = " Hi 👋\n\t\x1b[31m\x9b".encode() if name == "bytes" else b"abcdef"
                text = bytes(dict.fromkeys(text))  # each byte once
                codes = [b":", *(bytes([code]) for code in text), b"" if name == "bytes" else b"a"]
                follow(base, codes, CONTEXT if name == "bytes" else 100_000)
            template = TOOLS + TEMPLATE if name == "tools" else None if name == "plain" else TEMPLATE
            made[name] = exported(base, folder / name, template)
        return made[name]

    return make


@pytest.fixture
def letters(model: Callable[..., Path]) -> Path:
    """A random model with a chat template that writes letters."""
    return model("letters")


def rendered(folder: Path, *contents: str, system: str | None = None) -> str:
    """The prompt of turns of a user and an assistant, by transformers."""
    roles = [("user", "assistant")[index % 2] for index in range(len(contents))]
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
    messages = [{"role": "system", "content": system}, *messages] if system else messages
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def continued(folder: Path, text: str, tokens: int = 8) -> str:
    """What a plain pipeline writes after a text."""
    pipeline = openvino_genai.LLMPipeline(folder, "CPU")
    return str(pipeline.generate(text, max_new_tokens=tokens, do_sample=False, apply_chat_template=False))


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_LONGEST", 8)


@pytest.fixture
def typed(run_cli: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs `chat` with lines on standard input, which is no terminal."""

    def run(folder: Path, lines: str, *options: object) -> Any:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode("utf-8-sig"))))
        return run_cli("chat", folder, *options)

    return run


def test_functions(model: Callable[..., Path], tmp_path: Path, run_cli: Callable) -> None:
    """The template gets the definitions; files and models without them are refused."""
    knows, defined = model("tools"), [{"type": "function", "function": {"name": "set_lamp", "parameters": {"type": "object"}}}]
    (tmp_path / "tools.json").write_text(json.dumps(defined))
    (tmp_path / "one.json").write_text(json.dumps(defined[0]))
    question = ["--prompt", "What is it?", "--tools"]
    expected = continued(knows, "set_lamp\n" + rendered(knows, "What is it?"))
    ran = run_cli("chat", knows, *question, tmp_path / "tools.json")
    assert (ran.out, expected != continued(knows, rendered(knows, "What is it?"))) == (f"{expected}\n", True), ran.err
    refused = run_cli("chat", model("letters"), *question, tmp_path / "tools.json")
    assert refused.code == 1 and "--tools needs a model whose chat template knows functions" in refused.err
    assert "one.json: expected a list of functions" in run_cli("chat", knows, *question, tmp_path / "one.json").err


def test_one_prompt(letters: Path, run_cli: Callable) -> None:
    expected = continued(letters, rendered(letters, "What is it?"))
    assert re.fullmatch("[a-z]{8,}", expected)
    ran = run_cli("chat", letters, "--prompt", "What is it?")
    assert (ran.code, ran.out) == (0, f"{expected}\n")
    assert ran.err == "The answer was cut at 8 tokens.\n"


def test_a_turn_sees_the_turns_before(letters: Path, typed: Callable) -> None:
    first = continued(letters, rendered(letters, "one"))
    second = continued(letters, rendered(letters, "one", first, "two"))
    alone = continued(letters, rendered(letters, "two"))
    assert second != alone
    ran = typed(letters, "one\n\n  two \n/reset\ntwo\n/exit\none\n")
    assert (ran.code, ran.out.splitlines()) == (0, [first, second, alone])


def test_a_conversation_with_a_system_message(letters: Path, typed: Callable) -> None:
    plain, brief = (continued(letters, rendered(letters, "one", system=system)) for system in (None, "Be brief."))
    assert plain != brief
    ran = typed(letters, "one\n/reset  Be brief.\none\n/reset\none")
    assert (ran.code, ran.out.splitlines()) == (0, [plain, brief, plain])


def test_whole_characters_and_no_control_sequences(
    model: Callable[..., Path], run_cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model("bytes")
    monkeypatch.setattr(chat, "_LONGEST", 40)
    assert continued(folder, ":", 40) == " Hi👋\n\t\x1b[31m\x9b"
    ran = run_cli("chat", folder, "--prompt", "anything")
    assert (ran.code, ran.out, ran.err) == (0, " Hi👋\n\t\\x1b[31m\\x9b\n", "")


@pytest.fixture
def recorded(letters: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an export that records the prompt template of a training."""

    def make(prompt: str, folder: Path = letters) -> Path:
        copy = shutil.copytree(folder, tmp_path / f"recorded-{prompt}")
        manifest = json.loads((copy / "lonas_edge.json").read_text())
        (copy / "lonas_edge.json").write_text(json.dumps(manifest | {"prompt": prompt}))
        return copy

    return make


def test_the_template_of_the_training(recorded: Callable[..., Path], typed: Callable) -> None:
    folder = recorded("question")
    answers = [continued(folder, f"Question: {text}\nAnswer:") for text in ("one", "{two}")]
    ran = typed(folder, "one\n{two}\n")
    assert (ran.code, ran.out.splitlines()) == (0, answers)
    assert ran.err.count("Prompt template: question, as in the training. Each prompt is answered on its own.") == 1


def test_the_chat_template_of_the_training(recorded: Callable[..., Path], letters: Path, typed: Callable) -> None:
    ran = typed(recorded("chat"), "one\n")
    assert ran.out.splitlines() == [continued(letters, rendered(letters, "one"))]
    assert "template" not in ran.err


def test_plain_text(model: Callable[..., Path], typed: Callable) -> None:
    folder = model("plain")
    ran = typed(folder, "one\ntwo\n")
    assert (ran.code, ran.out.splitlines()) == (0, [continued(folder, text) for text in ("one", "two")])
    assert ran.err.count(NO_TEMPLATE) == 1
    ran = typed(folder, "/reset Be brief.\none\n")
    assert (ran.code, ran.out) == (1, "")
    assert f"error: {folder}: a system message needs a model with a chat template." in ran.err


def test_an_export_of_another_tool(letters: Path, typed: Callable, tmp_path: Path) -> None:
    folder = shutil.copytree(letters, tmp_path / "other")
    (folder / "lonas_edge.json").unlink()
    ran = typed(folder, "one")
    assert ran.out.splitlines() == [continued(letters, rendered(letters, "one"))]


# the context


def of_length(folder: Path, tokens: int) -> str:
    """A prompt that is rendered to a number of tokens."""
    used = len(AutoTokenizer.from_pretrained(folder)(rendered(folder, ""), add_special_tokens=False)["input_ids"])
    return "x" * (tokens - used)


def test_the_answer_ends_with_the_context(letters: Path, run_cli: Callable) -> None:
    prompt = of_length(letters, CONTEXT - 3)
    ran = run_cli("chat", letters, "--prompt", prompt)
    assert (ran.code, ran.out) == (0, continued(letters, rendered(letters, prompt), 3) + "\n")
    assert ran.err == "The answer was cut at 3 tokens (the context is full).\n"


def test_too_long(letters: Path, run_cli: Callable, typed: Callable) -> None:
    ran = run_cli("chat", letters, "--prompt", of_length(letters, CONTEXT))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "error: the conversation has 128 tokens, the model's context 128; shorten the prompt\n"
    prompt = of_length(letters, CONTEXT - 20)
    ran = typed(letters, f"{prompt}\n{prompt}\n")
    assert ran.code == 1 and ran.err.splitlines()[-1].endswith("the model's context 128; /reset starts a new one")


# errors


def test_refused_prompts(letters: Path, run_cli: Callable, typed: Callable) -> None:
    ran = run_cli("chat", letters, "--prompt", "refuse")
    assert (ran.code, ran.out) == (1, "")
    assert f"error: {letters}: the chat template refuses the conversation: " in ran.err and "not \\x1b this" in ran.err
    assert run_cli("chat", letters, "--prompt", " ").code == 2
    ran = typed(letters, "\n \n")
    assert (ran.code, ran.err) == (1, "error: standard input has no prompt; write one per line, or pass --prompt TEXT\n")


# the output of `compress`


def test_lines_in_another_encoding(letters: Path, run_cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("one\nzwei für drei\n".encode("latin-1"))))
    ran = run_cli("chat", letters)
    assert ran.code == 1 and "error: standard input, line 2: not UTF-8" in ran.err


def test_an_output_of_compress_names_its_model(letters: Path, run_cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "compress.json").write_text("{}")
    shutil.copytree(letters, tmp_path / "model")
    ran = run_cli("chat", tmp_path, "--prompt", "one")
    assert ran.code == 1 and ran.err.endswith(
        f"expected a directory that `lonas-edge export` wrote. Pass {tmp_path / 'model'}\n"
    )


# the terminal


class Terminal:
    """`lonas-edge chat` in a pseudo-terminal."""

    def __init__(self, *arguments: object):
        import pty

        self.pid, self._descriptor = pty.fork()
        if not self.pid:
            program = "from lonas_edge.cli import chat, main; chat._LONGEST = 90_000; main()"
            os.execv(sys.executable, [sys.executable, "-c", program, "chat", *map(str, arguments)])
        self.shown, self._running = "", True

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:  # a test has failed
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def until(self, text: str, count: int = 1) -> None:
        """Read until a text was shown."""
        deadline = time.monotonic() + 60
        while self.shown.count(text) < count and self._read():
            assert time.monotonic() < deadline, self.shown[-500:]
        assert self.shown.count(text) >= count, self.shown[-500:]

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def ended(self) -> int:
        """Read to the end; return the exit code."""
        deadline = time.monotonic() + 60
        while self._read():
            assert time.monotonic() < deadline, self.shown[-500:]
        self._running = False
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self) -> bool:
        assert select.select([self._descriptor], [], [], 60)[0], self.shown[-500:]
        try:
            read = os.read(self._descriptor, 65536)
        except OSError:  # Linux, at the end
            return False
        self.shown += read.decode(errors="replace")
        return bool(read)


@SIGNALS
def test_a_conversation_in_a_terminal(model: Callable[..., Path]) -> None:
    """Ctrl-C stops an answer that would take minutes; lines are edited; Ctrl-D ends."""
    with Terminal(model("endless")) as terminal:
        terminal.until("\n> ")
        terminal.type("b\x1b[Da\n")  # the left arrow key
        terminal.until("abcdefabcdef")
        terminal.type("\x03")
        terminal.until("\n> ", 2)
        terminal.type("refuse\n")
        terminal.until("\n> ", 3)
        terminal.type("/reset\n")
        terminal.until("\n> ", 4)
        terminal.type("\x04")
        assert terminal.ended() == 0
        assert "Traceback" not in terminal.shown
        assert "^[[D" not in terminal.shown
        assert terminal.shown.count("the chat template refuses the conversation") == 1
