"""PostgreSQL and Redis of a test's own: Debian's programs on free ports, files in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.flows.site import eventually, free_port

USER = "prefect"
PASSWORD = "kept-in-a-secret"


def program(name: str, package: str) -> str:
    """The program's path. Absent: the test is skipped, or fails where CI runs."""
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(beside[-1]) if beside else None)
    if found is None:
        told = f"{name} is not installed: apt-get install {package}"
        if os.environ.get("LORA_OPS_CI"):
            pytest.fail(told)
        pytest.skip(told)
    return found


class Postgres:
    """A database cluster of its own. Root may not run one, so root becomes the user of Debian's package."""

    def __init__(self) -> None:
        names = ("initdb", "postgres", "pg_isready", "createdb", "psql")
        self._programs = {name: program(name, "postgresql") for name in names}
        self.port = free_port()
        # pytest's folders are closed to other users
        self.folder = Path(tempfile.mkdtemp(prefix="lora-ops-postgres-"))
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            person = pwd.getpwnam("postgres")
            os.chown(self.folder, person.pw_uid, person.pw_gid)
            self._as = {"user": person.pw_uid, "group": person.pw_gid, "extra_groups": []}
        self._run("initdb", "-D", "data", "-U", USER, "-A", "trust", "--locale=C.UTF-8", "--no-sync")
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        command = [self._programs["postgres"], "-D", "data", "-p", str(self.port)]
        command += [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **self._as)
        ready = [self._programs["pg_isready"], "-q", *self._where()]
        try:
            eventually(lambda: subprocess.run(ready, check=False).returncode == 0, "PostgreSQL answers", 30)
        except BaseException:
            self.stop()
            raise

    def database(self, name: str) -> str:
        """A new database; its URL."""
        self._run("createdb", *self._where(), name)
        return f"postgresql+asyncpg://{USER}@127.0.0.1:{self.port}/{name}"

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)  # "fast": does not wait for its clients
        self._process.wait(30)
        shutil.rmtree(self.folder)

    def _where(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER]

    def count(self, database: str, table: str) -> int:
        """The rows of a table."""
        return int(self._run("psql", *self._where(), "-d", database, "-Atc", f"select count(*) from {table}"))

    def _run(self, name: str, *words: str) -> str:
        command = [self._programs[name], *words]
        done = subprocess.run(
            command, cwd=self.folder, check=False, capture_output=True, text=True, timeout=120, **self._as
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


class Redis:
    """A server that wants a password and writes nothing to disk."""

    def __init__(self) -> None:
        self.port = free_port()
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--requirepass", PASSWORD]
        command = [program("redis-server", "redis-server"), *words]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(self._listens, "Redis answers", 30)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
