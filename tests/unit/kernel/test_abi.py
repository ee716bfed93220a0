import subprocess
from pathlib import Path

import pytest

from optpolined.kernel.module import abi
from tests.unit.kernel.dwarf import compiled, mirrored

MODULE = Path(__file__).parents[3] / "guest" / "module"

SOURCE = """
#include <linux/types.h>
#include "optpoline_abi.h"
struct optp_header header;
struct optp_module module;
struct optp_poke_entry entry;
struct optp_record record;
struct optp_cpu_stats stats;
struct optp_census_slot census_slot;
enum optp_site_kind kind;
enum optp_poke_state state;
enum optp_request request;
"""


def test_the_mirror_is_what_the_compiler_makes_of_the_header(tmp_path: Path) -> None:
    source, built = tmp_path / "abi.c", tmp_path / "abi.o"
    source.write_text(SOURCE)
    subprocess.run(["gcc", "-g", "-c", "-I", MODULE, source, "-o", built], check=True)
    assert compiled(built) == mirrored()


def test_the_constants_are_those_of_the_header(tmp_path: Path) -> None:
    source = tmp_path / "abi.c"
    source.write_text('#include "optpoline_abi.h"\n')
    command = ["gcc", "-E", "-dM", "-I", str(MODULE), str(source)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    macros = {line[1]: line[2].strip() for line in lines if len(line) == 3}
    assert macros["OPTP_MAGIC"] == f'"{abi.MAGIC.decode()}"'
    assert {
        "OPTP_MAGIC_SIZE": len(abi.MAGIC),
        "OPTP_ABI_VERSION": abi.ABI_VERSION,
        "OPTP_NR_REGS": abi.NR_REGS,
        "OPTP_RECORD_SLOTS": abi.RECORD_SLOTS,
        "OPTP_RECORDS_PER_CHUNK": abi.RECORDS_PER_CHUNK,
        "OPTP_MODULE_NAME_LEN": abi.MODULE_NAME_LEN,
        "OPTP_THUNK_HEAD": abi.THUNK_HEAD,
        "OPTP_POKE_HASH": abi.POKE_HASH,
        "OPTP_INLINE_BRANCH": abi.INLINE_BRANCH,
    } == {
        name: int(value.rstrip("UL"), 0)
        for name, value in macros.items()
        if name.startswith("OPTP_") and value.startswith(tuple("0123456789"))
    }


@pytest.mark.parametrize("struct", abi.STRUCTS.values())
def test_fields_have_addresses(struct: type[abi.HeaderLayout]) -> None:
    first = struct._fields_[0][0]
    assert abi.offset_of(struct, first) == 0
