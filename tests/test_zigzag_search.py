"""The short way through ZigZag's search leads to the same figures as ZigZag's own."""

from __future__ import annotations

import contextlib

import pytest

from foretell.backends import zigzag, zigzag_orders, zigzag_search
from foretell.errors import MeasurementError
from foretell.generate.builder import Builder

pytest.importorskip("zigzag")
if zigzag.Backend().version() not in zigzag_search.VERSIONS:
    pytest.skip("another version: the plain way is all there is", allow_module_level=True)


def layer(make):
    """The last node that ZigZag prices of what ``make`` builds, as it is searched for."""
    b = Builder("layer", bias=False)
    b.output(make(b))
    kind = [k for k in b.graph().kinds if zigzag.priced(k)][-1]
    return zigzag._layer_graph(kind)


def product(*shapes):
    return lambda b: b.op("MatMul", [b.input(s) for s in shapes])


LAYERS = {
    "dense": lambda b: b.conv(b.input((1, 8, 6, 6)), 12, 3),
    "strided": lambda b: b.conv(b.input((1, 3, 21, 21)), 8, 5, stride=2),
    "point": lambda b: b.conv(b.input((2, 36, 7, 9)), 50, 1),
    "depthwise": lambda b: b.conv(b.input((1, 72, 9, 9)), 72, 3, group=72),
    "grouped": lambda b: b.conv(b.input((1, 16, 4, 6)), 24, 3, group=4),
    "dilated": lambda b: b.conv(b.input((1, 8, 4, 14)), 16, 3, dilation=2),
    "one step": lambda b: b.conv(b.input((1, 1, 1, 1)), 1, 1),
    "matrix": lambda b: b.op("MatMul", [b.input((10, 30)), b.weight(30, 70)]),
    "heads": product((1, 3, 49, 16), (1, 3, 16, 49)),
    "batch": product((2, 20, 33), (2, 33, 12)),
}


@pytest.mark.parametrize("accelerator", ["tpu_like", "edge_tpu_like"])
@pytest.mark.parametrize("name", LAYERS)
def test_both_ways_lead_to_the_same_figures(accelerator, name, monkeypatch):
    graph, taken = layer(LAYERS[name]), []
    search = zigzag_search.search
    monkeypatch.setattr(zigzag_search, "search", lambda *a, **k: taken.append(search(*a, **k)) or taken[-1])
    short = zigzag._search(graph, accelerator, name)
    assert len(taken) == 1
    assert short == zigzag._search(graph, accelerator, name, quick=False)


@pytest.mark.parametrize("name", ["strided", "depthwise", "grouped"])
def test_orders_that_count_as_the_same_have_the_same_figures(name, monkeypatch):
    """Every order is priced, which the search itself saves."""
    copies, place = zigzag_search._copies(), zigzag_orders.Orders.place
    evaluation, keys, prices = copies.evaluation, [], []

    def apart(*a):
        placed = place(*a)
        keys.append(placed.key)
        placed.key = (len(keys),)
        return placed

    def priced(**k):
        found = evaluation(**k)
        prices.append((found.latency_total2, found.energy(), zigzag._busy(found)))
        return found

    monkeypatch.setattr(zigzag_orders.Orders, "place", apart)
    monkeypatch.setattr(copies, "evaluation", priced)
    zigzag._search(layer(LAYERS[name]), "edge_tpu_like", name)
    assert len(set(keys)) < len(keys) == len(prices)
    assert len(set(zip(keys, prices, strict=True))) == len(set(keys))


@pytest.mark.parametrize("why", ["version", "error", "figures"])
def test_the_plain_way_is_taken_where_the_short_one_is_not_known(why, monkeypatch):
    graph = layer(LAYERS["grouped"])
    price = zigzag._search(graph, "tpu_like", "l")
    if why == "version":
        monkeypatch.setattr(zigzag_search, "VERSIONS", ())
    elif why == "error":
        monkeypatch.setattr(zigzag_orders.Orders, "place", lambda *a: 1 / 0)
    else:  # the copies price it otherwise than ZigZag
        energy = zigzag_search._copies().evaluation.energy
        monkeypatch.setattr(zigzag_search._copies().evaluation, "energy", lambda self: energy(self) + 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(contextlib, "suppress", lambda *_: contextlib.nullcontext())
            with pytest.raises(MeasurementError, match="DifferentError"):
                zigzag._search(graph, "tpu_like", "l")
    assert zigzag._search(graph, "tpu_like", "l") == price


def test_arrays_in_memory_are_priced_plainly():
    graph = layer(LAYERS["point"])
    assert zigzag._search(graph, "dimc", "l") == zigzag._search(graph, "dimc", "l", quick=False)


@pytest.mark.parametrize("accelerator", ["tpu_like", "edge_tpu_like", "eyeriss_like", "ascend_like"])
@pytest.mark.parametrize("name", ["strided", "depthwise", "grouped", "point", "heads"])
def test_loops_lie_in_the_memories_where_zigzag_puts_them(accelerator, name, monkeypatch):
    """Every order is placed by ZigZag's allocator, too."""
    from zigzag.opt.loma import memory_allocator

    best, place, given, told = zigzag_search._best, zigzag_orders.Orders.place, [], []

    def kept(**k):
        given.append(k)
        told.append([])
        return best(**k)

    def placed(self, order):
        try:
            found = place(self, order)
        except zigzag_orders.DoesNotFitError:
            told[-1].append((order, None))
            raise
        told[-1].append((order, self.levels(found)))
        return found

    monkeypatch.setattr(zigzag_search, "_best", kept)
    monkeypatch.setattr(zigzag_orders.Orders, "place", placed)
    zigzag._search(layer(LAYERS[name]), accelerator, name)
    orders = 0
    for k, each in zip(given, told, strict=True):
        for order, levels in each:
            of = (k["accelerator"], k["layer"], k["spatial_mapping"], order, k["temporal_mapping_type"])
            try:
                plain = memory_allocator.MemoryAllocator(*of).run().mapping_dic_origin
            except (memory_allocator.MemoryTooSmallException, memory_allocator.MemoryHierarchyTooSmallException):
                plain = None
            assert levels == plain
            orders += 1
    assert orders > 1


@pytest.mark.parametrize("accelerator", ["tpu_like", "edge_tpu_like"])
@pytest.mark.parametrize("name", ["strided", "depthwise", "dense", "even", "oblong"])
def test_turned_orders_cost_the_same(accelerator, name, monkeypatch):
    """Orders that the search passes over have the figures of those that it looks at; only of square layers are there any."""
    made = {
        **LAYERS, "even": lambda b: b.conv(b.input((1, 8, 16, 16)), 16, 4, stride=2, pad=1),
        "oblong": lambda b: b.conv(b.input((1, 8, 6, 12)), 12, 3),
    }  # fmt: skip
    copies, place, turned = zigzag_search._copies(), zigzag_orders.Orders.place, zigzag_orders.Orders.turned
    evaluation, orders, prices, passed = copies.evaluation, [], {}, []

    def apart(self, order):
        placed = place(self, order)
        orders.append(tuple((d.name, n) for d, n in order))
        placed.key = (len(orders),)
        return placed

    def priced(**k):
        found = evaluation(**k)
        prices[orders[-1]] = found.latency_total2, pytest.approx(found.energy(), rel=1e-12), zigzag._busy(found)
        return found

    def asked(self, order):
        if turned(self, order):
            passed.append(tuple((d.name, n) for d, n in order))
        return False

    monkeypatch.setattr(zigzag_orders.Orders, "turned", asked)
    monkeypatch.setattr(zigzag_orders.Orders, "place", apart)
    monkeypatch.setattr(copies, "evaluation", priced)
    zigzag._search(layer(made[name]), accelerator, name)
    assert bool(passed) == (name != "oblong")
    for order in passed:
        assert prices[order] == prices[tuple((zigzag_orders._TURNED.get(d, d), n) for d, n in order)]


@pytest.mark.parametrize("name", ["strided", "depthwise", "grouped", "heads", "dilated"])
def test_mappings_are_those_that_zigzag_makes(name, monkeypatch):
    from zigzag.mapping.mapping import Mapping

    copies = zigzag_search._copies()
    evaluation, made = copies.evaluation, []

    def priced(**k):
        made.append(evaluation(**k))
        return made[-1]

    monkeypatch.setattr(copies, "evaluation", priced)
    zigzag._search(layer(LAYERS[name]), "edge_tpu_like", name)
    assert made
    for e in made:
        for own in (e.mapping, e.mapping_int):
            plain = Mapping(own.accelerator, own.spatial_mapping, own.temporal_mapping, own.layer_node, True)
            for told in (
                "combined_mapping_dict_1s1t_reform", "combined_mapping_dict_1s2t_reform", "r_loop_size_per_level",
                "r_loop_size_per_level2", "ir_loop_size_per_level", "r_loop_size_cabl", "r_loop_size_cabl2",
                "ir_loop_size_cabl", "ir_loop_size_cabl2", "output_ir_loop_size_caal", "effective_data_bit",
            ):  # fmt: skip
                assert getattr(own, told) == getattr(plain, told)
