"""What several commands share: options, how the configuration gets in, what is opened from it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from retrain.base.redaction import redact
from retrain.terms.names import printable

if TYPE_CHECKING:
    from monitor.config.loading import LoadedConfig
    from monitor.decide.ledger import Ledger
    from retrain.control.store import Store

R = TypeVar("R")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def _for_the_record(_: click.Context, __: click.Parameter, given: str | None) -> str | None:
    return None if given is None else redact(given)


ACTOR = click.option(
    "--actor", default=None, callback=_for_the_record, help="Who asks, for the record (default: the user's name)."
)
REASON = click.option("--reason", default="", callback=_for_the_record, help="Why, for the record.")


def with_config(command: Callable[..., R]) -> Callable[..., R]:
    """Load the configuration named on the command line and pass it on as `loaded`."""

    @wraps(command)
    @click.pass_context
    def run(ctx: click.Context, /, *args: Any, **kwargs: Any) -> R:
        from monitor.config.loading import load

        return ctx.invoke(command, *args, loaded=load(ctx.obj), **kwargs)

    return run


def open_control(loaded: LoadedConfig) -> tuple[Ledger, Store]:
    from monitor.decide.ledger import Ledger
    from retrain.control.store import open_store

    loaded.config.state.mkdir(parents=True, exist_ok=True)
    store = open_store(loaded.config.control_url)
    ledger = Ledger(store.engine)
    ledger.create()
    return ledger, store


def open_lake(loaded: LoadedConfig) -> Any:
    from monitor.lake.lake import Lake

    return Lake(loaded.config.lake_uri, loaded.config.storage_options())


def known_model(loaded: LoadedConfig, model: str | None) -> None:
    if model is not None and model not in loaded.schemas:
        known = ", ".join(sorted(loaded.schemas))
        raise click.UsageError(f"no model {model!r} in {loaded.path}; configured are {known}")


def user(actor: str | None) -> str:
    import getpass

    try:
        return actor or getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        import os

        return f"uid {os.getuid()}"


def time(text: str | None) -> datetime | None:
    """An RFC 3339 time, in UTC where it names no zone; None where none was given."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError as exc:
        raise click.BadParameter(f"{text!r} is not an RFC 3339 time") from exc
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def say(text: str, *, err: bool = False, nl: bool = True, **style: Any) -> None:
    """Print it, with what controls a terminal spelled out: much of what driftd tells came from elsewhere."""
    click.secho(printable(text, keep="\n\t"), err=err, nl=nl, **style)


def spinner(text: str) -> Any:
    from rich.console import Console

    return Console(stderr=True).status(text)
