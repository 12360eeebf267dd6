"""Configuration files of models.

transformers checks the types of the fields of config.json. Fields of other files that we and the libraries read are checked
here, by type and range; unknown ones are ignored, and so are missing ones except for a model's sizes. No torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic takes the one of typing from Python 3.12 on only

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import family_of
from lonas_edge.files import read_by, read_json
from lonas_edge.schema import field_faults

GENERATION = "generation_config.json"

MAX_SIZE = 2**24  # of an axis; the largest vocabularies have 2^18 entries
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
TokenId = Annotated[int, Field(ge=-1, lt=MAX_SIZE)]  # LLaMA 1 writes -1 for none
TokenIds = TokenId | list[TokenId] | None
TokenText = Annotated[str, Field(max_length=1000)]  # real ones have 50 characters; tokenizers takes minutes to match a huge one
AddedToken = dict[str, TokenText | bool | int | None]
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


class GenerationFields(TypedDict, total=False):
    """`generation_config.json`."""

    bos_token_id: TokenIds
    eos_token_id: TokenIds
    pad_token_id: TokenIds
    do_sample: bool | None
    temperature: Annotated[float, Field(ge=0)] | None
    top_k: Annotated[int, Field(ge=-1)] | None
    top_p: Share | None
    min_p: Share | None
    typical_p: Share | None
    repetition_penalty: Positive | None
    max_length: Annotated[int, Field(ge=1)] | None
    max_new_tokens: Annotated[int, Field(ge=1)] | None
    min_length: Annotated[int, Field(ge=0)] | None
    min_new_tokens: Annotated[int, Field(ge=0)] | None
    num_beams: Annotated[int, Field(ge=1)] | None
    num_return_sequences: Annotated[int, Field(ge=1)] | None
    stop_strings: str | list[str] | None
    suppress_tokens: list[int] | None
    begin_suppress_tokens: list[int] | None
    bad_words_ids: list[list[int]] | None
    use_cache: bool | None


class TokenizerFields(TypedDict, total=False):
    """`tokenizer_config.json`."""

    tokenizer_class: str | None
    model_max_length: float | None
    padding_side: Literal["left", "right"] | None
    truncation_side: Literal["left", "right"] | None
    clean_up_tokenization_spaces: bool | None
    add_bos_token: bool | None
    add_eos_token: bool | None
    add_prefix_space: bool | None
    added_tokens_decoder: dict[str, AddedToken]
    chat_template: str | list[dict[str, str]] | dict[str, str] | None
    bos_token: TokenText | AddedToken | None
    eos_token: TokenText | AddedToken | None
    unk_token: TokenText | AddedToken | None
    pad_token: TokenText | AddedToken | None


class AdapterFields(TypedDict, total=False):
    """`adapter_config.json`."""

    task_type: str | None
    base_model_name_or_path: str | None
    revision: str | None
    inference_mode: bool
    r: Annotated[int, Field(ge=1, le=MAX_SIZE)]
    lora_alpha: Annotated[float, Field(allow_inf_nan=False)]
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=MAX_SIZE)]] | None
    alpha_pattern: dict[str, Annotated[float, Field(allow_inf_nan=False)]] | None
    use_rslora: bool
    bias: Literal["none", "all", "lora_only"]
    lora_bias: bool
    target_modules: str | list[str] | None
    exclude_modules: str | list[str] | None
    layers_to_transform: int | list[int] | None
    layers_pattern: str | list[str] | None
    modules_to_save: list[str] | None
    ensure_weight_tying: bool
    fan_in_fan_out: bool
    runtime_config: dict[str, Any] | None


def read_config(folder: Path) -> dict[str, Any]:
    """Read a model's config.json."""
    content: dict[str, Any] = read_json(folder / "config.json")
    return content


def parse_config(content: Mapping[str, Any], where: str) -> Any:
    """Parse a config.json (`where` in errors) to the `PretrainedConfig` of its model type, which checks the fields."""
    if content.get("quantization_config"):
        raise LonasEdgeError(f"{where}: not a usable model: quantization_config: quantized bases are not supported")
    from transformers import AutoConfig  # takes a while

    with read_by("transformers", Path(where)):
        config = AutoConfig.for_model(**_with_infinity(content))
    family = family_of(config.model_type)
    missing = [names for names in (family.sizes if family else ()) if not any(name in content for name in names)]
    errors = [f"{' or '.join(names)}: missing" for names in missing] or _beyond(content, int(config.vocab_size))
    raise_all(f"{where}: not a usable model configuration:", errors, "Use the file that came with the weights.")
    return config


def _with_infinity(value: Any) -> Any:
    """Decode floats that JSON lacks: transformers writes `{"__float__": "Infinity"}`."""
    if isinstance(value, dict):
        return float(value["__float__"]) if value.keys() == {"__float__"} else {k: _with_infinity(v) for k, v in value.items()}
    return [_with_infinity(item) for item in value] if isinstance(value, list) else value


def read_generation_config(folder: Path, vocabulary: int | None = None) -> dict[str, Any] | None:
    """Read `generation_config.json`, None where there is none; token ids are checked if `vocabulary` is given."""
    path = folder / GENERATION
    if not path.exists():
        return None
    content = read_json(path)
    problems = field_faults(GenerationFields, content) or ([] if vocabulary is None else _beyond(content, vocabulary))
    raise_all(f"{path}: not usable:", problems, "Correct or delete it; it is optional.")
    from transformers import GenerationConfig  # takes a while

    with read_by("transformers", path):  # which knows more fields
        GenerationConfig.from_dict(content)
    return content


def _beyond(content: Mapping[str, Any], vocabulary: int) -> list[str]:
    ids = {name: content[name] if isinstance(content[name], list) else [content[name]] for name in _TOKENS if content.get(name)}
    return [
        f"{name}: expected a token of the vocabulary, 0 to {vocabulary - 1}, found {token}"
        for name, tokens in ids.items()
        for token in tokens
        if token is not None and token >= vocabulary
    ]
