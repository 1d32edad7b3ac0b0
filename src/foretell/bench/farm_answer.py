"""What a farm's workers answer is foreign, and checked like a foreign file. See :mod:`foretell.bench.farm`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from foretell.backends.remote import checked
from foretell.bench import protocol
from foretell.bench.farm_worker import Outcome
from foretell.errors import DeviceError, ForetellError
from foretell.formats import read
from foretell.store import Job
from foretell.version import VERSION

_ANSWER_BYTES = 64 * 2**20
_TEXT = 400


def opened(data: Any, where: str) -> tuple[dict[str, Any], str]:
    """The answer of a worker that is one of ours, and what it measures with: backend, version and processor.

    Raises:
        DeviceError: it is none, or of another version, or the worker refuses.
    """
    if not isinstance(data, bytes) or len(data) > _ANSWER_BYTES:
        raise DeviceError(f"a worker answered with {type(data).__name__}, not with an answer", where=where)
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise DeviceError(f"a worker answered {data[:80]!r}", where=where)
    if answer.get("foretell") != VERSION:
        raise DeviceError(
            f"a worker has foretell {str(answer.get('foretell'))[:20]}, here is {VERSION}", where=where,
            try_="the same version on both sides",
        )  # fmt: skip
    if "refused" in answer:
        raise DeviceError(f"a worker refuses: {str(answer['refused'])[:_TEXT]}", where=where)
    about = str(answer.get("runtime"))[:100]
    return answer, f"{about} on {str(answer['cpu'])[:100]}" if answer.get("cpu") else about


def checked_runs(
    answer: Mapping[str, Any], jobs: Sequence[Job], estimate: bool, profile: bool, where: str
) -> dict[str, dict[int, Outcome]]:
    """The runs of an answer, by graph and process. A run with impossible figures is an error of its network.

    Raises:
        DeviceError: a run of what was not asked for, one told twice, or something else than runs.
    """
    known = {j.graph: j for j in jobs}
    out: dict[str, dict[int, Outcome]] = {}
    nodes: dict[str, int] = {}
    try:
        for told in answer["runs"]:
            graph, process, error, seconds = told["graph"], told["process"], told["error"], float(told["seconds"])
            job = known[graph]
            extra = 0 if estimate else protocol.EXTRA_PROCESSES
            if (
                type(process) is not int
                or not 0 <= process < job.processes + extra
                or not isinstance(error, str)
                or bool(error) == (told["run"] is not None)
                or not (math.isfinite(seconds) and seconds >= 0)
                or process in out.setdefault(graph, {})
            ):
                raise ValueError
            run = None
            if not error:
                try:
                    if profile and graph not in nodes:
                        nodes[graph] = len(read(job.model, name=job.name).nodes)
                    run = checked(told["run"], nodes.get(graph, 0), job.name, timed=not estimate)
                    here = {"cpu": answer["cpu"]} if answer.get("cpu") else {}
                    run = replace(
                        run, environment=_plain({**run.environment, **here}),
                        warnings=tuple(str(w)[:_TEXT] for w in run.warnings[:20]),
                    )  # fmt: skip
                except ForetellError as e:  # impossible figures, or a model that cannot be read here
                    error = e.what
            out[graph][process] = (run, error[:_TEXT], seconds)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise DeviceError(f"a worker's answer is no answer to its block ({type(e).__name__})", where=where) from None
    return out


def _plain(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What an environment may hold: short texts, finite numbers, and short lists of these."""

    def good(v: Any) -> bool:
        if isinstance(v, list):
            return len(v) <= 1024 and all(isinstance(x, (int, float, str)) and good(x) for x in v)
        if isinstance(v, str):
            return 0 < len(v) <= _TEXT
        return isinstance(v, (bool, int)) or (isinstance(v, float) and math.isfinite(v))

    return {k: v for k, v in list(environment.items())[:100] if len(k) <= 100 and good(v)}
