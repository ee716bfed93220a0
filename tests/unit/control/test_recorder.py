"""The recorder: what a learner saw and decided, in a file; a full disk ends it, nothing else."""

import logging
import os
from pathlib import Path

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.control.recorder import Recorder, Recording
from optpolined.learning.strategy import SiteEpoch
from optpolined.learning.trace.errors import TraceError
from optpolined.learning.trace.model import TraceHeader
from optpolined.learning.trace.reader import read_traces

S, T, A = GuestVirtual(16), GuestVirtual(32), GuestVirtual(48)
HEADER = TraceHeader("6.1.0", "00ff")
CHAIN = Chain((A,))


def note(recorder: Recorder, epoch: int, **forms: Form) -> None:
    sites = {"s": S, "t": T}
    standing = {sites[key]: form for key, form in forms.items()}
    recorder.note_counts(epoch, 0.5, {0: {S: SiteEpoch({A: epoch})}, 1: {}}, {}, standing)


def test_an_epoch_is_what_was_seen_and_decided(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "x.trace")
    recorder = recording.attach(HEADER, hex)
    recorder.note_sites({S: None, T: None}, ())
    note(recorder, 1, s=LEARNING, t=ORIGINAL)
    recorder.write_epoch({S: CHAIN})
    note(recorder, 2, s=CHAIN)  # the guest migrates: no decision
    note(recorder, 2, s=CHAIN, t=LEARNING)
    recorder.write_epoch({})
    recorder.write_epoch({S: ORIGINAL})  # no counts since
    recorder.note_sites({}, [T])
    recorder.note_sites({T: None}, [])
    note(recorder, 3, t=LEARNING)
    recorder.write_epoch({})
    recording.close()
    (trace,) = read_traces(tmp_path / "x.trace")
    assert trace.header == HEADER
    assert [epoch.epoch for epoch in trace.epochs] == [1, 2, 3]
    assert [epoch.counts[S] for epoch in trace.epochs] == [
        {0: SiteEpoch({A: number})} for number in (1, 2, 3)
    ]
    assert [epoch.wanted for epoch in trace.epochs] == [{S: CHAIN}, {}, {}]
    assert trace.epochs[0].came == {S: None, T: None}
    assert (trace.epochs[2].came, trace.epochs[2].went) == ({T: None}, (T,))
    assert [dict(forms) for _, forms in trace.standing()] == [
        {S: LEARNING},
        {S: CHAIN, T: LEARNING},
        {T: LEARNING},
    ]
    assert trace.names == {S: "0x10", T: "0x20", A: "0x30"}


def test_what_a_census_covers_is_written_where_it_changes(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "x.trace")
    recorder = recording.attach(HEADER, hex)
    recorder.note_sites({S: None, T: None}, ())

    def see(epoch: int, covered: set[GuestVirtual], *, census: bool = False) -> None:
        recorder.note_counts(epoch, 0.5, {}, {}, {}, covered=covered, census=census)

    see(1, {S, T, A}, census=True)  # A is no site of the trace
    see(1, {S})  # nothing was decided on the one before
    recorder.write_epoch({})
    see(2, {S, T}, census=True)
    recorder.write_epoch({})
    see(3, {S, T}, census=True)
    recorder.write_epoch({})
    recorder.note_sites({S: None}, [S, T])
    see(4, {S, T})
    recorder.write_epoch({})
    see(5, set())
    recorder.write_epoch({})
    recording.close()
    (trace,) = read_traces(tmp_path / "x.trace")
    assert [epoch.census for epoch in trace.epochs] == [False, True, True, False, False]
    assert [epoch.covered for epoch in trace.epochs] == [(S,), (T,), (), (S,), ()]
    assert [epoch.uncovered for epoch in trace.epochs] == [(), (), (), (), (S,)]
    assert list(trace.covering()) == [{S}, {S, T}, {S, T}, {S}, set()]


def test_each_attachment_is_a_trace_of_its_own(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "x.trace")
    for _ in range(2):
        recorder = recording.attach(HEADER, hex)
        recorder.note_sites({S: None}, ())
        note(recorder, 1)
        recorder.write_epoch({})
    recording.close()
    assert [len(trace.epochs) for trace in read_traces(tmp_path / "x.trace")] == [1, 1]


def test_an_epoch_can_be_read_while_the_daemon_works(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "x.trace")
    recorder = recording.attach(HEADER, hex)
    recorder.note_sites({S: None}, ())
    note(recorder, 1)
    recorder.write_epoch({})
    (trace,) = read_traces(tmp_path / "x.trace")
    assert trace.is_cut
    assert len(trace.epochs) == 1
    recording.close()


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be written: No such file or directory"):
        Recording(tmp_path / "no" / "x.trace")


def test_a_full_disk_ends_the_recording_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    full = Path("/dev/full")
    recording = Recording(full)
    with caplog.at_level(logging.INFO):
        recorder = recording.attach(HEADER, hex)
        recorder.note_sites({S: None}, ())
        for epoch in range(5):
            note(recorder, epoch)
            recorder.write_epoch({})
        recording.attach(HEADER, hex)
        recording.close()
    (line,) = caplog.messages
    assert line == f"/dev/full: {os.strerror(28)}; the recording ends here, and the daemon goes on"
