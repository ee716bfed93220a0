"""`make install` into a folder, and `make uninstall` out of it."""

import subprocess
from pathlib import Path

import pytest

PREFIX = Path("opt/optpolined")
OTHERS = (
    *("share/man/man1/optpolinectl.1*", "share/man/man5/optpolined.toml.5*"),
    *("share/bash-completion/completions/optpolinectl", "share/zsh/*/_optpolinectl"),
    *("share/*/prometheus/*.yml", "share/*/grafana/**/*.json"),
)


def make(target: str, root: Path) -> None:
    subprocess.run(
        ["make", "--no-print-directory", target, f"DESTDIR={root}", f"PREFIX=/{PREFIX}"],
        check=True,
        capture_output=True,
    )


@pytest.mark.long
def test_everything_is_put_in_place_and_taken_away_again(tmp_path: Path) -> None:
    make("install", tmp_path)
    prefix = tmp_path / PREFIX
    unit = (prefix / "lib/systemd/system/optpolined@.service").read_text()
    assert f"ExecStart=/{PREFIX}/bin/optpolined --guest %i" in unit
    assert f"ExecStopPost=/{PREFIX}/bin/optpolinectl rescue --guest %i" in unit
    for command in ("optpolined", "optpolinectl"):
        script = (prefix / "bin" / command).read_text()
        assert script.startswith("#!/usr/bin/python3 -I\n")
        assert f'sys.path.insert(0, "/{PREFIX}/lib/optpolined")' in script
        # Runs it as if it were where the script says, and without what is installed here.
        here = script.replace(f'"/{PREFIX}', f'"{prefix}')
        shown = subprocess.run(
            ["/usr/bin/python3", "-I", "-c", here, "--help"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert shown.returncode == 0, shown.stderr
        assert "usage:" in shown.stdout
    package = Path("daemon/optpolined")
    ours = {path.relative_to(package) for path in package.rglob("*") if path.is_file()}
    there = prefix / "lib/optpolined/optpolined"
    assert [path for path in ours if path.suffix != ".pyc" and not (there / path).exists()] == []
    for place in ("share/doc/optpolined/examples/vm1.toml", *OTHERS):
        assert list(prefix.glob(place)), place
    assert list(tmp_path.glob("usr/src/optpoline-*/dkms.conf"))
    make("uninstall", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
