"""Answer prompts with an exported language model in openvino_genai."""

import random
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from lonas_edge.data.templates import TEMPLATES, Example, Template, recorded_prompt
from lonas_edge.errors import LonasEdgeError, one_line
from lonas_edge.exporting.exported import Exported
from lonas_edge.ir.core import compiling

Message = dict[str, str]


class Chat:
    """A conversation with an exported model; `load` the model before the first answer.

    The prompt template is the one of the training where the directory records it, else the chat template of the tokenizer.
    A model with neither continues the prompt as plain text. Only a chat template renders earlier turns: other models were
    trained on single prompts.
    """

    def __init__(
        self,
        exported: Exported,
        device: str,
        system: str | None,
        max_new_tokens: int,
        temperature: float,
    ):
        """Open the tokenizer. A `temperature` of 0 is greedy decoding.

        Raises:
            LonasEdgeError: If the model generates nothing, or has no place for a system message.
        """
        import openvino_genai

        if not exported.kind.generates:
            raise LonasEdgeError(f"{exported.folder}: a {exported.kind.name} generates nothing; use `lonas-edge eval`")
        self._exported, self._device, self._temperature = exported, device, temperature
        self.max_new_tokens = max_new_tokens
        with compiling(exported.folder, "CPU", {}):
            self._tokenizer = openvino_genai.Tokenizer(exported.folder)
        self._template = _template_of(exported)
        self.multi_turn = self._template is None and bool(self._tokenizer.chat_template)
        if system is not None and not self.multi_turn:
            raise LonasEdgeError(f"{exported.folder}: --system needs a model with a chat template. {self.note}")
        self._messages: list[Message] = [] if system is None else [{"role": "system", "content": _unicode(system)}]
        self._start = len(self._messages)
        self._stopped = threading.Event()
        self._pipeline: Any = None

    @property
    def note(self) -> str:
        """How prompts are rendered, where it is not by a chat template."""
        if self.multi_turn:
            return ""
        if self._template:
            return f"Prompt template: {self._template.name}, as in the training. Each prompt is answered on its own."
        return "No chat template and no recorded prompt template: each prompt is continued as plain text, on its own."

    def load(self) -> None:
        """Compile the model.

        Raises:
            LonasEdgeError: If the device does not exist or refuses the model.
        """
        import openvino_genai

        folder = self._exported.folder
        with compiling(folder, self._device, {}):
            self._pipeline = openvino_genai.LLMPipeline(folder, self._tokenizer, self._device, {})

    def reset(self) -> None:
        """Start a new conversation."""
        del self._messages[self._start :]

    def stop(self) -> None:
        """End the current answer after the next token; for signal handlers."""
        self._stopped.set()

    def check(self, prompt: str) -> None:
        """Refuse a prompt that cannot be answered, with the errors of `answer`."""
        self._prepared(prompt)

    def answer(self, prompt: str, show: Callable[[str], None]) -> int | None:
        """Answer a prompt, and add both to the conversation.

        Args:
            prompt: The user's turn.
            show: Gets the answer in pieces, as the model wrote them: control characters are not escaped.

        Returns:
            The number of tokens at which the answer was cut; None if it is complete, or was stopped.

        Raises:
            LonasEdgeError: If the chat template refuses the conversation, or the prompt leaves no room in the context.
        """
        inputs, room = self._prepared(prompt)
        lead = self._template.response.partition("{output}")[0] if self._template else ""
        pieces: list[str] = []

        def shown(piece: str) -> None:
            pieces.append(piece if pieces else piece.removeprefix(lead))
            show(pieces[-1])

        self._stopped.clear()
        text = _Text(self._tokenizer)
        cut = _generated(self._pipeline, inputs, self._config(room), shown, self._stopped, text)
        if self.multi_turn and any(pieces):
            turns = (("user", prompt), ("assistant", "".join(pieces)))
            self._messages += [{"role": role, "content": content} for role, content in turns]
        return room if cut else None

    def _prepared(self, prompt: str) -> tuple[Any, int]:
        """Render and tokenize a prompt: the input of the pipeline, and the number of tokens that fit after it."""
        import openvino_genai

        inputs: Any
        if self.multi_turn:
            inputs = openvino_genai.ChatHistory([*self._messages, {"role": "user", "content": _unicode(prompt)}])
            try:
                text = self._tokenizer.apply_chat_template(inputs, add_generation_prompt=True)
            except RuntimeError as error:
                reason = one_line(str(error)) or type(error).__name__
                raise LonasEdgeError(
                    f"{self._exported.folder}: the chat template refuses the conversation: {reason}"
                ) from error
            tokens = self._tokenizer.encode(text, add_special_tokens=False)
        else:
            text = self._template.prompt(Example(prompt, "", "")) if self._template else prompt
            inputs = tokens = self._tokenizer.encode(_unicode(text))
        length, context = tokens.input_ids.shape[1], self._exported.context
        if context is not None and length >= context:
            remedy = "/reset starts a new one" if len(self._messages) > self._start else "shorten the prompt"
            raise LonasEdgeError(f"the conversation has {length:,} tokens, the model's context {context:,}; {remedy}")
        return inputs, self.max_new_tokens if context is None else min(self.max_new_tokens, context - length)

    def _config(self, max_new_tokens: int) -> Any:
        """The model's own generation configuration, with one answer and these options."""
        config = self._pipeline.get_generation_config()
        config.max_new_tokens, config.apply_chat_template = max_new_tokens, self.multi_turn
        config.num_beams = config.num_beam_groups = config.num_return_sequences = 1
        config.do_sample = self._temperature > 0
        if config.do_sample:
            config.temperature, config.rng_seed = self._temperature, random.randrange(2**32)
        return config


def _template_of(exported: Exported) -> Template | None:
    """The recorded template of the training, None for a chat template or where there is no record."""
    manifest = exported.manifest
    if manifest is None:
        return None
    return TEMPLATES.get(recorded_prompt(manifest.prompt, manifest.subnetwork.search_space) or "")


def _unicode(text: str) -> str:
    """Refuse a text that cannot be encoded: Python reads undecodable bytes of a command line as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LonasEdgeError(f"the prompt is not valid UTF-8: {one_line(ascii(text)[1:-1])}") from error
    return text


class _Text:
    """Text of tokens as they come, in whole characters; bytes that are none are U+FFFD.

    openvino_genai's TextStreamer (2026.4) may cut such a text within a character. It then raises UnicodeDecodeError in a thread
    where that ends the process.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer, self._ids, self._shown = tokenizer, list[int](), ""

    def added(self, tokens: Sequence[int], last: bool = False) -> str:
        """The text that tokens complete; all that is left after the `last`."""
        self._ids += tokens
        text = str(self._tokenizer.decode(self._ids)) if self._ids else ""
        whole = text if last else text.rstrip("\ufffd")  # the end may be a part of a character
        new = whole[len(self._shown) :]
        self._shown = max(self._shown, whole, key=len)
        return new


def _generated(
    pipeline: Any, inputs: Any, config: Any, show: Callable[[str], None], stopped: threading.Event, text: _Text
) -> bool:
    """Generate in another thread until `stopped`; return whether the maximum number of tokens ended it.

    Python handles signals in the main thread only, and openvino_genai (2026.4) keeps that thread until the answer is complete.
    """
    import openvino_genai

    events: SimpleQueue[list[int] | BaseException | bool] = SimpleQueue()

    class Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
        """Passes tokens on, and asks `stopped` at each."""

        def write(self, token: Any) -> Any:
            events.put(list(token) if isinstance(token, Sequence) else [int(token)])
            return openvino_genai.StreamingStatus.STOP if stopped.is_set() else openvino_genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    def generate() -> None:
        try:
            reasons = pipeline.generate(inputs, config, Streamer()).finish_reasons
            events.put(reasons[:1] == [openvino_genai.GenerationFinishReason.LENGTH])
        except BaseException as error:
            events.put(error)

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    try:
        while isinstance(event := events.get(), list):
            if piece := text.added(event):
                show(piece)
        if piece := text.added((), last=True):
            show(piece)
    finally:
        stopped.set()
        thread.join()  # it must not run into Python's end
    if isinstance(event, RuntimeError):
        raise LonasEdgeError(f"openvino_genai cannot answer: {one_line(str(event))}") from event
    if isinstance(event, BaseException):
        raise event
    return event
