"""The way to a cluster, and the checks of its nodes before any work begins."""

import os
import platform
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module, metadata
from typing import Any

from reusekit.cluster.settings import ClusterSettings
from reusekit.errors import ClusterError

_LOOPBACK = "127.0.0.1"
# What a client of HTTP/2 begins with, as that of gRPC, and what the server's first frame is.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = b"\x04"
_BY_RAY = ("RAY_CLIENT_MODE", "PYTHONBREAKPOINT")
"""Variables of the environment that Ray sets in a process that connects."""


def connect(options: ClusterSettings) -> tuple[Any, bool]:
    """Connect this process to a cluster, or start one.

    A cluster that is started listens on 127.0.0.1 alone, and answers nobody without its token.

    Args:
        options: Where it is.

    Returns:
        The module `ray`, and whether this process was not connected before.

    Raises:
        ClusterError: Ray is not installed, or no cluster answers there in time.
    """
    ray: Any = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return ray, False
    own = {"RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0")}
    if options.address == "local":
        if ray is None:
            # Read once, when Ray is imported.
            _local["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
            _local["RAY_AUTH_MODE"] = "token"
            _local["RAY_AUTH_TOKEN"] = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)
        own |= _local  # what is started reads it, too
    _before.update({name: os.environ.get(name) for name in (*own, *_BY_RAY)})
    os.environ.update(own)
    try:
        return _connected(options), True
    except BaseException:
        _restore()
        raise


def disconnect(ray: Any) -> None:
    """Leave a cluster, and end it if this process has started it."""
    ray.shutdown()
    _restore()


_local: dict[str, str] = {}  # the environment of a cluster of this machine alone
_before: dict[str, str | None] = {}  # that of this process without it, while there is one


def _restore() -> None:
    """Put the environment back, which other programs and clusters read."""
    for name, value in _before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    _before.clear()


def _connected(options: ClusterSettings) -> Any:
    local = options.address == "local"
    try:
        ray: Any = import_module("ray")
    except ModuleNotFoundError as error:
        raise ClusterError(
            "Expected Ray, which runs work on a cluster, to be installed. Received: no module "
            f'{error.name!r}. Install it with pip install "reusekit[ray]".'
        ) from error
    told: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if local:
        told["include_dashboard"] = False
        if options.workers is not None:
            told["num_cpus"] = options.workers * options.cpus
    elif options.address != "auto":
        _check_listening(ray, options)
    try:
        with sigterm_kept():
            ray.init(options.address, **told)
        if local and ray.nodes()[0]["NodeManagerAddress"] != _LOOPBACK:
            ray.shutdown()
            raise ClusterError(
                "Expected address='local' before Ray is imported, so that it listens on "
                f"{_LOOPBACK} alone. Received: a process that has imported it."
            )
    except ClusterError:
        raise
    except Exception as error:  # Ray raises errors of many kinds
        lines = " ".join(str(error).split())
        raise ClusterError(
            f"Expected a Ray cluster of this Python and Ray at {options.address!r}. Received: "
            f"{(lines or type(error).__name__).rstrip('.')}. Set RAY_AUTH_MODE and RAY_AUTH_TOKEN "
            "here as there, if it asks for a token."
        ) from error
    return ray


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Take SIGTERM as before, where Ray would have it end the process in the middle of a write."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where Ray sets none
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_listening(ray: Any, options: ClusterSettings) -> None:
    """Raise ClusterError where nothing answers as Ray does, for which Ray itself waits for good."""
    client = str(options.address).startswith("ray://")
    named, _, port = str(options.address).removeprefix("ray://").rpartition(":")
    hosts = [named.strip("[]")]
    tls = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")  # as Ray reads it
    if not client and hosts[0] in ("localhost", _LOOPBACK):
        hosts.append(ray.util.get_node_ip_address())  # which Ray puts in its place
    for host in hosts:
        try:
            with socket.create_connection((host, int(port)), options.wait) as line:
                line.sendall(_GREETING)
                answered = b""
                with suppress(ConnectionError):  # TLS may hang up on who greets so
                    answered = line.recv(9)
            if not tls and answered[3:4] != _SETTINGS:
                raise ValueError("an answer that is not Ray's")
        except (OSError, OverflowError, ValueError) as error:  # also of what cannot be a name
            asked = "" if host == hosts[0] else f" (asked at {host}, as this machine is called)"
            raise ClusterError(
                f"Expected a Ray cluster at {options.address!r}. Received: {error}{asked}. Start "
                "one with ray start --head, or name another."
            ) from error


def head_of(ray: Any) -> str:
    """Return the address of a cluster's head, "" where a server of Ray's stands between."""
    return "" if ray.util.client.ray.is_connected() else ray.get_runtime_context().gcs_address


def is_listening(address: str) -> bool:
    """Return whether somebody answers at HOST:PORT; of "" that is taken for granted."""
    host, _, port = address.rpartition(":")
    try:
        if address:
            socket.create_connection((host.strip("[]"), int(port)), 2).close()
        return True
    except OSError:
        return False


def versions() -> dict[str, str]:
    """Return the versions that a driver and its workers have in common."""
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in ("keras", "tensorflow", "reusekit")
    }


def look_of(wanted: Mapping[str, str]) -> Callable[..., str | None]:
    """Return a function that finds out why a worker cannot be used; None where it can.

    It needs nothing of reusekit where it runs, since that may be another version, or not there.
    """

    def look(folder: str | None = None, token: str = "") -> str | None:
        import os
        import platform
        from importlib import metadata

        found = {"python": platform.python_version()}
        for name in wanted:
            if name != "python":
                try:
                    found[name] = metadata.version(name)
                except metadata.PackageNotFoundError:
                    found[name] = "none"
        differ = [name for name in wanted if wanted[name] != found[name]]
        if differ:
            mine, theirs = (
                ", ".join(f"{name} {one[name]}" for name in differ) for one in (wanted, found)
            )
            return (
                f"Expected workers with the driver's {mine}. Received: {theirs}. Install the "
                "same versions there."
            )
        if folder is not None and not os.path.exists(os.path.join(folder, token)):
            return (
                f"Expected a folder that every worker sees. Received: {folder!r}. Choose one that "
                "all nodes share."
            )
        return None

    return look


def threads_of(options: ClusterSettings) -> dict[str, str]:
    """Return the environment of a worker, as it is before TensorFlow is imported there."""
    own = ("TF_", "KERAS_")
    taken = {name: value for name, value in os.environ.items() if name.startswith(own)}
    taken.pop("TF_CONFIG", None)
    threads = str(options.cpus)
    hidden = {} if options.gpus else {"CUDA_VISIBLE_DEVICES": "-1"}
    return (
        taken
        | hidden
        | {
            "TF_NUM_INTRAOP_THREADS": threads,
            "TF_NUM_INTEROP_THREADS": threads,
            "OMP_NUM_THREADS": threads,
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        }
    )
