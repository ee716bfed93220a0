"""The model can fail: each seeded fault is caught by the right property."""

import pytest

from tests.model.faults import Fault, faults
from tests.model.form_faults import form_faults
from tests.model.rules import Violation
from tests.model.tally import Tally

FAULTS = [*faults(), *form_faults()]


def test_faults_are_seeded_in_public_names_only() -> None:
    names = {name for fault in FAULTS for name, _ in fault.replaced}
    assert [name for name in sorted(names) if "._" in name] == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_seeded_fault_is_caught(fault: Fault, tally: Tally) -> None:
    tally.seeded += 1
    with pytest.raises(Violation) as caught:
        fault.explore()
    assert caught.value.kind is fault.kind, str(caught.value)
    tally.caught += 1
