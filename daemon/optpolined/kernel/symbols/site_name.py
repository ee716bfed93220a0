"""The name of a place in the guest's code: a function, or a byte of one.

    SiteName.parse("veth_xmit+0x1c [veth]")     # SiteName("veth", "veth_xmit", 0x1c)
    SiteName.parse("veth:veth_xmit+0x1c")       # the same
    str(SiteName("veth", "veth_xmit", 0x1c))    # "veth_xmit+0x1c [veth]"
    SiteName(None, "tcp_v4_rcv").pattern_name   # "tcp_v4_rcv"

A name outlives a reset, which moves the kernel, and a module that leaves and returns.  An address
does neither.  The guest chooses its names, so two functions may share one, and a name may read
as another one: ``is_readable`` says whether the text of a name leads back to it.
"""

import re
from dataclasses import dataclass
from typing import Self

__all__ = ("SiteName",)

_NAME = re.compile(
    r"(?:(?P<before>[\w-]+):)?(?P<function>[\w.$]+)(?:\+(?P<offset>0x[0-9a-fA-F]{1,8}|\d{1,9}))?"
    r"(?: \[(?P<after>[\w-]+)\])?"
)


@dataclass(frozen=True, slots=True)
class SiteName:
    """A function, and a place in it.

    ``module`` is ``None`` for the kernel's own functions, and in a name that does not say where its
    function is.  ``offset`` is in bytes from the function's entry; ``None`` names the whole
    function.
    """

    module: str | None
    function: str
    offset: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read ``module:function+0x1c`` or ``function+0x1c [module]``.

        Module and offset may be absent, and the offset may be decimal.  Return ``None`` for any
        other text.
        """
        parts = _NAME.fullmatch(text)
        if parts is None:
            return None
        offset = parts["offset"]
        return cls(
            module=parts["before"] or parts["after"],
            function=parts["function"],
            offset=None if offset is None else int(offset, 10 if offset.isdecimal() else 16),
        )

    @property
    def pattern_name(self) -> str:
        """What shell patterns are matched with: ``function``, or ``module:function``."""
        return f"{self.module}:{self.function}" if self.module else self.function

    @property
    def is_readable(self) -> bool:
        """Whether ``parse`` reads this very name from its text."""
        return SiteName.parse(str(self)) == self

    def __str__(self) -> str:
        offset = "" if self.offset is None else f"+{self.offset:#x}"
        module = "" if self.module is None else f" [{self.module}]"
        return f"{self.function}{offset}{module}"

    def __lt__(self, other: "SiteName") -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[str, str, int]:
        """The kernel before its modules, and a whole function before the places in it."""
        return self.module or "", self.function, -1 if self.offset is None else self.offset
