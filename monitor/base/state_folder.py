"""The folder that belongs to one running daemon: its lock, its lasting name, and what it leaves for the commands."""

from __future__ import annotations

import fcntl
import os
import socket
import uuid
from contextlib import suppress
from pathlib import Path

from monitor.base.errors import StateLocked
from retrain.base.files import write_whole


class StateFolder:
    """The daemon's own folder, locked so that a second daemon is refused."""

    def __init__(self, path: Path):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        if (mode := path.stat().st_mode & 0o777) & 0o027:  # of an earlier release
            with suppress(PermissionError):  # another's folder: who owns it decides
                path.chmod(mode & ~0o027)
        self._lock = (path / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            raise StateLocked(
                f"{path} is in use by another driftd (process {holder}): stop it, or give this one its own daemon.state"
            ) from exc
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        self.holder = self._holder()

    @property
    def reports(self) -> Path:
        return self.path / "reports"

    def tell(self, url: str) -> None:
        """The daemon's address for the commands."""
        write_whole(self.path / "url", url)

    def untell(self) -> None:
        (self.path / "url").unlink(missing_ok=True)

    def _holder(self) -> str:
        """A name that stays over restarts: killed, the next daemon of this folder need not wait for its own lease."""
        path = self.path / "replica"
        name = path.read_text().strip() if path.exists() else ""
        if not name:
            name = uuid.uuid4().hex
            path.write_text(name)
        return f"{socket.gethostname()}:{name}"

    def release(self) -> None:
        self._lock.close()
