"""One JSON object -> the strict shape that the typed parser of `events` takes: what a tolerant reader makes of it.

Invariant: never raises; what cannot be read becomes None, and a feature that was given but cannot be read is named.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

from monitor.base.kinds import Stream
from retrain.terms.schema import FeatureKind, ModelSchema, Task


def load(line: bytes) -> Any:
    """A JSON value; of a name given twice the first counts, as for the typed parser. Raises ValueError, RecursionError.

    Unlike stricter parsers it takes NaN and Infinity, which many producers write, and long integers as they are.
    """
    return json.loads(line.decode("utf-8"), object_pairs_hook=_first_wins)


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def read_event(obj: dict[str, Any], stream: Stream, schema: ModelSchema) -> tuple[dict[str, Any], list[str]]:
    """The same event in the strict shape the typed parser takes, and the names of its broken features."""
    clean: dict[str, Any] = {k: text(obj.get(k)) for k in ("prediction_id", "model", "ts")}
    outcome = "prediction" if stream is Stream.PREDICTIONS else "label"
    value = obj.get(outcome)
    clean[outcome] = _number(value) if schema.task is Task.REGRESSION else text(value)
    if stream is Stream.LABELS:
        clean["prediction_ts"] = text(obj.get("prediction_ts"))
        return clean, []
    clean["model_version"] = text(obj.get("model_version"))
    clean["latency_ms"] = _number(obj.get("latency_ms"))
    clean["score"] = _score(obj.get("score"), schema)
    segment = obj.get("segment")
    if isinstance(segment, dict):
        clean["segment"] = {s: text(segment.get(s)) for s in schema.segments}
    given = obj.get("features")
    values = given if isinstance(given, dict) else {}
    features, broken = {}, []
    for feature in schema.features:
        raw = values.get(feature.name)
        clean_value = _feature(raw, feature.kind)
        features[feature.name] = clean_value
        if raw is not None and clean_value is None:
            broken.append(feature.name)
    if given is not None and not isinstance(given, dict):
        broken = [f.name for f in schema.features]
    clean["features"] = features
    return clean, broken


def _feature(value: Any, kind: FeatureKind) -> float | str | None:
    match kind:
        case FeatureKind.NUMBER:
            return None if isinstance(value, bool) else _number(value)
        case FeatureKind.CATEGORY:
            return text(value)
        case FeatureKind.BOOL:
            return text(value)


def _number(value: Any) -> float | None:
    """A finite float from a JSON number or a string that spells one; None otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str) and "_" in value:  # Python would read "1_000"
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def text(value: Any) -> str | None:
    """A string from a JSON scalar, spelled as the typed parser spells it; None for null, objects, lists, NaN."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:  # a lone surrogate: cannot be stored
            return value.encode("utf-8", "backslashreplace").decode("utf-8")
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**300 else None
    if isinstance(value, float) and math.isfinite(value):
        return f"{Decimal(repr(value)):f}".removesuffix(".0")
    return None


def _score(value: Any, schema: ModelSchema) -> float | dict[str, float | None] | None:
    match schema.task:
        case Task.BINARY:
            return _number(value.get(schema.positive) if isinstance(value, dict) else value)
        case Task.MULTICLASS:
            return {c: _number(value.get(c)) for c in schema.classes} if isinstance(value, dict) else None
        case Task.REGRESSION:
            return None
