"""A PostgreSQL server of the test's own, from the system's package, on a port of 127.0.0.1."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from tracking.servers import free_port

_PACKAGES = Path("/usr/lib/postgresql")


def _programs() -> Path | None:
    """Return the folder of `initdb` and `postgres`; None where there are none."""
    found = shutil.which("initdb")
    newest = sorted(_PACKAGES.glob("*/bin/initdb"))
    if found:
        return Path(found).resolve().parent
    return newest[-1].parent if newest else None


def _answers(address: str) -> bool:
    try:
        psycopg.connect(address, connect_timeout=1).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def postgresql_server() -> Iterator[str]:
    """Serve an empty database, and yield its address with a password; skip where none is installed.

    Root may not run the server, so that it then runs as the package's user.
    """
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: there is no initdb")
    user = None
    if os.getuid() == 0:
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    # Not in pytest's folders, which nobody else may enter.
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    process, port = None, free_port()
    try:
        (folder / "password").write_text("secret-of-mlflow\n")
        for path in (folder, folder / "password"):
            if user is not None:
                shutil.chown(path, user, user)
        subprocess.run(
            [
                programs / "initdb", "--pgdata", folder / "data", "--username=mlflow",
                "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--encoding=UTF8",
                "--locale=C", "--no-sync",
            ],
            check=True, capture_output=True, user=user, cwd=folder,
        )  # fmt: skip
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [
                    programs / "postgres", "-D", folder / "data", "-p", str(port), "-h",
                    "127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off",
                ],
                stdout=log, stderr=log, user=user, cwd=folder,
            )  # fmt: skip
        address = f"//mlflow:secret-of-mlflow@127.0.0.1:{port}/postgres"
        while not _answers(f"postgresql:{address}"):
            assert process.poll() is None, (folder / "log").read_text()
        yield f"postgresql+psycopg:{address}"
    finally:
        if process is not None:
            process.terminate()  # it waits for its clients
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.send_signal(3)  # ends them
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)
