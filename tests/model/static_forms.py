"""The scenarios of static calls: every target after every other, calls, jumps and strangers."""

from collections.abc import Iterator

from optpolined.codegen.forms import ORIGINAL
from optpolined.patching.protocol.steps import Protocol
from tests.model.explore import Crew
from tests.model.rules import Rules
from tests.model.scenarios import Scenario
from tests.model.static import (
    CALL,
    FAR_CALL,
    FAR_JMP,
    JMP,
    SPLIT,
    StaticCode,
    Target,
    static_scenario,
)
from tests.model.world import F1, F2, F3

_LIVE = Rules(live=True)
_ALONE = Crew(vcpus=1, sleepers=0)
"""No task waits for another: what one of several may do wrong, it may do alone."""

WAYS: tuple[Target, ...] = (F2, F3, None, F2, ORIGINAL)
"""To a function and another, to nothing and back, and as built."""

CODES = {
    "static call": StaticCode([CALL], F1),
    "static jmp": StaticCode([JMP], F1),
    "static call of nothing": StaticCode([CALL], None),
    "static jmp of nothing": StaticCode([JMP], None),
    "static call, ret": StaticCode([CALL], F1, has_return_thunk=False),
    "static jmp, ret": StaticCode([JMP], F1, has_return_thunk=False),
    "static jmp of nothing, ret": StaticCode([JMP], None, has_return_thunk=False),
}
"""Each site crosses a cache line."""

MANY = StaticCode([CALL, FAR_CALL, FAR_JMP], F1)


def static_scenarios() -> Iterator[Scenario]:
    """What every run explores."""
    for name, code in CODES.items():
        yield static_scenario(f"{name}, live", code, *WAYS, rules=_LIVE, crew=_ALONE)
        for protocol in Protocol:
            dies = f"{name}, {protocol.value}, dies"
            yield static_scenario(dies, code, *WAYS, protocol=protocol, dies=True, crew=_ALONE)
    yield static_scenario("static calls", MANY, F2, ORIGINAL)
    yield static_scenario("static calls, die", MANY, F2, dies=True, crew=_ALONE)
    yield static_scenario(
        "static call, dies, and the next daemon sets the key",
        StaticCode([CALL], F1),
        F2,
        dies=True,
        then=(F3,),
        crew=_ALONE,
    )
    split = StaticCode([SPLIT], F1)
    yield static_scenario(
        "static call in two pages, dies", split, F2, ORIGINAL, dies=True, crew=_ALONE
    )


def deep_static_scenarios() -> Iterator[Scenario]:
    """Larger ones."""
    yield static_scenario("static calls, live", MANY, *WAYS, rules=_LIVE, crew=_ALONE)
    for name, code in CODES.items():
        yield static_scenario(f"{name}, dies", code, *WAYS, dies=True)
    yield static_scenario(
        "static calls, die, and the next daemon sets the key",
        MANY,
        F2,
        dies=True,
        then=(F3, ORIGINAL),
        crew=_ALONE,
    )
