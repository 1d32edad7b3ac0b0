"""ZigZag's search of a layer, by a shorter way to the same figures.

ZigZag prices every order of a layer's loops in full. Most of that is spent on its containers, on orders that come to the same
placement, and on the energy of orders that are not the fastest. Here the same code of ZigZag's runs as a second copy of four
of its modules, over cheap containers: orders are placed by :mod:`foretell.backends.zigzag_orders`, placements are compared by
their latency once each, energy is asked for where latencies are equal, and the winner alone is placed and priced by ZigZag as
it is installed. That price is the answer; one that differs from what the copies found means that they are not equivalent,
and the search is not trusted.
"""

from __future__ import annotations

import copy
import functools
import importlib
import math
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

from foretell.backends.installed import version_of
from foretell.backends.zigzag_orders import DoesNotFitError, Orders, Placed

VERSIONS = ("3.9.1",)  # of which the modules below are known to work so


class DifferentError(Exception):
    """The copies do not do what ZigZag does, or cannot."""


def search(model: Any, accelerator: str, mapping: str, **options: Any) -> Any:
    """What ZigZag's ``MainStage`` answers for a network of one layer: ``[(evaluation, ...)]``.

    Raises:
        DifferentError: the way is not known to lead there.
    """
    if version_of("zigzag-dse", "zigzag") not in VERSIONS:
        raise DifferentError(f"not of version {', '.join(VERSIONS)}")
    plain, cheap = _accelerator(accelerator)
    if cheap is None:
        raise DifferentError("arrays in memory have a cost model of their own")
    reduce = _module("zigzag.stages.results.reduce_stages")
    stages = [
        reduce.SumStage, _module("zigzag.stages.workload_iterator").WorkloadStage, reduce.MinimalLatencyStage,
        _module("zigzag.stages.mapping.spatial_mapping_generation").SpatialMappingGeneratorStage, _copies().best,
    ]  # fmt: skip
    parser = _module("zigzag.parser.onnx.onnx_model_parser").ONNXModelParser(model, mapping)
    parser.mapping_data = _mapping(mapping)
    workload = parser.parse_workload_from_onnx_model_and_mapping()
    main = _module("zigzag.stages.main").MainStage
    return main(stages, workload=workload, accelerator=plain, cheap_accelerator=cheap, **options).run()


@functools.cache
def _mapping(path: str) -> Any:
    return _module("zigzag.stages.parser.workload_parser").WorkloadParserStage.parse_mapping_data(path)


@functools.cache
def _accelerator(path: str) -> tuple[Any, Any]:
    """An accelerator, and its copy of cheap containers; None for arrays in memory."""
    plain = _module("zigzag.stages.parser.accelerator_parser").AcceleratorParserStage.parse_accelerator(path)
    if isinstance(plain.operational_array, _module("zigzag.hardware.architecture.imc_array").ImcArray):
        return plain, None
    cheap = _cheap(plain)
    hierarchy = cheap.memory_hierarchy
    hierarchy.order = tuple(hierarchy.topological_sort())
    hierarchy.__class__ = _copies().hierarchy
    if all(a is b or a != b for a in hierarchy.order for b in hierarchy.order):
        for level in hierarchy.order:
            level.__class__ = _copies().level
    # Whether the last memory of one operand is the last of every other that it holds.
    last = {operand: n - 1 for operand, n in hierarchy.nb_levels.items()}
    cheap.outermost = all(
        len({n == last[operand] for operand, n in level.mem_level_of_operands.items()}) == 1
        for level in hierarchy.order
    )
    return plain, cheap


# Cheap containers


@functools.cache
def _operand(kind: Any, name: str) -> Any:
    """An operand or dimension that hashes and compares as ZigZag's own, which hash in Python: as the integer that is
    their hash. There is one of a name, so that most comparisons end at identity."""
    plain = kind(name)
    made: Any = int.__new__(_operand_type(kind), hash(plain))
    made.__dict__.update(plain.__dict__)
    return made


@functools.cache
def _operand_type(kind: Any) -> type:
    def again(make: Any) -> Any:
        return functools.cache(lambda self: _operand(kind, make(self).name))

    # Only what an integer would do otherwise: order, and how it is written.
    own = {k: getattr(kind, k) for k in ("__lt__", "__ge__", "__str__", "__repr__")}
    versions = {k: again(getattr(kind, k)) for k in ("create_r_version", "create_ir_version") if hasattr(kind, k)}
    return type(kind.__name__, (int, kind), {**own, **versions})


def _cheap(of: Any) -> Any:
    """A copy of ZigZag's objects with cheap operands, and plain strings for the directions of data."""
    operand = _module("zigzag.datatypes").OperandABC
    direction = _module("zigzag.hardware.architecture.memory_port").DataDirection

    def cheap(self: Any, memo: Any) -> Any:
        kind: Any = type(self)
        return _operand(kind, self.name)

    # How a class is copied is the class's to say; no other copy is made meanwhile.
    before = direction.__deepcopy__
    operand.__deepcopy__ = cheap
    direction.__deepcopy__ = lambda self, memo: sys.intern(str(self))
    try:
        return copy.deepcopy(of)
    finally:
        del operand.__deepcopy__
        direction.__deepcopy__ = before


class _Names:
    """An enumeration's members as plain strings."""

    def __init__(self, members: Any) -> None:
        for m in members:
            setattr(self, m.name, sys.intern(m.value))
        self.all = tuple(sys.intern(m.value) for m in members)

    def __iter__(self) -> Iterator[str]:
        return iter(self.all)


class _FourWay:
    """A figure for every direction of data."""

    __slots__ = ("data", "get", "set")

    def __init__(self, data: dict[str, Any]) -> None:
        self.data, self.get, self.set = data, data.__getitem__, data.__setitem__


class _Pattern:
    """The figures of one memory."""

    __slots__ = ("attributes", "get_attribute")

    def __init__(self, operand: Any, level: int) -> None:
        self.attributes: dict[str, _FourWay] = {}
        self.get_attribute = self.attributes.__getitem__

    def set_attribute(self, attribute: str, values: dict[str, Any]) -> None:
        self.attributes[attribute] = _FourWay(values)

    def update_single_dir_data(self, direction: str, value: Any) -> None:
        for a in self.attributes.values():
            a.data[direction] = value


# What of its mappings takes the longest, with less to look up


def _decoupled(mapping: Any, layer: Any) -> Any:
    """``decouple_pr_loop``: loops over a sliding window as one that makes the window larger and one that moves within."""
    out = {}
    for operand, levels in mapping.items():
        windows = layer.loop_relevancy_info.get_pr_layer_dims(operand)
        if not windows:
            out[operand] = [list(loops) for loops in levels]
            continue
        of = {dim: window for window, dims in windows.items() for dim in dims}
        sizes: dict[Any, dict[Any, Any]] = {window: dict.fromkeys(dims, 1) for window, dims in windows.items()}
        before: dict[Any, tuple[Any, Any]] = dict.fromkeys(windows, (1, 1))
        out[operand] = []
        for loops in levels:
            new: list[Any] = []
            for loop in loops:
                window = of.get(loop[0])
                if window is None:
                    new.append(loop)
                    continue
                own = sizes[window]
                own[loop[0]] *= loop[1]
                key = (window, *own.values())
                now = layer.windows.get(key)
                if now is None:
                    large = layer.calc_tensor_dim(window, _module("zigzag.workload.layer_attributes").LayerDimSizes(own))
                    now = layer.windows[key] = large, math.prod(own.values()) / large
                last = before[window]
                new.append((window.create_r_version(), now[0] / last[0]))
                new.append((window.create_ir_version(), now[1] / last[1]))
                before[window] = now
            out[operand].append(new)
    return out


def _products(of: Any) -> dict[str, Any]:
    """What ``gen_r_ir_loop_list`` sets: products of the loops of each level, and of all below."""
    layer = of.layer_node
    relevancy = layer.pr_decoupled_relevancy_info
    names = ("r_loop_size_per_level", "ir_loop_size_per_level", "r_loop_size_per_level2", "ir_loop_size_cabl",
             "ir_loop_size_cabl2", "r_loop_size_cabl", "r_loop_size_cabl2")  # fmt: skip
    out: dict[str, Any] = {name: {} for name in names}
    for operand in of.operand_list:
        relevant, others = layer.decoupled.get(operand) or layer.decoupled.setdefault(
            operand, (frozenset(relevancy.get_r_layer_dims(operand)), frozenset(relevancy.get_ir_layer_dims(operand)))
        )
        count = of.spatial_mapping.arch_level[operand]
        for which, mapping in (("", of.combined_mapping_dict_1s1t_reform), ("2", of.combined_mapping_dict_1s2t_reform)):
            inner, outer, inner_all, outer_all = [], [], [], []
            below: Any = 1
            above: Any = 1
            for loops in mapping[operand][:count]:
                r: Any = 1
                ir: Any = 1
                for dim, size in loops:
                    if dim in relevant:
                        r *= size
                    if dim in others:
                        ir *= size
                below *= r
                above *= ir
                inner.append(r)
                outer.append(ir)
                inner_all.append(round(below))
                outer_all.append(above)
            out[f"r_loop_size_per_level{which}"][operand] = inner
            out[f"r_loop_size_cabl{which}"][operand] = inner_all
            out[f"ir_loop_size_cabl{which}"][operand] = outer_all
            if not which:
                out["ir_loop_size_per_level"][operand] = outer
    sums = out["ir_loop_size_per_level"][layer.output_operand]
    return {**out, "output_ir_loop_size_caal": [*(math.prod(sums[level:]) for level in range(len(sums))), 1, 1]}


# The copies


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _copy(name: str, **replaced: Any) -> Any:
    """A module of ZigZag's once more, with some of its global names replaced."""
    plain = _module(name)
    again = ModuleType(name)
    again.__spec__, again.__file__ = plain.__spec__, plain.__file__
    plain.__spec__.loader.exec_module(again)
    missing = [k for k in replaced if not hasattr(again, k)]
    if missing:
        raise DifferentError(f"{name} has no {', '.join(missing)}")
    vars(again).update(replaced)
    return again


@functools.cache
def _copies() -> SimpleNamespace:
    """The copies, and ZigZag's classes with little less to do."""
    datatypes, ports = _module("zigzag.datatypes"), _module("zigzag.hardware.architecture.memory_port")
    hierarchies = _module("zigzag.hardware.architecture.memory_hierarchy")
    levels = _module("zigzag.hardware.architecture.memory_level")
    constants = SimpleNamespace(
        **{k: _operand(v.__class__, v.name) for k, v in vars(datatypes.Constants).items() if not k.startswith("_")}
    )
    names: dict[str, Any] = {
        "Constants": constants, "DataDirection": _Names(ports.DataDirection),
        "DataMoveAttr": _Names(_module("zigzag.mapping.data_movement").DataMoveAttr),
    }  # fmt: skip
    helpers = SimpleNamespace(decouple_pr_loop=_decoupled)
    mapping = _copy("zigzag.mapping.mapping", DataMovePattern=_Pattern, mapping_assist_funcs=helpers, **names)

    class Mapping(mapping.Mapping):  # type: ignore[misc, name-defined]
        """Of sizes; of data movements when asked for them."""

        complete = False

        def gen_r_ir_loop_list(self) -> None:
            for name, value in _products(self).items():
                setattr(self, name, value)

        def calc_data_access(self) -> None: ...

        def calc_req_mem_bw_and_data_transfer_rate(self) -> None: ...

        def disable_data_traffic_external(self) -> None: ...

        def movements(self) -> None:
            if not self.complete:
                super().calc_data_access()
                super().calc_req_mem_bw_and_data_transfer_rate()
                super().disable_data_traffic_external()
                self.complete = True

    last: list[Any] = []

    def mapped(accelerator: Any, spatial: Any, temporal: Any, *of: Any) -> Any:
        """An evaluation's two mappings are one where the spatial ones are the same."""
        if not (last and last[0].spatial_mapping is spatial and last[0].temporal_mapping is temporal):
            last[:] = [Mapping(accelerator, spatial, temporal, *of)]
        return last[0]

    cost = _copy(
        "zigzag.cost_model.cost_model", Mapping=mapped, MemoryAccesses=_FourWay, AccessEnergy=_FourWay,
        pickle_deepcopy=lambda lists: {k: list(v) for k, v in lists.items()}, **names,
    )  # fmt: skip

    class Evaluation(cost.CostModelEvaluation):  # type: ignore[misc, name-defined]
        """Of latency; of energy when asked for it."""

        def run(self) -> None:
            self.calc_memory_utilization()
            self.mapping_int.movements()
            self.calc_latency()

        def energy(self) -> float:
            self.mapping.movements()
            self.calc_memory_word_access()
            self.calc_energy()
            return float(self.energy_total)

    allocation = _module("zigzag.opt.loma.memory_allocator")

    class Allocator:
        """Takes the place of ZigZag's: the layer's orders are placed together."""

        def __init__(self, accelerator: Any, layer: Any, spatial: Any, order: Any, kind: Any) -> None:
            self.orders, self.order = layer.orders, order

        def run(self) -> Placed:
            if self.orders.turned(self.order):
                raise allocation.MemoryTooSmallException  # which the search passes over
            try:
                placed: Placed = self.orders.place(self.order)
            except DoesNotFitError:
                raise allocation.MemoryTooSmallException from None
            return placed

    engine = _copy("zigzag.opt.loma.engine", MemoryAllocator=Allocator)
    orders = _copy(
        "zigzag.stages.mapping.temporal_mapping_generator_stage",
        LomaEngine=engine.LomaEngine,
        MemoryAllocator=Allocator,
    )

    class Hierarchy(hierarchies.MemoryHierarchy):  # type: ignore[misc, name-defined]
        """One that no longer grows."""

        def topological_sort(self) -> Iterator[Any]:
            return iter(self.order)

    class Level(levels.MemoryLevel):  # type: ignore[misc, name-defined]
        """Of memories that all differ: each is equal to itself alone."""

        __eq__ = object.__eq__
        __hash__ = levels.MemoryLevel.__hash__

    class Best(_module("zigzag.stages.stage").Stage):  # type: ignore[misc]
        """The last stage, for a layer and a spatial mapping."""

        def is_leaf(self) -> bool:
            return True

        def run(self) -> Iterator[tuple[Any, None]]:
            yield _best(**self.kwargs), None

    return SimpleNamespace(
        best=Best, hierarchy=Hierarchy, level=Level, orders=orders, evaluation=Evaluation, constants=constants
    )


def _best(
    *, accelerator: Any, cheap_accelerator: Any, layer: Any, spatial_mapping: Any, spatial_mapping_int: Any,
    temporal_mapping_type: Any, access_same_data_considered_as_no_access: bool, **options: Any,
) -> Any:  # fmt: skip
    """ZigZag's evaluation of the best order of loops: of the least latency, of those the least energy, of those the
    first."""
    copies = _copies()
    same = {"access_same_data_considered_as_no_access": access_same_data_considered_as_no_access}
    cheap, spatial, whole = _cheap((layer, spatial_mapping, spatial_mapping_int))
    if temporal_mapping_type != _module("zigzag.mapping.temporal_mapping").TemporalMappingType.UNEVEN:
        raise DifferentError("memories that share their loops")
    cheap.windows, cheap.decoupled = {}, {}  # for _decoupled and _products
    orders = cheap.orders = Orders(
        cheap_accelerator.memory_hierarchy, cheap, spatial,
        sizes=_module("zigzag.workload.layer_attributes").LayerDimSizes, output=copies.constants.OUTPUT_MEM_OP,
        final_bits=cheap.operand_precision.final_output_precision, outermost=cheap_accelerator.outermost,
    )  # fmt: skip
    if spatial.mapping_dict_origin == whole.mapping_dict_origin:
        whole = spatial
    given = SimpleNamespace(mapping_dict_origin=whole)  # a mapping takes the object as well as what it was made of
    stage = copies.orders.TemporalMappingGeneratorStage(
        [None], accelerator=cheap_accelerator, layer=cheap, spatial_mapping=spatial,
        temporal_mapping_type=temporal_mapping_type, **options,
    )  # fmt: skip
    mapping = _module("zigzag.mapping.temporal_mapping").TemporalMapping
    found: dict[Any, Any] = {}
    for placed in stage.generate_temporal_mappings():
        if placed.key not in found:
            found[placed.key] = copies.evaluation(
                accelerator=cheap_accelerator, layer=cheap, spatial_mapping=spatial, spatial_mapping_int=given,
                temporal_mapping=mapping(orders.levels(placed), cheap, temporal_mapping_type), **same,
            ), placed.order  # fmt: skip
    least = min(e.latency_total2 for e, _ in found.values())
    energy, order = min(((e.energy(), o) for e, o in found.values() if e.latency_total2 == least), key=lambda x: x[0])
    again = _module("zigzag.opt.loma.memory_allocator").MemoryAllocator(
        accelerator, layer, spatial_mapping, order, temporal_mapping_type
    )
    price = _module("zigzag.cost_model.cost_model").CostModelEvaluation(
        accelerator=accelerator, layer=layer, spatial_mapping=spatial_mapping, spatial_mapping_int=spatial_mapping_int,
        temporal_mapping=again.run(), **same,
    )  # fmt: skip
    if (price.latency_total2, price.energy_total) != (least, energy):
        raise DifferentError(f"{least}, {energy} here; {price.latency_total2}, {price.energy_total} there")
    return price
