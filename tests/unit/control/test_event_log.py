"""What is remembered of sites."""

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form, Key, Keyed, LearnKeys, Tree
from optpolined.control.event_log import EventLog, form_name
from optpolined.learning.strategy import Decision
from optpolined.patching.inline_sites import UNSETTLED, Found
from optpolined.x86 import Register

SITE, OTHER, ONE, TWO = map(GuestVirtual, (0x10, 0x20, 0x100, 0x200))


def event_log() -> EventLog:
    return EventLog(lambda: 1e9, lambda address: f"f{address:x}")


def test_decisions_and_changes_are_listed_newest_first() -> None:
    found = event_log()
    found.add_decision(3, Decision(states={SITE: "learning"}, reasons={SITE: "first window"}), {})
    wanted: dict[GuestVirtual, Form] = {SITE: Chain((ONE, TWO)), OTHER: LEARNING}
    found.add_changes(4, wanted, {OTHER: "foreign_bytes"})
    changed, decided = found.of(SITE)
    assert (changed.kind, changed.epoch, changed.form) == ("changed", 4, "chain")
    assert changed.targets == ("f100", "f200")
    assert (decided.kind, decided.state, decided.reason) == ("decided", "learning", "first window")
    (refused,) = found.of(OTHER)
    assert (refused.kind, refused.reason) == ("refused", "foreign_bytes")
    assert [event.site for event in found.journal()] == ["f20", "f10", "f10"]


def test_the_events_of_a_site_and_the_journal_are_bounded() -> None:
    found = event_log()
    for epoch in range(1000):
        found.add_changes(epoch, {SITE: LEARNING}, {})
    assert len(found.of(SITE)) == 24
    assert len(found.journal()) == 64
    assert found.of(SITE)[0].epoch == 999
    found.drop_sites([SITE])
    assert found.of(SITE) == ()


def test_every_form_has_a_name() -> None:
    key = Key(Register.RDI, 0, 2)
    forms: list[Found] = [
        *(None, UNSETTLED, ORIGINAL, LEARNING, Chain((ONE,)), Chain((ONE,), counts_hits=True)),
        *(Tree((ONE, TWO)), Keyed(key, ((0, ONE),)), LearnKeys(key)),
    ]
    assert len({form_name(form) for form in forms}) == len(forms)
