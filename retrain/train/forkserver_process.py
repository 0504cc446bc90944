"""The process that scorers and trainers are children of: `python -m retrain.train.forkserver_process FD`, started by
`retrain.isolation.forkserver`.

Invariant: this process only loads libraries and makes children; nothing of a stranger's is opened or run in it.

On the socket FD: a byte (`Kind`) with descriptors makes a child, and is answered with its process id; `W` and a process
id is answered with how that child ended (os.waitpid).
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import cache

from retrain.base.loading import loading
from retrain.isolation import die_with_parent, keep_to_oneself
from retrain.isolation.forkserver import ENDED, NUMBER, Kind
from retrain.scorer import process as scorer_process
from retrain.train import trainer_process


def main(argv: Sequence[str]) -> int:
    die_with_parent()
    keep_to_oneself()  # a trainer may not put words into the mouths of the scorers that judge it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _load("skops.io", "pandas", "sklearn.ensemble", "yaml", "joblib")  # skops first: it looks into whatever is loaded
    _count_processors()
    control = socket.socket(fileno=int(argv[1]))
    while True:
        asked, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        match asked:
            case Kind.SCORER.value:
                answer = _fork(lambda given: scorer_process.serve(socket.socket(fileno=given[0])), descriptors, control)
            case Kind.TRAINER.value:
                _load("polars", "mlflow.sklearn")
                answer = _fork(
                    lambda given: trainer_process.keep(socket.socket(fileno=given[0]), given[1]), descriptors, control
                )
            case _ if asked == ENDED:
                (pid,) = NUMBER.unpack(control.recv(NUMBER.size, socket.MSG_WAITALL))
                answer = _how_it_ended(pid)
            case _:
                return 0
        control.sendall(NUMBER.pack(answer))


def _how_it_ended(pid: int) -> int:
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:  # of an earlier process like this one, with which it went
        return signal.SIGKILL


@cache
def _load(*modules: str) -> None:
    """What takes seconds, once for all children."""
    with warnings.catch_warnings(), loading():
        warnings.simplefilter("ignore")  # of third parties, about each other
        for module in modules:
            importlib.import_module(module)


def _count_processors() -> None:
    """joblib asks another program and remembers: a scorer may start none."""
    import joblib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of machines without lscpu
        joblib.cpu_count(only_physical_cores=True)


def _fork(become: Callable[[Sequence[int]], int], descriptors: Sequence[int], control: socket.socket) -> int:
    if (pid := os.fork()) != 0:
        for descriptor in descriptors:
            os.close(descriptor)
        return pid
    try:
        control.close()
        code = become(descriptors)
    except SystemExit:  # of a trainer: the interpreter ends as it does anywhere
        raise
    except BaseException:  # noqa: BLE001 - the end of this process, whatever it was; its log tells
        traceback.print_exc()
        code = 1
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
