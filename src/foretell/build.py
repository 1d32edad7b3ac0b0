"""The build journey: plan, measure, fit, judge, save. The one place where the two halves meet, at measurement rows."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from foretell import __version__, backends, devices
from foretell.api import load, zoo_bytes, zoo_names
from foretell.backends import remote
from foretell.backends.contract import RunOptions
from foretell.bench import farm, protocol
from foretell.bench.campaign import Progress, Settings, run_campaign, worker_cpus
from foretell.devices import Device
from foretell.errors import FitError, MeasurementError, TargetError, UsageError
from foretell.formats import read
from foretell.formats.onnx_write import write_onnx
from foretell.generate.plan import MIX, SECONDS_PER_ENTRY, Entry, make_plan
from foretell.graph.ir import Graph
from foretell.host import cpu_name as cpu_name
from foretell.models.recalibration import choose
from foretell.predictor.evaluate import FAMILIES
from foretell.predictor.judge import judge
from foretell.predictor.stack import Predictor
from foretell.records import Measurement, Target
from foretell.store import Store
from foretell.store import graph_hash as graph_hash

# Share of the budget for the real networks that judge the predictor; they train nothing but the intervals.
_JUDGE_SHARE = 0.25
_CHOICE = 3  # times as many benchmarks as fit, where they are chosen as it goes
_ROUND, _ROUND_S = 0.12, 45.0  # share of the budget, and seconds, after which the models are asked again
_MOST_DOUBTED = 400  # benchmarks that are looked at in a round
_OPTIONS = RunOptions(seconds=0.2)
_PATIENCE_S = 6.0  # that a process waits for quiet moments
_PATIENT = RunOptions(seconds=0.1, patience_s=_PATIENCE_S)
_PATIENT_PROCESSES = 2  # the two lowest decide; where they differ there are more
SECONDS_PER_ESTIMATE = 0.5  # a vendor's compiler on a small network
Tell = Callable[[str, float, float | None, str], None]  # stage, share done, seconds left, text


@dataclass(frozen=True)
class Plan:
    """What a build will measure."""

    target: Target
    minutes: float
    seed: int
    workers: int
    entries: tuple[Entry, ...]
    judges: tuple[str, ...]
    processes: int = protocol.PROCESSES
    signal: str = ""  # which excitation signal drives all benchmarks; none: networks and packs, mixed
    until_percent: float = 0.0  # stop once networks held out are told to this error; 0: use all of the budget
    patient: bool = False  # measure in quiet moments, by :data:`foretell.bench.protocol.LOWEST`

    @property
    def rule(self) -> str:
        """The protocol of its rows."""
        return protocol.LOWEST if self.patient else protocol.PROTOCOL

    @property
    def campaign(self) -> str:
        """Name of the campaign in the store; the same plan resumes the same campaign."""
        until = f"-until{self.until_percent:g}" if self.until_percent else ""
        excite = f"-{self.signal}" if self.signal else ""
        patient = "-patient" if self.patient else ""
        return f"{self.target.name}-{self.minutes:g}min-seed{self.seed}{excite}{until}{patient}"


@dataclass(frozen=True)
class Built:
    """Outcome of a build."""

    predictor: Predictor
    rows: list[dict[str, Any]]
    noise_floor: float | None
    wall_s: float


def plan_build(
    target: str, *, minutes: float, precision: str = "", threads: int = 1, seed: int = 0, until_percent: float = 0.0,
    signal: str = "", scheduler: str | None = None, patient: bool = False,
) -> Plan:  # fmt: skip
    """Plan a build. With ``until_percent`` there are more benchmarks than fit, to choose from as it goes; with ``signal``
    they are layers whose dimensions an excitation signal drives, which is what flydels are identified from. ``patient``:
    what is measured waits for quiet moments; estimates never have to.

    With ``scheduler``, for the workers that it has now; raises as :func:`foretell.bench.farm.run_farm`.
    Raises TargetError or UsageError.
    """
    backend, chosen = backends.resolve(target, precision, threads)
    workers = len(worker_cpus(chosen)) if scheduler is None else max(1, farm.slots(scheduler, chosen))
    each = getattr(backend, "seconds_each", SECONDS_PER_ESTIMATE)
    seconds = each if backend.estimate else SECONDS_PER_ENTRY
    choice = _CHOICE if until_percent else 1
    spaces = (f"excite-{signal}",) if signal else backend.spaces
    mix = ((spaces[0], 1.0),) if signal else MIX
    entries = make_plan(
        minutes * choice * (1 - _JUDGE_SHARE), workers=workers, seed=seed, mix=mix, spaces=spaces, seconds=seconds
    )
    judges = _judges(minutes * 60 * workers * _JUDGE_SHARE, each if backend.estimate else None)
    patient = patient and not backend.estimate
    processes = 1 if backend.estimate else _PATIENT_PROCESSES if patient else protocol.PROCESSES
    return Plan(chosen, minutes, seed, workers, tuple(entries), judges, processes, signal, until_percent, patient)


def enqueue(store: Store, campaign: str, models: Sequence[tuple[str, str, str, bytes]], processes: int) -> None:
    """Add (name, family, source, bytes) to the store and the campaign."""
    jobs = []
    for name, family, source, data in models:
        key = graph_hash(data)
        store.add_graph(key, name, family, source, data)
        jobs.append((key, processes))
    store.add_jobs(campaign, jobs)


def measure_plan(store: Store, plan: Plan, tell: Tell, scheduler: str | None = None) -> None:
    """Measure the plan's graphs within the budget, on the workers of ``scheduler`` if given. Resumes what is there.

    The real networks are spread among the generated ones, so that drift of the machine meets both alike.
    """
    start = time.monotonic()
    budget = plan.minutes * 60
    if not store.counts(plan.campaign):
        judges = [(zoo_bytes(n), n) for n in plan.judges]
        models: list[tuple[str, str, str, bytes]] = []
        within = len(plan.entries) / (_CHOICE if plan.until_percent else 1)  # entries that will be measured, or so
        every = max(1, int(0.7 * within / max(len(judges), 1)))
        for i, entry in enumerate(plan.entries):
            models.append((entry.name, f"generated:{entry.space}", "generated", write_onnx(entry.graph())))
            if i % every == every - 1 and judges:
                data, name = judges.pop()
                models.append((name, FAMILIES.get(name, name), "zoo", data))
            tell("planning", (i + 1) / len(plan.entries), None, entry.name)
        models += [(n, FAMILIES.get(n, n), "zoo", d) for d, n in judges]
        enqueue(store, plan.campaign, models, plan.processes)
    elif not {"pending", "leased"} & set(store.counts(plan.campaign)):
        # All is measured. Rows that the machine's other work spoilt are made again, the rest stands.
        rows = _rows(store, plan)
        if sum(m.verdict == "unstable" for m in rows) > 0.3 * len(rows):
            store.reopen(plan.campaign, plan.target.name, ("unstable",), plan.rule)

    def report(p: Progress) -> None:
        share = max(p.elapsed_s / budget, (p.done + p.failed) / max(p.total, 1))
        tell("measuring", min(1.0, share), p.remaining_s, f"{p.done} done, {p.failed} failed, last {p.last}")

    while True:
        left = budget - (time.monotonic() - start)
        settings = Settings(
            options=_PATIENT if plan.patient else _OPTIONS,
            seconds=max(5.0, min(left, max(_ROUND_S, _ROUND * budget)) if plan.until_percent else left),
            job_seconds=1200.0 if plan.processes == 1 else 120.0,
            rule=plan.rule,
        )  # fmt: skip
        farm.run_farm(store, plan.campaign, plan.target, settings, report, scheduler=scheduler)
        waiting = "pending" in store.counts(plan.campaign)
        if (
            not plan.until_percent
            or not waiting
            or time.monotonic() - start >= budget
            or _good_enough(store, plan, tell)
        ):
            return


def _rows(store: Store, plan: Plan) -> list[Measurement]:
    """The plan's rows; another plan may have measured the same networks by another protocol."""
    return [m for m in store.measurements(plan.target.name, plan.campaign) if m.protocol == plan.rule]


def _good_enough(store: Store, plan: Plan, tell: Tell) -> bool:
    """Whether networks held out are told well enough; if not, what the models doubt most is measured next."""
    usable = protocol.correct_drift([m for m in _rows(store, plan) if m.verdict != "failed"])
    train = [m for m in usable if m.source == "generated"]
    try:
        predictor = Predictor(plan.target).fit(train, graphs_of(store, train))
    except FitError:
        return False  # too few yet
    held_out = float(predictor.card.get("held_out_percent", np.inf))
    tell("choosing", min(1.0, plan.until_percent / max(held_out, 1e-9)), None, f"{held_out:.1f} % on networks held out")
    if held_out <= plan.until_percent:
        return True
    waiting = store.pending(plan.campaign)
    generated = [g for g, source in waiting if source == "generated"][:_MOST_DOUBTED]
    judges = [g for g, source in waiting if source != "generated"]
    doubt = predictor.doubt([read(store.model(g)) for g in generated])
    order = [generated[int(i)] for i in np.argsort(-doubt)]
    every = max(1, len(order) // (2 * (len(judges) + 1)))
    for k, judge_ in enumerate(judges):  # among the first half, so that early ends are judged, too
        order.insert(min((k + 1) * (every + 1) - 1, len(order)), judge_)
    store.reorder(plan.campaign, order)
    return False


def _judges(seconds: float, each: float | None) -> tuple[str, ...]:
    """Zoo networks that ``seconds`` of one core's time can measure, cheapest first, then shuffled.

    ``each``: seconds of an estimate of a small network; None where networks are timed.
    """
    chosen: list[str] = []
    for macs, name in sorted((_macs(zoo_bytes(n), n), n) for n in zoo_names()):
        # Three processes of some thirty runs each, at about 60 GMACs a second, and the start of a session.
        seconds -= 2 * each if each is not None else protocol.PROCESSES * (0.8 + 30 * macs / 60e9)
        if seconds < 0:
            break
        chosen.append(name)
    order = np.random.default_rng(0).permutation(len(chosen))
    return tuple(chosen[int(i)] for i in order)


def _macs(data: bytes, name: str) -> int:
    from foretell.graph.cost import macs

    return macs(read(data, name=name))


def graphs_of(store: Store, measurements: Sequence[Measurement]) -> dict[str, Graph]:
    """The graphs of measurements, by hash."""
    return {m.graph: read(store.model(m.graph), name=m.name) for m in measurements}


def fit_and_judge(
    target: Target, train: Sequence[Measurement], test: Sequence[Measurement], graphs: dict[str, Graph], tell: Tell
) -> Built:
    """Fit on ``train``, judge on ``test`` leave-family-out, then set the intervals on all of ``test``.

    The rows' drift is corrected already.
    """
    start = time.monotonic()
    begun = time.monotonic()

    def report(what: str, share: float) -> None:
        passed = time.monotonic() - begun
        tell("fitting", share, passed / share * (1 - share) if share > 0.2 else None, what)

    predictor = Predictor(target).fit(train, graphs, report=report)
    rows = judge(predictor, train, test, graphs)
    real = [m for m in test if m.verdict == "ok"]
    if len(real) >= 10:
        predictor.calibrate(real, graphs)
    floor = protocol.noise_floor(real)
    pair = protocol.pair_noise(real or train)
    example = next((m for m in (*train, *test) if m.environment), None)
    main, memory = (_shown(rows, metric) for metric in ("latency_s", "peak_memory_bytes"))
    predictor.card.update(
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
        foretell=__version__,
        protocol=example.protocol if example else protocol.PROTOCOL,
        runtime=str(example.environment.get("runtime", "")) if example else "",
        cpu=str(example.environment.get("cpu") or cpu_name()) if example else cpu_name(),
        python=platform.python_version(),
        test_networks=len(real),
        latency=main.to_dict() if main else None,
        peak_memory=memory.to_dict() if memory else None,
        # A row's figure is a median of three processes: its noise is the noise of one over the root of three.
        noise_floor_percent=round((floor if floor is not None else (pair or 0.0) / 3**0.5) * 100, 2),
    )
    return Built(predictor, rows, predictor.card["noise_floor_percent"], time.monotonic() - start)


def _shown(rows: Sequence[dict[str, Any]], metric: str) -> Any:
    """The score of a predictor's card: on real networks, where those of search spaces were judged, too."""
    scores = {r["part"]: r["score"] for r in rows if r["estimator"] == "default" and r["metric"] == metric}
    return scores.get("real", scores.get("all"))


def worse_than_refined(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the default is worse than the refined roofline on the networks that judged it."""
    by = {r["estimator"]: r["score"].mape for r in rows if r["metric"] == "latency_s" and r["part"] == "all"}
    return "default" in by and by["default"] > by["refined_roofline"]


def build(
    plan: Plan, store: Store, output: Path, tell: Tell, *, force: bool = False, scheduler: str | None = None
) -> Built:
    """The whole journey. Raises FitError for a predictor worse than the refined roofline unless ``force``."""
    measure_plan(store, plan, tell, scheduler)
    usable = protocol.correct_drift([m for m in _rows(store, plan) if m.verdict != "failed"])
    train = [m for m in usable if m.source == "generated"]
    test = [m for m in usable if m.source == "zoo"]
    built = fit_and_judge(plan.target, train, test, graphs_of(store, usable), tell)
    if worse_than_refined(built.rows) and not force:
        raise FitError(
            "the predictor is worse than the refined roofline, and was not saved", try_="more --minutes, or --force"
        )
    built.predictor.save(output)
    return built


def measure_models(
    store: Store, target: Target, models: Sequence[tuple[str, bytes]], processes: int, tell: Tell, patient: bool = False
) -> list[Measurement]:
    """Measure given (name, bytes) once each. What the store has stands, unless it failed or was unstable: a command
    that is given again measures that anew. ``patient``: in quiet moments (:data:`foretell.bench.protocol.LOWEST`)."""
    keys = {graph_hash(d) for _, d in models}
    settings = Settings(RunOptions(patience_s=_PATIENCE_S), rule=protocol.LOWEST) if patient else Settings()
    what = "".join([target.name, settings.rule, str(processes), *sorted(keys)])
    campaign = "measure-" + hashlib.sha256(what.encode()).hexdigest()[:12]
    if not {"pending", "leased"} & set(store.counts(campaign)):
        store.reopen(campaign, target.name, ("unstable", "failed"), settings.rule)
    # Networks of one search space are one family.
    enqueue(store, campaign, [(n, n.partition("/")[0], "user", d) for n, d in models], processes)

    def report(p: Progress) -> None:
        tell("measuring", (p.done + p.failed) / max(p.total, 1), p.remaining_s, p.last)

    run_campaign(store, campaign, target, settings, report)
    rows = [m for m in store.measurements(target.name, campaign) if m.graph in keys and m.protocol == settings.rule]
    if not rows:
        raise MeasurementError("nothing was measured", where=target.name, try_="another --store")
    names = {graph_hash(d): n for n, d in models}
    return [replace(m, name=names[m.graph]) for m in rows]


_POOL = 48  # generated networks that a recalibration chooses from
_QUICK_S = 0.06  # of a network that is run for it


def recalibrate(name: str, store: Store, output: Path, tell: Tell, *, runs: int = 10, seed: int = 0) -> Predictor:
    """Adapt a predictor to this unit from ``runs`` local runs of generated networks, chosen for what they tell.

    It is saved to ``output`` if it is better than before by more than chance (``unit_.needed``).

    Raises:
        UsageError: the target is an estimate of a tool, which is the same on every unit, or has no latency.
        FitError: too few usable runs.
    """
    predictor = load(name)
    backend = backends.get(predictor.target.backend)
    if backend.estimate:
        raise UsageError(f"{predictor.target.name} is a tool's estimate: it is the same on every unit")
    backend.version()
    # Seeds apart from those of any plan.
    plan = make_plan(60.0, seed=900 + seed, spaces=backend.spaces)[:_POOL]
    pool = []
    for i, entry in enumerate(plan):
        tell("planning", (i + 1) / len(plan), None, entry.name)
        pool.append((entry.name, write_onnx(entry.graph())))
    graphs = [read(data, name=label) for label, data in pool]
    parts = predictor.by_bound(graphs)
    quick = [i for i in range(len(pool)) if 2e-4 < parts[i].sum() < _QUICK_S] or list(range(len(pool)))
    chosen = [quick[i] for i in choose(parts[quick], runs)]
    rows = measure_models(store, predictor.target, [pool[i] for i in chosen], protocol.PROCESSES, tell)
    known = {graph_hash(pool[i][1]): graphs[i] for i in chosen}
    good = [m for m in rows if m.verdict == "ok" and m.latency_s]
    own = predictor.recalibrated([known[m.graph] for m in good], np.array([m.latency_s for m in good], float))
    if own.unit_ is not None and own.unit_.needed:
        own.save(output)
    return own


def add_device(file: Path, *, check: bool = True, force: bool = False) -> tuple[Device, str]:
    """Add the device that a TOML file describes; returns it, and what was found there (empty without ``check``).

    Raises:
        TargetError: the file is no device file, or its name stands for something else already.
        DeviceError: the device cannot be used as it is described; then it is not added.
    """
    device = devices.read_device(file)
    if backends.taken(device.name):
        raise TargetError(f"the name {device.name!r} stands for another target", where=str(file), try_="another name")
    remote.target_of(device)
    found = remote.describe(device) if check else ""
    devices.add(file, force=force)
    return device, found
