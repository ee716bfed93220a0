"""The names of places in the guest's code: text to name and back, order, what patterns see."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.kernel.symbols.site_name import SiteName


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("tcp_v4_rcv", SiteName(None, "tcp_v4_rcv")),
        ("tcp_v4_rcv+0x0", SiteName(None, "tcp_v4_rcv", 0)),
        ("tcp_v4_rcv+0x1C", SiteName(None, "tcp_v4_rcv", 0x1C)),
        ("tcp_v4_rcv+28", SiteName(None, "tcp_v4_rcv", 28)),
        ("tcp_v4_rcv+028", SiteName(None, "tcp_v4_rcv", 28)),
        ("veth:veth_xmit", SiteName("veth", "veth_xmit")),
        ("veth:veth_xmit+0x1c", SiteName("veth", "veth_xmit", 0x1C)),
        ("veth_xmit+0x1c [veth]", SiteName("veth", "veth_xmit", 0x1C)),
        ("part.isra.0.cold+0x4", SiteName(None, "part.isra.0.cold", 4)),
        ("snd-hda:f$1", SiteName("snd-hda", "f$1")),
    ],
)
def test_a_name_is_read_in_each_of_its_forms(text: str, name: SiteName) -> None:
    assert SiteName.parse(text) == name


@pytest.mark.parametrize(
    "text",
    ["", "a b", "+0x10", "f+", "f+0x", "f+0x123456789", "f-0x10", "f [", "m:", ":f", "f+0x1\n"],
)
def test_other_text_is_no_name(text: str) -> None:
    assert SiteName.parse(text) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (SiteName(None, "tcp_v4_rcv"), "tcp_v4_rcv"),
        (SiteName(None, "tcp_v4_rcv", 0), "tcp_v4_rcv+0x0"),
        (SiteName("veth", "veth_xmit", 0x17F), "veth_xmit+0x17f [veth]"),
        (SiteName("veth", "veth_xmit"), "veth_xmit [veth]"),
    ],
)
def test_the_text_of_a_name_leads_back_to_it(name: SiteName, text: str) -> None:
    assert str(name) == text
    assert name.is_readable


@pytest.mark.parametrize(
    "name",
    [
        SiteName(None, "f+0x10"),
        SiteName(None, "f [veth]"),
        SiteName(None, "veth:f"),
        SiteName(None, "?"),
        SiteName("", "f"),
        SiteName(None, "f", 1 << 40),
    ],
)
def test_a_name_of_the_guest_that_reads_as_another_is_told(name: SiteName) -> None:
    assert not name.is_readable


@given(st.text() | st.from_regex(r"[\w.$: \[\]+-]*", fullmatch=True))
def test_any_text_is_no_name_or_one_that_is_written_and_read_again(text: str) -> None:
    name = SiteName.parse(text)
    assert name is None or name.is_readable


def test_patterns_see_module_and_function_without_the_offset() -> None:
    assert SiteName(None, "tcp_v4_rcv", 4).pattern_name == "tcp_v4_rcv"
    assert SiteName("veth", "veth_xmit", 4).pattern_name == "veth:veth_xmit"


def test_names_sort_by_module_function_and_offset_and_serve_as_keys() -> None:
    ordered = (
        SiteName(None, "a"),
        SiteName(None, "a", 0),
        SiteName(None, "a", 0x10),
        SiteName(None, "b"),
        SiteName("m", "a", 0x10),
    )
    assert sorted({*ordered}) == [*ordered]
    assert len({*ordered, SiteName("m", "a", 0x10)}) == len(ordered)
