"""Sites and what code says of itself, put together."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from optpolined.addresses import GuestVirtual
from optpolined.kernel.sites.declarations import Declaration, DeclarationKind
from optpolined.kernel.sites.inline_part import inline_part
from optpolined.kernel.sites.scan import Site
from optpolined.kernel.sites.thunks import Thunks

__all__ = ("with_inline_parts",)

_INLINE = frozenset({DeclarationKind.INLINE_CALL, DeclarationKind.INLINE_JMP})


def with_inline_parts(
    sites: Iterable[Site],
    declarations: Iterable[Declaration],
    text: bytes,
    base: GuestVirtual,
    thunks: Thunks,
) -> tuple[Sequence[Site], Sequence[str]]:
    """Return the ``sites`` of the ``text`` at ``base``; declared inline ones get their part.

    The branch of an inline part is no site of its own any more.  The second answer says of each
    declaration that is not believed why; its code stays what it is without one: two thunk sites.
    """
    found = {site.address: site for site in sites}
    refused = []
    for declaration in declarations:
        if declaration.kind not in _INLINE or not 0 <= declaration.site - base < len(text):
            continue
        part = inline_part(declaration, text, base, thunks)
        if isinstance(part, str):
            refused.append(f"the inline site at {declaration.site:#x} is not taken: {part}")
        elif part.slow not in found or part.branch not in found:
            refused.append(f"the inline site at {declaration.site:#x} is not taken: it is no code")
        else:
            del found[part.branch]
            found[part.slow] = replace(found[part.slow], inline=part, key=declaration.key)
    return list(found.values()), refused
