"""The `driftd` command. Heavy imports happen inside the commands that need them, so that `--help` is quick.

Exit codes: 0 done, 1 a failure that is said on stderr, 2 a mistake in the configuration or in how the command was
called.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from monitor.config import LoadedConfig
    from monitor.ledger import Ledger
    from retrain.store import Store

R = TypeVar("R")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
_ACTOR = click.option("--actor", default=None, help="Who asks, for the record (default: the user's name).")
_REASON = click.option("--reason", default="", help="Why, for the record.")


class _Command(click.Group):
    """Turns the errors that people can act on into one line on stderr and the right exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as exc:
            code = _exit_code(exc)
            if code is None:
                raise
            click.echo(f"driftd: {exc}", err=True)
            ctx.exit(code)


def _exit_code(exc: Exception) -> int | None:
    from monitor.errors import ConfigError, StateLocked, TransientError
    from retrain.errors import LostRace, Refused, UnknownJob

    if isinstance(exc, ConfigError):
        return 2
    if isinstance(exc, (StateLocked, TransientError, LostRace, Refused, UnknownJob)):
        return 1
    return None


@click.group(cls=_Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="driftd")
@click.option(
    "--config",
    "-c",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("config.toml"),
    envvar="DRIFTD_CONFIG",
    show_default=True,
    help="Configuration file.",
)
@click.pass_context
def main(ctx: click.Context, config: Path) -> None:
    """Watches deployed machine-learning models and retrains them when they get worse."""
    ctx.obj = config


def _with_config(command: Callable[..., R]) -> Callable[..., R]:
    """Load the configuration named on the command line and pass it on as `loaded`."""

    @wraps(command)
    @click.pass_context
    def run(ctx: click.Context, /, *args: Any, **kwargs: Any) -> R:
        from monitor.config import load

        return ctx.invoke(command, *args, loaded=load(ctx.obj), **kwargs)

    return run


@main.command()
@click.pass_context
def run(ctx: click.Context) -> None:
    """Run the daemon until SIGTERM; SIGHUP reloads the configuration."""
    from monitor.runtime import tune_process

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    tune_process()
    from monitor.build import build
    from monitor.config import load
    from monitor.logs import configure_logs

    loaded = load(ctx.obj)
    configure_logs(loaded.config.daemon.log_format)
    ctx.exit(build(loaded, ctx.obj).run())


@main.command()
@_JSON
@click.pass_context
def check(ctx: click.Context, as_json: bool) -> None:
    """Check the configuration and list every mistake at once (exit 2 if there is one)."""
    from monitor.config import load
    from monitor.errors import ConfigError

    try:
        loaded = load(ctx.obj)
    except ConfigError as exc:
        if as_json:
            click.echo(json.dumps({"ok": False, "problems": exc.problems}, indent=2))
        else:
            for problem in exc.problems:
                click.echo(problem, err=True)
            click.echo(f"{len(exc.problems)} mistake(s).", err=True)
        ctx.exit(2)
    models = {
        name: {"task": s.task.value, "features": len(s.features), "classes": list(s.classes)}
        for name, s in loaded.schemas.items()
    }
    config = loaded.config
    if as_json:
        click.echo(json.dumps({"ok": True, "digest": config.digest(), "models": models}, indent=2))
        return
    click.echo(f"{loaded.path}: good (digest {config.digest()})")
    source = (
        config.source.kafka.bootstrap if config.source.kafka and config.source.kind == "kafka" else config.events_path
    )
    click.echo(f"  source   {config.source.kind}: {source}")
    click.echo(f"  lake     {config.lake_uri}")
    click.echo(f"  mlflow   {config.tracking_uri}")
    for name, model in models.items():
        click.echo(f"  model    {name}: {model['task']}, {model['features']} features")


@main.command()
@click.argument("reference", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--registered", metavar="NAME", help="A model in the MLflow registry, instead of or besides a file.")
@click.option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", metavar="URI", help="Where it is registered.")
@click.option("--alias", default="champion", show_default=True, help="Which version of it.")
@click.option("--target", metavar="COLUMN", help="The column with the truth (default: `label`).")
@click.option("--prediction", metavar="COLUMN", help="What the model answered (default: `prediction`, if there).")
@click.option("--score", metavar="COLUMN", help="Its probability of the positive class (default: `score`, if there).")
@click.option("--time", "time_column", metavar="COLUMN", help="When a row happened (default: found).")
@click.option("--segment", "segments", metavar="COLUMN", multiple=True, help="Measure by it; can be repeated.")
@click.option("--drop", default="", help="Columns that are no features, comma-separated.")
@click.option("--model", metavar="NAME", help="The model's name in events (default: the file's, or NAME).")
@click.option("--window", metavar="DURATION", help="Length of a window (default: fits the rate of rows).")
@click.option("--rows-per-day", type=float, metavar="N", help="Predictions a day, if the file does not show it.")
@click.option("--kafka", metavar="HOST:PORT", help="Read events from this broker instead of files.")
@click.option("--output", default="config.toml", show_default=True, metavar="FILE", help="`-` prints it.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
def init(
    reference: Path | None,
    registered: str | None,
    time_column: str | None,
    segments: tuple[str, ...],
    drop: str,
    output: str,
    **options: Any,
) -> None:
    """Write a config.toml that fits the rows in REFERENCE (Parquet, CSV, NDJSON), or a registered model."""
    from monitor.columns import Asked
    from monitor.init import Wishes
    from monitor.init import init as make

    asked = Asked(
        target=options.pop("target"),
        prediction=options.pop("prediction"),
        score=options.pop("score"),
        time=time_column,
        segments=segments,
        drop=tuple(c for c in drop.split(",") if c),
    )
    done = make(Wishes(reference, registered, asked, output=None if output == "-" else Path(output), **options))
    if output == "-":
        click.echo(done.text, nl=False)
    for line in done.said:
        click.echo(line, err=output == "-")


@main.command()
@click.argument("model", required=False)
@_JSON
@_with_config
def status(model: str | None, as_json: bool, loaded: LoadedConfig) -> None:
    """What each model is doing and why it was, or was not, retrained."""
    from monitor.status import model_status

    ledger, store = _control(loaded)
    _known_model(loaded, model)
    found = {m: model_status(m, ledger, store) for m in ([model] if model else sorted(loaded.schemas))}
    if as_json:
        click.echo(json.dumps({"models": found}, indent=2))
        return
    for name, entry in found.items():
        champion = f"champion version {entry['champion']}" if entry["champion"] else "no recorded champion"
        click.secho(f"{name}: {entry['state']} ({champion})", bold=True)
        click.echo(f"  {entry['summary']}")
        for rule in entry["rules"]:
            click.echo(f"  {rule['phase']:9} {rule['rule']} [version {rule['version']}]: {rule['reason']}")
        for decision in entry["decisions"][:5]:
            click.echo(f"  {decision['at'][:16].replace('T', ' ')}  {decision['words']}")


@main.command()
@click.argument("model")
@_ACTOR
@_REASON
@_JSON
@_with_config
def retrain(model: str, actor: str | None, reason: str, as_json: bool, loaded: LoadedConfig) -> None:
    """Ask for a retrain of MODEL now; a running daemon carries it out."""
    from monitor.operate import request_retrain

    _known_model(loaded, model)
    ledger, store = _control(loaded)
    decision = request_retrain(loaded, ledger, store, model, _user(actor), reason, datetime.now(UTC))
    if as_json:
        click.echo(
            json.dumps({"request": decision.request.id if decision.request else None, "detail": decision.detail})
        )
    else:
        click.echo(f"{model}: {decision.to_words()}")
    if decision.request is None:
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("job")
@_ACTOR
@_with_config
def approve(job: str, actor: str | None, loaded: LoadedConfig) -> None:
    """Let a challenger that waits for approval be promoted."""
    _, store = _control(loaded)
    store.approve(job, _user(actor), datetime.now(UTC))
    click.echo(f"{job}: approved")


@main.command()
@click.argument("job")
@_ACTOR
@_REASON
@_with_config
def reject(job: str, actor: str | None, reason: str, loaded: LoadedConfig) -> None:
    """Refuse a challenger that waits for approval."""
    from retrain import operate
    from retrain.registry import Registry

    _, store = _control(loaded)
    registry = Registry(loaded.config.tracking_uri)
    operate.reject(store, registry, job, _user(actor), reason or "rejected by hand", datetime.now(UTC))
    click.echo(f"{job}: rejected")


@main.command()
@click.argument("model")
@_ACTOR
@_REASON
@_with_config
def rollback(model: str, actor: str | None, reason: str, loaded: LoadedConfig) -> None:
    """Make the previous champion of MODEL the champion again."""
    from monitor.plan import plans
    from retrain import operate
    from retrain.registry import Registry

    _known_model(loaded, model)
    _, store = _control(loaded)
    registered = plans(loaded)[model].registered_model
    registry = Registry(loaded.config.tracking_uri)
    version = operate.rollback(
        store, registry, model, registered, _user(actor), reason or "rolled back by hand", datetime.now(UTC)
    )
    click.echo(f"{model}: version {version} is the champion again")


@main.command()
@click.argument("model")
@click.option("--version", "model_version", default=None, help="Model version (default: the newest seen).")
@click.option("--window-end", default=None, help="End of the window, RFC 3339 (default: the newest measured).")
@_with_config
def report(model: str, model_version: str | None, window_end: str | None, loaded: LoadedConfig) -> None:
    """Write the full Evidently HTML report of one window."""
    from monitor.operate import write_window_report

    _known_model(loaded, model)
    end = _time(window_end) if window_end else None
    with _spinner("Evidently is at work"):
        path = write_window_report(loaded, model, model_version, end)
    click.echo(path)


@main.command()
@click.argument("model")
@click.argument("prediction_ids", nargs=-1, required=True)
@_with_config
def forget(model: str, prediction_ids: tuple[str, ...], loaded: LoadedConfig) -> None:
    """Delete every stored row of these predictions (a person's request)."""
    from retrain.config import format_duration

    _known_model(loaded, model)
    deleted = _lake(loaded).forget(model, prediction_ids)
    rows = ", ".join(f"{count} {table}" for table, count in deleted.items()) or "nothing stored"
    kept = format_duration(loaded.config.lake.keep_versions_for)
    click.echo(f"{model}: deleted {rows}; older table versions lose them within {kept}")


@main.group("dead-letters")
def dead_letters() -> None:
    """Records that were no events: look at them, replay them."""


@dead_letters.command("list")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many, newest first.")
@click.option("--reason", default=None, help="Only this reason.")
@_JSON
@_with_config
def list_letters(limit: int, reason: str | None, as_json: bool, loaded: LoadedConfig) -> None:
    """List dead letters with their reason and where they came from."""
    from monitor.deadletters import count_dead_letters, list_dead_letters

    lake = _lake(loaded)
    letters = list_dead_letters(lake, limit, reason)
    if as_json:
        click.echo(json.dumps({"counts": count_dead_letters(lake), "dead_letters": letters}, indent=2))
        return
    for reason_name, count in count_dead_letters(lake).items():
        click.secho(f"{count:8} {reason_name}", bold=True)
    for letter in letters:
        origin = f"{letter['source_partition']}:{letter['source_offset']}"
        click.echo(
            f"{letter['received_at'][:19]} {letter['reason']} {origin} {letter['detail']}\n    {letter['payload']}"
        )
    if not letters:
        click.echo("No dead letters.")


@dead_letters.command("replay")
@click.option("--reason", default=None, help="Only this reason.")
@_JSON
@_with_config
def replay_letters(reason: str | None, as_json: bool, loaded: LoadedConfig) -> None:
    """Read dead letters again with the present configuration; those that are events now move to the lake."""
    from monitor.deadletters import count_dead_letters, replay
    from monitor.events import Limits

    source, lake = loaded.config.source, _lake(loaded)
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
        click.echo(json.dumps({"seen": done.seen, "accepted": done.accepted, "remaining": dict(done.remaining)}))
        return
    click.echo(f"{done.accepted} of {done.seen} are events now and have been stored")
    for why, count in sorted(done.remaining.items()):
        click.echo(f"  {count} remain: {why}")


@main.command()
@click.option("--stream", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A recorded table.")
@click.option("--target", help="The column with the truth (required with --stream).")
@click.option("--drop", default="", help="Columns that are no features, comma-separated.")
@click.option("--train-share", type=click.FloatRange(0.01, 0.9), default=0.1, show_default=True)
@click.option("--label-delay", type=click.IntRange(0), default=None, metavar="N-rows", help="Rows until a label comes.")
@click.option("--window-rows", type=click.IntRange(20), default=None, metavar="N", help="Rows per window.")
@click.option("--kafka", metavar="HOST:PORT", default=None, help="Send events through this broker instead of files.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the summary here.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Keep everything here.")
@click.option(
    "--wait/--no-wait",
    default=None,
    help="Keep the status page open at the end until Ctrl-C; the default in a terminal.",
)
def demo(
    stream: Path | None,
    target: str | None,
    drop: str,
    train_share: float,
    label_delay: int | None,
    window_rows: int | None,
    kafka: str | None,
    json_path: Path | None,
    folder: Path | None,
    wait: bool | None,
) -> None:
    """Tell the whole story live: a model is served, the world drifts, driftd retrains it.

    Without --stream a small payment-fraud world is made up; with it, the rows of a recorded table (CSV or
    Parquet, in stream order) are scored one after the other. Needs no broker, server or account.
    """
    if stream is not None and target is None:
        raise click.UsageError("--stream needs --target COLUMN")
    from monitor.demo.stage import DemoOptions
    from monitor.demo.story import tell

    tell(
        DemoOptions(
            stream=stream,
            target=target,
            drop=tuple(c for c in drop.split(",") if c),
            train_share=train_share,
            label_delay=label_delay,
            window_rows=window_rows,
            kafka=kafka,
            json_path=json_path,
            folder=folder,
            wait=sys.stdin.isatty() and sys.stdout.isatty() if wait is None else wait,
        )
    )


@main.command()
@click.argument("model")
@click.option("--version", "model_version", default=None, help="Model version (default: the newest measured).")
@click.option("--rows", type=click.IntRange(1), default=None, help="Rows of a usual window (default: as measured).")
@_JSON
@_with_config
def calibrate(model: str, model_version: str | None, rows: int | None, as_json: bool, loaded: LoadedConfig) -> None:
    """What chance gives in windows of MODEL, and the numbers that "auto" amounts to."""
    from monitor.calibrating import calibrate_model, proposal

    with _spinner("comparing the reference with itself"):
        found = calibrate_model(loaded, model, model_version, rows)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
        return
    click.echo(
        f"{model}: windows of {found.rows} rows (calibrated as {found.size}) against {found.reference_rows} rows of "
        f"{found.reference}"
    )
    for f in found.features:
        seen = f"{f.draws} draws in blocks of {f.block} rows, {f.chunks} chunks in order of time"
        click.echo(
            f"  {f.feature}: {f.method} {f.usual:.3g} is usual, {f.rare:.3g} is beyond chance; threshold "
            f"{f.threshold:g}, with chance {f.effective:.3g} ({seen})"
        )
    for metric, value, drop in found.drops:
        click.echo(f"  {metric}: {value:.4g} in the reference; a drop of {drop:.3g} in one window is beyond chance")
    click.secho('\nAs numbers for config.toml ("auto" follows window size and reference by itself):\n', bold=True)
    click.echo(proposal(found), nl=False)


@main.command()
@click.option("--stream", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A recorded table.")
@click.option("--target", help="The column with the truth (required with --stream).")
@click.option("--drop", default="", help="Columns that are no features, comma-separated.")
@click.option("--events", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A folder of events.")
@click.option("--from", "since", metavar="YYYY-MM-DD", help="First day of the lake (default: all of it).")
@click.option("--to", "until", metavar="YYYY-MM-DD", help="Last day of the lake.")
@click.option("--model", help="Model of the configuration (needed when it has several).")
@click.option(
    "--against", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another configuration to set beside; repeatable.",
)  # fmt: skip
@click.option("--sweep", multiple=True, metavar="KEY=V,V", help="Try these values: rules.<name>.above=0.1,0.2")
@click.option("--changes", default="", help="When the world truly changed: times or row numbers, comma-separated.")
@click.option("--closed-loop", is_flag=True, help="Train, gate, promote, and compare with plain retraining (tables).")
@click.option("--train-share", type=click.FloatRange(0.01, 0.9), default=0.1, show_default=True)
@click.option("--label-delay", type=click.IntRange(0), default=None, metavar="N-rows", help="Rows until a label comes.")
@click.option("--window-rows", type=click.IntRange(20), default=None, metavar="N", help="Rows per window of a table.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the document here.")
@click.option("--html", "html_path", type=click.Path(dir_okay=False, path_type=Path), help="Write a page here.")
@click.pass_context
def backtest(ctx: click.Context, /, **given: Any) -> None:
    """Try a configuration on yesterday's data: what would driftd have done, and when?

    History is a table (--stream with --target), a folder of events (--events), or the lake of the configuration. It
    goes through the daemon's own measuring, rules and triggers with simulated time; nothing outside is touched.
    """
    stream, json_path, html_path = given["stream"], given.pop("json_path"), given.pop("html_path")
    if stream is not None and given["target"] is None:
        raise click.UsageError("--stream needs --target COLUMN")
    if stream is not None and given["events"] is not None:
        raise click.UsageError("--stream or --events, not both")
    configs = (ctx.obj if stream is None or _was_given(ctx) else None, *given.pop("against"))
    given |= {name: _listed(given[name]) for name in ("drop", "changes")}
    from monitor.backtest.command import carry_out
    from monitor.backtest.run import Options

    options = Options(configs=tuple(path for path in configs if path is not None), **given)
    carry_out(options, json_path, html_path)


def _was_given(ctx: click.Context) -> bool:
    """Whether --config was said, not only assumed."""
    source = ctx.parent.get_parameter_source("config") if ctx.parent is not None else None
    return source not in (None, click.core.ParameterSource.DEFAULT)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _control(loaded: LoadedConfig) -> tuple[Ledger, Store]:
    from monitor.ledger import Ledger
    from retrain.store import open_store

    loaded.config.state.mkdir(parents=True, exist_ok=True)
    store = open_store(loaded.config.control_url)
    ledger = Ledger(store.engine)
    ledger.create()
    return ledger, store


def _lake(loaded: LoadedConfig) -> Any:
    from monitor.lake import Lake

    return Lake(loaded.config.lake_uri, loaded.config.storage_options())


def _known_model(loaded: LoadedConfig, model: str | None) -> None:
    if model is not None and model not in loaded.schemas:
        known = ", ".join(sorted(loaded.schemas))
        raise click.UsageError(f"no model {model!r} in {loaded.path}; configured are {known}")


def _user(actor: str | None) -> str:
    import getpass

    try:
        return actor or getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        import os

        return f"uid {os.getuid()}"


def _time(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as exc:
        raise click.BadParameter(f"{text!r} is not an RFC 3339 time") from exc
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _spinner(text: str) -> Any:
    from rich.console import Console

    return Console(stderr=True).status(text)


if __name__ == "__main__":
    main()
