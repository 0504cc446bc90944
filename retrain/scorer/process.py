"""The process that opens a model: a child of a fork server that has become a scorer (`serve`).

Invariant: it opens its one model once it has given up everything that `retrain.scorer.confine` takes. It answers its
own socket, what `_Scorer` can, and ends with it.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from retrain.isolation import die_with_parent
from retrain.models.estimators import Nonsense, check_estimator
from retrain.models.model_files import LoadedModel, UnusableModel, load_model, own_types, unpacked_bytes
from retrain.models.quality import Predictions
from retrain.scorer import wire
from retrain.scorer.confine import forbid, limit
from retrain.terms.schema import ModelSchema


def serve(connection: socket.socket) -> int:
    """Until the other side closes the connection."""
    import joblib
    from joblib.parallel import SequentialBackend

    die_with_parent()
    for backend in ("threading", "loky", "multiprocessing"):  # nothing that would start a process
        joblib.register_parallel_backend(backend, SequentialBackend)
    _Scorer(connection).serve()
    return 0


class _Scorer:
    """One model at most."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._model: LoadedModel | None = None
        self._schema: ModelSchema | None = None

    def serve(self) -> None:
        while True:
            try:
                head, body = wire.receive(self._connection)
            except wire.Closed:
                return
            try:
                answer, packed = getattr(self, f"_{head.pop('do')}")(head, body)
            except (UnusableModel, Nonsense) as exc:
                answer, packed = {"refused": str(exc)}, b""
            except MemoryError as exc:
                answer, packed = {"refused": f"ran out of memory: {exc or 'MemoryError'}"[:500]}, b""
            except Exception as exc:  # noqa: BLE001 - the model's own code
                with suppress(OSError):  # its log may be full
                    traceback.print_exc()
                answer, packed = {"refused": f"raised {type(exc).__name__}: {exc}"[:500]}, b""
            wire.send(self._connection, answer, packed)

    def _begin(self, head: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        """Own folder and log, and nothing else from now on."""
        os.chdir(head["folder"])
        log = os.open(head["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        limit(head["memory"])
        return {"confined": forbid()}, b""

    def _open(self, head: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        folder, own = Path(head["model"]), tuple(head["own"])
        try:
            model = load_model(folder, own, head["max_bytes"])
        except UnusableModel:
            if head["trainer"] is None:
                raise
            model = load_model(folder, (*own, *_own_of(head["trainer"], head["code"])), head["max_bytes"])
        self._model, self._schema = model, ModelSchema.from_json(head["schema"])
        return {"inputs": model.inputs, "size": unpacked_bytes(folder)}, b""

    def _own(self, head: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        return {"own": list(_own_of(head["trainer"], head["code"]))}, b""

    def _predict(self, head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        assert self._model is not None
        assert self._schema is not None
        found: Predictions = self._model.predictions(wire.unpack_frame(head, body), self._schema)
        return wire.pack_predictions(found, self._schema)

    def _time(self, head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        assert self._model is not None
        assert self._schema is not None
        return {"seconds": self._model.processor_seconds(wire.unpack_frame(head, body), self._schema)}, b""

    def _check(self, head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        assert self._model is not None
        assert self._schema is not None
        check_estimator(self._model.estimator, self._model.wanted(wire.unpack_frame(head, body)), self._schema)
        return {}, b""


def _own_of(trainer: str, code: str | None) -> tuple[str, ...]:
    """What a trainer's module says; it is imported for that, here and in no other process but its own."""
    if code is not None and code not in sys.path:
        sys.path.append(code)  # last: it replaces no module of anybody's
    try:
        return own_types(importlib.import_module(trainer.partition(":")[0]))
    except Exception as exc:
        raise UnusableModel(f"cannot be opened: {trainer} cannot be imported in a scorer: {exc}"[:500]) from exc
