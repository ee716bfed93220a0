"""A configuration that is wrong says in one line what, where, and what would be right."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from optpolined.config import ConfigError, GuestConfig, PolicyConfig, load
from optpolined.learning.settings import LearningSettings

MINIMAL = '[qemu]\nqmp_socket = "/run/vm.qmp"\n'
EXAMPLE = Path(__file__).parents[3] / "configs" / "guests" / "vm1.toml"


def complaint(directory: Path, text: str) -> str:
    (directory / "vm.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load("vm", [directory])
    message = str(caught.value)
    assert "\n" not in message
    assert "vm.toml" in message
    return message


def test_only_the_socket_is_required(tmp_path: Path) -> None:
    (tmp_path / "vm.toml").write_text(MINIMAL, encoding="utf-8")
    config = load("vm", [tmp_path])
    assert config.qemu.qmp_socket == Path("/run/vm.qmp")
    assert config.learning.hysteresis == LearningSettings()


def test_the_first_directory_that_has_the_guest_wins(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vm.toml").write_text(
            f'[qemu]\nqmp_socket = "/run/{name}"\n', encoding="utf-8"
        )
    config = load("vm", [tmp_path / "absent", tmp_path / "second", tmp_path / "first"])
    assert config.qemu.qmp_socket == Path("/run/second")


def test_an_unknown_guest_names_the_places_that_were_looked_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration for guest 'vm9'") as caught:
        load("vm9", [tmp_path])
    assert str(tmp_path / "vm9.toml") in str(caught.value)


@pytest.mark.parametrize("name", ["", "../vm", ".vm", "a/b"])
def test_a_name_that_is_a_path_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="guest name"):
        load(name, [tmp_path])


def test_malformed_toml(tmp_path: Path) -> None:
    assert "not valid TOML" in complaint(tmp_path, "[qemu\n")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "vm.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load("vm", [tmp_path])


def test_an_unknown_key_names_those_that_are_allowed(tmp_path: Path) -> None:
    message = complaint(tmp_path, MINIMAL + "[poke]\nprotocoll = 'stopped'\n")
    assert "poke.protocoll: unknown key" in message
    assert "stop_budget_microseconds" in message


def test_an_unknown_learning_key_is_refused(tmp_path: Path) -> None:
    message = complaint(tmp_path, MINIMAL + "[learning.hysteresis]\npromote = 1\n")
    assert "learning.hysteresis.promote" in message
    assert "promote_share" in message


def test_a_missing_key(tmp_path: Path) -> None:
    assert "qemu.qmp_socket: this key is required" in complaint(tmp_path, "[qemu]\n")


def test_a_value_out_of_range_is_named_with_what_is_allowed(tmp_path: Path) -> None:
    message = complaint(tmp_path, MINIMAL + "[poke]\nstop_budget_microseconds = 5\n")
    assert "poke.stop_budget_microseconds: 5 is not allowed" in message
    assert "100" in message


def test_a_learning_value_out_of_range(tmp_path: Path) -> None:
    message = complaint(tmp_path, MINIMAL + "[learning.hysteresis]\npromote_share = 7\n")
    assert "promote_share" in message
    assert "7" in message


def test_a_value_of_the_wrong_kind(tmp_path: Path) -> None:
    assert "metrics.port" in complaint(tmp_path, MINIMAL + '[metrics]\nport = "many"\n')


def test_the_example_shows_every_key_with_its_default() -> None:
    shown = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    config = GuestConfig.model_validate(shown)
    defaults = GuestConfig.model_validate({"qemu": {"qmp_socket": config.qemu.qmp_socket}})
    assert config == defaults
    assert shown.keys() == GuestConfig.model_fields.keys()
    for section in ("poke", "policy", "metrics", "learning"):
        model = GuestConfig.model_fields[section].annotation
        assert model is not None
        assert shown[section].keys() == model.model_fields.keys(), section
    assert shown["qemu"].keys() | {"gdbstub_socket"} == type(config.qemu).model_fields.keys()
    settings = {field.name for field in dataclasses.fields(LearningSettings)}
    assert shown["learning"]["hysteresis"].keys() == settings


def test_opt_out_takes_all_but_the_excluded() -> None:
    policy = PolicyConfig(exclude=("security_*", "kvm:*"))
    assert policy.refusal("vfs_read", None) is None
    assert policy.refusal("security_file_open", None) == "policy_excluded"
    assert policy.refusal("vmx_run", "kvm") == "policy_excluded"


def test_opt_in_takes_only_the_included() -> None:
    policy = PolicyConfig(mode="opt-in", include=("vfs_*",), exclude=("vfs_write",))
    assert policy.refusal("vfs_read", None) is None
    assert policy.refusal("vfs_write", None) == "policy_excluded"
    assert policy.refusal("tcp_recvmsg", None) == "policy_not_included"
