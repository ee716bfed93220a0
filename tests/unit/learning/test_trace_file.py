"""Trace files: what is written is what is read, and what is no trace is refused in one line."""

import gzip
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form, Key, Keyed, LearnKeys, Tree
from optpolined.config import LearningConfig
from optpolined.learning.overridden import Override
from optpolined.learning.settings import LearningSettings, PeriodicSettings
from optpolined.learning.strategies import StrategyName
from optpolined.learning.strategy import SiteEpoch
from optpolined.learning.trace.errors import TraceError
from optpolined.learning.trace.model import Trace, TraceEpoch, TraceHeader
from optpolined.learning.trace.reader import read_traces
from optpolined.learning.trace.writer import TraceWriter
from optpolined.x86 import Register

SITES = [GuestVirtual(0xFFFFFFFF81000000 + 16 * n) for n in range(4)]
HEADER = TraceHeader(
    "6.1.0-56-cloud-amd64",
    "0123456789abcdef" * 2,
    StrategyName.HYSTERESIS,
    LearningConfig(hysteresis=LearningSettings(promote_epochs=4)),
)

targets = st.integers(0xFFFFFFFF82000000, 0xFFFFFFFF82000010).map(GuestVirtual)
counts = st.integers(0, 1 << 64)
keys = st.builds(Key, st.sampled_from(Register), st.integers(0, 30), st.integers(1, 6))
lists = st.lists(targets, max_size=5, unique=True).map(tuple)
leaves = st.dictionaries(st.integers(0, 63), targets, max_size=5).map(lambda d: tuple(d.items()))
forms: st.SearchStrategy[Form] = st.one_of(
    st.sampled_from([ORIGINAL, LEARNING]),
    st.builds(Chain, lists, st.booleans()),
    st.builds(Tree, lists),
    st.builds(Keyed, keys, leaves),
    st.builds(LearnKeys, keys),
)
gains = st.builds(SiteEpoch, st.dictionaries(targets, counts, max_size=4), counts, counts)
sites = st.sampled_from(SITES)
reasons = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=9)
overrides = st.dictionaries(sites, st.builds(Override, st.none() | targets, reasons))
configs = st.sampled_from([LearningConfig(), LearningConfig(strategy=StrategyName.PERIODIC)])
epochs = st.builds(
    TraceEpoch,
    epoch=st.just(0),
    seconds=st.floats(0, 1e6),
    counts=st.dictionaries(sites, st.dictionaries(st.integers(0, 99), gains, max_size=3)),
    said=st.lists(overrides | configs, max_size=3).map(tuple),
    covered=st.sets(sites).map(sorted).map(tuple),
    uncovered=st.sets(sites).map(sorted).map(tuple),
    census=st.booleans(),
    forms=st.dictionaries(sites, forms),
    tables=st.dictionaries(sites, st.dictionaries(st.integers(0, 63), targets, max_size=4)),
    wanted=st.dictionaries(sites, forms),
)


def name(address: GuestVirtual) -> str:
    return f"function_{address & 0xFF}"


def numbered(made: list[TraceEpoch]) -> list[TraceEpoch]:
    came: dict[GuestVirtual, Key | None] = dict.fromkeys(SITES)
    came[SITES[0]] = Key(Register.RDI, 3, 6)
    return [
        replace(epoch, epoch=place, came={} if place else came) for place, epoch in enumerate(made)
    ]


def written(*traces: list[TraceEpoch], header: TraceHeader = HEADER) -> bytes:
    file = io.BytesIO()
    for made in traces:
        with TraceWriter(file, header) as writer:
            for epoch in made:
                writer.write(epoch, name)
    return file.getvalue()


def read(directory: Path, content: bytes) -> list[Trace]:
    path = directory / "x.trace"
    path.write_bytes(content)
    return read_traces(path)


def refused(directory: Path, content: bytes) -> str:
    with pytest.raises(TraceError) as caught:
        read(directory, content)
    message = str(caught.value)
    assert "\n" not in message
    assert "x.trace: " in message
    return message


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(st.lists(epochs, max_size=4))
def test_what_is_written_is_read(tmp_path: Path, made: list[TraceEpoch]) -> None:
    made = numbered(made)
    trace, second = read(tmp_path, written(made, made))
    assert trace.header == HEADER
    assert trace.epochs == made
    assert second.epochs == made
    assert not trace.is_cut
    assert all(trace.names[address] == name(address) for address in trace.names)
    assert not made or set(SITES) <= trace.names.keys()


def test_the_same_trace_is_the_same_file() -> None:
    made = numbered([TraceEpoch(0, 0.5, {SITES[0]: {1: SiteEpoch({SITES[1]: 7})}})])
    assert written(made) == written(made)


def test_a_name_is_no_command_for_the_terminal(tmp_path: Path) -> None:
    file = io.BytesIO()
    with TraceWriter(file, HEADER) as writer:
        writer.write(numbered([TraceEpoch(0, 0.5, {})])[0], lambda _: "a\x1b[2J" + "b" * 5000)
    (trace,) = read(tmp_path, file.getvalue())
    assert {*trace.names.values()} == {("a?[2J" + "b" * 5000)[:600]}


def test_of_a_file_that_is_cut_the_whole_epochs_are_read(tmp_path: Path) -> None:
    file = io.BytesIO()
    writer = TraceWriter(file, HEADER)
    sizes = []
    made = numbered(
        [TraceEpoch(0, 0.5, {SITES[0]: {0: SiteEpoch({SITES[1]: n})}}) for n in range(9)]
    )
    for epoch in made:
        writer.write(epoch, name)
        writer.flush()
        sizes.append(len(file.getvalue()))
    for place, size in enumerate(sizes):
        (trace,) = read(tmp_path, file.getvalue()[: size + 3])
        assert trace.is_cut
        assert trace.epochs == made[: place + 1]
    for size in range(sizes[0], sizes[-1]):
        (trace,) = read(tmp_path, file.getvalue()[:size])
        assert trace.epochs == made[: len(trace.epochs)]
        assert trace.is_cut


HEAD = json.loads(gzip.decompress(written([])))
EPOCH = {"epoch": 0, "seconds": 0.5, "new": [[16, "f"], [32, "g"]], "came": [[None, [0]]]}


def compact(*lines: object) -> bytes:
    return gzip.compress(
        b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({**EPOCH, "epoch": -1}, "epoch"),
        ({**EPOCH, "seconds": 1e99}, "seconds"),
        ({**EPOCH, "seconds": "1"}, "seconds"),
        ({**EPOCH, "new": [[1 << 64, "f"]]}, "new"),
        ({**EPOCH, "new": [[16, "\x1b[2J"]]}, "new"),
        ({**EPOCH, "new": [[16, "f" * 601]]}, "new"),
        ({**EPOCH, "came": [[None, [2]]]}, "address 2 of 2"),
        ({**EPOCH, "came": [[None, [1, 1]]]}, "address 2 of 2"),
        ({**EPOCH, "came": [[None, [1, -1]]]}, "came"),
        ({**EPOCH, "came": [[[0, 0, 7], [0]]]}, "came"),
        ({**EPOCH, "came": [[[16, 0, 1], [0]]]}, "came"),
        ({**EPOCH, "said": [{"rulings": [[{"reason": "no", "target": 2}, [0]]]}]}, "address 2"),
        ({**EPOCH, "said": [{"rulings": [[{"reason": "no"}, [1]]]}]}, "never came"),
        ({**EPOCH, "said": [{"rulings": [[{"reason": "\x1b"}, [0]]]}]}, "said"),
        ({**EPOCH, "said": [{}]}, "either rulings or settings"),
        ({**EPOCH, "said": [{"rulings": [], "learning": {}}]}, "either rulings or settings"),
        ({**EPOCH, "said": [{"learning": {"epoch_milliseconds": 1}}]}, "said"),
        ({**EPOCH, "covered": [1]}, "covers a site that never came"),
        ({**EPOCH, "uncovered": [2]}, "address 2 of 2"),
        ({**EPOCH, "census": 1}, "census"),
        ({**EPOCH, "counts": [[0, [[0, 0]]]]}, "counts"),
        ({**EPOCH, "counts": [[0, [[0, 0, 0, 1]]]]}, "a target without its calls"),
        ({**EPOCH, "counts": [[0, [[0, -1, 0]]]]}, "counts"),
        ({**EPOCH, "counts": [[0, [[0, 0, 0, 1, 1 << 65]]]]}, "counts"),
        ({**EPOCH, "counts": [[0, [[0, 0, 0, 5, 1]]]]}, "address 5 of 2"),
        ({**EPOCH, "counts": [[1, [[0, 0, 0]]]]}, "never came"),
        ({**EPOCH, "forms": [[{"kind": "table"}, [0]]]}, "forms"),
        ({**EPOCH, "forms": [[{"kind": "keyed"}, [0]]]}, "incomplete"),
        ({**EPOCH, "forms": [[{"kind": "chain", "targets": [9]}, [0]]]}, "address 9 of 2"),
        ({**EPOCH, "wanted": [[{"kind": "chain", "targets": [1] * 65}, [0]]]}, "wanted"),
        ({**EPOCH, "tables": [[0, [[64, 1]]]]}, "tables"),
        ({**EPOCH, "more": 1}, "more"),
        ([], "Input should be an object"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(
    tmp_path: Path, line: object, complaint: str
) -> None:
    assert complaint in refused(tmp_path, compact(HEAD, line))


def test_epochs_out_of_order_are_refused(tmp_path: Path) -> None:
    line = {"epoch": 3, "seconds": 0.5}
    assert "epoch 3 after epoch 3" in refused(tmp_path, compact(HEAD, line, line))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        gzip.compress(b"", mtime=0),
        gzip.compress(b"hello\n", mtime=0),
        gzip.compress(b'{"epoch":1,"seconds":1}\n', mtime=0),
        gzip.compress(b'{"optpolined_trace":2\n', mtime=0),
        compact({**HEAD, "optpolined_trace": 4}),
        compact({**HEAD, "optpolined_trace": 1}, {**EPOCH, "came": [[0, None]], "census": True}),
        compact({**HEAD, "learning": {"epoch_milliseconds": 1}}),
        compact({**HEAD, "build_id": "x"}),
        written([])[:-8] + b"damaged!",
        written([])[:30] + bytes(200),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path, content)


def test_a_trace_of_another_version_is_named(tmp_path: Path) -> None:
    complaint = refused(tmp_path, compact({**HEAD, "optpolined_trace": 4}))
    assert "a trace of version 4; this optpolined reads 1 to 3" in complaint


def test_a_trace_of_version_1_is_read(tmp_path: Path) -> None:
    head = {**HEAD, "optpolined_trace": 1}
    first = {
        "epoch": 0,
        "seconds": 0.5,
        "new": [[16, "f"], [32, "g"], [48, "h"]],
        "came": [[0, None], [1, [7, 3, 6]]],
        "counts": [[1, [[0, 2, 0, 2, 5]]]],
        "forms": [[1, {"kind": "learn-keys", "key": [7, 3, 6]}], [0, {"kind": "chain"}]],
        "tables": [[1, [[4, 2]]]],
        "wanted": [[0, {"kind": "chain", "targets": [2]}]],
    }
    second = {"epoch": 1, "seconds": 0.5, "went": [1, 0]}
    f, g, h = GuestVirtual(16), GuestVirtual(32), GuestVirtual(48)
    key = Key(Register.RDI, 3, 6)
    (trace,) = read(tmp_path, compact(head, first, second))
    assert trace.epochs == [
        TraceEpoch(
            0,
            0.5,
            {g: {0: SiteEpoch({h: 5}, 2)}},
            came={f: None, g: key},
            forms={g: LearnKeys(key), f: LEARNING},
            tables={g: {4: h}},
            wanted={f: Chain((h,))},
        ),
        TraceEpoch(1, 0.5, {}, went=(f, g)),
    ]


def test_a_trace_of_version_2_has_no_census(tmp_path: Path) -> None:
    (trace,) = read(tmp_path, compact({**HEAD, "optpolined_trace": 2}, EPOCH))
    assert not any(epoch.census or epoch.covered for epoch in trace.epochs)
    assert list(trace.covering()) == [frozenset()]


def test_covered_sites_of_thousands_take_a_few_bytes(tmp_path: Path) -> None:
    many = [GuestVirtual(16 * n) for n in range(8000)]
    bare = TraceEpoch(0, 0.5, {}, came=dict.fromkeys(many))
    covered = replace(bare, covered=tuple(many[7:]), census=True)
    assert len(written([covered])) - len(written([bare])) < 200
    assert read(tmp_path, written([covered]))[0].epochs == [covered]


def test_a_site_is_covered_until_it_goes_or_learns_by_a_stub() -> None:
    a, b, c = SITES[:3]
    epochs = [
        TraceEpoch(0, 0.5, {}, came=dict.fromkeys(SITES), covered=(a, b, c)),
        TraceEpoch(1, 0.5, {}, census=True),
        TraceEpoch(2, 0.5, {}, uncovered=(b,)),
        TraceEpoch(3, 0.5, {}, went=(a, c), came={a: None, c: None}, covered=(c,)),
    ]
    seen = list(Trace(HEADER, epochs).covering())
    assert seen == [{a, b, c}, {a, b, c}, {a, c}, {c}]
    assert seen[0] is seen[1]


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        read_traces(tmp_path / "none.trace")


def test_a_file_that_unpacks_to_more_than_there_may_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = written(numbered([TraceEpoch(0, 0.5, {})] * 50))
    for limit in ("_LINE_MAX", "_FILE_MAX", "_EPOCHS_MAX"):
        with monkeypatch.context() as patch:
            patch.setattr(f"optpolined.learning.trace.reader.{limit}", 40)
            assert "more than" in refused(tmp_path, made)
    assert len(read(tmp_path, made)[0].epochs) == 50


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_a_damaged_file_gives_a_trace_or_one_line(
    tmp_path: Path, place: int, octet: int, inside: bool
) -> None:
    whole = written(numbered([TraceEpoch(0, 0.5, {SITES[0]: {0: SiteEpoch({SITES[1]: 5})}})] * 3))
    plain = bytearray(gzip.decompress(whole) if inside else whole)
    plain[place % len(plain)] = octet
    damaged = gzip.compress(plain) if inside else bytes(plain)
    try:
        read(tmp_path, damaged)
    except TraceError:
        refused(tmp_path, damaged)


def test_the_former_name_of_periodic_is_read(tmp_path: Path) -> None:
    header = replace(HEADER, strategy=StrategyName.PERIODIC)
    learning = LearningConfig(
        strategy=StrategyName.PERIODIC, periodic=PeriodicSettings(worker_epochs=3)
    )
    text = gzip.decompress(written([], header=replace(header, learning=learning)))
    assert text.count(b'"periodic"') == 3
    (trace,) = read(tmp_path, gzip.compress(text.replace(b'"periodic"', b'"epoch"')))
    assert trace.header.strategy is StrategyName.PERIODIC
    assert trace.header.learning == learning
