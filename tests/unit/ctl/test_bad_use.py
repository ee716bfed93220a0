"""What goes wrong is one line that says what to do, and an exit code."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pwd import getpwuid
from tempfile import TemporaryDirectory

import pytest

from optpolined.api.requests import Answer
from optpolined.ctl import main
from tests.unit.ctl.conftest import Command, write_config
from tests.unit.ctl.fake_daemon import served

NOBODY = 65534


def test_a_wrong_guest_name_is_answered_with_the_nearest_one(command: Command) -> None:
    code, out, err = command("status", guest="vm11")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no configuration for guest 'vm11'" in err
    assert "did you mean vm1?" in err
    code, _, err = command("status", guest="elsewhere")
    assert code == 2
    assert "copy configs/guests/vm1.toml" in err


@pytest.mark.parametrize("name", ["", "../vm1", ".vm1", "a\nb"])
def test_an_impossible_guest_name_is_refused_in_one_line(command: Command, name: str) -> None:
    code, _, err = command("status", guest=name)
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("left", ["nothing", "a dead socket"])
@pytest.mark.parametrize("arguments", [["status"], ["freeze"], ["explain", "a+0x1"], ["top"]])
def test_without_a_daemon_the_error_says_how_to_start_one(
    command: Command, directory: Path, left: str, arguments: list[str]
) -> None:
    path = directory / "vm1.status"
    if left == "a dead socket":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    code, out, err = command(*arguments)
    assert (code, out) == (1, "")
    assert (
        err == f"optpolinectl: {path}: no daemon answers; start it with `optpolined --guest vm1`\n"
    )


@pytest.mark.parametrize("arguments", [["status"], ["freeze"]])
def test_a_reply_of_another_program_is_an_error(
    command: Command, directory: Path, arguments: list[str]
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "vm1.status"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b'{"QMP": {}}\n')

        thread = threading.Thread(target=serve)
        thread.start()
        code, out, err = command(*arguments)
        thread.join()
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "the reply is not one of optpolined of this version" in err


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A folder that all users may read; those of pytest are private."""
    with TemporaryDirectory(prefix="optpolinectl-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        write_config(directory, directory / "run")
        (directory / "run").mkdir()
        yield directory


@pytest.mark.parametrize("closed", ["the socket", "its folder"])
def test_a_socket_without_permission_names_its_owner(
    open_directory: Path, closed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_directory / "run"
    owner = getpwuid(os.geteuid()).pw_name
    with served(run):
        path = run / "vm1.status"
        (path if closed == "the socket" else run).chmod(0)
        for name in ("status", "freeze"):
            with somebody_else():
                code = main([name, "--guest", "vm1", "--config-dir", str(open_directory)])
            out, err = capsys.readouterr()
            assert (code, out, err.count("\n")) == (1, "", 1)
            assert err.startswith(f"optpolinectl: {path}: ")
            assert f"may not open it; run this as {owner}: `sudo -u {owner} " in err
        run.chmod(0o700)


def test_a_configuration_without_permission_is_an_error(
    open_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (open_directory / "run").chmod(0)
    (open_directory / "vm1.toml").chmod(0)
    for directory in (open_directory / "run", open_directory):
        with somebody_else():
            code = main(["status", "--guest", "vm1", "--config-dir", str(directory)])
        complaint = f"optpolinectl: {directory}/vm1.toml: cannot be read: Permission denied\n"
        assert (code, *capsys.readouterr()) == (2, "", complaint)
    (open_directory / "run").chmod(0o700)


@contextmanager
def somebody_else() -> Iterator[None]:
    """Run as a user that file modes apply to; root becomes nobody for this time."""
    if os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.mark.parametrize(
    "said",
    [
        "the guest has no function vfs_raed",
        "vfs_read may be any of 2 sites: 0xffffffff81000010, 0xffffffff81000020",
        "alpha+0x30 is left alone: noinstr",
    ],
)
@pytest.mark.parametrize("name", ["explain", "relearn", "revert", "unpin"])
def test_the_message_of_the_daemon_is_printed(
    command: Command, directory: Path, name: str, said: str
) -> None:
    with served(directory, lambda _: Answer(outcome="refused", says=said)):
        assert command(name, "vfs_raed") == (2, "", f"optpolinectl: {said}\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["sites", "a" * 513], "pattern: String should have at most 512 characters"),
        (["explain", ""], "site: String should have at least 1 character"),
        (["pin", "a", ""], "target: String should have at least 1 character"),
        (["static-call", "set", "k", "f" * 600], "function: String should have at most"),
    ],
)
def test_an_impossible_name_is_refused_before_the_daemon_is_asked(
    command: Command, directory: Path, arguments: list[str], complaint: str
) -> None:
    with served(directory) as asked:
        code, out, err = command(*arguments)
    assert (code, out, err.count("\n"), asked) == (2, "", 1, [])
    assert complaint in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["pin", "a", "--guest", "vm1"], "required: TARGET"),
        (["status"], "required: --guest"),
        (["revert", "--guest", "vm1"], "one of the arguments SITE --all is required"),
        (["revert", "a", "--all", "--guest", "vm1"], "not allowed with argument SITE"),
        (["sites", "a", "--symbol", "b", "--guest", "vm1"], "not allowed with argument PATTERN"),
        (["sites", "--top", "0", "--guest", "vm1"], "0 is not a number from 1 to 100000"),
        (["sites", "--top", "many", "--guest", "vm1"], "many is not a number from 1 to 100000"),
        (["sites", "--order", "heat", "--guest", "vm1"], "invalid choice: 'heat'"),
        (["top", "--interval", "nan", "--guest", "vm1"], "nan is not a number of seconds"),
        (["static-call", "--guest", "vm1"], "list|set"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    told = capsys.readouterr()
    assert (ended.value.code, told.out, told.err.count("\n")) == (2, "", 1)
    assert complaint in told.err
    assert "--help`" in told.err


def test_top_without_a_terminal_says_what_to_use(command: Command, directory: Path) -> None:
    with served(directory):
        code, out, err = command("top")
    assert (code, out) == (2, "")
    assert err == (
        "optpolinectl: top needs a terminal; use --json, or `optpolinectl sites --order calls`\n"
    )


def test_a_reader_that_closes_the_pipe_causes_no_error(directory: Path) -> None:
    where = f"--guest vm1 --config-dir {directory}"
    run = f"{sys.executable} -c 'from optpolined.ctl import main; main()'"
    with served(directory):
        result = subprocess.run(
            ["sh", "-c", f"{run} sites --json {where} | head -n 1"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert (result.stdout, result.stderr) == ("{\n", "")
