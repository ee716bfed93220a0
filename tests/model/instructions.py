"""What instructions that do not branch make of a task, and what they may count where."""

from optpolined.codegen.assemble import HITS_OFFSET, scratch_register
from optpolined.x86 import Register
from tests.model.listing import Op
from tests.model.rules import Kind, Violation
from tests.model.task import Call, Task
from tests.model.world import describe

_U32 = (1 << 32) - 1


def compute(task: Task, call: Call, op: Op) -> Task:
    """The task after ``op``, which does not branch.

    :raise Violation: it counts where another call does.
    """
    if op.base is not None:
        _check_count(task, call, op, op.base)
        return task
    if op.register is None:
        assert op.name == "nop"
        return task
    match op.name:
        case "push":
            return task._replace(stack=(*task.stack, task.read(call, op.register)))
        case "pop":
            popped = task._replace(stack=task.stack[:-1])
            return popped.write(call, op.register, task.stack[-1])
        case "cmp" | "test":
            return _with_flags(task, op, _known(task, call, op.register))
    return task.write(call, op.register, _result(task, call, op, op.register))


def learn(task: Task, call: Call) -> Task:
    """Through the learning stub: it counts in the record, and gives scratch its value back.

    :raise Violation: it was entered with another's record, or another stack.
    """
    assert call.site.register is not None
    scratch = scratch_register(call.site.register)
    _check_record(task, call, scratch)
    *stack, top = task.stack
    if top != call.held(scratch):
        raise Violation(Kind.STACK, f"{describe(top)} where {scratch.name} was saved")
    return task._replace(stack=tuple(stack)).write(call, scratch, top)


def _known(task: Task, call: Call, register: Register) -> int:
    value = task.read(call, register)
    assert value >= 0, f"{register.name} is used, and nothing is known of it"
    return value


def _with_flags(task: Task, op: Op, value: int) -> Task:
    if op.name == "test":
        return task._replace(equal=not value & op.value)
    return task._replace(equal=value == op.value, below=value < op.value)


def _result(task: Task, call: Call, op: Op, register: Register) -> int:
    """What is in ``register`` afterwards; its upper half is cleared by what writes the lower."""
    match op.name:
        case "movabs":
            return op.value
        case "mov":
            assert op.source is not None
            return _known(task, call, op.source) & _U32
        case "shr":
            return (_known(task, call, register) & _U32) >> op.value
        case "and":
            return _known(task, call, register) & op.value & _U32
    raise AssertionError(op)


def _check_count(task: Task, call: Call, op: Op, base: Register) -> None:
    """Hits are counted in the site's record, targets noted in its key table."""
    if op.name == "inc":
        assert op.value == HITS_OFFSET
        _check_record(task, call, base)
        return
    key = call.site.key
    assert op.name == "mov"
    assert op.source is not None
    assert op.times_four is not None
    assert key is not None
    meant = [call.site.key_table, call.key >> key.shift & (1 << key.bits) - 1, call.function]
    found = [task.read(call, register) for register in (base, op.times_four, op.source)]
    if found != meant:
        where = " ".join(f"{value:#x}" for value in found)
        raise Violation(Kind.REGISTERS, f"notes in another place: table, index, target {where}")


def _check_record(task: Task, call: Call, register: Register) -> None:
    record = task.read(call, register)
    if record != call.site.record:
        raise Violation(Kind.REGISTERS, f"counts in {record:#x}, another site's record")
