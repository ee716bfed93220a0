"""The real man shows the pages, and the real shells read the completions."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.manual.build import build
from configs.manual.parsers import actions, commands
from optpolined.config import GuestConfig
from optpolined.ctl import make_parser

EXAMPLE = Path(__file__).parents[3] / "configs" / "guests" / "vm1.toml"
PAGES = (
    "optpolined.1",
    "optpolinectl.1",
    "optpolined-calibrate.1",
    "optpolined-replay.1",
    "optpolined.toml.5",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("docs")
    files = build(directory)
    assert {path for path in directory.rglob("*") if path.is_file()} == set(files)
    return directory


def page(built: Path, name: str) -> str:
    """Return the page as man shows it, with one space for each run of spaces."""
    result = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", str(built / "man" / name)],
        env={"PATH": "/usr/bin:/bin", "MANWIDTH": "100", "MANPAGER": "cat", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")
    text = re.sub(r".\x08", "", result.stdout)
    return " ".join(text.replace("\u2010\n", "").replace("\u2010", "-").split())


@pytest.mark.parametrize("name", PAGES)
def test_man_shows_each_page_without_a_warning(built: Path, name: str) -> None:
    text = page(built, name)
    title, section = name.rsplit(".", 1)
    assert text.startswith(f"{title.upper()}({section}) ")
    assert f"NAME {title} - " in text
    assert "SEE ALSO" in text


def test_all_pages_are_there(built: Path) -> None:
    assert {path.name for path in (built / "man").iterdir()} == set(PAGES)


def test_the_page_of_optpolinectl_has_its_commands_exit_codes_and_examples(built: Path) -> None:
    text = page(built, "optpolinectl.1")
    for command in commands(make_parser()):
        assert f"{command.prog} " in text
    codes = "0 done 1 no answer from the daemon or QEMU, or a failure 2 bad input, or refused"
    assert f"EXIT STATUS {codes}" in text
    assert "EXAMPLES optpolinectl status --guest vm1" in text
    assert "FILES /etc/optpolined/NAME.toml" in text


def test_the_page_of_optpolined_has_its_exit_codes(built: Path) -> None:
    text = page(built, "optpolined.1")
    assert re.search(r"EXIT STATUS 0 done or .* 1 .* 2 bad input", text)
    assert "--dry-run look, print, change nothing" in text


def test_every_setting_is_on_its_page(built: Path) -> None:
    def keys(table: dict[str, object]) -> Iterator[str]:
        for key, value in table.items():
            if isinstance(value, dict):
                yield from keys(value)
            else:
                yield key

    text = page(built, "optpolined.toml.5")
    shown = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    assert shown.keys() == GuestConfig.model_fields.keys()
    for key in (*keys(shown), "gdbstub_socket"):
        assert f"{key} = " in text, key
    for section in ("[qemu]", "[policy.pins]", "[learning.costs]"):
        assert section in text


def completed(built: Path, *words: str, guests: Path | None = None) -> set[str]:
    """Return what bash proposes for the last of ``words``."""
    script = (built / "completions" / f"{words[0]}.bash").read_text()
    if guests is not None:
        script = script.replace("/etc/optpolined", str(guests))
    quoted = " ".join(f"'{word}'" for word in words)
    script += (
        f"\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMP_LINE='{' '.join(words)}'\n"
        f'COMP_POINT=${{#COMP_LINE}}; _shtab_{words[0]}; printf "%s\\n" "${{COMPREPLY[@]}}"\n'
    )
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    return {word.strip() for word in result.stdout.splitlines()}


def test_bash_completes_commands_options_and_choices(built: Path) -> None:
    assert completed(built, "optpolinectl", "re") == {
        "relearn",
        "release-stub",
        "rescue",
        "revert",
    }
    assert completed(built, "optpolinectl", "sites", "--o") == {"--order"}
    assert completed(built, "optpolinectl", "sites", "--order", "m") == {"misses"}
    assert completed(built, "optpolinectl", "static-call", "") >= {"list", "set"}
    assert completed(built, "optpolined", "--protocol", "") == {"auto", "breakpoint", "stopped"}
    assert "replay" in completed(built, "optpolined", "rep")


def test_bash_completes_the_guests_that_have_a_file(built: Path, tmp_path: Path) -> None:
    for name in ("vm1.toml", "vm2.toml", "other.toml", "vm3.txt"):
        (tmp_path / name).touch()
    arguments = ("optpolinectl", "status", "--guest", "vm")
    assert completed(built, *arguments, guests=tmp_path) == {"vm1", "vm2"}
    assert completed(built, *arguments, guests=tmp_path / "none") <= {""}


@pytest.mark.parametrize("name", ["optpolined", "optpolinectl"])
@pytest.mark.parametrize(
    ("shell", "file"),
    [("zsh", "_{}"), ("tcsh", "{}.tcsh"), ("bash", "{}.bash"), ("fish", "{}.fish")],
)
def test_each_shell_reads_its_completions(built: Path, name: str, shell: str, file: str) -> None:
    path = built / "completions" / file.format(name)
    check = ["-f", "-c", f"source {path}"] if shell == "tcsh" else ["-n", str(path)]
    result = subprocess.run([shell, *check], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_every_option_says_what_it_is() -> None:
    assert all(
        action.help
        for action in actions(make_parser())
        if action.metavar not in {"COMMAND", "list|set"}
    )
