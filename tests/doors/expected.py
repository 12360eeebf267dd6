"""What commands answer, and whether an answer to a damaged input is the right one for it.

For an export an oracle is asked: transformers and PEFT on the same damaged files. Where there is none, the damaged file must be
whole by itself, and no record may hold its hash. Nothing here is the package's but the reader of its checkpoints.
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
from oracle import cut, read_groups
from runner import Ran
from safetensors.torch import load_file
from tiny_bert import pairs
from world import Command

_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 2e-1}  # of logits in a checkpoint of this dtype


@dataclass(frozen=True)
class Case:
    """A command that was run: what was damaged, what lay there before and after, and the undamaged files.

    Attributes:
        command: The command.
        file: The damaged file, from the working directory.
        told: What was done to it.
        folder: The case's directory; the command ran in its `in`.
        home: The undamaged files.
        ran: How it ended.
        before: What lay there before.
        after: What lay there after.
        expected: What it answers on the undamaged files.
    """

    command: Command
    file: str
    told: str
    folder: Path
    home: Path
    ran: Ran
    before: dict[str, tuple[object, ...]]
    after: dict[str, tuple[object, ...]]
    expected: Any


def answers_of(command: Command, folder: Path, ran: Ran) -> Any:
    """What a successful run answers, as JSON can hold it; computes."""
    return _ANSWERS[command.kind](folder / "in", ran)


def equal(found: Any, expected: Any) -> bool:
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(equal(found[key], expected[key]) for key in found)
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(equal, found, expected))
    if isinstance(found, float) and isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-6)
    return bool(found == expected)


IDS = torch.randint(2, 260, (2, 8), generator=torch.Generator().manual_seed(3))
_TEXTS = ("The sun is a star.", " def mean(values):\n", "é ñ 漢字 🙂")


def _json_answer(_folder: Path, ran: Ran) -> Any:
    return json.loads(ran.out)


def _space_answer(folder: Path, _ran: Ran) -> Any:
    return json.loads((folder / "out.json").read_text())


def _export_answer(logits: Callable[[Path, Any], torch.Tensor], given: Callable[[int], Any]) -> Callable[[Path, Ran], Any]:
    def answer(folder: Path, _ran: Ran) -> Any:
        out = folder / "out"
        config = json.loads((out / "config.json").read_text())
        ids = given(int(config["vocab_size"]))
        copied = {name: _bytes(out / name) for name in ("generation_config.json", "chat_template.jinja")}
        widths = list(json.loads((out / "subnetwork.json").read_text())["widths"].values())
        special = {name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "hidden_act")}
        found = logits(out, ids).double()
        return {"logits": found.flatten().tolist(), "tokens": _tokens(out), "widths": widths, "special": special, **copied}

    return answer


def _ids(vocabulary: int) -> torch.Tensor:
    return IDS % vocabulary


def _pairs(vocabulary: int) -> dict[str, torch.Tensor]:
    inputs = pairs()
    return inputs | {"input_ids": inputs["input_ids"] % vocabulary}


def _checkpoint_logits(out: Path, ids: torch.Tensor) -> torch.Tensor:
    from lonas_edge import load_checkpoint

    with torch.no_grad():
        return load_checkpoint(out, torch.float64)(input_ids=ids, use_cache=False).logits


def _ir_logits(out: Path, ids: torch.Tensor) -> torch.Tensor:
    from openvino_models import ir_logits

    return ir_logits(out, ids)


def _classes(out: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    from lonas_edge import load_checkpoint

    with torch.no_grad():
        return load_checkpoint(out, torch.float64)(**inputs).logits


def _ir_classes(out: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    import openvino as ov

    compiled = ov.Core().compile_model(out / "openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled({name: tensor.numpy() for name, tensor in inputs.items()})["logits"])


def _bytes(path: Path) -> str | None:
    return path.read_bytes().decode("latin-1") if path.is_file() else None


def _tokens(folder: Path) -> Any:
    """Tokens of a few texts; None without a tokenizer."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
    return [special, *(tokenizer(text)["input_ids"] for text in _TEXTS)]


def _adapter_answer(folder: Path, _ran: Ran) -> Any:
    tensors = load_file(folder / "out/adapter_model.safetensors")
    return {name: value.double().flatten().tolist() for name, value in sorted(tensors.items())}


def _search_answer(_folder: Path, ran: Ran) -> Any:
    found = json.loads(ran.out)
    kept = ("widths", "weight_format", "quality", "cost", "origin")
    return {"front": found["front"], "evaluations": [{name: one[name] for name in kept} for one in found["evaluations"]]}


def _eval_answer(_folder: Path, ran: Ran) -> Any:
    return [target["tasks"] for target in json.loads(ran.out)["targets"]]


def _bench_answer(folder: Path, ran: Ran) -> Any:
    json.loads(ran.out)
    return {path.name: _bytes(path) for path in sorted((folder / "ir").glob("openvino_model.bin"))}


_ANSWERS: dict[str, Callable[[Path, Ran], Any]] = {
    "inspect": _json_answer,
    "space": _space_answer,
    "checkpoint": _export_answer(_checkpoint_logits, _ids),
    "solved": _export_answer(_checkpoint_logits, _ids),
    "ir": _export_answer(_ir_logits, _ids),
    "stored": _export_answer(_ir_logits, _ids),
    "classifier": _export_answer(_classes, _pairs),
    "classifier-ir": _export_answer(_ir_classes, _pairs),
    "search": _search_answer,
    "adapter": _adapter_answer,
    "resumed": _adapter_answer,
    "eval": _eval_answer,
    "bench": _bench_answer,
}


# answers that differ from the undamaged ones: "" where they are right for the damaged input, else what is wrong


def _inspect_explained(case: Case, found: Any) -> str:
    folder = case.folder / "in"
    base, _, space = _inputs(case)
    parameters = _parameters(base)
    if found["unpruned"]["parameters"] != parameters:
        return f"{found['unpruned']['parameters']:,} parameters, and transformers counts {parameters:,}"
    if space is not None:
        lists = _width_lists(space) + _block_lists(space)
        shown = [group["widths"] for group in found["groups"]]
        if [sorted(set(widths)) for widths in lists] != [sorted(set(widths)) for widths in shown]:
            return f"the file's widths are {lists}, shown {shown}"
        if any(not isinstance(width, int) or isinstance(width, bool) for widths in lists for width in widths):
            return f"widths that are no whole numbers: {lists}"
    return _lora_fault(folder / Path(case.file).parent) if "adapter_config" in case.file else ""


def _lora_fault(adapter: Path) -> str:
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(adapter)
    right = isinstance(config.r, int) and config.r > 0 and math.isfinite(config.lora_alpha)
    return "" if right else f"a rank of {config.r!r}, an alpha of {config.lora_alpha!r}"


def _width_lists(space: Path) -> list[list[Any]]:
    content = json.loads(space.read_text(encoding="utf-8-sig"))
    return content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups_widths"]


def _block_lists(space: Path) -> list[list[Any]]:
    content = json.loads(space.read_text(encoding="utf-8-sig"))
    return [[1, 0] for _ in content["bootstrapNAS"]["training"]["elasticity"].get("lonas_edge", {}).get("blocks", [])]


def _parameters(base: Path) -> int:
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(base, local_files_only=True)
    kind = AutoModelForSequenceClassification if config.model_type == "bert" else AutoModelForCausalLM
    with init_empty_weights():
        model = kind.from_config(config)
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def _space_explained(case: Case, found: Any) -> str:
    base = case.folder / "in/base"
    _parameters(base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8-sig"))
    width = found["bootstrapNAS"]["training"]["elasticity"]["width"]
    widest = {max(widths) for widths in width["overwrite_groups_widths"]} - {32}
    layers = {
        int(number) for node in json.dumps(width["overwrite_groups"]).split() for number in re.findall(r"Layer\[(\d+)\]", node)
    }
    if layers != set(range(int(config["num_hidden_layers"]))):
        return f"layers {sorted(layers)} of {config['num_hidden_layers']}"
    mlp = config.get("intermediate_size") or 4 * int(config["hidden_size"])  # BLOOM's
    return "" if widest == {mlp} else f"widths of {widest}, the model's is {mlp}"


def _inputs(case: Case) -> tuple[Path, Path | None, Path | None]:
    """Base, adapter and search space of the command line."""
    arguments, folder = case.command.arguments, case.folder / "in"
    named = next((folder / name for name in ("adapter-pickled", "adapter", "super") if name in arguments), None)
    base = next((folder / name for name in ("base-sharded", "base-pickled") if name in arguments), folder / "base")
    space = folder / ("super/nncf_config.json" if "super" in arguments else "space.json")
    return base, named, space if named else None


def _export_explained(case: Case, found: Any) -> str:
    """The oracle on the damaged input; files that are copied must be as they are there, and whole."""
    base, adapter, space = _inputs(case)
    if recorded := _recorded(case, adapter):
        return recorded
    if faults := _copied_faults(base, found):
        return faults
    oracle = _classifier_oracle if case.command.kind.startswith("classifier") else _oracle
    expected = oracle(base, adapter, space, found["widths"])
    out, stored = case.folder / "in/out", case.command.kind in ("checkpoint", "classifier")
    dtype = json.loads((out / "config.json").read_text()).get("dtype", "float32") if stored else "float32"
    logits = torch.tensor(found["logits"], dtype=torch.float64)
    difference = (logits - expected.flatten()).abs().max().item()
    allowed = (_TOLERANCE[dtype] if stored else 1e-3) * max(1, expected.abs().max().item())
    if not difference <= allowed:
        return f"logits are {difference:.3g} from the oracle's on the same input, allowed {allowed:.3g}"
    special = {name: value for name, value in found["special"].items() if name.endswith("_id")}
    vocabulary = json.loads((out / "config.json").read_text())["vocab_size"]
    for name, value in special.items():
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(not isinstance(one, int) or not 0 <= one < vocabulary for one in ids):
            return f"{name} {value} is not in the vocabulary of {vocabulary}"
    return ""


def _recorded(case: Case, adapter: Path | None) -> str:
    """Whether the super-adapter recorded the hash of the damaged file."""
    if adapter is None or not (case.home / adapter.name / "training.json").is_file() or not case.file.startswith("base/"):
        return ""
    known = json.loads((case.home / adapter.name / "training.json").read_text())["base"]["sha256"]
    return "its recorded hash is another" if Path(case.file).name in known else ""


def _copied_faults(base: Path, found: Any) -> str:
    for name in ("generation_config.json", "chat_template.jinja"):
        if found[name] is None:
            continue
        if found[name] != _bytes(base / name):
            if name.endswith(".json") and json.loads(found[name].encode("latin-1")) != json.loads((base / name).read_bytes()):
                return f"{name} is not the base's"
            continue  # written anew, to the same effect
        content = found[name].encode("latin-1").decode("utf-8")
        if name.endswith(".json") and not isinstance(json.loads(content), dict):
            return f"{name} is no JSON object"
    if found["tokens"] != _tokens(base):
        return "the tokenizer is not the base's"
    tokens = [token for ids in (found["tokens"] or [[]])[1:] for token in ids]
    vocabulary = json.loads((base / "config.json").read_text(encoding="utf-8-sig"))["vocab_size"]
    return f"token {max(tokens)} beyond the vocabulary of {vocabulary}" if tokens and max(tokens) >= vocabulary else ""


def _oracle(base: Path, adapter: Path | None, space: Path | None, widths: list[int]) -> torch.Tensor:
    """As `oracle.oracle_logits`, but adapters are read and merged by PEFT: rank patterns, rsLoRA, saved modules."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float64, output_loading_info=True, local_files_only=True
    )
    lacking = {name: value for name, value in info.items() if value and name != "unexpected_keys"}
    if lacking:
        raise ValueError(f"transformers finds not all: {str(lacking)[:150]}")
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
            cut(weights, layer, width, order)
        return model.eval()(input_ids=IDS % model.config.vocab_size, use_cache=False).logits


def _classifier_oracle(base: Path, adapter: Path | None, space: Path | None, widths: list[int]) -> torch.Tensor:
    """As `_oracle`, of a BERT whose head the adapter carries: what reads heads and channels that are cut is zero there."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    assert adapter is not None
    saved = load_file(adapter / "adapter_model.safetensors")
    outputs = len(saved["base_model.model.classifier.weight"])
    model, info = AutoModelForSequenceClassification.from_pretrained(
        base, dtype=torch.float64, num_labels=outputs, output_loading_info=True, local_files_only=True
    )
    lacking = [name for name in info["missing_keys"] if not name.startswith("classifier.")]
    if lacking or info["mismatched_keys"]:
        raise ValueError(f"transformers finds not all: {lacking[:3]}")
    ranks, rows = read_groups(space, widths) if space and widths else ({}, {})
    peft = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    for name, parameter in peft.named_parameters():
        layer = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
        if ".lora_A." in name and layer in ranks:
            parameter.data[ranks[layer] :] = 0
    weights = dict(peft.double().merge_and_unload().named_parameters())
    path = adapter / "channel_order.safetensors"
    order = load_file(path) if path.is_file() else {}
    with torch.no_grad():
        for layer, width in rows.items():
            owner, reader = (
                (layer.partition(".self.")[0], "output.dense")
                if ".self." in layer
                else (layer.partition(".intermediate.")[0], "output.dense")
            )
            columns = weights[f"{owner}.{reader}.weight"]
            columns[:, order.get(f"{owner}.{reader}", torch.arange(columns.shape[1]))[width:]] = 0
        return model.eval()(**_pairs(model.config.vocab_size)).logits


def _explained_by_input(case: Case, _found: Any) -> str:
    """Of commands whose answers no oracle gives: whether the damaged file is whole by itself and nothing records its hash."""
    base, adapter, space = _inputs(case)
    path, name = case.folder / "in" / case.file, Path(case.file).name
    if case.file.startswith(("ir/", "cache/", "out.training/", "searched/")):
        return "" if name == "lonas_edge_runtime.json" and _known_properties(path) else "answers otherwise, unsaid"
    if recorded := _recorded(case, adapter):
        return recorded
    if path.suffix == ".tsv":
        return _table_fault(path)
    if name == "chat.jsonl" or case.file.startswith("subnets/"):
        return _whole_json(path)
    if case.file.startswith("datasets/"):
        return _text_fault(path, ("instruction", "answer"))
    if name.startswith("data.json"):
        return _text_fault(path, ("instruction", "output"))
    widths = [width for widths in _width_lists(space) for width in widths] if space else []
    if any(not isinstance(width, int) or width < 1 for width in widths):
        return f"widths {widths}"
    _tokens(base)
    if case.file.startswith("checkpoint/"):
        return "answers otherwise, unsaid" if case.command.kind == "eval" else _teacher_fault(case, path)
    classifies = json.loads((base / "config.json").read_text(encoding="utf-8-sig"))["model_type"] == "bert"
    if classifies and adapter is None:
        _parameters(base)
    elif classifies:
        _classifier_oracle(base, adapter, None, [])
    else:
        _oracle(base, adapter, None, [])
    return ""


def _table_fault(path: Path) -> str:
    lines = path.read_bytes().decode("utf-8-sig").rstrip("\n").split("\n")
    columns = lines[0].rstrip("\r").split("\t")
    places = [columns.index(name) for name in ("sentence1", "sentence2", "label")]
    rows = [line.rstrip("\r").split("\t") for line in lines[1:] if line.strip()]
    wrong = [row for row in rows if row[places[2]] not in ("entailment", "not_entailment") or not row[places[0]].strip()]
    return f"rows {wrong[:3]} are none of RTE" if wrong or not rows else ""


def _whole_json(path: Path) -> str:
    text = path.read_bytes().decode("utf-8-sig")
    items = [json.loads(line) for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else [json.loads(text)]
    json.dumps(items, ensure_ascii=False).encode()
    if path.suffix != ".jsonl":
        return "" if all(isinstance(width, int) for width in items[0]["widths"]) else "widths that are no whole numbers"
    said = [turn["content"] for item in items for turn in item["messages"] if turn["role"] in ("user", "assistant", "system")]
    return "" if all(isinstance(text, str) for text in said) else "turns without a text"


def _teacher_fault(case: Case, path: Path) -> str:
    """A teacher is any model of the same tokens: its files must be whole, and what the export recorded of them."""
    recorded = json.loads((case.home / "checkpoint/lonas_edge.json").read_text()).get("files") or {}
    return "its recorded hash is another" if path.name in recorded else ""


def _known_properties(path: Path) -> bool:
    values = {"KV_CACHE_PRECISION": ("u8", "f16", "f32", "bf16"), "INFERENCE_PRECISION_HINT": ("f32", "bf16", "f16")}
    values |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": ("0", "32", "64", "128", "256", str(2**64 - 1))}
    values |= {"PERFORMANCE_HINT": ("LATENCY", "THROUGHPUT"), "ENABLE_CPU_PINNING": ("YES", "NO")}
    chosen = json.loads(path.read_text())["properties"]
    return all(value in values.get(name, ()) for name, value in chosen.items())


def _text_fault(path: Path, fields: tuple[str, ...]) -> str:
    text = path.read_bytes().decode("utf-8-sig")
    items = (
        json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line.strip()]
    )
    json.dumps(items, ensure_ascii=False).encode()  # no lone surrogates
    wrong = [index for index, item in enumerate(items) if any(not isinstance(item.get(name), str) for name in fields)]
    return f"examples {wrong} have no text" if wrong else ""


EXPLAINED: dict[str, Callable[[Case, Any], str]] = {
    "inspect": _inspect_explained,
    "space": _space_explained,
    "checkpoint": _export_explained,
    "ir": _export_explained,
    "classifier": _export_explained,
    "classifier-ir": _export_explained,
    "solved": _explained_by_input,
    "stored": _explained_by_input,
    "search": _explained_by_input,
    "adapter": _explained_by_input,
    "resumed": lambda *_: "another adapter than the training would have made",
    "eval": _explained_by_input,
    "bench": _explained_by_input,
}
