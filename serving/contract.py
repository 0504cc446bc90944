"""What a request may hold, made from the model's schema, and the events that its answers become.

Invariant: what passes here can be answered and is an event that driftd takes; what does not is refused with the place
and the reason. No value is guessed: a feature that is not known is sent as null.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import uuid4

import numpy as np
import orjson
import polars as pl
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, StrictBool, StrictStr, create_model

from retrain.models.quality import Predictions
from retrain.terms.schema import FeatureKind, ModelSchema, Task

_KINDS: dict[FeatureKind, Any] = {
    FeatureKind.NUMBER: Annotated[FiniteFloat, Field(strict=True)] | None,
    FeatureKind.CATEGORY: StrictStr | None,
    FeatureKind.BOOL: StrictBool | None,
}
_TYPES = {FeatureKind.NUMBER: pl.Float64, FeatureKind.CATEGORY: pl.String, FeatureKind.BOOL: pl.Boolean}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


def _zoned(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise ValueError("needs a zone, as in 2026-03-01T12:00:00Z")
    return at


class Answer(_Strict):
    prediction_id: str
    model_version: str
    prediction: str | float
    score: float | dict[str, float] | None = Field(None, description="probability of the positive class, or of each")


class Answers(_Strict):
    model: str
    predictions: list[Answer]


def request_of(schema: ModelSchema, max_rows: int) -> type[BaseModel]:
    """The body of `POST /predict`."""
    of_features: dict[str, Any] = {
        f"feature_{n}": (_KINDS[f.kind], Field(alias=f.name, description=f.kind.value))
        for n, f in enumerate(schema.features)
    }
    of_segments: dict[str, Any] = {
        f"segment_{n}": (StrictStr | None, Field(None, alias=name)) for n, name in enumerate(schema.segments)
    }
    features = create_model("Features", __base__=_Strict, **of_features)
    segments = create_model("Segments", __base__=_Strict, **of_segments)
    row = create_model(
        "Row",
        __base__=_Strict,
        prediction_id=(StrictStr, Field(default_factory=lambda: uuid4().hex, min_length=1, max_length=200)),
        ts=(Annotated[datetime, AfterValidator(_zoned)] | None, Field(None, description="default: now")),
        features=(features, ...),
        segment=(segments | None, None),
    )
    return create_model("Request", __base__=_Strict, rows=(list[row], Field(min_length=1, max_length=max_rows)))


def to_frame(rows: Sequence[Any], schema: ModelSchema) -> pl.DataFrame:
    """Validated rows as feature columns of the lake."""
    return pl.DataFrame(
        {
            f.column: pl.Series([getattr(r.features, f"feature_{n}") for r in rows], dtype=_TYPES[f.kind])
            for n, f in enumerate(schema.features)
        }
    )


def answers(rows: Sequence[Any], said: Predictions, versions: Sequence[str], schema: ModelSchema) -> list[Answer]:
    """One answer a row; `said` in the order of the rows."""
    regression = schema.task is Task.REGRESSION
    values = [float(v) for v in said.values] if regression else [str(v) for v in said.values]
    scores = _scores(said, schema)
    return [
        Answer(prediction_id=row.prediction_id, model_version=version, prediction=value, score=score)
        for row, version, value, score in zip(rows, versions, values, scores, strict=True)
    ]


def _scores(said: Predictions, schema: ModelSchema) -> list[Any]:
    if said.scores is None:
        return [None] * len(said.values)
    table = np.asarray(said.scores, dtype=float)
    if schema.task is Task.BINARY:
        return [float(v) for v in table]
    return [dict(zip(schema.classes, map(float, line), strict=True)) for line in table]


def events(
    rows: Sequence[Any], given: Sequence[Answer], schema: ModelSchema, now: datetime, latency_ms: float
) -> list[bytes]:
    """The prediction events of docs/events.md, one a row."""
    found = []
    for row, answer in zip(rows, given, strict=True):
        event: dict[str, Any] = {
            "prediction_id": answer.prediction_id,
            "model": schema.model,
            "model_version": answer.model_version,
            "ts": (row.ts or now).astimezone(UTC),
            "features": {f.name: getattr(row.features, f"feature_{n}") for n, f in enumerate(schema.features)},
            "prediction": answer.prediction,
            "latency_ms": latency_ms,
        }
        if answer.score is not None:
            event["score"] = answer.score
        if row.segment is not None:
            named = {name: getattr(row.segment, f"segment_{n}") for n, name in enumerate(schema.segments)}
            event["segment"] = {name: value for name, value in named.items() if value is not None}
        found.append(orjson.dumps(event))
    return found
