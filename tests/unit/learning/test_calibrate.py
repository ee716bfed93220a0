"""A cost table that made the numbers is found again; what `optpolined calibrate` prints is read."""

import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.calibrate.command import main, table
from optpolined.calibrate.fit import RANDOM, STEADY, Cycles, fit
from optpolined.calibrate.forms import (
    CHAIN,
    KEYED_16,
    LAST_OF_16,
    MISS_1,
    MISS_16,
    ONE_TARGET,
    RETPOLINE,
    TREE,
    TREE_OF_16,
)
from optpolined.calibrate.measure import measure
from optpolined.calibrate.stub import LEARN_STUB
from optpolined.cli import main as optpolined
from optpolined.learning.cost import Costs
from optpolined.learning.errors import SettingError

TRUE = Costs(
    retpoline_cycles=50.0,
    direct_cycles=6.0,
    position_cycles=0.5,
    miss_cycles=55.0,
    miss_position_cycles=2.0,
    tree_level_cycles=1.5,
    keyed_level_cycles=0.25,
    misprediction_cycles=17.0,
)


def steady(costs: Costs) -> dict[str, float]:
    """What a CPU of these costs would take."""
    return {
        RETPOLINE: costs.retpoline_cycles,
        ONE_TARGET: costs.direct_cycles,
        MISS_1: costs.miss_cycles,
        MISS_16: costs.miss_cycles + 15 * costs.miss_position_cycles,
        LAST_OF_16: costs.direct_cycles + 15 * costs.position_cycles,
        TREE_OF_16: costs.direct_cycles + 4 * costs.tree_level_cycles,
        KEYED_16: costs.direct_cycles + 4 * costs.keyed_level_cycles,
    }


def random(costs: Costs) -> dict[int, Cycles]:
    found: dict[int, Cycles] = {}
    for number in RANDOM:
        shares = [(GuestVirtual(16 * place + 16), 1 / number) for place in range(number)]
        chain = costs.chain([share for _, share in shares])
        found[number] = {CHAIN: chain, TREE: costs.tree(shares)}
    return found


def test_the_table_that_made_the_numbers_is_found() -> None:
    assert asdict(fit(steady(TRUE), random(TRUE), Costs())) == pytest.approx(asdict(TRUE))


def test_the_order_of_a_guest_s_targets_is_not_measured() -> None:
    before = replace(Costs(), randomness_share=0.25)
    assert fit(steady(TRUE), random(TRUE), before) == replace(TRUE, randomness_share=0.25)


def test_what_noise_made_negative_is_nothing() -> None:
    noisy = {**steady(TRUE), LAST_OF_16: 5.0, KEYED_16: 5.9}
    found = fit(noisy, random(TRUE), Costs())
    assert (found.position_cycles, found.keyed_level_cycles) == (0.0, 0.0)


def test_a_clock_that_stands_is_refused() -> None:
    with pytest.raises(SettingError, match="miss_cycles"):
        fit({**steady(TRUE), MISS_1: float("inf")}, random(TRUE), Costs())


def test_what_is_printed_is_a_table_of_the_configuration() -> None:
    text = table(TRUE, "some CPU")
    assert Costs(**tomllib.loads(text)["learning"]["costs"]) == TRUE
    assert "direct_cycles = 6.0  # (1.50)" in text.splitlines()


def test_the_forms_run_here_and_all_that_the_fit_needs_is_measured() -> None:
    cases = [STEADY, *RANDOM.values()]
    found = [
        {
            name: ratio.cycles
            for name, ratio in measure(
                replace(case, placements=1, rounds=2), LEARN_STUB, lambda _: None
            ).items()
        }
        for case in (cases[0], cases[2])
    ]
    assert fit(found[0], {4: found[1]}, Costs()).direct_cycles > 0


def test_a_file_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "costs.toml"
    path.write_text("mine", encoding="utf-8")
    assert main(["--write", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "mine"


def test_the_command_is_reached_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        optpolined(["calibrate", "--help"])
    assert "optpolined calibrate --write costs.toml" in capsys.readouterr().out
