"""Commands that begin something: `run`, `check`, `init`, `demo`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from monitor.cli.parts import JSON, say


@click.command()
@click.pass_context
def run(ctx: click.Context) -> None:
    """Run the daemon until SIGTERM; SIGHUP reloads the configuration."""
    from monitor.base.runtime import tune_process
    from retrain.base.loading import loading
    from retrain.isolation import keep_to_oneself

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    os.environ["PYTHONSAFEPATH"] = "1"  # processes started from here import nothing from the folder they are in
    keep_to_oneself()
    tune_process()
    with loading():
        from monitor.config.loading import load
        from monitor.running.build import build
        from retrain.base.logs import configure_logs

    loaded = load(ctx.obj)
    loaded.config.state.mkdir(parents=True, exist_ok=True)
    configure_logs(loaded.config.daemon.log_format, loaded.config.state / "crash")
    ctx.exit(build(loaded, ctx.obj).run())


@click.command()
@JSON
@click.pass_context
def check(ctx: click.Context, as_json: bool) -> None:
    """Check the configuration and list every mistake at once (exit 2 if there is one)."""
    from monitor.base.errors import ConfigError
    from monitor.config.loading import load
    from monitor.start.check import check_references

    try:
        loaded = load(ctx.obj)
        notes = check_references(loaded)
    except ConfigError as exc:
        if as_json:
            say(json.dumps({"ok": False, "problems": exc.problems}, indent=2))
        else:
            for problem in exc.problems:
                say(problem, err=True)
            say(f"{len(exc.problems)} mistake(s).", err=True)
        ctx.exit(2)
    models = {
        name: {"task": s.task.value, "features": len(s.features), "classes": list(s.classes)}
        for name, s in loaded.schemas.items()
    }
    config = loaded.config
    if as_json:
        found = {"ok": True, "digest": config.digest(), "models": models, "notes": notes}
        say(json.dumps(found, indent=2))
        return
    say(f"{loaded.path}: good (digest {config.digest()})")
    source = (
        config.source.kafka.bootstrap if config.source.kafka and config.source.kind == "kafka" else config.events_path
    )
    say(f"  source   {config.source.kind}: {source}")
    say(f"  lake     {config.lake_uri}")
    say(f"  mlflow   {config.tracking_uri}")
    for name, model in models.items():
        say(f"  model    {name}: {model['task']}, {model['features']} features")
    for note in notes:
        say(f"  note     {note}", fg="yellow")


@click.command()
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
    from monitor.start.columns import Asked
    from monitor.start.init import Wishes
    from monitor.start.init import init as make

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
        say(done.text, nl=False)
    for line in done.said:
        say(line, err=output == "-")


@click.command()
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
