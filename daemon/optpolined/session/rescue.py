"""Resumes a guest that a daemon left stopped, whose guardian died with it."""

from contextlib import suppress
from pathlib import Path

from optpolined.config import GuestConfig
from optpolined.qemu.errors import MonitorAbsentError
from optpolined.qemu.guardian import resume_if_paused
from optpolined.qemu.monitor import Monitor
from optpolined.qemu.process import QemuProcess
from optpolined.qemu.stopnote import StopNote, note_path, noted_pids
from optpolined.session.errors import InUseError
from optpolined.session.lock import held

__all__ = ("rescue", "resume_if_left", "was_rescued")


def rescue(config: GuestConfig) -> str:
    """Resume the guest where a daemon that is dead left it stopped; say what was done.

    A guest that a daemon serves, or that another program has paused, is left alone.

    :raise QemuError: QEMU does not answer; the guest may stand stopped.
    :raise AttachRefusedError: the runtime directory is not ours to write.
    """
    directory = config.runtime_directory
    try:
        for pid in noted_pids(directory):
            with suppress(InUseError), held(directory, pid):
                done = _rescue(config, pid)
                if done:
                    return done
    except MonitorAbsentError as error:
        return f"nothing to resume: {error}"
    return "nothing to resume: no daemon that died has left the guest stopped"


def _rescue(config: GuestConfig, pid: int) -> str:
    """Rescue the guest if it is that of the QEMU process ``pid``; empty where there is no need."""
    timeout = config.qemu.answer_timeout_seconds
    with Monitor.connect(config.qemu.qmp_socket, timeout_seconds=timeout) as monitor:
        process = QemuProcess.find(monitor)
        if process.pid != pid:
            return ""
        return resume_if_left(monitor, process, config.runtime_directory)


def resume_if_left(monitor: Monitor, process: QemuProcess, directory: Path) -> str:
    """Resume the guest where there is a note that a daemon stopped it; the lock is held.

    :return: What was done; empty where there was no such note.
    :raise QemuError: QEMU does not answer.
    """
    note = StopNote.find(note_path(directory, process.pid), process.start_time)
    if note is None:
        return ""
    with note:
        left = note.is_set
        was_paused = left and resume_if_paused(monitor)
        if was_paused:
            note.rescued()
        elif not note.tells_of_rescue:
            note.clear()
            note.remove()
    if was_paused:
        return "resumed: a daemon that died had left the guest stopped"
    return "nothing to resume: the guest runs, or is not paused by us" if left else ""


def was_rescued(process: QemuProcess, directory: Path) -> bool:
    """Whether the last daemon had to be rescued from; tells it once.  The lock is held."""
    note = StopNote.find(note_path(directory, process.pid), process.start_time)
    if note is None:
        return False
    with note:
        told = note.tells_of_rescue
        note.remove()
    return told
