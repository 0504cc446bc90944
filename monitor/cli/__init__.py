"""The `driftd` command. Heavy imports happen inside the commands that need them, so that `--help` is quick.

Exit codes: 0 done, 1 a failure that is said on stderr, 2 a mistake in the configuration or in how the command was
called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from monitor.cli import audit, dead_letters, people, serves, start, trying
from monitor.cli.parts import say


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
            from retrain.base.logs import last_words

            if not last_words(str(exc)):
                say(f"driftd: {exc}", err=True)
            ctx.exit(code)


def _exit_code(exc: Exception) -> int | None:
    from monitor.base.errors import ConfigError, StateLocked, TransientError
    from retrain.terms.errors import LostRace, Refused, UnknownJob

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
    from retrain.isolation import keep_files_to_oneself

    keep_files_to_oneself()
    ctx.obj = config


for _command in (
    *(start.run, start.check, start.init, start.demo),
    *(people.status, people.retrain, people.approve, people.reject, people.rollback, people.report, people.forget),
    *(people.pause, people.resume, serves.traffic, serves.package),
    *(trying.calibrate, trying.backtest),
    dead_letters.dead_letters,
    audit.audit,
    audit.reproduce,
    audit.card,
):
    main.add_command(_command)
