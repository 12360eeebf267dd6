"""Damage to JSON: fields, types, numbers, nesting; and to files of one object a line."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from damage import MUTATORS, Damaged, NotApplicableError, mutates

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 0.5, -2.5, 10**18, -(10**18), 2**31, 2**63, 10**40),
    *(float("nan"), float("inf"), "", "text", "1", "../../etc", "\ud800", "a\0b", "x" * 100_000),
    *([], {}, [[]], [None], {"a": []}, {"": {}}),
)
# what a field of its own meaning may be damaged to, by file name
HOSTILE: dict[str, dict[str, tuple[Any, ...]]] = {
    "config.json": {
        "per_layer_config": ({"0": {"intermediate_size": 7}}, [1], {"x": 1}, {"99": {"a": 1}}, "no"),
        "left_out_blocks": (["model.layers.0.mlp"], ["model.layers.9.mlp"], [1], "no"),
        "model_type": ("gpt2", "phi3", "qwen2", 7, None),
        "dtype": ("int8", "float8_e4m3fn", "float16", "complex64", 5),
        "head_dim": (0, 7, 10**9),
        "num_hidden_layers": (0, 2, 4, -1, 10**6, "3", 2.5),
        "hidden_size": (0, 63, -64, 2**31, "64"),
        "vocab_size": (0, 1, 100, 10**10, -5, "288"),
        "intermediate_size": (0, 96, -1, 10**12, [128]),
        "num_attention_heads": (0, 3, -4, 10**9, "4"),
        "num_key_value_heads": (0, 3, 4, -2, None, "2"),
        "hidden_act": ("relu", "nothing", 5, None),
        "tie_word_embeddings": (True, "yes", None),
        "rms_norm_eps": ("1e-6", -1, float("nan"), 0, 1e30),
        "rope_parameters": ({"rope_type": "yarn", "factor": "x"}, [], {"rope_theta": 0}, {"rope_type": 5}),
        "rope_theta": ("x", -1, 0),
        "max_position_embeddings": (0, 4, "many", 10**12),
        "eos_token_id": (10**6, -1, [1, 2], "1", [None]),
        "bos_token_id": (10**6,),
        "pad_token_id": (10**6,),
        "sliding_window": (2,),
        "architectures": (["BertModel"],),
        "auto_map": ({"AutoConfig": "mine.Mine"},),
        "quantization_config": ({"quant_method": "gptq", "bits": 4}, 5),
        "transformers_version": (3,),
        "attention_bias": ("yes",),
        "mlp_bias": (True,),
        "attn_implementation": ("flash",),
        "id2label": (5,),
        "use_cache": ("no",),
        "layer_types": (["full"], 5),
    },
    "adapter_config.json": {
        "r": (0, -1, 4, 16, "8", 4.5, 10**9, True, None),
        "lora_alpha": ("x", float("nan"), 0, -16, 10**30, None, [16]),
        "target_modules": ("all-linear", ".*", "(", [], 5, {"a": 1}, ["q_proj"], None, "((a+)+)+$", [5]),
        "rank_pattern": ({"q_proj": 4}, {"(": 1}, [1], {"q_proj": "x"}, {"q_proj": -1}),
        "alpha_pattern": ({"q_proj": 4}, {"q_proj": "x"}, 5),
        "modules_to_save": (["lm_head"], ["nothing"], "lm_head", 5, [5]),
        "layers_to_transform": ([0], 1, ["x"], [99]),
        "base_model_name_or_path": ("/etc", 5, None, "", "owner/nothing", "\ud800", "a\x00b"),
        "use_rslora": (True,),
        "use_dora": (True,),
        "bias": ("all", "lora_only", 5),
        "lora_bias": (True,),
        "fan_in_fan_out": (True,),
        "lora_dropout": (2,),
        "peft_type": ("IA3", 5),
        "init_lora_weights": ("pissa",),
        "task_type": ("SEQ_CLS", 5),
        "layers_pattern": (5,),
        "exclude_modules": (["q_proj"],),
        "revision": (5,),
    },
    "generation_config.json": {
        "max_length": ("x",),
        "eos_token_id": ("x", 10**6),
        "temperature": (float("nan"),),
        "top_k": (-1,),
        "bos_token_id": (10**9,),
        "pad_token_id": ([None],),
        "do_sample": ("no",),
        "cache_implementation": ("none",),
    },
    "tokenizer_config.json": {
        "tokenizer_class": ("Mine", 5, None, "BertTokenizer", "../x"),
        "chat_template": ("{{ 1/0 }}", "{% for", 5, {"a": []}, [{"name": 1}]),
        "added_tokens_decoder": ({"x": {"content": "y"}}, {"400": {"content": "new"}}, 5, {"0": 7}),
        "model_max_length": ("x", -1, 10**40, 4),
        "eos_token": (None, 5, "not there", {"content": "</s>"}, ["</s>"]),
        "auto_map": ({"AutoTokenizer": ["mine.Mine", None]},),
        "extra_special_tokens": (5,),
        "backend": (5,),
        "bos_token": (5, "x" * 200_000, {"content": "x" * 200_000}),
        "clean_up_tokenization_spaces": ("x",),
        "additional_special_tokens": ([5],),
    },
    "lonas_edge_runtime.json": {
        "properties": (
            {"CACHE_DIR": "stolen"},
            {"NOTHING": "1"},
            {"PERFORMANCE_HINT": "NO"},
            [],
            5,
            {"INFERENCE_NUM_THREADS": "-3"},
            {"KV_CACHE_PRECISION": "u1"},
            {"LOG_LEVEL": "1"},
        ),
        "in_ir": (["CACHE_DIR"],),
        "replaced_in_ir": ({"CACHE_DIR": "stolen"},),
        "device": ("TPU",),
        "mean_kl": (float("nan"),),
    },
    "lonas_edge.json": {
        "stage": ("checkpoint", "ir", "gguf", 5),
        "schema": ("lonas-edge/manifest/99", "lonas-edge/runtime/2", 5, None),
        "verified": ("no",),
        "prompt": (5, "nothing"),
        "weight_format": ("int2",),
        "sizes": ({},),
        "base": (None,),
    },
}


@mutates("json")
def a_hostile_field(at: Damaged) -> str:
    if at.path.name not in HOSTILE:
        raise NotApplicableError
    name, values = at.rng.choice(list(HOSTILE[at.path.name].items()))
    value = at.rng.choice(values)

    def change(content: Any) -> str:
        if not isinstance(content, dict):
            raise NotApplicableError
        content[name] = value
        return f"{name} = {shown(value)}"

    return _rewrite_json(at, change)


def shown(value: Any) -> str:
    return text if len(text := repr(value)) < 60 else f"{text[:60]}…"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise NotApplicableError from None


def _rewrite_json(at: Damaged, change: Callable[[Any], str]) -> str:
    content = _read_json(at.path)
    told = change(content)
    at.path.write_text(json.dumps(content))
    return told


def place_in(content: Any, rng: random.Random) -> tuple[Any, Any, str]:
    """A container in the document and a key of it, near the top as likely as deep down; and the way to it."""
    if not isinstance(content, (dict, list)) or not content:
        raise NotApplicableError
    way = ""
    while True:
        key = rng.choice(list(content)) if isinstance(content, dict) else rng.randrange(len(content))
        way += f".{key}"
        if rng.random() < 0.35 or not isinstance(content[key], (dict, list)) or not content[key]:
            return content, key, way[:200]
        content = content[key]


@mutates("json")
def another_value(at: Damaged) -> str:
    def change(content: Any) -> str:
        container, key, way = place_in(content, at.rng)
        container[key] = at.rng.choice(VALUES)
        return f"{way} = {shown(container[key])}"

    return _rewrite_json(at, change)


MUTATORS["json"] += [another_value] * 2  # as often as three of the others


@mutates("json")
def a_field_less(at: Damaged) -> str:
    def change(content: Any) -> str:
        container, key, way = place_in(content, at.rng)
        del container[key]
        return f"{way} left out"

    return _rewrite_json(at, change)


@mutates("json")
def a_field_more(at: Damaged) -> str:
    def change(content: Any) -> str:
        container, key, way = place_in(content, at.rng)
        value = at.rng.choice(VALUES)
        if isinstance(container, dict):
            name = at.rng.choice(["unknown", "", "schema", "format", "\ud800", "__class__", f"{key} "])
            container[name] = value
            return f"{name!r} = {shown(value)} beside {way}"
        container.insert(key, value)
        return f"{shown(value)} in front of {way}"

    return _rewrite_json(at, change)


@mutates("json")
def a_number_moved(at: Damaged) -> str:
    """A value of the right type: what a reader cannot refuse by looking at types."""
    places = list(_numbers(_read_json(at.path)))
    if not places:
        raise NotApplicableError
    place = at.rng.randrange(len(places))

    def change(content: Any) -> str:
        container, key = list(_numbers(content))[place]
        old = container[key]
        container[key] = at.rng.choice([old + 1, old - 1, -old, old * 2, old * 1000, old / 2])
        return f"{key} {old} became {container[key]}"

    return _rewrite_json(at, change)


def _numbers(content: Any) -> Iterator[tuple[Any, Any]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield content, key
        else:
            yield from _numbers(value)


@mutates("json")
def another_whole(at: Damaged) -> str:
    whole = at.rng.choice(["null", "[]", "{}", "3", '"text"', "[{}]", "", " ", "NaN", "{}{}", "// nothing\n{}", "[" * 8])
    at.path.write_text(whole)
    return f"the whole file is {whole!r}"


@mutates("json")
def in_a_list(at: Damaged) -> str:
    at.path.write_text(f"[{at.path.read_text()}]")
    return "the whole in a list"


@mutates("json")
def a_huge_number(at: Damaged) -> str:
    digits = at.rng.choice(["1" * 5000, "1e999", "-1e999", "0." + "3" * 5000, "1" * 400])
    return _instead_of_a_value(at, digits, f"a number of {len(digits)} characters, {digits[:6]}…")


@mutates("json")
def deeply_nested(at: Damaged) -> str:
    depth = at.rng.choice([900, 3000, 100_000])
    opened, closed = at.rng.choice([("[", "]"), ('{"a":', "}")])
    return _instead_of_a_value(at, opened * depth + "1" + closed * depth, f"{depth} deep in {opened}")


def _instead_of_a_value(at: Damaged, raw: str, told: str) -> str:
    def change(content: Any) -> str:
        container, key, way = place_in(content, at.rng)
        container[key] = "\0place\0"
        return f"{way} is {told}"

    said = _rewrite_json(at, change)
    at.path.write_text(at.path.read_text().replace(json.dumps("\0place\0"), raw))
    return said


@mutates("json")
def a_field_twice(at: Damaged) -> str:
    content = _read_json(at.path)
    if not isinstance(content, dict) or not content:
        raise NotApplicableError
    name, value = at.rng.choice(list(content)), at.rng.choice(VALUES[:-6])
    at.path.write_text(json.dumps(content)[:-1] + f", {json.dumps(name)}: {json.dumps(value)}}}")
    return f"{name} a second time, {shown(value)}"


# lines of JSON


@mutates("lines")
def a_garbage_line(at: Damaged) -> str:
    lines = at.path.read_bytes().splitlines(keepends=True)
    place = at.rng.randrange(len(lines) + 1)
    line = at.rng.choice(
        [b"garbage\n", b"\xff\xfe\n", b"{}\n", b"[1]\n", b"\n", b"null\n", b"[" * 5000 + b"\n", b'"\\ud800"\n']
    )
    at.path.write_bytes(b"".join([*lines[:place], line, *lines[place:]]))
    return f"line {place + 1} is {line[:20]!r}"


@mutates("lines")
def a_line_changed(at: Damaged) -> str:
    lines = at.path.read_text().splitlines()
    place = at.rng.randrange(len(lines))
    content = _json_line(lines[place])
    container, key, way = place_in(content, at.rng)
    container[key] = at.rng.choice(VALUES)
    lines[place] = json.dumps(content)
    at.path.write_text("\n".join(lines) + "\n")
    return f"line {place + 1}: {way} = {shown(container[key])}"


def _json_line(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise NotApplicableError from None
