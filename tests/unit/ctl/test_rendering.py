"""What people see: on 80 columns, in a pipe, and where the guest has chosen evil names."""

import re
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from optpolined.api.requests import Answer
from optpolined.api.sites import Explanation, SiteRow, Target
from optpolined.api.status import Status
from optpolined.ctl.rendering.explanation import explained
from optpolined.ctl.rendering.figures import figure_lines
from optpolined.ctl.rendering.sites import site_line, site_table
from optpolined.ctl.rendering.text import printable
from optpolined.ctl.top.head import head
from optpolined.ctl.top.source import Seen, View
from tests.unit.ctl.conftest import Command
from tests.unit.ctl.fake_daemon import EXPLANATION, HOT, MISSED, STATUS_NOW, served

STYLE = re.compile(r"\x1b\[[0-9;]*m")
"""All that rich itself may send to a terminal here."""


def drawn(what: RenderableType, width: int = 80) -> str:
    """Render as on a terminal, without styles."""
    out = StringIO()
    console = Console(
        file=out, force_terminal=True, width=width, markup=False, highlight=False, emoji=False
    )
    console.print(what)
    return STYLE.sub("", out.getvalue())


def test_an_explanation_is_readable_on_80_columns() -> None:
    lines = drawn(explained(EXPLANATION)).splitlines()
    assert max(map(len, lines)) <= 80
    lines = [line.rstrip() for line in lines]
    assert lines[0] == "vfs_read+0x9e  promoted: 2 targets have 97% for 3 epochs"
    before = lines.index("original code")
    assert lines[before + 1].endswith("e81d3c8d00  call __x86_indirect_thunk_rax")
    now = lines.index("code now")
    assert lines[now + 1].endswith("e87d6b213f  call 0xffffffffc0541040 (the block)")
    block = lines.index("its block, 38 bytes of the arena")
    assert lines[block + 1].endswith("cmp rax, ext4_file_read_iter")
    history = lines.index("decisions and changes, the newest first")
    assert before < now < block < history
    assert "foreign_breakpoint (epoch 4)" in lines[-1]


def test_a_site_with_its_original_code_is_shown_once() -> None:
    (part,) = EXPLANATION.parts
    untouched = replace(
        EXPLANATION, parts=(replace(part, standing=part.original),), block=None, history=()
    )
    text = drawn(explained(untouched))
    assert text.count("__x86_indirect_thunk_rax") == 1
    assert "code, as it was built" in text
    assert "its block" not in text
    assert "none yet" in text


def test_the_parts_of_an_inline_site_have_names() -> None:
    (part,) = EXPLANATION.parts
    inline = replace(EXPLANATION, parts=(replace(part, name="compare"), part))
    text = drawn(explained(inline))
    assert "original code (compare)" in text
    assert "code now (call)" in text


def test_in_a_pipe_no_line_is_cut_or_padded(command: Command, directory: Path) -> None:
    longest = "a_function_whose_name_alone_is_longer_than_the_line_of_a_terminal_of_80_columns"
    row = replace(HOT, targets=(Target(longest, "0x1"),))
    said = Answer(outcome="done", says="", explanation=replace(EXPLANATION, row=row))
    with served(directory, lambda _: said):
        _, out, _ = command("explain", HOT.site)
    assert f"{longest} (0x1)" in out
    assert out.splitlines() == [line.rstrip() for line in out.splitlines()]


def test_a_table_has_what_lines_have() -> None:
    text = drawn(site_table([HOT, MISSED]), width=160)
    for word in ("224,527", "vfs_read+0x9e", "ext4_file_read_iter 81%", "40% missed", "missing"):
        assert word in text


EVIL = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(
    ["\x1b[2J", "\x9b31m", "\r\n", "[red]x[/]", "[/]", ":smile:", "\u202e", "[@click=app.quit]q[/]"]
)

SHOWN: list[Callable[[str], str]] = [
    lambda name: drawn(explained(evil_explanation(name))),
    lambda name: drawn(site_table([evil_row(name)])),
    lambda name: printable(site_line(evil_row(name))),
    lambda name: "\n".join(map(printable, figure_lines(evil_status(name)))),
    lambda name: drawn(head(Seen(evil_status(name), says=name), View(symbol=name), paused=False)),
    lambda name: drawn(head(Seen(trouble=name), View(), paused=True)),
]


def evil_row(name: str) -> SiteRow:
    return SiteRow(name, name, name, name, name, (Target(name, name, 0.5),))


def evil_explanation(name: str) -> Explanation:
    (part,) = EXPLANATION.parts
    line = replace(part.original.lines[0], address=name, code=name, text=name)
    code = replace(part.original, lines=(line,))
    event = replace(EXPLANATION.history[1], reason=name, form=name, targets=(name,), state=name)
    return replace(
        EXPLANATION,
        row=evil_row(name),
        register=name,
        parts=(replace(part, name=name, standing=code), part),
        block=code,
        history=(event,),
    )


def evil_status(name: str) -> Status:
    return replace(
        STATUS_NOW, kernel=name, trouble=name, accelerator=name, states={name: 1}, skipped={name: 2}
    )


@pytest.mark.parametrize("show", SHOWN)
@given(name=EVIL)
def test_no_name_from_a_guest_moves_the_cursor(show: Callable[[str], str], name: str) -> None:
    assert all(line.isprintable() for line in show(name).split("\n"))


@pytest.mark.parametrize("show", SHOWN[:4])
def test_a_name_that_looks_like_markup_is_shown_as_it_is(show: Callable[[str], str]) -> None:
    assert "[b]x" in show("[b]x")


@pytest.mark.parametrize("arguments", [["sites"], ["explain", "x"], ["freeze"], ["revert", "x"]])
@pytest.mark.parametrize("outcome", ["done", "refused", "failed"])
def test_the_command_shows_no_control_characters(
    command: Command, directory: Path, arguments: list[str], outcome: str
) -> None:
    evil = "a\x1b]0;owned\x07\r\nb\u202e"
    said = Answer(
        outcome=outcome,  # type: ignore[arg-type]
        says=evil,
        sites=(evil_row(evil),) if arguments == ["sites"] else (),
        explanation=evil_explanation(evil) if arguments[0] == "explain" else None,
    )
    with served(directory, lambda _: said):
        _, out, err = command(*arguments)
        _, told, _ = command(*arguments, "--json")
    for text in (out, err, told):
        assert all(line.isprintable() for line in text.split("\n"))
    assert err.count("\n") == (0 if outcome == "done" else 1)
