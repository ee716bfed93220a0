"""Makes the page of the settings from the example that shows every key with its default."""

import re
from collections.abc import Iterator

from configs.manual.roff import escaped, header

__all__ = ("keys_page",)

_KEY = re.compile(r'(?:# )?(?P<key>[\w"+.-]+) = (?P<value>.+)')
_INTRODUCTION = (
    "The settings of one guest, in TOML. `optpolined --guest NAME` reads NAME.toml from "
    "/etc/optpolined, or from configs/guests. The values shown are the defaults; only "
    "qemu.qmp_socket is required. A wrong file is refused, in one line that names the key, the "
    "value and what is allowed. On SIGHUP the daemon reads the file again."
)


def keys_page(example: str) -> str:
    """Return the page of section 5, made from the text of configs/guests/vm1.toml."""
    lines = header("optpolined.toml", 5, "the settings of a guest of optpolined")
    lines += [".SH DESCRIPTION", escaped(_INTRODUCTION)]
    _, _, rest = example.partition("\n\n")
    for paragraph in rest.split("\n\n"):
        lines += _paragraph(paragraph.splitlines())
    lines += [".SH SEE ALSO", escaped("optpolined(1), optpolinectl(1)")]
    return "\n".join(lines) + "\n"


def _paragraph(lines: list[str]) -> Iterator[str]:
    """Yield the lines for a paragraph of the file: comments, each above its keys."""
    if lines[0].startswith("["):
        yield f".SH {escaped(lines[0])}"
        lines = lines[1:]
    else:
        yield ".SH KEYS"
    comment: list[str] = []
    keys: list[str] = []
    for line in lines:
        key = _KEY.fullmatch(line)
        if key is None and keys:
            yield from _entry(keys, comment)
            comment, keys = [], []
        if key is None:
            comment.append(line.removeprefix("# "))
            continue
        keys.append(f"{key['key']} = {key['value']}")
        if line.startswith("#"):
            yield from _entry(keys, comment)
            comment, keys = [], []
    yield from _entry(keys, comment)


def _entry(keys: list[str], comment: list[str]) -> Iterator[str]:
    for place, key in enumerate(keys):
        yield ".TQ" if place else ".TP"
        yield f"\\fB{escaped(key)}\\fR"
    if comment:
        if not keys:
            yield ".PP"
        yield escaped(" ".join(comment))
