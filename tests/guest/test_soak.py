"""A sample of `make soak`."""

import re
import subprocess
import sys


def test_sites_changed_without_end_do_no_harm() -> None:
    program = [sys.executable, "-m", "tests.guest.soak", "--minutes", "0.3"]
    limits = ["--calls", "100000", "--growth", "50"]
    result = subprocess.run([*program, *limits], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    last = result.stdout.splitlines()[-1]
    assert re.fullmatch(r"verified calls: \d+, int3 hits: [1-9]\d*, errors: 0", last)
