"""A conversation with an exported language model in openvino_genai."""

import random
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import openvino_genai

from lonas_edge.data.templates import TEMPLATES, Example, recorded_prompt
from lonas_edge.errors import LonasEdgeError, one_line
from lonas_edge.exporting.exported import Exported
from lonas_edge.ir.core import compiling


class Conversation:
    """Turns of a user and an exported model; `load` the model before the first answer.

    The prompt template is the one of the training where the directory records it, else the chat template of the tokenizer.
    A model with neither continues the prompt as plain text. Only a chat template renders earlier turns: other models were
    trained on single prompts.
    """

    def __init__(self, exported: Exported, device: str, system: str | None, max_new_tokens: int, temperature: float):
        """Open the tokenizer. A `temperature` of 0 is greedy decoding.

        Raises:
            LonasEdgeError: If the model generates nothing, or has no place for a system message.
        """
        if not exported.kind.generates:
            raise LonasEdgeError(f"{exported.folder}: a {exported.kind.name} generates nothing; use `lonas-edge eval`")
        self._exported, self._device, self._temperature = exported, device, temperature
        self.max_new_tokens = max_new_tokens
        with compiling(exported.folder, "CPU", {}):
            self._tokenizer = openvino_genai.Tokenizer(exported.folder)
        manifest = exported.manifest
        recorded = recorded_prompt(manifest.prompt, manifest.subnetwork.search_space) if manifest else None
        self._template = TEMPLATES.get(recorded or "")  # None for a chat template, or without a record
        self.multi_turn = self._template is None and bool(self._tokenizer.chat_template)
        if system is not None and not self.multi_turn:
            raise LonasEdgeError(f"{exported.folder}: --system needs a model with a chat template. {self.note}")
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._turns: list[dict[str, str]] = []
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
        folder = self._exported.folder
        with compiling(folder, self._device, {}):
            self._pipeline = openvino_genai.LLMPipeline(folder, self._tokenizer, self._device, {})

    def reset(self) -> None:
        """Start a new conversation."""
        self._turns.clear()

    def stop(self) -> None:
        """End the current answer after the next token; for signal handlers."""
        self._stopped.set()

    def check(self, prompt: str) -> None:
        """Refuse a prompt that cannot be answered, with the errors of `answer`."""
        self._prepare(prompt)

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
        inputs, room = self._prepare(prompt)
        lead = self._template.response.partition("{output}")[0] if self._template else ""
        ids: list[int] = []
        shown = ""

        def add(tokens: Sequence[int], last: bool = False) -> None:
            """Show the text that tokens complete; openvino_genai's TextStreamer (2026.4) fails within a character."""
            nonlocal shown
            ids.extend(tokens)
            text = str(self._tokenizer.decode(ids)) if ids else ""
            if not last:
                text = text.rstrip("\ufffd")  # the end may be a part of a character
            if piece := text[len(shown) :]:
                show(piece if shown else piece.removeprefix(lead))
                shown = text

        cut = self._generate(inputs, room, add)
        add((), last=True)
        if self.multi_turn and shown:
            self._turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": shown}]
        return room if cut else None

    def _prepare(self, prompt: str) -> tuple[Any, int]:
        """Render and tokenize a prompt: the input of the pipeline, and the number of tokens that fit after it."""
        inputs: Any
        if self.multi_turn:
            inputs = openvino_genai.ChatHistory([*self._system, *self._turns, {"role": "user", "content": prompt}])
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
            inputs = tokens = self._tokenizer.encode(text)
        length, context = tokens.input_ids.shape[1], self._exported.context
        if context is None:
            return inputs, self.max_new_tokens
        if length >= context:
            remedy = "/reset starts a new one" if self._turns else "shorten the prompt"
            raise LonasEdgeError(f"the conversation has {length:,} tokens, the model's context {context:,}; {remedy}")
        return inputs, min(self.max_new_tokens, context - length)

    def _generate(self, inputs: Any, max_new_tokens: int, add: Callable[[Sequence[int]], None]) -> bool:
        """Generate until `stop`, and pass tokens on; return whether the maximum number of tokens ended it.

        It runs in another thread: Python handles signals in the main thread only, and openvino_genai (2026.4) keeps that thread
        until the answer is complete.
        """
        config = self._pipeline.get_generation_config()  # the model's own, with one answer and these options
        config.max_new_tokens, config.apply_chat_template = max_new_tokens, self.multi_turn
        config.num_beams = config.num_beam_groups = config.num_return_sequences = 1
        config.do_sample = self._temperature > 0
        if config.do_sample:
            config.temperature, config.rng_seed = self._temperature, random.randrange(2**32)
        events: SimpleQueue[list[int] | BaseException | bool] = SimpleQueue()
        stopped = self._stopped
        stopped.clear()

        class Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
            """Passes tokens on, and asks `stopped` at each."""

            def write(self, token: Any) -> Any:
                events.put(list(token) if isinstance(token, Sequence) else [int(token)])
                return openvino_genai.StreamingStatus.STOP if stopped.is_set() else openvino_genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        def generate() -> None:
            try:
                reasons = self._pipeline.generate(inputs, config, Streamer()).finish_reasons
                events.put(reasons[:1] == [openvino_genai.GenerationFinishReason.LENGTH])
            except BaseException as error:
                events.put(error)

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        try:
            while isinstance(event := events.get(), list):
                add(event)
        finally:
            stopped.set()
            thread.join()  # it must not run into Python's end
        if isinstance(event, RuntimeError):
            raise LonasEdgeError(f"openvino_genai cannot answer: {one_line(str(event))}") from event
        if isinstance(event, BaseException):
            raise event
        return event
