"""What the HTTP port asks of the running daemon: its health, its status, and what a person may tell it to do."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from monitor.base.errors import TransientError
from monitor.decide.units import recorded
from monitor.jobs.alerts import Unusable, read_alerts
from monitor.jobs.lineage import serving_at
from monitor.jobs.manual_requests import Answer, answer, asked_by_person
from monitor.jobs.status import FAULTS, fault_lines, statuses
from monitor.rules.triggers import Cause
from monitor.web.views import Views
from retrain.base.markdown import to_html
from retrain.base.redaction import redacted
from retrain.control import holds
from retrain.control.audit import recent
from retrain.control.holds import ALL, Pause
from retrain.control.traffic import traffic
from retrain.job.card import card
from retrain.terms.errors import UnknownJob

if TYPE_CHECKING:
    from monitor.running.daemon import Daemon

STUCK_AFTER = 1800.0
"""Seconds that the evaluation of one model may take: then this replica lets another one lead, and is not alive."""

log = structlog.get_logger()

ALIVE_WITHIN = 120.0
"""Seconds without a poll of the source after which the daemon counts as hung."""


class Actions:
    """See `monitor.web.app.WebActions`. LookupError, UnknownJob: no such thing; ValueError, LostRace: not possible
    now."""

    def __init__(self, daemon: Daemon):
        self._daemon = daemon
        self._views = Views(
            lambda: {m: e.plan for m, e in daemon.evaluators.items()},
            daemon.lake.clone(),
            daemon.ledger,
            daemon.store,
            daemon.folder.reports,
            daemon.config.tracking_uri,
        )

    def alive(self) -> str:
        silent = time.monotonic() - self._daemon.ingest.polled_at
        if silent > ALIVE_WITHIN:
            return f"the source was last polled {silent:.0f} s ago"
        stuck = self._daemon.stuck
        return f"one evaluation has taken {stuck:.0f} s so far" if stuck > STUCK_AFTER else ""

    def ready(self) -> dict[str, str]:
        return self._daemon.metrics.ready.problems()

    def faults(self) -> list[str]:
        return [fault.to_words() for fault in self._daemon.units.faults()[:FAULTS]]

    def status(self) -> dict[str, Any]:
        daemon = self._daemon
        found = statuses(daemon.maintenance, daemon.ledger, daemon.store, datetime.now(UTC))
        return {"models": found, "faults": fault_lines(recorded(daemon.store.engine, ""))}

    def read_ahead(self) -> None:
        """Read what the first look at the page would otherwise wait for."""
        try:
            self.fleet()
        except TransientError as exc:
            log.info("page_not_read_ahead", detail=str(exc))

    def fleet(self) -> dict[str, Any]:
        return self._views.fleet(datetime.now(UTC))

    def timeline(self, model: str, days: int) -> dict[str, Any]:
        return self._views.model(model, days, datetime.now(UTC))

    def features(self, model: str, version: str, end: datetime) -> dict[str, Any]:
        return self._views.features(model, version, end)

    def retrain(self, model: str, actor: str, reason: str, git_ref: str | None) -> dict[str, Any]:
        self._known(model)
        now = datetime.now(UTC)
        given = self._answer(asked_by_person(model, actor, reason, now, git_ref), now)
        if given.job is None:
            raise ValueError(given.words)
        return {"job": given.job, "decision": given.words}

    def alerts(self, body: dict[str, Any]) -> dict[str, Any]:
        now, told = datetime.now(UTC), []
        for found in read_alerts(body, self._daemon.evaluators):
            if isinstance(found, Unusable):
                told.append({"alert": found.alert, "job": None, "decision": f"not used: {found.detail}"})
                continue
            given = self._answer(found, now)
            told.append({"alert": found.evidence["alert"], "job": given.job, "decision": given.words})
        return {"alerts": told}

    def _answer(self, cause: Cause, now: datetime) -> Answer:
        daemon = self._daemon
        given = answer(daemon.loaded, daemon.ledger, daemon.store, cause, now)
        if given.recorded is not None:
            daemon.metrics.count_decision(given.recorded)
        return given

    def pause(self, model: str, actor: str, reason: str, length: str | None) -> dict[str, Any]:
        if model != ALL:
            self._known(model)
        now = datetime.now(UTC)
        wanted = Pause(model, now, holds.pause_until(length, now), actor, reason)
        holds.pause(self._daemon.store.engine, wanted)
        return {"decision": wanted.to_words()}

    def resume(self, model: str, actor: str, reason: str) -> dict[str, Any]:
        if not holds.resume(self._daemon.store.engine, model, actor, reason, datetime.now(UTC)):
            raise ValueError(f"{model or 'all models'}: there is no such pause")
        return {"decision": f"{model or 'all models'}: resumed"}

    def _known(self, model: str) -> None:
        if model not in (known := self._daemon.evaluators):
            raise LookupError(f"no model {model!r}; configured are {', '.join(sorted(known))}")

    def approve(self, job: str, actor: str, reason: str) -> None:
        self._daemon.store.approve(job, actor, datetime.now(UTC), reason)

    def reject(self, job: str, actor: str, reason: str) -> None:
        if self._daemon.store.find(job) is None:
            raise UnknownJob(f"no job {job!r}")
        self._command("reject", f"--actor={actor}", f"--reason={reason}", "--", job)

    def rollback(self, model: str, actor: str, reason: str, to: str) -> dict[str, Any]:
        self._known(model)
        where = [f"--to={to}"] if to else []
        self._command("rollback", f"--actor={actor}", f"--reason={reason}", *where, "--", model)
        return {"rolled_back": model}

    def card(self, job: str) -> str:
        if (found := self._daemon.store.find(job)) is None:
            raise LookupError(f"no job {job!r}")
        store = self._daemon.store
        return to_html(card(found, store.history(job), store.champion_moves(found.model)), "Model card")

    def audit(self, model: str | None, before: int | None, limit: int) -> dict[str, Any]:
        found = recent(self._daemon.store.engine, model, before, limit)
        return {"entries": [redacted(entry.to_json()) for entry in found]}  # 0.1.0 has written down what it was given

    def traffic(self, model: str) -> dict[str, Any]:
        self._known(model)
        return {"model": model, **traffic(self._daemon.store, model).to_json()}

    def serving(self, model: str, at: datetime | None) -> dict[str, Any]:
        at = at or datetime.now(UTC)
        if (found := serving_at(self._daemon.store, model, at)) is None:
            raise LookupError(f"{model}: no champion on record at {at:%Y-%m-%d %H:%M} UTC")
        return found

    def _command(self, *arguments: str) -> None:
        """Run a driftd command apart: it needs MLflow, which the daemon does not load."""
        path = self._daemon.config_path
        done = subprocess.run(
            [sys.executable, "-P", "-m", "monitor.cli", *(["--config", str(path)] if path else []), *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode != 0:
            raise ValueError((done.stderr.strip() or done.stdout.strip()).removeprefix("driftd: "))
