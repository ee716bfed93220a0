"""A guest that moves to another QEMU, or tries to, while it is patched."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guest.image.boot import Guest
from optpolined.api.status import DaemonPhase
from optpolined.config import PolicyConfig
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.standing import Standing
from optpolined.patching.recovery import Leftover, find_leftovers
from optpolined.qemu.monitor import Monitor
from optpolined.session.link import connect
from optpolined.session.survey import Survey
from optpolined.session.text import TextRegion
from tests.guest.bare_qemu import connect_when_there
from tests.guest.command import one_line, optpolined
from tests.guest.harness import config_of, load_state, start_load, wait_until, write_config
from tests.guest.running import AT_WORK, Running, text_was_put_back


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Guest], Running]]:
    """Start the daemon on a guest; it does not outlive the test."""
    started: list[Running] = []

    def running(guest: Guest) -> Running:
        directory = tmp_path / str(len(started))
        directory.mkdir()
        started.append(Running(guest, directory))
        return started[-1]

    yield running
    for each in started:
        each.kill()


def wait_patched(daemon: Running) -> None:
    daemon.wait_for(lambda status: status.pokes > 1000)


def migrate(monitor: Monitor, to: str, *, bytes_per_second: int) -> None:
    monitor.execute("migrate-set-parameters", {"max-bandwidth": bytes_per_second})
    monitor.execute("migrate", {"uri": to})


def migration(monitor: Monitor) -> str:
    answer = monitor.execute("query-migrate")
    assert isinstance(answer, dict)
    return str(answer["status"])


def wait_incoming(target: Guest) -> None:
    """Wait until QEMU listens for the incoming guest: its monitors answer only after that."""
    with connect_when_there(target.side_qmp) as monitor:
        assert monitor.status() == "inmigrate"


def kernel_text(guest: Guest) -> dict[TextRegion, bytes]:
    with connect(config_of(guest), writable=False) as link:
        return Survey(link.attachment, [], PolicyConfig(), {}).texts


def leftovers(guest: Guest) -> list[Leftover]:
    with connect(config_of(guest), writable=False) as link:
        space, header = link.attachment.space, link.attachment.header
        return find_leftovers(PokeEntries(space, header), space, header)


def holds_still(daemon: Running) -> bool:
    """Return whether the daemon makes no stop and no poke in some epochs of a migration."""
    first = daemon.wait_for(lambda status: status.phase is DaemonPhase.MIGRATING)
    last = daemon.wait_epochs(5)
    assert last.phase is DaemonPhase.MIGRATING
    return (first.pokes, first.stops) == (last.pokes, last.stops)


def test_a_guest_that_moves_is_taken_over_where_it_runs_then(
    boot: Callable[..., Guest], start: Callable[[Guest], Running]
) -> None:
    source = boot()
    start_load(source)
    before = kernel_text(source)
    first = start(source)
    wait_patched(first)
    where = f"unix:{source.directory / 'moving'}"
    with Guest("cloud", extra_args=("-incoming", where)) as target:
        wait_incoming(target)
        with Monitor.connect(source.side_qmp) as monitor:
            # It is slow, so that it does not end before the daemon is seen to wait for it.
            migrate(monitor, where, bytes_per_second=1 << 20)
            assert holds_still(first)
            monitor.execute("migrate-set-parameters", {"max-bandwidth": 1 << 30})
            code, errors = first.wait_end()
            assert monitor.status() == "postmigrate"
        assert code == 0, errors
        assert errors.count("has migrated") == 1
        source.kill()
        standing = [left.standing for left in leftovers(target)]
        assert len(standing) > 10
        assert set(standing) == {Standing.OURS}
        second = start(target)
        wait_patched(second)
        code, errors = second.end()
        assert code == 0, errors
        assert text_was_put_back(second)
        assert kernel_text(target) == before
        assert load_state(target)["errors"] == 0
        assert "BUG" not in target.run("dmesg")


def test_where_a_migration_fails_the_daemon_goes_on(
    boot: Callable[..., Guest], start: Callable[[Guest], Running], tmp_path: Path
) -> None:
    guest = boot()
    before = kernel_text(guest)
    daemon = start(guest)
    wait_patched(daemon)
    with Monitor.connect(guest.side_qmp) as monitor:

        def set_out() -> None:
            migrate(monitor, "exec:cat >/dev/null", bytes_per_second=1 << 20)

        def come_back() -> None:
            monitor.execute("migrate_cancel")
            wait_until(
                lambda: migration(monitor),
                "the migration is cancelled",
                lambda status: status == "cancelled",
            )

        set_out()
        assert holds_still(daemon)
        come_back()
        daemon.wait_for(lambda status: status.phase in AT_WORK)
        set_out()
        daemon.wait_for(lambda status: status.phase is DaemonPhase.MIGRATING)
        daemon.process.terminate()
        daemon.wait_says("waiting for the end of that")
        time.sleep(2)  # in which it must not end
        assert daemon.process.poll() is None
        assert migration(monitor) == "active"
        come_back()
        code, errors = daemon.wait_end()
        assert code == 0, errors
        assert text_was_put_back(daemon)
        set_out()
        write_config(guest, tmp_path)
        refused = optpolined("--guest", "test", "--config-dir", tmp_path)
        assert "the guest is migrating" in one_line(refused)
        come_back()
    assert kernel_text(guest) == before


def test_a_qemu_that_ends_when_it_has_given_its_guest_away_is_no_failure(
    boot: Callable[..., Guest], start: Callable[[Guest], Running]
) -> None:
    guest = boot()
    daemon = start(guest)
    wait_patched(daemon)
    with Monitor.connect(guest.side_qmp) as monitor:
        migrate(monitor, "exec:cat >/dev/null", bytes_per_second=1 << 20)
        daemon.wait_for(lambda status: status.phase is DaemonPhase.MIGRATING)
    guest.kill()  # as libvirt does, whether we have seen the end of the migration or not
    code, errors = daemon.wait_end()
    assert code == 0, errors
    assert "has migrated" in errors
    assert "Traceback" not in errors


@pytest.mark.usefixtures("images")
def test_a_guest_that_has_not_come_yet_is_refused(tmp_path: Path) -> None:
    with Guest("cloud", extra_args=("-incoming", "defer")) as target:
        wait_incoming(target)
        write_config(target, tmp_path)
        refused = optpolined("--guest", "test", "--config-dir", tmp_path)
        assert "has not arrived yet" in one_line(refused)
