"""Shows the daemon on a real guest: boot it, load it, make its hot calls direct, put them back.

python -m guest.demo                 what `make demo` runs
python -m guest.demo --kernel plugin `make demo KERNEL=plugin`: a kernel built with our gcc plugin
python -m guest.demo --guest-only    only the loaded guest, until Ctrl-C; attach to it with
                                     `optpolined --guest demo`
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from guest.image.boot import Guest
from guest.image.errors import GuestError
from guest.image.paths import Flavour

_DIRECTORY = Path("build/demo")
"""Where configs/guests/demo.toml looks for the guest; relative, because socket paths are short."""

_SUMMARY = Path("build/demo.json")
_WORKLOAD = "optload --state /run/optload & echo run all >/proc/optbench; wait"
_KERNELS: dict[Flavour, str] = {
    "cloud": "Debian's cloud kernel",
    "plugin": "a kernel built with our gcc plugin",
}
_WARM_UP_SECONDS = 5
_DURATION_SECONDS = 60


def main() -> int:
    """Run the demo; return its exit code."""
    parser = argparse.ArgumentParser(description="Run optpolined on a small guest under load.")
    parser.add_argument("--kernel", choices=_KERNELS, default="cloud")
    parser.add_argument("--guest-only", action="store_true", help="boot and load, then wait")
    parser.add_argument("--duration", type=float, default=_DURATION_SECONDS, metavar="SECONDS")
    options = parser.parse_args()
    try:
        if options.guest_only:
            return _guest_only(options.kernel)
        return _demo(options.kernel, options.duration)
    except GuestError as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ndemo: interrupted\n")
        return 130


def _loaded_guest(kernel: Flavour) -> Guest:
    return Guest(kernel, vcpus=2, append=f'workload="{_WORKLOAD}"', directory=_DIRECTORY)


def _guest_only(kernel: Flavour) -> int:
    with _loaded_guest(kernel) as guest:
        guest.wait_ready()
        _say(f"a guest under load, QEMU pid {guest.pid}; Ctrl-C ends it")
        _say("try: .venv/bin/optpolined --guest demo --dry-run")
        guest.wait_end(timeout_seconds=10**9)
    return 0


def _demo(kernel: Flavour, duration_seconds: float) -> int:
    _say(f"booting {_KERNELS[kernel]} with 2 vCPUs")
    with _loaded_guest(kernel) as guest:
        guest.wait_ready()
        _say(f"kernel {guest.run('uname -r').strip()}; warming up the workload")
        time.sleep(_WARM_UP_SECONDS)
        report_file = _DIRECTORY / "report.json"
        report_file.unlink(missing_ok=True)
        _say(f"running: optpolined --guest demo --duration {duration_seconds:g} --audit --live")
        status = subprocess.run(
            (
                *(Path(sys.executable).with_name("optpolined"), "--guest", "demo"),
                *("--config-dir", "configs/guests", "--duration", str(duration_seconds)),
                *("--audit", "--live", "--report", report_file),
            ),
            check=False,
        ).returncode
        if not report_file.exists():
            _say(f"optpolined ended with {status} and wrote no report")
            return status or 1
        summary = json.loads(report_file.read_text(encoding="utf-8"))
        summary |= _workload(guest)
    _SUMMARY.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    _say(
        f"{summary['workload_checks']:,} results checked in the guest, "
        f"{summary['workload_errors']} wrong; summary in {_SUMMARY}"
    )
    return status or int(summary["workload_errors"] != 0)


def _workload(guest: Guest) -> dict[str, int]:
    """Return the results of the guest's own checks: optload's and optbench's, together."""
    load = _fields(guest.run("cat /run/optload").split("\n"))
    bench = _fields(guest.run("grep name=total /proc/optbench").split())
    return {
        "workload_checks": int(load["checks"]) + int(bench["calls"]),
        "workload_errors": int(load["errors"]) + int(bench["errors"]),
    }


def _fields(words: list[str]) -> dict[str, str]:
    return dict(word.partition("=")[::2] for word in words)


def _say(text: str) -> None:
    sys.stdout.write(f"demo: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
