"""Checks whether there is code for a form."""

from optpolined.addresses import GuestVirtual
from optpolined.codegen.errors import AssembleError, BadKeyError
from optpolined.codegen.forms import (
    KEY_BITS_MAX,
    MAX_LEAVES,
    MAX_TARGETS,
    Chain,
    Code,
    Key,
    Keyed,
    LearnKeys,
    Tree,
)
from optpolined.x86 import Register

__all__ = ("check_key", "check_shape", "check_targets")

_KEY_END = 31
_IMM32_END = 1 << 31
_ADDRESS_END = 1 << 64


def check_shape(form: Code, register: Register) -> None:
    """Check all but the addresses of the form for the site of ``register``.

    :raise BadKeyError: see :func:`check_key`.
    :raise AssembleError: the register is rsp; there are too few or too many targets; hits of no
        targets are to be counted; a key does not have a leaf's index, or two leaves have the same.
    """
    if register is Register.RSP:
        raise AssembleError("rsp has no retpoline thunk, so no block either")
    match form:
        case Chain(targets, counts_hits):
            if len(targets) > MAX_TARGETS:
                raise AssembleError(f"{len(targets)} targets: a chain has at most {MAX_TARGETS}")
            if counts_hits and not targets:
                raise AssembleError("a chain of no targets has no hits to count")
        case Tree(targets):
            if not 2 <= len(targets) <= MAX_LEAVES:
                raise AssembleError(f"{len(targets)} targets: a tree has 2 to {MAX_LEAVES}")
        case Keyed(key):
            check_key(key, register)
            _check_indices(form)
        case LearnKeys(key):
            check_key(key, register)


def check_key(key: Key, register: Register) -> None:
    """Check that ``key`` can serve a site of ``register``.

    :raise BadKeyError: the key has no bit or more than 6; a bit is not in the lower 31 of its
        register; its register is rsp, or ``register``, which holds the target.
    """
    if not 1 <= key.bits <= KEY_BITS_MAX:
        raise BadKeyError(key, f"a key has 1 to {KEY_BITS_MAX} bits")
    if not 0 <= key.shift <= _KEY_END - key.bits:
        raise BadKeyError(key, f"its bits must lie in the lower {_KEY_END}")
    if key.register is register:
        raise BadKeyError(key, "this register holds the target")
    if key.register is Register.RSP:
        raise BadKeyError(key, "rsp holds the stack")


def _check_indices(form: Keyed) -> None:
    if not form.leaves:
        raise AssembleError("a tree by key has at least one leaf")
    indices = [index for index, _ in form.leaves]
    for index, following in zip(indices, [*indices[1:], None], strict=True):
        if not 0 <= index < 1 << form.key.bits:
            raise AssembleError(f"a leaf has index {index}, but the key has {form.key.bits} bits")
        if index == following:
            raise AssembleError(f"two leaves have index {index}")


def check_targets(targets: tuple[GuestVirtual, ...], *, each_once: bool) -> None:
    """Check that each target is an address that its lower 32 bits extend to by sign.

    Those are the top 2 GiB, where the kernel and its modules are, and the lowest, where code of
    user space may be.

    :raise AssembleError: a target is elsewhere, or with ``each_once`` stands twice.
    """
    for target in targets:
        if not (0 <= target < _IMM32_END or _ADDRESS_END - _IMM32_END <= target < _ADDRESS_END):
            raise AssembleError(f"target {target:#x} is not in the lowest or the top 2 GiB")
    if each_once and len(set(targets)) != len(targets):
        twice = next(target for target in targets if targets.count(target) > 1)
        raise AssembleError(f"target {twice:#x} stands twice")
