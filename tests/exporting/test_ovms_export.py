"""The files that OpenVINO Model Server reads are in every IR of a language model."""

import re
from pathlib import Path

import openvino_genai
from tiny_bert import TinyBert
from tiny_models import TinyModels, TinySource

from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.exported import open_exported
from lonas_edge.network.source import open_source


def test_the_server_can_read_the_directory(tiny_models: TinyModels, tmp_path: Path) -> None:
    """ "Models Directory" of its documentation; the graph lies in it, and `models_path` is relative to the graph."""
    served, opened = tmp_path / "model", open_source(str(tiny_models.base("llama-tied")))
    export(opened, opened.select(None), served, ExportOptions())
    wanted = {f"openvino_{part}.{end}" for part in ("model", "tokenizer", "detokenizer") for end in ("xml", "bin")}
    assert wanted | {"tokenizer_config.json", "graph.pbtxt"} <= {path.name for path in served.iterdir()}
    graph = (served / "graph.pbtxt").read_text()
    (served / "graph.pbtxt").write_text(graph.replace('"CPU"', '"GPU"'))  # as users may
    open_exported(served)
    assert graph.count("{") == graph.count("}") and re.search(r'models_path: "\./"\n +device: "CPU"\n', graph)
    assert 'input_side_packet: "LLM_NODE_RESOURCES:llm"' in graph  # "must have exactly that specification"
    card = (served / "README.md").read_text()
    assert "--model_path /models/model --model_name model --rest_port 8000" in card
    assert openvino_genai.LLMPipeline(str(served), "CPU").generate("the", max_new_tokens=2) is not None


def test_no_graph_without_a_server(llama_copy: TinySource, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """The server's language models have a tokenizer; encoders and checkpoints are none."""
    for path in llama_copy.base.glob("*token*"):
        path.unlink()
    exports = {"encoder": (tiny_bert.source(2).opened(), "ir"), "no tokenizer": (llama_copy.opened(), "ir")}
    exports["checkpoint"] = (llama_copy.opened(), "checkpoint")
    for name, (opened, stage) in exports.items():
        export(opened, opened.select(None), tmp_path / name, ExportOptions(stage=stage))
        assert not (tmp_path / name / "graph.pbtxt").exists(), name
