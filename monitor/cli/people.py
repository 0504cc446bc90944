"""What people ask and decide: `status`, `retrain`, `pause`, `approve`, `rollback`, `report`, `forget`, .."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from monitor.cli.parts import (
    ACTOR,
    JSON,
    REASON,
    known_model,
    open_control,
    open_lake,
    say,
    spinner,
    time,
    user,
    with_config,
)

if TYPE_CHECKING:
    from monitor.config.loading import LoadedConfig


@click.command()
@click.argument("model", required=False)
@JSON
@with_config
def status(model: str | None, as_json: bool, loaded: LoadedConfig) -> None:
    """What each model is doing and why it was, or was not, retrained."""
    from monitor.decide.units import recorded
    from monitor.jobs.status import fault_lines, statuses

    ledger, store = open_control(loaded)
    known_model(loaded, model)
    wanted = [model] if model else sorted(loaded.schemas)
    maintenance = {m: loaded.config.models[m].retrain.maintenance for m in wanted}
    found = statuses(maintenance, ledger, store, datetime.now(UTC))
    own = fault_lines(recorded(store.engine, ""))
    if as_json:
        say(json.dumps({"models": found, "faults": own}, indent=2))
        return
    for fault in own:
        say(f"driftd: {fault['words']}", fg="red")
    for name, entry in found.items():
        champion = f"champion version {entry['champion']}" if entry["champion"] else "no recorded champion"
        say(f"{name}: {entry['state']} ({champion})", bold=True)
        say(f"  {entry['summary']}")
        if entry["held"]:
            say(f"  held: {entry['held']}", fg="yellow")
        for fault in entry["faults"]:
            say(f"  {fault['words']}", fg="red")
        for rule in entry["rules"]:
            say(f"  {rule['phase']:9} {rule['rule']} [version {rule['version']}]: {rule['reason']}")
        for decision in entry["decisions"][:5]:
            say(f"  {decision['at'][:16].replace('T', ' ')}  {decision['words']}")


@click.command()
@click.argument("model")
@click.option("--git-ref", metavar="REF", help="The code it is wanted for (from CI); the same one asks only once.")
@ACTOR
@REASON
@JSON
@with_config
def retrain(
    model: str, git_ref: str | None, actor: str | None, reason: str, as_json: bool, loaded: LoadedConfig
) -> None:
    """Ask for a retrain of MODEL now; a running daemon carries it out."""
    from monitor.jobs.manual_requests import answer, asked_by_person

    known_model(loaded, model)
    ledger, store = open_control(loaded)
    now = datetime.now(UTC)
    given = answer(loaded, ledger, store, asked_by_person(model, user(actor), reason, now, git_ref), now)
    if as_json:
        say(json.dumps({"request": given.job, "detail": given.words}))
    else:
        say(f"{model}: {given.words}")
    if given.job is None:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("model", required=False)
@click.option("--for", "length", metavar="DURATION", help='"2h", "3d" (default: until `driftd resume`).')
@ACTOR
@REASON
@with_config
def pause(model: str | None, length: str | None, actor: str | None, reason: str, loaded: LoadedConfig) -> None:
    """Leave MODEL, or all models, as they are: no retrain, no promotion. Rolling back stays possible."""
    from retrain.control import holds

    known_model(loaded, model)
    now = datetime.now(UTC)
    try:
        until = holds.pause_until(length, now)
    except ValueError as exc:
        raise click.BadParameter(f"--for {length}: {exc}") from exc
    wanted = holds.Pause(model or holds.ALL, now, until, user(actor), reason)
    _, store = open_control(loaded)
    holds.pause(store.engine, wanted)
    say(f"{model}: {wanted.to_words()}" if model else wanted.to_words())


@click.command()
@click.argument("model", required=False)
@ACTOR
@REASON
@with_config
def resume(model: str | None, actor: str | None, reason: str, loaded: LoadedConfig) -> None:
    """End a pause: that of MODEL, or that of all models."""
    from retrain.control import holds

    known_model(loaded, model)
    now = datetime.now(UTC)
    _, store = open_control(loaded)
    ended = holds.resume(store.engine, model or holds.ALL, user(actor), reason, now)
    still = holds.paused(store.engine, model or holds.ALL, now)
    said = "resumed" if ended else "there was no such pause"
    say(f"{model or 'all models'}: {said}" + (f"; {still.to_words()}" if still else ""))
    if not ended:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("job")
@ACTOR
@REASON
@with_config
def approve(job: str, actor: str | None, reason: str, loaded: LoadedConfig) -> None:
    """Let a challenger that waits for approval be promoted."""
    from retrain.job import manual_actions as operate

    _, store = open_control(loaded)
    operate.approve(store, job, user(actor), datetime.now(UTC), reason)
    say(f"{job}: approved")


@click.command()
@click.argument("job")
@ACTOR
@REASON
@with_config
def reject(job: str, actor: str | None, reason: str, loaded: LoadedConfig) -> None:
    """Refuse a challenger that waits for approval, or is on trial."""
    from retrain.job import manual_actions as operate
    from retrain.models.registry import Registry

    _, store = open_control(loaded)
    registry = Registry(loaded.config.tracking_uri)
    operate.reject(store, registry, job, user(actor), reason or "rejected by hand", datetime.now(UTC))
    say(f"{job}: rejected")


@click.command()
@click.argument("model")
@click.option("--to", metavar="VERSION", help="An earlier champion (default: the one before the present one).")
@ACTOR
@REASON
@with_config
def rollback(model: str, to: str | None, actor: str | None, reason: str, loaded: LoadedConfig) -> None:
    """Make an earlier champion of MODEL the champion again."""
    from monitor.config.plan import plans
    from retrain.job import manual_actions as operate
    from retrain.models.registry import Registry

    known_model(loaded, model)
    _, store = open_control(loaded)
    registered = plans(loaded)[model].registered_model
    registry = Registry(loaded.config.tracking_uri)
    now, reason = datetime.now(UTC), reason or "rolled back by hand"
    version = operate.rollback(store, registry, model, registered, user(actor), reason, now, to)
    say(f"{model}: version {version} is the champion again")


@click.command()
@click.argument("model")
@click.option("--version", "model_version", default=None, help="Model version (default: the newest seen).")
@click.option("--window-end", default=None, help="End of the window, RFC 3339 (default: the newest measured).")
@with_config
def report(model: str, model_version: str | None, window_end: str | None, loaded: LoadedConfig) -> None:
    """Write the full Evidently HTML report of one window."""
    from monitor.jobs.manual_requests import write_window_report

    known_model(loaded, model)
    end = time(window_end)
    with spinner("Evidently is at work"):
        path = write_window_report(loaded, model, model_version, end)
    say(path)


@click.command()
@click.argument("model")
@click.argument("prediction_ids", nargs=-1, required=True)
@ACTOR
@REASON
@with_config
def forget(model: str, prediction_ids: tuple[str, ...], actor: str | None, reason: str, loaded: LoadedConfig) -> None:
    """Delete every stored row of these predictions (a person's request)."""
    from monitor.jobs.manual_requests import note_forgotten
    from retrain.terms.fields import format_duration

    known_model(loaded, model)
    _, store = open_control(loaded)
    note_forgotten(store.engine, model, prediction_ids, user(actor), reason, datetime.now(UTC))
    deleted = open_lake(loaded).forget(model, prediction_ids)
    rows = ", ".join(f"{count} {table}" for table, count in deleted.items()) or "nothing stored"
    kept = format_duration(loaded.config.lake.keep_versions_for)
    say(f"{model}: deleted {rows}; older table versions lose them within {kept}")
