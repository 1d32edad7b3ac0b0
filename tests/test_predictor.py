"""The predictor: fit, predict, score, save, load; what it refuses."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import foretell
from foretell import api
from foretell.errors import FitError, ForetellError, PredictorError, TargetError, UsageError
from foretell.predictor.evaluate import FAMILIES, folds, score, spearman
from foretell.predictor.judge import judge
from foretell.predictor.persist import MANIFEST, MODEL, SUMS, load
from foretell.predictor.stack import LAYER_MODELS, Predictor
from foretell.records import Target


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("predictors") / "p"
    fitted.save(folder)
    return folder


def test_it_beats_the_baselines_on_unseen_families(recorded, fitted):
    """Learned from a few minutes of generated benchmarks; real networks train nothing."""
    rows, graphs = recorded
    train = [m for m in rows if m.source == "generated"]
    test = [m for m in rows if m.source != "generated"]
    by = {
        r["estimator"]: r["score"]
        for r in judge(fitted, train, test, graphs)
        if r["part"] == "all" and r["metric"] == "latency_s"
    }
    assert set(by) == {*fitted.methods, "flops"}
    assert by["default"].mape < 12
    assert by["default"].mape < by["refined_roofline"].mape
    assert by["default"].mape < by["roofline"].mape < by["flops"].mape
    assert by["default"].spearman > 0.98
    assert 75 <= by["default"].interval_coverage <= 100


def test_predictions_add_up(zoo, fitted):
    for graph in list(zoo.values())[::6]:
        p = fitted.predict(graph)
        assert p.latency_s is not None
        assert sum(k.latency_s for k in p.kernels) == pytest.approx(p.latency_s.value)
        assert sum(k.share for k in p.kernels) == pytest.approx(1.0)
        assert p.latency_s.low < p.latency_s.value < p.latency_s.high
        assert p.energy_j is None
        assert 0 < p.coverage <= 1
        assert {k.bound for k in p.kernels} <= {"compute", "memory", "overhead"}
        assert {k.source for k in p.kernels} <= {"fitted", "roofline"}


def test_many_equal_one_by_one(zoo, fitted):
    graphs = list(zoo.values())[:8]
    together = fitted.predict_many(graphs)
    for graph, p in zip(graphs, together, strict=True):
        alone = fitted.predict(graph)
        assert alone.latency_s.value == pytest.approx(p.latency_s.value, rel=1e-12)
    assert fitted.latencies_s(graphs) == pytest.approx([p.latency_s.value for p in together])
    assert fitted.predict_many([]) == []


def test_unknown_ops_are_priced_and_lower_the_coverage(fitted):
    from foretell.formats.onnx import read_onnx
    from tests.models import model, node

    shape = [1, 64, 256, 256]
    m = model(
        [node("Odd", ["x"], ["a"], domain="d"), node("Relu", ["a"], ["y"])],
        [("x", shape)],
        [("y", shape)],
        value_info=[("a", shape)],
    )
    p = fitted.predict(read_onnx(m))
    odd = next(k for k in p.kernels if "d:Odd" in k.op_types)
    assert odd.source == "roofline"
    assert odd.latency_s > 1e-4  # 33 MB move; they are not free
    assert p.coverage < 0.9
    assert any("d:Odd" in w for w in p.warnings)
    assert any("roofline" in w for w in p.warnings)


def test_out_of_domain_is_said_and_widens_the_interval(fitted):
    from foretell.generate.builder import Builder

    b = Builder("huge")
    b.output(b.linear(b.input((1, 20000, 6000)), 9000))
    p = fitted.predict(b.graph())
    assert any("outside what was measured" in w for w in p.warnings)
    normal = fitted.predict(api.read_model("zoo:resnet18"))
    width = [v.high / v.low for v in (p.latency_s, normal.latency_s)]
    assert width[0] > width[1]


def test_methods_by_name(zoo, fitted):
    assert fitted.methods == ("default", *LAYER_MODELS, "block")
    values = {m: fitted.predict(zoo["resnet18"], m).latency_s.value for m in fitted.methods}
    assert len({round(v, 9) for v in values.values()}) >= 4
    with pytest.raises(UsageError, match="mixed"):
        fitted.predict(zoo["resnet18"], "magic")


def test_too_few_measurements(recorded):
    rows, graphs = recorded
    with pytest.raises(FitError, match="3 usable"):
        Predictor(rows[0].target).fit([m for m in rows if m.verdict == "ok"][:3], graphs)
    with pytest.raises(PredictorError, match="not fitted"):
        Predictor(Target("t", "fake")).save("/tmp/never")


def test_saved_and_loaded_is_the_same(zoo, fitted, saved):
    again = load(saved)
    for graph in list(zoo.values())[::8]:
        assert again.predict(graph) == fitted.predict(graph)
    assert again.card == json.loads(json.dumps(fitted.card))
    fitted.save(saved)  # over itself


def test_loading_needs_no_training_library(saved):
    code = (
        "import sys\n"
        "for m in ('lightgbm', 'onnxruntime', 'torch', 'scipy'): sys.modules[m] = None\n"
        f"import foretell; print(foretell.predict('zoo:resnet18', {str(saved)!r}).latency_s.value)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(out) > 0


@pytest.mark.parametrize("name", [MANIFEST, MODEL, SUMS])
def test_flipped_bits_are_refused_by_name(saved, tmp_path, name):
    rng = random.Random(1)
    data = (saved / name).read_bytes()
    for i in range(60):
        folder = tmp_path / f"{name}{i}"
        shutil.copytree(saved, folder)
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(bytes(flipped))
        with pytest.raises(PredictorError, match=r"manifest\.json|model\.safetensors|SHA256SUMS"):
            load(folder)


def rewrite(saved: Path, folder: Path, manifest=None, model: bytes | None = None) -> Path:
    """A forged predictor whose checksums are right."""
    import hashlib

    shutil.copytree(saved, folder)
    files = {MANIFEST: (saved / MANIFEST).read_bytes(), MODEL: (saved / MODEL).read_bytes()}
    if manifest is not None:
        data = json.loads(files[MANIFEST])
        manifest(data)
        files[MANIFEST] = json.dumps(data).encode()
    if model is not None:
        files[MODEL] = model
    for n, d in files.items():
        (folder / n).write_bytes(d)
    (folder / SUMS).write_text("".join(f"{hashlib.sha256(d).hexdigest()}  {n}\n" for n, d in files.items()))
    return folder


class Bomb:
    def __reduce__(self):
        return (open, ("/tmp/foretell-pickle-ran", "w"))


def test_pickles_are_refused(saved, tmp_path):
    folder = rewrite(saved, tmp_path / "p", model=pickle.dumps(Bomb()))
    with pytest.raises(PredictorError, match=r"model\.safetensors"):
        load(folder)
    assert not Path("/tmp/foretell-pickle-ran").exists()


FORGERIES = {
    "format": lambda d: d.update(format="foretell-predictor/9"),
    "blend": lambda d: d.update(blend=[float("nan"), 0, 1]),
    "features": lambda d: d.update(features=d["features"][:-1]),
    "roofline.rates": lambda d: d["layers"]["roofline"].update(rates={"*": [0, 1, 0, []]}),
    "conformal": lambda d: d["conformal"].update(latency_s=[-1, 0.9, 3]),
    "memory": lambda d: d["memory"].update(ratio=float("inf")),
    "mapping": lambda d: d["mapping"].update(rules=[["(((", 1, "", 1, 1]]),
    "domain": lambda d: d["domain"].append("another"),
    "card": lambda d: d.update(card=[]),
    "statistical": lambda d: d["layers"]["statistical"].update(forests=["a"] * 99),
}


@pytest.mark.parametrize("field", FORGERIES)
def test_forged_fields_are_refused_by_name(saved, tmp_path, field):
    folder = rewrite(saved, tmp_path / "p", manifest=FORGERIES[field])
    with pytest.raises(PredictorError, match=field.split(".")[0]):
        load(folder)


def test_every_top_level_field_is_needed(saved, tmp_path):
    for i, key in enumerate(json.loads((saved / MANIFEST).read_bytes())):
        folder = rewrite(saved, tmp_path / f"p{i}", manifest=lambda d, key=key: d.pop(key))
        with pytest.raises(ForetellError):
            load(folder)


def test_targets_are_found_by_name(home, fitted):
    fitted.save(home / "predictors" / "mine")
    assert api.load("mine").target == fitted.target
    assert "mine" in {t["name"] for t in api.targets()}
    with pytest.raises(TargetError, match="foretell build"):
        api.load("absent")
    (home / "predictors" / "mine" / MODEL).write_bytes(b"x")
    assert next(t for t in api.targets() if t["name"] == "mine")["error"]


def test_models_in_every_form(fitted, tmp_path):
    import onnx

    data = api.zoo_bytes("mnasnet0_5")
    (tmp_path / "m.onnx").write_bytes(data)
    forms = [
        data,
        onnx.ModelProto.FromString(data),
        str(tmp_path / "m.onnx"),
        tmp_path / "m.onnx",
        api.read_model(data),
        "zoo:mnasnet0_5",
    ]
    values = {round(foretell.predict(f, fitted).latency_s.value, 12) for f in forms}
    assert len(values) == 1
    with pytest.raises(ForetellError, match="zoo:"):
        foretell.read_model("zoo:../../etc/passwd")


def test_the_shipped_predictor_is_whole_and_says_what_it_is():
    p = api.load("ort")
    assert p.target.name == "ort-f32-1t"
    card = p.card
    assert card["latency"]["mape"] > card["noise_floor_percent"] / 2
    assert card["train_measurements"] > 100
    assert card["cpu"]
    assert card["runtime"].startswith("onnxruntime")
    value = foretell.predict("zoo:mobilenetv2_100").latency_s
    assert 1e-3 < value.low < value.value < value.high < 0.1


def test_scores():
    s = score([1.0, 1.04, 0.8, 2.0], [1.0, 1.0, 1.0, 2.0], [(0.9, 1.1)] * 3 + [(3, 4)])
    assert s.mape == pytest.approx(6.0)
    assert (s.within_5, s.within_10) == (75.0, 75.0)
    assert s.interval_coverage == 75.0
    assert spearman(np.array([1, 2, 3.0]), np.array([2, 4, 9.0])) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="0 predictions"):
        score([], [])


def test_folds_keep_families_together():
    names = sorted(FAMILIES)
    groups = [FAMILIES[n] for n in names]
    fold = folds(groups, 5)
    assert all(len({f for f, g in zip(fold, groups, strict=True) if g == family}) == 1 for family in set(groups))
    assert set(fold) == {0, 1, 2, 3, 4}
    assert set(FAMILIES) == set(api.zoo_names())


def test_energy_is_learned_like_time(recorded, tmp_path):
    """Rows that have energies, a kernel and in all, give a predictor that tells them; it is saved with the rest."""
    from dataclasses import replace

    rows, graphs = recorded
    power = 3.0
    paid = [
        replace(
            m, energy_j=m.latency_s * power, kernels=tuple(replace(k, energy_j=k.latency_s * power) for k in m.kernels)
        )
        for m in rows
        if m.verdict == "ok" and m.kernels and m.source == "generated"
    ]
    predictor = Predictor(paid[0].target).fit(paid, graphs)
    tested = [m for m in rows if m.verdict == "ok" and m.source != "generated"]
    predictions = predictor.predict_many([graphs[m.graph] for m in tested])
    errors = [abs(p.energy_j.value / (m.latency_s * power) - 1) for p, m in zip(predictions, tested, strict=True)]
    assert sum(errors) / len(errors) < 0.2
    assert all(p.energy_j.low < p.energy_j.value < p.energy_j.high for p in predictions)
    predictor.save(tmp_path / "p")
    again = load(tmp_path / "p").predict(graphs[tested[0].graph])
    assert again.energy_j == predictions[0].energy_j
    assert fresh_without_energy(rows, graphs).predict(graphs[tested[0].graph]).energy_j is None  # None, never 0


def fresh_without_energy(rows, graphs):
    return Predictor(rows[0].target).fit([m for m in rows if m.source == "generated"][:40], graphs)


def test_only_the_default_has_a_calibrated_interval(fitted, zoo):
    graph = zoo["mobilenetv2_100"]
    own, other = fitted.predict(graph), fitted.predict(graph, "flydel")
    assert own.latency_s.high / own.latency_s.low < 3.9
    assert other.latency_s.high / other.latency_s.low == pytest.approx(4.0)
    assert any("not calibrated" in w for w in other.warnings)
    assert not any("not calibrated" in w for w in own.warnings)


def test_networks_that_trained_are_told_by_models_that_had_not_seen_them(recorded, fitted):
    """What a residual network learns from: of networks that they know the kernels are right by more than of others."""
    from foretell.predictor import networks

    rows, graphs = recorded
    train = [m for m in rows if m.source == "generated" and m.verdict == "ok" and m.kernels]
    assert set(fitted.held_out_) == {m.graph for m in train}
    truth = np.array([m.latency_s for m in train])
    held_out = np.array([fitted.held_out_[m.graph].sum() for m in train])
    known = fitted.latencies_s([graphs[m.graph] for m in train], "stack")
    assert np.abs(np.log(known / truth)).mean() < 0.8 * np.abs(np.log(held_out / truth)).mean()
    head = (f"{fitted.target.name}/latency_s",)
    some = train[:3]
    told = networks.estimates(fitted, [graphs[m.graph] for m in some], head, [some[0].graph, "another", some[2].graph])
    assert [float(f[0]) for f, _ in told] == pytest.approx([held_out[0], known[1], held_out[2]])
    assert all(parts.sum() == pytest.approx(float(f[0]), rel=1e-3) for f, parts in told)


def test_latency_alone_can_be_learned(recorded, fitted):
    rows, graphs = recorded
    part = type(fitted)(fitted.target).fit([m for m in rows if m.source == "generated"], graphs, only_latency=True)
    assert part.blocks_ is None and part.memory_ is None
    some = list(graphs.values())[:3]
    assert part.latencies_s(some) == pytest.approx(fitted.latencies_s(some))
