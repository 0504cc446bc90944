"""`driftd dead-letters`: records that were no events."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from monitor.cli.parts import ACTOR, JSON, open_control, open_lake, say, user, with_config
from retrain.terms.names import printable

if TYPE_CHECKING:
    from monitor.config.loading import LoadedConfig


@click.group("dead-letters")
def dead_letters() -> None:
    """Records that were no events: look at them, replay them."""


@dead_letters.command("list")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many, newest first.")
@click.option("--reason", default=None, help="Only this reason.")
@JSON
@with_config
def list_letters(limit: int, reason: str | None, as_json: bool, loaded: LoadedConfig) -> None:
    """List dead letters with their reason and where they came from."""
    from monitor.intake.deadletters import count_dead_letters, list_dead_letters

    lake = open_lake(loaded)
    letters = list_dead_letters(lake, limit, reason)
    if as_json:
        say(json.dumps({"counts": count_dead_letters(lake), "dead_letters": letters}, indent=2))
        return
    for reason_name, count in count_dead_letters(lake).items():
        say(f"{count:8} {reason_name}", bold=True)
    for letter in letters:
        origin = f"{letter['source_partition']}:{letter['source_offset']}"
        told = printable(f"{letter['received_at'][:19]} {letter['reason']} {origin} {letter['detail']}")
        say(f"{told}\n    {printable(letter['payload'])}")
    if not letters:
        say("No dead letters.")


@dead_letters.command("replay")
@click.option("--reason", default=None, help="Only this reason.")
@ACTOR
@JSON
@with_config
def replay_letters(reason: str | None, actor: str | None, as_json: bool, loaded: LoadedConfig) -> None:
    """Read dead letters again with the present configuration; those that are events now move to the lake."""
    from monitor.intake.deadletters import count_dead_letters, replay
    from monitor.intake.events import Limits
    from monitor.jobs.manual_requests import note_replayed

    _, store = open_control(loaded)
    note_replayed(store.engine, reason, user(actor), datetime.now(UTC))
    source, lake = loaded.config.source, open_lake(loaded)
    counts = count_dead_letters(lake)
    total = counts.get(reason, 0) if reason else sum(counts.values())
    with click.progressbar(length=total, label="Replaying", file=sys.stderr) as bar:
        done = replay(
            lake,
            loaded.schemas,
            lambda now: Limits(now, source.max_age, source.max_future, source.max_bytes),
            datetime.now(UTC),
            reason,
            bar.update,
        )
    if as_json:
        say(json.dumps({"seen": done.seen, "accepted": done.accepted, "remaining": dict(done.remaining)}))
        return
    say(f"{done.accepted} of {done.seen} are events now and have been stored")
    for why, count in sorted(done.remaining.items()):
        say(f"  {count} remain: {why}")
