"""Task search spaces: every network is rebuilt from its spec, once and for ever, and runs wholly on an NPU."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest

from foretell import backends
from foretell.backends.contract import RunOptions
from foretell.datasets.edge import onnx_file, tflite_file
from foretell.errors import ForetellError, UsageError
from foretell.formats import read
from foretell.generate import spaces
from foretell.generate.builder import Builder
from foretell.generate.tasks import sampler
from foretell.generate.tasks.published import mnasnet
from foretell.generate.tasks.sampler import MACS, MOST_WEIGHTS, cell, depth, describe, sample
from foretell.generate.tasks.spec import SPACES, Spec, draw
from foretell.graph.canonical import canonical_hash

# (draw, its hash, MACs, depth): labels that were made belong to these networks. Another hash here is another data set.
KNOWN = {
    "mobilenet": (0, "0e35ff6512f07fbc", 11164672, 82),
    "resnet": (0, "57fa01f7b0b1c8cc", 97192736, 14),
    "efficientnet": (0, "06605de14d72299b", 2563968, 47),
    "mnasnet": (0, "f2a2e207a0faffc2", 44137040, 29),
    "mixed": (0, "5faa99a8710584de", 24284616, 24),
    "ssd": (0, "ba438ee7395af44e", 152392704, 23),
    "yolo": (0, "eb33a2dcb943b2fb", 7822080, 57),
    "super-resolution": (0, "59c389a1690410ff", 36357120, 10),
    "kws-2d": (0, "b9c2b2c1a0148761", 15327392, 7),
    "kws-1d": (1, "c8c3d667b75b0a49", 13805728, 75),
    "vit": (0, "2278087aa8f97f7b", 12592032, 20),
    "bert": (0, "b10ad4082a63e699", 478151168, 14),
    "hybrid": (0, "810c6d63d1fd895b", 47558944, 39),
    "nasbench201": (0, "b28f01a99345ac4d", 7783040, 6),
    "fbnet": (0, "0938729ff07bde80", 248921224, 63),
    "ofa-mobilenetv3": (0, "27c442cf504eae7e", 94323200, 65),
    "accel-nasbench": (0, "f5660d7e9d01e00a", 501828640, 46),
}


def test_every_space_is_known():
    assert set(KNOWN) == set(SPACES)


@pytest.mark.parametrize("space", SPACES)
def test_a_draw_is_a_network_for_ever(space):
    number, hash_, macs, layers = KNOWN[space]
    spec = draw(space, 0, number)
    found = describe(spec, number)
    assert found is not None
    assert (found.hash[:16], found.macs, found.depth) == (hash_, macs, layers)
    again = Spec.from_json(spec.to_json())
    assert again == spec
    data = onnx_file(spec)
    assert onnx_file(again) == data
    assert canonical_hash(read(data)) == found.hash  # what a reader of the file sees is the network that was drawn
    if found.weights < 1e6:
        assert tflite_file(spec) == tflite_file(again)
        assert tflite_file(spec) != tflite_file(Spec(space, spec.parameters, seed=1))


def small(space: str) -> Spec:
    """The first draw of a space that costs little to compile."""
    limit = 4e8 if SPACES[space].task == "published" else 4e7
    for number in range(200):
        found = describe(draw(space, 3, number), number)
        if found is not None and found.macs < limit:
            return found.spec
    raise AssertionError(f"no small network in {space}")


@pytest.mark.parametrize("space", [s for s in SPACES if s != "ofa-mobilenetv3"])  # it takes seconds
def test_a_network_runs_wholly_on_the_npu(space):
    pytest.importorskip("ethosu.vela")
    backend, target = backends.resolve("ethos-u55-128")
    run = backend.run(onnx_file(small(space)), space, target, RunOptions())  # refused if a layer is left to the CPU
    assert run.samples_s[0] > 0
    assert run.peak_memory_bytes


def test_accel_nasbench_has_its_published_weights():
    # Three rows without squeeze-and-excitation: info_params counts two a channel for batch normalisation, of which
    # folding leaves one.
    rows = {
        3.8534: ([4, 4, 1, 1, 6, 4, 4], [5, 3, 3, 5, 3, 5, 3], [3, 1, 1, 2, 1, 3, 2]),
        4.824328: ([6, 6, 4, 6, 1, 6, 4], [5, 5, 3, 5, 5, 5, 5], [1, 2, 2, 3, 2, 2, 3]),
        3.897384: ([1, 6, 4, 4, 1, 4, 4], [3, 3, 3, 5, 3, 5, 5], [2, 2, 1, 2, 3, 3, 2]),
    }
    for published, (expansions, kernels, layers) in rows.items():
        graph = mnasnet(expansions, kernels, layers, [0] * 7)
        biases = sum(graph.tensors[n.inputs[2]].elements for n in graph.nodes if n.op_type == "Conv")
        assert (graph.parameters + biases) / 1e6 == pytest.approx(published, abs=1e-6)
    with pytest.raises(UsageError):
        mnasnet([1] * 6, [3] * 7, [1] * 7, [0] * 7)


# Hashes


def test_the_hash_sees_structure_and_nothing_else():
    def graph(prefix: str, swap: bool = False, kernel: int = 3, twice: bool = False):
        b = Builder(prefix)
        x = b.input((1, 4, 8, 8))
        if swap:
            right, left = b.conv(x, 4, kernel), b.conv(x, 4, 1)
        else:
            left, right = b.conv(x, 4, 1), b.conv(x, 4, kernel)
        y = b.add(right, left) if swap else b.add(left, right)
        b.output(b.op("Relu", [b.add(y, b.conv(x, 4, 1) if twice else left)]))
        return b.graph()

    assert canonical_hash(graph("a")) == canonical_hash(graph("b", swap=True))
    assert canonical_hash(graph("a")) != canonical_hash(graph("a", kernel=5))
    assert canonical_hash(graph("a")) != canonical_hash(graph("a", twice=True))  # two equal layers are not one


def test_order_counts_where_it_matters():
    def graph(swap: bool):
        b = Builder("x")
        x = b.input((1, 4, 8, 8))
        a, c = b.conv(x, 4, 1), b.conv(x, 4, 3)
        b.output(b.op("Sub", [c, a] if swap else [a, c]))
        return b.graph()

    assert canonical_hash(graph(False)) != canonical_hash(graph(True))


def test_isomorphic_cells_are_one_network():
    # Node 1 and node 2 of the cell change places.
    one = spaces.nasbench201(["nor_conv_3x3", "nor_conv_1x1", "none", "none", "nor_conv_1x1", "avg_pool_3x3"])
    other = spaces.nasbench201(["nor_conv_1x1", "nor_conv_3x3", "none", "none", "avg_pool_3x3", "nor_conv_1x1"])
    assert canonical_hash(one) == canonical_hash(other)
    assert one.fingerprint != other.fingerprint


# Sampling


@pytest.fixture(scope="module")
def drawn():
    return list(islice(sample(seed=5), 150))


def test_samples_are_of_edge_size_and_differ(drawn):
    assert len({d.hash for d in drawn}) == len(drawn)
    assert all(MACS[0] <= d.macs <= MACS[1] and d.weights <= MOST_WEIGHTS for d in drawn)
    counts = Counter(d.spec.space for d in drawn)
    total = sum(s.share for s in SPACES.values())
    for name, space in SPACES.items():
        assert counts[name] == pytest.approx(150 * space.share / total, abs=1.01)


def test_sampling_goes_on_from_any_prefix(drawn):
    for start in (1, 77):
        assert list(islice(sample(seed=5, known=drawn[:start]), 150 - start)) == drawn[start:]
    assert next(sample(seed=6)) != drawn[0]


def test_no_cell_runs_ahead():
    count = 300
    some = list(islice(sample(spaces={"kws-2d": 1.0}), count))
    natural: list[tuple[int, int]] = []
    number = 0
    while len(natural) < count:
        found = describe(draw("kws-2d", 0, number), number)
        number += 1
        if found is not None:
            natural.append(cell(found.macs, found.depth))
    even = Counter(cell(d.macs, d.depth) for d in some)
    assert max(even.values()) <= sampler._AHEAD * count / len(even) + 2
    assert max(Counter(natural).values()) > 1.5 * max(even.values())  # so it is without the rule
    assert len(even) >= len(set(natural))


def test_a_space_ends(monkeypatch):
    monkeypatch.setattr(sampler, "_EXHAUSTED", 12)
    monkeypatch.setattr(sampler, "draw", lambda space, seed, number: draw("kws-1d", 0, number % 4))
    found = list(sample(spaces={"kws-1d": 1.0}))
    assert 1 <= len(found) <= 4


def test_depth_is_the_longest_chain():
    b = Builder("x")
    x = b.input((1, 4, 8, 8))
    y = b.conv(b.conv(x, 4, 3, act="relu"), 4, 3)
    b.output(b.add(y, b.conv(x, 4, 1)))
    assert depth(b.graph()) == 2


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"space": "kws-1d"}', '{"space": "nonesuch", "parameters": {}}', '{"space": "vit", "parameters": []}',
        '{"space": "vit", "parameters": {}, "seed": -1}', '{"space": "vit", "parameters": {}, "seed": "x"}', "9" * 30000,
        '{"space": ["vit"], "parameters": {}}',
    ],
)  # fmt: skip
def test_a_spec_that_is_none_is_refused(text):
    with pytest.raises(UsageError):
        Spec.from_json(text)


@pytest.mark.parametrize("space", SPACES)
def test_wrong_parameters_are_refused(space):
    good = draw(space, 0, KNOWN[space][0]).parameters
    for key in good:
        for bad in (None, "x", -3, [], {"a": 1}):
            try:
                graph = Spec(space, {**good, key: bad}).graph()
            except ForetellError:
                continue
            assert graph.outputs  # some values, such as a flag of another type, still mean a network
    with pytest.raises(UsageError):
        Spec(space, {}).graph()


def test_no_end_of_layers_is_refused():
    good = draw("kws-2d", 0, 0).parameters
    with pytest.raises(UsageError, match="nodes"):
        Spec("kws-2d", {**good, "depth": 10**12}).graph()


def test_specs_are_plain_json():
    for space in SPACES:
        p = draw(space, 1, 0).parameters
        assert json.loads(json.dumps(p)) == p
