"""Which models answer: the champion, and during a canary the challenger with its share.

Invariant: what answers is one immutable value that is replaced whole, so a request sees one state of the world and
none is dropped when the alias moves. A version that cannot be loaded changes nothing, and neither does a registry
that is away.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import structlog

from retrain.data.frame import features_frame
from retrain.isolation.forkserver import ForkServer
from retrain.models.model_files import LoadedModel, UnusableModel, load_model
from retrain.models.quality import Array, Predictions
from retrain.models.registry import Registry
from retrain.scorer import Limits, Scorers, Trust
from retrain.terms.aliases import TRAFFIC_TAG
from retrain.terms.errors import TransientError
from retrain.terms.schema import ModelSchema
from serving.settings import ServiceSettings

log = structlog.get_logger()
RETRY_AFTER = 300.0
"""Seconds after which a version that could not be loaded is tried again."""


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    name: str
    model: LoadedModel


@dataclass(frozen=True, slots=True, eq=False)
class Models:
    """`share` of the requests is the challenger's, by their ids: the same id gets the same version."""

    champion: Version
    challenger: Version | None = None
    share: float = 0.0

    def names(self) -> dict[str, str | float | None]:
        """Who answers which share of the requests; two with the same names do the same."""
        challenger = self.challenger.name if self.challenger else None
        return {"champion": self.champion.name, "challenger": challenger, "share": self.share}

    def predict(self, ids: Sequence[str], rows: pl.DataFrame, schema: ModelSchema) -> tuple[Predictions, list[str]]:
        """Predictions in the order of the rows, and the version that made each."""
        chosen = np.array([self.challenger is not None and share_point(i) < self.share for i in ids])
        values: Array = np.empty(len(ids), dtype=object)
        scores: Array | None = None
        versions = np.empty(len(ids), dtype=object)
        for version, mask in ((self.champion, ~chosen), (self.challenger, chosen)):
            if version is None or not mask.any():
                continue
            said = version.model.predictions(features_frame(rows.filter(pl.Series(mask)), schema), schema)
            values[mask], versions[mask] = said.values, version.name
            if said.scores is not None:
                if scores is None:
                    scores = np.full((len(ids), *said.scores.shape[1:]), np.nan)
                scores[mask] = said.scores
        return Predictions(values, scores), list(versions)


def share_point(prediction_id: str) -> float:
    """A number in [0, 1) that belongs to the id."""
    return int.from_bytes(hashlib.blake2b(prediction_id.encode(), digest_size=6).digest()) / 2**48


def open_model(settings: ServiceSettings, folder: Path) -> LoadedModel:
    """A version's directory. Raises UnusableModel."""
    with ForkServer(os.environ) as server:
        scorers = Scorers(server, Trust(settings.trusted), Limits(max_bytes=settings.max_size))
        return open_here(settings, folder, scorers)


def open_here(settings: ServiceSettings, folder: Path, scorers: Scorers) -> LoadedModel:
    """In this process, but apart first: what ends or hangs a process then does so to that one. Raises UnusableModel."""
    with scorers.open(folder, settings.schema):
        return load_model(folder, settings.trusted, settings.max_size)


class Follower:
    """Keeps `current` what the registry says. `run` in a thread of its own; `poke` makes it look at once. `opening`
    makes a model of a version's directory (`open_model`)."""

    def __init__(
        self,
        settings: ServiceSettings,
        registry: Registry,
        opening: Callable[[Path], LoadedModel],
        on_change: Callable[[Models], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._open = opening
        self._on_change = on_change
        self._on_failure = on_failure
        self._poked = threading.Event()
        self._stopped = False
        self._refused: dict[str, float] = {}
        self.current: Models | None = None

    def run(self) -> None:
        while not self._stopped:
            self.follow()
            self._poked.wait(self._settings.follow_every.total_seconds())
            self._poked.clear()

    def poke(self) -> None:
        self._poked.set()

    def stop(self) -> None:
        self._stopped = True
        self._poked.set()

    def follow(self) -> None:
        """Look at the registry and load what is new. Whatever goes wrong, what answers now goes on answering."""
        try:
            wanted = self._wanted()
        except TransientError as exc:
            self._on_failure()
            log.warning("registry_away", detail=str(exc)[:300], serving=self._serving())
            wanted = self.current or self._baked()
        except Exception:
            self._on_failure()
            log.exception("registry_not_followed", serving=self._serving())
            wanted = self.current or self._baked()
        if wanted is not None and wanted is not self.current:
            self.current = wanted
            self._on_change(wanted)
            log.info("models_changed", **wanted.names())

    def _wanted(self) -> Models | None:
        """What should answer now; `current` itself when nothing changed, None when there is nothing."""
        known, name = self.current, self._settings.registered_model
        aliases, tags = self._registry.pointers(name)
        champion = aliases.get(self._settings.alias)
        if champion is None:
            return known or self._baked()
        split = _split(tags.get(TRAFFIC_TAG), champion)
        if (loaded := self._loaded(champion)) is None:
            return known
        challenger = self._loaded(split[0]) if split else None
        found = Models(loaded, challenger, split[1] if split and challenger else 0.0)
        return known if known is not None and known.names() == found.names() else found

    def _loaded(self, version: str) -> Version | None:
        """From memory, or from the registry; None when it cannot be used, which is said once."""
        known = self.current
        for held in (known.champion, known.challenger) if known else ():
            if held is not None and held.name == version:
                return held
        if time.monotonic() < self._refused.get(version, 0.0):
            return None
        try:
            with tempfile.TemporaryDirectory() as folder:
                files = self._registry.fetch_model(self._settings.registered_model, version, Path(folder) / "model")
                model = self._open(files)
        except TransientError:
            raise
        except Exception as exc:  # noqa: BLE001 - a stranger's files: refused, whatever they did
            self._refused[version] = time.monotonic() + RETRY_AFTER
            self._on_failure()
            detail = str(exc) if isinstance(exc, UnusableModel) else f"{type(exc).__name__}: {exc}"
            log.error("version_refused", version=version, detail=detail[:500], serving=self._serving())
            return None
        return Version(version, model)

    def _baked(self) -> Models | None:
        """The model that came with the container."""
        if self._settings.baked is None:
            return None
        folder = Path(self._settings.baked)
        try:
            version = json.loads((folder / "version.json").read_text())["version"]
            return Models(Version(version, self._open(folder)))
        except (OSError, ValueError, KeyError, UnusableModel) as exc:
            log.error("baked_model_refused", detail=str(exc))
            return None

    def _serving(self) -> str | None:
        return self.current.champion.name if self.current else None


def _split(tag: str | None, champion: str) -> tuple[str, float] | None:
    """(challenger, its share) of a tag; None where there is none, or it is of another champion."""
    try:
        found = json.loads(tag) if tag else {}
        if found and found["champion"] == champion and 0 < found["share"] < 1 and found["challenger"] != champion:
            return str(found["challenger"]), float(found["share"])
    except (ValueError, KeyError, TypeError):
        log.warning("traffic_tag_ignored", tag=tag)
    return None
