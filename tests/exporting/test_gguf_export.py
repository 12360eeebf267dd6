"""Sub-networks as GGUF vs. the oracle, in plain torch and in llama.cpp; tokenizers; refusals."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_model import fields_of, gguf_logits, tensors_of
from oracle import oracle_logits
from tiny_models import CASES, LAYERS, VOCAB, TinyModels, TinySource, tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting import gguf_file, verify
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.gguf_vocabulary import TOKENIZED_TEXTS, vocabulary_of
from lonas_edge.exporting.llama_cpp import llama_cpp_logits
from lonas_edge.exporting.manifest import Manifest
from lonas_edge.network.divergence import Parity
from lonas_edge.network.source import open_source

Choose = Callable[[TinySource, str], list[int]]
INSTALLED = importlib.util.find_spec("llama_cpp") is not None
LLAMA_CPP = pytest.mark.skipif(not INSTALLED, reason="llama-cpp-python is not installed")
# groups of blocks: the first layer's attention, the complete second layer, the third's MLP (tiny_models.removable_blocks)
DEPTHS = [[1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0]]


def exported(source: TinySource, widths: list[int], output: Path, kind: str = "f32", **options: object) -> Path:
    asked = ExportOptions(stage="gguf", gguf_type=kind, **options)  # type: ignore[arg-type]
    export(source.opened(), source.subnetwork(widths, "chosen"), output, asked)
    return output / f"model.{kind.upper()}.gguf"


def check_logits(file: Path, source: TinySource, widths: list[int], ids: torch.Tensor) -> None:
    """In plain torch, float64: rounding the weights to fp32 changes logits of order 1 by 1e-6. In llama.cpp, fp32."""
    expected = oracle_logits(source.base, source.adapter, source.space, widths, ids)
    assert (gguf_logits(file, ids) - expected).abs().max() < 1e-5
    if INSTALLED:
        assert "llama_cpp" in Manifest.read(file.parent / "lonas_edge.json").parity
        assert (llama_cpp_logits(file, ids) - expected).abs().max() < 1e-4


_SLOW = ("llama-tied", "llama-biased", "qwen2", "qwen3-tied")
EQUAL = [
    *("llama", "mistral", "qwen2-tied", "qwen3"),
    *(pytest.param(case, marks=pytest.mark.slow) for case in _SLOW),
]


@pytest.mark.parametrize("case", EQUAL)
@pytest.mark.parametrize("name", ["heuristic", pytest.param("maximal", marks=pytest.mark.slow)])
def test_equal_layers(case: str, name: str, tiny_models: TinyModels, choose: Choose, ids: torch.Tensor, tmp_path: Path) -> None:
    source = tiny_models.source(case)
    widths = choose(source, name)
    file = exported(source, widths, tmp_path / "out")
    model_type = CASES[case]["model_type"]
    assert fields_of(file)["general.architecture"] == {"mistral": "llama"}.get(model_type, model_type)
    check_logits(file, source, widths, ids)


@pytest.mark.parametrize("depth", DEPTHS, ids=str)
@pytest.mark.parametrize("case", ["llama", pytest.param("llama-biased", marks=pytest.mark.slow)])
def test_unequal_layers(
    case: str, depth: list[int], tiny_models: TinyModels, choose: Choose, ids: torch.Tensor, tmp_path: Path
) -> None:
    """MLPs of other widths in each layer, half of the heads in two of them, removed blocks."""
    source = tiny_models.heads_source(case)
    groups = source.groups()
    widths = [*choose(tiny_models.source(case), "unequal:1"), groups[9][0], groups[10][-1], groups[11][-1], *depth]
    file = exported(source, widths, tmp_path / "out")
    fields = fields_of(file)
    assert fields["general.architecture"] == "deci"
    assert fields["deci.block_count"] == LAYERS - (depth[1] == 0)
    assert fields["deci.attention.head_count"][-1] == 2 and fields["deci.attention.head_count_kv"][-1] == 1
    check_logits(file, source, widths, ids)


def test_scaled_positions(llama_copy: TinySource, choose: Choose, ids: torch.Tensor, tmp_path: Path) -> None:
    """LLaMA 3's: a table of factors, which llama.cpp divides the frequencies by."""
    config = json.loads((llama_copy.base / "config.json").read_text())
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10000.0}
    config["rope_parameters"] = {**rope, "original_max_position_embeddings": 32}
    (llama_copy.base / "config.json").write_text(json.dumps(config))
    widths = choose(llama_copy, "unequal:2")
    file = exported(llama_copy, widths, tmp_path / "out")
    factors = tensors_of(file)["rope_freqs.weight"]
    assert factors.min() == 1 and factors.max() == 8
    check_logits(file, llama_copy, widths, ids)


def test_types(llama: TinySource, choose: Choose, tmp_path: Path) -> None:
    """Weights differ by half a step at most; vectors stay in f32."""
    widths = choose(llama, "unequal:1")
    exact = tensors_of(exported(llama, widths, tmp_path / "f32"))
    # half a step of each; q8_0's step is 1/127 of the largest of 32 columns, itself rounded to fp16
    for kind, block, share in (("f16", 1, 2**-11), ("bf16", 1, 2**-8), ("q8_0", 32, 0.5 / 127 + 2**-11)):
        for tensor in gguf.GGUFReader(exported(llama, widths, tmp_path / kind, kind)).tensors:
            actual = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).double()
            wanted = exact[tensor.name].reshape(actual.shape)
            if wanted.dim() == 1:
                assert tensor.tensor_type.name == "F32" and torch.equal(actual, wanted)
                continue
            largest = wanted.unflatten(-1, (-1, block)).abs().amax(-1, keepdim=True)
            difference = (actual - wanted).abs().unflatten(-1, (-1, block))
            assert tensor.tensor_type.name == kind.upper()
            assert (difference <= largest * share * 1.001 + 1e-7).all() and difference.max() > 0
    manifest = Manifest.read(tmp_path / "q8_0" / "lonas_edge.json")
    assert (manifest.stage, manifest.weight_format) == ("gguf", "q8_0")
    assert [(part.weight_format, part.group_size, part.share) for part in manifest.compression] == [("q8_0", 32, 1.0)]
    assert 1e-4 < manifest.parity["gguf_stored"].max_logit_difference < 0.5
    assert manifest.versions["gguf"] and set(manifest.files) == {"model.Q8_0.gguf", "subnetwork.json"}
    fields = fields_of(tmp_path / "q8_0" / "model.Q8_0.gguf")
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0 and fields["general.quantization_version"] == 2


def test_a_wrong_weight_is_refused(llama: TinySource, choose: Choose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = choose(llama, "heuristic")
    real = gguf.quants.quantize

    def wrong(values: np.ndarray, kind: object) -> np.ndarray:
        return real(values[::-1].copy() if values.ndim == 2 and values.shape[0] == 2 * 16 else values, kind)

    monkeypatch.setattr(gguf_file.gguf.quants, "quantize", wrong)
    with pytest.raises(LonasEdgeError, match=r"verification failed: the stored model\.layers\.0\.self_attn\.k_proj\.weight"):
        exported(llama, widths, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_is_in_the_file(llama: TinySource, choose: Choose, tmp_path: Path) -> None:
    fields = fields_of(exported(llama, choose(llama, "minimal"), tmp_path / "out", "f16"))
    plain = AutoTokenizer.from_pretrained(llama.base)
    tokens = fields["tokenizer.ggml.tokens"]
    assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.pre"] == "gpt-2"
    assert len(tokens) == VOCAB and {token: plain.get_vocab()[token] for token in tokens[: len(plain)]} == plain.get_vocab()
    assert tokens[len(plain) :] == [f"[PAD{i}]" for i in range(len(plain), VOCAB)]
    types = fields["tokenizer.ggml.token_type"]
    assert types[:3] == [3, 3, 1] and types[-1] == 5  # control, control, normal; unused
    assert fields["tokenizer.ggml.merges"][:3] == ["t h", "th e", "Ġ the"]
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (0, 1)
    assert fields["tokenizer.ggml.add_bos_token"] is False and fields["tokenizer.ggml.add_space_prefix"] is False


def pieces() -> PreTrainedTokenizerFast:
    """SentencePiece's BPE as transformers converts it: every way to make a piece is a merge, in the order of the pieces."""
    made = ["th", "the", "\u2581the", "in", "\u2581in", "er", "the\u2581", "ther", "\u2581a"]
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz.,0123456789"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *made, *letters]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in made
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    bpe = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    bpe.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_sentencepiece() -> None:
    actual = vocabulary_of(pieces(), 320, "here")
    assert (actual["tokenizer_model"], actual["tokenizer_pre"], actual["add_space_prefix"]) == ("llama", "default", True)
    types = actual["token_types"]
    assert "token_merges" not in actual and types[:4] == [2, 3, 3, 6] and types[259] == 1  # unknown, control, byte; normal
    scores = dict(zip(actual["token_list"], actual["token_scores"], strict=True))
    assert scores["th"] > scores["the"] > scores["\u2581the"] > scores["in"] > scores["q"]


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    from tokenizers import Regex

    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def changed(change: Callable[[Tokenizer], None]) -> PreTrainedTokenizerFast:
    fast = tokenizer()
    change(fast.backend_tokenizer)
    return fast


def smollm(bpe: Tokenizer) -> None:
    digits = pre_tokenizers.Digits(individual_digits=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def llama_3(bpe: Tokenizer) -> None:
    bpe.pre_tokenizer = split(LLAMA_3)
    bpe.model.ignore_merges = True


@pytest.mark.parametrize(("change", "pre"), [(smollm, "smollm"), (llama_3, "llama-bpe")])
def test_pre_tokenizers_are_named(change: Callable[[Tokenizer], None], pre: str) -> None:
    assert vocabulary_of(changed(change), VOCAB, "here")["tokenizer_pre"] == pre


def otherwise(bpe: Tokenizer) -> None:
    bpe.pre_tokenizer = split(r"\p{L}+|\s+")


def merges_ignored(bpe: Tokenizer) -> None:
    bpe.model.ignore_merges = True


def lower(bpe: Tokenizer) -> None:
    bpe.normalizer = normalizers.Lowercase()


def prefixed(bpe: Tokenizer) -> None:
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            otherwise,
            r"unknown pre-tokenizer \(Split and ByteLevel\); llama.cpp's known ones are gpt-2, smollm",
        ),
        (merges_ignored, "ignore_merges: llama.cpp ignores merges with llama-bpe only"),
        (lower, "it normalizes texts"),
        (prefixed, "it prepends a space"),
    ],
)
def test_other_tokenizers_are_refused(change: Callable[[Tokenizer], None], message: str) -> None:
    with pytest.raises(LonasEdgeError, match=f"here: the tokenizer cannot be written as GGUF:(?s:.*){message}"):
        vocabulary_of(changed(change), VOCAB, "here")


def test_tokenizers_of_other_kinds_are_refused() -> None:
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    for actual, message in (
        (None, "(?s)there is none.*save its tokenizer.json"),
        (words, "its model is WordLevel: expected BPE"),
    ):
        with pytest.raises(LonasEdgeError, match=message):
            vocabulary_of(actual, VOCAB, "here")
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])))
    with pytest.raises(LonasEdgeError, match="neither byte-level BPE nor SentencePiece's"):
        vocabulary_of(bare, VOCAB, "here")
    part = json.loads(pieces().backend_tokenizer.to_str())
    part["model"]["merges"] = part["model"]["merges"][1:]
    with pytest.raises(LonasEdgeError, match="its merges are not all pairs of tokens that make a third"):
        vocabulary_of(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(part))), VOCAB, "here")


# refused by name, before anything is read or written


@pytest.mark.parametrize("case", ["bloom", "gemma2"])
def test_families_without_an_architecture_are_refused(
    case: str, tiny_models: TinyModels, choose: Choose, tmp_path: Path
) -> None:
    source = tiny_models.source(case)
    message = rf"--stage gguf does not support model_type '{CASES[case]['model_type']}', only llama, mistral, qwen2, qwen3\."
    with pytest.raises(LonasEdgeError, match=message):
        exported(source, choose(source, "maximal"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_unequal_layers_without_an_architecture_are_refused(tiny_models: TinyModels, choose: Choose, tmp_path: Path) -> None:
    source = tiny_models.source("qwen2")
    with pytest.raises(LonasEdgeError, match=r"layers have unequal widths; llama\.cpp's 'qwen2' has one width for all"):
        exported(source, choose(source, "unequal:1"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_unsupported_configurations_are_refused(llama_copy: TinySource, choose: Choose, tmp_path: Path) -> None:
    config = json.loads((llama_copy.base / "config.json").read_text())
    config |= {"hidden_act": "gelu", "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
    (llama_copy.base / "config.json").write_text(json.dumps(config))
    with pytest.raises(LonasEdgeError, match=r"(?s)cannot be written as GGUF:.*rope_type 'linear'.*hidden_act 'gelu'"):
        exported(llama_copy, choose(llama_copy, "maximal"), tmp_path / "out")


# llama.cpp itself


@LLAMA_CPP
@pytest.mark.parametrize("made", [tokenizer, pieces, lambda: changed(smollm), lambda: changed(llama_3)])
def test_llama_cpp_tokenizes_equally(
    made: Callable[[], PreTrainedTokenizerFast], llama_copy: TinySource, choose: Choose, tmp_path: Path
) -> None:
    config = json.loads((llama_copy.base / "config.json").read_text()) | {"vocab_size": 320}
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(llama_copy.base)
    made().save_pretrained(llama_copy.base)
    opened = open_source(str(llama_copy.base), None, None)
    export(opened, opened.select(None), tmp_path / "out", ExportOptions(stage="gguf", gguf_type="f16"))  # checks it, too
    texts = [*TOKENIZED_TEXTS, "the inner ther in a there", "12345 the   end", "hello, World", ""]
    import llama_cpp

    llama = llama_cpp.Llama(str(tmp_path / "out/model.F16.gguf"), vocab_only=True, verbose=False)
    plain = AutoTokenizer.from_pretrained(llama_copy.base)
    for text in texts:
        assert llama.tokenize(text.encode(), add_bos=True, special=True) == plain(text)["input_ids"], text


@LLAMA_CPP
def test_llama_cpp_refuses_a_truncated_file(
    llama: TinySource, choose: Choose, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = exported(llama, choose(llama, "minimal"), tmp_path / "out")
    assert "llama_" not in capfd.readouterr().err  # nothing of its own is printed, warnings of a short context neither
    file.write_bytes(file.read_bytes()[:20000])
    with pytest.raises(LonasEdgeError, match=r"model\.F32\.gguf: llama\.cpp cannot open it: .*(load|tensor|file|model)"):
        llama_cpp_logits(file, torch.zeros(1, 4, dtype=torch.long))


@pytest.mark.parametrize(("kind", "refused"), [("f32", True), ("f16", True), ("bf16", False), ("q8_0", False)])
def test_tolerance_for_llama_cpp(kind: str, refused: bool) -> None:
    """No tolerance for types whose products it rounds coarsely: differences are reported."""
    reference = torch.full((1, 2, 4), 40.0)
    within = Parity(0.0012 if kind == "f32" else 0.6, 0.0, 1.0, 2)  # 1e-3 and 0.5 of logits to 32, in proportion beyond
    verify.check_llama_cpp(Path("here"), within, reference, kind)
    if refused:
        with pytest.raises(LonasEdgeError, match=r"llama\.cpp's logits differ from those of the weights stored"):
            verify.check_llama_cpp(Path("here"), Parity(0.7, 0.0, 1.0, 2), reference, kind)
    else:
        verify.check_llama_cpp(Path("here"), Parity(4.0, 0.1, 0.9, 2), reference, kind)
