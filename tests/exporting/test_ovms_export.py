"""`export --server ovms`: graph.pbtxt read by protobuf, by the server's schema, field by field.

The messages are declared here with the numbers and types of MediaPipe's `calculator.proto`, `mediapipe_options.proto` and
`sync_set_input_stream_handler.proto`, and of `src/llm/llm_calculator.proto` of openvinotoolkit/model_server (2026.3). Protobuf
refuses other fields.
"""

from collections.abc import Callable
from pathlib import Path

import openvino_genai
import pytest
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, text_format
from tiny_bert import TinyBert
from tiny_models import TinyModels, TinySource

from lonas_edge.exporting.exported import open_exported

Field = descriptor_pb2.FieldDescriptorProto
TYPES = {"string": Field.TYPE_STRING, "bool": Field.TYPE_BOOL, "uint64": Field.TYPE_UINT64, "uint32": Field.TYPE_UINT32}
LABELS = {"one": Field.LABEL_OPTIONAL, "many": Field.LABEL_REPEATED, "required": Field.LABEL_REQUIRED}
MESSAGES = {
    "MediaPipeOptions": [],
    "SyncSet": [("tag_index", 1, "many", "string")],
    "SyncSetInputStreamHandlerOptions": [("sync_set", 1, "many", "SyncSet")],
    "InputStreamHandlerConfig": [("input_stream_handler", 1, "one", "string"), ("options", 3, "one", "MediaPipeOptions")],
    "InputStreamInfo": [("tag_index", 1, "one", "string"), ("back_edge", 2, "one", "bool")],
    "Node": [
        ("name", 1, "one", "string"),
        ("calculator", 2, "one", "string"),
        ("input_stream", 3, "many", "string"),
        ("output_stream", 4, "many", "string"),
        ("input_side_packet", 5, "many", "string"),
        ("node_options", 8, "many", ".google.protobuf.Any"),
        ("input_stream_handler", 11, "one", "InputStreamHandlerConfig"),
        ("input_stream_info", 13, "many", "InputStreamInfo"),
    ],
    "CalculatorGraphConfig": [
        ("node", 1, "many", "Node"),
        ("input_stream", 10, "many", "string"),
        ("output_stream", 15, "many", "string"),
    ],
    "LLMCalculatorOptions": [
        ("models_path", 1, "required", "string"),
        ("max_num_batched_tokens", 2, "one", "uint64"),
        ("cache_size", 3, "one", "uint64"),
        ("max_num_seqs", 4, "one", "uint64"),
        ("dynamic_split_fuse", 5, "one", "bool"),
        ("device", 6, "one", "string"),
        ("plugin_config", 7, "one", "string"),
        ("best_of_limit", 8, "one", "uint32"),
        ("max_tokens_limit", 9, "one", "uint32"),
        ("enable_prefix_caching", 10, "one", "bool"),
    ],
}


def pool() -> descriptor_pool.DescriptorPool:
    """The server's messages."""
    file = descriptor_pb2.FileDescriptorProto(name="graph.proto", package="mediapipe", syntax="proto2")
    file.dependency.append("google/protobuf/any.proto")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, label, kind in fields:
            made = message.field.add(name=field, number=number, label=LABELS[label])
            if kind in TYPES:
                made.type = TYPES[kind]
            else:
                made.type, made.type_name = Field.TYPE_MESSAGE, kind if kind[0] == "." else f".mediapipe.{kind}"
        if name == "MediaPipeOptions":
            message.extension_range.add(start=20000, end=2**29)
        if name == "SyncSetInputStreamHandlerOptions":
            made = message.extension.add(name="ext", number=155816273, label=Field.LABEL_OPTIONAL, type=Field.TYPE_MESSAGE)
            made.type_name, made.extendee = f".mediapipe.{name}", ".mediapipe.MediaPipeOptions"
    actual = descriptor_pool.DescriptorPool()
    actual.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    actual.Add(file)
    return actual


def read(text: str) -> tuple[object, object, descriptor_pool.DescriptorPool]:
    """The graph, and the options of its one node."""
    known = pool()
    classes = message_factory.GetMessageClassesForFiles(["graph.proto"], known)
    graph = text_format.Parse(text, classes["mediapipe.CalculatorGraphConfig"](), descriptor_pool=known)
    options = classes["mediapipe.LLMCalculatorOptions"]()
    (packed,) = graph.node[0].node_options
    assert packed.type_url == "type.googleapis.com/mediapipe.LLMCalculatorOptions"
    options.ParseFromString(packed.value)
    return graph, options, known


@pytest.fixture(scope="module")
def served(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lonas_edge.exporting.export import ExportOptions, export
    from lonas_edge.network.source import open_source

    folder, opened = tmp_path_factory.mktemp("ovms") / "model", open_source(str(tiny_models.base("llama-tied")))
    export(opened, opened.select(None), folder, ExportOptions(server="ovms"))
    return folder


def test_the_graph_follows_the_documentation(served: Path) -> None:
    graph, options, known = read((served / "graph.pbtxt").read_text())
    assert list(graph.input_stream) == ["HTTP_REQUEST_PAYLOAD:input"]
    assert list(graph.output_stream) == ["HTTP_RESPONSE_PAYLOAD:output"]
    (node,) = graph.node
    assert (node.name, node.calculator) == ("LLMExecutor", "HttpLLMCalculator")
    assert list(node.input_stream) == ["LOOPBACK:loopback", "HTTP_REQUEST_PAYLOAD:input"]
    assert list(node.output_stream) == ["LOOPBACK:loopback", "HTTP_RESPONSE_PAYLOAD:output"]
    assert list(node.input_side_packet) == ["LLM_NODE_RESOURCES:llm"]  # "must have exactly that specification"
    (info,) = node.input_stream_info
    assert (info.tag_index, info.back_edge) == ("LOOPBACK:0", True)
    assert {field.name: value for field, value in options.ListFields()} == {"models_path": "./", "device": "CPU"}
    handler = node.input_stream_handler
    assert handler.input_stream_handler == "SyncSetInputStreamHandler"
    extension = known.FindExtensionByName("mediapipe.SyncSetInputStreamHandlerOptions.ext")
    assert [list(streams.tag_index) for streams in handler.options.Extensions[extension].sync_set] == [["LOOPBACK:0"]]
    written = {field.name for field, _ in node.ListFields()}
    assert written == {field for field, *_ in MESSAGES["Node"]}, "nothing else is set"


def test_the_server_can_read_the_directory(served: Path) -> None:
    """ "Models Directory" of its documentation; the graph lies in it, and `models_path` is relative to the graph."""
    wanted = {f"openvino_{part}.{end}" for part in ("model", "tokenizer", "detokenizer") for end in ("xml", "bin")}
    assert wanted | {"tokenizer_config.json", "graph.pbtxt"} <= {path.name for path in served.iterdir()}
    assert "graph.pbtxt" in (open_exported(served).own_manifest.files)
    card = (served / "README.md").read_text()
    assert "--model_path /models/model --model_name model --rest_port 8000" in card
    assert openvino_genai.LLMPipeline(str(served), "CPU").generate("the", max_new_tokens=2) is not None


def test_refusals(llama_copy: TinySource, tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    ran = run_cli("export", *tiny_bert.source(2).arguments(), "--server", "ovms", "--output", tmp_path / "out")
    assert ran.code == 1 and "--server ovms works on a causal language model" in ran.err
    for path in llama_copy.base.glob("*token*"):
        path.unlink()
    ran = run_cli("export", *llama_copy.arguments(), "--server", "ovms", "--output", tmp_path / "out")
    assert ran.code == 1 and "no tokenizer, which --server ovms needs" in " ".join(ran.err.split())
