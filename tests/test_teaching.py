"""Predictors that are taught from a data set: what learns, what decides, what is kept."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from click.testing import CliRunner

import foretell
from foretell import cli_dataset
from foretell.cli import app
from foretell.datasets import files, parquet, teaching
from foretell.errors import FitError, UsageError
from foretell.generate.tasks.sampler import sample

pytest.importorskip("pyarrow")
TARGET = "ethos-u55-128"
SPACES = {"kws-1d": 1.0, "kws-2d": 1.0}


@pytest.fixture(scope="module")
def predictor():
    return foretell.load(TARGET)


@pytest.fixture(scope="module")
def folder(predictor, tmp_path_factory):
    """Small networks whose labels are a third more than what the predictor's kernels say: easily taught."""
    drawn = list(islice(sample(3, spaces=SPACES), 130))
    networks = [parquet.Network(d, "validation" if i % 6 == 0 else "test" if i % 6 == 1 else "train") for i, d in enumerate(drawn)]
    told = predictor.predict_many([d.spec.graph() for d in drawn], "stack")
    labels = [
        parquet.Label(i, TARGET, "ok", 1.33 * p.latency_s.value, None, round(p.peak_memory_bytes.value)) for i, p in enumerate(told)
    ]
    labels[0] = replace(labels[0], verdict="failed", latency_s=None, peak_memory_bytes=None)
    card = {"version": 1, "seed": 3, "spaces": {}, "splits": {}, "targets": {TARGET: {"protocol": "p10-median/1", "runtime": "made up"}}}
    out = tmp_path_factory.mktemp("teaching") / "set"
    parquet.write(out, networks, labels, card)
    return out


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(teaching, "_FEWEST", 50)


def test_examples_are_what_the_target_runs(folder, predictor):
    found = teaching.examples(folder, {TARGET: predictor})
    assert len(found) == 129  # one was refused by the target
    assert {e.space for e in found} == set(SPACES)
    e = found[0]
    assert any(t.dtype == "i8" for t in e.graph.tensors.values())
    assert np.isnan(e.label(f"{TARGET}/energy_j")) and np.isnan(e.label("other/latency_s"))
    assert teaching.heads_of(found, [TARGET]) == (f"{TARGET}/latency_s", f"{TARGET}/peak_memory_bytes")


def test_a_target_without_labels_is_refused(folder, predictor, tmp_path):
    other = foretell.load("zigzag-tpu_like")
    with pytest.raises(UsageError, match="zigzag-tpu_like"):
        teaching.teach(folder, {TARGET: predictor, "zigzag-tpu_like": other}, tmp_path)


def test_what_is_taught_corrects_and_is_the_default(folder, predictor, tmp_path, few, monkeypatch):
    pytest.importorskip("torch")
    seen = []
    real = teaching.train

    def train(graphs, *args, **kwargs):
        seen.append(len(graphs))
        return real(graphs, *args, **kwargs)

    monkeypatch.setattr(teaching, "train", train)
    taught = teaching.teach(folder, {TARGET: predictor}, tmp_path, visits=3000)[TARGET]
    data = parquet.read(folder)
    learning = sum(n.split == "train" for n in data.networks)
    assert seen == [learning, learning]  # neither validation nor test, once for each network
    card = taught.card["graph_networks"]
    assert card["validation_mape"]["latency_s"]["stack"] == pytest.approx(100 * 0.33 / 1.33, abs=0.1)
    assert card["validation_mape"]["latency_s"]["residual"] < 6
    assert taught.chosen_["latency_s"] != "stack"
    assert "latency_s" not in predictor.chosen_  # the one that was given is left alone
    test = [(i, n) for i, n in enumerate(data.networks) if n.split == "test"]
    truth = data.values(TARGET, "latency_s")[[i for i, _ in test]]
    told = taught.latencies_s([n.drawn.spec.graph() for _, n in test])
    assert np.abs(told / truth - 1).mean() < 0.06
    monkeypatch.setattr(teaching, "train", None)  # kept: the same call trains nothing again
    again = teaching.teach(folder, {TARGET: predictor}, tmp_path, visits=3000)[TARGET]
    assert again.latencies_s([test[0][1].drawn.spec.graph()]) == pytest.approx(told[:1])


def test_kernels_that_know_the_networks_are_not_corrected(folder, predictor, tmp_path, few):
    pytest.importorskip("torch")
    knowing = replace(predictor, card={**predictor.card, files.LEARNED: 90})
    taught = teaching.teach(folder, {TARGET: knowing}, tmp_path, visits=1000)[TARGET]
    assert taught.residual_ is None and taught.gnn_ is not None
    assert set(taught.card["graph_networks"]["validation_mape"]["latency_s"]) == {"gnn", "stack"}


def test_a_kept_training_is_told_by_all_that_it_follows_from(folder, predictor, few):
    found = [e for e in teaching.examples(folder, {TARGET: predictor}) if e.split == "train"]
    heads = teaching.heads_of(found, [TARGET])[:1]
    labels, settings = teaching.labels_of(found, heads), teaching.settings_for(len(found), 1000, True)
    none = [(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 1)))] * len(found)
    some = [(np.zeros(1, int), np.zeros(1, int), np.ones((1, 1)))] * len(found)

    class Twice(teaching.Estimates):
        def of(self, *a):
            return [(2 * figures, nodes) for figures, nodes in super().of(*a)]

    other = [replace(e, encoded=replace(e.encoded, x=e.encoded.x + 1)) for e in found]
    first = teaching._digest(found, labels, settings, heads, none, teaching.Estimates(predictor))
    assert first == teaching._digest(found, labels, settings, heads, none, teaching.Estimates(predictor))
    assert len({
        first, teaching._digest(found, labels, settings, heads, none, None),
        teaching._digest(found, labels, settings, heads, none, Twice(predictor)),
        teaching._digest(found, labels, settings, heads, some, teaching.Estimates(predictor)),
        teaching._digest(other, labels, settings, heads, none, teaching.Estimates(predictor)),
    }) == 5  # fmt: skip


def test_a_kept_training_that_is_damaged_is_made_anew(folder, predictor, tmp_path, few):
    pytest.importorskip("torch")
    found = [e for e in teaching.examples(folder, {TARGET: predictor}) if e.split == "train"]
    heads = teaching.heads_of(found, [TARGET])
    file = tmp_path / "n.safetensors"
    for damage in (b"", b"\x10" + b"\0" * 7 + b"not JSON at all."):
        file.write_bytes(damage)
        network, _ = teaching.learn(found, heads, file, visits=1000)
        assert network.heads == heads
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teaching, "train", None)
        again, _ = teaching.learn(found, heads, file, visits=1000)
    assert again.predict([found[0].encoded]) == pytest.approx(network.predict([found[0].encoded]))


def test_the_command_teaches_and_saves(folder, tmp_path, few):
    pytest.importorskip("torch")
    out = CliRunner().invoke(
        app, ["dataset", "teach", str(folder), "--targets", TARGET, "--output", str(tmp_path), "--visits", "1000", "--quiet"]
    )
    assert out.exit_code == 0, out.output
    assert f"{TARGET} latency_s: gnn" in out.output
    assert foretell.predict("zoo:mobilenetv2_100", tmp_path / TARGET, method="gnn").latency_s.value > 0
    bad = CliRunner().invoke(app, ["dataset", "teach", str(folder), "--targets", f"{TARGET},ort", "--output", str(tmp_path)])
    assert bad.exit_code != 0 and "one precision" in str(bad.exception)




def test_too_few_judges_set_no_interval(folder, predictor, tmp_path, few, monkeypatch):
    monkeypatch.setattr(teaching, "_JUDGES", 30)
    with pytest.raises(FitError, match="validation"):
        teaching.teach(folder, {TARGET: predictor}, tmp_path)


def test_the_command_looks_as_often_as_the_library():
    (visits,) = [p for p in cli_dataset.teach.params if p.name == "visits"]
    assert visits.default == teaching.VISITS
