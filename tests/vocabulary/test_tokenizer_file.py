"""Trimmed tokenizers: the same tokens where all are kept, and any text survives."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openvino import compile_model
from openvino_tokenizers import convert_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lonas_edge.errors import LonasEdgeError
from lonas_edge.vocabulary.choice import choose
from lonas_edge.vocabulary.tokenizer_file import TokenizerFile

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "other", "cats", "were", "chasing", "mice", "in", "their", "house"]
TEXTS = [" ".join(random.Random(seed).choices(WORDS, k=12)) for seed in range(40)]
SPECIAL = ["<s>", "</s>", "<|reserved_0|>"]


def byte_level(ignore_merges: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def sentence_piece() -> Tokenizer:
    """BPE with byte fallback, as LLaMA 2's."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    bpe = models.BPE(
        model["vocab"], [tuple(merge) for merge in model["merges"]], unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ["<unk>", *SPECIAL]])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "whole words": lambda: byte_level(ignore_merges=True),
    "byte fallback": sentence_piece,
    "WordPiece": word_piece,
}


def opened(folder: Path, tokenizer: Tokenizer, change: Callable[[dict[str, Any]], None] = lambda _: None) -> TokenizerFile:
    content = json.loads(tokenizer.to_str())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return TokenizerFile.read(folder)


def counts(tokenizer: Tokenizer, texts: list[str]) -> dict[int, int]:
    found: dict[int, int] = {}
    for text in texts:
        for token in tokenizer.encode(text).ids:
            found[token] = found.get(token, 0) + 1
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_kept_tokens_are_found_as_before(kind: str, tmp_path: Path) -> None:
    """Half of the words are data; all of their texts get the same tokens, under new ids."""
    whole, data = KINDS[kind](), [" ".join(random.Random(seed).choices(WORDS[:9], k=9)) for seed in range(30)]
    file = opened(tmp_path, whole)
    kept = choose(file, counts(whole, data), (), None, 10**6).kept
    assert len(kept) < whole.get_vocab_size()
    small = Tokenizer.from_str(json.dumps(file.trim(kept)))
    assert small.get_vocab_size() == len(kept)
    assert [small.id_to_token(index) for index in range(len(kept))] == [whole.id_to_token(old) for old in kept]
    for text in data:
        assert [kept[number] for number in small.encode(text).ids] == whole.encode(text).ids


@pytest.mark.parametrize("kind", ["byte-level", "whole words", "byte fallback"])
def test_any_text_survives(kind: str, tmp_path: Path) -> None:
    """Texts from all Unicode planes decode to what the whole tokenizer gives."""
    whole = KINDS[kind]()
    file = opened(tmp_path, whole)
    small = Tokenizer.from_str(json.dumps(file.trim(choose(file, {}, (), None, 10**6).kept)))
    rng = random.Random(0)
    characters = [code for code in range(32, 0x110000, 97) if not 0xD800 <= code < 0xE000]
    for _ in range(300):
        text = "".join(map(chr, rng.choices(characters, k=20))) + rng.choice(TEXTS)
        assert small.decode(small.encode(text).ids) == whole.decode(whole.encode(text).ids)
    assert small.decode(small.encode("the 猫 sat 🙂\n\tон").ids) == "the 猫 sat 🙂\n\tон"


def test_a_token_that_no_merge_builds(tmp_path: Path) -> None:
    """With `ignore_merges`, a whole word is a token although no merge leads to it; it is kept and found."""
    vocabulary = {piece: index for index, piece in enumerate(["a", "b", "c", "ab", "abc"])}
    bpe = Tokenizer(models.BPE(vocabulary, [("a", "b")], ignore_merges=True))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    file = opened(tmp_path, bpe)
    assert file.parts(4) == {0, 1, 2, 3, 4}
    kept = choose(file, {4: 1}, (), None, 10**6).kept
    assert kept == (0, 1, 2, 3, 4)
    small = Tokenizer.from_str(json.dumps(file.trim([0, 1, 2, 4])))
    assert small.encode("abc").tokens == ["abc"]
    assert small.encode("ab").tokens == ["a", "b"]


def test_the_parts_of_a_token(tmp_path: Path) -> None:
    """`abc` is ab + c although bc would be a merge, too: the earlier merge is applied first."""
    pieces = ["a", "b", "c", "ab", "bc", "abc"]
    bpe = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, [("a", "b"), ("b", "c"), ("ab", "c")]))
    file = opened(tmp_path, bpe)
    assert file.parts(5) == {0, 1, 2, 3, 5}
    assert file.required() == {0, 1, 2}
    content = file.trim([0, 1, 2, 3, 5])
    assert content["model"]["merges"] == [["a", "b"], ["ab", "c"]]
    assert content["model"]["vocab"] == {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}


def test_sizes(tmp_path: Path) -> None:
    """Frequent tokens come first, then the earliest; reserved tokens stay only if they are used."""
    whole = byte_level()
    file = opened(tmp_path, whole)
    used = counts(whole, TEXTS)
    least = len(file.required())
    assert least == 256 + 2
    reserved = whole.token_to_id("<|reserved_0|>")
    assert reserved not in choose(file, used, (), None, 10**6).kept
    assert reserved in choose(file, used, [reserved], None, 10**6).kept
    assert reserved in choose(file, {reserved: 1}, (), None, 10**6).kept
    merged = max(file.tokens, key=lambda number: len(file.parts(number)))
    assert file.parts(merged) <= {*choose(file, {}, [merged], None, 10**6).kept}
    chosen = choose(file, used, (), least + 10, 10**6)
    assert len(chosen.kept) == least + 10
    assert (chosen.used, chosen.missing) == (len(used), len(used.keys() - set(chosen.kept)))
    most = max((number for number in used if len(whole.id_to_token(number)) > 1), key=used.__getitem__)
    assert most in chosen.kept
    filled = choose(file, {}, (), least + 10, 10**6)
    merges = json.loads(whole.to_str())["model"]["merges"]
    assert set(filled.kept) - file.required() == {whole.token_to_id("".join(merge)) for merge in merges[:10]}
    assert max(choose(file, used, (), None, 300).kept) < 300, "tokens without a row"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["a cat on a mat", "the cats"])
def test_every_size_is_reached(kind: str, text: str, tmp_path: Path) -> None:
    """Also where the data lack characters; each kept token can be built, and reserved tokens come last."""
    whole = KINDS[kind]()
    file, everything = opened(tmp_path, whole), whole.get_vocab_size()
    used = counts(whole, [text])
    for size in range(len(choose(file, used, (), None, 10**6).kept), everything):
        kept = choose(file, used, (), size, 10**6).kept
        assert len(kept) == size
        assert all(file.parts(number) <= {*kept} for number in kept)
        assert whole.token_to_id("<|reserved_0|>") not in kept
        small = Tokenizer.from_str(json.dumps(file.trim(kept)))
        assert [kept[number] for number in small.encode(text).ids] == whole.encode(text).ids


def test_merges_fill_before_characters(tmp_path: Path) -> None:
    """With byte fallback, as in LLaMA's vocabulary: characters have the last ids, and a merge brings its own."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "ab", "bc", "abc", "▁", "a", "b", "c", "d"]
    merges = [("a", "b"), ("b", "c"), ("ab", "c")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    file = opened(tmp_path, Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True)))
    least = file.required()
    assert least == {*range(257), 260}
    added = [
        {pieces[number] for number in {*choose(file, {}, (), len(least) + more, 10**6).kept} - least} for more in range(1, 7)
    ]
    assert added == [
        {"a"},
        {"a", "b"},
        {"a", "b", "ab"},
        {"a", "b", "ab", "c"},
        {"a", "b", "ab", "c", "bc"},
        {*pieces[257:]} - {"▁", "d"},
    ]


def test_unused_tokens_of_wordpiece_come_last(tmp_path: Path) -> None:
    """BERT's are not added tokens; words that contain the names are ordinary tokens."""
    pieces = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "a", "unused", "##reserved", "word"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    file = opened(tmp_path, Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")))
    kept = [choose(file, {}, (), size, 10**6).kept for size in (2, 3, 7)]
    assert [[pieces[number] for number in each] for each in kept] == [
        ["[UNK]", "a"],
        ["[PAD]", "[UNK]", "a"],
        ["[PAD]", "[unused0]", "[UNK]", "a", "unused", "##reserved", "word"],
    ]


@pytest.mark.parametrize(("size", "message"), [(20, "--vocabulary 20: below the 258 tokens"), (400, r"has only 3\d\d tokens")])
def test_impossible_sizes(size: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match=message):
        choose(opened(tmp_path, byte_level()), {}, (), size, 10**6)


def test_an_added_token_in_the_middle(tmp_path: Path) -> None:
    def add(content: dict[str, Any]) -> None:
        token = next(token for token, number in content["model"]["vocab"].items() if number == 300)
        content["added_tokens"].append({**content["added_tokens"][0], "id": 300, "content": token, "special": False})

    file = opened(tmp_path, byte_level(), add)
    kept = choose(file, {}, (), None, 10**6).kept
    assert 300 in kept
    small = Tokenizer.from_str(json.dumps(file.trim(kept)))
    token = file.added[300]
    assert small.encode(f"x{token}y", add_special_tokens=False).tokens[1] == token
    assert small.token_to_id(token) == kept.index(300)


def test_refused_tokenizers(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match=r"no tokenizer\.json"):
        TokenizerFile.read(tmp_path)
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))
    with pytest.raises(LonasEdgeError, match="a Unigram tokenizer; expected BPE or WordPiece"):
        opened(tmp_path, unigram)


def without_type(content: dict[str, Any]) -> None:
    del content["model"]["type"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_does_not_name_its_kind(kind: str, tmp_path: Path) -> None:
    """Older files, such as bert-base-uncased's and gpt2's: tokenizers infers it."""

    def age(content: dict[str, Any]) -> None:
        without_type(content)
        if "merges" in content["model"]:
            content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]

    whole = KINDS[kind]()
    file = opened(tmp_path, whole, age)
    kept = choose(file, counts(whole, TEXTS[:1]), (), None, 10**6).kept
    assert kept == choose(opened(tmp_path, whole), counts(whole, TEXTS[:1]), (), None, 10**6).kept
    file.write(tmp_path, kept)
    small = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [kept[number] for number in small.encode(TEXTS[0]).ids] == whole.encode(TEXTS[0]).ids


def test_refused_files_that_do_not_name_their_kind(tmp_path: Path) -> None:
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))
    with pytest.raises(LonasEdgeError, match="a Unigram tokenizer; expected BPE or WordPiece"):
        opened(tmp_path, unigram, without_type)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(LonasEdgeError, match=r"tokenizer\.json: tokenizers cannot read it"):
        TokenizerFile.read(tmp_path)


def test_a_token_that_is_added_to_every_text(tmp_path: Path) -> None:
    """The post-processor adds it by its new id."""
    whole = byte_level()
    whole.add_special_tokens([AddedToken("<end>", special=True)])
    old = whole.token_to_id("<end>")
    whole.post_processor = processors.TemplateProcessing("$A <end>", special_tokens=[("<end>", old)])
    file = opened(tmp_path, whole)
    kept = choose(file, {}, (), None, 10**6).kept
    assert kept.index(old) < old
    assert Tokenizer.from_str(json.dumps(file.trim(kept))).encode("a").ids[-1] == kept.index(old)


@pytest.mark.parametrize("kind", KINDS)
def test_openvino_has_the_same_tokens(kind: str, tmp_path: Path) -> None:
    """`openvino_tokenizers` converts a trimmed tokenizer, as an export does; tokens and texts are those of `tokenizers`."""
    whole = KINDS[kind]()
    file = opened(tmp_path, whole)
    small = Tokenizer.from_str(json.dumps(file.trim(choose(file, counts(whole, TEXTS[:1]), (), None, 10**6).kept)))
    assert small.get_vocab_size() < whole.get_vocab_size()
    converted = convert_tokenizer(PreTrainedTokenizerFast(tokenizer_object=small), with_detokenizer=True)
    tokenize, detokenize = (compile_model(model, "CPU") for model in converted)
    texts = [*TEXTS[:20], "mice in 12 houses"]
    texts += [] if kind == "WordPiece" else ["the 猫 sat 🙂", "Ωmega, naïve"]
    for text in texts:
        ids = tokenize([text])["input_ids"]
        assert ids[0].tolist() == small.encode(text).ids
        assert detokenize(ids)["string_output"][0].strip() == small.decode(ids[0].tolist()).strip()
