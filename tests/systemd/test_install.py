"""`make install` into a folder, and `make uninstall` out of it."""

import subprocess
from pathlib import Path

import pytest

PREFIX = Path("opt/optpolined")


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
    for command, module in (("optpolined", "cli"), ("optpolinectl", "ctl")):
        script = (prefix / "bin" / command).read_text()
        assert script.startswith("#!/usr/bin/python3 -I\n")
        assert f'sys.path.insert(0, "/{PREFIX}/lib/optpolined")' in script
        # As if it were where the script says, and without what is installed here.
        here = script.replace(f'"/{PREFIX}', f'"{prefix}')
        shown = subprocess.run(
            ["/usr/bin/python3", "-I", "-c", here, "--help"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert shown.returncode == 0, shown.stderr
        assert "usage:" in shown.stdout
        assert (prefix / f"lib/optpolined/optpolined/{module}.py").exists()
    assert (prefix / "share/doc/optpolined/examples/vm1.toml").exists()
    assert list(tmp_path.glob("usr/src/optpoline-*/dkms.conf"))
    make("uninstall", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
