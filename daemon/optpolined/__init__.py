"""optpolined: makes the hot indirect calls of a running Linux guest direct, from the host.

    attach -> observe -> learn -> plan -> poke -> verify -> report   (and again)

    cli.py, config.py    the command and the settings
    ctl/                 the command optpolinectl: asks a daemon, or cleans up after a dead one
    service/             the reconcile loop, and the guest as the other rooms see it
    lab/                 traces of what learning saw, and strategies compared on them
    qemu/                QMP, gdbstub, process memory; knows nothing of optpolines
    kernel/              what a Linux guest's memory means: page tables, symbols, sites, counters
    codegen/             forms to machine code and back; pure
    learning/            counts to forms; pure
    poke/                changes to steps over a machine; pure
    telemetry/           status, live view, metrics, report

Imports go from the top of this list downwards, never up.
"""

__version__ = "0.1.0"
