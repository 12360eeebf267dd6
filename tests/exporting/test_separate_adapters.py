"""Separate adapters: logits vs. the oracle, texts of openvino_genai vs. merged exports, adapters that do not fit."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openvino as ov
import openvino_genai
import pytest
import torch
from openvino_genai import Adapter, AdapterConfig
from openvino_models import F32, model_logits
from oracle import oracle_logits
from safetensors.torch import load_file
from tiny_bert import TinyBert
from tiny_models import TARGETS, TinyModels, TinySource

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting import separate
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.manifest import Manifest
from lonas_edge.ir import lora
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.source import open_source

Choose = Callable[[TinySource, str], list[int]]
EXACT = {**F32, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
PROMPTS = ["The sun is in the other on a " * 3, "a", "on and on"]  # the first is longer than two blocks of a prefix cache
CASES = [  # one case of fused and one of separate q, k and v; the names of the others
    *("llama", "phi3"),
    *(pytest.param(case, marks=pytest.mark.slow) for case in ("qwen2-tied", "neox", "bloom", "gemma3", "qwen3", "olmo2")),
]
OTHER = {"r": 10, "lora_alpha": 7}  # of a second adapter; 7 / 10 is no power of two


def exported(source: TinySource, widths: list[int], output: Path, **options: Any) -> Manifest:
    options = {"adapter": "separate", "weight_format": "fp32", **options}
    return export(source.opened(), source.subnetwork(widths, "chosen"), output, ExportOptions(**options))


def name_of(source: TinySource) -> str:
    return source.adapter.name.replace("=", "-")


def file_in(output: Path, source: TinySource) -> Path:
    return output / "adapters" / f"{name_of(source)}.safetensors"


def logits(output: Path, file: Path, ids: torch.Tensor) -> torch.Tensor:
    model = ov.Core().read_model(output / "openvino_model.xml")
    lora.attach(model, load_file(file))
    return model_logits(model, ids, EXACT)


def texts(folder: Path, adapter: Path | None = None, mode: str = "AUTO") -> list[str]:
    """Greedy texts of openvino_genai; it caches no prompts."""
    scheduler, options = openvino_genai.SchedulerConfig(), {}
    if adapter:
        options["adapters"] = AdapterConfig(Adapter(adapter), getattr(AdapterConfig.Mode, f"MODE_{mode}"))
    pipe = openvino_genai.LLMPipeline(folder, "CPU", scheduler_config=scheduler, **options, **EXACT)
    return [pipe.generate(prompt, max_new_tokens=16, apply_chat_template=False) for prompt in PROMPTS]


def state(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def shared(tiny_models: TinyModels, choose: Choose, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TinySource]]:
    """An fp32 base with two adapters; not to be changed."""
    sources, output = (
        [tiny_models.source("llama"), tiny_models.source("llama", **OTHER)],
        tmp_path_factory.mktemp("shared") / "box",
    )
    for source in sources:
        exported(source, choose(source, "unequal:1"), output)
    return output, sources


@pytest.fixture
def box(shared: tuple[Path, list[TinySource]], tmp_path: Path) -> Path:
    """A copy of the shared export that a test may change."""
    return Path(shutil.copytree(shared[0], tmp_path / "box"))


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_oracles(case: str, tiny_models: TinyModels, choose: Choose, tmp_path: Path, ids: torch.Tensor) -> None:
    source = tiny_models.source(case, lora_alpha=11)
    widths = choose(source, "unequal:1")
    parity = exported(source, widths, tmp_path / "box").adapters[name_of(source)].parity
    expected = oracle_logits(source.base, source.adapter, source.space, widths, ids)
    assert (logits(tmp_path / "box", file_in(tmp_path / "box", source), ids) - expected).abs().max() < 1e-3
    assert parity["materialized"].max_logit_difference < 1e-8 and parity["ir_adapter"].max_logit_difference < 1e-3


def test_channel_order_heads_and_removed_blocks(tiny_models: TinyModels, tmp_path: Path, ids: torch.Tensor) -> None:
    source = replace(tiny_models.source("llama"), space=tiny_models.deep_space("llama", heads=True)).ordered(tmp_path / "a")
    widths = [values[index % len(values)] for index, values in enumerate(source.groups()[:-3])] + [0, 1, 0]
    exported(source, widths, tmp_path / "box")
    expected = oracle_logits(source.base, source.adapter, source.space, widths, ids)
    assert (logits(tmp_path / "box", file_in(tmp_path / "box", source), ids) - expected).abs().max() < 1e-3


def test_layers_of_a_fused_product_without_an_adapter(tiny_models: TinyModels, tmp_path: Path, ids: torch.Tensor) -> None:
    """k has no adapter; this one needs no search space."""
    base, adapter = tiny_models.base("llama"), tiny_models.adapter("llama", target_modules=["q_proj", "v_proj", "o_proj"])
    source = open_source(str(adapter), str(base))
    export(source, source.select(), tmp_path / "box", ExportOptions("fp32", adapter="separate"))
    [file] = (tmp_path / "box" / "adapters").iterdir()
    expected = oracle_logits(base, adapter, None, [], ids)
    assert (logits(tmp_path / "box", file, ids) - expected).abs().max() < 1e-3


def test_texts_are_those_of_merged_exports(shared: tuple[Path, list[TinySource]], choose: Choose, tmp_path: Path) -> None:
    output, sources = shared
    expected = []
    for number, source in enumerate(sources):
        exported(source, choose(source, "unequal:1"), tmp_path / str(number), adapter="merged")
        expected.append(texts(tmp_path / str(number)))
    assert expected[0] != expected[1] and texts(output) not in expected
    for mode in ("AUTO", "STATIC"):
        assert [texts(output, file_in(output, source), mode) for source in sources] == expected
    # the code in the model card up to its requests: the adapters take turns
    code = re.search(r"```python\n(.*?)\nfor name", (output / "README.md").read_text(), re.DOTALL)
    assert code
    names: dict[str, Any] = {"EXACT": EXACT}
    exec(code[1].replace("THIS_DIRECTORY", str(output)).replace("scheduler_config=", "**EXACT, scheduler_config="), names)
    adapters = [AdapterConfig(names["adapters"][name_of(source)]) for source in sources]
    for number, prompt in enumerate(PROMPTS):
        for adapter, answers in [*zip(adapters, expected, strict=True)] * 2:
            answer = names["pipe"].generate(prompt, max_new_tokens=16, apply_chat_template=False, adapters=adapter)
            assert answer == answers[number]


def test_compressed_base(tiny_models: TinyModels, choose: Choose, tmp_path: Path) -> None:
    """The base is that of an export without an adapter; the factors are the merged difference, rounded to fp16."""
    source = tiny_models.source("llama")
    widths = choose(source, "unequal:1")
    manifest = exported(source, widths, tmp_path / "box", weight_format="int8_sym")
    bare = replace(source.opened(), adapter=None, adapter_config=None)
    export(bare, bare.subnetwork(widths), tmp_path / "base", ExportOptions("int8_sym"))
    assert (tmp_path / "box/openvino_model.bin").read_bytes() == (tmp_path / "base/openvino_model.bin").read_bytes()
    stored = load_file(file_in(tmp_path / "box", source))
    tensors, half = load_file(source.adapter / "adapter_model.safetensors"), torch.float16
    layer = "base_model.model.model.layers.0.mlp.down_proj.lora"
    rank, width = stored[f"{layer}_A.weight"].shape
    assert torch.equal(stored[f"{layer}_A.weight"], tensors[f"{layer}_A.weight"][:rank, :width].to(half))
    assert torch.equal(stored[f"{layer}_B.weight"], (2 * tensors[f"{layer}_B.weight"][:, :rank]).to(half))
    assert 0 < manifest.adapters[name_of(source)].parity["ir_adapter"].distance < 1e-2
    assert texts(tmp_path / "box", file_in(tmp_path / "box", source)) != texts(tmp_path / "box")


def refused(box: Path, source: TinySource, widths: list[int], **options: Any) -> str:
    before = state(box)
    with pytest.raises(LonasEdgeError) as error:
        exported(source, widths, box, **options)
    assert state(box) == before and [path.name for path in box.parent.glob("*.partial*")] in ([], [".box.partial.lock"])
    return str(error.value)


def test_adapters_of_other_networks(box: Path, tiny_models: TinyModels, choose: Choose, tmp_path: Path) -> None:
    third = tiny_models.source("llama", lora_alpha=3)
    widths = choose(third, "unequal:1")
    other = refused(box, third, choose(third, "minimal"))
    assert re.search("does not fit the base in .*box .*chosen sub-network.*\n.*other sub-network: .*intermediate_size", other)
    assert "already" in refused(box, tiny_models.source("llama"), widths)
    assert "other channels" in refused(box, third.ordered(tmp_path / "ordered"), widths)
    shutil.copytree(tiny_models.base("llama"), tmp_path / "again")
    config = json.loads((tmp_path / "again/config.json").read_text())
    (tmp_path / "again/config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    message = refused(box, replace(third, base=tmp_path / "again"), widths)
    assert "other base: again and base-llama differ in config.json" in message
    options = {"weight_format": "int4_sym", "group_size": 32, "head_format": "int8"}
    message = refused(box, third, widths, **options)
    assert "--weight-format int4_sym: the base is stored in fp32" in message
    assert "--group-size: the base" in message and "--head-format: the base" in message


def test_adapters_that_cannot_be_separate(tiny_models: TinyModels, tiny_bert: TinyBert, tmp_path: Path) -> None:
    def message(source: Any) -> str:
        with pytest.raises(LonasEdgeError) as error:
            export(source, source.select(), tmp_path / "box", ExportOptions(adapter="separate"))
        assert not (tmp_path / "box").exists()
        return str(error.value)

    base = tiny_models.base("llama")

    def opened(**options: Any) -> Any:
        return open_source(str(tiny_models.adapter("llama", **options)), str(base))

    saved = message(opened(modules_to_save=["embed_tokens"]))
    assert "embed_tokens.weight: replaced" in saved and "without --adapter separate" in saved
    assert "output head" in message(opened(target_modules=[*TARGETS, "lm_head"]))
    biased = tiny_models.source("llama-biased", lora_bias=True)
    assert "lora_bias" in message(open_source(str(biased.adapter), str(biased.base)))
    assert "no adapter" in message(open_source(str(base)))
    assert "--adapter separate" in message(tiny_bert.source(2).opened())


def trained(source: TinySource, **record: Any) -> Any:
    """The source with a record of its training."""
    record = {"options": {}, "chat_template": None, "prompt": None, "recovered": None, "int8_layers": (), **record}
    return replace(source.opened(), training=SimpleNamespace(base=SimpleNamespace(sha256={}), **record))


def test_adapters_of_other_trainings(box: Path, tiny_models: TinyModels, choose: Choose) -> None:
    third = tiny_models.source("llama", lora_alpha=3)
    records = {
        r"trained for --weight-format int4_sym \(quantization-aware\)": {"options": {"weight_format": "int4_sym"}},
        "other chat template": {"chat_template": "{{ messages }}"},
    }
    for message, record in records.items():
        source = trained(third, **record)
        with pytest.raises(LonasEdgeError, match=message):
            export(source, source.subnetwork(choose(third, "unequal:1")), box, ExportOptions(adapter="separate"))


def test_replacing_an_adapter(box: Path, tiny_models: TinyModels, choose: Choose, tmp_path: Path) -> None:
    """The other files stay the same ones; the replaced one keeps its content for processes that opened it."""
    first, other = tiny_models.source("llama"), tiny_models.source("llama", lora_alpha=5)
    shutil.copytree(other.adapter, tmp_path / "llama")
    old, before = tmp_path / "old", state(box)
    old.hardlink_to(file_in(box, first))
    exported(replace(first, adapter=tmp_path / "llama"), choose(first, "unequal:1"), box, overwrite=True)
    after = state(box)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"adapters/llama.safetensors", "lonas_edge.json"} | ({"README.md"} & changed)
    assert before.keys() == after.keys()
    assert hashlib.sha256(old.read_bytes()).hexdigest() == before["adapters/llama.safetensors"]


@pytest.mark.parametrize("broken", ["stacked", "factors", "kill"])
def test_errors_are_found_and_change_nothing(
    broken: str, box: Path, tiny_models: TinyModels, choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = tiny_models.source("llama", lora_alpha=3)
    widths, before = choose(third, "unequal:1"), state(box)
    if broken == "kill":
        monkeypatch.setattr(separate.lora, "attach", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            exported(third, widths, box)
    elif broken == "stacked":  # a fused product whose layers have changed places
        right = lora.products

        def turned(*arguments: Any) -> dict[str, tuple[str, ...]]:
            found = right(*arguments)
            return {name: layers if len(layers) == 1 else (layers[0], layers[2], layers[1]) for name, layers in found.items()}

        monkeypatch.setattr(separate.lora, "products", turned)
        assert "verification failed: the logits of the IR differ" in refused(box, third, widths)
    else:  # the scale is missing
        right_factors = MaterializedModel.factors
        monkeypatch.setattr(
            MaterializedModel, "factors", lambda self: {name: (a, b * 2) for name, (a, b) in right_factors(self).items()}
        )
        assert "verification failed: the stored factors of model.layers" in refused(box, third, widths)
    assert state(box) == before


def test_commands(
    tiny_models: TinyModels, run_cli: Callable[..., Any], tmp_path: Path, choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command for each adapter; the sub-network is that of the directory."""
    first, second = tiny_models.source("llama"), tiny_models.source("llama", **OTHER)
    box, subnet = tmp_path / "box", tmp_path / "subnet.json"
    first.subnetwork(choose(first, "unequal:2"), "mine").record().write(subnet)
    ran = run_cli("export", *first.arguments(), "--subnet", subnet, "--adapter", "separate", "--output", box)
    assert ran.code == 0, ran.err
    ran = run_cli("export", *second.arguments(), "--adapter", "separate", "--output", box)
    assert ran.code == 0 and "mine sub-network" in ran.out, ran.err
    assert f"separate adapters: llama, {name_of(second)};" in ran.out
    ran = run_cli("export", *second.arguments(), "--output", box)
    assert ran.code == 1 and "already exists" in ran.err
    files = [file_in(box, first), file_in(box, second)]
    ran = run_cli("chat", box, "--prompt", "the inner")
    assert ran.code == 1 and f"pass one of its adapters: {files[0]}, {files[1]}" in ran.err
    answers = []
    for file in files:
        ran = run_cli("chat", file, "--prompt", "the inner", "--max-new-tokens", 16)
        assert ran.code == 0, ran.err
        answers.append(ran.out)
    assert answers[0] != answers[1]
    with monkeypatch.context() as patch:
        patch.chdir(box / "adapters")
        ran = run_cli("chat", files[1].name, "--prompt", "the inner", "--max-new-tokens", 16)
        assert (ran.code, ran.out) == (0, answers[1]), ran.err
    shutil.copy(files[0], files[0].with_stem("x"))
    assert "no adapter 'x'; pass one of" in run_cli("chat", files[0].with_stem("x"), "--prompt", "the").err
    files[0].with_stem("x").unlink()
    for command in (("bench", box), ("eval", box, "--tasks", "boolq", "--datasets", tmp_path)):
        assert "has separate adapters" in run_cli(*command).err
    assert run_cli("push", box, "owner/name", "--dry-run").code == 0
