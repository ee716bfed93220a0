"""Inline sites of drivers that the gcc plugin built: what is hot, and what stands there."""

import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import capstone

from guest.image.boot import Guest
from guest.image.drivers import DRIVERS
from optpolined.addresses import GuestVirtual
from optpolined.api.status import Status
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.config import PolicyConfig, Settings
from optpolined.control.override_file import OverrideFile
from optpolined.control.overrides import Overrides
from optpolined.daemon.endpoints import Endpoints
from optpolined.daemon.job import Job
from optpolined.daemon.loop import ReconcileLoop
from optpolined.kernel.sites.scan import Site
from optpolined.session.attach import attach
from optpolined.session.link import connect
from optpolined.session.session import Session
from tests.guest.harness import PATIENCE_SECONDS, Calls, config_of, wait_until

__all__ = ("Frame", "Head", "Held", "Work", "attached", "head", "hot_calls", "other_functions")

_LOOK_SECONDS = 3.0
_PATIENCE_EPOCHS = 240
# A line of /proc/PID/stack; every line must match.
_FRAME = re.compile(r"\[<0>\] ([\w.]+)\+0x([0-9a-f]+)/0x[0-9a-f]+( \[\w+\])?")


class Head(NamedTuple):
    """An inline part as capstone reads it: what the register is compared with, where equal goes."""

    compared: int
    goes_to: int


def head(session: Session, site: Site) -> Head:
    """Read from the guest's memory the instructions in front of the slow path."""
    part = site.inline
    assert part is not None
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.detail = True
    code = session.space.read(part.compare, part.slow - part.compare)
    compare, jne, branch, *_ = decoder.disasm(code, part.compare)
    assert (compare.mnemonic, jne.mnemonic) == ("cmp", "jne")
    assert branch.mnemonic in {"call", "jmp"}
    compared, slow, goes_to = (
        instruction.operands[-1].imm % (1 << 64) for instruction in (compare, jne, branch)
    )
    assert slow == part.slow
    return Head(compared, goes_to)


def hot_calls(
    session: Session, sites: Iterable[GuestVirtual], calls_per_second: float
) -> dict[GuestVirtual, Counter[GuestVirtual]]:
    """Let ``sites`` learn for some seconds; return the calls of those that are hot now."""
    learning: dict[GuestVirtual, Form] = dict.fromkeys(sites, LEARNING)
    session.apply(learning)
    began = time.monotonic()
    time.sleep(_LOOK_SECONDS)
    counts = session.counters.count()
    enough = calls_per_second * (time.monotonic() - began)
    session.apply(dict.fromkeys(learning, ORIGINAL))
    called = {site: Counter(counts[site].calls) for site in learning if site in counts}
    return {site: calls for site, calls in called.items() if calls.total() > enough}


def other_functions(session: Session, module: str | None, called: Calls) -> list[GuestVirtual]:
    """Return functions of ``module`` to use as wrong targets: those that sites call come first."""
    regions = [region for region in session.survey.texts if region.module == module]
    functions = [
        function.start
        for region in regions
        for function in session.survey.symbols.functions_in(region.base, region.size)
    ]
    targets = set().union(*called.values())
    return sorted(functions, key=lambda function: function not in targets)


@dataclass(frozen=True, slots=True)
class Work:
    """The daemon within the test, attached to a guest whose drivers carry a load."""

    guest: Guest
    session: Session
    daemon: ReconcileLoop
    calls: Calls
    """By the hot sites, as measured before the daemon began to learn."""
    hot: float
    """More calls per second make a site hot."""

    @property
    def sites(self) -> Mapping[GuestVirtual, Site]:
        """Return all sites of the drivers."""
        return self.session.survey.inventory.eligible


@contextmanager
def attached(guest: Guest) -> Iterator[Work]:
    """Attach, and let the daemon learn until what was hot before is promoted."""
    policy = PolicyConfig(mode="opt-in", include=tuple(f"{driver}:*" for driver in DRIVERS))
    config = config_of(guest).model_copy(update={"policy": policy})
    settings = Settings(config)
    rate = config.learning.hysteresis.min_calls_per_second
    with (
        connect(config) as link,
        attach(link, settings, time.monotonic, force=False) as session,
    ):
        eligible = session.survey.inventory.eligible
        hot = wait_until(
            lambda: hot_calls(session, eligible, rate),
            "each driver has a hot site",
            lambda hot: {eligible[site].module for site in hot} == set(DRIVERS),
        )
        stop = threading.Event()

        def look(status: Status) -> None:
            """Stop the daemon when it has done enough.  It calls this once an epoch."""
            if status.epoch > _PATIENCE_EPOCHS or is_promoted(session, hot):
                stop.set()

        job = Job(
            guest="drivers",
            settings=settings,
            audit=False,
            force=False,
            duration_seconds=None,
            stop=stop,
            show=look,
            overrides=Overrides.of_policy(policy),
            override_file=OverrideFile(config.runtime_directory, "drivers"),
            endpoints=Endpoints("drivers", config),
            reread=lambda: None,
        )
        daemon = ReconcileLoop(job, link, session, attach_seconds=0)
        daemon.run()
        yield Work(guest, session, daemon, hot, rate)


def is_promoted(session: Session, sites: Iterable[GuestVirtual]) -> bool:
    """Return whether each of ``sites`` has a target."""
    forms = session.patcher.observe()
    return all(isinstance(form := forms.get(site), Chain) and form.targets for site in sites)


class Frame(NamedTuple):
    """A function on the stack, and the offset in it where execution will continue."""

    function: str
    offset: int


class Held:
    """A task that reads a directory of an overlay, and sleeps when it gets the first name."""

    NAMES = frozenset({"above", "below"})
    _AT = "/run/held"

    def __init__(self, guest: Guest) -> None:
        """Start the task, and wait until it sleeps; call :meth:`mount` before."""
        self._guest = guest
        command = f"optheld {self._AT}/merged >{self._AT}/names 2>&1 & echo $!"
        self._pid = int(guest.run(command))
        guest.run(
            f"until grep -q handle_userfault /proc/{self._pid}/stack; do sleep 0.1; done",
            PATIENCE_SECONDS,
        )

    @classmethod
    def mount(cls, guest: Guest) -> None:
        """Mount an overlay with a name in each of its layers."""
        guest.run(
            f"mkdir {cls._AT} && cd {cls._AT} && mkdir lower upper work merged &&"
            " : >lower/below && : >upper/above && mount -t overlay"
            " -o lowerdir=lower,upperdir=upper,workdir=work overlay merged"
        )

    @classmethod
    def unmount(cls, guest: Guest) -> None:
        """Undo :meth:`mount`."""
        guest.run(f"umount {cls._AT}/merged && rm -r {cls._AT}")

    def stack(self) -> list[Frame]:
        """Return the frames of the task, the innermost first."""
        frames = []
        for line in self._guest.run(f"cat /proc/{self._pid}/stack").splitlines():
            found = _FRAME.fullmatch(line)
            assert found is not None, line
            frames.append(Frame(found[1], int(found[2], 16)))
        return frames

    def release(self) -> set[str]:
        """Wake the task; return the names that it then reads."""
        names = self._guest.run(
            f"kill -USR1 {self._pid} && while [ -d /proc/{self._pid} ]; do sleep 0.1; done;"
            f"cat {self._AT}/names",
            PATIENCE_SECONDS,
        )
        return set(names.split()) - {".", ".."}
