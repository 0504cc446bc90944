"""What the serving side asks: `traffic`, `package`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from monitor.cli.parts import JSON, known_model, open_control, say, with_config

if TYPE_CHECKING:
    from monitor.config.loading import LoadedConfig


@click.command()
@click.argument("model")
@JSON
@with_config
def traffic(model: str, as_json: bool, loaded: LoadedConfig) -> None:
    """Which version of MODEL should answer which share of the requests."""
    from retrain.control.traffic import traffic as wanted

    known_model(loaded, model)
    _, store = open_control(loaded)
    found = wanted(store, model).to_json()
    if as_json:
        say(json.dumps({"model": model, **found}))
        return
    if not found["shares"]:
        say(f"{model}: no champion on record")
    for version, share in found["shares"].items():
        which = "challenger" if version == found["challenger"] else "champion"
        say(f"{model}: version {version} ({which}) {share:.1%}")


@click.command()
@click.argument("model")
@click.option("--version", "model_version", default=None, help="Which version is put in (default: the champion).")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=None, help="Default: ./scoring-MODEL."
)
@click.option(
    "--requirements",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A lock file with hashes of what the model's own code needs.",
)
@with_config
def package(
    model: str, model_version: str | None, output: Path | None, requirements: Path | None, loaded: LoadedConfig
) -> None:
    """Write a folder from which a container image of MODEL's scoring service can be built."""
    from monitor.start.packaging import package as write

    known_model(loaded, model)
    folder = output or Path(f"scoring-{model}")
    version = write(loaded, model, folder, model_version, requirements)
    say(f"{folder}: version {version} of {model}; docker build --tag scoring-{model.lower()} {folder}")
