"""The data set: drawn and labelled piece by piece, resumed after a kill, packed, checked, exported."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from foretell.bench import campaign, protocol
from foretell.cli import app
from foretell.datasets import edge, files, parquet
from foretell.errors import FormatError, UsageError
from foretell.formats import read
from foretell.graph.canonical import canonical_hash
from foretell.models.table import lower_measured
from foretell.records import ExecutedKernel, Measurement, Target
from foretell.store import Store

pytest.importorskip("pyarrow")
COUNT = 14


def quiet(*_: object) -> None:
    pass


def be_quick(patch: pytest.MonkeyPatch) -> None:
    """Small pieces, and the null backend as an estimator: one run a network, one child."""
    patch.setattr(edge, "_PIECE", 5)
    patch.setattr(edge, "RunOptions", lambda **_: campaign.RunOptions(min_runs=3))
    patch.setenv("FORETELL_FAKE", '{"estimate": true}')


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    be_quick(monkeypatch)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A store with a small data set, labelled by the null backend, and its files."""
    folder = tmp_path_factory.mktemp("dataset")
    with pytest.MonkeyPatch.context() as patch:
        be_quick(patch)
        counts = edge.build(folder / "s.sqlite", count=COUNT, targets=["fake"], tell=quiet)
    assert counts == {"fake-f32-1t": {"done": COUNT}}
    files.pack(folder / "s.sqlite", folder / "set")
    return folder


def names(store: Path) -> list[str]:
    return [m.name for m in Store(store).measurements("fake-f32-1t", edge.campaign_of("fake-f32-1t"))]


def test_all_is_labelled_once_and_goes_on(labelled, tmp_path):
    assert len(set(names(labelled / "s.sqlite"))) == COUNT
    first = edge.specs_file(labelled / "s.sqlite").read_text().splitlines()
    store = tmp_path / "s.sqlite"
    edge.build(store, count=6, targets=["fake"], tell=quiet)
    path = edge.specs_file(store)
    path.write_bytes(path.read_bytes() + b'{"graph": "cut sho')  # a kill in the middle of a line
    edge.build(store, count=8, targets=["fake"], tell=quiet)
    assert path.read_text().splitlines() == first[:9]
    assert sorted(names(store)) == sorted(r.drawn.name for r in edge.read_specs(path)[1])


def test_a_second_target_labels_the_same_networks(labelled, tmp_path, monkeypatch):
    pytest.importorskip("ethosu.vela")
    store = tmp_path / "s.sqlite"
    monkeypatch.setattr(
        edge, "sample", lambda seed, known: iter([r.drawn for r in edge.read_specs(edge.specs_file(labelled / "s.sqlite"))[1]
                                                  if r.drawn.macs < 2e7][len(known) :])
    )  # fmt: skip
    counts = edge.build(store, count=2, targets=["ethos-u55-128", "fake"], tell=quiet)
    assert counts == {"ethos-u55-128": {"done": 2}, "fake-f32-1t": {"done": 2}}
    card = files.pack(store, tmp_path / "set")
    assert card["targets"]["ethos-u55-128"]["estimate"] is True
    found = parquet.read(tmp_path / "set")
    assert np.isfinite(found.values("ethos-u55-128", "peak_memory_bytes")).all()
    assert np.isnan(found.values("ethos-u55-128", "energy_j")).all()


def test_another_seed_is_refused(labelled):
    with pytest.raises(UsageError, match="seed 0"):
        edge.build(labelled / "s.sqlite", count=1, targets=["fake"], seed=1, tell=quiet)


def test_a_damaged_file_of_specs_is_refused(labelled, tmp_path):
    lines = edge.specs_file(labelled / "s.sqlite").read_text().splitlines()
    path = edge.specs_file(tmp_path / "s.sqlite")
    for bad in ("{}", lines[0].replace("foretell-edge", "other"), "", "[1]"):
        path.write_text("\n".join([bad, *lines[1:]]) + "\n")
        with pytest.raises(FormatError):
            edge.read_specs(path)
    for bad in ("x", "{}", lines[2][:-20], lines[2].replace('"macs":', '"mac":'), "[]"):
        path.write_text("\n".join([*lines[:2], bad, *lines[3:]]) + "\n")
        with pytest.raises(FormatError, match="line 3"):
            edge.read_specs(path)


KILLED = """
import sys
from pathlib import Path
from foretell.datasets import edge
from foretell.bench import campaign, protocol
edge._PIECE = 5
edge.RunOptions = lambda **_: campaign.RunOptions(min_runs=3)
edge.build(Path(sys.argv[1]), count={count}, targets=["fake"], tell=lambda *_: None)
"""


def test_a_kill_loses_nothing(labelled, tmp_path):
    store = tmp_path / "s.sqlite"
    process = subprocess.Popen([sys.executable, "-c", KILLED.format(count=COUNT), str(store)], start_new_session=True)
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if store.is_file() and Store(store).counts(edge.campaign_of("fake-f32-1t")).get("done", 0) >= 2:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = names(store)
    assert 2 <= len(before) < COUNT
    edge.build(store, count=COUNT, targets=["fake"], tell=quiet)
    after = names(store)
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == COUNT
    assert edge.specs_file(store).read_text() == edge.specs_file(labelled / "s.sqlite").read_text()


# Files


def test_what_is_packed_is_read_again(labelled):
    found = parquet.read(labelled / "set")
    _, rows = edge.read_specs(edge.specs_file(labelled / "s.sqlite"))
    assert [n.drawn.spec for n in found.networks] == [r.drawn.spec for r in rows]
    assert [n.drawn.macs for n in found.networks] == [r.drawn.macs for r in rows]
    assert found.targets == ["fake-f32-1t"]
    latency = found.values("fake-f32-1t", "latency_s")
    by_name = {m.name: m for m in Store(labelled / "s.sqlite").measurements("fake-f32-1t")}
    for row, value in zip(rows, latency, strict=True):
        m = by_name[row.drawn.name]
        assert (np.isnan(value) and m.verdict != "ok") or value == m.latency_s
    assert {n.split for n in found.networks} <= set(parquet.SPLITS)
    assert all(parquet.split_of(r.drawn) == n.split or n.drawn.hash != r.drawn.hash[:16]
               for r, n in zip(rows, found.networks, strict=True))  # fmt: skip
    card = json.loads((labelled / "set" / "card.json").read_text())
    assert card["networks"] == COUNT
    assert sum(s["networks"] for s in card["spaces"].values()) == COUNT
    assert "| fake-f32-1t |" in (labelled / "set" / "README.md").read_text()
    with pytest.raises(UsageError):
        found.values("fake-f32-1t", "joules")


def test_splits_hold_what_they_should(labelled):
    """Shares by hash, and a cell stays with itself whatever its classes."""
    drawn = edge.read_specs(edge.specs_file(labelled / "s.sqlite"))[1][0].drawn
    drawn = replace(drawn, spec=edge.Spec("vit", {}))
    hashes = [f"{int((i + 0.5) * 16**8 / 1000):08x}" + "0" * 56 for i in range(1000)]
    places = [parquet.split_of(replace(drawn, hash=h)) for h in hashes]
    assert [places.count(s) for s in parquet.SPLITS] == [850, 50, 100]
    ops = ["nor_conv_1x1", "skip_connect", "nor_conv_3x3", "none", "nor_conv_1x1", "avg_pool_3x3"]
    found = [files.describe(edge.Spec("nasbench201", {"ops": ops, "classes": c})) for c in (10, 100)]
    assert found[0].hash != found[1].hash
    assert parquet.split_of(found[0]) == parquet.split_of(found[1])


def copy(labelled: Path, to: Path) -> Path:
    to.mkdir()
    for f in (labelled / "set").iterdir():
        (to / f.name).write_bytes(f.read_bytes())
    return to


@pytest.mark.parametrize("name", ["networks.parquet", "labels.parquet", "card.json"])
def test_a_damaged_data_set_is_refused(labelled, tmp_path, name):
    for i, damage in enumerate((lambda d: d[: len(d) // 2], lambda d: b"", lambda d: d[:40] + b"\xff\xfe" + d[42:])):
        folder = copy(labelled, tmp_path / str(i))
        path = folder / name
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(FormatError):
            parquet.read(folder)
    (folder / name).unlink()
    with pytest.raises(FormatError):
        parquet.read(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"network": COUNT}, {"network": -1}, {"verdict": "splendid"}, {"latency_s": -1.0}, {"latency_s": float("inf")},
        {"energy_j": float("nan")},
    ],
)  # fmt: skip
def test_labels_out_of_range_are_refused(labelled, tmp_path, change):
    found = parquet.read(labelled / "set")
    labels = [*found.labels[1:], replace(found.labels[0], **change)]
    parquet.write(tmp_path / "set", found.networks, labels, found.card)
    with pytest.raises(FormatError, match=f"row {COUNT - 1}"):
        parquet.read(tmp_path / "set")


def test_files_are_rebuilt_or_refused(labelled, tmp_path):
    found = parquet.read(labelled / "set")
    few = files.chosen(found.networks, spaces=["keyword-spotting", "bert"], count=2)
    assert files.export(few, tmp_path / "out", "both") == 4
    assert files.export(few, tmp_path / "out", "both") == 0
    for n in few:
        stem = f"{n.drawn.spec.space}-{n.drawn.hash[:16]}"
        graph = read((tmp_path / "out" / f"{stem}.onnx").read_bytes())
        assert graph.total_macs == n.drawn.macs
        assert canonical_hash(graph).startswith(n.drawn.hash)
        assert read((tmp_path / "out" / f"{stem}.int8.tflite").read_bytes()).total_macs == n.drawn.macs
    wrong = replace(few[0], drawn=replace(few[0].drawn, hash="0" * 16))
    with pytest.raises(FormatError, match="another network"):
        files.export([wrong], tmp_path / "out", "onnx")
    with pytest.raises(UsageError):
        files.chosen(found.networks, spaces=["nonesuch"])
    assert files.chosen(found.networks, ids=[few[0].drawn.hash[:10]])[0] == few[0]


def test_the_command_line(labelled, tmp_path):
    run = CliRunner().invoke
    store, folder = str(tmp_path / "s.sqlite"), str(tmp_path / "set")
    out = run(app, ["dataset", "build", "--count", "3", "--targets", "fake", "--store", store, "--output", folder, "--quiet"])
    assert out.exit_code == 0, out.output
    assert "fake-f32-1t: 3 done" in out.output
    shown = run(app, ["dataset", "info", folder, "--format", "json"])
    assert json.loads(shown.stdout)["networks"] == 3
    assert "super-resolution" in run(app, ["dataset", "info", folder]).output
    plain = run(app, ["dataset", "info", folder, "--format", "csv"]).output
    assert "macs_median" in plain
    assert " M," not in plain
    made = run(app, ["dataset", "export", folder, "--output", str(tmp_path / "f"), "--form", "onnx", "--count", "1", "--quiet"])
    assert "wrote 1 files" in made.output
    for bad in (["--targets", ","], ["--targets", "nonesuch"], ["--workers", "200"]):
        out = run(app, ["dataset", "build", "--count", "3", "--targets", "fake", "--store", store, *bad])
        assert out.exit_code != 0


def test_the_plot_is_drawn(labelled, tmp_path):
    pytest.importorskip("matplotlib")
    out = CliRunner().invoke(app, ["dataset", "info", str(labelled / "set"), "--png", str(tmp_path / "p.png")])
    assert out.exit_code == 0, out.output
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_tools_child_outlives_its_block(tmp_path, monkeypatch):
    """Estimates of many blocks come from one child; measurements get a fresh one for every pass."""
    started = []
    real = campaign.Child

    def child(*args, **kwargs):
        started.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(campaign, "Child", child)
    monkeypatch.setattr(campaign, "BLOCK", {False: 2, True: 2})
    edge.build(tmp_path / "a.sqlite", count=5, targets=["fake"], tell=quiet, workers=1)
    assert len(started) == 1
    started.clear()
    monkeypatch.setattr(campaign, "_ESTIMATES", 2)
    edge.build(tmp_path / "b.sqlite", count=5, targets=["fake"], tell=quiet, workers=1)
    assert len(started) > 1
    started.clear()
    monkeypatch.setenv("FORETELL_FAKE", "{}")
    edge.build(tmp_path / "c.sqlite", count=2, targets=["fake"], tell=quiet, workers=1)
    assert len(started) >= 3  # a process a pass


def test_a_build_goes_on_from_a_data_set(labelled, tmp_path):
    """A store that begins with a data set is as the one that made it: nothing is labelled again."""
    store = tmp_path / "s.sqlite"
    assert files.unpack(labelled / "set", store) == COUNT
    assert edge.specs_file(store).read_text() == edge.specs_file(labelled / "s.sqlite").read_text()
    files.pack(store, tmp_path / "again")
    for name in ("networks.parquet", "labels.parquet", "kernels.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (labelled / "set" / name).read_bytes()
    counts = edge.build(store, count=COUNT + 2, targets=["fake"], tell=quiet)
    assert counts == {"fake-f32-1t": {"done": COUNT + 2}}
    with pytest.raises(UsageError, match="already"):
        files.unpack(labelled / "set", store)


def test_labels_of_quiet_moments_are_not_levelled_by_a_reference_that_met_busy_ones(tmp_path, monkeypatch):
    """The reference network does not wait for quiet moments as labels do: what it took says nothing of them."""
    monkeypatch.setenv("FORETELL_FAKE", "{}")  # one that is measured
    store = tmp_path / "s.sqlite"
    real = campaign._State._reference
    slow = iter([1.0, 3.0] * 100)
    monkeypatch.setattr(campaign._State, "_reference", lambda self, *a: next(slow) * real(self, *a))
    edge.build(store, count=14, targets=["fake"], tell=quiet)
    raw = {m.name: m for m in Store(store).measurements("fake-f32-1t")}
    assert len({round(r, 9) for m in raw.values() for r in m.process_reference_s}) > 1
    files.pack(store, tmp_path / "set")
    data = parquet.read(tmp_path / "set")
    for label in data.labels:
        assert label.latency_s == raw[data.networks[label.network].drawn.name].latency_s


def test_labels_that_are_added_are_brought_to_the_speed_of_those_that_are_there(tmp_path, monkeypatch):
    """A core was slower by a fifth when the second half was measured; its probe says so."""
    monkeypatch.setenv("FORETELL_FAKE", "{}")
    first, level = tmp_path / "a.sqlite", 7e-5

    real = protocol.judge

    def probing(probe_s: float) -> None:
        """From now on rows tell what a probe took, which the fake does not."""
        def judge(*a, **k):
            m = real(*a, **k)
            return replace(m, process_probe_s=(probe_s,) * len(m.process_latency_s))

        monkeypatch.setattr(protocol, "judge", judge)

    probing(level)
    edge.build(first, count=10, targets=["fake"], tell=quiet)
    files.pack(first, tmp_path / "set")
    card = json.loads((tmp_path / "set" / "card.json").read_text())
    assert card["targets"]["fake-f32-1t"]["quiet_s"] == pytest.approx(level)
    second = tmp_path / "b.sqlite"
    files.unpack(tmp_path / "set", second)
    probing(1.2 * level)
    edge.build(second, count=20, targets=["fake"], tell=quiet)
    files.pack(second, tmp_path / "more")
    raw = {m.name: m for m in Store(second).measurements("fake-f32-1t") if m.verdict == "ok"}
    data = parquet.read(tmp_path / "more")
    good = [x for x in data.labels if x.verdict == "ok"]
    ratios = [x.latency_s / raw[data.networks[x.network].drawn.name].latency_s for x in good]
    assert {round(r, 6) for x, r in zip(good, ratios, strict=True) if x.network < 10} == {1.0}
    slow = {round(r, 6) for x, r in zip(good, ratios, strict=True) if x.network >= 10}
    assert slow == {round(1.2**-protocol.PROBE_POWER, 6)}
    assert data.card["targets"]["fake-f32-1t"]["quiet_s"] == pytest.approx(level)


@pytest.mark.parametrize("level", ["x", -1, 0, float("nan"), 10**400])
def test_a_level_that_is_none_is_refused(labelled, tmp_path, level):
    folder = copy(labelled, tmp_path / "set")
    card = json.loads((folder / "card.json").read_text())
    card["targets"]["fake-f32-1t"]["quiet_s"] = level
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(FormatError, match="card"):
        list(files.rows(folder, parquet.read(folder)))


def test_unstable_rows_are_measured_again_when_asked(tmp_path, monkeypatch):
    def verdicts():
        return {m.graph: m.verdict for m in Store(tmp_path / "s.sqlite").measurements("fake-f32-1t")}

    def build(**more):
        return edge.build(tmp_path / "s.sqlite", count=24, targets=["fake"], tell=quiet, **more)

    monkeypatch.setenv("FORETELL_FAKE", json.dumps({"process_noise": 0.2}))
    build()
    before = verdicts()
    assert {"ok", "unstable"} == set(before.values())
    log = tmp_path / "log"
    monkeypatch.setenv("FORETELL_FAKE", json.dumps({"log": str(log)}))
    assert build() == {"fake-f32-1t": {"done": 24}}
    assert not log.exists() and verdicts() == before
    assert build(again=True) == {"fake-f32-1t": {"done": 24}}
    assert set(verdicts().values()) == {"ok"}
    names = {m.name for m in Store(tmp_path / "s.sqlite").measurements("fake-f32-1t") if before[m.graph] == "unstable"}
    assert {line.split()[-1] for line in log.read_text().splitlines()} - {"reference"} == names


def test_a_kill_while_unpacking_leaves_no_data_set(labelled, tmp_path, monkeypatch):
    store = tmp_path / "s.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr(edge, "write_specs", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            files.unpack(labelled / "set", store)
    assert files.unpack(labelled / "set", store) == COUNT
    files.pack(store, tmp_path / "again")
    assert (tmp_path / "again" / "labels.parquet").read_bytes() == (labelled / "set" / "labels.parquet").read_bytes()


def test_kernels_are_kept_with_their_labels(labelled):
    found = parquet.read(labelled / "set")
    kernels = parquet.kernels(labelled / "set", found)
    by_name = {m.name: m for m in Store(labelled / "s.sqlite").measurements("fake-f32-1t")}
    for i, label in enumerate(found.labels):
        m = by_name[found.networks[label.network].drawn.name]
        assert m.kernels
        assert [(k.op_type, k.nodes, k.layout, np.float32(k.latency_s)) for k in m.kernels] == [
            (k.op_type, k.nodes, k.layout, np.float32(k.latency_s)) for k in kernels.of(i)
        ]


def test_conversions_are_kept_with_what_they_convert():
    """Without it nothing can be learned from the kernels of a runtime that inserts some."""
    pa = pytest.importorskip("pyarrow")
    from foretell.datasets import kernel_rows

    kernel = ExecutedKernel("ReorderOutput", (), "conv_1", "nchwc", 1.0)
    table = kernel_rows.table(pa, [[kernel, ExecutedKernel("Conv", (0,), "x", "", 1.0)]])
    told = kernel_rows.from_table(table, [3], "x").of(0)
    assert told == (kernel, ExecutedKernel("Conv", (0,), "", "", 1.0))
    older = kernel_rows.from_table(table.drop_columns(["tensor", "layout"]), [3], "x").of(0)
    assert older[0] == ExecutedKernel("ReorderOutput", (), "", "", 1.0)
    graph = next(iter(edge.sample(0))).spec.graph()
    with pytest.raises(FormatError, match="no tensor of it"):
        lower_measured(graph, Measurement("g", "n", "", "generated", Target("t", "fake"), "p", "ok", 1.0, kernels=older))
    nothing = pa.table({**{c: table.column(c) for c in table.column_names}, "layout": pa.array([None, "a"]).dictionary_encode()})
    with pytest.raises(FormatError, match="missing"):
        kernel_rows.from_table(nothing, [3], "x")


def test_kernels_learn_from_a_data_set(labelled, tmp_path, monkeypatch):
    """Beside the store's own benchmarks, from the networks of the split `train` alone."""
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path / "home"))
    folder, store = str(labelled / "set"), str(tmp_path / "own.sqlite")
    run = CliRunner().invoke
    out = run(app, ["build", "--target", "fake", "--minutes", "0.4", "--store", store, "--quiet", "--force", "--format", "json"])
    own = json.loads(out.stdout)["card"]
    fit = ["fit", "--target", "fake-f32-1t", "--store", store, "--quiet", "--force", "--format", "json"]
    card = json.loads(run(app, [*fit, "--data-set", folder]).stdout)["card"]
    data = parquet.read(labelled / "set")
    train = sum(x.verdict == "ok" and data.networks[x.network].split == "train" for x in data.labels)
    assert 0 < train < COUNT
    assert card["data_set_networks"] == train
    assert card["train_measurements"] == own["train_measurements"] + train
    assert "data_set_networks" not in own
    # The store that labelled the set holds its networks, those of the test split, too: they count once, or not at all.
    both = [*fit, "--store", str(labelled / "s.sqlite"), "--data-set", folder]
    assert json.loads(run(app, both).stdout)["card"]["train_measurements"] == card["train_measurements"]
    with pytest.raises(UsageError, match="no labels of ort-f32-1t"):
        files.learning(labelled / "set", "ort-f32-1t")
    other = copy(labelled, tmp_path / "other")
    told = json.loads((other / "card.json").read_text())
    told["targets"]["fake-f32-1t"]["runtime"] = "fake 99"
    (other / "card.json").write_text(json.dumps(told))
    refused = run(app, [*fit, "--data-set", str(other)])
    assert isinstance(refused.exception, UsageError) and "do not mix" in str(refused.exception)


@pytest.mark.parametrize("change", ["order", "nodes", "figure", "columns"])
def test_a_damaged_table_of_kernels_is_refused(labelled, change):
    pa = pytest.importorskip("pyarrow")
    from foretell.datasets import kernel_rows

    rows = [[ExecutedKernel("Conv", (0, 1), "", "", 1.0, 2.0)], [ExecutedKernel("Add", (2,), "", "", 1.0)]]
    table = kernel_rows.table(pa, rows)
    sizes = [2, 3]
    assert kernel_rows.from_table(table, sizes, "x").of(1)[0].energy_j is None
    if change == "order":
        table = table.take([1, 0])
    elif change == "nodes":
        sizes = [1, 3]
    elif change == "figure":
        table = kernel_rows.table(pa, [[replace(rows[0][0], latency_s=-1.0)], rows[1]])
    else:
        table = table.drop_columns(["energy_j"])
    with pytest.raises(FormatError):
        kernel_rows.from_table(table, sizes, "x")


def test_a_spec_is_the_graph_of_its_file(labelled):
    """Kernels of labels name nodes of the file; who learns from them builds the graph from the spec."""
    for n in parquet.read(labelled / "set").networks:
        graph, again = n.drawn.spec.graph(), read(edge.onnx_file(n.drawn.spec))
        assert [(m.op_type, len(m.inputs), m.outputs) for m in graph.nodes] == [
            (m.op_type, len(m.inputs), m.outputs) for m in again.nodes
        ]


@pytest.mark.parametrize(
    "change", [{"targets": []}, {"targets": None}, {"spaces": None}, {"seed": "x"}, {"targets": {"fake-f32-1t": 3}}, {"splits": 1}]
)
def test_a_card_without_its_parts_is_refused(labelled, tmp_path, change):
    folder = copy(labelled, tmp_path / "set")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **change}))
    with pytest.raises(FormatError, match="card"):
        parquet.read(folder)
    out = CliRunner().invoke(app, ["dataset", "info", str(folder)])
    assert isinstance(out.exception, FormatError)


@pytest.mark.parametrize("damage", ["cut", "gone", "unknown"])
def test_damaged_kernels_are_found_when_a_set_is_read(labelled, tmp_path, damage):
    folder = copy(labelled, tmp_path / "set")
    path = folder / "kernels.parquet"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "gone":
        path.unlink()
    else:
        card = json.loads((folder / "card.json").read_text())
        del card["sha256"]["kernels.parquet"]
        (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(FormatError, match=r"kernels\.parquet"):
        parquet.read(folder)


def test_from_is_checked_before_any_work(labelled, tmp_path):
    """Another seed, unknown targets and a store of another set are refused at once, and nothing is left behind."""
    begin = ["dataset", "build", "--count", "3", "--from", str(labelled / "set"), "--quiet"]
    for more, what in ((["--targets", "fake", "--seed", "5"], "seed 0"), (["--targets", "nonesuch"], "nonesuch")):
        out = CliRunner().invoke(app, [*begin, "--store", str(tmp_path / "s.sqlite"), *more])
        assert what in str(out.exception)
        assert not (tmp_path / "s.sqlite").exists()
    edge.build(tmp_path / "other.sqlite", count=4, targets=["fake"], seed=1, tell=quiet)
    out = CliRunner().invoke(app, [*begin, "--store", str(tmp_path / "other.sqlite"), "--targets", "fake"])
    assert "another data set" in str(out.exception)
    files.unpack(labelled / "set", tmp_path / "s.sqlite")
    out = CliRunner().invoke(app, [*begin, "--store", str(tmp_path / "s.sqlite"), "--targets", "fake"])
    assert out.exit_code == 0, out.output


def test_a_build_stops_drawing_when_its_time_is_up(tmp_path):
    edge.build(tmp_path / "s.sqlite", count=4000, targets=["fake"], tell=quiet, seconds=0.5)
    assert len(edge.read_specs(edge.specs_file(tmp_path / "s.sqlite"))[1]) < 1000


def test_the_command_of_a_card_tells_how_many_each_target_labelled():
    from foretell.datasets import card

    labels = [parquet.Label(i, "a", "ok") for i in range(4)] + [parquet.Label(i, t, "ok") for t in ("b", "c") for i in range(2)]
    text = card.rebuild(7, labels)
    assert "--seed 7 --count 4 --targets a " in text
    assert "--seed 7 --count 2 --targets b,c " in text


def test_a_data_set_goes_on_only_with_the_tool_and_on_the_machine_of_its_labels(labelled, tmp_path, monkeypatch):
    """Labels of another version, or measured on another processor, do not mix."""
    monkeypatch.setenv("FORETELL_FAKE", "{}")  # one that is measured
    folder = tmp_path / "set"
    shutil.copytree(labelled / "set", folder)
    card = json.loads((folder / "card.json").read_text())
    begin = ["dataset", "build", "--count", "3", "--targets", "fake", "--store", str(tmp_path / "s.sqlite"), "--from", str(folder)]
    for change, what in (({"cpu": "A phone"}, "A phone"), ({"runtime": "fake 0.0.1"}, "fake 0.0.1")):
        card["targets"]["fake-f32-1t"] |= change
        (folder / "card.json").write_text(json.dumps(card))
        out = CliRunner().invoke(app, begin)
        assert isinstance(out.exception, UsageError) and what in str(out.exception)
        assert not (tmp_path / "s.sqlite").exists()
        card = json.loads((labelled / "set" / "card.json").read_text())


def test_what_a_store_lacks_of_a_data_set_is_told(labelled, tmp_path):
    begin = ["dataset", "build", "--targets", "fake", "--from", str(labelled / "set"), "--quiet", "--count"]
    edge.build(tmp_path / "short.sqlite", count=2, targets=["fake"], tell=quiet)
    out = CliRunner().invoke(app, [*begin, "2", "--store", str(tmp_path / "short.sqlite")])
    assert f"only the first 2 of the {COUNT} networks" in str(out.exception)
    edge.extend(edge.specs_file(tmp_path / "bare.sqlite"), 0, COUNT, quiet)
    out = CliRunner().invoke(app, [*begin, "2", "--store", str(tmp_path / "bare.sqlite")])
    assert "lacks the labels of fake-f32-1t" in str(out.exception)


def test_a_network_without_a_label_is_labelled_when_a_build_goes_on(labelled, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(labelled / "set", folder)
    data = parquet.read(folder)
    parquet.write(folder, data.networks, [x for x in data.labels if x.network != 1], data.card)
    files.unpack(folder, tmp_path / "s.sqlite")
    assert edge.build(tmp_path / "s.sqlite", count=COUNT, targets=["fake"], tell=quiet) == {"fake-f32-1t": {"done": COUNT}}
    assert len(files.pack(tmp_path / "s.sqlite", tmp_path / "whole")["spaces"]) and len(parquet.read(tmp_path / "whole").labels) == COUNT


def test_a_larger_data_set_is_not_overwritten(labelled, tmp_path):
    shutil.copytree(labelled / "set", tmp_path / "set")
    edge.build(tmp_path / "s.sqlite", count=2, targets=["fake"], tell=quiet)
    with pytest.raises(UsageError, match=f"of {COUNT} labels lies there"):
        files.pack(tmp_path / "s.sqlite", tmp_path / "set")
    assert len(parquet.read(tmp_path / "set").labels) == COUNT


@pytest.mark.parametrize("change", [
    {"version": 99}, {"name": None}, {"rebuild": None}, {"targets": {"fake-f32-1t": {"verdicts": None}}},
    {"spaces": {"resnet": {"task": "x", "networks": 1, "macs": [1]}}},
])  # fmt: skip
def test_info_refuses_cards_that_lack_something(labelled, tmp_path, change):
    shutil.copytree(labelled / "set", tmp_path / "set")
    card = json.loads((labelled / "set" / "card.json").read_text())
    for k, v in change.items():
        card.pop(k)
        if v is not None:
            card[k] = v
    (tmp_path / "set" / "card.json").write_text(json.dumps(card))
    out = CliRunner().invoke(app, ["dataset", "info", str(tmp_path / "set")])
    assert isinstance(out.exception, FormatError)


def test_a_card_of_brackets_is_refused(labelled, tmp_path):
    shutil.copytree(labelled / "set", tmp_path / "set")
    (tmp_path / "set" / "card.json").write_text("[" * 100_000)
    with pytest.raises(FormatError, match="no card"):
        parquet.read(tmp_path / "set")


@pytest.mark.parametrize("change", ["twice", "nothing", "zero", "column"])
def test_labels_that_say_nothing_or_twice_are_refused(labelled, tmp_path, change):
    import pyarrow.parquet as pq

    folder = tmp_path / "set"
    shutil.copytree(labelled / "set", folder)
    data = parquet.read(folder)
    first = data.labels[0]
    if change == "column":
        path = folder / parquet.LABELS
        pq.write_table(pq.read_table(path).drop_columns(["latency_s"]), path)
        card = json.loads((folder / "card.json").read_text())
        card["sha256"][parquet.LABELS] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "card.json").write_text(json.dumps(card))
    else:
        other = {"twice": first, "nothing": replace(first, latency_s=None, peak_memory_bytes=None, energy_j=None),
                 "zero": replace(first, latency_s=0.0)}[change]  # fmt: skip
        labels = [*data.labels, first] if change == "twice" else [other, *data.labels[1:]]
        parquet.write(folder, data.networks, labels, data.card)
    with pytest.raises(FormatError, match="twice" if change == "twice" else "damaged"):
        parquet.read(folder)
