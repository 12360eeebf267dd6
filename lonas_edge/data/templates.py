"""Prompt templates: how an example becomes text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One instruction, with an optional input, and the answer to learn."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class Template:
    """How an example becomes text: a prompt, and the response that follows it.

    Attributes:
        name: What it is called on the command line and in a super-adapter's record.
        without_input: The prompt, with {instruction}.
        with_input: The prompt of an example that has an input, with {instruction} and {input}.
        response: The response, with {output}.
        train_on_prompt: Whether the prompt's tokens are learned too, unless the command line says otherwise.
        whole_text: The reference's rules: prompt and response are tokenized as one text, cut at the maximal length, and end
            with EOS only where that leaves room. Otherwise the prompt's tokens are those it has at
            inference, and all end with EOS; examples that are too long are left out, never cut.
    """

    name: str
    without_input: str
    with_input: str
    response: str = "{output}"
    train_on_prompt: bool = False
    whole_text: bool = False

    def prompt(self, example: Example) -> str:
        """The text in front of the response."""
        template = self.with_input if example.input else self.without_input
        return template.format(instruction=example.instruction, input=example.input)

    def answer(self, example: Example) -> str:
        """The response."""
        return self.response.format(output=example.output)


_ALPACA = "Below is an instruction that describes a task"


_PAIRED = f"{_ALPACA}, paired with an input that provides further context"


_WRITE = "Write a response that appropriately completes the request."


_INDENT = "\n\n" + 20 * " "  # the reference's source code indents the later lines of its prompt


# `lonas` is the training prompt of the reference, byte for byte (IntelLabs/Hardware-Aware-Automated-Machine-Learning,
# LoNAS/run_commonsense.py), two blanks and indentation included; `alpaca` (Taori et al. 2023) is what it was meant to be.
TEMPLATES = {
    template.name: template
    for template in (
        Template(
            "alpaca",
            f"{_ALPACA}. {_WRITE}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n",
            f"{_PAIRED}. {_WRITE}\n\n### Instruction:\n{{instruction}}\n\n### Input:\n{{input}}\n\n### Response:\n",
        ),
        Template(
            "question",
            "Question: {instruction}\nAnswer:",
            "{input}\nQuestion: {instruction}\nAnswer:",
            response=" {output}",
        ),
        Template(
            "lonas",
            f"{_ALPACA}. {_WRITE}  {_INDENT}### Instruction:\n{20 * ' '}{{instruction}}{_INDENT}### Response:\n{20 * ' '}",
            f"{_PAIRED}. {_WRITE} {_INDENT}### Instruction:\n{20 * ' '}{{instruction}}{_INDENT}### Input:\n{20 * ' '}{{input}}"
            f"{_INDENT}### Response:\n{20 * ' '}",
            train_on_prompt=True,
            whole_text=True,
        ),
    )
}


_INDENT_EVALUATION = "\n\n" + 24 * " "


# What `eval` asks with. The reference evaluates with another indentation and other blanks than it trains with
# (run_commonsense.py); its prompt of the training is `lonas-train` here.
EVALUATION_TEMPLATES = {
    **TEMPLATES,
    "lonas": Template(
        "lonas",
        f"{_ALPACA}. {_WRITE} {_INDENT_EVALUATION}### Instruction:\n{24 * ' '}{{instruction}}"
        f"{_INDENT_EVALUATION}### Response:\n{24 * ' '}",
        f"{_PAIRED}. {_WRITE}{_INDENT_EVALUATION}### Instruction:\n{24 * ' '}{{instruction}}"
        f"{_INDENT_EVALUATION}### Input:\n{24 * ' '}{{input}}{_INDENT_EVALUATION}### Response:\n{24 * ' '}",
    ),
    "lonas-train": TEMPLATES["lonas"],
}
