"""`python -m retrain run JOB_ID --control URL`: the process of one job.

The daemon hands its environment over on standard input (`--environment-on-stdin`, a JSON object): what a process is
started with lies open to every process of its user, and a job starts trainers.

Exit codes: 0 the job went as far as it can for now, 1 a bug (recorded as the job's failure, traceback on stderr),
2 wrong usage, 3 another process drives the job. SIGTERM leaves the job where it is, to be resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m retrain")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="drive one job as far as it goes")
    run.add_argument("job_id")
    run.add_argument(
        "--control",
        default=os.environ.get("DRIFTD_CONTROL"),
        help="URL of the control database; better by the variable DRIFTD_CONTROL when it holds a password",
    )
    run.add_argument("--environment-on-stdin", action="store_true", help="instead of the one it was started with")
    arguments = parser.parse_args(argv)
    from retrain.isolation import SHORT_SPIN, keep_to_oneself

    keep_to_oneself()
    if arguments.environment_on_stdin:
        os.environ.clear()
        os.environ.update(json.load(sys.stdin))
        arguments.control = arguments.control or os.environ.get("DRIFTD_CONTROL")
    if not arguments.control:
        parser.error("--control or DRIFTD_CONTROL is needed")

    from retrain.base.loading import loading

    os.environ.setdefault(*SHORT_SPIN)  # before scikit-learn loads OpenMP
    with loading():
        import structlog

        from retrain.base.logs import configure_logs
        from retrain.control.store import open_store
        from retrain.job.driver import Driver
        from retrain.models.registry import import_mlflow
        from retrain.terms.errors import LeaseLost, UnknownJob

        import_mlflow()

    configure_logs("json")
    log = structlog.get_logger()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, lambda *_: stopping.set())
    driver = Driver(open_store(arguments.control), environ=dict(os.environ), stopping=stopping)
    try:
        state = driver.drive(arguments.job_id)
    except LeaseLost as exc:
        log.warning("job_not_driven", job_id=arguments.job_id, reason=str(exc))
        return 3
    except UnknownJob as exc:
        parser.error(str(exc))
    log.info("job_process_ended", job_id=arguments.job_id, state=state.value)
    return 0


if __name__ == "__main__":
    sys.exit(main())
