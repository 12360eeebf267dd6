"""Mutations of JSON (fields, types, numbers, nesting) and of files with one JSON object per line."""

import json
import random
from collections.abc import Iterator
from typing import Any

from mutation import NotApplicableError, Target, edits, mutates, read_json

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 0.5, -2.5, 10**18, -(10**18), 2**63, 10**40),
    *(float("nan"), float("inf"), "", "text", "1", "../../etc", "\ud800", "a\0b", "x" * 100_000),
    *([], {}, [[]], [None], {"a": []}, {"": {}}),
)
# values with a meaning of their own, by file name and field
HOSTILE: dict[str, dict[str, tuple[Any, ...]]] = {
    "config.json": {
        "per_layer_config": ({"0": {"intermediate_size": 7}}, [1], {"x": 1}, {"99": {"a": 1}}),
        "model_type": ("gpt2", "phi3", "qwen2", 7, None),
        "dtype": ("int8", "float16", "complex64", 5),
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
        "attention_dropout": (9 * 10**18,),
        "rope_parameters": ({"rope_type": "yarn", "factor": "x"}, [], {"rope_theta": 0}, {"rope_type": 5}),
        "max_position_embeddings": (0, 1, 4, "many", 10**12),
        "eos_token_id": (10**6, -1, [1, 2], "1", [None]),
        "sliding_window": (2,),
        "architectures": (["BertModel"],),
        "auto_map": ({"AutoConfig": "mine.Mine"},),
        "quantization_config": ({"quant_method": "gptq", "bits": 4}, 5),
        "layer_types": (["full"], 5),
    },
    "adapter_config.json": {
        "r": (0, -1, 4, 16, "8", 4.5, 10**9, True, None),
        "lora_alpha": ("x", float("nan"), 0, -16, 16_000, 10**30, None, [16]),
        "target_modules": ("all-linear", ".*", "(", [], 5, {"a": 1}, ["q_proj"], None, "((a+)+)+$", [5]),
        "rank_pattern": ({"q_proj": 4}, {"(": 1}, [1], {"q_proj": "x"}, {"q_proj": -1}),
        "alpha_pattern": ({"q_proj": 4}, {"q_proj": "x"}, 5),
        "modules_to_save": (["lm_head"], ["nothing"], "lm_head", 5, [5]),
        "layers_to_transform": ([0], 1, ["x"], [99]),
        "base_model_name_or_path": ("/etc", 5, None, "", "owner/nothing", "\ud800", "a\x00b"),
        "use_rslora": (True,),
        "use_dora": (True,),
        "bias": ("all", "lora_only", 5),
        "fan_in_fan_out": (True,),
        "peft_type": ("IA3", 5),
        "task_type": ("SEQ_CLS", 5),
    },
    "generation_config.json": {
        "max_length": ("x",),
        "eos_token_id": ("x", 10**6),
        "temperature": (float("nan"),),
        "pad_token_id": ([None],),
    },
    "tokenizer_config.json": {
        "tokenizer_class": ("Mine", 5, None, "BertTokenizer", "../x"),
        "chat_template": ("{{ 1/0 }}", "{% for", 5, {"a": []}, [{"name": 1}]),
        "added_tokens_decoder": ({"x": {"content": "y"}}, {"400": {"content": "new"}}, 5, {"0": 7}),
        "model_max_length": ("x", -1, 10**40, 4),
        "eos_token": (None, 5, "not there", {"content": "</s>"}, ["</s>"]),
        "bos_token": (5, "x" * 200_000, {"content": "x" * 200_000}),
    },
    "lonas_edge.json": {
        "stage": ("checkpoint", "ir", 5),
        "schema": ("lonas-edge/manifest/99", 5, None),
        "weight_format": ("int2",),
        "sizes": ({},),
        "base": (None,),
    },
}


def shown(value: Any) -> str:
    return text if len(text := repr(value)) < 60 else f"{text[:60]}…"


def draw_key(content: Any, rng: random.Random) -> tuple[Any, Any, str]:
    """Draw a container in the document and a key of it; near the top is as likely as deep down. Also return the path."""
    if not isinstance(content, (dict, list)) or not content:
        raise NotApplicableError
    path = ""
    while True:
        key = rng.choice(list(content)) if isinstance(content, dict) else rng.randrange(len(content))
        path += f".{key}"
        if rng.random() < 0.35 or not isinstance(content[key], (dict, list)) or not content[key]:
            return content, key, path[:200]
        content = content[key]


@mutates("json", times=2)
def hostile_field(target: Target) -> str:
    content = read_json(target.path)
    if target.path.name not in HOSTILE or not isinstance(content, dict):
        raise NotApplicableError
    name, values = target.rng.choice(list(HOSTILE[target.path.name].items()))
    content[name] = target.rng.choice(values)
    target.path.write_text(json.dumps(content))
    return f"{name} = {shown(content[name])}"


@edits("json", times=3, decoded=True)
def another_value(content: Any, rng: random.Random) -> str:
    container, key, path = draw_key(content, rng)
    container[key] = rng.choice(VALUES)
    return f"{path} = {shown(container[key])}"


@edits("json", decoded=True)
def field_removed(content: Any, rng: random.Random) -> str:
    container, key, path = draw_key(content, rng)
    del container[key]
    return f"{path} removed"


@edits("json", decoded=True)
def field_added(content: Any, rng: random.Random) -> str:
    container, key, path = draw_key(content, rng)
    value = rng.choice(VALUES)
    if isinstance(container, dict):
        name = rng.choice(["unknown", "", "schema", "\ud800", "__class__", f"{key} "])
        container[name] = value
        return f"{name!r} = {shown(value)} next to {path}"
    container.insert(key, value)
    return f"{shown(value)} in front of {path}"


@edits("json", decoded=True)
def number_changed(content: Any, rng: random.Random) -> str:
    """A value of the right type, which a type check accepts."""

    def numbers(content: Any) -> Iterator[tuple[Any, Any]]:
        items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
        for key, value in items:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                yield content, key
            else:
                yield from numbers(value)

    known = list(numbers(content))
    if not known:
        raise NotApplicableError
    container, key = rng.choice(known)
    old = container[key]
    container[key] = rng.choice([old + 1, old - 1, -old, old * 2, old * 1000, old / 2])
    return f"{key} {old} became {container[key]}"


@mutates("json")
def another_document(target: Target) -> str:
    documents = ["null", "[]", "{}", "3", '"text"', "[{}]", "", " ", "NaN", "{}{}", "// nothing\n{}", "[" * 8]
    document = target.rng.choice([*documents, f"[{target.path.read_text()}]"])
    target.path.write_text(document)
    return f"the document is {shown(document)}"


@edits("json")
def huge_or_nested_value(content: bytearray, rng: random.Random) -> str:
    depth = rng.choice([900, 3000, 100_000])
    opened, closed = rng.choice([("[", "]"), ('{"a":', "}")])
    numbers = ["1" * 5000, "1e999", "-1e999", "0." + "3" * 5000, "1" * 400]
    value = rng.choice([*numbers, opened * depth + "1" + closed * depth])
    document = json.loads(content)
    container, key, path = draw_key(document, rng)
    container[key] = "\0here\0"
    content[:] = json.dumps(document).replace(json.dumps("\0here\0"), value).encode()
    return f"{path} is {len(value)} characters, {value[:6]}…"


@edits("json")
def field_twice(content: bytearray, rng: random.Random) -> str:
    document = json.loads(content)
    if not isinstance(document, dict) or not document:
        raise NotApplicableError
    name, value = rng.choice(list(document)), rng.choice(VALUES[:-6])
    content[:] = (json.dumps(document)[:-1] + f", {json.dumps(name)}: {json.dumps(value)}}}").encode()
    return f"{name} a second time, {shown(value)}"


@edits("lines")
def garbage_line(content: bytearray, rng: random.Random) -> str:
    lines = content.splitlines(keepends=True)
    index = rng.randrange(len(lines) + 1)
    line = rng.choice([b"garbage\n", b"\xff\xfe\n", b"{}\n", b"[1]\n", b"\n", b"null\n", b"[" * 5000 + b"\n"])
    content[:] = b"".join([*lines[:index], line, *lines[index:]])
    return f"line {index + 1} is {line[:20]!r}"


@edits("lines")
def line_changed(content: bytearray, rng: random.Random) -> str:
    lines = content.decode().splitlines()
    index = rng.randrange(len(lines))
    document = json.loads(lines[index])
    container, key, path = draw_key(document, rng)
    container[key] = rng.choice(VALUES)
    lines[index] = json.dumps(document)
    content[:] = ("\n".join(lines) + "\n").encode()
    return f"line {index + 1}: {path} = {shown(container[key])}"
