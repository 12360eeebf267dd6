"""`lonas-edge chat`: answer prompts with an exported model in openvino_genai."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any

from pydantic.dataclasses import dataclass

from lonas_edge.cli.command import command
from lonas_edge.cli.terminal import console, progress
from lonas_edge.data.templates import TEMPLATES, Example, recorded_prompt
from lonas_edge.errors import LonasEdgeError, escaped, one_line
from lonas_edge.files import decode_json, read_text
from lonas_edge.options import Options, UserPath, option

if TYPE_CHECKING:
    from lonas_edge.exporting.drafts import Draft
    from lonas_edge.exporting.exported import Exported

_TOOL = '[{"type": "function", "function": {"name": "…", "parameters": {…}}}, …]'
_RESET, _EXIT, _PROMPT = "/reset", "/exit", "> "
_LONGEST = 1024  # tokens of an answer


@dataclass(frozen=True, kw_only=True)
class ChatOptions(Options):
    """The model, the prompt and the generation."""

    exported: UserPath = option(argument=True, help="Directory written by `lonas-edge export`.")
    draft: UserPath | None = option(
        None, metavar="DIR", help="Draft model, for faster answers.", unset="`draft` next to EXPORTED, as `compress` writes it"
    )
    prompt: str | None = option(None, metavar="TEXT", help="Answer this prompt only, on standard output.")
    tools: UserPath | None = option(
        None, exists=True, metavar="FILE.json", help="Functions that answers may call: a list of definitions in OpenAI's form."
    )
    device: str = option("CPU", help="OpenVINO device: CPU, GPU, NPU, AUTO or another.")


@command
def run(options: ChatOptions) -> None:
    """Chat with an exported model in openvino_genai.

    /reset [TEXT] starts a new conversation with this system message; /exit or Ctrl-D ends the program. Ctrl-C stops an answer.
    Without a terminal, each line of standard input is a prompt.
    """
    with progress(left=False):
        from lonas_edge.exporting.exported import open_exported
        from lonas_edge.exporting.manifest import DRAFT
        from lonas_edge.ir import MODEL

        exported = open_exported(options.exported, ours=not (options.exported / MODEL).exists())
        beside = options.exported.resolve().parent / "draft"
        opened, unused = _open_draft(options.draft, exported) if options.draft else None, ""
        if not options.draft and (beside / DRAFT).exists():
            try:
                opened = _open_draft(beside, exported)
            except LonasEdgeError as error:  # it may be that of another model
                unused = f"not used: {error}"
        chat = Chat(exported, options, opened)
    if unused:
        _say(unused)
    if chat.note:
        _say(chat.note)
    terminal = options.prompt is None and sys.stdin.isatty()
    if terminal:
        commands = f"{_RESET} [TEXT]: new conversation, TEXT as system message. {_EXIT}: end."
        _say(f"{options.exported} ({exported.weight_format}, {options.device}). {commands}")
    answered = False
    for prompt in _prompts(terminal) if options.prompt is None else [options.prompt]:
        try:
            command, _, system = prompt.partition(" ")
            if command == _RESET:
                chat.reset(system.strip())
                continue
            answered = True
            if not chat.answer(prompt) and not terminal:
                raise LonasEdgeError("interrupted: the answer is incomplete")
        except LonasEdgeError as error:
            if not terminal:
                raise
            _say(f"error: {error}", "red")
    if not (answered or terminal):
        raise LonasEdgeError("standard input has no prompt; write one per line, or pass --prompt TEXT")


def _open_draft(folder: Path, exported: "Exported") -> "Draft":
    from lonas_edge.exporting.drafts import open_draft  # compares tokenizers: takes seconds to import

    return open_draft(folder, exported)


def _prompts(terminal: bool) -> Iterator[str]:
    """Yield the lines of standard input until /exit."""
    for line in _typed_lines() if terminal else _piped_lines():
        text = line.strip()
        if text == _EXIT:
            return
        if text:
            yield text


def _piped_lines() -> Iterator[str]:
    """Read the lines of standard input, with or without a byte order mark."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise LonasEdgeError(f"standard input, line {number}: not UTF-8") from None


def _typed_lines() -> Iterator[str]:
    """Ask for lines in the terminal, until Ctrl-D or Ctrl-C."""
    with suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and earlier lines, in `input`
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input(_PROMPT)
    print(file=sys.stderr)


def _say(line: str, style: str | None = None) -> None:
    """Print a line that is no answer to standard error."""
    console(stderr=True, soft_wrap=True).print(line, style=style)


class Chat:
    """A conversation with an exported model.

    The prompt template is the one of the training where the directory records it, else the chat template of the tokenizer.
    A model with neither continues the prompt as plain text. Only a chat template renders earlier turns: other models were
    trained on single prompts.
    """

    def __init__(self, exported: "Exported", options: ChatOptions, draft: "Draft | None" = None):
        """Compile the model and the draft."""
        import openvino_genai

        from lonas_edge.ir.core import compiling

        self.exported, self.options, self._draft = exported, options, draft
        if not exported.kind.generates:
            raise LonasEdgeError(f"{exported.folder}: a {exported.kind.name} generates nothing; use `lonas-edge eval`")
        with compiling(exported.folder, options.device, {}):
            self._tokenizer = openvino_genai.Tokenizer(exported.folder)
            drafted = draft.options(options.device) if draft else {}
            self._pipeline = openvino_genai.LLMPipeline(exported.folder, self._tokenizer, options.device, **drafted)
        manifest = exported.manifest
        recorded = recorded_prompt(manifest.prompt, manifest.subnetwork.search_space) if manifest else None
        self._template = TEMPLATES.get(recorded or "")
        self._multi_turn = self._template is None and bool(self._tokenizer.chat_template)
        self._tools = _read_tools(options.tools) if options.tools else []
        if self._tools and not (self._multi_turn and "tools" in self._tokenizer.chat_template):
            raise LonasEdgeError(f"{exported.folder}: --tools needs a model whose chat template knows functions. {self.note}")
        self.reset()

    @property
    def note(self) -> str:
        """How prompts are rendered, where it is not by a chat template."""
        if self._multi_turn:
            return ""
        if self._template:
            return f"Prompt template: {self._template.name}, as in the training. Each prompt is answered on its own."
        return "No chat template and no recorded prompt template: each prompt is continued as plain text, on its own."

    def reset(self, system: str = "") -> None:
        """Start a new conversation, with a system message if there is one."""
        if system and not self._multi_turn:
            raise LonasEdgeError(f"{self.exported.folder}: a system message needs a model with a chat template. {self.note}")
        self._messages = [{"role": "system", "content": system}] if system else []

    def answer(self, prompt: str) -> bool:
        """Print the answer to a prompt while it is generated, and add both to the conversation.

        The generation runs in another thread: openvino_genai (2026.4) keeps its thread, and Python handles Ctrl-C in the main
        one only.

        Returns:
            Whether the answer was not interrupted.
        """
        from openvino_genai import GenerationFinishReason

        inputs, room = self._render(prompt)
        start = self._template.lead if self._template else ""  # belongs to the template
        tokens: SimpleQueue[list[int] | None] = SimpleQueue()
        stopped, answer, interrupted = Event(), "", False
        with ThreadPoolExecutor(1) as thread:
            generation = thread.submit(self._pipeline.generate, inputs, self._config(room), _make_streamer(tokens, stopped))
            generation.add_done_callback(lambda _: tokens.put(None))
            try:
                for piece in self._decode(tokens):
                    shown = piece if answer else piece.removeprefix(start)
                    answer += shown
                    print(escaped(shown), end="", flush=True)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                stopped.set()
        print(flush=True)
        try:
            reasons = generation.result().finish_reasons
        except RuntimeError as error:
            raise LonasEdgeError(f"openvino_genai cannot answer: {one_line(str(error))}") from error
        if self._multi_turn and answer:
            self._messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        if not interrupted and reasons[:1] == [GenerationFinishReason.LENGTH]:
            _say(f"The answer was cut at {room} tokens{' (the context is full)' if room < _LONGEST else ''}.")
        return not interrupted

    def _render(self, prompt: str) -> tuple[Any, int]:
        """Render and tokenize a prompt: the input of the pipeline, and the number of tokens that fit after it."""
        import openvino_genai

        inputs: Any
        if self._multi_turn:
            inputs = openvino_genai.ChatHistory([*self._messages, {"role": "user", "content": prompt}])
            inputs.set_tools(self._tools)
            try:
                text = self._tokenizer.apply_chat_template(inputs, add_generation_prompt=True)
            except RuntimeError as error:
                refused = f"{self.exported.folder}: the chat template refuses the conversation"
                raise LonasEdgeError(f"{refused}: {one_line(str(error))}") from error
            tokens = self._tokenizer.encode(text, add_special_tokens=False)
        else:
            text = self._template.prompt(Example(prompt, "", "")) if self._template else prompt
            inputs = tokens = self._tokenizer.encode(text)
        length, context = tokens.input_ids.shape[1], self.exported.context
        if context is not None and length >= context:
            remedy = "/reset starts a new one" if len(self._messages) > 1 else "shorten the prompt"
            raise LonasEdgeError(f"the conversation has {length:,} tokens, the model's context {context:,}; {remedy}")
        return inputs, _LONGEST if context is None else min(_LONGEST, context - length)

    def _decode(self, tokens: "SimpleQueue[list[int] | None]") -> Iterator[str]:
        """Yield the text of tokens, until None, in pieces of complete characters.

        openvino_genai's TextStreamer (2026.4) may cut a text within a character, and then raises UnicodeDecodeError in a
        thread where that ends the process.
        """
        read, shown = list[int](), ""
        while (more := tokens.get()) is not None:
            read += more
            text = str(self._tokenizer.decode(read)).rstrip("\ufffd")  # the end may be a part of a character
            if len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
        if read:
            yield str(self._tokenizer.decode(read))[len(shown) :]

    def _config(self, max_new_tokens: int) -> Any:
        """The model's own generation configuration, but greedy, with one answer and these options."""
        config = self._pipeline.get_generation_config()
        config.max_new_tokens, config.apply_chat_template = max_new_tokens, self._multi_turn
        config.num_beams = config.num_beam_groups = config.num_return_sequences = 1
        config.do_sample = False  # openvino_genai 2026.4.1 drops words when it samples with a draft
        if self._draft:
            config.num_assistant_tokens = self._draft.num_assistant_tokens
        return config


def _read_tools(path: Path) -> list[Any]:
    tools = decode_json(read_text(path, "the functions"), str(path))
    if not isinstance(tools, list) or not all(isinstance(each, dict) for each in tools):
        raise LonasEdgeError(f"{path}: expected a list of functions: {_TOOL}")
    return tools


def _make_streamer(tokens: "SimpleQueue[list[int] | None]", stopped: Event) -> Any:
    """Make an object that passes generated tokens on, and ends the generation when it is `stopped`."""
    from openvino_genai import StreamerBase, StreamingStatus

    class Streamer(StreamerBase):  # type: ignore[misc]
        def write(self, token: Any) -> Any:
            tokens.put(list(token) if isinstance(token, Sequence) else [int(token)])
            return StreamingStatus.STOP if stopped.is_set() else StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    return Streamer()
