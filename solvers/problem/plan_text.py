"""Writes a plan as a program: its numbers and the instructions around its peak on one screen, or all instructions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Any

from .module_names import merged_name, pattern_of
from .module_names import shortened as shortened_module
from .plain_text import printable
from .problem_text import operation_line
from .schedule import Decode, Encode, Forget, Free, FreeCode, Instruction, Record, Run
from .schedule_text import segment_titles
from .units import format_bytes, format_milliseconds

_SCREEN_COLUMNS = 100
_SCREEN_CODE_COLUMNS, _SCREEN_MODULE_COLUMNS = 36, 19
_MOST_LETTERS = 240  # of a line of the whole program
_NAME_COLUMNS = 17
_MOST_LINES = 2  # of a fact
_NEAR_PEAK = 8  # instructions shown before the peak, and after it
_MOST_NOTES = 6
_MOST_MODULES = 3


def plan_text(plan: Any) -> str:
    """Return the numbers of a `Plan` and the instructions around its peak, on one screen."""
    notes = [*plan.notes, *plan.problem.notes]
    hidden = [f"and {len(notes) - _MOST_NOTES} more: plan.notes, plan.problem.notes"] if notes[_MOST_NOTES:] else []
    title = f"Plan of {plan.problem.name}" + (f" by {plan.solver}" if plan.solver else "")
    lines = [_line(title, _SCREEN_COLUMNS)]
    for name, text in _facts(plan):
        lines += _wrapped(name, text, _MOST_LINES)
    for note in (*notes[:_MOST_NOTES], *hidden):
        lines += _wrapped("note", note, 1)
    return "\n".join((*lines, *_near_peak(plan)))


def program_text(plan: Any) -> str:
    """Return all instructions of a `Plan`, each with its bytes, the bytes alive, its milliseconds and its module."""
    heading, *rows = _rows(plan)
    lines = [_row(*heading)]
    for segment, title in zip(plan.schedule.segments, segment_titles(plan.schedule), strict=True):
        lines.append(title)
        lines += [_row(*cells) for cells in rows[segment.start : segment.stop]]
    return "\n".join(_line(line, _MOST_LETTERS) for line in lines)


def _facts(plan: Any) -> list[tuple[str, str]]:
    problem, share = plan.problem, plan.peak_bytes / max(plan.baseline_peak_bytes, 1)
    return [
        ("budget", "none" if plan.budget_bytes is None else format_bytes(plan.budget_bytes)),
        ("peak", f"{format_bytes(plan.peak_bytes)}, {share:.1%} of the peak with everything kept"),
        ("everything kept", f"{format_bytes(plan.baseline_peak_bytes)} at its peak"),
        (
            "extra time",
            f"{plan.extra_share:.1%} of {format_milliseconds(plan.baseline_seconds)} ms ({plan.costs} costs)",
        ),
        ("proven", _proven(plan)),
        ("kept", _kept(plan)),
        ("recomputed", _recomputed(plan)),
        ("encoded", _encoded(plan)),
        ("resident", f"{format_bytes(problem.resident_bytes)} of parameters, buffers, inputs and gradients"),
    ]


def _proven(plan: Any) -> str:
    """Say what is known of the time of any schedule within the budget."""
    if not plan.extra_seconds:
        return "no schedule takes less time"
    if not plan.lower_bound_seconds:
        return "nothing"
    return f"no schedule within the budget takes less than {_share(plan.lower_bound_seconds, plan)} more"


def _kept(plan: Any) -> str:
    values, maker = plan.problem.values, plan.problem.maker
    sizes = [(maker[value], values[value].size_bytes) for value in plan.kept]
    sizes += [(maker[value], values[value].encodings[number].size_bytes) for value, number in plan.kept_codes]
    codes = f" and {_counted(len(plan.kept_codes), 'code')}" if plan.kept_codes else ""
    largest = _largest(_by_module(plan, sizes))
    return f"{_counted(len(plan.kept), 'value')}{codes}, {format_bytes(plan.kept_bytes)}{largest}"


def _recomputed(plan: Any) -> str:
    if not plan.recomputed:
        return "nothing"
    seconds = sum(plan.problem.ops[op].seconds for op in plan.recomputed)
    runs = _by_module(plan, ((op, 1) for op in plan.recomputed))
    largest = _largest(runs, "{}×".format)
    return f"{_counted(len(plan.recomputed), 'operation')}, {format_milliseconds(seconds)} ms{largest}"


def _encoded(plan: Any) -> str:
    if not plan.encoded:
        return "nothing"
    problem = plan.problem
    sizes = _by_module(plan, ((problem.maker[v], problem.values[v].size_bytes) for v, _ in plan.encoded))
    text = f"{_counted(len(plan.encoded), 'value')}, {format_bytes(plan.original_bytes)}"
    return f"{text} in {format_bytes(plan.packed_bytes)}{_largest(sizes)}"


def _by_module(plan: Any, amounts: Iterable[tuple[int, int]]) -> Counter[str]:
    """Return the sums of amounts, each given with its operation, by shortened module names that differ in no number."""
    sums: Counter[str] = Counter()
    names: dict[str, list[str]] = {}
    for op, amount in amounts:
        name = shortened_module(_module_of(plan.problem, op)) or "(root)"
        names.setdefault(pattern_of(name), []).append(name)
        sums[pattern_of(name)] += amount
    return Counter({merged_name(names[pattern]): amount for pattern, amount in sums.items()})


def _largest(sums: Counter[str], formatted: Any = format_bytes) -> str:
    """List the modules with the largest sums."""
    listed = [f"{name} {formatted(amount)}" for name, amount in sums.most_common(_MOST_MODULES) if amount]
    rest = ", …" if len(sums) > _MOST_MODULES else ""
    return f": {', '.join(listed)}{rest}" if listed else ""


def _near_peak(plan: Any) -> Iterator[str]:
    """Yield the place of the peak and the instructions around it."""
    count, peak = len(plan.schedule.instructions), plan.peak_instruction
    first, stop = max(peak - _NEAR_PEAK, 0), min(max(peak, 0) + _NEAR_PEAK + 1, count)
    if peak < 0 or plan.problem.floor_bytes >= plan.peak_bytes:
        yield "peak outside of forward and backward"
    else:
        segments = zip(plan.schedule.segments, segment_titles(plan.schedule), strict=True)
        title = next(title for segment, title in segments if segment.start <= peak < segment.stop)
        yield f"peak while instruction {peak} runs, {title.rstrip(':')}"
    heading, *rows = _rows(plan)
    yield from (_screen_row(*cells) for cells in (heading, *rows[first:stop]))
    if stop - first < count:
        yield f"these are {stop - first} of {count} instructions: print(plan.schedule_text()) prints all"


def _rows(plan: Any) -> Iterator[tuple[str, ...]]:
    """Yield the number of each instruction, the bytes it adds or frees, the bytes alive after it, its time, code and
    module; first a heading.
    """
    yield "", "bytes", "alive", "ms", "instruction", "module"
    problem, before_bytes = plan.problem, plan.problem.resident_bytes
    have_run: set[int] = set()
    for number, instruction in enumerate(plan.schedule.instructions):
        op = _operation_of(problem, instruction)
        code, seconds = _code_of(problem, instruction), 0.0
        module = _module_of(problem, op)
        match instruction:
            case Run(op):
                seconds = problem.ops[op].seconds
                module += " (recomputed)" if op in have_run else ""
                have_run.add(op)
            case Encode(value, encoding):
                seconds = problem.values[value].encodings[encoding].encode_seconds
            case Decode(value, encoding):
                seconds = problem.values[value].encodings[encoding].decode_seconds
        alive_bytes = plan.live_bytes[number]
        change = alive_bytes - before_bytes
        before_bytes = alive_bytes
        label = f"> {number}" if number == plan.peak_instruction else str(number)
        signed = f"{'+' if change > 0 else ''}{format_bytes(change)}" if change else ""
        yield label, signed, format_bytes(alive_bytes), format_milliseconds(seconds) if seconds else "", code, module


def _operation_of(problem: Any, instruction: Instruction) -> int:
    """Return the operation of an instruction, or the maker of its value."""
    return instruction.op if isinstance(instruction, (Run, Record, Forget)) else problem.maker[instruction.value]


def _module_of(problem: Any, op: int) -> str:
    """Return the module of an operation; nothing makes resident values."""
    return problem.ops[op].module if op >= 0 else ""


def _code_of(problem: Any, instruction: Instruction) -> str:
    """Return an instruction as a line of a program."""
    match instruction:
        case Run(op):
            return operation_line(problem, problem.ops[op])
        case Record(op):
            return f"{problem.ops[op].name}.state = generator.state()"
        case Forget(op):
            return f"del {problem.ops[op].name}.state"
        case Free(value):
            return f"del {problem.values[value].name}"
        case Encode(value, encoding):
            name = problem.values[value].name
            return f"{name}.code = encode({name}, {problem.values[value].encodings[encoding].name})"
        case Decode(value, _):
            name = problem.values[value].name
            return f"{name} = decode({name}.code)"
        case FreeCode(value, _):
            return f"del {problem.values[value].name}.code"


def _row(number: str, change: str, alive: str, milliseconds: str, code: str, module: str) -> str:
    """Return an instruction as a line; numbers of each instruction stand before it, in columns."""
    return f"{number:>7} {change:>10} {alive:>10} {milliseconds:>9}  {code}" + (f"  # {module}" if module else "")


def _screen_row(number: str, change: str, alive: str, milliseconds: str, code: str, module: str) -> str:
    """Return an instruction as a line for a screen: the end of its code is cut, and the beginning of its module."""
    shown = printable(module[-_SCREEN_COLUMNS:])
    if len(shown) > _SCREEN_MODULE_COLUMNS:
        shown = f"… {shown[2 - _SCREEN_MODULE_COLUMNS :]}"
    code = f"{_line(code, _SCREEN_CODE_COLUMNS):<{_SCREEN_CODE_COLUMNS}}"
    return _line(_row(number, change, alive, milliseconds, code, shown).rstrip(), _SCREEN_COLUMNS)


def _wrapped(name: str, text: str, most_lines: int) -> list[str]:
    """Return a fact as lines for a screen, the text in a column next to its name."""
    shown = printable(text[: most_lines * _SCREEN_COLUMNS])
    lines = wrap(shown, _SCREEN_COLUMNS - _NAME_COLUMNS - 2, max_lines=most_lines, placeholder=" …")
    return [f"  {name if not place else '':<{_NAME_COLUMNS}}{line}" for place, line in enumerate(lines)]


def _line(text: str, most_letters: int) -> str:
    """Return a printable text of at most so many letters, its end cut."""
    shown = printable(text[: most_letters + 1])
    return shown if len(shown) <= most_letters else f"{shown[: most_letters - 2]} …"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _share(seconds: float, plan: Any) -> str:
    return f"{seconds / plan.baseline_seconds:.1%}" if plan.baseline_seconds else "nothing"
