"""Transfer models and adapted targets as JSON-able values and arrays, and back, with every field checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from foretell.errors import PredictorError
from foretell.models.transfer.gaussian import LEAST, MOST, Posterior, Setting
from foretell.models.transfer.model import SIZES, Adapted, TransferModel

Array = np.ndarray[Any, Any]
_PREFIX = "transfer."
_MOST_COLUMNS = 20_000


def to_state(model: TransferModel) -> tuple[dict[str, Any], dict[str, Array]]:
    """(JSON-able, arrays) of a fitted model. Weights are kept in single precision."""
    groups = list(model.columns_)
    arrays = {"rates": model.rates_, "known": model.known_.astype("f4"), "known_scale": model.known_scale_}
    for i, g in enumerate(groups):
        arrays[f"columns.{i}"] = model.columns_[g].astype("i4")
        arrays[f"scale.{i}"], arrays[f"middle.{i}"] = model.scale_[g], model.middle_[g]
    arrays["settings"] = np.array([[*s.theta, s.s2] for s in model.settings_])
    data = {
        "groups": groups, "plain": list(model.plain), "devices": list(model.devices_), "typical": model.typical_,
        "relative": model.relative_, "outliers": model.outliers_, "widen": list(model.widen_),
    }  # fmt: skip
    return data, {_PREFIX + k: v for k, v in arrays.items()}


def from_state(data: Any, arrays: Mapping[str, Array]) -> TransferModel:
    """Inverse of :func:`to_state`. Raises PredictorError on malformed or impossible values."""
    try:
        groups = [str(g) for g in data["groups"]]
        model = TransferModel(
            plain=tuple(str(g) for g in data["plain"]), devices_=tuple(str(d) for d in data["devices"]),
            typical_=float(data["typical"]), relative_=bool(data["relative"]), outliers_=float(data["outliers"]),
            widen_=tuple(float(w) for w in data["widen"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as e:
        raise PredictorError(f"is malformed ({type(e).__name__})", where="transfer") from None
    sound = np.isfinite([model.typical_, model.outliers_, *model.widen_]).all() and model.typical_ > 0
    sound &= 0 < model.outliers_ < 0.5 and len(model.widen_) == len(SIZES) and min(model.widen_) > 0
    if not sound or len(set(groups)) != len(groups) or len(groups) < 2 or len(model.devices_) < 1:
        raise PredictorError("holds an impossible value", where="transfer")
    model.rates_ = _array(arrays, "rates", (None,), low=0.0)
    for i, g in enumerate(groups):
        columns = arrays.get(f"{_PREFIX}columns.{i}")
        if columns is None or columns.ndim != 1 or columns.dtype.kind != "i" or len(columns) > _MOST_COLUMNS:
            raise PredictorError("is missing or malformed", where=f"{_PREFIX}columns.{i}")
        if ((columns < 0) | (columns >= _MOST_COLUMNS)).any():
            raise PredictorError("is missing or malformed", where=f"{_PREFIX}columns.{i}")
        model.columns_[g] = np.asarray(columns, np.int64)
        model.scale_[g] = _array(arrays, f"scale.{i}", (len(model.columns_[g]),), low=0.0)
        model.middle_[g] = _array(arrays, f"middle.{i}", (len(model.columns_[g]),))
    own = sum(len(c) for c in model.columns_.values())
    devices = len(model.devices_)
    model.known_ = _array(arrays, "known", (devices, own + 1))
    model.known_scale_ = _array(arrays, "known_scale", (2, devices))
    if (model.known_scale_[1] <= 0).any():
        raise PredictorError("holds an impossible value", where=f"{_PREFIX}known_scale")
    settings = _array(arrays, "settings", (None, len(groups) + 2))
    theta = settings[:, :-1]
    if not len(settings) or (settings[:, -1] <= 0).any() or (theta < LEAST).any() or (theta > MOST).any():
        raise PredictorError("holds an impossible value", where=f"{_PREFIX}settings")
    model.settings_ = tuple(Setting(tuple(s[:-1].tolist()), float(s[-1])) for s in settings)
    return model


def adapted_to_state(adapted: Adapted) -> tuple[dict[str, Any], dict[str, Array]]:
    """(JSON-able, arrays) of a target that was learned from few figures."""
    p = adapted.posterior
    arrays = {"mean": p.mean, "covariance": p.covariance.astype("f4"), "noise": p.noise}
    data = {
        "scale": adapted.scale, "count": adapted.count, "widen": adapted.widen, "outliers": list(p.outliers),
    }  # fmt: skip
    return data, {f"{_PREFIX}adapted.{k}": v for k, v in arrays.items()}


def adapted_from_state(data: Any, arrays: Mapping[str, Array], model: TransferModel) -> Adapted:
    """Inverse of :func:`adapted_to_state`. Raises PredictorError on malformed or impossible values."""
    try:
        scale, widen, count = float(data["scale"]), float(data["widen"]), int(data["count"])
        outliers = tuple(int(i) for i in data["outliers"])
    except (KeyError, TypeError, ValueError) as e:
        raise PredictorError(f"is malformed ({type(e).__name__})", where="transfer.adapted") from None
    if not np.isfinite([scale, widen]).all() or scale <= 0 or widen <= 0 or count < 1:
        raise PredictorError("holds an impossible value", where="transfer.adapted")
    q = len(model.devices_) + model.known_.shape[1]
    mean = _array(arrays, "adapted.mean", (q,))
    covariance = _array(arrays, "adapted.covariance", (q, q))
    noise = _array(arrays, "adapted.noise", (2,), low=0.0)
    return Adapted(Posterior(mean, covariance, noise, outliers), scale, count, widen)


def _array(arrays: Mapping[str, Array], name: str, shape: tuple[int | None, ...], low: float = -np.inf) -> Array:
    """The array ``name`` in double precision; None in ``shape`` is any length."""
    a = arrays.get(_PREFIX + name)
    fits = a is not None and a.dtype.kind == "f" and a.ndim == len(shape)
    fits = fits and all(n is None or n == m for n, m in zip(shape, a.shape, strict=True))  # type: ignore[union-attr]
    if a is None or not fits or not np.isfinite(a).all() or (a < low).any():
        raise PredictorError("is missing or malformed", where=_PREFIX + name)
    return a.astype(float)
