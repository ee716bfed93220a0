"""optpolined: makes the hot indirect calls of a running Linux guest direct, from the host.

    attach -> observe -> learn -> plan -> poke -> verify -> report   (and again)

    cli                  the command optpolined
    ctl                  the command optpolinectl: asks a daemon, or cleans up after a dead one
    daemon               the reconcile loop of one guest, and what serves it
    views                what the operator sees of a guest: status, sites, the report; read-only
    control              what is decided: strategy, operator's overrides, arena budget, call rates
    session              one attached guest: link, survey, mailbox
    session/transport    how bytes get into the guest
    config               the settings of one guest
    patching             forms to changes of text: patcher, poke table, arena, recovery
    patching/protocol    the poke protocol, as data; pure
    lab                  strategies compared on recorded traces
    calibrate            what each form costs on this CPU
    learning/trace       what learning saw, in a file
    learning             counts to forms; pure
    kernel/sites         the sites in the guest's text
    kernel/symbols       names and functions of its kernel and modules
    kernel/module        what optpoline.ko shares with the host
    kernel               what a Linux guest's memory means: page tables, VMCOREINFO
    codegen              forms to machine code and back; pure
    telemetry/web        status, sites and metrics over HTTP
    telemetry            servers and sinks: metrics, web, journal, service manager
    api                  the schema that ctl, telemetry and the loop share
    qemu                 QMP, gdbstub, process memory; independent of optpolines
    errors               the root of all errors
    x86                  the few facts of x86-64 that every room needs
    addresses            addresses that carry their kind in their type

Imports go from the top of this list downwards, never up: `make house` draws them, and a test holds
them to this order.
"""

__version__ = "0.1.0"
