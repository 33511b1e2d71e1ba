"""A real MLflow server that can be killed, and a proxy before it that fails as networks do."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests
from mlflow import MlflowClient

_SECONDS_TO_START = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`mlflow server` on a SQLite file, serving artifacts; it starts on the same port again.

    Args:
        empty: A database with all tables, which is copied: making them takes seconds.
        folder: Where it keeps everything.
    """

    def __init__(self, empty: Path, folder: Path) -> None:
        shutil.copy(empty, folder / "mlflow.db")
        self._folder = folder
        self.artifacts = folder / "artifacts"
        self._port = free_port()
        self._process = None
        self._database = f"sqlite:///{folder / 'mlflow.db'}"
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self._port}",
            f"--backend-store-uri={self._database}", "--workers=1",
            f"--artifacts-destination={self.artifacts}",
        ]  # fmt: skip
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        ends = time.monotonic() + _SECONDS_TO_START
        while time.monotonic() < ends:
            try:
                if requests.get(f"{self.uri}/health", timeout=1).ok:
                    return
            except requests.RequestException:
                assert self._process.poll() is None, (self._folder / "server.log").read_text()
                time.sleep(0.05)
        self.kill()
        raise TimeoutError((self._folder / "server.log").read_text())

    def database(self) -> MlflowClient:
        """A client that reads what the server keeps without asking it."""
        return MlflowClient(self._database)

    def kill(self) -> None:
        """Kill it and its workers, as `kill -9` does."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Proxy:
    """Passes requests on to a server, or does not.

    Its `fault` is None, or one of

    - `away`: connections are closed unanswered, those that ask for its health among them;
    - `fail`: everything is answered with status 500, but for its health;
    - `slow`: nothing is answered;
    - `lose`: all requests are passed on, but of those that write to one place the first three
      answers are lost.

    Args:
        uri: Of the server.
    """

    def __init__(self, uri: str) -> None:
        self.fault: str | None = None
        self.requests = 0
        self.lost: Counter[str] = Counter()
        self.stopped = threading.Event()
        handler = type("Handler", (_Handler,), {"proxy": self, "server_uri": uri})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def fail_from_another_process(self, fault: str) -> None:
        """Set the fault where this is a copy, in a process that was forked."""
        requests.post(f"{self.uri}/fault/{fault}", timeout=5)

    def stop(self) -> None:
        """Let go of everything that waits, and stop."""
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    server_uri: str
    protocol_version = "HTTP/1.1"

    def do(self) -> None:
        proxy, health = self.proxy, self.path.endswith("/health")
        proxy.requests += 1
        length = int(self.headers.get("Content-Length", 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        else:
            body = self.rfile.read(length)
        if self.path.startswith("/fault/"):
            proxy.fault = self.path.rsplit("/", 1)[-1]
            self._answer(200, b"")
        elif proxy.fault == "slow":
            proxy.stopped.wait()
            self.close_connection = True
        elif proxy.fault == "away":
            self.close_connection = True
        elif proxy.fault == "fail" and not health:
            self._answer(500, b"broken")
        else:
            self._pass_on(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do

    def _pass_on(self, body: bytes) -> None:
        answer = requests.request(
            self.command,
            self.server_uri + self.path,
            data=body,
            headers={k: v for k, v in self.headers.items() if k in ("Content-Type",)},
            timeout=30,
        )
        lost = self.proxy.lost
        if self.proxy.fault == "lose" and self._writes() and lost[self.path] < 3:
            lost[self.path] += 1
            self.close_connection = True
            return
        self._answer(answer.status_code, answer.content, answer.headers.get("Content-Type"))

    def _writes(self) -> bool:
        return self.command != "GET" and not self.path.endswith("/search")

    def _answer(self, status: int, content: bytes, kind: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind or "text/plain")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *words: object) -> None:
        """Say nothing."""


def killed(work: Callable[[], None]) -> None:
    """Do some work in a process of its own that kills itself in the middle, as `kill -9` does."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)  # it was to be killed
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it was not killed"
    assert os.WTERMSIG(status) == signal.SIGKILL


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
