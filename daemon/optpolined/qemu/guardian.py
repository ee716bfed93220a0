"""A small process that outlives the daemon, and resumes the guest if the daemon left it stopped.

The daemon and its guardian share a note, "the guest may be stopped by us" (stopnote.py), and a pipe
whose other end only the daemon has open.  However the daemon dies, the kernel closes the pipe; the
guardian then looks at the note, and where it is set:

1. connects to QMP, as soon as QEMU has noticed that the daemon's connection is gone;
2. waits until QEMU has noticed that the daemon's gdb connection is gone too: what is still in that
   socket would stop the guest again;
3. sends ``cont`` if the guest is paused, and writes that into the note.

The note is set before a stop and cleared after it.  A daemon that dies in the few microseconds in
which it has set the note, and does not know yet that another program had paused the guest, gets
that guest resumed: the other way round guests would be left stopped.

Where the guardian dies with the daemon, `optpolinectl rescue` or the next daemon does the same.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol, Self

from optpolined.qemu.errors import GuardianError
from optpolined.qemu.stopnote import StopNote

__all__ = ("Guardian", "resume_if_paused")

_READY = b"R"
_START_SECONDS = 10.0
_GIVE_UP_SECONDS = 10.0
_GDB_SECONDS = 1.0
_RETRY_SECONDS = 0.005
_MAX_LINE_BYTES = 1 << 20

_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); from optpolined.qemu.guardian import main; main()"
)
"""Run without site, environment or current directory: quick to start, and small."""


class Guardian:
    """The daemon's side: starts the process and keeps the note.

    :meth:`stopping` and :meth:`resumed` write one byte of memory and cost nothing.
    """

    def __init__(
        self, qmp_path: Path, note: StopNote, process: subprocess.Popen[bytes], pipe: int
    ) -> None:
        """Take over what :meth:`start` has made."""
        self._qmp_path = qmp_path
        self._note = note
        self._process = process
        self._pipe = pipe

    @classmethod
    def start(cls, qmp_path: Path, note: StopNote) -> Self:
        """Start the guardian of the guest whose QMP socket is ``qmp_path``, and wait for it.

        It takes over ``note``, and removes it at the end unless it stays set.

        :raise GuardianError: it did not start.
        """
        try:
            process, pipe = _spawn(qmp_path, note)
        except GuardianError:
            if not note.is_set:
                note.remove()
            note.close()
            raise
        return cls(qmp_path, note, process, pipe)

    def restart_if_dead(self) -> bool:
        """Start another process where the last one died; return whether that was needed.

        The new process reads the same note.  To ask costs one system call.

        :raise GuardianError: it did not start: nothing resumes the guest if the daemon dies now.
        """
        if self.is_alive():
            return False
        process, pipe = _spawn(self._qmp_path, self._note)
        os.close(self._pipe)
        self._process, self._pipe = process, pipe
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id of the guardian."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether the guardian still watches."""
        return self._process.poll() is None

    def stopping(self) -> None:
        """Note that the guest may be stopped by us from now on."""
        self._note.set()

    def resumed(self) -> None:
        """Note that it no longer is."""
        self._note.clear()

    def close(self) -> None:
        """End the guardian; again does nothing.

        If the guest is noted as stopped, the guardian resumes it first: close the QMP connection
        before this, it needs it.
        """
        if self._pipe < 0:
            return
        os.close(self._pipe)
        self._pipe = -1
        try:
            self._process.wait(_GIVE_UP_SECONDS + 2 * _GDB_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not self._note.is_set:
            self._note.remove()
        self._note.close()


def _spawn(qmp_path: Path, note: StopNote) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process and wait until it watches; also return our end of its pipe."""
    end, pipe = os.pipe2(os.O_CLOEXEC)
    try:
        root = str(Path(__file__).resolve().parents[2])
        arguments = [root, str(qmp_path), str(note.descriptor), str(end)]
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=(note.descriptor, end),
            start_new_session=True,
        )
    except OSError as error:
        os.close(pipe)
        raise GuardianError(f"the guardian cannot be started: {error.strerror}") from error
    finally:
        os.close(end)
    if not _becomes_ready(process):
        process.kill()
        os.close(pipe)
        process.wait()
        raise GuardianError("the guardian did not start; see its message on stderr")
    return process, pipe


def _becomes_ready(process: subprocess.Popen[bytes]) -> bool:
    output = process.stdout
    assert output is not None
    with output:
        os.set_blocking(output.fileno(), False)
        deadline = time.monotonic() + _START_SECONDS
        while (said := output.read(1)) is None and time.monotonic() < deadline:
            time.sleep(_RETRY_SECONDS)
    return said == _READY


def main() -> None:
    """Be the guardian.  Arguments: package root, QMP socket, and two inherited files."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A service manager ends the whole group: the guest comes first.  It takes seconds at most.
        signal.signal(number, signal.SIG_IGN)
    path, pipe = sys.argv[2], int(sys.argv[4])
    note = StopNote(Path(), int(sys.argv[3]))
    with contextlib.suppress(BrokenPipeError):  # the daemon is dead already: then look at the note
        os.write(sys.stdout.fileno(), _READY)
    os.close(sys.stdout.fileno())
    while os.read(pipe, 1):
        pass
    if not note.is_set:
        return
    was_paused = _resume(path)
    if was_paused is None:
        sys.stderr.write(
            f"optpolined guardian: {path}: no QMP connection in {_GIVE_UP_SECONDS:g} s; the guest "
            "may stand stopped: resume it by QMP cont\n"
        )
        sys.exit(1)
    if was_paused:
        note.rescued()
    else:
        note.clear()


class _Executes(Protocol):
    def execute(self, command: str) -> object: ...


def resume_if_paused(qmp: _Executes) -> bool:
    """Let the guest run that a dead daemon left stopped; whether it was paused.

    Waits a moment until the daemon's gdb connection is gone: see the module's docstring.
    """
    deadline = time.monotonic() + _GDB_SECONDS
    while _has_gdb(qmp) and time.monotonic() < deadline:
        time.sleep(_RETRY_SECONDS)
    status = qmp.execute("query-status")
    paused = isinstance(status, dict) and status.get("status") == "paused"
    if paused:
        qmp.execute("cont")
    return paused


def _has_gdb(qmp: _Executes) -> bool:
    devices = qmp.execute("query-chardev")
    return isinstance(devices, list) and any(
        isinstance(device, dict)
        and device.get("label") == "gdb"
        and not str(device.get("filename")).startswith("disconnected:")
        for device in devices
    )


def _resume(path: str) -> bool | None:
    """Resume a paused guest; return whether it was, or ``None`` where QEMU was not reached."""
    deadline = time.monotonic() + _GIVE_UP_SECONDS
    while time.monotonic() < deadline:
        try:
            with _Qmp(path, deadline) as qmp:
                return resume_if_paused(qmp)
        except (ConnectionRefusedError, FileNotFoundError):
            return False  # nothing listens: QEMU has ended
        except (OSError, ValueError, LookupError):
            time.sleep(_RETRY_SECONDS)
    return None


class _Qmp:
    """As much QMP as it takes; OSError, ValueError and LookupError are its failures."""

    def __init__(self, path: str, deadline: float) -> None:
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(max(_RETRY_SECONDS, deadline - time.monotonic()))
            self._socket.connect(path)
            self._message()  # The greeting: comes when QEMU has time for us.
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def execute(self, command: str) -> object:
        self._socket.sendall(json.dumps({"execute": command}).encode() + b"\n")
        while "event" in (message := self._message()):
            pass
        return message["return"]

    def _message(self) -> dict[str, object]:
        while b"\n" not in self._received:
            data = self._socket.recv(0x10000)
            if not data or len(self._received) > _MAX_LINE_BYTES:
                raise ConnectionAbortedError
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ConnectionAbortedError
        return message
