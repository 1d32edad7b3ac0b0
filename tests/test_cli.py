"""The command line as a user meets it."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from foretell import api
from foretell.cli import app
from foretell.store import Store
from tests.models import conv_relu, model, node

VERBS = (
    "predict", "explain", "partition", "sweep", "inspect", "zoo", "targets", "build", "measure", "fit", "evaluate", "doctor",
    "show", "probe", "recalibrate",
)  # fmt: skip


def run(*args: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    out = subprocess.run(
        [sys.executable, "-m", "foretell.cli", *args],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=300,
    )
    assert out.returncode == code, (out.returncode, out.stdout[-2000:], out.stderr[-2000:])
    assert "Traceback" not in out.stderr
    return out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example(verb):
    assert verb in app.commands
    text = run(verb, "--help").stdout
    assert "Example" in text
    assert f"foretell {verb}" in text


def test_help_lists_verbs_and_exit_codes():
    text = run("--help").stdout
    assert all(v in text for v in VERBS)
    assert "Exit codes" in text


def test_import_and_help_are_light():
    code = "import sys, foretell; print(sorted(m for m in sys.modules if m.split('.')[0] in ('numpy', 'onnx', 'torch', 'onnxruntime', 'rich', 'plotly', 'lightgbm')))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
    code = code.replace("import sys, foretell", "import sys, foretell.cli")
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_predict_json_is_the_documented_object():
    data = json.loads(run("predict", "zoo:mobilenetv2_100", "--format", "json").stdout)
    assert list(data) == [
        "model", "target", "latency_s", "energy_j", "peak_memory_bytes", "coverage", "macs", "parameters", "kernels", "warnings",
        "compute_utilisation", "memory_utilisation",
    ]  # fmt: skip
    assert list(data["latency_s"]) == ["value", "low", "high", "level"]
    assert data["energy_j"] is None
    assert list(data["kernels"][0]) == [
        "name", "nodes", "op_types", "latency_s", "share", "bound", "source", "compute_utilisation", "memory_utilisation",
    ]  # fmt: skip
    assert data["macs"] == pytest.approx(300.8e6, rel=0.001)


def test_predict_in_every_format():
    table = run("predict", "zoo:resnet18").stdout
    assert "resnet18 on ort-f32-1t" in table
    assert "ms" in table
    rows = list(csv.DictReader(io.StringIO(run("predict", "zoo:resnet18", "--format", "csv", "--top", "-1").stdout)))
    assert len(rows) > 20
    assert "| kernel |" in run("predict", "zoo:resnet18", "--format", "markdown").stdout
    several = json.loads(run("predict", "zoo:resnet18", "zoo:resnet50", "--format", "json").stdout)
    assert [p["model"] for p in several] == ["resnet18", "resnet50"]


def test_shapes_and_batches(tmp_path):
    m = model([node("Conv", ["x", "w"], ["y"])], [("x", ["n", 3, "h", 32])], [("y", None)], [])
    from tests.models import const

    m.graph.initializer.append(const("w", np.ones((8, 3, 3, 3))))
    path = str(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(m.SerializeToString())
    assert "x[2] (h)" in run("predict", path, "--batch", "1", code=3).stderr
    data = json.loads(run("inspect", path, "--shape", "x=2x3x16x32", "--format", "json").stdout)
    assert data["macs"] == 2 * 8 * 14 * 30 * 27
    assert run("inspect", path, "--shape", "x=2xq", code=2).stderr
    assert run("inspect", path, "--batch", "0", code=2).stderr


def test_inspect_lists_nodes():
    data = json.loads(run("inspect", "zoo:alexnet", "--nodes", "--format", "json").stdout)
    assert len(data["node_list"]) == data["nodes"] == 20
    assert data["parameters"] == pytest.approx(61.1e6, rel=0.01)
    assert "Conv" in run("inspect", "zoo:alexnet").stdout


def test_exit_codes(tmp_path, home):
    (tmp_path / "bad.onnx").write_bytes(b"\x00" * 100)
    assert "foretell:" in run("predict", str(tmp_path / "bad.onnx"), code=3).stderr
    assert run("predict", "zoo:nope", code=3).stderr
    assert "foretell build" in run("predict", "zoo:resnet18", "--target", "absent", code=4).stderr
    assert run("predict", code=2).stderr
    assert run("predict", "zoo:resnet18", "--method", "magic", code=2).stderr
    broken = home / "predictors" / "broken"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{}")
    assert "SHA256SUMS" in run("predict", "zoo:resnet18", "--target", "broken", code=5).stderr
    assert "corrupt" in run("targets").stdout
    (tmp_path / "store").mkdir()
    empty = str(tmp_path / "empty.sqlite")
    Store(empty).close()
    assert run("evaluate", "--store", str(tmp_path / "typo.sqlite"), code=7).stderr
    assert run("evaluate", "--store", empty, code=8).stderr
    (tmp_path / "junk").write_bytes(b"SQLite format 3\0" + os.urandom(4000))
    assert run("evaluate", "--store", str(tmp_path / "junk"), code=7).stderr
    assert run("fit", "--store", empty, code=8).stderr
    some = run("predict", str(tmp_path / "bad.onnx"), "zoo:resnet18", "--format", "json", code=3)
    assert "bad.onnx" in some.stderr  # the path, not the stem alone
    assert json.loads(some.stdout)["model"] == "resnet18"  # one bad file does not keep the others back
    assert run("build", "--dry-run", "--minutes", "nan", code=2).stderr
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "manifest.json").write_text("{}")
    (occupied / "precious").write_text("x")
    assert run("build", "--target", "fake", "--output", str(occupied), code=2).stderr
    assert (occupied / "precious").exists()


def test_hostile_names_reach_no_terminal(tmp_path):
    m = model(
        [node("Relu", ["x"], ["\x1b[31mred"], name="[bold]\x1b]0;title\x07")], [("x", [2])], [("\x1b[31mred", [2])]
    )
    path = tmp_path / "evil.onnx"
    path.write_bytes(m.SerializeToString())
    for form in ("table", "markdown", "csv"):
        assert "\x1b" not in run("inspect", str(path), "--nodes", "--format", form).stdout
        assert "\x1b" not in run("predict", str(path), "--format", form).stdout


def test_dry_run_measures_nothing(home):
    data = json.loads(run("build", "--target", "fake", "--minutes", "3", "--dry-run", "--format", "json").stdout)
    assert len(data["entries"]) > 20
    assert data == json.loads(
        run("build", "--target", "fake", "--minutes", "3", "--dry-run", "--format", "json").stdout
    )
    assert not home.exists()


def test_build_predict_evaluate_fit_on_the_fake_device(home, tmp_path):
    fake = json.dumps({"noise": 0.01, "process_noise": 0.005, "steps": {"Conv": [16, 0.8]}})
    built = json.loads(
        run(
            "build",
            "--target",
            "fake",
            "--minutes",
            "1.5",
            "--quiet",
            "--force",
            "--format",
            "json",
            FORETELL_FAKE=fake,
        ).stdout
    )
    assert built["card"]["train_measurements"] >= 8
    assert built["rows"]
    p = json.loads(run("predict", "zoo:resnet18", "--target", "fake-f32-1t", "--format", "json").stdout)
    # The fake device is a roofline with known rates: resnet18 has 1.81 GMACs at 50 G operations a second.
    assert p["latency_s"]["value"] == pytest.approx(2 * 1.814e9 / 5e10, rel=0.25)
    store = str(home / "measurements.sqlite")
    rows = json.loads(run("evaluate", "--target", "fake-f32-1t", "--store", store, "--format", "json").stdout)["rows"]
    assert {r["estimator"] for r in rows} >= {"default", "roofline", "flops"}
    run("fit", "--target", "fake-f32-1t", "--store", store, "--output", str(tmp_path / "again"), "--force", "--quiet")
    run("predict", "zoo:resnet18", "--target", str(tmp_path / "again"))
    assert "fake-f32-1t" in run("targets").stdout


def test_measure(home, tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "m.onnx").write_bytes(conv_relu().SerializeToString())
    rows = json.loads(run("measure", str(tmp_path / "m.onnx"), "zoo:mnasnet0_5", "--format", "json").stdout)
    assert {r["model"] for r in rows} == {"m", "mnasnet0_5"}
    assert all(len(r["process_latency_s"]) >= 3 for r in rows)
    assert all(r["environment"]["runtime"].startswith("onnxruntime") for r in rows)
    (tmp_path / "bad.onnx").write_bytes(
        model([node("Odd", ["x"], ["y"], domain="d")], [("x", [2])], [("y", [2])]).SerializeToString()
    )
    failed = json.loads(run("measure", str(tmp_path / "bad.onnx"), "--format", "json", code=6).stdout)
    assert failed[0]["verdict"] == "failed"


def test_measure_takes_several_targets_and_zoo_patterns(home):
    """Once, the last --target alone was measured."""
    command = ("measure", "zoo:mnasnet0*", "--target", "fake", "--target", "ethos-u55-128", "--processes", "1", "--format", "json")
    pytest.importorskip("ethosu.vela")
    rows = json.loads(run(*command).stdout)
    assert [(r["model"], r["target"]) for r in rows] == [("mnasnet0_5", "fake-f32-1t"), ("mnasnet0_5", "ethos-u55-128")]
    assert all(r["latency_s"] > 0 for r in rows)
    assert "no zoo network matches" in run("measure", "zoo:nothing*", "--target", "fake", code=2).stderr


def test_measure_waits_for_quiet_moments_if_asked(home):
    pytest.importorskip("onnxruntime")
    row = json.loads(run("measure", "zoo:mnasnet0_5", "--patient", "--processes", "2", "--format", "json").stdout)[0]
    assert row["protocol"] == "p10-quiet/1"
    assert row["latency_s"] > 0
    assert row["environment"]["probe_s"] > 0


def test_build_waits_for_quiet_moments_if_asked(home):
    """Rows of another plan of the same networks, by another protocol, take no part."""
    fake = {"FORETELL_FAKE": json.dumps({"noise": 0.01, "process_noise": 0.005})}
    command = ("build", "--target", "fake", "--minutes", "0.4", "--quiet", "--force", "--format", "json")
    usual = json.loads(run(*command, **fake).stdout)["card"]
    patient = json.loads(run(*command, "--patient", **fake).stdout)["card"]
    assert (usual["protocol"], patient["protocol"]) == ("p10-median/1", "p10-quiet/1")
    assert patient["train_measurements"] == usual["train_measurements"]
    store = Store(home / "measurements.sqlite")
    rules = Counter(m.protocol for m in store.measurements("fake-f32-1t"))
    assert len(rules) == 2
    # What one plan measures anew is its own: nothing of the other's rows of the same networks is lost.
    again = store.reopen(next(c for c in store.campaigns() if c.endswith("-patient")), "fake-f32-1t", ("ok",), "p10-quiet/1")
    assert again > 0
    assert Counter(m.protocol for m in store.measurements("fake-f32-1t"))["p10-median/1"] == rules["p10-median/1"]


def test_names_that_are_nearly_right_are_answered(home):
    assert "zoo:mobilenetv2_100" in run("inspect", "zoo:mobilenet_v2", code=3).stderr
    assert "space:mobilenet/7" in run("inspect", "space:mobilnet/3", code=2).stderr


def test_networks_of_data_sets_have_names(home):
    """SPACE/NUMBER, as a data set lists it, is one of space:SPACE/NUMBER."""
    from foretell.datasets import edge, parquet

    found = parquet.read(Path(__file__).parents[1] / "data" / "foretell-edge")
    some = next(n for n in found.networks if n.drawn.spec.space == "kws-1d")
    told = json.loads(run("inspect", f"space:{some.drawn.name}", "--format", "json").stdout)
    assert told["macs"] == some.drawn.macs
    assert api.model_bytes(f"space:{some.drawn.name}") == edge.onnx_file(some.drawn.spec)


def test_missing_extra_prints_the_install_line(home):
    code = "import sys; sys.modules['onnxruntime'] = None; import importlib.metadata as m; o = m.version\nm.version = lambda n: (_ for _ in ()).throw(m.PackageNotFoundError(n)) if n == 'onnxruntime' else o(n)\nfrom foretell.cli import main; sys.argv = ['foretell', 'measure', 'zoo:resnet18']; main()"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 4
    assert "pip install 'foretell[ort]'" in out.stderr


def test_doctor():
    out = json.loads(run("doctor", "--format", "json").stdout)
    assert {c["name"] for c in out} >= {"python", "zoo", "disk", "predictor ort-f32-1t"}
    assert all(c["state"] in ("ok", "note", "bad") for c in out)


def test_a_closed_pipe_is_no_error():
    out = subprocess.run(
        f"{sys.executable} -m foretell.cli inspect zoo:maxvit_tiny_tf_224 --nodes --format csv | head -1",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in out.stderr


def test_several_targets_are_compared(home, fitted):
    fitted.save(home / "predictors" / "mine-a")
    fitted.save(home / "predictors" / "mine-b")
    out = run(
        "predict", "zoo:resnet18", "--target", "mine-*", "--target", "ort", "--format", "json", FORETELL_HOME=str(home)
    )
    found = json.loads(out.stdout)
    assert len(found) == 3
    assert {p["model"] for p in found} == {"resnet18"}
    none = run("predict", "zoo:resnet18", "--target", "nothing-*", code=4)
    assert "nothing-*" in none.stderr


def test_csv_holds_plain_numbers():
    rows = list(csv.DictReader(io.StringIO(run("predict", "zoo:resnet18", "zoo:dla34", "--format", "csv").stdout)))
    assert [r["model"] for r in rows] == ["resnet18", "dla34"]
    assert float(rows[0]["latency_s_low"]) < float(rows[0]["latency_s"]) < float(rows[0]["latency_s_high"])
    assert rows[0]["energy_j"] == ""  # not known, not zero
    kernels = list(csv.DictReader(io.StringIO(run("predict", "zoo:resnet18", "--format", "csv", "--top", "-1").stdout)))
    assert sum(float(k["share"]) for k in kernels) == pytest.approx(1.0, abs=1e-6)


def test_the_zoo_is_listed():
    names = {r["model"] for r in json.loads(run("zoo", "--format", "json").stdout)}
    assert "zoo:resnet50" in names
    assert len(names) == 39


def test_a_closed_pipe_is_no_failure():
    command = f"{sys.executable} -m foretell.cli predict zoo:densenet121 --top -1 | head -1; echo ${{PIPESTATUS[0]}}"
    out = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert out.stdout.strip().splitlines()[-1] == "0"
    assert "Traceback" not in out.stderr


def test_a_sweep_over_a_file_that_cannot_be_read_says_so_by_its_code(tmp_path):
    run("sweep", "zoo:alexnet", str(tmp_path / "missing.onnx"), "--format", "json", code=3)


def test_percentages_may_have_their_sign_and_must_be_numbers():
    run("build", "--target", "fake", "--until-error", "5%", "--dry-run")
    for bad in ("nan", "0", "x%", "101"):
        run("build", "--target", "fake", "--until-error", bad, "--dry-run", code=2)


def test_an_interval_that_is_not_calibrated_says_so():
    out = json.loads(run("predict", "zoo:alexnet", "--method", "flydel", "--format", "json").stdout)
    assert out["latency_s"]["level"] is None
    assert "not calibrated" in run("predict", "zoo:alexnet", "--method", "flydel").stdout
