"""Trying settings on what was recorded: `calibrate`, `backtest`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from monitor.cli.parts import JSON, say, spinner, with_config

if TYPE_CHECKING:
    from monitor.config.loading import LoadedConfig


@click.command()
@click.argument("model")
@click.option("--version", "model_version", default=None, help="Model version (default: the newest measured).")
@click.option("--rows", type=click.IntRange(1), default=None, help="Rows of a usual window (default: as measured).")
@JSON
@with_config
def calibrate(model: str, model_version: str | None, rows: int | None, as_json: bool, loaded: LoadedConfig) -> None:
    """What chance gives in windows of MODEL, and the numbers that "auto" amounts to."""
    from monitor.start.calibrating import calibrate_model, proposal

    with spinner("comparing the reference with itself"):
        found = calibrate_model(loaded, model, model_version, rows)
    if as_json:
        say(json.dumps(found.to_json(), indent=2))
        return
    say(
        f"{model}: windows of {found.rows} rows (calibrated as {found.size}) against {found.reference_rows} rows of "
        f"{found.reference}"
    )
    for f in found.features:
        seen = f"{f.draws} draws in blocks of {f.block} rows, {f.chunks} chunks in order of time"
        say(
            f"  {f.feature}: {f.method} {f.usual:.3g} is usual, {f.rare:.3g} is beyond chance; threshold "
            f"{f.threshold:g}, with chance {f.effective:.3g} ({seen})"
        )
    for metric, value, drop in found.drops:
        say(f"  {metric}: {value:.4g} in the reference; a drop of {drop:.3g} in one window is beyond chance")
    say('\nAs numbers for config.toml ("auto" follows window size and reference by itself):\n', bold=True)
    say(proposal(found), nl=False)


@click.command()
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
