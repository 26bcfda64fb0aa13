"""Makes readable Python of a schedule: one function per distinct segment, and the bindings that call them."""

from __future__ import annotations

import torch
from torch import fx

from ...passes.build_problem import ProblemMapping
from ...passes.encodings.codec_sites import CodecSite
from ...passes.rewrites.run_in_place import WRITTEN_OUT, in_place_variant
from ...passes.sources import Source
from ...passes.step_graph import Kernel, StepGraph
from ...solvers.problem.schedule import Decode, Encode, Forget, Free, FreeCode, Record, Run, Schedule, Segment
from ..capture.captured_step import Captured
from ..text.source_text import comment, identifier
from .bound_names import BoundNames, named_argument
from .equal_views import EqualViews
from .program import SEED, Binding, Key, Program, load_functions
from .scope import Scope, hint_of
from .text import Rendered, assemble


def emit(
    captured: Captured,
    step: StepGraph,
    posed: ProblemMapping,
    schedule: Schedule,
    title: str,
    header: str,
    device: torch.device,
    links: tuple[int, ...],
) -> Program:
    """The program of a schedule. title names it in tracebacks; header is a comment at the head of the code; links: as
    in `Program`."""
    bound = BoundNames()
    writer = _Writer(step, posed, schedule, bound)
    half = len(schedule.segments) // 2
    rendered = [writer.segment(segment) for segment in schedule.segments[:half]]
    for one in rendered:
        kept = {**{key: step.storages[key].size_bytes for key in writer.alive}, **writer.codes}
        one.kept = [(name, kept[key]) for key, name in zip(one.gives, one.given, strict=True) if key in kept]
    rendered += [writer.segment(segment) for segment in schedule.segments[half:]]
    code, names, constants = assemble(
        rendered, step.block_names, "\n".join((header, *map(comment, bound.definitions))), links
    )
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
        functions=load_functions(code, title, device, bound.objects),
        forward=tuple(bindings[:half]),
        backward=tuple(bindings[half:]),
        link_sizes=links,
        residents={
            i: s.base.meta["source"]
            for i, s in enumerate(step.storages)
            if s.base.op == "placeholder" and s.kind not in ("tangent", "activation")
        },
        tangents=tuple(i for i, s in enumerate(step.storages) if s.kind == "tangent"),
        output_storages=tuple(step.storage_of[node] for node in step.outputs),
        updated=frozenset(captured.mutations) | _updated_in_passing(step),
        depends=_dependence(step),
        outputs=captured.outputs,
        idle=tuple(source for source in captured.reachable if source not in captured.gradients),
        undo=captured.undo,
        rereads=captured.rereads,
        random=any(kernel.random for kernel in step.kernels),
        is_checked=any(kernel.role == "check" for kernel in step.kernels),
    )


def _updated_in_passing(step: StepGraph) -> set[Source]:
    """The buffers and inputs that kernels change besides computing, through views too."""
    bases = (step.storages[step.storage_of[node]].base for kernel in step.kernels for node in kernel.updates)
    return {base.meta["source"] for base in bases if base.op == "placeholder"}


def _dependence(step: StepGraph) -> dict[Source, frozenset[int]]:
    """For each gradient the tangents (by number) that it depends on."""
    tangents = [i for i, s in enumerate(step.storages) if s.kind == "tangent"]
    depends = {storage: frozenset([number]) for number, storage in enumerate(tangents)}
    found: dict[Source, frozenset[int]] = {}
    for kernel in step.kernels:
        union = frozenset().union(*(depends.get(s, frozenset()) for s in kernel.reads))
        for storage in kernel.makes:
            depends.setdefault(storage, union)
        for storage in kernel.writes:
            depends[storage] = union
        if kernel.role == "accumulate" and kernel.target is not None:
            found[kernel.target.meta["source"]] = union
    return found


class _Writer:
    """Writes segments one after the other, knowing what is alive between them."""

    def __init__(self, step: StepGraph, posed: ProblemMapping, schedule: Schedule, bound: BoundNames) -> None:
        self.step = step
        self.bound = bound
        self.views = EqualViews(step)
        self.posed = posed
        self.schedule = schedule
        self.alive: set[int] = set()
        self.codes: dict[Key, int] = {}  # with their bytes
        self.read_themselves: dict[int, Key] = {}  # codes in the place of storages, and
        self.products: dict[fx.Node, Key] = {}  # of the calls that read these
        self.started: set[int] = set()
        self.handed: set[int] = set()  # storages of gradients that have been returned, and are on no tape
        self.last_forward = len(schedule.segments) // 2 - 1

    def segment(self, segment: Segment) -> Rendered:
        """The function of one segment."""
        number = self.schedule.segments.index(segment)
        phase = "forward" if number <= self.last_forward else "backward"
        rendered = Rendered(block=segment.block, phase=phase)
        scope = Scope(rendered, self.step, self.bound, self.views, on_tape=set(self.alive))
        for index in range(segment.start, segment.stop):
            match self.schedule.instructions[index]:
                case Run(op):
                    self._run(scope, op, index)
                case Record(op):
                    scope.rendered.line(f"{scope.give(('state', op), 'state')} = generator_state()")
                case Forget(op):
                    scope.forget(("state", op))
                case Encode(value, encoding):
                    self._encode(scope, value, encoding)
                case Decode(value, encoding):
                    self._decode(scope, value, encoding)
                case FreeCode(value, encoding):
                    del self.codes["code", value, encoding]
                    scope.forget(("code", value, encoding))
                case Free(value):
                    self._free(scope, self.posed.storages[value])
        if number == self.last_forward:
            scope.rendered.returned = [scope.expression(node) for node in self.step.outputs]
        for key in scope.rendered.gives:
            name = scope.other(key) if isinstance(key, tuple) else scope.names[self.step.storages[key].base]
            scope.rendered.given.append(name)
        return scope.rendered

    def _run(self, scope: Scope, op: int, index: int) -> None:
        kernel = self.posed.kernels[op]
        if kernel.role == "tangent":
            # The runtime puts the incoming gradients on the tape before the first backward segment.
            self.alive.update(kernel.makes)
            scope.on_tape.update(kernel.makes)
        elif kernel.role == "update":
            assert kernel.target is not None
            target, value = scope.expression(kernel.target), scope.expression(kernel.calls[0])
            scope.rendered.line(f"{target}.copy_({value})")
        elif kernel.role == "check":
            scope.rendered.line(f"require({scope.arguments(kernel.calls[0])})")
        elif kernel.role == "witness":
            pass  # what it reads has been made, which is all it is for
        elif kernel.role == "accumulate":
            self._hand_over(scope, kernel)
        elif kernel.destination is not None:
            self._overwrite(scope, kernel)
        elif kernel.change is not None:
            self._change(scope, op, kernel, self.schedule.ends_with(index, self.posed.problem.ops[op].reuses))
        else:
            self._compute(scope, op, kernel)

    def _overwrite(self, scope: Scope, kernel: Kernel) -> None:
        (call,) = kernel.calls
        if str(call.target) in WRITTEN_OUT:
            variant, written = WRITTEN_OUT[str(call.target)]
            told, place = scope.arguments(call), scope.argument(kernel.destination)
            scope.rendered.line(f"{variant}({told}, {written}={place})")
            return
        others = [argument for argument in call.args if argument is not kernel.destination]
        told = ", ".join(scope.argument(argument) for argument in (kernel.destination, *others))
        scope.rendered.line(f"{in_place_variant(call)}({told})")

    def _hand_over(self, scope: Scope, kernel: Kernel) -> None:
        assert kernel.target is not None
        gradient = scope.expression(kernel.calls[0])
        if kernel.makes:
            # An output may be gone by now; its gradient is laid out as it comes.
            is_output = kernel.target.meta["source"].kind == "output"
            target = gradient if is_output else scope.expression(kernel.target)
            clone = scope.fresh(identifier(f"{target}_gradient"))
            scope.rendered.line(f"{clone} = own_gradient({target}, {gradient})")
            gradient = clone
            self.alive.update(kernel.makes)
        else:
            # Autograd takes a gradient over only if nobody else holds it: it must not stay on the tape.
            scope.returned.add(kernel.reads[0])
            self.handed.add(kernel.reads[0])
            scope.leave(kernel.reads[0])
        scope.rendered.returned.append(gradient)
        scope.rendered.gradients.append(kernel.target.meta["source"])

    def _compute(self, scope: Scope, op: int, kernel: Kernel) -> None:
        again = op in self.started
        self.started.add(op)
        wanted = [s for s in kernel.makes if s not in self.alive and s not in self.read_themselves]
        first, *rest = kernel.calls
        called = self._called(scope, first, without=kernel.updates if again else ())
        state = scope.other(("state", op)) if again and kernel.random else None
        for storage in wanted:
            # A value that is made anew replaces what the name stood for before it was freed.
            scope.names.pop(self.step.storages[storage].base, None)
        result = scope.targets(kernel.calls[-1], wanted)
        lines = [f"{result}{called}"]
        for call in rest:
            name = scope.names[kernel.calls[-1]]
            others = scope.arguments(call, skip_first=True)
            lines.append(f"{in_place_variant(call)}({', '.join(filter(None, [name, others]))})")
        if state:
            scope.rendered.line(f"with drawing_from({state}):")
        for line in lines:
            scope.rendered.line(("    " if state else "") + line)
        if "unused" in result:
            scope.rendered.line("del unused")
        if again:
            size_bytes = sum(self.step.storages[s].size_bytes for s in wanted)
            scope.rendered.again.append((hint_of(kernel.calls[-1]), size_bytes))
        self.alive.update(wanted)
        scope.rendered.gives.extend(wanted)

    def _change(self, scope: Scope, op: int, kernel: Kernel, in_place: bool) -> None:
        """Writes into what is changed, or into a copy of it if it is read later."""
        (storage,), again = kernel.makes, op in self.started
        self.started.add(op)
        if storage in self.alive:
            return  # a second run of what is still there
        base = self.step.storages[storage].base
        source = scope.expression(kernel.change.of)
        scope.names.pop(base, None)
        scope.rendered.line(f"{scope.name(base)} = {source if in_place else f'aten.clone.default({source})'}")
        scope.rendered.line(scope.written(kernel.change, scope.names[base]))
        if again:
            scope.rendered.again.append((hint_of(kernel.calls[-1]), self.step.storages[storage].size_bytes))
        self.alive.add(storage)
        scope.rendered.gives.append(storage)

    def _called(self, scope: Scope, call: fx.Node, without: tuple[fx.Node, ...]) -> str:
        """A call, or the product with a code's levels that stands for it."""
        if call not in self.products:
            return scope.called(call, scope.arguments(call, without=without))
        key = self.products[call]
        coding = self._coding(key[1], key[2])  # pyright: ignore
        assert coding.product is not None
        told = [scope.expression(coding.product.replaced.gradient), scope.other(key)]
        told += [named_argument(name, scope.constant(one)) for name, one in coding.levels_named().items()]
        return scope.called(coding.product.call, ", ".join(told))

    def _encode(self, scope: Scope, value: int, encoding: int) -> None:
        base, coding = self.step.storages[self.posed.storages[value]].base, self._coding(value, encoding)
        source = scope.expression(base)
        others = self._decoding_lines(scope, coding, coding.encode, value)
        code = scope.give(("code", value, encoding), identifier(f"{hint_of(base)}_{coding.codec.name}"))
        scope.rendered.line(f"{code} = {scope.called(coding.encode, ', '.join((source, *others)))}")
        self.codes[("code", value, encoding)] = coding.code_bytes

    def _decode(self, scope: Scope, value: int, encoding: int) -> None:
        storage, coding = self.posed.storages[value], self._coding(value, encoding)
        if self.posed.problem.values[value].encodings[encoding].is_read_itself:
            assert coding.product is not None
            key = self.read_themselves[storage] = ("code", value, encoding)
            self.products[coding.product.replaced.call] = key
            return
        code = scope.other(("code", value, encoding))
        others = self._decoding_lines(scope, coding, coding.decode, value)
        name = scope.name(self.step.storages[storage].base)
        scope.rendered.line(f"{name} = {scope.called(coding.decode, ', '.join((code, *others)))}")
        self.alive.add(storage)
        scope.rendered.gives.append(storage)

    def _coding(self, value: int, encoding: int) -> CodecSite:
        return self.posed.codec_sites[self.posed.storages[value]][encoding]

    def _decoding_lines(self, scope: Scope, coding: CodecSite, call: fx.Node, value: int) -> list[str]:
        """What a codec is told besides the value or code. Each value has its own seed, another one in each step."""
        told = [scope.argument(argument) for argument in call.args[1:]]
        for name, argument in coding.named(call, value).items():
            seed = f"{scope.other(SEED)} + " if name == "seed" else ""
            fits = isinstance(argument, tuple)  # borders or levels, which are one constant
            text = scope.constant(argument) if fits else scope.argument(argument)
            told.append(named_argument(name, f"{seed}{text}"))
        return told

    def _free(self, scope: Scope, storage: int) -> None:
        if (code := self.read_themselves.pop(storage, None)) is not None:
            self.products = {call: key for call, key in self.products.items() if key != code}
            return
        self.alive.discard(storage)
        if storage in scope.returned or storage not in self.handed:
            scope.free(storage)
