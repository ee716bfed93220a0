"""Kill the daemon at every point of its work on a loaded guest: it must do no harm.

    python -m tests.guest.crash                       every packet of a cycle, then 300 random cuts
    python -m tests.guest.crash --every 20 --random 5 a sample

After each kill the guest must run again by itself, and the next daemon must find everything that
the dead one left: text, poke table and module are then as they were.
"""

import argparse
import gc
import itertools
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable

from guest.image.boot import Guest
from optpolined.config import GuestConfig, Settings
from optpolined.kernel.module.header import read_status
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.choice import ProtocolChoice
from optpolined.qemu.stopnote import noted_pids
from optpolined.session.attach import attach
from optpolined.session.link import connect
from optpolined.session.recover_only import recover_only
from optpolined.session.text import read_text
from tests.guest.crash_child import Cut, Trace, cycle, fork
from tests.guest.crash_watch import Watch, longest_after
from tests.guest.harness import config_of
from tests.guest.hot_cycle import checks, load, plan_hottest

SITES = 24
_PROGRESS_KILLS = 25
_RUNS_AGAIN_SECONDS = 120
_LONG_SECONDS = 0.25


class Crash:
    """Kills daemons of one guest, and counts what went wrong."""

    def __init__(self, guest: Guest, config: GuestConfig, watch: Watch) -> None:
        self.kills = self.unrecovered = self.failures = 0
        self.longest_seconds = 0.0
        self._guest = guest
        self._config = config
        self._watch = watch
        with (
            connect(config) as link,
            attach(link, Settings(config), time.monotonic, force=False) as session,
        ):
            self._plan = plan_hottest(session, SITES)
            assert session.restore() == []
            self._texts = session.survey.texts
            self._attachment = link.attachment
        self._entries = PokeEntries(self._attachment.space, self._attachment.header)
        gc.freeze()  # the children collect their own garbage, and leave our pages shared

    def at(self, cut: Cut) -> tuple[int, int] | None:
        """Kill a daemon there, and recover; return packets and bytes sent if it was not killed."""
        trace = Trace()
        _, status = os.waitpid(self._daemon(cut, trace), 0)
        if os.WIFEXITED(status):
            self._check(os.WEXITSTATUS(status) == 0, "the daemon failed")
            self._recover()
            return trace.read()[1:]
        killed_at, packets, sent = trace.read()
        self._killed(status, killed_at, f"packet {packets}, byte {sent}")
        return None

    def after(self, seconds: float) -> None:
        """Kill a daemon that long after its start, and recover."""
        pid = self._daemon(Cut(), Trace())
        time.sleep(seconds)
        killed_at = time.time()
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            self._killed(status, killed_at, f"{seconds:.3f} s")
        else:
            self._recover()

    def text_is_identical(self) -> bool:
        """Return whether every byte of code is what it was before the first kill."""
        return read_text(self._attachment.space, self._texts) == self._texts

    def _daemon(self, cut: Cut, trace: Trace) -> int:
        self._watch.take_events()
        return fork(lambda: cycle(self._config, self._plan, cut, trace))

    def _killed(self, status: int, killed_at: float, where: str) -> None:
        self._check(os.WTERMSIG(status) == signal.SIGKILL, f"{where}: the daemon hung")
        self.kills += 1
        self._check(self._runs_again(), f"{where}: the guest stays stopped")
        stood_seconds = longest_after(self._watch.take_events(), killed_at)
        self.longest_seconds = max(self.longest_seconds, stood_seconds)
        if stood_seconds > _LONG_SECONDS:
            _say(f"{where}: the guest stood {stood_seconds * 1e3:.0f} ms; is the machine idle?")
        self._recover()
        if self.kills % _PROGRESS_KILLS == 0:
            _say(
                f"{self.kills} kills, the last at {where}: {self.unrecovered} sites unrecovered, "
                f"{checks(self._guest).errors} guest errors, "
                f"longest stop {self.longest_seconds * 1e3:.0f} ms"
            )

    def _runs_again(self) -> bool:
        """Wait until the guest runs and the guardian has done its work."""
        deadline = time.monotonic() + _RUNS_AGAIN_SECONDS
        while not (self._watch.is_running() and not noted_pids(self._config.runtime_directory)):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def _recover(self) -> None:
        def recover() -> None:
            recovered = recover_only(self._config)
            assert recovered.is_complete, recovered

        _, status = os.waitpid(fork(recover), 0)
        self._check(status == 0, "the recovery failed")
        space, header = self._attachment.space, self._attachment.header
        with space.snapshot() as pages:
            for site in self._plan.sites.values():
                if pages.read(site.address, site.length) != site.original:
                    self.unrecovered += 1
            armed = len(self._entries.armed(pages))
        self._check(not armed, f"{armed} entries of the poke table are armed")
        self._check(not read_status(space, header).held, "the module is held")
        self._check(self.text_is_identical(), "the text differs")

    def _check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.failures += 1
            _say(f"kill {self.kills}: {otherwise}")


def main() -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(description="Kill the daemon at every point of its work.")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each N-th packet only")
    parser.add_argument("--random", type=int, default=300, metavar="N", help="then N random cuts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--protocol", type=ProtocolChoice, default=ProtocolChoice.BREAKPOINT)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # each recovery warns of what it restores
    with Guest() as guest:
        guest.wait_ready()
        load(guest)
        config = config_of(guest, protocol=options.protocol)
        with Watch(guest.side_qmp) as watch:
            crash = Crash(guest, config, watch)
            _say(f"a loaded guest, {SITES} hot sites, protocol {options.protocol.value}")
            packets, sent, seconds = _every_packet(crash, options.every)
            _say(f"a cycle is {packets} packets, {sent} bytes, {seconds:.2f} s: now random cuts")
            _random(crash, random.Random(options.seed), options.random, sent, seconds)
            return _report(crash, guest)


def _every_packet(crash: Crash, every: int) -> tuple[int, int, float]:
    """Kill after each ``every``-th packet of a cycle; return what a whole one sends."""
    for number in itertools.count(every, every):
        began = time.monotonic()
        whole = crash.at(Cut(packets=number))
        if whole is not None:
            return *whole, time.monotonic() - began
    raise AssertionError


def _random(crash: Crash, chance: random.Random, count: int, sent: int, seconds: float) -> None:
    """Half of them in the bytes, also within a packet; half at a moment, whatever happens then."""
    kinds: tuple[Callable[[], object], ...] = (
        lambda: crash.at(Cut(bytes=chance.randint(1, sent))),
        lambda: crash.after(chance.uniform(0, seconds)),
    )
    target = crash.kills + count
    while crash.kills < target:
        kinds[crash.kills % 2]()


def _report(crash: Crash, guest: Guest) -> int:
    errors = checks(guest).errors
    identical = crash.text_is_identical()
    _say(
        f"kills: {crash.kills}, guest errors: {errors}, unrecovered sites: {crash.unrecovered}, "
        f"longest stop after a kill: {crash.longest_seconds * 1e3:.0f} ms"
    )
    _say(f"text identical: {identical}")
    return int(bool(errors or crash.unrecovered or crash.failures) or not identical)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
