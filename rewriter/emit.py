"""Makes readable Python of a schedule: one function per distinct segment, and the bindings that call them."""

from __future__ import annotations

import operator
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..passes.encodings import Coding
from ..passes.in_place import WRITTEN_OUT, in_place_variant
from ..passes.pose import Posed
from ..passes.step_graph import Kernel, StepGraph
from ..solvers.schedule import Decode, Encode, Forget, Free, FreeCode, Record, Run, Schedule, Segment
from .captured import Captured
from .emit_text import Rendered, assemble
from .program import SEED, Binding, Key, Program, load_functions
from .sources import Source


def emit(
    captured: Captured,
    step: StepGraph,
    posed: Posed,
    schedule: Schedule,
    title: str,
    header: str,
    device: torch.device,
) -> Program:
    """The program of a schedule. title names it in tracebacks; header is a comment at the head of the code."""
    writer = _Writer(step, posed, schedule, captured)
    half = len(schedule.segments) // 2
    rendered = [writer.segment(segment) for segment in schedule.segments[:half]]
    for one in rendered:
        kept = {**{key: step.storages[key].size_bytes for key in writer.alive}, **writer.codes}
        one.kept = [(name, kept[key]) for key, name in zip(one.gives, one.given, strict=True) if key in kept]
    rendered += [writer.segment(segment) for segment in schedule.segments[half:]]
    code, names, constants = assemble(rendered, step.block_names, header)
    bindings = [
        Binding(
            block=one.block,
            function=name,
            takes=tuple(one.takes),
            drops=frozenset(one.drops),
            gives=tuple(one.gives),
            constants=told,
            gradients=tuple(one.gradients),
        )
        for one, name, told in zip(rendered, names, constants, strict=True)
    ]
    return Program(
        code=code,
        functions=load_functions(code, title, device),
        forward=tuple(bindings[:half]),
        backward=tuple(bindings[half:]),
        residents={
            i: s.base.meta["source"]
            for i, s in enumerate(step.storages)
            if s.base.op == "placeholder" and s.kind not in ("tangent", "activation")
        },
        tangents=tuple(i for i, s in enumerate(step.storages) if s.kind == "tangent"),
        output_storages=tuple(step.storage_of[node] for node in step.outputs),
        updated=frozenset(captured.mutations)
        | {node.meta["source"] for kernel in step.kernels for node in kernel.updates},
        depends=_dependence(step),
        differentiable=captured.differentiable,
    )


def _dependence(step: StepGraph) -> dict[Source, frozenset[int]]:
    """For each gradient the tangents (by number) that it depends on."""
    depends: dict[int, frozenset[int]] = {}
    tangents = [i for i, s in enumerate(step.storages) if s.kind == "tangent"]
    found: dict[Source, frozenset[int]] = {}
    for number, storage in enumerate(tangents):
        depends[storage] = frozenset([number])
    for kernel in step.kernels:
        union = frozenset().union(*(depends.get(s, frozenset()) for s in kernel.reads))
        for storage in kernel.makes:
            depends.setdefault(storage, union)
        for storage in kernel.writes:
            depends[storage] = union
        if kernel.role == "accumulate" and kernel.target is not None:
            found[kernel.target.meta["source"]] = union
    return found


@dataclass
class _Scope:
    """What has a name inside the function that is being written."""

    rendered: Rendered
    names: dict[fx.Node, str] = field(default_factory=dict)
    others: dict[Key, str] = field(default_factory=dict)  # recorded states and codes
    used: Counter[str] = field(default_factory=Counter)
    returned: set[int] = field(default_factory=set)

    def fresh(self, hint: str) -> str:
        """A name not used before in this function."""
        # `split` a second time would be `split_1`, which may be the name of the first one's second part.
        while True:
            self.used[hint] += 1
            name = hint if self.used[hint] == 1 else f"{hint}_{self.used[hint] - 1}"
            if name == hint or not self.used[name]:
                self.used[name] = max(self.used[name], 1)
                return name


class _Writer:
    """Writes segments one after the other, knowing what is alive between them."""

    def __init__(self, step: StepGraph, posed: Posed, schedule: Schedule, captured: Captured) -> None:
        self.step = step
        self.posed = posed
        self.schedule = schedule
        self.captured = captured
        self.alive: set[int] = set()
        self.codes: dict[Key, int] = {}  # with their bytes
        self.read_themselves: dict[int, Key] = {}  # codes in the place of storages, and
        self.products: dict[fx.Node, Key] = {}  # of the calls that read these
        self.started: set[int] = set()
        self.last_forward = len(schedule.segments) // 2 - 1

    def segment(self, segment: Segment) -> Rendered:
        """The function of one segment."""
        number = self.schedule.segments.index(segment)
        phase = "forward" if number <= self.last_forward else "backward"
        scope = _Scope(Rendered(block=segment.block, phase=phase))
        self.before = frozenset(self.alive)
        for instruction in self.schedule.instructions[segment.start : segment.stop]:
            match instruction:
                case Run(op):
                    self._run(scope, op)
                case Record(op):
                    scope.rendered.line(f"{self._give(scope, ('state', op), 'state')} = generator_state()")
                case Forget(op):
                    self._forget(scope, ("state", op))
                case Encode(value, encoding):
                    self._encode(scope, value, encoding)
                case Decode(value, encoding):
                    self._decode(scope, value, encoding)
                case FreeCode(value, encoding):
                    self._forget(scope, ("code", value, encoding))
                case Free(value):
                    self._free(scope, self.posed.storages[value])
        if number == self.last_forward:
            scope.rendered.returned = [self._expression(scope, node) for node in self.step.outputs]
        for key in scope.rendered.gives:
            name = self._other(scope, key) if isinstance(key, tuple) else scope.names[self.step.storages[key].base]
            scope.rendered.given.append(name)
        return scope.rendered

    def _run(self, scope: _Scope, op: int) -> None:
        kernel = self.posed.kernels[op]
        if kernel.role == "tangent":
            # The runtime puts the incoming gradients on the tape before the first backward segment.
            self.alive.update(kernel.makes)
            self.before |= set(kernel.makes)
        elif kernel.role == "update":
            assert kernel.target is not None
            target, value = self._expression(scope, kernel.target), self._expression(scope, kernel.calls[0])
            scope.rendered.line(f"{target}.copy_({value})")
        elif kernel.role == "witness":
            pass  # what it reads has been made, which is all it is for
        elif kernel.role == "accumulate":
            self._hand_over(scope, kernel)
        elif kernel.destination is not None:
            self._overwrite(scope, kernel)
        else:
            self._compute(scope, op, kernel)

    def _overwrite(self, scope: _Scope, kernel: Kernel) -> None:
        (call,) = kernel.calls
        if str(call.target) in WRITTEN_OUT:
            variant, written = WRITTEN_OUT[str(call.target)]
            told, place = self._arguments(scope, call), self._argument(scope, kernel.destination)
            scope.rendered.line(f"{variant}({told}, {written}={place})")
            return
        others = [argument for argument in call.args if argument is not kernel.destination]
        told = ", ".join(self._argument(scope, argument) for argument in (kernel.destination, *others))
        scope.rendered.line(f"{in_place_variant(call)}({told})")

    def _hand_over(self, scope: _Scope, kernel: Kernel) -> None:
        assert kernel.target is not None
        gradient = self._expression(scope, kernel.calls[0])
        if kernel.makes:
            target = self._expression(scope, kernel.target)
            clone = scope.fresh(f"{target}_gradient")
            scope.rendered.line(f"{clone} = torch.empty_like({target}).copy_({gradient})")
            gradient = clone
            self.alive.update(kernel.makes)
        else:
            # Autograd takes a gradient over only if nobody else holds it: it must not stay on the tape.
            scope.returned.add(kernel.reads[0])
            self._leave(scope, kernel.reads[0])
        scope.rendered.returned.append(gradient)
        scope.rendered.gradients.append(kernel.target.meta["source"])

    def _compute(self, scope: _Scope, op: int, kernel: Kernel) -> None:
        again = op in self.started
        self.started.add(op)
        wanted = [s for s in kernel.makes if s not in self.alive and s not in self.read_themselves]
        first, *rest = kernel.calls
        called = self._called(scope, first, without=kernel.updates if again else ())
        state = self._other(scope, ("state", op)) if again and kernel.random else None
        for storage in wanted:
            # A value that is made anew replaces what the name stood for before it was freed.
            scope.names.pop(self.step.storages[storage].base, None)
        result = self._targets(scope, kernel.calls[-1], wanted)
        lines = [f"{result}{called}"]
        for call in rest:
            name = scope.names[kernel.calls[-1]]
            others = self._arguments(scope, call, skip_first=True)
            lines.append(f"{in_place_variant(call)}({', '.join(filter(None, [name, others]))})")
        if state:
            scope.rendered.line(f"with drawing_from({state}):")
        for line in lines:
            scope.rendered.line(("    " if state else "") + line)
        if "unused" in result:
            scope.rendered.line("del unused")
        if again:
            size_bytes = sum(self.step.storages[s].size_bytes for s in wanted)
            scope.rendered.again.append((_hint(kernel.calls[-1]), size_bytes))
        self.alive.update(wanted)
        scope.rendered.gives.extend(wanted)

    def _called(self, scope: _Scope, call: fx.Node, without: tuple[fx.Node, ...]) -> str:
        """A call, or the product with a code's levels that stands for it."""
        if call not in self.products:
            return f"{call.target}({self._arguments(scope, call, without=without)})"
        key = self.products[call]
        coding = self._coding(key[1], key[2])  # pyright: ignore
        assert coding.product is not None
        told = [self._expression(scope, coding.product.replaced.gradient), self._other(scope, key)]
        told += [f"{name}={scope.rendered.literal(one)}" for name, one in coding.levels_named().items()]
        return f"{coding.product.call.target}({', '.join(told)})"

    def _targets(self, scope: _Scope, node: fx.Node, wanted: list[int]) -> str:
        """The left side of an assignment that takes the wanted outputs of a call, `name = `, and names them."""
        if not wanted:
            return ""
        if isinstance(node.meta["val"], torch.Tensor):
            scope.names[node] = scope.fresh(_hint(node))
            return f"{scope.names[node]} = "
        picked: dict[int, fx.Node] = {
            user.args[1]: user  # pyright: ignore[reportAssignmentType]
            for user in node.users
            if user.target is operator.getitem and self.step.storage_of[user] in wanted
        }
        targets = []
        for index in range(len(node.meta["val"])):
            if index in picked:
                scope.names[picked[index]] = scope.fresh(f"{_hint(node)}_{index}")
                targets.append(scope.names[picked[index]])
            else:
                targets.append("unused")
        return f"{', '.join(targets)} = "

    def _arguments(
        self, scope: _Scope, call: fx.Node, skip_first: bool = False, without: tuple[fx.Node, ...] = ()
    ) -> str:
        told = [None if argument in without else argument for argument in call.args]
        parts = [self._argument(scope, argument) for argument in told[1 if skip_first else 0 :]]
        parts += [f"{name}={self._argument(scope, argument)}" for name, argument in call.kwargs.items()]
        return ", ".join(parts)

    def _argument(self, scope: _Scope, argument: Any) -> str:
        if isinstance(argument, fx.Node):
            return self._expression(scope, argument)
        if isinstance(argument, (list, tuple)):
            return f"[{', '.join(self._argument(scope, a) for a in argument)}]"
        return scope.rendered.literal(argument)

    def _expression(self, scope: _Scope, node: fx.Node) -> str:
        """The name of a tensor in this function; views are taken where they are first needed."""
        if node in scope.names:
            return scope.names[node]
        if node in self.step.overwrites:
            return self._expression(scope, self.step.overwrites[node])
        storage = self.step.storage_of.get(node)
        if storage is not None and self.step.storages[storage].base is node:
            return self._take(scope, storage)
        if node.target is operator.getitem:
            source, index = node.args
            assert isinstance(source, fx.Node)
            text = f"{self._expression(scope, source)}[{index}]"
        else:
            text = f"{node.target}({self._arguments(scope, node)})"
        scope.names[node] = scope.fresh(_hint(node))
        scope.rendered.line(f"{scope.names[node]} = {text}")
        return scope.names[node]

    def _take(self, scope: _Scope, storage: int) -> str:
        base = self.step.storages[storage].base
        assert base.op == "placeholder" or storage in self.before, f"{base} is not alive"
        scope.names[base] = scope.fresh(_hint(base))
        scope.rendered.takes.append(storage)
        scope.rendered.taken.append(scope.names[base])
        return scope.names[base]

    def _encode(self, scope: _Scope, value: int, encoding: int) -> None:
        base, coding = self.step.storages[self.posed.storages[value]].base, self._coding(value, encoding)
        source = self._expression(scope, base)
        others = self._told_codec(scope, coding, coding.encode, value)
        codec = re.sub(r"\W", "_", coding.codec.name)
        code = self._give(scope, ("code", value, encoding), f"{_hint(base)}_{codec}")
        scope.rendered.line(f"{code} = {coding.encode.target}({', '.join((source, *others))})")
        self.codes[("code", value, encoding)] = coding.code_bytes

    def _decode(self, scope: _Scope, value: int, encoding: int) -> None:
        storage, coding = self.posed.storages[value], self._coding(value, encoding)
        if self.posed.problem.values[value].encodings[encoding].is_read_itself:
            assert coding.product is not None
            key = self.read_themselves[storage] = ("code", value, encoding)
            self.products[coding.product.replaced.call] = key
            return
        base, code = self.step.storages[storage].base, self._other(scope, ("code", value, encoding))
        others = self._told_codec(scope, coding, coding.decode, value)
        scope.names[base] = scope.fresh(_hint(base))
        scope.rendered.line(f"{scope.names[base]} = {coding.decode.target}({', '.join((code, *others))})")
        self.alive.add(storage)
        scope.rendered.gives.append(storage)

    def _coding(self, value: int, encoding: int) -> Coding:
        return self.posed.codings[self.posed.storages[value]][encoding]

    def _told_codec(self, scope: _Scope, coding: Coding, call: fx.Node, value: int) -> list[str]:
        """What a codec is told besides the value or code. Each value has its own seed, another one in each step."""
        told = [self._argument(scope, argument) for argument in call.args[1:]]
        for name, argument in coding.named(call, value).items():
            seed = f"{self._other(scope, SEED)} + " if name == "seed" else ""
            fits = isinstance(argument, tuple)  # borders or levels, which are one constant
            text = scope.rendered.literal(argument) if fits else self._argument(scope, argument)
            told.append(f"{name}={seed}{text}")
        return told

    def _give(self, scope: _Scope, key: Key, hint: str) -> str:
        """The name of a state or code that is made here and goes onto the tape."""
        scope.others[key] = scope.fresh(hint)
        scope.rendered.gives.append(key)
        return scope.others[key]

    def _other(self, scope: _Scope, key: Key) -> str:
        """The name of a state or code, taken from the tape where it was not made here."""
        if key not in scope.others:
            scope.others[key] = scope.fresh(str(key[0]))  # pyright: ignore[reportIndexIssue]
            scope.rendered.takes.append(key)
            scope.rendered.taken.append(scope.others[key])
        return scope.others[key]

    def _forget(self, scope: _Scope, key: Key) -> None:
        name = self._other(scope, key)
        self._leave(scope, key)
        scope.rendered.line(f"del {name}")
        del scope.others[key]
        self.codes.pop(key, None)

    def _free(self, scope: _Scope, storage: int) -> None:
        if (code := self.read_themselves.pop(storage, None)) is not None:
            self.products = {call: key for call, key in self.products.items() if key != code}
            return
        base = self.step.storages[storage].base
        if base not in scope.names:
            self._take(scope, storage)
        self.alive.discard(storage)
        self._leave(scope, storage)
        names = [n for n in scope.names if self._lies_in(n, storage)]
        if storage not in scope.returned:
            scope.rendered.line(f"del {', '.join(scope.names[n] for n in names)}")
        for node in names:
            del scope.names[node]

    def _leave(self, scope: _Scope, key: Key) -> None:
        """Notes that a value ends in this function: it is not given on, or, taken from the tape, leaves it."""
        if key in scope.rendered.gives:
            scope.rendered.gives.remove(key)
        else:
            scope.rendered.drops.add(key)

    def _lies_in(self, node: fx.Node, storage: int) -> bool:
        if node in self.step.storage_of:
            return self.step.storage_of[node] == storage
        # A list of views (the result of a split) lies where what was split lies.
        return any(self.step.storage_of.get(n) == storage for n in node.all_input_nodes)


def _hint(node: fx.Node) -> str:
    """A readable name: of a parameter its last two names without numbers, of a call its operation."""
    if node.op == "placeholder":
        parts = [part for part in node.meta["source"].name.split(".") if not part.isdigit()]
        hint = "_".join(parts[-2:]) or node.meta["source"].kind
    elif node.target is operator.getitem:
        source, index = node.args
        return f"{_hint(source)}_{index}"  # pyright: ignore[reportArgumentType]
    else:
        hint = node.target._schema.name.rpartition("::")[2]  # pyright: ignore
    hint = re.sub(r"\W", "_", hint).strip("_")
    return hint if hint and not hint[0].isdigit() else f"value_{hint}"
