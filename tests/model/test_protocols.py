"""Nothing that must never happen happens, in any interleaving of any scenario."""

import pytest

from optpolined.codegen.forms import LEARNING
from optpolined.poke.protocol import Protocol
from tests.model.forms import SPLIT, scenarios
from tests.model.rules import Violation
from tests.model.scenarios import Scenario, thunk_sites
from tests.model.tally import Tally
from tests.model.world import F1


@pytest.mark.parametrize("scenario", [*scenarios()], ids=lambda scenario: scenario.name)
def test_every_call_ends_where_its_register_says(scenario: Scenario, tally: Tally) -> None:
    scenario.check(tally)


@pytest.mark.parametrize("protocol", Protocol)
def test_a_site_in_two_pages_is_left_alone(protocol: Protocol) -> None:
    learning = {SPLIT.address: LEARNING}
    scenario = thunk_sites("split", [SPLIT], (F1,), learning, protocol=protocol)
    with pytest.raises(Violation, match="split_page"):
        scenario.explore()
