"""`lonas-edge chat`: answer prompts with an exported model."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from lonas_edge.cli.command import command
from lonas_edge.cli.progress import progress
from lonas_edge.cli.terminal import console
from lonas_edge.errors import LonasEdgeError, escaped
from lonas_edge.options import Options, UserPath, option

if TYPE_CHECKING:
    from lonas_edge.cli.conversation import Conversation

_RESET, _EXIT, _PROMPT = "/reset", "/exit", "> "


@dataclass(frozen=True, kw_only=True)
class ChatOptions(Options):
    """The model, the prompt and the generation."""

    exported: UserPath = option(argument=True, help="Directory written by `lonas-edge export` or `compress`.")
    prompt: str | None = option(None, metavar="TEXT", help="Answer this prompt only, on standard output.")
    system: str | None = option(None, metavar="TEXT", help="System message of the conversation.")
    max_new_tokens: int = option(512, minimum=1, help="Maximum number of tokens of an answer.")
    temperature: float = option(0.0, minimum=0, maximum=2, help="Sampling temperature; 0 for greedy decoding.")
    device: str = option("CPU", help="OpenVINO device: CPU, GPU, NPU, AUTO or another.")


@command
def run(options: ChatOptions) -> None:
    """Chat with an exported model in openvino_genai.

    /reset starts a new conversation; /exit or Ctrl-D ends the program. Ctrl-C stops an answer. Without a terminal, each line of
    standard input is a prompt.
    """
    with progress(left=False):
        from lonas_edge.cli.conversation import Conversation
        from lonas_edge.exporting.exported import open_exported
        from lonas_edge.exporting.manifest import MANIFEST
        from lonas_edge.ir import MODEL

        folder = _exported_in(options.exported, MODEL)
        exported = open_exported(folder, ours=(folder / MANIFEST).exists() or not (folder / MODEL).exists())
        chat = Conversation(exported, options.device, options.system, options.max_new_tokens, options.temperature)
        if options.prompt is not None:
            chat.check(options.prompt)
        chat.load()
    if chat.note:
        _say(chat.note)
    try:
        if options.prompt is not None:
            _answer(chat, options.prompt)
        elif sys.stdin and sys.stdin.isatty():
            _say(f"{folder} ({exported.weight_format}, {options.device}). {_RESET}: new conversation. {_EXIT}: end.")
            _talk(chat)
        else:
            _answer_lines(chat)
    except KeyboardInterrupt:
        raise LonasEdgeError("interrupted: the answer is incomplete") from None


def _exported_in(folder: Path, model: str) -> Path:
    """Find the exported model of an output of `lonas-edge compress`; any other directory is returned as it is."""
    from lonas_edge.pipeline.record import COMPRESS

    if not (folder / COMPRESS).is_file():
        return folder
    exported = sorted(path.parent for path in folder.glob(f"*/{model}"))
    if len(exported) != 1:
        several = f"several exported models; pass one of them: {', '.join(map(str, exported))}"
        raise LonasEdgeError(f"{folder}: {several if exported else 'no exported model in a directory of it'}")
    return exported[0]


def _talk(chat: "Conversation") -> None:
    """Converse on a terminal until the user ends it."""
    while (prompt := _read()) not in (None, _EXIT):
        if prompt == _RESET:
            chat.reset()
        elif prompt:
            try:
                with _first_interrupt(chat):
                    _answer(chat, prompt)
            except LonasEdgeError as error:
                _say(f"error: {error}", "red")


def _read() -> str | None:
    """Read a prompt from the terminal; None at its end or on Ctrl-C."""
    with suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and earlier lines, in `input`
    try:
        if sys.stdout.isatty():
            return input(_PROMPT).strip()
        print(_PROMPT, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
    except (EOFError, KeyboardInterrupt):
        line = ""
    except UnicodeDecodeError as error:  # a terminal that sends another encoding; the conversation goes on
        _say(f"error: not valid {error.encoding}: {error.reason}", "red")
        return ""
    if not line:
        print(file=sys.stderr)
        return None
    return line.strip()


def _answer_lines(chat: "Conversation") -> None:
    """Answer each line of standard input that is not empty."""
    prompts = 0
    try:
        for line in sys.stdin or ():  # None if it is closed
            prompt = line.strip()
            if prompt == _EXIT:
                return
            if prompt == _RESET:
                chat.reset()
            elif prompt:
                prompts += 1
                _answer(chat, prompt)
    except UnicodeDecodeError as error:
        raise LonasEdgeError(f"standard input: not valid UTF-8: {error.reason}") from error
    if not prompts:
        raise LonasEdgeError("standard input has no prompt; write one per line, or pass --prompt TEXT")


def _answer(chat: "Conversation", prompt: str) -> None:
    """Print an answer while it is generated."""

    def show(piece: str) -> None:
        print(escaped(piece), end="", flush=True)

    try:
        cut = chat.answer(prompt, show)
    finally:
        print(flush=True)
    if cut is not None:
        full = cut < chat.max_new_tokens
        _say(f"The answer was cut at {cut} tokens ({'the context is full' if full else '--max-new-tokens'}).")


@contextmanager
def _first_interrupt(chat: "Conversation") -> Iterator[None]:
    """Let the first Ctrl-C in the block stop the answer only."""

    def stop(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        chat.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say(text: str, style: str = "dim") -> None:
    console(stderr=True, soft_wrap=True).print(text, style=style)
