"""The room qemu/ against a real QEMU: no kernel, only what the firmware does."""

import contextlib
import itertools
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optpolined.addresses import GuestPhysical
from optpolined.qemu import process
from optpolined.qemu.errors import (
    MonitorBusyError,
    MonitorClosedError,
    ProcessGoneError,
    ResumedError,
    StubAbsentError,
    StubBusyError,
    StubClosedError,
)
from optpolined.qemu.gdbstub import GdbStub, close_stub, open_stub
from optpolined.qemu.memory import ProcessMemory, StubMemory, ram_ranges
from optpolined.qemu.monitor import Monitor
from optpolined.qemu.process import QemuProcess
from tests.guest.bare_qemu import (
    AT,
    SLACK_SECONDS,
    Qemu,
    await_free,
    connect,
    runs,
    soon,
    started,
)
from tests.guest.harness import wait_until

ROOT = Path(process.__file__).parents[2]


@pytest.fixture(scope="module")
def shared() -> Iterator[Qemu]:
    with started() as qemu:
        yield qemu


@pytest.fixture
def monitor(shared: Qemu) -> Iterator[Monitor]:
    """A connection to a guest that runs and has no gdbstub."""
    with connect(shared) as connection:
        connection.execute("cont")
        yield connection
        close_stub(connection)


@pytest.fixture
def stub(shared: Qemu, monitor: Monitor) -> Iterator[GdbStub]:
    with GdbStub.connect(open_stub(monitor, shared.gdb)) as connection:
        yield connection


# Monitor and process


def test_the_process_is_found_and_its_end_noticed() -> None:
    with started() as qemu, connect(qemu) as monitor:
        process = QemuProcess.find(monitor)
        memory = ProcessMemory(process, ram_ranges(monitor))
        assert process.pid == monitor.peer_pid() == qemu.pid
        assert process.is_alive()
        assert len(memory.read(AT, 16)) == 16
        with contextlib.suppress(MonitorClosedError):
            monitor.execute("quit")
        assert soon(lambda: not process.is_alive())
        with pytest.raises(MonitorClosedError):
            monitor.status()

        def is_gone() -> bool:
            try:
                return len(memory.read(AT, 16)) != 16
            except ProcessGoneError:
                return True

        # Its threads end one by one; the memory ends with the last.
        assert soon(is_gone)
        memory.close()


def test_a_process_whose_socket_another_program_has_opened_is_found() -> None:
    # Libvirt does it this way.
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "qmp"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            number = listener.fileno()
            chardev = f"socket,id=qmp,fd={number},server=on,wait=off"
            options = ("-chardev", chardev, "-mon", "chardev=qmp,mode=control")
            with started(*options, pass_fds=(number,)) as qemu:
                listener.close()
                with Monitor.connect(path, timeout_seconds=SLACK_SECONDS) as monitor:
                    assert monitor.peer_pid() == os.getpid()
                    assert QemuProcess.find(monitor).pid == qemu.pid


def test_a_second_monitor_client_is_told_of_the_first(shared: Qemu, monitor: Monitor) -> None:
    with pytest.raises(MonitorBusyError):
        Monitor.connect(shared.qmp, timeout_seconds=0.3)
    assert monitor.status() == "running"


def test_events_of_stop_and_cont_arrive(monitor: Monitor) -> None:
    monitor.drain_events()
    monitor.execute("stop")
    monitor.execute("cont")
    names = [event.name for event in monitor.drain_events()]
    assert names[-2:] == ["STOP", "RESUME"]


# Memory


def test_ram_above_and_below_the_pci_hole_is_found_and_read() -> None:
    with started(memory_mib=4608) as qemu, connect(qemu) as monitor:
        ranges = ram_ranges(monitor)
        assert sum(item.size for item in ranges if item.start >= 1 << 32) >= 2 << 30
        assert (ranges[0].start, ranges[-1].start) == (0, 1 << 32)
        memory = ProcessMemory(QemuProcess.find(monitor), ranges)
        with GdbStub.connect(open_stub(monitor, qemu.gdb)) as stub:
            places = [AT, GuestPhysical(ranges[-1].start + 5), GuestPhysical(ranges[-1].end - 7)]
            stub.stop()
            stub.write([(place, b"%07x" % number) for number, place in enumerate(places)])
            stub.resume()
        assert [memory.read(place, 7) for place in places] == [b"0000000", b"0000001", b"0000002"]
        memory.close()


def test_both_ways_to_read_see_what_the_stub_writes(monitor: Monitor, stub: GdbStub) -> None:
    ranges = ram_ranges(monitor)
    direct = ProcessMemory(QemuProcess.find(monitor), ranges)
    through_stub = StubMemory(stub, ranges)
    data = random.Random(1).randbytes(300_000)
    stub.stop()
    stub.write([(AT, data)])
    assert through_stub.read(AT, len(data)) == data
    assert stub.in_stop
    stub.resume()
    assert direct.read(AT, len(data)) == data
    assert through_stub.read(AT, len(data)) == data
    assert runs(monitor)
    direct.close()


def test_without_permission_the_process_is_found_and_its_memory_is_not() -> None:
    # What the daemon does as another user; only root may become that user.
    program = """if True:
        import os, sys
        from pathlib import Path
        sys.path.append(sys.argv[1])
        from optpolined.qemu.errors import PermissionDeniedError
        from optpolined.qemu.memory import ProcessMemory, ram_ranges
        from optpolined.qemu.monitor import Monitor
        from optpolined.qemu.process import QemuProcess
        with Monitor.connect(Path(sys.argv[2])) as monitor:
            process = QemuProcess.find(monitor)
            assert process.pid == int(sys.argv[3]) and process.is_alive()
            try:
                ProcessMemory(process, ram_ranges(monitor))
            except PermissionDeniedError as error:
                print(error)
    """
    with started() as qemu:
        connect(qemu).close()
        qemu.directory.chmod(0o755)
        qemu.qmp.chmod(0o666)
        command = ["setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set", "-all"]
        done = subprocess.run(
            [*command, sys.executable, "-c", program, str(ROOT), str(qemu.qmp), str(qemu.pid)],
            check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert "CAP_SYS_PTRACE" in done.stdout, done.stderr


# The gdbstub


def test_connecting_stopping_and_closing_leave_the_guest_running(
    shared: Qemu, monitor: Monitor
) -> None:
    path = open_stub(monitor, shared.gdb)
    assert path == shared.gdb
    for _ in range(3):
        with GdbStub.connect(path) as stub:
            assert runs(monitor)
            for _ in range(20):
                assert stub.stop()
                assert monitor.status() == "paused"
                stub.resume()
                assert runs(monitor)
            assert stub.stop()
        assert runs(monitor)
        await_free(monitor, path)


def test_a_stub_in_use_and_a_bad_place_are_told(shared: Qemu, monitor: Monitor) -> None:
    with pytest.raises(StubAbsentError, match="QEMU cannot open"):
        # Longer than a socket's address may be.
        open_stub(monitor, shared.directory / ("d" * 100) / "gdb")
    with GdbStub.connect(open_stub(monitor, shared.gdb)) as stub:
        with pytest.raises(StubBusyError):
            open_stub(monitor, shared.gdb)
        close_stub(monitor)
        with pytest.raises(StubClosedError):
            stub.stop()
    assert runs(monitor)


def test_a_guest_that_another_client_paused_stays_paused(monitor: Monitor, stub: GdbStub) -> None:
    monitor.execute("stop")
    for _ in range(3):
        assert not stub.stop()
        stub.write([(AT, b"abc")])
        assert stub.read([(AT, 3)]) == [b"abc"]
        stub.resume()
        assert monitor.status() == "paused"
    stub.close()
    assert monitor.status() == "paused"


def test_a_paused_guest_stays_paused_over_connect_and_close(shared: Qemu, monitor: Monitor) -> None:
    path = open_stub(monitor, shared.gdb)
    monitor.execute("stop")
    with GdbStub.connect(path) as stub:
        assert monitor.status() == "paused"
        assert not stub.stop()
    assert monitor.status() == "paused"


@pytest.mark.parametrize(
    "act",
    [
        lambda stub: stub.read([(GuestPhysical(AT + number), 4) for number in range(200)]),
        lambda stub: stub.write([(GuestPhysical(AT + number), b"x") for number in range(200)]),
        lambda stub: stub.resume(),
    ],
    ids=["read", "write", "resume"],
)
def test_cont_in_the_middle_of_a_stop_is_noticed_and_obeyed(
    monitor: Monitor, stub: GdbStub, act: Callable[[GdbStub], object]
) -> None:
    for _ in range(5):
        assert stub.stop()
        monitor.execute("cont")
        with pytest.raises(ResumedError):
            act(stub)
        assert not stub.in_stop
        assert runs(monitor)
        assert stub.stop()
        stub.write([(AT, b"usable")])
        assert stub.read([(AT, 6)]) == [b"usable"]
        stub.resume()
        assert runs(monitor)


def test_cont_and_stop_in_the_middle_of_a_stop_leave_the_guest_paused(
    monitor: Monitor, stub: GdbStub
) -> None:
    assert stub.stop()
    monitor.execute("cont")
    monitor.execute("stop")
    with pytest.raises(ResumedError):
        stub.read([(AT, 4)])
    assert monitor.status() == "paused"
    assert not stub.stop()
    stub.resume()
    assert monitor.status() == "paused"


def test_stops_race_with_a_client_that_pauses_and_resumes(monitor: Monitor, stub: GdbStub) -> None:
    with disturbed(monitor):
        rounds: Counter[str] = Counter()
        numbers = itertools.count(1)

        def race() -> Counter[str]:
            rounds[one_round(stub, next(numbers))] += 1
            return rounds

        wait_until(
            race,
            "some rounds are undisturbed, and some are not",
            lambda rounds: (
                rounds.total() > 200
                and rounds["undisturbed"] > 10
                and rounds["resumed"] + rounds["paused"] > 0
            ),
            pause_seconds=0,
        )
    # Our last resume may have come before the last cont, but nothing holds the guest now.
    assert runs(monitor)
    assert stub.stop()
    stub.resume()
    assert runs(monitor)


@contextlib.contextmanager
def disturbed(monitor: Monitor) -> Iterator[None]:
    """Another client pauses and resumes the guest all the time."""
    is_over = threading.Event()

    def disturb() -> None:
        chance = random.Random(2)
        while not is_over.is_set():
            monitor.execute("stop")
            time.sleep(chance.random() * 0.003)
            monitor.execute("cont")
            time.sleep(chance.random() * 0.003)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def one_round(stub: GdbStub, number: int) -> str:
    """Write and read back in one stop; return what came in between."""
    data = number.to_bytes(8, "little") * 4
    try:
        stopped = stub.stop()
        stub.write([(GuestPhysical(AT + 64 * place), data) for place in range(40)])
        found = stub.read([(GuestPhysical(AT + 64 * place), 32) for place in range(40)])
        assert found == [data] * 40
        stub.resume()
    except ResumedError:
        assert not stub.in_stop
        return "resumed"
    return "undisturbed" if stopped else "paused"


def test_stop_reports_that_were_not_read_do_not_hang_qemu(monitor: Monitor, stub: GdbStub) -> None:
    for _ in range(10):
        for _ in range(50):
            monitor.execute("stop")
            monitor.execute("cont")
        stub.drain()
    assert stub.stop()
    stub.resume()
    assert runs(monitor)


@pytest.mark.parametrize("rest", [b"", b"#"])
def test_what_a_dead_client_left_in_the_parser_is_not_executed(
    shared: Qemu, monitor: Monitor, rest: bytes
) -> None:
    path = open_stub(monitor, shared.gdb)
    with GdbStub.connect(path) as stub:
        stub.stop()
        stub.write([(AT, bytes(8))])
        stub.resume()
    line = b"M%x,2:ffff" % AT
    # One more odd digit is no data; a checksum of 00 would complete the command.
    line += bytes([-sum(line) & 0xFF])
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
        await_free(monitor, path)
        client.connect(str(path))
        assert client.recv(100).startswith(b"$T02")
        client.sendall(b"+$" + line + rest)
        monitor.status()
    monitor.execute("cont")
    await_free(monitor, path)
    with GdbStub.connect(path) as stub:
        assert stub.stop()
        assert stub.read([(AT, 8)]) == [bytes(8)]
        stub.resume()
    assert runs(monitor)


def test_the_physical_mode_is_set_at_every_attach(shared: Qemu, monitor: Monitor) -> None:
    path = open_stub(monitor, shared.gdb)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
        client.connect(str(path))
        client.recv(100)
        client.sendall(b"$Qqemu.PhyMemMode:0#%02x" % (sum(b"Qqemu.PhyMemMode:0") & 0xFF))
        client.settimeout(SLACK_SECONDS)
        answer = b""
        while b"$OK#9a" not in answer:
            answer += client.recv(100)
    monitor.execute("cont")
    await_free(monitor, path)
    with GdbStub.connect(path) as stub:
        stub.stop()
        stub.write([(AT, b"physical")])
        stub.resume()
        memory = ProcessMemory(QemuProcess.find(monitor), ram_ranges(monitor))
        assert memory.read(AT, 8) == b"physical"
        memory.close()
