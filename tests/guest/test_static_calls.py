"""Static calls of a module, set by `optpolinectl` while they are called all the time."""

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from guest.image.boot import Guest
from optpolined.config import GuestConfig, QemuConfig
from optpolined.kernel.module.header import read_status
from optpolined.patching.protocol.steps import Write
from optpolined.patching.protocol.transport import WRITTEN
from optpolined.session.link import connect
from optpolined.session.text import read_text
from tests.guest.command import COMMAND, one_line, optpolined
from tests.guest.harness import PATIENCE_SECONDS, bench_calls, config_of, open_session, wait_until
from tests.guest.running import Running, text_was_put_back

NUMBER, EVENT = "optseed_number", "optseed_event"
INDIRECT = "call_2_skewed"
"""Other work for the daemon meanwhile."""

PLACES = {NUMBER: 3, EVENT: 2}
"""The trampoline and the inline sites of each key."""

ONLY_OPTSEED = """
[policy]
mode = "opt-in"
include = ["optseed_*"]
"""


class Seed:
    """The guest's own account of what its static calls reached."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def allow(self, key: str, *targets: str) -> None:
        """Set which targets calls may reach from now on; every other target is an error."""
        self.guest.run(f"echo {key} {' '.join(targets)} >/proc/optseed_static")

    def reached(self, key: str) -> Counter[tuple[str, str]]:
        """Return the calls so far by scenario and target."""
        lines = self.guest.run("cat /proc/optseed_static").splitlines()
        rows = (dict(word.split("=") for word in line.split()) for line in lines)
        return Counter(
            {(row["name"], row["target"]): int(row["calls"]) for row in rows if row["key"] == key}
        )

    def wait_only(self, key: str, target: str) -> None:
        """Wait until each place that calls ``key`` has reached ``target``, and no other since."""
        self._wait_each(key, target)
        before = self.reached(key)
        self._wait_each(key, target)
        assert {reached for _, reached in self.reached(key) - before} == {target}

    def _wait_each(self, key: str, target: str) -> None:
        before = self.reached(key)
        names = {name for name, _ in before}
        wait_until(
            lambda: self.reached(key) - before,
            f"all of {names} reach {target}",
            lambda since: {name for name, reached in since if reached == target} == names,
        )


@pytest.fixture(scope="module")
def seed(guest: Guest) -> Iterator[Seed]:
    """The shared guest, with optseed at work; every call must have been right."""
    guest.run("insmod /lib/modules/seed/optseed.ko")
    guest.run("echo rate 20 >/proc/optseed")
    for name in (*(name for name in bench_calls(guest, "optseed") if "static" in name), INDIRECT):
        guest.run(f"echo run {name} >/proc/optseed")
    yield Seed(guest)
    guest.run("echo stop >/proc/optseed")
    counts = bench_calls(guest, "optseed")
    assert {name: errors for name, (_, errors) in counts.items() if errors} == {}
    assert "BUG" not in guest.run("dmesg")
    guest.run("rmmod optseed")


@pytest.fixture
def start(seed: Seed, tmp_path: Path) -> Iterator[Callable[[], Running]]:
    """Start the daemon, and wait until it knows the static calls; it ends with the test."""
    started: list[Running] = []

    def run() -> Running:
        started.append(Running(seed.guest, tmp_path, ONLY_OPTSEED))
        started[-1].wait_for(lambda status: status.epoch > 0)
        return started[-1]

    yield run
    for running in started:
        running.kill()


@pytest.fixture(scope="module")
def text(seed: Seed) -> Callable[[], bool]:
    """Return whether the guest's text is what it was at first; a daemon may be attached."""
    with open_session(config_of(seed.guest)) as session:
        before = session.survey.texts
    side = GuestConfig(
        qemu=QemuConfig(qmp_socket=seed.guest.side_qmp),
        runtime_directory=seed.guest.directory / "run",
    )

    def is_as_before() -> bool:
        with connect(side, writable=False) as link:
            return read_text(link.attachment.space, before) == before

    return is_as_before


def static_call(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(COMMAND.with_name("optpolinectl")),
            *("static-call", *arguments),
            *("--guest", "test", "--config-dir", str(directory)),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def listed(directory: Path) -> dict[str, str | None]:
    result = static_call(directory, "list", "--json")
    assert result.returncode == 0, result.stderr
    return {row["key"]: row["target"] for row in json.loads(result.stdout)["static_calls"]}


def point(seed: Seed, directory: Path, key: str, old: str, new: str) -> None:
    """Set ``key`` from ``old`` to ``new`` while it is called."""
    seed.allow(key, old, new)
    result = static_call(directory, "set", key, "NULL" if new == "none" else new)
    assert result.returncode == 0, result.stderr
    assert f": {PLACES[key]} places changed" in result.stdout
    seed.allow(key, new)
    seed.wait_only(key, new)
    assert listed(directory)[key] == (None if new == "none" else f"{new} [optseed]")


@contextmanager
def put_back(seed: Seed, *, number: int, event: int | None = None) -> Iterator[None]:
    """Allow both keys to be put back within the block, and wait until that is done."""
    seed.allow(NUMBER, f"{NUMBER}_{number}", f"{NUMBER}_0")
    seed.allow(EVENT, "none" if event is None else f"{EVENT}_{event}", "none")
    yield
    seed.allow(NUMBER, f"{NUMBER}_0")
    seed.allow(EVENT, "none")
    seed.wait_only(NUMBER, f"{NUMBER}_0")
    seed.wait_only(EVENT, "none")


def ended(
    seed: Seed, running: Running, *, number: int, event: int | None = None
) -> tuple[int, str]:
    """Have the daemon put everything back; return its exit code, and what it said."""
    with put_back(seed, number=number, event=event):
        return running.end()


def refuses_what_cannot_be(directory: Path) -> None:
    """Check that each is refused in one line, and that nothing is changed."""
    before = listed(directory)
    for key, function, why in (
        ("no_such_key", f"{NUMBER}_1", f"known: {EVENT}, {NUMBER}"),
        (NUMBER, "no_such_function", "no function 'no_such_function'"),
        (NUMBER, "jiffies", "no function 'jiffies'"),  # no code
        (NUMBER, "start_kernel", "no function 'start_kernel'"),  # freed after boot
        (NUMBER, "optp_int3", "in the module optpoline, which could be unloaded"),
        (NUMBER, f"__optp_tramp_{NUMBER}", "a static call itself"),
    ):
        result = static_call(directory, "set", key, function)
        assert why in one_line(result)
        assert result.stdout == ""
    assert listed(directory) == before


def test_each_target_in_turn_while_they_are_called(
    seed: Seed, start: Callable[[], Running], text: Callable[[], bool], tmp_path: Path
) -> None:
    running = start()
    assert listed(tmp_path) == {NUMBER: f"{NUMBER}_0 [optseed]", EVENT: None}
    shown = static_call(tmp_path, "list").stdout
    assert f"{EVENT} [optseed] -> NULL, 1 sites\n" in shown
    assert f"{NUMBER} [optseed] -> {NUMBER}_0 [optseed], 2 sites\n" in shown
    for key, ids in ((NUMBER, (0, 1, 2, 3)), (EVENT, (None, 0, 1, 2, 3, None))):
        names = ["none" if number is None else f"{key}_{number}" for number in ids]
        for old, new in pairwise(names):
            point(seed, tmp_path, key, old, new)
    again = static_call(tmp_path, "set", NUMBER, f"{NUMBER}_3")
    assert again.stdout == f"{NUMBER} goes to {NUMBER}_3: 0 places changed\n"
    assert f"{NUMBER}_3 [optseed] (built: {NUMBER}_0" in static_call(tmp_path, "list").stdout
    refuses_what_cannot_be(tmp_path)

    code, errors = ended(seed, running, number=3)
    assert code == 0, errors
    assert text_was_put_back(running)
    assert text()


def test_while_foreign_bytes_stand_at_a_place_the_module_is_held(seed: Seed) -> None:
    """A 0xCC of ours might stand there, which only the module can handle."""
    seed.allow(EVENT, "none")
    with open_session(config_of(seed.guest)) as session:
        (place,) = session.survey.static_calls[EVENT].sites
        built, theirs = place.original, bytes.fromhex("6666666690")  # a nop, as it does nothing
        assert session.transport.write([Write(place.address, built, theirs)]) == [WRITTEN]
        assert len(session.restore()) == 1
        assert read_status(session.space, session.header).held
        assert session.transport.write([Write(place.address, theirs, built)]) == [WRITTEN]


@pytest.mark.parametrize("by_next_daemon", [True, False])
def test_what_a_killed_daemon_had_set_stays_until_it_is_put_back(
    seed: Seed,
    start: Callable[[], Running],
    text: Callable[[], bool],
    tmp_path: Path,
    by_next_daemon: bool,
) -> None:
    """The next daemon puts it back at its end, or --recover-only does."""
    running = start()
    seed.allow(NUMBER, f"{NUMBER}_0", f"{NUMBER}_2")
    seed.allow(EVENT, "none", f"{EVENT}_3")
    for key, target in ((NUMBER, f"{NUMBER}_2"), (EVENT, f"{EVENT}_3")):
        assert static_call(tmp_path, "set", key, target).returncode == 0
    running.kill()
    seed.allow(NUMBER, f"{NUMBER}_2")
    seed.allow(EVENT, f"{EVENT}_3")
    seed.wait_only(NUMBER, f"{NUMBER}_2")
    seed.wait_only(EVENT, f"{EVENT}_3")
    assert not text()

    if by_next_daemon:
        running = start()
        assert listed(tmp_path) == {
            NUMBER: f"{NUMBER}_2 [optseed]",
            EVENT: f"{EVENT}_3 [optseed]",
        }
        code, errors = ended(seed, running, number=2, event=3)
        assert code == 0, errors
        assert text_was_put_back(running)
    else:
        with put_back(seed, number=2, event=3):
            result = optpolined("--guest", "test", "--config-dir", tmp_path, "--recover-only")
        assert result.returncode == 0, result.stderr
        assert "sites restored; optpoline.ko released" in result.stdout
    assert text()
