"""Prompt templates for training and evaluation, by name in `TEMPLATES` and `PROMPTS`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError

CHAT = "chat"  # the template that is made from a model's own chat template


@dataclass(frozen=True)
class Example:
    """An instruction with an optional input, and the answer to learn."""

    instruction: str
    input: str
    output: str

    def record(self) -> dict[str, Any]:
        """As a record of a data file."""
        return asdict(self)


@dataclass(frozen=True)
class Template:
    """Turns an example into text: a prompt, and the response that follows it."""

    name: str  # its name in training records
    without_input: str  # the prompt, with {instruction}
    with_input: str  # the prompt of an example that has an input, with {instruction} and {input}
    response: str = "{output}"  # the response, with {output}
    train_on_prompt: bool = False  # whether the prompt's tokens are learned, too
    # the reference's rules: prompt and response are tokenized as one text, cut at the maximal length, and end with EOS only
    # where that leaves room. Otherwise the prompt's tokens are those it has at inference, and all end with EOS; examples that
    # are too long are dropped, never cut.
    whole_text: bool = False

    def prompt(self, example: Example) -> str:
        """Return the text before the response."""
        template = self.with_input if example.input else self.without_input
        return template.format(instruction=example.instruction, input=example.input)

    def answer(self, example: Example) -> str:
        """Return the response."""
        return self.response.format(output=example.output)

    @property
    def lead(self) -> str:
        """The text of the response before the output: a blank, or the empty <think> block of Qwen 3."""
        return self.response.partition("{output}")[0].format()


@dataclass(frozen=True)
class PromptRecord:
    """What an adapter tells about the prompts of its training: template, chat template (Jinja), hash of its search space."""

    template: Template | None = None
    chat: str | None = None
    space: str | None = None


_ALPACA = "Below is an instruction that describes a task"
_PAIRED = f"{_ALPACA}, paired with an input that provides further context"
_WRITE = "Write a response that appropriately completes the request."
_CLEAN = Template(
    "alpaca",
    f"{_ALPACA}. {_WRITE}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n",
    f"{_PAIRED}. {_WRITE}\n\n### Instruction:\n{{instruction}}\n\n### Input:\n{{input}}\n\n### Response:\n",
)
_QUESTION = Template(
    "question", "Question: {instruction}\nAnswer:", "{input}\nQuestion: {instruction}\nAnswer:", response=" {output}"
)


def _reference(indent: int, blanks: int, training: bool) -> Template:
    """Return a prompt of the reference: later lines are indented, the first ends with blanks."""
    line, text = f"\n\n{indent * ' '}### ", f":\n{indent * ' '}"
    instruction, response = f"{line}Instruction{text}{{instruction}}", f"{line}Response{text}"
    return Template(
        "lonas",
        f"{_ALPACA}. {_WRITE}{blanks * ' '}{instruction}{response}",
        f"{_PAIRED}. {_WRITE}{(blanks - 1) * ' '}{instruction}{line}Input{text}{{input}}{response}",
        train_on_prompt=training,
        whole_text=training,
    )


# The reference's, byte for byte (IntelLabs/Hardware-Aware-Automated-Machine-Learning, LoNAS/run_commonsense.py, run_math.py):
# both scripts train with the same prompt, and evaluate with other blanks and indentations. `alpaca` (Taori et al. 2023) is
# the original.
_LONAS = _reference(20, 2, training=True)
_LONAS_EVALUATION, _LONAS_MATH = _reference(24, 1, training=False), _reference(28, 1, training=False)
TEMPLATES = {"alpaca": _CLEAN, "question": _QUESTION, "lonas": _LONAS}  # of `train`
PROMPTS = {**TEMPLATES, "lonas": _LONAS_EVALUATION, "lonas-train": _LONAS}  # of `eval`, see `evaluation_template`


def evaluation_template(name: str, collection: str) -> Template:
    """Get the template of `eval` for a collection of test sets."""
    return _LONAS_MATH if (name, collection) == (REFERENCE, "math") else PROMPTS[name]


REFERENCE, DEFAULT = "lonas", "alpaca"
# Search spaces (by hash) of the published LoNAS adapters, which have no training record: LLaMA-7B and BLOOMZ-7B.
_REFERENCE_SPACES = frozenset(
    {
        "915bea082e3005c1430e34dcfd1b1f42d736111e52fb9173f616bd998eb772a0",
        "89c87ed8829b85108a4a91005f841b7040761990936de3fc8ddc9bfe55730ff7",
    }
)


def choose_prompt(
    explicit: str | None = None, recorded: str | None = None, search_space: str | None = None, conversations: Path | None = None
) -> str:
    """Decide the prompt template of `train`, `trim`, `search`, `compress`, `eval` and `export --calibration`.

    The order is: `--template`; `chat` for conversations, which fit no other template; the prompt of the adapter's training
    record; `lonas` for the published LoNAS adapters of LLaMA-7B and BLOOMZ-7B; `alpaca`.

    Args:
        explicit: The value of `--template`.
        recorded: Name in the adapter's training record or manifest.
        search_space: Hash of the adapter's search space.
        conversations: A data file with `messages`.

    Returns:
        A key of `PROMPTS`, or `CHAT`.
    """
    if conversations and explicit not in (None, CHAT):
        raise LonasEdgeError(
            f"--template {explicit}: {conversations} holds conversations, which need the model's chat template. "
            f"Pass --template {CHAT}, or use instruction data."
        )
    if explicit or conversations:
        return explicit or CHAT
    return recorded_prompt(recorded, search_space) or DEFAULT


def recorded_prompt(recorded: str | None, search_space: str | None) -> str | None:
    """The prompt template of an adapter's training, as for `choose_prompt`; None where it is not known."""
    if recorded in (*PROMPTS, CHAT):
        return recorded
    return REFERENCE if search_space in _REFERENCE_SPACES else None
