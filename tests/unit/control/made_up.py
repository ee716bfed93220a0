"""A guest of a few sites, its learner and its operator, with no machine behind them."""

from collections.abc import Callable, Collection

from optpolined.addresses import GuestVirtual
from optpolined.api.refusal import Refusal
from optpolined.api.requests import Answer, Request
from optpolined.codegen.forms import LEARNING, Chain, Form
from optpolined.config import PolicyConfig
from optpolined.control.call_rates import CallRates
from optpolined.control.event_log import EventLog
from optpolined.control.learner import Learner
from optpolined.control.names import Names
from optpolined.control.operator import Operator
from optpolined.control.overrides import Overrides
from optpolined.daemon.request_handler import RequestHandler
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.sites.scan import Site
from optpolined.kernel.symbols.symbols import Symbols
from optpolined.learning.config import CensusConfig, LearningConfig
from optpolined.learning.strategy import Snapshot
from optpolined.patching.inline_sites import Found
from optpolined.patching.static_calls import StaticCalls
from optpolined.session.session import Session
from optpolined.session.stub_handover import StubHandover
from optpolined.session.survey import Inventory, Survey
from optpolined.views.site_table import SiteTable
from optpolined.x86 import Register

__all__ = ("BASE", "PINNED", "SITES", "WITHHELD", "Guest", "at")

BASE = 0xFFFF_FFFF_8100_0000
SYMBOLS = [
    (BASE, "_stext"),
    (BASE, "alpha"),
    (BASE + 0x100, "beta"),
    (BASE + 0x200, "twice"),
    (BASE + 0x300, "twice"),
    (BASE + 0x400, "own_stub"),
    (BASE + 0x500, "_etext"),
    (BASE + 0x2000, "_sinittext"),
    (BASE + 0x2000, "start"),
    (BASE + 0x2100, "_einittext"),
]


def at(offset: int) -> GuestVirtual:
    return GuestVirtual(BASE + offset)


def made(offset: int, function: str) -> Site:
    thunk = GuestVirtual(BASE + 0x4F0)
    return Site(at(offset), bytes(5), SiteKind.CALL, Register.RAX, thunk, function, None)


SITES = {
    site.address: site
    for site in (
        made(0x10, "alpha"),
        made(0x20, "alpha"),
        made(0x100, "beta"),
        made(0x210, "twice"),
        made(0x310, "twice"),
        made(0x320, "twice"),
    )
}
TARGETS = {at(offset) for offset in (0, 0x100, 0x200, 0x300)}

WITHHELD = at(0x320)
PINNED = Chain((at(0x100),))


class Guest:
    """Six sites, of which the policy excludes some, and no machine behind them."""

    def __init__(
        self,
        policy: PolicyConfig,
        save: Callable[[Overrides], None] = lambda _: None,
        *,
        withheld_sites: Collection[GuestVirtual] = (WITHHELD,),
    ) -> None:
        withheld = {address: SITES[address] for address in withheld_sites}
        eligible = {address: site for address, site in SITES.items() if address not in withheld}
        self.survey = survey = Survey.__new__(Survey)
        survey.symbols = Symbols(SYMBOLS)
        reasons = {at(0x30): Refusal.NOINSTR} | dict.fromkeys(withheld, Refusal.POLICY_EXCLUDED)
        survey.inventory = Inventory(eligible, reasons, withheld)
        session = Session.__new__(Session)
        session.survey = survey
        self.learner = Learner(LearningConfig(census=CensusConfig(enabled=False)), session)
        self.names = Names(survey.symbols, eligible, reasons, TARGETS.__contains__)
        self.operator = Operator(
            Overrides.of_policy(policy), survey, self.learner, self.names, save
        )
        self.event_log = EventLog(lambda: 1e9, survey.symbols.name)
        self.forms: dict[GuestVirtual, Found] = {}
        table = SiteTable(
            session=session,
            learner=self.learner,
            names=self.names,
            rates=CallRates(),
            event_log=self.event_log,
            forms=lambda: self.forms,
        )
        self.handler = RequestHandler(
            StubHandover.__new__(StubHandover),
            StaticCalls.__new__(StaticCalls),
            self.operator,
            table,
        )
        self.epoch = 0

    def wanted(self) -> dict[int, Form]:
        """Return the wanted forms after one more epoch without calls."""
        self.epoch += 1
        self.learner.decide(Snapshot(self.epoch, 0.5, {}, dict(self.learner.wanted)))
        return {site: form for site, form in self.learner.wanted.items() if form != LEARNING}

    def ask(self, request: Request) -> Answer:
        return self.handler.answer(request, None)
