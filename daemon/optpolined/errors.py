"""The root of all errors that optpolined raises on purpose.

    OptpolinedError
    +-- ConfigError      a setting is wrong (config.py)
    +-- QemuError        QEMU, its sockets or its process (qemu/errors.py)
    +-- KernelError      what the guest's memory says (kernel/errors.py)
    +-- CodegenError     a form without code, code without a form (codegen/errors.py)
    +-- PokeError        a change that cannot be made (patching/protocol/errors.py)
    +-- LearningError    a snapshot or a setting that makes no sense (learning/errors.py)
    +-- LabError         a trace, or a comparison, that cannot be had (lab/errors.py)
    +-- TelemetryError   what is asked of the daemon, or not answered (api/errors.py)

``str()`` of each is one line that says what is wrong and, if the operator can do something, what.
"""

__all__ = ("OptpolinedError",)


class OptpolinedError(Exception):
    """Something that optpolined was asked to do cannot be done."""
