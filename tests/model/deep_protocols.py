"""As test_protocols.py, with more functions, vCPUs and tasks: for `make model-deep`."""

import pytest

from tests.model.forms import deep_scenarios
from tests.model.keyed_forms import deep_keyed_scenarios
from tests.model.scenarios import Scenario
from tests.model.static_forms import deep_static_scenarios
from tests.model.tally import Tally


@pytest.mark.parametrize(
    "scenario",
    [*deep_scenarios(), *deep_keyed_scenarios(), *deep_static_scenarios()],
    ids=lambda scenario: scenario.name,
)
def test_every_call_ends_where_its_register_says(scenario: Scenario, tally: Tally) -> None:
    scenario.check(tally)
