"""`driftd audit`: what was decided and done, by whom, and whether the log of it is whole; `driftd reproduce`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TextIO

import click

from monitor.cli.parts import ACTOR, JSON, REASON, known_model, open_control, say, spinner, time, user, with_config

if TYPE_CHECKING:
    from monitor.config.loading import LoadedConfig
    from retrain.control.audit import Recorded

_COLUMNS = ("number", "at", "model", "kind", "actor", "subject", "detail", "body", "previous", "digest")
_FEWEST_DIGITS = 12


@click.group()
def audit() -> None:
    """What was decided and done, by whom; and whether the log of it is whole."""


@audit.command()
@click.option(
    "--anchor",
    "anchors",
    multiple=True,
    metavar="NUMBER:DIGEST",
    help="An entry as `verify` printed it earlier, kept elsewhere; repeatable.",
)
@JSON
@with_config
def verify(anchors: tuple[str, ...], as_json: bool, loaded: LoadedConfig) -> None:
    """Recompute the whole chain; exit 1 if an entry was changed, removed or inserted.

    Who can write to the database can also write a new chain from some entry on: give an --anchor from before.
    """
    from retrain.control.audit import verify as recompute

    _, store = open_control(loaded)
    found = recompute(store.engine, dict(map(_anchor, anchors)))
    anchor = f"{found.number}:{found.digest[:32]}"
    if as_json:
        whole = {"whole": not found.problem, "problem": found.problem, "number": found.number, "digest": found.digest}
        say(json.dumps(whole))
    elif not found.problem:
        say(f"the audit log is whole: {found.number} entries")
        say(f"keep this elsewhere: --anchor {anchor}")
    else:
        say(f"driftd: the audit log is not whole: {found.problem}; good up to {anchor}", err=True)
    if found.problem:
        raise click.exceptions.Exit(1)


def _anchor(text: str) -> tuple[int, str]:
    number, _, digest = text.partition(":")
    if not number.isdigit() or len(digest) < _FEWEST_DIGITS:
        raise click.BadParameter(f"{text!r} is not NUMBER:DIGEST with {_FEWEST_DIGITS} or more digits of the digest")
    return int(number), digest


@audit.command()
@click.option("--format", "form", type=click.Choice(["json", "csv"]), default="json", show_default=True)
@click.option("--model", help="Only entries about this model, and those about all.")
@click.option("--from", "since", metavar="TIME", help="RFC 3339; this moment included.")
@click.option("--to", "until", metavar="TIME", help="RFC 3339; this moment not included.")
@click.option("--output", type=click.File("w", encoding="utf-8", lazy=True), default="-", help="Default: the terminal.")
@with_config
def export(
    form: str, model: str | None, since: str | None, until: str | None, output: TextIO, loaded: LoadedConfig
) -> None:
    """Write entries, oldest first: as a JSON list, or as CSV with the body as JSON."""
    from retrain.control.audit import entries

    known_model(loaded, model)
    _, store = open_control(loaded)
    found = entries(store.engine, model=model, since=time(since), until=time(until))
    (_write_json if form == "json" else _write_csv)(found, output)


def _write_json(found: Iterable[Recorded], output: TextIO) -> None:
    before = "[\n"
    for entry in found:
        output.write(before + json.dumps(entry.to_json(), ensure_ascii=False))
        before = ",\n"
    output.write("[]\n" if before == "[\n" else "\n]\n")


def _write_csv(found: Iterable[Recorded], output: TextIO) -> None:
    rows = csv.DictWriter(output, _COLUMNS, lineterminator="\n")
    rows.writeheader()
    for entry in found:
        fields = entry.to_json()
        rows.writerow({**fields, "body": json.dumps(fields["body"], ensure_ascii=False)})


@audit.command()
@click.argument("number", type=click.IntRange(1))
@ACTOR
@REASON
@with_config
def redact(number: int, actor: str | None, reason: str, loaded: LoadedConfig) -> None:
    """Take the text of an entry away, for good: a secret in it, say. Its digest stays, so the log stays whole."""
    from retrain.control.audit import redact as take_away

    _, store = open_control(loaded)
    gone = take_away(store.engine, number, user(actor), reason, datetime.now(UTC))
    say(f"entry {number}: its text is gone from the audit log")
    if not gone:
        say("the database's own journal may hold it for a while (until its next checkpoint, or vacuum)")
    say("backups have it still; so may the job or the pause that the entry tells of (docs/audit.md)")


@audit.command()
@click.argument("model")
@click.option("--at", "moment", metavar="TIME", help="RFC 3339 (default: now).")
@JSON
@with_config
def serving(model: str, moment: str | None, as_json: bool, loaded: LoadedConfig) -> None:
    """Which version of MODEL was the champion, why, on what data, who agreed, and the way back to it."""
    from monitor.jobs.lineage import serving_at, to_words

    known_model(loaded, model)
    _, store = open_control(loaded)
    at = time(moment) or datetime.now(UTC)
    found = serving_at(store, model, at)
    if as_json:
        say(json.dumps(found, indent=2))
    elif found is not None:
        for line in to_words(found):
            say(line)
    if found is None:
        say(f"driftd: {model}: no champion on record at {at:%Y-%m-%d %H:%M} UTC", err=True)
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("job")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep rows and model here (default: a folder that is removed).",
)
@JSON
@with_config
def reproduce(job: str, folder: Path | None, as_json: bool, loaded: LoadedConfig) -> None:
    """Rebuild a past JOB (or MLflow run) from its lake version; exit 1 if metrics or predictions are others.

    Code and packages are those that are installed here: to have those of the time, check out the commit that is
    printed and install its lock file.
    """
    import os

    from monitor.config.plan import job_environment
    from retrain.isolation.forkserver import ForkServer
    from retrain.job.reproduce import reproduce as rebuild

    _, store = open_control(loaded)
    wanted = store.find_by_run(job) or store.get(job)
    with TemporaryDirectory(prefix="driftd-") as scratch, spinner("training again"):
        environment = {**os.environ, **job_environment(loaded.config)}
        with ForkServer(environment) as server:
            found = rebuild(wanted, folder or Path(scratch), server)
    if as_json:
        say(json.dumps(found.to_json(), indent=2))
    else:
        kept = f", kept in {found.folder}" if folder else ""
        say(f"{wanted.id}: {'reproduced' if found.same else 'NOT reproduced'}{kept}")
        for line in found.to_words():
            say(line)
    if not found.same:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("model")
@click.option("--version", "model_version", default=None, help="Which version (default: the champion).")
@click.option("--job", default=None, help="Or of which job: also of one whose challenger was rejected.")
@click.option("--format", "form", type=click.Choice(["markdown", "html"]), default="markdown", show_default=True)
@click.option("--output", type=click.File("w", encoding="utf-8"), default="-", help="A file (default: stdout).")
@with_config
def card(
    model: str, model_version: str | None, job: str | None, form: str, output: TextIO, loaded: LoadedConfig
) -> None:
    """The model card of MODEL: data, quality by segment, gates, why it came, who agreed, and the way back."""
    from retrain.base.markdown import to_html
    from retrain.job.card import card as written
    from retrain.job.manual_actions import job_of_version

    known_model(loaded, model)
    _, store = open_control(loaded)
    found = store.get(job) if job is not None else job_of_version(store, model, model_version)
    text = written(found, store.history(found.id), store.champion_moves(found.model))
    output.write(to_html(text, "Model card") if form == "html" else text)
