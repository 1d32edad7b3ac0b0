"""The script that exports networks by name: what it does without torch (packing, stripping, resuming)."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

SCRIPT = Path(__file__).parent.parent / "scripts" / "export_named.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("export_named", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def proto() -> onnx.ModelProto:
    weights = helper.make_tensor("w", TensorProto.FLOAT, (64, 4), [0.5] * 256)
    shape = helper.make_tensor("s", TensorProto.INT64, (2,), [1, 64])
    scale = helper.make_tensor("k", TensorProto.FLOAT, (), [0.125])
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=1, doc_string="from line 7 of somebody's file"),
        helper.make_node("Reshape", ["y", "s"], ["r"]), helper.make_node("Mul", ["r", "k"], ["z"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4))],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, 64))], [weights, shape, scale],
    )  # fmt: skip
    return helper.make_model(graph)


def test_strip_leaves_structure_and_small_constants(script):
    stripped = script.strip(proto())
    by_name = {t.name: t for t in stripped.graph.initializer}
    assert by_name["w"].data_location == TensorProto.EXTERNAL and not by_name["w"].raw_data and not by_name["w"].float_data
    assert list(by_name["s"].int64_data) == [1, 64] and list(by_name["k"].float_data) == [0.125]
    assert not any(n.doc_string for n in stripped.graph.node)
    from foretell.formats import read

    graph = read(stripped.SerializeToString(), name="g")
    assert graph.total_macs == 256 and [n.op_type for n in graph.nodes] == ["Gemm", "Reshape", "Mul"]


def test_pack_is_reproducible_and_readable(script, tmp_path, monkeypatch):
    data = script.strip(proto()).SerializeToString()
    for name in ("b", "a"):
        (tmp_path / "in/lib").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"in/lib/{name}.onnx").write_bytes(data)
    script.pack(tmp_path / "in", tmp_path / "home/catalogue/graphs")
    first = (tmp_path / "home/catalogue/graphs/lib.zip").read_bytes()
    script.pack(tmp_path / "in", tmp_path / "home/catalogue/graphs")
    assert (tmp_path / "home/catalogue/graphs/lib.zip").read_bytes() == first
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path / "home"))
    from foretell.datasets import archives
    from foretell.errors import FormatError

    archives.members.cache_clear()
    assert archives.members("lib") == {"a.onnx", "b.onnx"} and archives.graph("lib/a.onnx", "a").total_macs == 256
    with pytest.raises(FormatError, match="no graph"):
        archives.packed("lib", "../a.onnx")
    damaged = bytearray(first)
    damaged[len(first) // 4] ^= 0xFF
    (tmp_path / "home/catalogue/graphs/lib.zip").write_bytes(damaged)
    with pytest.raises(FormatError):
        archives.packed("lib", "a.onnx")
    (tmp_path / "home/catalogue/graphs/lib.zip").write_bytes(first[:-30])
    archives.members.cache_clear()
    with pytest.raises(FormatError, match="archive"):
        archives.members("lib")
    archives.members.cache_clear()


def test_it_resumes_and_remembers_failures(script, tmp_path, monkeypatch, capsys):
    asked = []

    def child(name: str, path: Path) -> str:
        asked.append(name)
        if "bad" in name:
            return "RuntimeError: no"
        path.write_bytes(b"x")
        return ""

    monkeypatch.setattr(script, "in_child", child)
    monkeypatch.setattr(script, "warm", lambda: None)
    names = ["lib/a", "lib/bad", "lib/c"]
    assert script.export_all(names, tmp_path, again=False) == 1 and asked == names
    assert json.loads((tmp_path / "failed.json").read_text()) == {"lib/bad": "RuntimeError: no"}
    asked.clear()
    assert script.export_all(names, tmp_path, again=False) == 1 and asked == []
    assert script.export_all(names, tmp_path, again=True) == 1 and asked == ["lib/bad"]


def test_a_child_that_dies_is_a_failure(script, tmp_path, monkeypatch):
    """In a real child: an error, and a death without a word."""

    def fails(name: str, path: Path) -> None:
        raise ValueError(f"no {name}")

    monkeypatch.setattr(script, "export", fails)
    assert script.in_child("lib/a", tmp_path / "x.onnx") == "ValueError: no lib/a"
    monkeypatch.setattr(script, "export", lambda name, path: os.kill(os.getpid(), 9))
    assert "status" in script.in_child("lib/a", tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
