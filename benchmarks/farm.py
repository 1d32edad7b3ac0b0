"""What labelling costs, on this machine and on a farm, and what a farm survives.

    python benchmarks/farm.py labels --cores 0,1      # Vela labels: one core and two, the campaign's loop and a farm
    python benchmarks/farm.py overhead --cores 0      # jobs that take no time: what is left is overhead
    python benchmarks/farm.py scaling --cores 0       # jobs that wait a second: does the farm keep many workers busy?
    python benchmarks/farm.py idle                    # what Dask's processes take while nothing happens
    python benchmarks/farm.py kills --jobs 500        # worker, scheduler and client killed -9, at random

Each part replaces its own rows in results/farm.json, and farm.md is written from all of them. Processor time is what our
processes took by the kernel's account, in whatever company; the column "others" says how many cores other processes kept
busy meanwhile: wall-clock figures mean little unless it is near 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from common import RESULTS, provenance, row, table, write

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.farm_sides import Cluster, children, problems
from tests.farm_sides import table as outcome

from foretell import backends
from foretell.backends.contract import RunOptions
from foretell.bench.campaign import Settings, run_campaign
from foretell.bench.farm import run_farm, slots
from foretell.build import enqueue
from foretell.datasets.edge import onnx_file
from foretell.formats.onnx_write import write_onnx
from foretell.generate.builder import Builder
from foretell.generate.tasks.sampler import sample
from foretell.records import Target
from foretell.store import Store

TARGET = "ethos-u55-128"
FAKE = Target("fake-f32-1t", "fake")
_TICK = os.sysconf("SC_CLK_TCK")


def networks(count: int) -> list[tuple[str, str, str, bytes]]:
    """The first networks of foretell-edge, drawn anew."""
    return [(d.name, d.spec.space, "generated", onnx_file(d.spec)) for d in islice(sample(0), count)]


def tiny(count: int) -> list[tuple[str, str, str, bytes]]:
    """Networks of one convolution, no two alike."""
    out = []
    for i in range(count):
        b = Builder(f"tiny-{i}")
        b.output(b.conv(b.input((1, 3, 8, 8)), 1 + i, 3, act="relu"))
        out.append((f"tiny-{i}", "tiny", "generated", write_onnx(b.graph())))
    return out


def tree_s(pid: int) -> float:
    """Processor seconds of a process and of all below it, ended ones that were waited for included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(f) for f in fields[11:15]) / _TICK + sum(tree_s(c) for c in children(pid))


def busy_s() -> float:
    """Processor seconds that this machine has worked."""
    fields = [int(f) for f in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICK


def own_s() -> tuple[float, float]:
    """Processor seconds of this process, and of its children that have ended."""
    out = []
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        out.append(used.ru_utime + used.ru_stime)
    return out[0], out[1]


def timed(
    models: list[tuple[str, str, str, bytes]], target: Target, cores: list[int], farm: bool, fake: str = "{}"
) -> dict[str, Any]:
    """Label ``models`` with one worker a core; what it took."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["FORETELL_FAKE"] = fake
        store = Store(folder / "s.sqlite")
        enqueue(store, "c", models, 1)
        cluster = stack.enter_context(Cluster(folder, 0, device=0)) if farm else None
        scheduler = cluster.address if cluster else None
        pids: list[int] = []
        if cluster and scheduler:
            for core in cores:
                cluster.start_worker(core)
            while slots(scheduler, target) < len(cores):
                time.sleep(0.2)
            assert cluster.scheduler is not None
            pids = [cluster.scheduler.pid, *(w.pid for w in cluster.workers)]
        before, busy, own = [tree_s(p) for p in pids], busy_s(), own_s()
        start = time.perf_counter()
        counts = run_farm(
            store, "c", target, Settings(cpus=tuple((c,) for c in cores), job_seconds=600.0), scheduler=scheduler
        )
        wall = time.perf_counter() - start
        far = [tree_s(p) - b for p, b in zip(pids, before, strict=True)]
        client, child = (b - a for a, b in zip(own, own_s(), strict=True))
        others = (busy_s() - busy - sum(far) - client - child) / wall
        assert counts.get("done", 0) + counts.get("failed", 0) == len(models), counts
        inside = sum(m.device_seconds for m in store.measurements())
    return {
        "way": "farm" if farm else "campaign", "workers": len(cores), "jobs": len(models), "failed": counts.get("failed", 0),
        "wall_s": round(wall, 2), "label_cpu_s": round((sum(far[1:]) if farm else child) / len(models), 5),
        "scheduler_cpu_s": round(far[0] / len(models), 5) if farm else None,
        "client_cpu_s": round(client / len(models), 5), "inside_s": round(inside / len(models), 5),
        "others_cores": round(max(0.0, others), 2),
    }  # fmt: skip


def labels(a: argparse.Namespace) -> list[dict[str, Any]]:
    """Vela on networks of the data set: the plain loop and a farm, on one core and on all that are given."""
    models = networks(a.jobs or 300)
    target = backends.resolve(TARGET)[1]
    cores = [int(c) for c in a.cores.split(",")]
    out = []
    for farm in (False, True):
        for some in ([cores[-1]], cores) if len(cores) > 1 else ([cores[0]],):
            out.append({"part": "labels", **timed(models, target, some, farm)})
            print(out[-1], flush=True)
    return out


def overhead(a: argparse.Namespace) -> list[dict[str, Any]]:
    """A fake estimate that takes a millisecond: what is left is what the loop takes."""
    models = tiny(a.jobs or 1000)
    core = [int(a.cores.split(",")[-1])]
    out = []
    for farm in (False, True):
        out.append({"part": "overhead", **timed(models, FAKE, core, farm, '{"estimate": true}')})
        print(out[-1], flush=True)
    return out


def scaling(a: argparse.Namespace) -> list[dict[str, Any]]:
    """A fake estimate that waits for a second, and takes next to nothing of the processor, so that the workers can share
    a core: how well the farm keeps them busy."""
    core = int(a.cores.split(",")[-1])
    out = []
    for workers in (int(w) for w in a.workers.split(",")):
        models = tiny((a.jobs or 40) * workers)
        fake = json.dumps({"estimate": True, "sleep_s": 1.0})
        out.append({"part": "scaling", **timed(models, FAKE, [core] * workers, True, fake)})
        print(out[-1], flush=True)
    return out


def idle(a: argparse.Namespace) -> list[dict[str, Any]]:
    """Share of a core that a scheduler and a worker take while they wait, with Dask's profiler of threads and without."""
    out = []
    for profiler in (True, False):
        with tempfile.TemporaryDirectory() as name:
            switch = {"DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": str(profiler).lower()}
            with Cluster(Path(name), 0, device=0, **switch) as cluster:
                cluster.start_worker()
                os.environ["FORETELL_FAKE"] = '{"estimate": true}'
                while not slots(cluster.address, FAKE):
                    time.sleep(0.2)
                time.sleep(3.0)
                assert cluster.scheduler is not None
                pids = cluster.scheduler.pid, cluster.workers[0].pid
                before, start = [tree_s(p) for p in pids], time.perf_counter()
                time.sleep(30.0)
                wall = time.perf_counter() - start
                scheduler, worker = ((tree_s(p) - b) / wall for p, b in zip(pids, before, strict=True))
        out.append(
            {"part": "idle", "profiler": profiler, "scheduler_cores": round(scheduler, 4), "worker_cores": round(worker, 4)}
        )
        print(out[-1], flush=True)
    return out


def kills(a: argparse.Namespace) -> list[dict[str, Any]]:
    """A farm of two workers whose parts are killed -9 at random: its table is that of a quiet campaign."""
    models = tiny(a.jobs or 500)
    rng = random.Random(a.seed)
    done = dict.fromkeys(("worker", "scheduler", "client"), 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FORETELL_FAKE"] = "{}"
        quiet = Store(folder / "quiet.sqlite")
        enqueue(quiet, "c", models, 1)
        run_campaign(quiet, "c", FAKE, Settings(RunOptions(min_runs=3)))
        expected = outcome(quiet)
        os.environ["FORETELL_FAKE"] = json.dumps({"sleep_s": a.sleep, "log": str(folder / "log")})
        store = Store(folder / "s.sqlite")
        enqueue(store, "c", models, 1)
        finished: dict[str, Any] = {}
        lost = 0
        start = time.perf_counter()
        with Cluster(folder, 2) as cluster:
            command = [sys.executable, __file__, "client", "--store", str(folder / "s.sqlite"), "--scheduler", cluster.address]
            log = (folder / "client.log").open("ab")
            client = subprocess.Popen(command, stderr=log)
            while client.poll() != 0 or len(finished) < len(models):
                since, enough = time.perf_counter(), rng.uniform(2.0, a.every)
                while client.poll() is None and time.perf_counter() - since < enough:
                    time.sleep(0.05)
                now = outcome(store)
                lost += sum(now.get(g) != v for g, v in finished.items())
                finished = now
                if client.poll() is not None:
                    if client.returncode:  # killed, or the scheduler stayed away for too long
                        client = subprocess.Popen(command, stderr=log)
                    continue
                what = rng.choice(sorted(done))
                if what == "worker" and not cluster.kill_worker(rng.randrange(2)):
                    continue
                if what == "scheduler":
                    cluster.kill_scheduler()
                    time.sleep(rng.uniform(0.0, 3.0))
                    cluster.start_scheduler()
                if what == "client":
                    client.send_signal(signal.SIGKILL)
                    client.wait()
                done[what] += 1
                print(f"{len(finished)} of {len(models)} done, killed: {done}", flush=True)
            log.close()
        wrong = problems(store, "c", folder / "log")
        again = [n for _, _, n in (line.partition(" ") for line in (folder / "log").read_text().splitlines())]
        result = {
            "part": "kills", "jobs": len(models), "workers": 2, "wall_s": round(time.perf_counter() - start, 1),
            **{f"{k}_kills": v for k, v in done.items()}, "finished_rows_lost": lost,
            "labelled_again_after_finish": sum("again" in w for w in wrong), "problems": wrong,
            "table_equal": outcome(store) == expected,
            "repeated_in_flight": len([n for n in again if n != "reference"]) - len(models),
        }  # fmt: skip
    print(result, flush=True)
    return [result]


def client(a: argparse.Namespace) -> None:
    """The client that ``kills`` kills."""
    run_farm(Store(a.store), "c", FAKE, Settings(RunOptions(min_runs=3)), scheduler=a.scheduler)


def report(found: list[dict[str, Any]]) -> str:
    """The Markdown of all parts."""
    by: dict[str, list[dict[str, Any]]] = {}
    for f in found:
        by.setdefault(f["part"], []).append(f)
    text = f"# Labelling, on one machine and on a farm\n\n{provenance()}. Written by `benchmarks/farm.py`.\n"
    titles = ("way", "workers", "jobs", "failed", "wall s", "labels an hour", "processor s a label", "scheduler ms a job",
              "client ms a job", "cores busy with others")  # fmt: skip

    def lines(part: str) -> list[list[Any]]:
        return [
            [
                f["way"], f["workers"], f["jobs"], f["failed"], f["wall_s"], int(f["jobs"] / f["wall_s"] * 3600),
                f"{f['label_cpu_s']:.4f}", None if f["scheduler_cpu_s"] is None else f["scheduler_cpu_s"] * 1e3,
                f["client_cpu_s"] * 1e3, f["others_cores"],
            ]
            for f in by[part]
        ]  # fmt: skip

    if "labels" in by:
        text += f"\n## Vela labels ({TARGET}) of networks of foretell-edge\n\n" + table(titles, lines("labels"))
        for way in ("campaign", "farm"):
            rows = {f["workers"]: f for f in by["labels"] if f["way"] == way}
            if 1 in rows and 2 in rows:
                text += (
                    f"\nFrom 1 to 2 workers, {way}: {rows[1]['wall_s'] / rows[2]['wall_s']:.2f} times as many labels an hour "
                    f"by the clock; processor time a label {rows[2]['label_cpu_s'] / rows[1]['label_cpu_s']:.2f} times."
                    + (" More than twice: the machine was slower while one worked." if rows[1]["wall_s"] > 2 * rows[2]["wall_s"] else "")
                    + "\n"
                )
    if "overhead" in by:
        text += "\n## Overhead: a fake estimate that takes a millisecond\n\n" + table(titles, lines("overhead"))
        plain, far = (sum(f[k] or 0.0 for k in _PARTS) for f in by["overhead"])
        text += (
            f"\nProcessor time a job, all processes together: {plain * 1e3:.1f} ms in the campaign, {far * 1e3:.1f} ms on the "
            f"farm: a difference of {(far - plain) * 1e3:+.1f} ms. The start of the guarded children is in both.\n"
        )
    if "scaling" in by:
        text += "\n## Many workers: a fake estimate that waits for a second\n\n" + table(titles, lines("scaling"))
        first = by["scaling"][0]
        each = ", ".join(
            f"{f['workers']} workers {first['wall_s'] / first['jobs'] * f['jobs'] / f['wall_s']:.2f} times"
            for f in by["scaling"][1:]
        )
        text += f"\nLabels an hour by the clock, over those of one worker: {each}. The start of the first children is in it.\n"
    if "idle" in by:
        text += "\n## Dask's own processes, while nothing happens\n\n" + table(
            ("Dask's profiler of threads", "scheduler, % of a core", "worker, % of a core"),
            [["on" if f["profiler"] else "off", f["scheduler_cores"] * 100, f["worker_cores"] * 100] for f in by["idle"]],
        )
        text += (
            "\nA worker process takes this however many threads it has, and for as long as it lives: on a machine that others "
            "keep busy, a label takes longer, and the share above is larger than where it runs alone.\n"
        )
    if {"labels", "overhead", "idle"} <= set(by):
        text += on_paper(by)
    if "kills" in by:
        k = by["kills"][-1]
        text += (
            f"\n## Killed -9\n\n{k['jobs']} jobs of the fake device on two workers, whose parts were killed at random: workers "
            f"{k['worker_kills']} times, the scheduler {k['scheduler_kills']}, the client {k['client_kills']}. Finished rows "
            f"that were lost or changed: {k['finished_rows_lost']}. Networks that were labelled again after their row was "
            f"finished: {k['labelled_again_after_finish']}. The table equals that of an undisturbed campaign: "
            f"{'yes' if k['table_equal'] else 'NO'}. Labels that were repeated because what was in flight died: "
            f"{k['repeated_in_flight']}. {'; '.join(k['problems']) or 'No other problem'}.\n"
        )
    return text


_PARTS = ("label_cpu_s", "scheduler_cpu_s", "client_cpu_s")


def on_paper(by: dict[str, list[dict[str, Any]]]) -> str:
    """What large data sets cost with these figures."""
    plain = next(f for f in by["labels"] if f["way"] == "campaign" and f["workers"] == 1)
    client_s = next(f for f in by["labels"] if f["way"] == "farm" and f["workers"] == 1)["client_cpu_s"]
    scheduler_s = by["overhead"][1]["scheduler_cpu_s"]
    share = by["idle"][-1]["worker_cores"]
    each = plain["label_cpu_s"] / (1 - share) + scheduler_s + client_s
    out = []
    for count in (134_912, 10_000_000):
        hours = count * each / 3600
        out.append(
            [f"{count:,}", f"{hours:,.0f}", *(f"{hours / c:,.2f}" for c in (2, 64, 1000)), f"{count * client_s / 3600:,.2f}"]
        )
    return (
        f"\n## On paper\n\nA label is {plain['label_cpu_s']:.3f} s of a processor (the row of the campaign above: "
        f"{3600 / plain['label_cpu_s']:,.0f} networks an hour a core), a worker of one thread leaves {1 - share:.1%} of its core, the "
        f"scheduler takes {scheduler_s * 1e3:.1f} ms and the client {client_s * 1e3:.1f} ms. Computed, for one target, with no core "
        "waiting:\n\n"
        + table(("labels", "core-hours", "hours on 2 cores", "on 64", "on 1,000", "hours of the client"), out)
        + "\nThe client is one process, so no number of cores is quicker than its hours: it keeps about "
        f"{plain['label_cpu_s'] / client_s:,.0f} cores busy with such networks. Beyond that, several campaigns with a store of their "
        "own share the work. It also polls twice a second: where labels come slowly, as on a busy machine, more of that falls "
        "on each, and its figure is an upper bound.\n"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("part", choices=("labels", "overhead", "scaling", "idle", "kills", "client", "report"))
    arguments.add_argument("--cores", default="0", help="a worker each")
    arguments.add_argument("--jobs", type=int)
    arguments.add_argument("--workers", default="1,2,4,8", help="numbers of workers, for scaling")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--sleep", type=float, default=0.1, help="seconds of a job that is to be killed")
    arguments.add_argument("--every", type=float, default=8.0, help="most seconds between kills")
    arguments.add_argument("--store", type=Path)
    arguments.add_argument("--scheduler")
    a = arguments.parse_args()
    if a.part == "client":
        client(a)
        return
    new = [] if a.part == "report" else {"labels": labels, "overhead": overhead, "scaling": scaling, "idle": idle, "kills": kills}[a.part](a)
    path = RESULTS / "farm.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    rows = [r for r in rows if r["part"] != a.part]
    for f in new:
        target = TARGET if f["part"] == "labels" else FAKE.name
        rows.append({**row(benchmark=f"farm/{f['part']}", target=target, estimator=f.get("way")), **f})
    write("farm", rows, report(rows))


if __name__ == "__main__":
    main()
