"""The overrides on disk, for the daemon that follows one that died."""

import logging
from pathlib import Path

import pytest

from optpolined import cli
from optpolined.api.requests import Ban, Freeze, Pin, Revert
from optpolined.config import PolicyConfig
from optpolined.control.override_file import OverrideFile
from optpolined.control.overrides import Overrides, Standstill
from optpolined.session.recover_only import Recovered
from tests.unit.control.made_up import Guest

POLICY = PolicyConfig(bans=("zeta",))


def written(file: OverrideFile) -> Overrides:
    """Return the overrides that a daemon has written before it died."""
    guest = Guest(POLICY, file.write)
    for order in (Pin(site="alpha+0x10", target="beta"), Ban(what="b*"), Revert(site="alpha+0x20")):
        assert guest.ask(order).outcome == "done"
    guest.ask(Freeze())
    kept = file.read()
    assert kept is not None
    return kept


def test_overrides_survive_a_crash(tmp_path: Path) -> None:
    kept = written(OverrideFile(tmp_path, "vm1"))
    assert kept == Overrides(
        POLICY, {"alpha+0x10": "beta"}, ["zeta", "b*"], ["alpha+0x20"], Standstill.FROZEN
    )
    overrides = Overrides.of_policy(POLICY)
    overrides.resume(kept)
    assert overrides == kept


def test_another_policy_drops_pins_and_bans_as_a_reload_does(tmp_path: Path) -> None:
    kept = written(OverrideFile(tmp_path, "vm1"))
    overrides = Overrides.of_policy(PolicyConfig())
    overrides.resume(kept)
    assert overrides == Overrides(PolicyConfig(), {}, [], ["alpha+0x20"], Standstill.FROZEN)


def test_a_clean_exit_leaves_no_file(tmp_path: Path) -> None:
    file = OverrideFile(tmp_path, "vm1")
    assert file.read() is None
    written(file)
    file.remove()
    file.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"policy": {}}', "\0"])
def test_a_file_that_makes_no_sense_is_logged_and_ignored(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "vm1.orders").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert OverrideFile(tmp_path, "vm1").read() is None
    (line,) = caplog.messages
    assert "are lost" in line
    assert "\n" not in line


def test_overrides_hold_where_the_file_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guest = Guest(POLICY, OverrideFile(tmp_path / "absent", "vm1").write)
    assert guest.ask(Freeze()).outcome == "done"
    assert guest.operator.standstill is Standstill.FROZEN
    assert "will not survive a crash" in caplog.text


def test_recover_only_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(OverrideFile(tmp_path, "vm1"))
    text = f'runtime_directory = "{tmp_path}"\n[qemu]\nqmp_socket = "/run/qmp"\n'
    (tmp_path / "vm1.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(
        cli, "recover_only", lambda _: Recovered(3, (), running=True, was_held=True)
    )
    monkeypatch.setattr(
        cli, "configure_logging", lambda *_, **__: None
    )  # it would change the log of the test's process
    assert cli.main(["--guest", "vm1", "--config-dir", str(tmp_path), "--recover-only"]) == 0
    assert "3 sites restored" in capsys.readouterr().out
    assert OverrideFile(tmp_path, "vm1").read() is None
