"""Load and compare tokenizers."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from lonas_edge.data.logit_score import read_logit_score
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import read_by, read_json, read_text

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_ROLES = ("bos", "eos", "pad", "unk")
_SHOWN = 5  # tokens that two tokenizers disagree on
TEXTS = (  # that tokenizers and networks are compared on
    "The sun is the star at the center of the Solar System. It is a massive, nearly perfect sphere of hot plasma.",
    "Question: Which of these is a renewable resource?\nAnswer: Wind, because it is not used up when it turns a turbine.",
    "def mean(values):\n    total = sum(values)\n    return total / len(values)\n\nprint(mean([1, 2, 3, 4, 5, 6]))",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
)


def require_tokenizer(folder: Path, purpose: str) -> Any:
    """Load a tokenizer that `purpose`, for the error, needs."""
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise LonasEdgeError(f"{folder}: no tokenizer files; {purpose} needs the model's tokenizer")
    return tokenizer


def load_tokenizer(folder: Path, chat_template: str | None = None, max_length: int | None = None) -> Any:
    """Load the tokenizer of a model directory, None where it has none.

    `chat_template` replaces its own default template, an empty one removes it. `max_length` is the number of tokens at which it
    cuts texts.
    """
    present = [name for name in _FILES if (folder / name).exists()]
    if not present:
        return None
    with read_by("transformers", folder / present[0]):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer("The sun is")["input_ids"]  # some errors appear on first use
    if chat_template == "":
        tokenizer.chat_template = None
    elif chat_template is not None:
        named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else None
        tokenizer.chat_template = {**named, "default": chat_template} if named else chat_template
    elif isinstance(tokenizer.chat_template, str) and (score := read_logit_score(folder)):
        tokenizer.chat_template = score.render_by(tokenizer.chat_template)
    if max_length is not None:
        tokenizer.model_max_length = max_length
    return tokenizer


def own_chat_template(adapter: Path) -> str | None:
    """The chat template that PEFT or TRL saved next to an adapter; None without one."""
    file, config = adapter / "chat_template.jinja", adapter / "tokenizer_config.json"
    if file.is_file():
        return read_text(file, "the chat template")
    template = read_json(config).get("chat_template") if config.is_file() else None
    return template if isinstance(template, str) else None


def check_vocabulary(tokenizer: Any, vocabulary: int, folder: Path) -> None:
    """Refuse a tokenizer of `folder` with tokens that the model has no embedding for.

    Special tokens that only occur when a text spells their name may be beyond: Gemma 3's text models have one for images.
    """
    used = {getattr(tokenizer, f"{role}_token_id", None) for role in _ROLES}
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special} - used
    beyond = {token: name for name, token in tokenizer.get_vocab().items() if token >= vocabulary and token not in special}
    raise_all(
        f"{folder}: the tokenizer has tokens beyond the model's vocabulary, 0 to {vocabulary - 1} (vocab_size in config.json):",
        [f"token {token} ({beyond[token]!r})" for token in sorted(beyond)],
        "Do tokenizer and model belong together?",
    )


def tokenizer_differences(first: Any, second: Any, padding: bool = True) -> list[str]:
    """List differences between two tokenizers; `padding` tells whether the padding token counts."""
    ours, theirs = ({number: token for token, number in each.get_vocab().items()} for each in (first, second))
    differing = [number for number in sorted(ours.keys() | theirs.keys()) if ours.get(number) != theirs.get(number)]
    differences = [f"token {number}: {ours.get(number)!r} and {theirs.get(number)!r}" for number in differing[:_SHOWN]]
    if len(differing) > _SHOWN:
        differences.append(f"{len(differing) - _SHOWN} more tokens differ")
    for role in _ROLES:
        token, other = (getattr(each, f"{role}_token_id", None) for each in (first, second))
        if token != other and (padding or role != "pad"):
            differences.append(f"{role} token: {token} and {other}")
    if differences:
        return differences
    texts = [text for text in TEXTS if first(text)["input_ids"] != second(text)["input_ids"]]
    return [f"{text[:40]!r}…: tokenized differently" for text in texts]
