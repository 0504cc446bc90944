"""How rows go to a scorer and answers come back: frames of a JSON head and raw columns behind it.

Invariant: reading an answer runs nothing and takes no more memory than was asked for: numbers and names come as plain
arrays, so a scorer that has been taken over can lie and no more. A frame arrives as `retrain.data.frame` has made it.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from retrain.models.quality import Predictions
from retrain.terms.schema import ModelSchema, Task

if TYPE_CHECKING:
    import pandas as pd

_SIZES = struct.Struct("!QQ")


class Closed(Exception):
    """The other side is gone."""


class Nonsense(Exception):
    """What came is no answer."""


def send(to: socket.socket, head: Mapping[str, Any], body: bytes = b"") -> None:
    """One message. Raises Closed."""
    packed = json.dumps(head).encode()
    try:
        to.sendall(_SIZES.pack(len(packed), len(body)) + packed)
        to.sendall(body)
    except (BrokenPipeError, ConnectionError) as exc:
        raise Closed from exc


def receive(
    from_: socket.socket, most_head: int = 2**32, most_body: int = 2**32, wait: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any], bytes]:
    """One message; `wait` comes back when there is something to read. Raises Closed, whatever `wait` raises, and
    Nonsense for a message that is too large or no JSON object."""
    head_bytes, body_bytes = _SIZES.unpack(_exactly(from_, _SIZES.size, wait))
    if head_bytes > most_head or body_bytes > most_body:
        raise Nonsense(f"a message of {head_bytes + body_bytes:,} bytes")
    packed, body = _exactly(from_, head_bytes, wait), _exactly(from_, body_bytes, wait)
    try:
        head = json.loads(packed)
    except (ValueError, RecursionError) as exc:
        raise Nonsense("a message that is no JSON") from exc
    if not isinstance(head, dict):
        raise Nonsense("a message that is no object")
    return head, body


def _exactly(from_: socket.socket, count: int, wait: Callable[[], None]) -> bytes:
    found = bytearray()
    while len(found) < count:
        wait()
        try:
            piece = from_.recv(min(count - len(found), 2**20))
        except ConnectionError as exc:
            raise Closed from exc
        if not piece:
            raise Closed
        found += piece
    return bytes(found)


# -- rows


def pack_frame(frame: pd.DataFrame) -> tuple[dict[str, Any], bytes]:
    """A frame of `retrain.data.frame.features_frame`: numbers as they lie in memory, everything else as JSON values."""
    columns: list[dict[str, Any]] = []
    body = bytearray()
    for name in frame.columns:
        values = frame[name]
        if values.dtype == np.float64:
            columns.append({"name": name, "kind": "number"})
            body += np.ascontiguousarray(values.to_numpy()).tobytes()
        else:
            listed = [None if v is None or v != v else v for v in values.to_numpy(dtype=object).tolist()]
            columns.append({"name": name, "kind": "bool" if values.dtype == bool else "object", "values": listed})
    return {"rows": len(frame), "columns": columns}, bytes(body)


def unpack_frame(head: Mapping[str, Any], body: bytes) -> pd.DataFrame:
    """The way back."""
    import pandas as pd

    rows, at = head["rows"], 0
    columns: dict[str, Any] = {}
    for column in head["columns"]:
        if column["kind"] == "number":
            columns[column["name"]] = np.frombuffer(body, np.float64, rows, at).copy()
            at += 8 * rows
        else:
            columns[column["name"]] = np.array(column["values"], dtype=bool if column["kind"] == "bool" else object)
    return pd.DataFrame(columns)


# -- answers


def pack_predictions(found: Predictions, schema: ModelSchema) -> tuple[dict[str, Any], bytes]:
    """Numbers as float64; class names as int32, in a list of the names that occur; then the scores."""
    if schema.task is Task.REGRESSION:
        head: dict[str, Any] = {"names": None}
        body = np.asarray(found.values, dtype=np.float64).tobytes()
    else:
        names, codes = np.unique(np.asarray(found.values, dtype=object).astype(str), return_inverse=True)
        head = {"names": names.tolist()}
        body = codes.astype(np.int32).tobytes()
    scored = found.scores is not None
    return head | {"scored": scored}, body + (np.asarray(found.scores, dtype=np.float64).tobytes() if scored else b"")


def unpack_predictions(head: Mapping[str, Any], body: bytes, rows: int, schema: ModelSchema) -> Predictions:
    """The way back, for so many rows. Raises Nonsense."""
    width = _score_width(schema)
    item = np.float64 if schema.task is Task.REGRESSION else np.int32
    own = rows * np.dtype(item).itemsize
    scored = bool(head.get("scored")) and schema.task is not Task.REGRESSION
    if len(body) != own + (8 * rows * width if scored else 0):
        raise Nonsense(f"an answer of {len(body):,} bytes for {rows:,} rows")
    values = np.frombuffer(body, item, rows)
    if schema.task is Task.REGRESSION:
        return Predictions(values.copy())
    names = head.get("names")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise Nonsense("answers that are no names")
    if rows and not (int(values.min()) >= 0 and int(values.max()) < len(names)):
        raise Nonsense("answers that have no name")
    scores = None
    if scored:
        scores = np.frombuffer(body, np.float64, rows * width, own).copy()
        scores = scores if schema.task is Task.BINARY else scores.reshape(rows, width)
    return Predictions(np.array(names, dtype=object)[values], scores)


def _score_width(schema: ModelSchema) -> int:
    return len(schema.classes) if schema.task is Task.MULTICLASS else 1
