"""A configuration that is read again while a guest is attached."""

import logging
import threading
from argparse import Namespace
from pathlib import Path

import pytest

from optpolined.cli import _reread
from optpolined.config import GuestConfig, PolicyConfig
from optpolined.daemon.reload import compare
from optpolined.patching.protocol.choice import ProtocolChoice

OLD = GuestConfig.model_validate(
    {"qemu": {"qmp_socket": "/run/qmp"}, "policy": {"pins": {"vfs_read+0x9e": "pipe_read"}}}
)


def other(**sections: object) -> GuestConfig:
    return GuestConfig.model_validate(OLD.model_dump(mode="json") | sections)


def test_what_can_change_is_adopted_and_named() -> None:
    new = other(
        learning={"epoch_milliseconds": 100, "hysteresis": {"promote_epochs": 2}},
        policy={"bans": ["vfs_*"]},
    )
    reread = compare(OLD, new)
    assert reread.config == new
    assert str(reread) == (
        "changed: learning.epoch_milliseconds, learning.hysteresis.promote_epochs, policy.pins, "
        "policy.bans"
    )


def test_what_cannot_change_stays_and_is_named() -> None:
    new = other(
        runtime_directory="/tmp/elsewhere",
        qemu={"qmp_socket": "/run/other"},
        metrics={"port": 9000},
        poke={"batch_sites": 7},
        learning={"strategy": "periodic"},
    )
    reread = compare(OLD, new)
    assert reread.config == other(learning={"strategy": "periodic"})
    assert str(reread) == (
        "changed: learning.strategy; only a restart changes qemu.qmp_socket, poke.batch_sites, "
        "metrics.port, runtime_directory"
    )


def test_the_same_file_changes_nothing() -> None:
    assert compare(OLD, OLD).config == OLD
    assert str(compare(OLD, OLD)) == "nothing has changed"


def test_a_hang_up_reads_the_file_once_and_a_wrong_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, hung_up = tmp_path / "vm1.toml", threading.Event()
    options = Namespace(guest="vm1", config_dir=tmp_path, protocol=ProtocolChoice.STOPPED)
    head = '[qemu]\nqmp_socket = "/run/qmp"\n[policy]\n'
    file.write_text(head + 'bans = ["vfs_*"]\n', encoding="utf-8")
    assert _reread(options, hung_up) is None
    hung_up.set()
    config = _reread(options, hung_up)
    assert config is not None
    assert config.policy == PolicyConfig(bans=("vfs_*",))
    assert config.poke.protocol is ProtocolChoice.STOPPED  # the command line goes before the file
    assert _reread(options, hung_up) is None
    file.write_text(head + "bans = 7\n", encoding="utf-8")
    hung_up.set()
    with caplog.at_level(logging.ERROR):
        assert _reread(options, hung_up) is None
    (line,) = caplog.messages
    assert line.startswith("the configuration stays as it is: ")
    assert "policy.bans" in line
