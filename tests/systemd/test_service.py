"""The unit under a real systemd, with a real guest under KVM, in an emulated machine.

A daemon takes a minute to start there, so each test uses the one that it finds.
"""

import re

import pytest

from tests.systemd.conftest import Service
from tests.systemd.machine import Machine

pytestmark = pytest.mark.long

UNIT = "optpolined@vm1"
CONFIG = "/etc/optpolined/vm1.toml"


def test_it_is_ready_when_the_guest_is_attached_to_and_not_before(
    machine: Machine, service: Service
) -> None:
    """A QEMU that does not answer cannot be attached to."""
    machine.run("systemctl kill -s STOP vm1")
    machine.run(f"systemctl start --no-block {UNIT}")
    machine.until(lambda: service.status == "attaching", "the daemon has begun")
    machine.run("sleep 5")
    service.must_not_be("active")
    machine.run("systemctl kill -s CONT vm1")
    service.comes_to("active")
    service.says("attached in ")
    (attached,) = service.events("GUEST=vm1", "PRIORITY=6")
    said = r"attached in [\d.]+ s: \d{4} sites, \d+ eligible"
    assert re.fullmatch(said, str(attached["MESSAGE"]))
    assert attached["_SYSTEMD_UNIT"] == f"{UNIT}.service"
    assert attached["LOGGER"] == "optpolined.daemon.serve"


def test_the_status_line_and_the_journal_say_what_it_does(
    machine: Machine, service: Service
) -> None:
    service.start()
    said = r"running: [\d,]+ sites, [\d,]+ promoted, \d+% of calls direct"
    machine.until(lambda: re.fullmatch(said, service.status) is not None, said)

    def direct() -> list[dict[str, object]]:
        changes = machine.journal("GUEST=vm1", "PRIORITY=7", "CODE_FUNC=log_changes")
        return [event for event in changes if " to " in str(event["MESSAGE"])]

    machine.until(lambda: bool(direct()), "a site's calls are made direct")
    assert re.fullmatch(r"0xffffffff[0-9a-f]{8}", str(direct()[0]["SITE"]))


def test_it_has_one_capability_and_no_way_to_more(machine: Machine, service: Service) -> None:
    printed = machine.run(f"cat /proc/{service.start()}/status")
    status = dict(line.split(":\t", 1) for line in printed.splitlines())
    assert status["CapBnd"] == status["CapEff"] == f"{1 << 19:016x}", "CAP_SYS_PTRACE"
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert machine.run(f"systemd-analyze verify {UNIT}.service") == ""


def test_a_reload_changes_the_policy_without_detaching(machine: Machine, service: Service) -> None:
    pid = service.start()
    machine.run(f"cp {CONFIG} /run/vm1.toml")
    try:
        machine.run(f"sed -i 's/^mode = .*/&\\nbans = [\"vfs_*\"]/' {CONFIG}")
        machine.run(f"systemctl reload {UNIT}")
        service.says("read again")
        listed = "optpolinectl sites 'vfs_*' --state banned --guest vm1"
        machine.until(lambda: "banned by 'vfs_*'" in machine.try_run(listed)[1], "sites are banned")
        assert "vfs_" in machine.run(listed)
        machine.run(f"echo nonsense >>{CONFIG}")
        machine.run(f"systemctl reload {UNIT}")
        machine.until(lambda: bool(service.events("REASON=bad_configuration")), "a wrong file")
        service.comes_to("active")
        assert service.pid == pid
    finally:
        machine.run(f"cp /run/vm1.toml {CONFIG}")
        machine.run(f"systemctl reload {UNIT}")


def test_a_daemon_that_was_killed_is_started_again_and_recovers(
    machine: Machine, service: Service
) -> None:
    pid = service.start()
    machine.run(f"systemctl kill -s KILL --kill-who=main {UNIT}")
    service.comes_back(pid)
    service.says("^nothing to resume: ")  # ExecStopPost
    service.says(r"^restored \d+ of \d+ sites that were left patched or half-way$")


def test_a_guest_that_was_left_stopped_is_resumed_by_exec_stop_post(
    machine: Machine, service: Service
) -> None:
    """Daemon and guardian die at once, while the guest is stopped."""
    pid = service.start()
    assert machine.run(f"/usr/libexec/qmp-status {pid}") == "paused"
    machine.run(f"systemctl kill -s KILL {UNIT}")
    service.says("^resumed: a daemon that died had left the guest stopped$")
    machine.until(lambda: service.guest == "running", "the guest runs", 60)
    service.comes_back(pid)


def test_a_loop_that_hangs_is_ended_and_started_again(machine: Machine, service: Service) -> None:
    """SIGSTOP stops the loop, and with it its pings; nothing else sends any."""
    pid = service.start()
    machine.run(f"kill -STOP {pid}")
    service.comes_back(pid)
    service.says("Watchdog timeout")
    service.says("^Fatal Python error: Aborted")


def test_the_target_starts_what_is_enabled_and_its_stop_puts_the_guest_back(
    machine: Machine, service: Service
) -> None:
    service.start()
    machine.run(f"systemctl enable {UNIT}")
    machine.run("systemctl start optpolined.target")
    wants = machine.run("systemctl show optpolined.target -P Wants")
    machine.run("systemctl stop optpolined.target")
    service.comes_to("inactive")
    assert wants == f"{UNIT}.service"
    assert service.property("Result") == "success"
    assert service.property("ExecMainStatus") == "0"
    service.says("^detached: the text is identical to what it was$")
    machine.until(lambda: machine.run("ls /run/optpolined") == "", "nothing is left in /run", 60)
