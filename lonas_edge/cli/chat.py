"""`lonas-edge chat`: answer prompts with an exported model in openvino_genai."""

import random
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from pydantic.dataclasses import dataclass

from lonas_edge.cli.command import command
from lonas_edge.cli.terminal import console, progress
from lonas_edge.data.templates import TEMPLATES, Example, Template, recorded_prompt
from lonas_edge.errors import LonasEdgeError, escaped, one_line
from lonas_edge.options import Options, UserPath, option

if TYPE_CHECKING:
    from lonas_edge.exporting.exported import Exported

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
        from lonas_edge.exporting.exported import open_exported
        from lonas_edge.exporting.manifest import MANIFEST
        from lonas_edge.ir import MODEL

        folder = _find_export(options.exported, MODEL)
        exported = open_exported(folder, ours=(folder / MANIFEST).exists() or not (folder / MODEL).exists())
        chat = Chat(exported, options)
    if chat.note:
        _say(chat.note)
    if options.prompt is not None:
        _answer_alone(chat, options.prompt)
    elif sys.stdin.isatty():
        _say(f"{folder} ({exported.weight_format}, {options.device}). {_RESET}: new conversation. {_EXIT}: end.")
        _converse(chat)
    else:
        _answer_lines(chat)


def _find_export(folder: Path, model: str) -> Path:
    """Find the exported model of an output of `lonas-edge compress`; any other directory is returned as it is."""
    from lonas_edge.pipeline.record import COMPRESS

    if not (folder / COMPRESS).is_file():
        return folder
    exported = sorted(path.parent for path in folder.glob(f"*/{model}"))
    if len(exported) != 1:
        several = f"several exported models; pass one of them: {', '.join(map(str, exported))}"
        raise LonasEdgeError(f"{folder}: {several if exported else 'no exported model in a directory of it'}")
    return exported[0]


def _converse(chat: "Chat") -> None:
    """Answer prompts of a terminal until the user ends it."""
    with suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and earlier lines, in `input`
    while True:
        try:
            prompt = input(_PROMPT).strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if prompt == _EXIT:
            return
        if prompt == _RESET:
            chat.reset()
        elif prompt:
            try:
                _answer(chat, prompt)
            except LonasEdgeError as error:
                _say(f"error: {error}", "red")


def _answer_lines(chat: "Chat") -> None:
    """Answer each line of standard input that is not empty."""
    prompts = 0
    for line in sys.stdin:
        prompt = line.strip()
        if prompt == _EXIT:
            return
        if prompt == _RESET:
            chat.reset()
        elif prompt:
            prompts += 1
            _answer_alone(chat, prompt)
    if not prompts:
        raise LonasEdgeError("standard input has no prompt; write one per line, or pass --prompt TEXT")


def _answer_alone(chat: "Chat", prompt: str) -> None:
    if not _answer(chat, prompt):
        raise LonasEdgeError("interrupted: the answer is incomplete")


def _answer(chat: "Chat", prompt: str) -> bool:
    """Print an answer while it is generated; return whether it was not interrupted."""
    pieces, end = chat.answer(prompt), ""
    try:
        for piece in pieces:
            print(escaped(piece), end="", flush=True)
            end = "\n"
    except KeyboardInterrupt:
        chat.interrupted = True
    finally:
        pieces.close()
        print(end=end, flush=True)
    if chat.cut:
        full = chat.cut < chat.options.max_new_tokens
        _say(f"The answer was cut at {chat.cut} tokens ({'the context is full' if full else '--max-new-tokens'}).")
    return not chat.interrupted


def _say(line: str, style: str | None = None) -> None:
    """Print a line that is no answer to standard error."""
    console(stderr=True, soft_wrap=True).print(line, style=style)


class Chat:
    """A conversation with an exported model.

    The prompt template is the one of the training where the directory records it, else the chat template of the tokenizer.
    A model with neither continues the prompt as plain text. Only a chat template renders earlier turns: other models were
    trained on single prompts.

    Attributes:
        cut: The number of tokens at which the last answer was cut; None if it is complete.
        interrupted: Whether Ctrl-C ended the last answer.
    """

    def __init__(self, exported: "Exported", options: ChatOptions):
        """Compile the model."""
        import openvino_genai

        from lonas_edge.ir.core import compiling

        self.exported, self.options = exported, options
        self.cut: int | None = None
        self.interrupted = False
        if not exported.kind.generates:
            raise LonasEdgeError(f"{exported.folder}: a {exported.kind.name} generates nothing; use `lonas-edge eval`")
        with compiling(exported.folder, options.device, {}):
            self._tokenizer = openvino_genai.Tokenizer(exported.folder)
            self._pipeline = openvino_genai.LLMPipeline(exported.folder, self._tokenizer, options.device, {})
        self._template = _recorded_template(exported)
        self._multi_turn = self._template is None and bool(self._tokenizer.chat_template)
        if options.system is not None and not self._multi_turn:
            raise LonasEdgeError(f"{exported.folder}: --system needs a model with a chat template. {self.note}")
        self.reset()

    @property
    def note(self) -> str:
        """How prompts are rendered, where it is not by a chat template."""
        if self._multi_turn:
            return ""
        if self._template:
            return f"Prompt template: {self._template.name}, as in the training. Each prompt is answered on its own."
        return "No chat template and no recorded prompt template: each prompt is continued as plain text, on its own."

    def reset(self) -> None:
        """Start a new conversation."""
        system = self.options.system
        self._messages = [] if system is None else [{"role": "system", "content": system}]

    def answer(self, prompt: str) -> Generator[str, None, None]:
        """Yield the answer to a prompt in pieces, and add both to the conversation."""
        inputs, room = self._render(prompt)
        start = self._template.response.partition("{output}")[0] if self._template else ""  # belongs to the template
        answer = ""
        self.interrupted, self.cut = False, None
        for piece in self._generate(inputs, room):
            shown = piece if answer else piece.removeprefix(start)
            answer += shown
            yield shown
        if self._multi_turn and answer:
            self._messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]

    def _render(self, prompt: str) -> tuple[Any, int]:
        """Render and tokenize a prompt: the input of the pipeline, and the number of tokens that fit after it."""
        import openvino_genai

        inputs: Any
        if self._multi_turn:
            inputs = openvino_genai.ChatHistory([*self._messages, {"role": "user", "content": prompt}])
            try:
                text = self._tokenizer.apply_chat_template(inputs, add_generation_prompt=True)
            except RuntimeError as error:
                refused = f"{self.exported.folder}: the chat template refuses the conversation"
                raise LonasEdgeError(f"{refused}: {one_line(str(error))}") from error
            tokens = self._tokenizer.encode(text, add_special_tokens=False)
        else:
            text = self._template.prompt(Example(prompt, "", "")) if self._template else prompt
            inputs = tokens = self._tokenizer.encode(text)
        length, context, most = tokens.input_ids.shape[1], self.exported.context, self.options.max_new_tokens
        if context is not None and length >= context:
            remedy = "/reset starts a new one" if len(self._messages) > 1 else "shorten the prompt"
            raise LonasEdgeError(f"the conversation has {length:,} tokens, the model's context {context:,}; {remedy}")
        return inputs, most if context is None else min(most, context - length)

    def _generate(self, inputs: Any, max_new_tokens: int) -> Generator[str, None, None]:
        """Generate in another thread: openvino_genai (2026.4) keeps its thread, and Python handles Ctrl-C in the main one only.

        Tokens are decoded here: openvino_genai's TextStreamer (2026.4) may cut a text within a character, and then raises
        UnicodeDecodeError in a thread where that ends the process.
        """
        import openvino_genai

        events: SimpleQueue[list[int] | BaseException | bool] = SimpleQueue()
        stopped = threading.Event()

        class Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
            """Passes tokens on, and ends the generation when it is `stopped`."""

            def write(self, token: Any) -> Any:
                events.put(list(token) if isinstance(token, Sequence) else [int(token)])
                return openvino_genai.StreamingStatus.STOP if stopped.is_set() else openvino_genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        def generate() -> None:
            try:
                reasons = self._pipeline.generate(inputs, self._config(max_new_tokens), Streamer()).finish_reasons
                events.put(reasons[:1] == [openvino_genai.GenerationFinishReason.LENGTH])
            except BaseException as error:
                events.put(error)

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        tokens: list[int] = []
        text, event = "", None
        try:
            while isinstance(event := events.get(), list):
                tokens += event
                decoded = str(self._tokenizer.decode(tokens)).rstrip("\ufffd")  # the end may be a part of a character
                if len(decoded) > len(text):
                    yield decoded[len(text) :]
                    text = decoded
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            stopped.set()
            thread.join()  # it must not run into Python's end
        if isinstance(event, RuntimeError):
            raise LonasEdgeError(f"openvino_genai cannot answer: {one_line(str(event))}") from event
        if isinstance(event, BaseException):
            raise event
        yield str(self._tokenizer.decode(tokens))[len(text) :] if tokens else ""
        self.cut = max_new_tokens if event is True else None

    def _config(self, max_new_tokens: int) -> Any:
        """The model's own generation configuration, with one answer and these options."""
        config = self._pipeline.get_generation_config()
        config.max_new_tokens, config.apply_chat_template = max_new_tokens, self._multi_turn
        config.num_beams = config.num_beam_groups = config.num_return_sequences = 1
        config.do_sample = self.options.temperature > 0
        if config.do_sample:
            config.temperature, config.rng_seed = self.options.temperature, random.randrange(2**32)
        return config


def _recorded_template(exported: "Exported") -> Template | None:
    """The template of the training; None for a chat template, or where there is no record."""
    manifest = exported.manifest
    if manifest is None:
        return None
    return TEMPLATES.get(recorded_prompt(manifest.prompt, manifest.subnetwork.search_space) or "")
