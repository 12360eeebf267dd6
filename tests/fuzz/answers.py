"""Results ("answers") of commands, and whether a result on a mutated input is correct.

For exports, transformers and PEFT compute the expected logits from the same mutated files. For other commands the mutated file
must be valid by itself, and no record may hold its hash.
"""

import json
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from commands import Command
from openvino_models import ir_logits
from oracle import cut, read_groups, read_removed, silence
from runner import Ran
from safetensors.torch import load_file
from tiny_bert import pairs

_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 2e-1}  # of logits in a checkpoint of this dtype
_IDS = torch.randint(2, 260, (2, 8), generator=torch.Generator().manual_seed(3))
_TEXTS = ("The sun is a star.", " def mean(values):\n", "é ñ 漢字 🙂")
_COPIED = ("generation_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Case:
    """A command that ran on a mutated file.

    Attributes:
        command: The command.
        file: The mutated file, relative to the working directory.
        mutation: The mutator and what it changed.
        folder: The case's directory; the command ran in its `in`.
        home: The original files.
        ran: How the command ended.
        before: The files before the run.
        after: The files after the run.
        expected: The answers on the original files.
    """

    command: Command
    file: str
    mutation: str
    folder: Path
    home: Path
    ran: Ran
    before: dict[str, tuple[object, ...]]
    after: dict[str, tuple[object, ...]]
    expected: Any


def answers_of(command: Command, folder: Path, ran: Ran) -> Any:
    """The answers of a successful run, as JSON holds them."""
    return _ANSWERS[command.kind](folder / "in", ran)


def equal(first: Any, second: Any) -> bool:
    """Whether two answers are equal, floats to 1e-6."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(equal, first, second))
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-6)
    return bool(first == second)


def _export_answer(folder: Path, ran: Ran) -> Any:
    out = folder / "out"
    config = json.loads((out / "config.json").read_text())
    special = {name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    logits = ir_logits(out, _IDS % config["vocab_size"]) if (out / "openvino_model.xml").exists() else _checkpoint_logits(out)
    return {
        "logits": logits.double().flatten().tolist(),
        "tokens": _tokens(out),
        "widths": list(json.loads((out / "subnetwork.json").read_text())["widths"].values()),
        "special": special,
        **{name: _text(out / name) for name in _COPIED},
    }


def _checkpoint_logits(out: Path) -> torch.Tensor:
    from lonas_edge import load_checkpoint

    return _logits(load_checkpoint(out, torch.float64))


def _logits(model: Any) -> torch.Tensor:
    """Logits at fixed tokens, of a language model or a classifier."""
    vocabulary = model.config.vocab_size
    inputs = {"input_ids": _IDS % vocabulary, "use_cache": False}
    if model.config.model_type == "bert":
        inputs = pairs()
        inputs["input_ids"] = inputs["input_ids"] % vocabulary
    with torch.no_grad():
        return model.eval()(**inputs).logits


def _text(path: Path) -> str | None:
    return path.read_bytes().decode("latin-1") if path.is_file() else None


def _tokens(folder: Path) -> Any:
    """Tokens of a few texts; None without a tokenizer."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
    return [special, *(tokenizer(text)["input_ids"] for text in _TEXTS)]


def _trim_answer(folder: Path, _ran: Ran) -> Any:
    out = folder / "out"
    kept = json.loads((out / "vocabulary.json").read_text())["kept"]
    logits, texts = _logits_of_kept(out, list(range(len(kept)))), _texts_of(out)
    return {"kept": kept, "logits": logits.flatten().tolist(), "texts": texts, "tokens": _tokens(out)}


def _logits_of_kept(folder: Path, kept: list[int]) -> torch.Tensor:
    """Logits in float64 of the kept tokens, after each eighth of them."""
    _, kind = _opened_config(folder)
    model = kind.from_pretrained(folder, dtype=torch.float64, local_files_only=True).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([kept[::8]]), use_cache=False).logits[..., kept]


def _texts_of(folder: Path) -> list[str] | None:
    """Texts after encoding and decoding."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return [tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) for text in _TEXTS]


def _adapter_answer(folder: Path, _ran: Ran) -> Any:
    tensors = load_file(folder / "out/adapter_model.safetensors")
    return {name: value.double().flatten().tolist() for name, value in sorted(tensors.items())}


def _search_answer(_folder: Path, ran: Ran) -> Any:
    record = json.loads(ran.out)
    kept = ("widths", "quality", "cost")
    return {"front": record["front"], "evaluations": [[each[name] for name in kept] for each in record["evaluations"]]}


_ANSWERS: dict[str, Callable[[Path, Ran], Any]] = {
    "inspect": lambda _folder, ran: json.loads(ran.out),
    "space": lambda folder, _ran: json.loads((folder / "out.json").read_text()),
    "checkpoint": _export_answer,
    "ir": _export_answer,
    "classifier": _export_answer,
    "other": _export_answer,
    "search": _search_answer,
    "trim": _trim_answer,
    "adapter": _adapter_answer,
    "resumed": _adapter_answer,
    "eval": lambda _folder, ran: [target["tasks"] for target in json.loads(ran.out)["targets"]],
    "bench": lambda folder, ran: [sorted(json.loads(ran.out)), _text(folder / "ir/openvino_model.bin")],
}


# checks of answers that differ from the expected ones: "" if the answer is right for the mutated input, or what is wrong


def _check_inspect(case: Case, answers: Any) -> str:
    base, adapter, space = _inputs(case)
    parameters = _parameters(base)
    if answers["unpruned"]["parameters"] != parameters:
        return f"{answers['unpruned']['parameters']:,} parameters, and transformers counts {parameters:,}"
    if space is not None:
        lists = _widths(space)
        if [sorted(set(widths)) for widths in lists] != [sorted(set(group["widths"])) for group in answers["groups"]]:
            return f"the file's widths are {lists}"
        if any(type(width) is not int for widths in lists for width in widths):
            return f"widths that are no integers: {lists}"
    if adapter is not None and "adapter_config" in case.file:
        from peft import LoraConfig

        config = LoraConfig.from_pretrained(adapter)
        if not (isinstance(config.r, int) and config.r > 0 and math.isfinite(config.lora_alpha)):
            return f"a rank of {config.r!r}, an alpha of {config.lora_alpha!r}"
    return ""


def _widths(space: Path) -> list[list[Any]]:
    elasticity = json.loads(space.read_text(encoding="utf-8-sig"))["bootstrapNAS"]["training"]["elasticity"]
    blocks = elasticity.get("lonas_edge", {}).get("blocks", [])
    return [*elasticity["width"]["overwrite_groups_widths"], *([1, 0] for _ in blocks)]


def _opened_config(base: Path) -> tuple[Any, Any]:
    """A base's configuration, and its class of models."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(base, local_files_only=True)
    return config, AutoModelForSequenceClassification if config.model_type == "bert" else AutoModelForCausalLM


def _parameters(base: Path) -> int:
    from accelerate import init_empty_weights

    config, kind = _opened_config(base)
    with init_empty_weights():
        model = kind.from_config(config)
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def _check_space(case: Case, answers: Any) -> str:
    base = case.folder / "in/base"
    _parameters(base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8-sig"))
    width = answers["bootstrapNAS"]["training"]["elasticity"]["width"]
    layers = {int(number) for number in re.findall(r"Layer\[(\d+)\]", json.dumps(width["overwrite_groups"]))}
    if layers != set(range(int(config["num_hidden_layers"]))):
        return f"layers {sorted(layers)} of {config['num_hidden_layers']}"
    widest = {max(widths) for widths in width["overwrite_groups_widths"]} - {32}
    mlp = config.get("intermediate_size") or 4 * int(config["hidden_size"])  # BLOOM's
    return "" if widest == {mlp} else f"widths of {widest}, the model's is {mlp}"


def _inputs(case: Case) -> tuple[Path, Path | None, Path | None]:
    """Base, adapter and search space of the command line."""
    arguments, folder = case.command.arguments, case.folder / "in"
    adapter = next((folder / name for name in ("adapter-pickled", "adapter", "super") if name in arguments), None)
    base = next((folder / name for name in ("base-sharded", "base-pickled") if name in arguments), folder / "base")
    space = folder / ("super/nncf_config.json" if "super" in arguments else "space.json")
    return base, adapter, space if adapter else None


def _check_export(case: Case, answers: Any) -> str:
    base, adapter, space = _inputs(case)
    if message := _recorded(case, adapter) or _check_copies(base, answers):
        return message
    expected = oracle(base, adapter, space, answers["widths"])
    config, stored = json.loads((case.folder / "in/out/config.json").read_text()), case.command.kind != "ir"
    difference = (torch.tensor(answers["logits"], dtype=torch.float64) - expected.flatten()).abs().max().item()
    allowed = (_TOLERANCE[config.get("dtype", "float32")] if stored else 1e-3) * max(1, expected.abs().max().item())
    if not difference <= allowed:
        return f"logits differ from the oracle's by {difference:.3g}, allowed {allowed:.3g}"
    for name, value in answers["special"].items():
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(token) is not int or not 0 <= token < config["vocab_size"] for token in ids):
            return f"{name} {value} is not in the vocabulary of {config['vocab_size']}"
    return ""


def _check_trim(case: Case, answers: Any) -> str:
    """The trimmed model gives the logits of the mutated base at the kept ids, and texts survive as with its tokenizer."""
    base = case.folder / "in/base"
    if case.file == "data.json" and (message := _check_texts(case.folder / "in" / case.file)):
        return message
    if answers["texts"] != _texts_of(base):
        return "texts differ after encoding and decoding"
    expected = _logits_of_kept(base, answers["kept"]).flatten()
    logits = torch.tensor(answers["logits"], dtype=torch.float64)
    tolerance = 1e-4 * max(1, expected.nan_to_num().abs().max().item())
    same = torch.allclose(logits, expected, rtol=0, atol=tolerance, equal_nan=True)  # weights besides the tokens' are copied
    return "" if same else "logits differ from the base's"


def _recorded(case: Case, adapter: Path | None) -> str:
    """Whether the super-adapter's record holds the hash of the mutated file."""
    if adapter is None or not (case.home / adapter.name / "training.json").is_file() or not case.file.startswith("base/"):
        return ""
    known = json.loads((case.home / adapter.name / "training.json").read_text())["base"]["sha256"]
    return "its recorded hash differs" if Path(case.file).name in known else ""


def _check_copies(base: Path, answers: Any) -> str:
    """Copied files must mean the same as the base's, and tokens must be in the vocabulary."""
    for name in _COPIED:
        copy, original = answers[name], _text(base / name)
        if name.endswith(".jinja") and original is None:  # transformers 5 writes a template of tokenizer_config.json there
            original = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8-sig")).get("chat_template")
        if copy is None or copy == original:
            continue
        if name.endswith(".jinja") or json.loads(copy.encode("latin-1")) != json.loads(original.encode("latin-1")):
            return f"{name} is not the base's"
    if answers["tokens"] != _tokens(base):
        return "the tokenizer is not the base's"
    largest = max((token for ids in (answers["tokens"] or [[]])[1:] for token in ids), default=0)
    vocabulary = json.loads((base / "config.json").read_text(encoding="utf-8-sig"))["vocab_size"]
    return f"token {largest} beyond the vocabulary of {vocabulary}" if largest >= vocabulary else ""


def oracle(base: Path, adapter: Path | None, space: Path | None, widths: list[int]) -> torch.Tensor:
    """Expected logits in float64: PEFT reads and merges the adapter, inactive channels and blocks are set to zero."""
    from peft import PeftModel

    config, kind = _opened_config(base)
    bert = config.model_type == "bert"
    options: dict[str, Any] = {"dtype": torch.float64, "output_loading_info": True, "local_files_only": True}
    if bert and adapter is not None:  # the adapter carries the classifier
        options["num_labels"] = len(load_file(adapter / "adapter_model.safetensors")["base_model.model.classifier.weight"])
    model, info = kind.from_pretrained(base, **options)
    unexpected = [name for name, value in info.items() if value and name not in ("unexpected_keys", "missing_keys")]
    if unexpected or [name for name in info["missing_keys"] if not (bert and name.startswith("classifier."))]:
        raise ValueError(f"transformers does not find all tensors: {str(info)[:150]}")
    ranks, outputs = read_groups(space, widths) if space and widths else ({}, {})
    order = {}
    if adapter:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*(missing|unexpected).*", category=UserWarning)
            peft = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
        for name, parameter in peft.named_parameters():
            layer = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
            if ".lora_A." in name and layer in ranks:
                parameter.data[ranks[layer] :] = 0
        model = peft.double().merge_and_unload()
        path = adapter / "channel_order.safetensors"
        order = load_file(path) if path.is_file() else {}
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for layer, width in outputs.items():
            if bert:  # zero the columns of the layer that reads the heads or MLP channels
                reader = f"{re.split(r'[.](?:self|intermediate)[.]', layer)[0]}.output.dense"
                columns = weights[f"{reader}.weight"]
                columns[:, order.get(reader, torch.arange(columns.shape[1]))[width:]] = 0
            else:
                cut(weights, layer, width, order)
        for block in read_removed(space, widths) if space and widths else []:
            silence(weights, block)
    return _logits(model)


def _check_validity(case: Case, _answers: Any) -> str:
    """Without an oracle: the mutated file must be valid by itself, and no record may hold its hash."""
    base, adapter, space = _inputs(case)
    path, name = case.folder / "in" / case.file, Path(case.file).name
    if case.file.startswith(("ir/", "out.partial/", "searched/")):
        return "another result without a warning"
    if message := _recorded(case, adapter):
        return message
    if path.suffix == ".tsv":
        return _check_table(path)
    if name == "chat.jsonl" or path.parent.name == "boolq" or name == "data.json":
        return _check_texts(path)
    lists = [json.loads(path.read_bytes())["widths"]] if case.file == "subnet.json" else _widths(space) if space else []
    if any(type(width) is not int for widths in lists for width in widths):
        return "widths that are no integers"
    if case.file == "subnet.json":
        return ""
    _tokens(base)
    if case.file.startswith("checkpoint/"):  # as a teacher it may be any model with the same tokens
        recorded = json.loads((case.home / "checkpoint/lonas_edge.json").read_text()).get("files") or {}
        return "another result without a warning" if case.command.kind == "eval" or name in recorded else ""
    oracle(base, adapter, None, [])
    return ""


def _check_table(path: Path) -> str:
    lines = path.read_bytes().decode("utf-8-sig").rstrip("\n").split("\n")
    columns = lines[0].rstrip("\r").split("\t")
    first, _, label = [columns.index(name) for name in ("sentence1", "sentence2", "label")]
    rows = [line.rstrip("\r").split("\t") for line in lines[1:] if line.strip()]
    wrong = [row for row in rows if row[label] not in ("entailment", "not_entailment") or not row[first].strip()]
    return f"rows {wrong[:3]} are not RTE's" if wrong or not rows else ""


def _check_texts(path: Path) -> str:
    """Every example has its texts, and no lone surrogates."""
    text = path.read_bytes().decode("utf-8-sig")
    items = (
        json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line.strip()]
    )
    json.dumps(items, ensure_ascii=False).encode()
    rows = [row for item in items for row in item.get("messages", [item])]
    names = ("content", "instruction", "output") if "boolq" not in path.parts else ("instruction", "answer")
    return "examples without a text" if any(not isinstance(row.get(name, ""), str) for row in rows for name in names) else ""


CHECKS: dict[str, Callable[[Case, Any], str]] = {
    "inspect": _check_inspect,
    "space": _check_space,
    "trim": _check_trim,
    "checkpoint": _check_export,
    "ir": _check_export,
    "classifier": _check_export,
    "resumed": lambda *_: "another adapter than without the interruption",
    **dict.fromkeys(("other", "search", "adapter", "eval", "bench"), _check_validity),
}
