"""Connects to unix sockets, with a bound on every wait."""

import socket
import struct
from pathlib import Path

__all__ = ("connect_unix", "explain", "set_receive_timeout")


def connect_unix(path: Path, *, timeout_seconds: float) -> socket.socket:
    """Connect to the unix socket at ``path``.

    :raise BlockingIOError: the listener's queue stayed full.
    :raise OSError: the subclass says why; :func:`explain` says why in one line.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout_seconds))
        connection.connect(str(path))
    except BaseException:
        connection.close()
        raise
    return connection


def explain(path: Path, error: OSError) -> str:
    """Say in one line why ``path`` cannot be connected to."""
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return f"{path}: no such socket"
        case PermissionError():
            return f"{path}: permission denied; run as the user that owns it, or as root"
        case ConnectionRefusedError() if not path.is_socket():
            return f"{path}: not a socket"
        case ConnectionRefusedError():
            return f"{path}: nothing listens on this socket; is QEMU running?"
        case BlockingIOError():
            return f"{path}: other clients wait for it already; disconnect them"
        case _:
            return f"{path}: {error.strerror or error}"


def set_receive_timeout(connection: socket.socket, seconds: float) -> None:
    """Let a blocking receive raise BlockingIOError after ``seconds``."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", *divmod(max(1, int(seconds * 1e6)), 1_000_000))
