"""The unit under a real systemd, with a real guest under KVM, all of it in an emulated machine."""

import re

from tests.systemd.conftest import Service
from tests.systemd.machine import Machine

CONFIG = "/etc/optpolined/vm1.toml"


def test_it_is_ready_when_the_guest_is_attached_to_and_not_before(
    machine: Machine, service: Service
) -> None:
    """A QEMU that does not answer cannot be attached to."""
    machine.run("systemctl kill -s STOP vm1")
    machine.run("systemctl start --no-block optpolined@vm1")
    machine.until(lambda: service.status == "attaching", "the daemon has begun")
    machine.run("sleep 5")
    assert service.state == "activating"
    machine.run("systemctl kill -s CONT vm1")
    machine.until(lambda: service.state != "activating", "attached")
    assert service.state == "active"
    (attached,) = machine.journal("GUEST=vm1", "PRIORITY=6")
    assert re.fullmatch(
        r"attached in [\d.]+ s: \d{4} sites, \d{4} eligible", str(attached["MESSAGE"])
    )
    assert attached["_SYSTEMD_UNIT"] == "optpolined@vm1.service"
    assert attached["LOGGER"] == "optpolined.service.serve"
    machine.until(lambda: service.status.startswith("running: "), "calls are made direct")
    (changed, *_) = machine.journal("GUEST=vm1", "PRIORITY=7", "CODE_FUNC=log_changes")
    assert re.fullmatch(r"0xffffffff[0-9a-f]{8}", str(changed["SITE"]))
    assert re.fullmatch(
        r"running: \d,\d{3} sites, \d+ promoted, [\d,]+ direct calls/s, [\d,]+ missed/s",
        service.status,
    )


def test_a_clean_stop_restores(machine: Machine, service: Service) -> None:
    service.start()
    machine.until(lambda: service.status.startswith("running: "), "calls are made direct")
    service.stop()
    assert service.property("Result") == "success"
    assert service.property("ExecMainStatus") == "0"
    assert "detached: the text is identical to what it was" in service.messages()
    assert machine.run("ls /run/optpolined") == ""


def test_a_daemon_that_was_killed_is_started_again_and_recovers(
    machine: Machine, service: Service
) -> None:
    service.start()
    machine.until(lambda: service.status.startswith("running: "), "calls are made direct")
    machine.run("systemctl kill -s KILL --kill-who=main optpolined@vm1")
    service.comes_back(restarts=0)
    assert service.guest == "running"
    messages = service.messages()
    assert any(text.startswith("nothing to resume: ") for text in messages), "ExecStopPost"
    restored = re.compile(r"\d+ of \d+ sites that were left patched or half-way are restored")
    assert any(restored.fullmatch(text) for text in messages)


def test_a_guest_that_was_left_stopped_is_resumed_by_exec_stop_post(
    machine: Machine, service: Service
) -> None:
    """Daemon and guardian die at once, while the guest stands."""
    service.start()
    pid = service.pid
    assert machine.run(f"/usr/libexec/qmp-status {pid}") == "paused"
    machine.run("systemctl kill -s KILL optpolined@vm1")
    machine.until(lambda: service.guest == "running", "the guest runs again")
    assert "resumed: a daemon that died had left the guest stopped" in service.messages()
    service.comes_back(restarts=0)


def test_a_loop_that_hangs_is_ended_and_started_again(machine: Machine, service: Service) -> None:
    """By SIGSTOP: the loop stands, and with it its pings; nobody else sends any."""
    service.start()
    machine.until(lambda: service.status.startswith("running: "), "calls are made direct")
    machine.run(f"kill -STOP {service.pid}")
    service.comes_back(restarts=0)
    messages = service.messages()
    assert any("Watchdog timeout" in text for text in messages)
    assert any(text.startswith("Fatal Python error: Aborted") for text in messages)
    assert service.guest == "running"


def test_a_reload_changes_the_policy_without_detaching(machine: Machine, service: Service) -> None:
    service.start()
    pid = service.pid
    original = machine.run(f"cat {CONFIG}")
    try:
        machine.run(f"printf '[policy]\\nbans = [\"vfs_*\"]\\n' >>{CONFIG}")
        machine.run("systemctl reload optpolined@vm1")
        machine.until(
            lambda: "banned" in machine.run("optpolinectl sites vfs_write --guest vm1"), "banned"
        )
        assert any("read again" in text for text in service.messages())
        machine.run(f"echo nonsense >>{CONFIG}")
        machine.run("systemctl reload optpolined@vm1")
        machine.until(lambda: bool(machine.journal("REASON=bad_configuration")), "a wrong file")
        assert (service.state, service.pid) == ("active", pid)
    finally:
        machine.run(f"cat >{CONFIG} <<'END'\n{original}\nEND")


def test_the_target_starts_and_stops_what_is_enabled(machine: Machine, service: Service) -> None:
    machine.run("systemctl enable optpolined@vm1")
    machine.run("systemctl start optpolined.target")
    machine.until(lambda: service.state == "active", "started with the target")
    machine.run("systemctl stop optpolined.target")
    machine.until(lambda: service.state == "inactive", "stopped with the target")
    machine.run("systemctl disable optpolined@vm1")


def test_it_has_one_capability_and_no_way_to_more(machine: Machine, service: Service) -> None:
    service.start()
    status = dict(
        line.split(":\t", 1) for line in machine.run(f"cat /proc/{service.pid}/status").splitlines()
    )
    assert status["CapBnd"] == status["CapEff"] == f"{1 << 19:016x}", "CAP_SYS_PTRACE"
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert machine.try_run("systemd-analyze verify optpolined@vm1.service") == (0, "")
