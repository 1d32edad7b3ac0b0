"""A predictor on disk: a folder of three files, no pickle, nothing that can run.

- ``manifest.json``: format version, target, models, card;
- ``model.safetensors``: all arrays;
- ``SHA256SUMS``: the checksums of both, in the format of ``sha256sum``.

Loading checks the checksums first, then every field: what is missing, of another shape or kind, out of range, cyclic
or not finite is refused by name. Loading needs numpy and safetensors only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from foretell.errors import PredictorError, UsageError
from foretell.models.accelerators import closed_form
from foretell.models.block import BlockModel
from foretell.models.features import DOMAIN_WIDTH, NAMES
from foretell.models.gnn import GraphNetwork
from foretell.models.mapping import MappingModel
from foretell.models.memory import MemoryModel
from foretell.models.network import Conformal, NetworkModel
from foretell.models.recalibration import Recalibration
from foretell.models.utilisation import Utilisation
from foretell.predictor.networks import GRAPH_METHODS
from foretell.predictor.stack import LAYER_MODELS, METHODS, Predictor
from foretell.predictor.transferred import Transferred
from foretell.records import METRICS, UTILISATIONS, Target

FORMAT = "foretell-predictor/1"
MANIFEST, MODEL, SUMS = "manifest.json", "model.safetensors", "SHA256SUMS"
_ENERGY = "energy/"  # before the names of the arrays of the predictor for energy
_TRANSFER = "transfer/"  # before those of what was learned from few measurements
MAX_BYTES = 256 * 2**20
Array = np.ndarray[Any, Any]


def save(predictor: Predictor, path: str | os.PathLike[str]) -> None:
    """Write ``predictor`` to the folder ``path``, replacing a predictor there; all of it or nothing.

    Raises:
        PredictorError: the predictor is not fitted, or the folder holds something else.
    """
    if not predictor.layers_ and predictor.memory_ is None and predictor.transfer_ is None:
        raise PredictorError("is not fitted", where=predictor.target.name, try_="fit() first")
    manifest, arrays = _state(predictor)
    write_folder(Path(path), {**manifest, "format": FORMAT}, arrays)


def write_folder(folder: Path, manifest: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a manifest and arrays as a folder that :func:`read_folder` reads; all of it or nothing.

    Raises PredictorError if the folder holds something else or cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    check_folder(folder)
    files = {
        MANIFEST: (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode(),
        MODEL: to_bytes({k: np.ascontiguousarray(v) for k, v in sorted(arrays.items())}),
    }
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    files[SUMS] = sums.encode()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        staging.chmod(0o755)
        for name, data in files.items():
            (staging / name).write_bytes(data)
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
    except OSError as e:
        raise PredictorError(f"cannot be written: {e.strerror}", where=str(folder)) from None


def _state(predictor: Predictor) -> tuple[dict[str, Any], dict[str, Array]]:
    """(JSON-able, arrays) of a predictor, and of the one for energy within it."""
    mapping, arrays = predictor.mapping_.to_dict()
    layers: dict[str, Any] = {}
    for name, layer in predictor.layers_.items():
        layers[name], more = layer.state()
        arrays.update(more)
    for name, network in predictor.networks_.items():
        arrays.update({f"{name}.{k}": v for k, v in network.state().items()})
    for i, g in enumerate(sorted(predictor.domain_)):
        arrays[f"domain.{i}"] = predictor.domain_[g]
    blocks = None
    if predictor.blocks_ is not None:
        blocks, more = predictor.blocks_.state()
        arrays.update(more)
    graph_networks: dict[str, Any] = {}
    for name, learned in (("gnn", predictor.gnn_), ("residual", predictor.residual_)):
        if learned is not None:
            graph_networks[name], more = learned.state(f"{name}.")
            arrays.update(more)
    energy = None
    if predictor.energy_ is not None:
        energy, more = _state(predictor.energy_)
        arrays.update({f"{_ENERGY}{k}": v for k, v in more.items()})
    transfer = None  # most predictors, and those of older versions, have none
    if predictor.transfer_ is not None:
        transfer, more = predictor.transfer_.state()
        arrays.update({f"{_TRANSFER}{k}": v for k, v in more.items()})
    manifest = {
        "target": asdict(predictor.target),
        "features": list(NAMES),
        "closed_form": _form_of(predictor.target),
        "mapping": mapping,
        "layers": layers,
        "blend": list(predictor.blend_),
        "networks": sorted(predictor.networks_),
        "blocks": blocks,
        "memory": predictor.memory_.state() if predictor.memory_ is not None else None,
        "energy": energy,
        **({} if transfer is None else {"transfer": transfer}),
        "conformal": {k: [c.quantile, c.level, c.count] for k, c in predictor.conformal_.items()},
        "domain": sorted(predictor.domain_),
        "unit": predictor.unit_.to_dict() if predictor.unit_ is not None else None,
        "card": predictor.card,
    }
    if predictor.utilisation_ is not None:
        manifest["utilisation"] = predictor.utilisation_.state()
    if graph_networks:
        manifest["graph_networks"], manifest["chosen"] = graph_networks, predictor.chosen_
    return manifest, arrays


def _form_of(target: Target) -> str:
    """Name of the closed form that a target's predictor is fitted on, empty if there is none."""
    form = closed_form(target)
    return form.name if form is not None else ""


def check_folder(folder: Path) -> None:
    """Raise UsageError if a predictor cannot be saved to ``folder``: it holds something else, or cannot be written."""
    if folder.exists() and not folder.is_dir():
        raise UsageError("is not a folder", where=str(folder), try_="another --output")
    if folder.is_dir() and {f.name for f in folder.iterdir()} - {MANIFEST, MODEL, SUMS}:
        raise UsageError("the folder holds something else", where=str(folder), try_="another --output")
    parent = next(p for p in folder.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"{parent} cannot be written", where=str(folder), try_="another --output")


def load(path: str | os.PathLike[str]) -> Predictor:
    """Read the predictor in the folder ``path``.

    Raises:
        PredictorError: a file is missing, changed, malformed or out of range; the message names the field.
    """
    folder = Path(path)
    manifest, arrays = read_folder(folder, FORMAT)
    try:
        return _restore(manifest, arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise PredictorError(f"is malformed ({type(e).__name__}: {e})", where=f"{folder.name}/{MANIFEST}") from None


def read_folder(folder: Path, form: str = FORMAT) -> tuple[dict[str, Any], dict[str, Array]]:
    """Manifest and arrays of a folder in the format ``form``. Raises PredictorError if it is corrupt or another's."""
    manifest_bytes, model_bytes = _read(folder)
    try:
        manifest = json.loads(manifest_bytes)
    except (ValueError, RecursionError):
        raise PredictorError("is not JSON", where=f"{folder.name}/{MANIFEST}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != form:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise PredictorError(f"has format {found!r}, this foretell reads {form!r}", where=MANIFEST, try_="a newer foretell")
    return manifest, _arrays(model_bytes)


def _read(folder: Path) -> tuple[bytes, bytes]:
    files: dict[str, bytes] = {}
    for name in (SUMS, MANIFEST, MODEL):
        file = folder / name
        try:
            if file.stat().st_size > MAX_BYTES:
                raise PredictorError(f"is over {MAX_BYTES} bytes", where=f"{folder.name}/{name}")
            files[name] = file.read_bytes()
        except OSError as e:
            raise PredictorError(
                f"cannot be read: {e.strerror}",
                where=f"{folder.name}/{name}",
                try_="a folder that foretell build wrote",
            ) from None
    listed: dict[str, str] = {}
    for line in files[SUMS].decode("ascii", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        listed[name] = digest
    if set(listed) != {MANIFEST, MODEL} or files[SUMS] != "".join(f"{d}  {n}\n" for n, d in listed.items()).encode():
        raise PredictorError("is malformed", where=f"{folder.name}/{SUMS}", try_="a fresh copy")
    for name in (MANIFEST, MODEL):
        if listed.get(name) != hashlib.sha256(files[name]).hexdigest():
            raise PredictorError("does not match its checksum", where=f"{folder.name}/{name}", try_="a fresh copy")
    return files[MANIFEST], files[MODEL]


def _arrays(data: bytes) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        arrays: dict[str, Array] = from_bytes(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as e:
        raise PredictorError(f"is not a safetensors file ({e})", where=MODEL) from None
    return arrays


def _restore(manifest: Mapping[str, Any], arrays: Mapping[str, Array], nested: bool = False) -> Predictor:
    if manifest["features"] != list(NAMES):
        raise PredictorError("lists other features than this foretell computes", where="features", try_="rebuild it")
    t = manifest["target"]
    target = Target(str(t["name"]), str(t["backend"]), str(t["precision"]), int(t["threads"]), str(t["device"]))
    if manifest["closed_form"] != _form_of(target):
        raise PredictorError(
            f"{target.name} was fitted on another closed form of its device", where="closed_form", try_="rebuild it"
        )
    kept = LAYER_MODELS if manifest["layers"] else ()  # a predictor of memory alone has none
    layers = {name: LAYER_MODELS[name].restore(manifest["layers"][name], arrays) for name in kept}
    networks = {}
    for name in manifest["networks"]:
        if name not in METHODS:
            raise PredictorError(f"names an unknown method {name!r}", where="networks")
        prefix = f"{name}."
        networks[name] = NetworkModel.restore(
            {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        )
    blend = tuple(float(b) for b in manifest["blend"])
    if len(blend) != 3 or not np.isfinite(blend).all() or min(blend) < 0 or abs(sum(blend) - 1) > 1e-6:
        raise PredictorError(f"has impossible weights {blend}", where="blend")
    conformal = {}
    for metric, (quantile, level, count) in manifest["conformal"].items():
        values = (float(quantile), float(level))
        if not np.isfinite(values).all() or values[0] <= 0 or not 0 < values[1] < 1:
            raise PredictorError(f"has impossible values {values}", where=f"conformal.{metric}")
        conformal[str(metric)] = Conformal(values[0], values[1], int(count))
    domain = {}
    for i, g in enumerate(manifest["domain"]):
        a = arrays.get(f"domain.{i}")
        if a is None or a.shape != (2, DOMAIN_WIDTH) or a.dtype.kind != "f" or not np.isfinite(a).all():
            raise PredictorError("is missing or malformed", where=f"domain.{i}")
        domain[str(g)] = a
    blocks = manifest["blocks"]
    if blocks is None and "block.rates" in arrays:
        raise PredictorError("is missing", where="blocks")
    memory = manifest["memory"]
    energy = None
    if manifest["energy"] is not None:
        if nested:
            raise PredictorError("holds another predictor for energy", where="energy")
        part = {k.removeprefix(_ENERGY): v for k, v in arrays.items() if k.startswith(_ENERGY)}
        energy = _restore(manifest["energy"], part, nested=True)
    utilisation = manifest.get("utilisation")  # only where the backend tells busy times
    if utilisation is None and set(conformal) & set(UTILISATIONS):
        raise PredictorError("is missing", where="utilisation")
    graph_networks = _graph_networks(manifest.get("graph_networks", {}), arrays, target.name)
    chosen = manifest["chosen"] if graph_networks else {}
    for metric, method in dict(chosen).items():
        if method not in graph_networks or f"{target.name}/{metric}" not in graph_networks[method].heads:
            raise PredictorError(f"leaves {metric} to a network that is not there", where="chosen")
    transfer = None
    if "transfer" in manifest:
        part = {k.removeprefix(_TRANSFER): v for k, v in arrays.items() if k.startswith(_TRANSFER)}
        transfer = Transferred.restore(manifest["transfer"], part)
    card = manifest["card"]
    if not isinstance(card, dict):
        raise PredictorError("is not an object", where="card")
    return Predictor(
        target=target,
        mapping_=MappingModel.from_dict(manifest["mapping"], arrays),
        layers_=layers,
        blend_=blend,
        networks_=networks,
        blocks_=None if blocks is None else BlockModel.restore(blocks, arrays),
        gnn_=graph_networks.get("gnn"),
        residual_=graph_networks.get("residual"),
        chosen_=dict(chosen),
        memory_=None if memory is None else MemoryModel.restore(memory),
        of_energy=nested,
        energy_=energy,
        utilisation_=None if utilisation is None else Utilisation.restore(utilisation),
        transfer_=transfer,
        conformal_=conformal,
        domain_=domain,
        unit_=None if manifest["unit"] is None else Recalibration.from_dict(manifest["unit"]),
        card=card,
    )


def _graph_networks(data: Any, arrays: Mapping[str, Array], target: str) -> dict[str, GraphNetwork]:
    """The graph networks by method; a predictor written before there were any has none."""
    there = {m for m in GRAPH_METHODS if f"{m}.in.w" in arrays}
    if not isinstance(data, dict) or not there <= set(data) <= set(GRAPH_METHODS):
        raise PredictorError("is malformed", where="graph_networks")
    out = {}
    for name, about in data.items():
        network = GraphNetwork.restore(about, arrays, f"{name}.")
        if network.residual != (name == "residual"):
            raise PredictorError("is of the other kind", where=f"{name}.residual")
        if not {h.rpartition("/")[2] for h in network.heads} <= set(METRICS) or any(
            h.rpartition("/")[0] != target for h in network.heads
        ):
            raise PredictorError(f"has heads that are not of {target}", where=f"{name}.heads")
        out[name] = network
    return out
