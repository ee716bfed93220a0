"""Sites and exclusions of a running guest, read from outside, against what it says itself."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from elftools.elf.elffile import ELFFile

from guest.image.boot import Guest
from guest.image.build import Image
from guest.image.paths import Flavour
from optpolined.addresses import GuestVirtual
from optpolined.api.refusal import Refusal
from optpolined.kernel.module.attachment import Attachment, attach
from optpolined.kernel.sites.exclusions import (
    Exclusions,
    TextRange,
    discover,
    read_kprobe_blacklist,
)
from optpolined.kernel.sites.scan import Scan, scan
from optpolined.kernel.sites.thunks import Thunks
from optpolined.kernel.symbols.symbols import Function, Symbols
from optpolined.qemu.memory import ProcessMemory, ram_ranges
from optpolined.qemu.monitor import Monitor
from optpolined.qemu.process import QemuProcess
from optpolined.x86 import Register
from tests.guest.retpoline_table import sites_in


@pytest.fixture(scope="module")
def attachment(guest: Guest) -> Iterator[Attachment]:
    with Monitor.connect(guest.qmp) as monitor:
        memory = ProcessMemory(QemuProcess.find(monitor), ram_ranges(monitor))
        yield attach(memory, monitor.hmp("info registers -a"))


@pytest.fixture(scope="module")
def symbols(attachment: Attachment) -> Symbols:
    return Symbols.load(attachment.space, attachment.vmcoreinfo)


@pytest.fixture(scope="module")
def exclusions(attachment: Attachment, symbols: Symbols) -> Exclusions:
    header = attachment.header
    own = TextRange(header.module_text, GuestVirtual(header.module_text + header.module_text_size))
    return discover(symbols.addresses, attachment.space.read, own)


@pytest.fixture(scope="module")
def kernel(attachment: Attachment, symbols: Symbols) -> Scan:
    start, end = symbols.section("_stext", "_etext")
    text = attachment.space.read(start, end - start)
    return scan(text, start, thunks(attachment), symbols.functions_in(start, len(text)))


def thunks(attachment: Attachment) -> Thunks:
    return Thunks.one_array(attachment.header.thunk)


def test_live_text_has_the_sites_of_the_file(
    kernel: Scan, symbols: Symbols, images: dict[Flavour, Image]
) -> None:
    """No alternative and no patcher of the kernel has added or removed a site."""
    with images["cloud"].vmlinux.open("rb") as file:
        elf = ELFFile(file)
        text, table = (elf.get_section_by_name(name) for name in (".text", ".retpoline_sites"))
        assert text is not None
        assert table is not None
        listed = sites_in(table.data(), table["sh_addr"])
        start, size = text["sh_addr"], text["sh_size"]
    stext, _ = symbols.section("_stext", "_etext")
    assert {site.address - stext for site in kernel.sites} == {
        site - start for site in listed if start <= site < start + size
    }
    assert kernel.rejected == []


def test_a_loaded_module(
    guest: Guest, attachment: Attachment, images: dict[Flavour, Image]
) -> None:
    sections = "/sys/module/optbench/sections"
    start, table = (
        GuestVirtual(int(guest.run(f"cat {sections}/{name}"), 16))
        for name in (".text", ".retpoline_sites")
    )
    with images["cloud"].modules["optbench"].open("rb") as file:
        elf = ELFFile(file)
        text_size, table_size = (
            section["sh_size"]
            for section in map(elf.get_section_by_name, (".text", ".retpoline_sites"))
            if section is not None
        )
    space = attachment.space
    functions = module_functions(guest, "optbench", start + text_size)
    found = scan(space.read(start, text_size), start, thunks(attachment), functions)
    listed = sites_in(space.read(table, table_size), table)
    assert {site.address for site in found.sites} == {
        site for site in listed if start <= site < start + text_size
    }
    assert len(found.sites) >= 16
    assert {site.module for site in found.sites} == {"optbench"}


def module_functions(guest: Guest, module: str, end: int) -> list[Function]:
    lines = guest.run(f"grep -i ' t .*.{module}.$' /proc/kallsyms").splitlines()
    named = sorted((int(address, 16), name) for address, _, name, _ in map(str.split, lines))
    ends = [*(address for address, _ in named[1:]), end]
    return [
        Function(GuestVirtual(address), following - address, name, module)
        for (address, name), following in zip(named, ends, strict=True)
        if address < end
    ]


def test_blacklist_is_that_of_debugfs(
    guest: Guest, attachment: Attachment, symbols: Symbols
) -> None:
    folder = "/run/debugfs"
    guest.run(f"mkdir -p {folder} && mount -t debugfs none {folder}")
    try:
        lines = guest.run(f"cat {folder}/kprobes/blacklist").splitlines()
    finally:
        guest.run(f"umount {folder} && rmdir {folder}")
    # 0xffffffff81005380-0xffffffff810053a0	function
    shown = {tuple(int(part, 16) for part in line.split()[0].split("-")) for line in lines}
    (head,) = symbols.addresses("kprobe_blacklist")
    assert set(read_kprobe_blacklist(attachment.space.read, head)) == shown
    assert len(shown) > 300


def test_what_is_left_alone(kernel: Scan, exclusions: Exclusions) -> None:
    excluded = {site: reason for site in kernel.sites if (reason := exclusions.reason(site))}
    functions: dict[Refusal, set[str]] = {}
    for site, reason in excluded.items():
        functions.setdefault(reason, set()).add(site.function)

    assert {"notify_die", "notifier_call_chain", "atomic_notifier_call_chain"} <= functions[
        Refusal.INT3_PATH
    ]
    assert "kprobe_int3_handler" in functions[Refusal.INT3_PATH]
    assert "default_do_nmi" in functions[Refusal.NOINSTR]
    assert "aggr_pre_handler" in functions[Refusal.NOKPROBE]
    assert set(functions) == {Refusal.INT3_PATH, Refusal.NOINSTR, Refusal.NOKPROBE}
    assert 20 <= len(excluded) <= 60


def test_our_own_module_is_left_alone(
    attachment: Attachment, exclusions: Exclusions, kernel: Scan
) -> None:
    stub = replace(kernel.sites[0], address=attachment.header.learn_stub[Register.RAX])
    assert exclusions.reason(stub) is Refusal.OWN
