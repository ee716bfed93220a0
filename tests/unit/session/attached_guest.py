"""A guest of bytes that can be attached to: its gdbstub, its monitor, and a module that answers."""

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.codegen.forms import LEARNING
from optpolined.config import GuestConfig, QemuConfig, Settings
from optpolined.kernel.module import abi
from optpolined.kernel.module.abi import RequestOp
from optpolined.kernel.module.attachment import Attachment
from optpolined.kernel.symbols.symbols import Symbols
from optpolined.kernel.vmcoreinfo import Vmcoreinfo
from optpolined.learning.config import CensusConfig, LearningConfig
from optpolined.session.link import Link
from optpolined.x86 import Register
from tests.unit.kernel.fake_guest import HEADER, KERNEL_TEXT, TABLES
from tests.unit.patching.patched_guest import TEXT_SIZE, PatchedGuest, thunk_site

__all__ = ("LOCKED_DOWN", "SITE", "AttachedGuest")

SITE = GuestVirtual(KERNEL_TEXT + 0x100)
LOCKED_DOWN = GuestVirtual(KERNEL_TEXT + TEXT_SIZE + 0x1000)

_EMPTY = (
    "__entry_text_start",
    "__entry_text_end",
    "__noinstr_text_start",
    "__noinstr_text_end",
    "_sinittext",
    "_einittext",
)
_SYMBOLS = (
    (KERNEL_TEXT, "_stext"),
    (KERNEL_TEXT, "first"),
    (SITE - 0x10, "function"),
    (SITE + 0x40, "after"),
    (KERNEL_TEXT + TEXT_SIZE, "_etext"),
    (LOCKED_DOWN, "kernel_locked_down"),
    *((LOCKED_DOWN + 0x100, name) for name in _EMPTY),
)
_HEADER_AT = 0x40_0000
_HEADER_SIZE = ctypes.sizeof(abi.HeaderLayout)
_CPU = GuestVirtual(TABLES + 0x4_0000)
_STATS = 0x8000


class AttachedGuest(PatchedGuest):
    """One site, one CPU.  The module serves each request as soon as it is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(thunk_site(SITE, Register.RAX))
        self.header = replace(self.header, nr_cpu_ids=1, nr_record_chunks=1, cpu_stats=_STATS)
        self.memory = self.tables.memory
        self.tables.map_range(_CPU, 0x230_0000, 0x9000)
        self.tables.map(LOCKED_DOWN, 0x240_0000)
        self.tables.map_range(self.header.per_cpu_offset, 0x241_0000, 0x1000)
        self.tables.write(self.header.per_cpu_offset, _CPU.to_bytes(8, "little"))
        thunks = self.header.thunk
        self.tables.map(min(thunks.values()), 0x242_0000, flags=0)
        for register, thunk in thunks.items():
            self.tables.write(thunk, self.header.thunk_head[register])
        self.tables.map_range(self.header.census_chunks, 0x243_0000, 0x1000)
        monkeypatch.setattr(Symbols, "load", lambda *_: Symbols(_SYMBOLS))
        self.served: list[RequestOp] = []
        self.guardian: object = _Guardian()
        self.changed: list[GuestPhysical] = []
        """Where the gdbstub wrote, but for the mailbox."""

    def leave_patched(self) -> None:
        """Patch the site as a daemon does that dies then."""
        self.patcher().apply({SITE: LEARNING})
        assert self.text != self.built
        self._set(held=1)

    @property
    def built(self) -> bytes:
        """The text as it was built."""
        text = bytearray(TEXT_SIZE)
        site = self.sites[SITE]
        text[SITE - KERNEL_TEXT : SITE - KERNEL_TEXT + site.length] = site.original
        return bytes(text)

    @property
    def raw(self) -> abi.HeaderLayout:
        """The header as it stands in memory."""
        data = self.space.read(HEADER, _HEADER_SIZE)
        return abi.HeaderLayout.from_buffer_copy(data)

    @property
    def is_held(self) -> bool:
        """Whether the module is held."""
        return bool(self.raw.held)

    def _set(self, **fields: int) -> None:
        raw = self.raw
        for name, value in fields.items():
            setattr(raw, name, value)
        self.tables.write(HEADER, bytes(raw))

    def link(self) -> Link:
        """Return what connect() would give."""
        attachment = Attachment(self.header, self.space, Vmcoreinfo(b"", "6.1", {}, {}))
        return Link(
            monitor=cast("Any", _Monitor()),
            process=cast("Any", None),
            memory=self.memory,
            attachment=attachment,
            qemu="",
            accelerator="tcg",
            vcpus=1,
            stub=cast("Any", _Stub(self)),
            guardian=cast("Any", self.guardian),
            alive=lambda: None,
        )

    def settings(self) -> Settings:
        """Return settings that nothing depends on; no census, because no stub of it runs."""
        learning = LearningConfig(census=CensusConfig(enabled=False))
        return Settings(GuestConfig(qemu=QemuConfig(qmp_socket=Path("qmp")), learning=learning))

    def serve(self) -> None:
        """Answer the request in the mailbox, if there is one."""
        raw = self.raw
        if raw.request_seq == raw.request_done_seq:
            return
        operation = RequestOp(raw.request_op)
        self.served.append(operation)
        held = {RequestOp.HOLD: 1, RequestOp.RELEASE: 0}.get(operation, raw.held)
        self._set(held=held, request_result=0, request_done_seq=raw.request_seq)


class _Guardian:
    """A guardian that lives."""

    def restart_if_dead(self) -> bool:
        return False


class _Monitor:
    """QMP of a guest that runs and does not migrate."""

    def status(self) -> str:
        return "running"

    def execute(self, command: str) -> object:
        del command
        return {}


class _Stub:
    """The gdbstub."""

    path = Path("gdb")
    is_released = False

    def __init__(self, guest: AttachedGuest) -> None:
        self._guest = guest

    def stop(self) -> bool:
        return True

    def resume(self) -> None:
        self._guest.serve()

    def drain(self) -> None:
        pass

    def write(self, writes: Sequence[tuple[GuestPhysical, bytes]]) -> None:
        for address, data in writes:
            if not _HEADER_AT <= address < _HEADER_AT + _HEADER_SIZE:
                self._guest.changed.append(address)
            self._guest.memory.write(address, data)
