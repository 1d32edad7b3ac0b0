"""Public measurements: what the importers make of small samples of each source, the rows that ship, and their graphs."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pa = pytest.importorskip("pyarrow")

from foretell import cli  # noqa: E402
from foretell.datasets import archives, catalogue, rows  # noqa: E402
from foretell.devices import parse_sheet  # noqa: E402
from foretell.errors import FormatError, TargetError, UsageError  # noqa: E402
from foretell.generate import public  # noqa: E402
from foretell.generate.spaces import NB201_OPS  # noqa: E402
from foretell.store import Store  # noqa: E402

SAMPLES = Path(__file__).parent / "data" / "catalogue"


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path / "home"))


@pytest.fixture
def fresh(own_home):
    """For tests that import: what was read before is forgotten, before and after."""
    clear()
    yield
    clear()


def clear():
    catalogue._table.cache_clear()
    catalogue._codes.cache_clear()
    archives.members.cache_clear()


def sample(source):
    return importlib.import_module(f"foretell.datasets.sources.{source}").read(SAMPLES / source)


def row(table, **where):
    found = [r for r in table.to_pylist() if all(r[k] == v for k, v in where.items())]
    assert len(found) == 1, found
    return found[0]


# The importers, on rows copied from the sources' files; figures are checked against those files, read by eye.


def test_help():
    got = sample("help")
    assert got.rows.num_rows == 36 and len(got.codes) == 9
    r = row(got.rows, original="1080ti_1", network="nasbench201/0")
    assert r["latency_s"] == pytest.approx(10.75437e-3, rel=2e-5)
    assert (r["target"], r["device"], r["batch"]) == ("gtx1080ti-torch-f32-gpu", "gtx1080ti", 1)
    assert row(got.rows, original="1080ti_32", network="fbnet/1")["target"].endswith("-b32")
    by = {o: {x["estimate"] for x in got.rows.to_pylist() if x["original"] == o} for o in ("fpga", "pixel2", "pixel3")}
    assert by == {"fpga": {True}, "pixel2": {False}, "pixel3": {False}}
    assert {x["resolution_s"] is not None for x in got.rows.to_pylist() if x["original"] == "pixel2"} == {True}
    assert got.codes["nasbench201/0"] == "".join(
        str(NB201_OPS.index(o))
        for o in ("avg_pool_3x3", "nor_conv_1x1", "skip_connect", "nor_conv_1x1", "skip_connect", "skip_connect")
    )


def test_nn_meter_drops_what_is_suspect():
    got = sample("nn_meter").rows.to_pylist()
    again = [r["latency_s"] for r in got if r["network"] == "squeezenet_1009" and r["target"].startswith("mi9")]
    assert len(again) == 1 and not 0.0156 < again[0] < 0.0159  # measured twice there; the constant one is dropped
    assert {r["family"] for r in got} == {"squeezenet", "alexnet"}
    assert all(0 <= r["noise"] < 1 for r in got)


def test_accel_nasbench():
    got = sample("accel_nasbench")
    r = row(got.rows, network="1", device="zcu102")
    assert r["latency_s"] == pytest.approx(4.1517e-3, rel=1e-4) and r["throughput_per_s"] == pytest.approx(543.59, rel=1e-4)
    assert row(got.rows, network="1", device="a100")["latency_s"] is None


def test_hw_gpt_bench_keeps_energy_apart_and_drops_strays():
    got = sample("hw_gpt_bench")
    assert "m/3330" not in got.codes and not [r for r in got.rows.to_pylist() if r["network"] == "m/3330"]
    assert {(r["network"][0], r["batch"]) for r in got.rows.to_pylist()} == {("s", 8), ("m", 4), ("l", 1)}
    r = row(got.rows, network="s/0", device="a100")
    assert r["energy_j"] > 0 and r["power_w"] > 30 and r["peak_memory_bytes"] > 2**20 and 0 < r["noise"] < 0.5


def test_qed_usc():
    got = sample("qed_usc")
    r = row(got.rows, target="pixel4-tflite-f32-1large1med", network="mobilenet_w1")
    assert r["threads"] == 2 and r["original"] == "pixel4 1large1med" and 0 < r["noise"] < 0.2
    assert row(got.rows, target="pixel4-tflite-f32-gpu", network="mobilenet_w1")["threads"] is None
    assert got.codes == {
        "mobilenet_w1": "pytorchcv/mobilenet_w1.onnx",
        "swin-tiny-patch4-window7-224": "transformers/swin-tiny-patch4-window7-224.onnx",
    }


def test_ncnn():
    got = sample("ncnn").rows.to_pylist()
    by = {(r["device"], r["backend"]) for r in got}
    assert ("nvidia-jetson-agx-orin", "ncnn") in by and ("nvidia-jetson-agx-orin", "ncnn_vulkan") in by
    # It asks for GPU 0, but its program has none, and neither has the processor.
    assert ("ingenic-t40xp-xburst2-core-x2-1-4ghz", "ncnn") in by
    assert "squeezenet_int8" in {r["network"] for r in got}
    orin = [r for r in got if r["device"] == "nvidia-jetson-agx-orin" and r["threads"] == 1 and r["network"] == "squeezenet"]
    assert [r["latency_s"] for r in orin] == [pytest.approx(11.66e-3, rel=1e-4)]
    assert orin[0]["noise"] == pytest.approx((11.8 - 11.66) / 2 / 11.74, rel=0.03)


def test_ncnn_devices_have_one_name_each(monkeypatch):
    module = importlib.import_module("foretell.datasets.sources.ncnn")
    monkeypatch.setattr(module, "slug", lambda _: "same")
    with pytest.raises(FormatError, match="one name"):
        sample("ncnn")


def test_ai_hub_models():
    got = sample("ai_hub_models").rows.to_pylist()
    assert all(r["latency_s"] for r in got)  # language models have tokens a second only
    assert {r["network"] for r in got} >= {"resnet50", "whisper_small/HfWhisperEncoder"}
    assert all(r["peak_memory_bytes"] % 2**20 == 0 for r in got if r["peak_memory_bytes"])


def test_mlperf_tiny():
    got = sample("mlperf_tiny").rows.to_pylist()
    assert not [r for r in got if r["network"] == "sww" and r["energy_j"]]
    ad = [r for r in got if r["network"] == "ad" and r["energy_j"] and r["version"] == "v0.7"]
    assert ad[0]["energy_j"] == pytest.approx(152.56e-6, rel=1e-4) and ad[0]["latency_s"] == pytest.approx(1 / 175.529, rel=1e-4)
    assert ad[0]["energy_noise"] == pytest.approx((152.774 - 152.413) / 2 / 152.56, rel=0.03)


def test_timm_leaves_training_out():
    got = sample("timm").rows.to_pylist()
    assert {r["backend"] for r in got} == {"torch"} and not [r for r in got if "train" in r["original"]]
    cpu = [r for r in got if r["device"] == "core-i9-10940x"]
    assert cpu and all(r["batch"] == 1 for r in cpu)


def test_vitis_ai_and_annette_agree():
    got = [r for r in sample("vitis_ai").rows.to_pylist() if r["device"] == "zcu102"]
    assert {r["version"].split()[0] for r in got} >= {"1.2", "2.0"}
    edge = [r for r in got if r["target"] == "zcu102-vitis_ai-int8" and r["version"].startswith("2.0")]
    assert 0.01 < edge[0]["latency_s"] < 0.02  # one over the frames a second of one thread
    assert sample("annette").codes == {
        "cf_squeeze_imagenet_227_227_0.76G": "annette/mmdnn__cf_squeeze_imagenet_227_227_0.76G.json"
    }


def test_neusight():
    got = sample("neusight").rows.to_pylist()
    assert {r["family"] for r in got} > {"bmm", "linear"} and "network" in {r["family"] for r in got}
    assert len({r["device"] for r in got}) >= 4


def test_rapl_drops_counters_that_wrapped():
    got = sample("pytorch_power_rapl").rows.to_pylist()
    assert got and all(r["energy_j"] > 0 for r in got)


# The machinery.


def loosened(monkeypatch, source, least, most):
    module = importlib.import_module(f"foretell.datasets.sources.{source}")
    monkeypatch.setattr(module, "SOURCE", dataclasses.replace(module.SOURCE, rows=(least, most)))


def test_import_is_idempotent_and_used(monkeypatch, fresh):
    loosened(monkeypatch, "help", 1, 99)
    assert catalogue.import_source("help", SAMPLES / "help") == 36
    path = archives.folder() / "rows" / "help.parquet"
    first = path.read_bytes()
    assert catalogue.import_source("help", SAMPLES / "help") == 36
    assert path.read_bytes() == first and len(list(path.parent.iterdir())) == 1
    assert catalogue.table("help").num_rows == 36  # in place of those that ship


def test_counts_are_checked(fresh):
    with pytest.raises(FormatError, match="36 rows"):
        catalogue.import_source("help", SAMPLES / "help")
    assert not archives.folder().exists()


def test_a_missing_file_a_missing_column_and_garbage(tmp_path, monkeypatch, fresh):
    with pytest.raises(FormatError, match=r"latency\.parquet"):
        catalogue.import_source("help", tmp_path)
    for name in ("latency", "nasbench201_archs", "fbnet_archs", "ofa_archs"):
        (tmp_path / f"{name}.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(FormatError, match="Parquet"):
        catalogue.import_source("help", tmp_path)
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"space": ["x"]}), tmp_path / "latency.parquet")
    with pytest.raises(FormatError, match="no column"):
        catalogue.import_source("help", tmp_path)


def test_damaged_rows_are_an_error(monkeypatch, fresh):
    loosened(monkeypatch, "accel_nasbench", 1, 99)
    catalogue.import_source("accel_nasbench", SAMPLES / "accel_nasbench")
    path = archives.folder() / "rows" / "accel_nasbench.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    clear()
    with pytest.raises(FormatError, match="import the source again"):
        catalogue.table("accel_nasbench")


def test_make_refuses_and_rounds():
    common = {"target": "t", "device": "d", "backend": "b", "precision": "f32", "network": ["n"], "family": "f", "estimate": False}
    table = rows.make(1, **common, latency_s=[0.123456789], noise=[-1.0], energy_j=[float("nan")], power_w=[0.0])
    r = table.to_pylist()[0]
    assert r["latency_s"] == pytest.approx(0.123456789, rel=2**-16) and r["latency_s"] != 0.123456789
    assert r["noise"] is None and r["energy_j"] is None and r["power_w"] is None and r["batch"] is None
    with pytest.raises(FormatError, match="nothing"):
        rows.make(1, **common, nothing=1)
    with pytest.raises(FormatError, match="missing"):
        rows.make(1, target="t")
    with pytest.raises(FormatError, match="rows"):
        rows.make(2, **common)


def test_figures_are_the_rows(monkeypatch):
    f = catalogue.figures("nn_meter", family="nasbench201")
    assert f.values.shape == (1622, 4) and f.targets == tuple(sorted(f.targets)) and f.networks == tuple(sorted(f.networks))
    t = catalogue.table("nn_meter", targets="myriad*", family="nasbench201").to_pylist()
    column = f.targets.index("ncs2-openvino-f16")
    for r in t[:: len(t) // 50]:
        assert f.values[f.networks.index(r["network"]), column] == pytest.approx(r["latency_s"])
        assert f.noise[f.networks.index(r["network"]), column] == pytest.approx(r["noise"])
    assert np.isnan(f.values).sum() == 4 * 1622 - catalogue.table("nn_meter", family="nasbench201").num_rows


def test_the_newest_version_fills_a_cell():
    f = catalogue.figures("timm", targets="rtx3090-torch-f16-gpu")
    newest = {r["network"]: r["latency_s"] for r in catalogue.table("timm", targets="rtx3090-torch-f16-gpu").to_pylist()
              if r["version"] == "pt240"}  # fmt: skip
    assert len(newest) > 800
    for name in list(newest)[::50]:
        assert f.values[f.networks.index(name), 0] == pytest.approx(newest[name])


def test_measurements_are_records():
    m = catalogue.measurements("help", "pixel2", family="fbnet")[0]
    assert m.target.device == "pixel2" and m.target.threads == 0 and m.verdict == "ok" and m.graph.startswith("help:")
    assert m.environment["resolution_s"] == pytest.approx(1e-3) and m.energy_j is None and m.noise is None


def test_unknown_names():
    with pytest.raises(UsageError, match="no source"):
        catalogue.table("nothing")
    with pytest.raises(UsageError, match="no metric"):
        catalogue.figures("help", "speed")
    with pytest.raises(UsageError, match="matches"):
        catalogue.figures("help", "energy_j")
    with pytest.raises(FormatError, match="not known"):
        catalogue.graph_of("nn_meter", "alexnet_1")
    with pytest.raises(FormatError, match="not known"):
        catalogue.graph_of("help", "fbnet/5000")


def test_commit_into_a_store(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    assert catalogue.commit(store, "accel_nasbench", "zcu102-vitis_ai-int8", limit=4) == 4
    catalogue.commit(store, "accel_nasbench", "zcu102-vitis_ai-int8", limit=4)
    found = store.measurements("zcu102-vitis_ai-int8")
    assert len(found) == 4 and {m.source for m in found} == {"accel_nasbench"}
    from foretell.formats import read

    again = read(store.model(found[0].graph), name=found[0].name)
    assert again.total_macs == catalogue.graph_of("accel_nasbench", found[0].name).total_macs
    with pytest.raises(UsageError, match="graph"):
        catalogue.commit(store, "accel_nasbench", "nothing")


# What ships.


@pytest.mark.parametrize("source", catalogue.SOURCES)
def test_shipped_rows(source):
    about = catalogue.describe(source)
    table = catalogue.table(source)
    assert about.rows[0] <= table.num_rows <= about.rows[1]
    assert about.licence in ("MIT", "Apache-2.0", "BSD-3-Clause") and about.origin.startswith("github.com/")
    for metric in rows.METRICS:
        values = table[metric].to_numpy()
        assert not (values[np.isfinite(values)] <= 0).any()
    latency = table["latency_s"].to_numpy()
    assert np.nanmin(latency) > 1e-7 and np.nanmax(latency) < 2e3
    kinds = {k for k in table["kind"].unique().to_pylist() if k}
    assert kinds <= {"board", "cpu", "fpga", "gpu", "micro", "npu", "pc", "phone"}
    graphs = catalogue.networks(source) if source != "neusight" else ("bmm/384-128-64-128-------",)
    for network in graphs[:: max(1, len(graphs) // 4)]:
        graph = catalogue.graph_of(source, network)
        assert graph.nodes and (graph.total_macs > 0 or "pool" in network)


def test_estimates_are_marked():
    f = catalogue.figures("help", targets="*", family="nasbench201")
    assert {o for o, e in zip(f.originals, f.estimates, strict=True) if e} == {"fpga", "eyeriss"}
    assert {o for o, r in zip(f.originals, f.resolution_s, strict=True) if r > 0} == {
        "pixel2", "samsung_a50", "samsung_s7", "essential_ph_1"
    }  # fmt: skip


def test_the_whole_is_small_and_leaves_out_what_has_no_licence():
    files = [p for p in archives.shipped().rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 12 * 2**20
    assert not [p for p in files if "ncs2_reports" in p.name]


def test_every_device_has_a_sheet_and_every_figure_a_source():
    sheets = catalogue.sheets()
    devices = set()
    for source in catalogue.SOURCES:
        devices |= set(catalogue.table(source)["device"].unique().to_pylist())
    assert devices <= set(sheets)
    assert all(name == sheet.name for name, sheet in sheets.items())
    assert sheets["rtx3090"].value("compute_op_s") == pytest.approx(35.58e12) and sheets["ncs2"].value("clock_hz") is None
    with pytest.raises(KeyError):
        sheets["rtx3090"].value("speed")


@pytest.mark.parametrize("text", [
    "name = 1", 'kind = "gpu"', 'name = "a"\nkind = "toaster"', 'name = "a"\naddress = "x"', "name = ", 'name = "../a"',
    'name = "a"\n[figures]\nclock_hz = 1', 'name = "a"\n[figures]\nclock_hz = {value = -1, source = "x"}', 'name="a"\nfigures=1',
    'name = "a"\n[figures]\nspeed = {value = 1, source = "x"}', 'name = "a"\nchip = "\\u001b[0m"',
])  # fmt: skip
def test_malformed_sheets(text):
    with pytest.raises(TargetError):
        parse_sheet(text, "x.toml")


# The graphs of rows: arithmetic against what the sources publish.


def test_gpt_macs_and_parameters_are_the_published_ones():
    import pyarrow.parquet as pq

    for r in pq.read_table(SAMPLES / "hw_gpt_bench/archs.parquet").to_pylist():
        heads, ratios = ([float(v) for v in r[k].split(",")] for k in ("n_head", "mlp_ratio"))
        sequences = {"s": 8, "m": 4, "l": 1}[r["scale"]]
        g = public.gpt(r["embed_dim"], [int(h) for h in heads], ratios, bias=r["bias"], batch=sequences)
        scores = sum(2 * sequences * int(h) * 64 * 1024**2 for h in heads)  # the source does not count attention's
        assert g.total_macs - scores == r["macs"]
        tables = 1024**2 + len(heads) * 4 * 1024 * 16  # the mask and the rotations are no parameters
        assert g.parameters - tables == r["params"]


def test_accel_nasbench_parameters_are_the_published_ones():
    import pyarrow.parquet as pq

    for r in pq.read_table(SAMPLES / "accel_nasbench/accel_nasbench.parquet").to_pylist():
        g = catalogue.graph_of("accel_nasbench", str(r["id"]))
        wide = [n for n in g.nodes if n.op_type == "Conv" and g.tensors[n.outputs[0]].shape[2] > 1]
        norms = sum(g.tensors[n.outputs[0]].shape[1] for n in wide)  # batch normalisation, folded here, has one more each
        assert g.parameters + norms == round(r["info_params"] * 1e6)


def test_nasbench201_whole_and_pruned():
    cell = public.cell_of("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|nor_conv_3x3~1|none~2|")
    pruned, whole = (public.nasbench201(cell, pruned=p) for p in (True, False))
    assert pruned.total_macs == whole.total_macs and len(pruned.nodes) < len(whole.nodes)
    assert sum(n.op_type == "BatchNormalization" for n in whole.nodes) == 15 * 2 + 4 + 2
    dead = ["none"] * 6
    with pytest.raises(UsageError, match="does not depend"):
        public.nasbench201(dead)
    assert public.nasbench201(dead, pruned=False).total_macs > 0
    for bad in ("", "|nor_conv_3x3~0|", "|bad~0|+|none~0|none~1|+|none~0|none~1|none~2|", "|none~1|+|none~0|none~1|+|none~0|none~1|none~2|"):
        with pytest.raises(UsageError):
            public.cell_of(bad)


def test_named_networks_have_the_published_flops():
    """qed_usc publishes FLOPs: two a multiply-accumulate, and a few percent of other work."""
    import pyarrow.parquet as pq

    seen = 0
    for r in pq.read_table(SAMPLES / "qed_usc/models.parquet").to_pylist():
        if r["family"] != "nas" and catalogue.code_of("qed_usc", r["model"]) is not None:
            assert 2 * catalogue.graph_of("qed_usc", r["model"]).total_macs == pytest.approx(r["flops"], rel=0.03)
            seen += 1
    assert seen >= 2
    assert len(catalogue.networks("qed_usc")) >= 131
    batched = catalogue.graph_of("qed_usc", "mobilenet_w1", batch=8)
    assert batched.total_macs == 8 * catalogue.graph_of("qed_usc", "mobilenet_w1").total_macs


def test_batches_scale_the_work():
    for source, network in (("help", "nasbench201/7"), ("help", "fbnet/7"), ("help", "ofa/7"), ("accel_nasbench", "1")):
        one, many = (catalogue.graph_of(source, network, batch=b) for b in (1, 32))
        assert many.total_macs == 32 * one.total_macs


def test_the_fpga_times_of_fbnet_confirm_its_resolutions():
    """HELP's FPGA figures are sums over layers without stem and head: MACs of the layers must explain them."""
    f = catalogue.figures("help", targets="fpga", family="fbnet")
    names = f.networks[::125]
    macs = np.zeros((len(names), 4))
    for row_, n in zip(macs, names, strict=True):
        g = catalogue.graph_of("help", n)
        convs = [(i, node) for i, node in enumerate(g.nodes) if node.op_type == "Conv"]
        for i, node in convs[1:-1]:
            row_[(32, 16, 8, 4).index(g.tensors[node.outputs[0]].shape[2])] += g.kinds[i].macs
    seconds = np.array([f.values[f.networks.index(n), 0] for n in names])
    a_mac, *_ = np.linalg.lstsq(macs, seconds, rcond=None)
    assert np.abs(macs @ a_mac / seconds - 1).mean() < 0.05 and a_mac.max() / a_mac.min() < 1.8


# The command line.


def test_cli(tmp_path):
    run = CliRunner()
    listed = run.invoke(cli.app, ["dataset", "sources", "--format", "json"])
    assert listed.exit_code == 0, listed.output
    entries = {e["name"]: e for e in json.loads(listed.output)}
    assert set(entries) == set(catalogue.SOURCES) and entries["help"]["rows"] == 616_875
    store = tmp_path / "s.sqlite"
    args = ["dataset", "import", "accel_nasbench", "--store", str(store), "--target", "vck190-vitis_ai-int8", "--limit", "3"]
    done = run.invoke(cli.app, args)
    assert done.exit_code == 0 and "3 rows" in done.output
    assert isinstance(run.invoke(cli.app, ["dataset", "import", "nothing"]).exception, UsageError)
    assert isinstance(run.invoke(cli.app, ["dataset", "import", "help", "--store", str(store)]).exception, UsageError)
