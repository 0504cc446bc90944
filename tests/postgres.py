"""A real PostgreSQL server for tests, without an account: local sockets only, a fresh database for each test."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from uuid import uuid4

_USER = "postgres"
"""Who runs the server where tests run as root, which it refuses."""


def find_programs() -> Path | None:
    """The folder with `initdb` and `pg_ctl`: on the PATH, or where Debian keeps them."""
    if (found := shutil.which("pg_ctl")) is not None:
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), default=None)


class PostgresServer:
    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="driftd-pg-"))
        self._as = ["runuser", "-u", _USER, "--"] if os.geteuid() == 0 else []
        if self._as:
            shutil.chown(self._folder, _USER)

    def start(self) -> None:
        data = str(self._folder / "data")
        self._run("initdb", "--auth=trust", "--username=driftd", "--no-sync", "--encoding=UTF8", "-D", data)
        options = f"-k {self._folder} -c listen_addresses='' -c fsync=off"
        self._run("pg_ctl", "start", "--wait", "-D", data, "-l", str(self._folder / "log"), "-o", options)

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--mode=immediate", "-D", str(self._folder / "data"))
        shutil.rmtree(self._folder, ignore_errors=True)

    def leave(self) -> None:
        """It is for another process to end it, as any can."""

    def create_database(self) -> str:
        """The SQLAlchemy URL of a new, empty database."""
        name = f"t{uuid4().hex[:12]}"
        self._run("createdb", "-h", str(self._folder), "-U", "driftd", name)
        return f"postgresql+psycopg://driftd@/{name}?host={self._folder}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as, str(self._programs / program), *arguments]
        subprocess.run(command, check=True, cwd=self._folder, stdout=subprocess.DEVNULL)
