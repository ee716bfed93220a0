"""Nothing that must never happen happens, in any interleaving of any scenario."""

import pytest

from optpolined.codegen.forms import Chain
from optpolined.kernel.sites.scan import Site
from optpolined.patching.protocol.steps import Protocol
from optpolined.patching.static_calls import StaticCallError
from tests.model.forms import INLINE_SPLIT, SPLIT, scenarios
from tests.model.keyed_forms import keyed_scenarios
from tests.model.rules import Violation
from tests.model.scenarios import Scenario, site_scenario
from tests.model.static import SPLIT as SPLIT_CALL
from tests.model.static import StaticCode, static_scenario
from tests.model.static_forms import static_scenarios
from tests.model.tally import Tally
from tests.model.world import F1, F2


@pytest.mark.parametrize(
    "scenario",
    [*scenarios(), *keyed_scenarios(), *static_scenarios()],
    ids=lambda scenario: scenario.name,
)
def test_every_call_ends_where_its_register_says(scenario: Scenario, tally: Tally) -> None:
    scenario.check(tally)


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("site", [SPLIT, INLINE_SPLIT], ids=["thunk site", "inline site"])
def test_a_site_in_two_pages_is_left_alone(site: Site, protocol: Protocol) -> None:
    promoted = {site.address: Chain((F1,))}
    scenario = site_scenario("split", [site], (F1,), promoted, protocol=protocol)
    with pytest.raises(Violation, match="split_page"):
        scenario.explore()


def test_a_static_call_in_two_pages_is_not_changed_by_stopped() -> None:
    """Its two packets have a death between them, and what stands there then is a torn call."""
    scenario = static_scenario(
        "split", StaticCode([SPLIT_CALL], F1), F2, protocol=Protocol.STOPPED, dies=True
    )
    with pytest.raises(StaticCallError, match="two pages"):
        scenario.explore()
