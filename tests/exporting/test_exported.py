"""Opening exported directories, and errors for other ones."""

import json
from pathlib import Path

import pytest

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.exported import open_exported, update_card
from lonas_edge.exporting.manifest import Manifest
from lonas_edge.exporting.model_card import COMPARISON, model_card

SIZES = {"parameters": 5, "linear_weights": 4, "macs": 8, "seq_len": 2, "bytes": {"fp32": 20, "int8": 5}}
MANIFEST = {
    "schema": "lonas-edge/manifest/1",
    "stage": "ir",
    "weight_format": "int8",
    "subnetwork": {"name": "minimal", "search_space": "ab12", "origin": None},
    "base": {"name": "owner/base", "revision": "main", "sha256": {"config.json": "cd34"}},
    "adapter": None,
    "pipeline": "text-generation",
    "task": None,
    "prompt": "alpaca",
    "sizes": {"unpruned": {**SIZES, "parameters": 7}, "subnetwork": SIZES},
    "layers": [[{"kind": "mlp", "kept": 64, "full": 128}]],
    "fused": 0,
    "compression": [],
    "calibrated": None,
    "verified": True,
    "parity": {
        "ir": {
            "max_logit_difference": 0.5,
            "mean_kl": 1e-3,
            "top1_agreement": 1.0,
            "positions": 64,
            "mean_cosine_distance": None,
            "relative_difference": None,
        }
    },
    "steps": {"write": {"seconds": 0.5, "peak_rss_bytes": 1000}},
    "graph_process_peak_rss_bytes": None,
    "versions": {"python": "3.11.7"},
    "files": {},
    "head": None,
    "group_size": None,
    "pooling": None,
    "renumbered": False,
}
DATA = '<data element_type="u8" shape="4" offset="6" size="4" />'
XML = f'<?xml version="1.0"?>\n<net><layers><layer>{DATA}</layer></layers></net>\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lonas_edge.json").write_text(json.dumps(MANIFEST))
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 288, "max_position_embeddings": 128}))
    (tmp_path / "openvino_model.xml").write_text(XML)
    (tmp_path / "openvino_model.bin").write_bytes(bytes(10))
    for name in ("openvino_tokenizer.xml", "openvino_detokenizer.xml"):
        (tmp_path / name).write_text("<net></net>")
    return tmp_path


def test_an_exported_directory(folder: Path) -> None:
    exported = open_exported(folder)
    assert (exported.vocabulary, exported.context, exported.weight_format) == (288, 128, "int8")
    assert json.loads(json.dumps(exported.own_manifest.to_json())) == MANIFEST


def test_other_directories_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match="no such directory"):
        open_exported(tmp_path / "none")
    (folder / "lonas_edge.json").unlink()
    with pytest.raises(LonasEdgeError, match=r"no lonas_edge\.json; expected a directory that `lonas-edge export` wrote"):
        open_exported(folder)
    for name in ("tpot-0.7x", "tpot-0.8x"):  # an output of `compress`
        (folder / name).mkdir()
        (folder / name / "lonas_edge.json").touch()
    with pytest.raises(LonasEdgeError, match=rf"wrote\. Pass {folder}/tpot-0\.7x or {folder}/tpot-0\.8x$"):
        open_exported(folder)
    assert open_exported(folder, ours=False).weight_format == "as stored"  # an IR of another tool
    (folder / "lonas_edge.json").write_text(json.dumps({**MANIFEST, "stage": "checkpoint"}))
    with pytest.raises(LonasEdgeError, match="a checkpoint export; expected an IR"):
        open_exported(folder)


def test_all_missing_files_are_listed(folder: Path) -> None:
    (folder / "openvino_model.bin").unlink()
    (folder / "openvino_tokenizer.xml").unlink()
    with pytest.raises(LonasEdgeError, match=r"(?s)openvino_model\.bin: missing.*openvino_tokenizer\.xml: missing"):
        open_exported(folder)


@pytest.fixture
def card(folder: Path) -> Path:
    """The model card as the export wrote it."""
    path = folder / "README.md"
    path.write_text(model_card(Manifest.read(folder / "lonas_edge.json")))
    return path


def test_edits_of_a_card_stay(folder: Path, card: Path) -> None:
    """Fields, sentences and sections: in the first part, between the others, and at the end."""
    own = "## License\n\nApache 2.0, as the base.\n\n"
    text = card.read_text().replace("tags:", "license: apache-2.0\ntags:").replace("sizes and parity.", "sizes. *Ours.*")
    text = text.replace("## Verification", f"{own}## Verification") + "\n## Contact\n\nsomebody@here\n"
    card.write_text(text, newline="\r\n")
    for table in ("| a | b |", "| c | d |"):
        update_card(folder, COMPARISON, f"{table}\n")
    assert card.read_text() == f"{text}\n## Compared with other files of this model\n\n| c | d |\n"


def test_a_deleted_card_is_written_again(folder: Path, card: Path) -> None:
    text = card.read_text()
    card.unlink()
    update_card(folder, COMPARISON, "| a | b |")
    assert card.read_text() == f"{text}\n{COMPARISON}\n\n| a | b |\n"
