"""Training a classifier on GLUE: gradients against plain PEFT on the sliced model, whole runs, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file
from tiny_bert import LAYERS, VOCAB, TinyBert, oracle_logits, pairs, reranker, tokenizer
from tiny_models import TinyModels, TinySource
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, TrainingArguments

from lonas_edge import load_checkpoint
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import SuperNetwork
from lonas_edge.network.training_record import TrainingRecord
from lonas_edge.training.elastic_trainer import ElasticTrainer
from lonas_edge.training.inputs import open_inputs, open_recovery, with_eval_data, with_teacher
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.train import train

UNEQUAL = [32, 64, 48, 6, 8, 6, 64, 96, 128]
CLASSES, FIGURES = torch.tensor([2, 0, 1]), torch.tensor([0.5, 4.0, 2.5])


def live_base(source: TinySource, outputs: int) -> Any:
    """The base in float64, without dropout, so that two models can be compared."""
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": outputs}
    return AutoModelForSequenceClassification.from_pretrained(source.base, dtype=torch.float64, **options)


def elastic_trainer(source: TinySource, outputs: int, widths: list[int], folder: Path) -> Any:
    """The trainer on the tiny adapter in float64; every step trains the given sub-network."""
    base = live_base(source, outputs)
    model = PeftModel.from_pretrained(base, source.adapter, is_trainable=True, autocast_adapter_dtype=False).to(torch.float64)
    opened = source.opened()
    schedule = SimpleNamespace(subnetwork=lambda _step: tuple(widths))
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", remove_unused_columns=False)
    return ElasticTrainer(SuperNetwork(model, opened.elasticity), schedule, args=arguments)


WORDS = ("the good film", "the bad film", "not good", "is good", "not bad", "is the same")
LABELS = {"RTE": ("label", "not_entailment", "entailment"), "STS-B": ("score", "0.5", "4.5")}


def sliced_peft(source: TinySource, outputs: int, widths: list[int]) -> PeftModel:
    """The sub-network as a smaller model of transformers with a plain, unmerged PEFT adapter on it."""
    model = live_base(source, outputs)
    heads, ranks, mlps = widths[:3], widths[3:6], widths[6:]
    for index, layer in enumerate(model.bert.encoder.layer):
        cut(layer.attention.self, ("query", "key", "value"), rows=heads[index])
        cut(layer.attention.output, ("dense",), columns=heads[index])
        cut(layer.intermediate, ("dense",), rows=mlps[index])
        cut(layer.output, ("dense",), columns=mlps[index])
    pattern = {f"layer.{index}.attention.self.{name}": ranks[index] for index in range(LAYERS) for name in ("query", "value")}
    config = LoraConfig(r=8, lora_alpha=16, rank_pattern=pattern, target_modules=["query", "value"], task_type="SEQ_CLS")
    peft = get_peft_model(model, config, autocast_adapter_dtype=False)
    tensors = load_file(source.adapter / "adapter_model.safetensors")
    for name, parameter in peft.named_parameters():
        if parameter.requires_grad:
            whole = tensors[name.replace(".default.", ".").replace(".modules_to_save.", ".")].double()
            first, second = (*parameter.shape, None)[:2]
            parameter.data = (whole[:first] if second is None else whole[:first, :second]).clone()
    for module in peft.modules():
        if isinstance(module, LoraLinear):
            module.scaling["default"] = 2.0
    return peft.train()


def cut(owner: nn.Module, names: tuple[str, ...], rows: int | None = None, columns: int | None = None) -> None:
    for name in names:
        whole = getattr(owner, name)
        weight = whole.weight.detach()[:rows, :columns]
        small = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        small.weight.data, small.bias.data = weight.clone(), whole.bias.detach()[:rows].clone()
        setattr(owner, name, small)


def write_task(folder: Path, task: str) -> Path:
    """A training file of a task; the first text decides the label."""
    column, *labels = LABELS[task]
    rows = [f"{n}\t{WORDS[n % 6]}\t{WORDS[n // 2 % 6]}\t{labels['good' in WORDS[n % 6]]}" for n in range(12)]
    (folder / task).mkdir(exist_ok=True)
    (folder / task / "train.tsv").write_text("\n".join([f"index\tsentence1\tsentence2\t{column}", *rows]) + "\n")
    return folder / task / "train.tsv"


OPTIONS = {"rank": 8, "alpha": 16, "steps": 6, "save_steps": 3, "log_steps": 1, "batch_size": 4, "lr": 0.01, "device": "cpu"}


def run(source: TinySource, data: Path, output: Path, **changes: Any) -> TrainingRecord:
    inputs = open_inputs(str(source.base), data, source.space)
    record = train(inputs, output, TrainOptions(**{**OPTIONS, **changes}))
    assert record and TrainingRecord.read(output / "training.json") == record
    return record


@pytest.mark.parametrize(("task", "reorder"), [("RTE", True), ("STS-B", False)])
def test_a_super_adapter(task: str, reorder: bool, tiny_bert: TinyBert, materialize: Callable, tmp_path: Path) -> None:
    """The base has no head; the adapter has one."""
    source = tiny_bert.source()
    record = run(source, write_task(tmp_path, task), tmp_path / "out", reorder=reorder)
    assert (record.task, record.prompt, record.options["max_length"]) == (task, None, 64)
    assert record.data[0].examples == 12 and record.data[0].kind == "glue" and record.losses[-1].loss is not None
    opened = open_source(str(tmp_path / "out"))
    labels = ["entailment", "not_entailment"] if task == "RTE" else ["score"]
    assert list(opened.architecture.config.id2label.values()) == labels
    assert (tmp_path / "out/channel_order.safetensors").exists() == reorder
    widths = [32, 48, 64, 6, 8, 6, 64, 128, 96]
    expected = oracle_logits(source.base, tmp_path / "out", source.space, widths, pairs())
    folder = materialize(opened, widths)
    with torch.inference_mode():
        assert (load_checkpoint(folder, torch.float64)(**pairs()).logits - expected).abs().max() < 1e-5
    assert json.loads((folder / "config.json").read_text()).get("problem_type") in (
        [None, "single_label_classification"] if task == "RTE" else ["regression"]
    )


@pytest.mark.parametrize("task", ["RTE", "STS-B"])
def test_int4_keeps_layers_in_int8(task: str, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Of classes and of a regression; query, key and value together."""
    source = tiny_bert.source(1 if task == "STS-B" else 2)
    record = run(source, write_task(tmp_path, task), tmp_path / "super", weight_format="int4_sym", ratio=0.5, steps=1)
    assert record.int8_layers
    for index in range(LAYERS):
        own = {name.rpartition(".")[2] for name in record.int8_layers if f"layer.{index}.attention.self" in name}
        assert own in (set(), {"query", "key", "value"})


def test_data_of_another_task(tiny_bert: TinyBert, tiny_models: TinyModels, tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match=r"classification \(2 outputs\), and STS-B is a regression \(1 output\)"):
        open_inputs(str(tiny_bert.base()), write_task(tmp_path, "STS-B"))
    with pytest.raises(LonasEdgeError, match=r"the task RTE of GLUE works on a sequence classifier; llama is a causal"):
        open_inputs(str(tiny_models.base("llama")), write_task(tmp_path, "RTE"))
    (tmp_path / "data.json").write_text('[{"instruction": "a", "output": "b"}]')
    with pytest.raises(LonasEdgeError, match=r"data\.json: not sentences:\n  - record 1: found the fields instruction, output"):
        open_inputs(str(tiny_bert.base()), tmp_path / "data.json")


@pytest.mark.parametrize(("outputs", "labels"), [(3, CLASSES), (1, FIGURES)])
def test_loss_with_a_teacher(outputs: int, labels: torch.Tensor, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """KL(teacher ‖ network) over the classes, or the squared distance of a regression; labels do not count."""
    source = tiny_bert.source(outputs)
    teacher = live_base(source, outputs).eval()
    trainer = elastic_trainer(source, outputs, UNEQUAL, tmp_path)
    trainer.teacher = teacher
    actual = trainer.training_step(trainer.network.model, {**pairs(), "labels": labels}, 3).item()
    with torch.no_grad():
        theirs = teacher(**pairs()).logits
    ours = sliced_peft(source, outputs, UNEQUAL)(**pairs()).logits
    if outputs == 1:
        expected = (ours - theirs).pow(2).mean()
    else:
        p, q = theirs.softmax(-1), ours.softmax(-1)
        expected = (p * (p / q).log()).sum(-1).mean()
    assert actual == pytest.approx(expected.item(), abs=1e-5) and actual > 1e-3


@pytest.mark.parametrize("task", ["RTE", "STS-B"])
def test_a_recovery_with_a_teacher(task: str, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """The pruned classifier comes closer to the unpruned one, though all labels are wrong; its head is trained, too."""
    source, data = tiny_bert.source(1 if task == "STS-B" else 2), write_task(tmp_path, task)
    run(source, data, tmp_path / "super", steps=40)
    first, second = LABELS[task][1:]
    data.write_text(data.read_text().replace(first, "x").replace(f"\t{second}", f"\t{first}").replace("x", second))
    inputs = with_teacher(open_recovery(str(tmp_path / "super"), data, "minimal"), str(tmp_path / "super"))
    record = train(inputs, tmp_path / "recovered", TrainOptions(**{**OPTIONS, "steps": 40, "log_steps": 10, "lr": 3e-3}))
    assert record and record.recovered and record.teacher and record.teacher.name == "super"
    maximal, minimal = ([width for width in widths for _ in range(LAYERS)] for widths in ((64, 8, 128), (32, 6, 64)))

    texts = tokenizer()(*([WORDS[n // step % 6] for n in range(12)] for step in (1, 2)), padding=True, return_tensors="pt")

    def logits(name: str, widths: list[int]) -> torch.Tensor:
        return oracle_logits(source.base, tmp_path / name, source.space, widths, dict(texts))

    unpruned = logits("super", maximal)

    def distance(name: str) -> float:
        ours = logits(name, minimal)
        if task == "STS-B":
            return (ours - unpruned).pow(2).mean().item()
        return (unpruned.softmax(-1) * (unpruned.log_softmax(-1) - ours.log_softmax(-1))).sum(-1).mean().item()

    before, after = distance("super"), distance("recovered")
    assert after < 0.5 * before
    heads = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("super", "recovered")]
    [name] = [name for name in heads[0] if name.endswith("classifier.weight")]
    assert 0 < (heads[1][name] - heads[0][name]).abs().max() < 1
    card = (tmp_path / "recovered/README.md").read_text()
    distance = "squared distance" if task == "STS-B" else "KL divergence, over the classes,"
    assert "The loss is the distance of the outputs from those of the frozen teacher `super`." in card


@pytest.mark.parametrize("new", [False, True])
def test_a_base_with_classes_in_another_order(new: bool, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Its names stay, and labels count by name: the first held-out loss is the base's own cross-entropy, by the oracle."""
    names, data = ["Not_Entailment", "ENTAILMENT"], write_task(tmp_path, "RTE")
    base, space = reranker(tiny_bert, tmp_path / "base", 2, names), tiny_bert.space()
    inputs = open_inputs(str(base), data) if new else open_recovery(str(base), data, "minimal", None, space)
    options = {**OPTIONS, "steps": 40, "lr": 3e-3, "precision": "fp32"}
    record = train(with_eval_data(inputs, data), tmp_path / "out", TrainOptions(**options))
    opened = open_source(str(tmp_path / "out"))
    assert list(opened.architecture.config.id2label.values()) == names
    texts = [line.split("\t")[1:] for line in data.read_text().splitlines()[1:]]
    encoded = tokenizer()([row[0] for row in texts], [row[1] for row in texts], padding=True, return_tensors="pt")
    labels = torch.tensor([names.index("ENTAILMENT" if row[2] == "entailment" else "Not_Entailment") for row in texts])
    widths = [width for each in ((64, 8, 128) if new else (32, 6, 64)) for width in [each] * LAYERS]

    def loss(adapter: Path | None) -> float:
        logits = oracle_logits(base, adapter, space, widths, dict(encoded))
        return -logits.log_softmax(-1)[range(12), labels].mean().item()

    assert record and record.eval_data
    losses = [entry.loss for entry in record.eval_data.losses]
    assert losses[0] == pytest.approx(loss(None), rel=1e-3) and losses[-1] == pytest.approx(loss(tmp_path / "out"), rel=1e-3)
    assert losses[-1] < 0.9 * losses[0]  # it learned the labels by name, too
    export(opened, opened.select(), tmp_path / "model", ExportOptions(stage="checkpoint", verify=False))
    assert json.loads((tmp_path / "model/config.json").read_text())["id2label"] == dict(zip("01", names, strict=True))


@pytest.mark.parametrize("recorded", [True, False])
def test_recovery_on_data_of_another_task(recorded: bool, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """The head decides, and the record of the training."""
    source, data = tiny_bert.source(), write_task(tmp_path, "STS-B")
    start = source.adapter
    if recorded:
        run(source, write_task(tmp_path, "RTE"), start := tmp_path / "super")
        table = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tgood\tbad\t0\n"
        (tmp_path / "QQP").mkdir()
        (tmp_path / "QQP/train.tsv").write_text(table)
        with pytest.raises(LonasEdgeError, match="trained on RTE, and the data are of QQP"):
            open_recovery(str(start), tmp_path / "QQP/train.tsv", "minimal", nncf_config=source.space)
    with pytest.raises(LonasEdgeError, match=r"classification \(2 outputs\), and STS-B is a regression"):
        open_recovery(str(start), data, "minimal", nncf_config=source.space)


def test_teachers_of_another_task(tiny_bert: TinyBert, tiny_models: TinyModels, tmp_path: Path) -> None:
    source, data = tiny_bert.source(), write_task(tmp_path, "RTE")
    run(source, data, tmp_path / "super")
    run(tiny_bert.source(1), write_task(tmp_path, "STS-B"), tmp_path / "regression")
    inputs = open_recovery(str(tmp_path / "super"), data, "minimal")
    with pytest.raises(LonasEdgeError, match=r"outputs score, and those of the training are entailment, not_entailment"):
        with_teacher(inputs, str(tmp_path / "regression"))
    named = tmp_path / "named"
    config = AutoConfig.from_pretrained(tiny_bert.base(), id2label={0: "duplicate", 1: "not_duplicate"})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(named)
    tokenizer().save_pretrained(named)
    with pytest.raises(LonasEdgeError, match="outputs duplicate, not_duplicate, and those of the training are entailment"):
        with_teacher(inputs, str(named))
    short = {"type_vocab_size": 1, "max_position_embeddings": 32}
    AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tiny_bert.base(), **short)).save_pretrained(named)
    with pytest.raises(LonasEdgeError, match="type_vocab_size 1, and the training's model has 2"):
        with_teacher(inputs, str(named))
    short["type_vocab_size"] = 2
    AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tiny_bert.base(), **short)).save_pretrained(named)
    with pytest.raises(LonasEdgeError, match=r"--max-length 64:\n  - named has a context of 32 tokens"):
        train(with_teacher(inputs, str(named)), tmp_path / "out", TrainOptions(**OPTIONS))
    config = AutoConfig.from_pretrained(tiny_models.base("llama"), vocab_size=VOCAB)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "llama")
    tokenizer().save_pretrained(tmp_path / "llama")
    with pytest.raises(LonasEdgeError, match=r"is a causal language model and cannot teach a sequence classifier\.$"):
        with_teacher(inputs, str(tmp_path / "llama"))
    with pytest.raises(
        LonasEdgeError, match=r"cannot teach a sequence classifier\. A sentence embedding model has .*modules.json"
    ):
        with_teacher(inputs, str(tiny_bert.body()))


def test_no_other_parameters(tiny_bert: TinyBert, tmp_path: Path) -> None:
    data = write_task(tmp_path, "RTE")
    adapter = tiny_bert.adapter(modules_to_save=["classifier", "pooler"])
    with pytest.raises(LonasEdgeError, match=r"the head of a classifier, .* more:\n.*modules_to_save = \['pooler'\]"):
        open_recovery(str(adapter), data)
