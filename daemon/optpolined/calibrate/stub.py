"""The learning stub for rax, as gcc's assembler makes it from guest/module/stubs.S.

It stands here because a host that calibrates need not have the module.  A test compares it with the
stub of the built module.
"""

from dataclasses import dataclass
from typing import Final

__all__ = ("LEARN_STUB", "LearnStub")


@dataclass(frozen=True, slots=True)
class LearnStub:
    """The stub's code; ``thunk`` is the offset of the rel32 of its jmp to the thunk, zero here."""

    code: bytes
    thunk: int


LEARN_STUB: Final = LearnStub(
    bytes.fromhex(
        "65413903743e6541394308743e6541394310743e6541394318743e6541394320743e6541394328743e654139"
        "4330743e6541837b3000743d6541ff4338415be9000000006541ff4304ebf26541ff430cebeb6541ff4314eb"
        "e46541ff431cebdd6541ff4324ebd66541ff432cebcf6541ff4334ebc8515089c131c065410fb10b745f39c1"
        "745b31c065410fb14b08745839c1745431c065410fb14b10745139c1744d31c065410fb14b18744a39c17446"
        "31c065410fb14b20744339c1743f31c065410fb14b28743c39c1743831c065410fb14b30743539c174316541"
        "ff4338eb316541ff4304eb2a6541ff430ceb236541ff4314eb1c6541ff431ceb156541ff4324eb0e6541ff43"
        "2ceb076541ff4334eb005859e924ffffff"
    ),
    thunk=64,
)
