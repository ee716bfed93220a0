"""The tree of errors, as the docstring draws it."""

import re

from optpolined.qemu import errors

_DRAWN = re.compile(r"^((?:\|   )*)(?:\+-- )?(\w+Error)\b", re.MULTILINE)


def _drawn() -> dict[str, str]:
    """Return the parent of each error in the drawing."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").split("\n\n")[1].splitlines():
        match = _DRAWN.match(line)
        assert match, line
        depth = len(match[1]) // 4 + ("+-- " in line)
        above[depth:] = [match[2]]
        found[match[2]] = above[depth - 1] if depth else "OptpolinedError"
    return found


def test_the_drawing_is_the_tree() -> None:
    classes = {
        name: made.__bases__[0].__name__
        for name, made in vars(errors).items()
        if isinstance(made, type) and made.__module__ == errors.__name__
    }
    assert _drawn() == classes
    assert {*classes, "one_line"} == set(errors.__all__)
