"""ncnn's text definitions and the JSON graphs of ANNETTE and MMdnn: what is read, and what hostile files do."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from foretell import api
from foretell.datasets import archives
from foretell.errors import ForetellError, FormatError, ShapeError, UnsupportedError, UsageError
from foretell.formats import read
from foretell.graph.cost import cost
from foretell.graph.memory import memory_use

DATA = Path(__file__).parent / "data"
NCNN = sorted((DATA / "ncnn").glob("*.param"))
JSON = sorted((DATA / "annette").glob("*.json"))
SHAPES = {"vision_transformer": {"input": (1, 3, 384, 384)}}

# MACs (millions) and weights (millions) as published for each network by its authors or model zoo.
KNOWN = {
    "squeezenet": (419, 1.24), "shufflenet_v2": (145, 2.27), "resnet18": (1_827, 11.69), "resnet50": (3_858, 25.5),
    "vgg16": (15_470, 138.4), "alexnet": (724, 61.0), "mobilenet_v2": (314, 3.49), "googlenet": (1_583, 7.0),
}  # fmt: skip


@pytest.mark.parametrize("path", NCNN, ids=lambda p: p.stem)
def test_ncnn_reads(path):
    graph = read(path, shapes=SHAPES.get(path.stem))
    assert graph.format == "ncnn" and graph.total_macs > 1e8
    cost(graph)
    memory_use(graph)


@pytest.mark.parametrize("name", KNOWN)
def test_ncnn_arithmetic_is_the_published_one(name):
    graph = archives.graph(f"ncnn/{name}.param", name)
    macs, weights = KNOWN[name]
    assert graph.total_macs / 1e6 == pytest.approx(macs, rel=0.01)
    assert graph.parameters / 1e6 == pytest.approx(weights, rel=0.01)


def test_every_annotated_shape_is_what_the_layers_give():
    """The archive's files annotate some 1,400 outputs; the reader compares each of them."""
    names = sorted(n for n in archives.members("ncnn") if not n.startswith(("FastestDet", "vision_transformer")))
    assert len(names) == 33
    for name in names:
        archives.graph(f"ncnn/{name}", name)


def test_a_wrong_annotation_is_refused():
    text = (DATA / "ncnn/shufflenet_v2.param").read_text()
    changed = text.replace("-23330=4,3,112,112,24", "-23330=4,3,112,113,24", 1)
    assert changed != text
    with pytest.raises(ShapeError, match="annotated"):
        read(changed.encode())


def test_ncnn_vision_transformer_against_the_published_figures():
    """ViT-B/32 at 384: 88.3 M weights (Dosovitskiy et al. 2021, table 6)."""
    graph = read(DATA / "ncnn/vision_transformer.param", shapes=SHAPES["vision_transformer"])
    assert graph.parameters / 1e6 == pytest.approx(88.3, rel=0.002)
    with pytest.raises(ShapeError, match="--shape input="):
        read(DATA / "ncnn/vision_transformer.param")


def test_ncnn_input_may_be_replaced():
    small = read(DATA / "ncnn/shufflenet_v2.param", shapes={"data": (1, 3, 112, 112)})
    assert small.tensors[small.inputs[0]].shape == (1, 3, 112, 112)
    with pytest.raises(ShapeError, match="no input"):
        read(DATA / "ncnn/shufflenet_v2.param", shapes={"nothing": (1, 3, 112, 112)})
    with pytest.raises(UsageError):
        read(DATA / "ncnn/shufflenet_v2.param", batch=4)


def test_int8_layers_have_int8_weights():
    graph = read(DATA / "ncnn/squeezenet_int8.param")
    weights = {graph.tensors[n.inputs[1]].dtype for n in graph.nodes if n.op_type == "Conv"}
    assert weights == {"i8"}


HEAD = "7767517\n{} {}\nInput in 0 1 in 0=8 1=8 2=4\n"


def layers(*lines: str) -> bytes:
    return (HEAD.format(len(lines) + 1, 9) + "\n".join(lines) + "\n").encode()


def test_ncnn_layers_do_what_ncnn_does():
    """Caffe's pooling rounds up, a global pooling leaves a vector, and a vector scales the channels of a map."""
    graph = read(layers(
        "Pooling p 1 1 in p 0=0 1=3 2=2 -23330=4,3,4,4,4", "Pooling g 1 1 p g 0=1 4=1 -23330=4,1,4,1,1",
        "InnerProduct f 1 1 g f 0=4 1=1 2=16 9=4", "BinaryOp m 2 1 p f m 0=2 -23330=4,3,4,4,4",
        "Permute t 1 1 m t 0=3 -23330=4,3,4,4,4", "Flatten v 1 1 t v -23330=4,1,64,1,1",
        "Reshape r 1 1 v r 0=-1 1=16 -23330=4,2,4,16,1", "Softmax s 1 1 r s 0=1 1=1",
    ))  # fmt: skip
    assert [n.op_type for n in graph.nodes if n.op_type != "Reshape"] == [
        "MaxPool", "GlobalAveragePool", "Flatten", "Gemm", "Sigmoid", "Mul", "Transpose", "Flatten", "Softmax",
    ]  # fmt: skip


@pytest.mark.parametrize(("line", "error", "words"), [
    ("Convolution c 1 1 nothing c 0=4 1=1 6=16", FormatError, "before anything"),
    ("Convolution c 1 1 in c 0=4 1=3 6=16", ShapeError, "weights"),
    ("Convolution c 1 1 in c 0=-4 1=3", ShapeError, "below one"),
    ("Convolution c 1 1 in c 0=4 1=99", ShapeError, ""),
    ("Convolution c 1 1 in c 0=4 1=1 4=99999999", ShapeError, ""),
    ("ConvolutionDepthWise c 1 1 in c 0=4 1=3 7=3", ShapeError, "groups"),
    ("Convolution c 1 1 in c 0=99999999999999999999999999", FormatError, "out of range"),
    ("Convolution c 1 1 in c 0=nan", FormatError, "out of range"),
    ("Convolution c 1 1 in c 0", FormatError, "setting"),
    ("Convolution c 1 1 in in 0=4 1=1", FormatError, "again"),
    ("Convolution c 9 9 in", FormatError, "fewer"),
    ("Slice s 1 2 in a b -23300=3,1,1", FormatError, "says 3"),
    ("Slice s 1 2 in a b -23300=2,9,9", ShapeError, "channels"),
    ("Reshape r 1 1 in r 0=7 1=-1", ShapeError, "reshape"),
    ("Interp i 1 1 in i 0=2 1=1e13 2=1e13", FormatError, "out of range"),
    ("Interp i 1 1 in i 0=2 1=1e10 2=1e10", ShapeError, ""),
    ("Padding p 1 1 in p 0=99999999", ShapeError, ""),
    ("Frobnicate f 1 1 in f", UnsupportedError, "Frobnicate"),
    ("MemoryData m 0 1 m 0=1000000000 1=1000000000 2=1000000000", ShapeError, "impossible"),
    ("MultiHeadAttention a 1 1 in a 0=64 1=7", ShapeError, "attention"),
])  # fmt: skip
def test_ncnn_refuses(line, error, words):
    with pytest.raises(error) as e:
        read(layers(line))
    assert words in str(e.value)


@pytest.mark.parametrize("data", [
    b"7767517", b"7767517\n3 3\n", b"7767517\n-1 0\nInput in 0 1 in", b"7767517\n99999999 1\nInput in 0 1 in 0=1",
    b"7767517\nx y\nInput in 0 1 in 0=1", b"7767517 \xff\xfe\n1 1\nInput a 0 1 a", b"7767517\n1 1\n" + b"x" * 100_000,
])  # fmt: skip
def test_ncnn_broken_heads(data):
    with pytest.raises(ForetellError):
        read(data)


def survives(data: bytes) -> None:
    start = time.monotonic()
    try:
        graph = read(data)
        cost(graph)
        memory_use(graph)
    except ForetellError as e:
        assert str(e).isprintable()
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("path", [*NCNN[:3], *JSON], ids=lambda p: p.stem)
def test_cut_and_changed_files(path):
    data = path.read_bytes()
    rng = random.Random(7)
    for i in range(12):
        survives(data[: len(data) * i // 12])
    digits = [i for i, c in enumerate(data) if chr(c).isdigit()]
    for _ in range(60):
        changed = bytearray(data)
        for _ in range(3):  # mostly numbers: those are what shapes come from
            at = rng.choice(digits) if rng.random() < 0.8 else rng.randrange(len(data))
            changed[at] = rng.choice(b"0123456789-,=\" \n") if rng.random() < 0.8 else rng.randrange(256)
        survives(bytes(changed))


@pytest.mark.parametrize("path", JSON, ids=lambda p: p.stem)
def test_annette_reads(path):
    graph = read(path)
    assert graph.format == "annette" and graph.total_macs > 5e7


def test_one_network_in_two_json_formats():
    a, b = (read(p) for p in JSON if "squeeze" in p.stem)
    assert a.total_macs == b.total_macs and a.parameters == b.parameters
    assert [n.op_type for n in a.nodes] == [n.op_type for n in b.nodes]


def test_annette_arithmetic_is_what_the_names_say():
    """The names of the archive's networks end in GOPs, counted by the vendor; two count otherwise (pruned or padded)."""
    names = sorted(archives.members("annette"))
    assert len(names) == 25
    off = []
    for member in names:
        said = float(member.removesuffix("G.json").rpartition("_")[2])
        if abs(archives.graph(f"annette/{member}", member).total_macs * 2e-9 / said - 1) > 0.03:
            off.append(member)
    assert len(off) <= 1, off


def annette(**layers_: dict) -> bytes:
    base = {"data": {"type": "DataInput", "parents": [], "output_shape": [-1, 8, 8, 4]}}
    return json.dumps({"layers": base | layers_}).encode()


CONV = {"type": "Conv", "parents": ["data"], "output_shape": [-1, 8, 8, 4], "kernel_shape": [1, 1, 4, 4],
        "strides": [1, 1, 1, 1], "pads": [0] * 8}  # fmt: skip


@pytest.mark.parametrize("change", [
    {"parents": ["nothing"]}, {"parents": ["c"]}, {"parents": "data"}, {"output_shape": [-1, 9, 9, 4]},
    {"output_shape": [2**70]}, {"output_shape": "x"}, {"output_shape": [[1]]}, {"kernel_shape": [1, 1, 3, 4]},
    {"kernel_shape": [0, 0, 0, 0]}, {"kernel_shape": [1]}, {"strides": [1, 0, 0, 1]}, {"pads": [0, -9, 0, 0, 0, 0, 0, 0]},
    {"type": None}, {"type": "Pool", "kernel_shape": [1, 99, 99, 1]}, {"type": "FullyConnected", "output_shape": [-1]},
    {"type": "Concat", "output_shape": [-1, 8, 8, 5]}, {"type": "Reshape", "output_shape": [-1, -1, 7, 1]},
    {"type": "Slice", "output_shape": [-1, 8, 8, 5]}, {"output_shape": [-1, True, 8, 4]},
])  # fmt: skip
def test_annette_refuses(change):
    assert read(annette(c=CONV)).total_macs == 8 * 8 * 16
    with pytest.raises(ForetellError):
        read(annette(c=CONV | change))


@pytest.mark.parametrize("data", [
    b"{", b"{}", b'{"layers": []}', b'{"layers": {}}', b'{"node": [1]}', b'{"node": [{"name": "a", "op": "Conv"}]}',
    b'{"layers": {"a": 1}}', b'{"layers": {"a": {}}}', b"{" * 200_000, b'{"a":' * 50_000,
    b'{"node": [{"name": "a", "op": "Pool", "attr": {"_output_shapes": {"list": {"shape": [{}]}}, "pooling_type": {"s": "?"}}}]}',
])  # fmt: skip
def test_annette_broken_files(data):
    with pytest.raises(ForetellError):
        read(data)


def test_predict_takes_them():
    for path in (DATA / "ncnn/shufflenet_v2.param", JSON[0]):
        assert api.predict(str(path), "ort").latency_s.value > 0
