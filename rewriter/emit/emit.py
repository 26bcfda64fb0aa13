"""Emit a schedule as readable Python: one function per distinct segment, and the bindings that call them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from ...passes.build_problem import ProblemMapping
from ...passes.encodings.codec_sites import CodecSite
from ...passes.rewrites.run_in_place import WRITTEN_OUT, in_place_variant
from ...passes.sources import Source
from ...passes.step_graph import StepGraph
from ...passes.step_kernels import (
    BufferUpdate,
    Change,
    ComputeKernel,
    DecisionCheck,
    GradAccumulate,
    Kernel,
    TangentArrival,
)
from ...solvers.problem.schedule import Decode, Encode, Forget, Free, FreeCode, Record, Run, Schedule, Segment
from ..capture.captured_step import CapturedStep
from ..text.source_text import comment, identifier
from .bound_names import BoundNames, named_argument
from .equal_views import EqualViews
from .program import SEED_KEY, Key, Program, load_functions
from .scope import Scope, hint_of
from .text import Rendered, assemble


def emit(
    captured: CapturedStep,
    step: StepGraph,
    mapping: ProblemMapping,
    schedule: Schedule,
    title: str,
    header: str,
    device: torch.device,
    links: tuple[int, ...],
) -> Program:
    """Return the program of a schedule.

    title: its name in tracebacks.
    header: a comment at the start of the code.
    links: `Program.link_sizes`.
    """
    bound = BoundNames()
    writer = _Writer(step, mapping, schedule, bound, captured.outputs.names)
    half = len(schedule.segments) // 2
    rendered = [writer.segment(segment) for segment in schedule.segments[:half]]
    for part in rendered:
        kept = {**{key: step.storages[key].size_bytes for key in writer.alive}, **writer.codes}
        part.kept = [(name, kept[key]) for key, name in zip(part.gives, part.given, strict=True) if key in kept]
    rendered += [writer.segment(segment) for segment in schedule.segments[half:]]
    code, names, constants = assemble(
        rendered, step.block_names, "\n".join((header, *map(comment, bound.definitions))), links
    )
    bindings = [part.bound_to(name, values) for part, name, values in zip(rendered, names, constants, strict=True)]
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
        random=any(kernel.random for kernel in step.compute_kernels),
        is_checked=any(isinstance(kernel, DecisionCheck) for kernel in step.kernels),
    )


def _updated_in_passing(step: StepGraph) -> set[Source]:
    """Return the buffers and inputs that kernels change in addition to their results, also through views."""
    bases = (step.storages[step.storage_of[node]].base for kernel in step.compute_kernels for node in kernel.updates)
    return {base.meta["source"] for base in bases if base.op == "placeholder"}


def _dependence(step: StepGraph) -> dict[Source, frozenset[int]]:
    """Return for each gradient the tangents (by number) on which it depends."""
    tangents = [i for i, s in enumerate(step.storages) if s.kind == "tangent"]
    depends = {storage: frozenset([number]) for number, storage in enumerate(tangents)}
    dependence: dict[Source, frozenset[int]] = {}
    for kernel in step.kernels:
        union = frozenset().union(*(depends.get(s, frozenset()) for s in kernel.reads))
        for storage in kernel.makes:
            depends.setdefault(storage, union)
        for storage in kernel.writes:
            depends[storage] = union
        if isinstance(kernel, GradAccumulate):
            dependence[kernel.target.meta["source"]] = union
    return dependence


class _Writer:
    """Writes segments in order, and tracks the values that are alive between them."""

    def __init__(
        self,
        step: StepGraph,
        mapping: ProblemMapping,
        schedule: Schedule,
        bound: BoundNames,
        outputs: Sequence[str],
    ) -> None:
        self.step = step
        self.outputs = outputs
        self.bound = bound
        self.views = EqualViews(step)
        self.mapping = mapping
        self.schedule = schedule
        self.alive: set[int] = set()
        self.codes: dict[Key, int] = {}  # the bytes of each live code
        self.read_themselves: dict[int, Key] = {}  # the codes that are read instead of storages
        self.products: dict[fx.Node, Key] = {}  # the codes that calls read
        self.started: set[int] = set()
        self.returned_gradients: set[int] = set()  # storages of returned gradients, which are not on the tape
        self.last_forward = len(schedule.segments) // 2 - 1

    def segment(self, segment: Segment) -> Rendered:
        """Return the function of one segment."""
        number = self.schedule.segments.index(segment)
        phase = "forward" if number <= self.last_forward else "backward"
        rendered = Rendered(block=segment.block, phase=phase)
        scope = Scope(rendered, self.step, self.bound, self.views, on_tape=set(self.alive))
        for index in range(segment.start, segment.stop):
            match self.schedule.instructions[index]:
                case Run(op):
                    self._run(scope, op, index)
                case Record(op):
                    scope.rendered.body.call(f"{scope.give(('state', op), 'state')} = generator_state()")
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
                    self._free(scope, self.mapping.storages[value])
        if number == self.last_forward:
            rendered.returned = [scope.expression(node) for node in self.step.outputs]
            rendered.results = f"Outputs: {', '.join(filter(None, self.outputs))}" if any(self.outputs) else ""
        elif rendered.gradients:
            rendered.results = f"Gradients of {', '.join(source.name for source in rendered.gradients)}"
        for key in rendered.gives:
            name = scope.key_name(key) if isinstance(key, tuple) else scope.names[self.step.storages[key].base]
            rendered.given.append(name)
        rendered.lines, rendered.returned = rendered.body.settle(rendered.returned, scope.fresh)
        return rendered

    def _note(self, scope: Scope, op: int, kernel: Kernel) -> None:
        """Say which module, and which line of its code, the next lines come from."""
        node = _first_node(kernel)
        meta = node.meta if node is not None else {}
        module, line = meta.get("module", ""), meta.get("line", "")
        place = f"{module} ({line})" if module and line else module or line
        if place:
            scope.rendered.body.note(f"Recomputed: {place}" if op in self.started else place)

    def _run(self, scope: Scope, op: int, index: int) -> None:
        kernel = self.mapping.kernels[op]
        self._note(scope, op, kernel)
        if isinstance(kernel, TangentArrival):
            # The runtime puts the incoming gradients on the tape before the first backward segment.
            self.alive.update(kernel.makes)
            scope.on_tape.update(kernel.makes)
        elif isinstance(kernel, BufferUpdate):
            target, value = scope.expression(kernel.target), scope.expression(kernel.value)
            scope.rendered.body.call(f"{target}.copy_({value})")
        elif isinstance(kernel, DecisionCheck):
            scope.rendered.body.call(f"require({', '.join(map(scope.argument, kernel.arguments))})")
        elif isinstance(kernel, GradAccumulate):
            self._accumulate(scope, kernel)
        elif not isinstance(kernel, ComputeKernel):
            pass  # an anchor only requires that its operand exists
        elif kernel.destination is not None:
            self._overwrite(scope, kernel)
        elif kernel.change is not None:
            self._change(
                scope, op, kernel, kernel.change, self.schedule.ends_with(index, self.mapping.problem.ops[op].reuses)
            )
        else:
            self._compute(scope, op, kernel)

    def _overwrite(self, scope: Scope, kernel: ComputeKernel) -> None:
        (call,) = kernel.calls
        if str(call.target) in WRITTEN_OUT:
            variant, written = WRITTEN_OUT[str(call.target)]
            arguments, place = scope.arguments(call), scope.argument(kernel.destination)
            scope.rendered.body.call(f"{variant}({arguments}, {written}={place})")
            return
        others = [argument for argument in call.args if argument is not kernel.destination]
        arguments = ", ".join(scope.argument(argument) for argument in (kernel.destination, *others))
        scope.rendered.body.call(f"{in_place_variant(call)}({arguments})")

    def _accumulate(self, scope: Scope, kernel: GradAccumulate) -> None:
        gradient = scope.expression(kernel.gradient)
        if kernel.makes:
            # An output may be freed already, so its gradient keeps the layout it arrives with.
            is_output = kernel.target.meta["source"].kind == "output"
            target = gradient if is_output else scope.expression(kernel.target)
            clone = scope.fresh(identifier(f"{hint_of(kernel.target)}_gradient"))
            scope.rendered.body.call(f"{clone} = own_gradient({target}, {gradient})")
            gradient = clone
            self.alive.update(kernel.makes)
        else:
            # Autograd steals a gradient only if nothing else holds it: it must not stay on the tape.
            scope.returned.add(kernel.reads[0])
            self.returned_gradients.add(kernel.reads[0])
            scope.leave(kernel.reads[0])
        scope.rendered.returned.append(gradient)
        scope.rendered.gradients.append(kernel.target.meta["source"])

    def _compute(self, scope: Scope, op: int, kernel: ComputeKernel) -> None:
        is_recomputation = op in self.started
        self.started.add(op)
        missing = [s for s in kernel.makes if s not in self.alive and s not in self.read_themselves]
        first, *rest = kernel.calls
        called = self._called(scope, first, without=kernel.updates if is_recomputation else ())
        state = scope.key_name(("state", op)) if is_recomputation and kernel.random else None
        for storage in missing:
            # A recomputed value replaces the former meaning of its name, from before it was freed.
            scope.names.pop(self.step.storages[storage].base, None)
        result = scope.targets(kernel.calls[-1], missing)
        lines = [f"{result}{called}"]
        for call in rest:
            name = scope.names[kernel.calls[-1]]
            others = scope.arguments(call, skip_first=True)
            lines.append(f"{in_place_variant(call)}({', '.join(filter(None, [name, others]))})")
        if state:
            scope.rendered.body.call(f"with drawing_from({state}):")
        for line in lines:
            scope.rendered.body.call(("    " if state else "") + line)
        if "unused" in result.removesuffix(" = ").split(", "):
            scope.rendered.body.delete("unused")
        if is_recomputation:
            size_bytes = sum(self.step.storages[s].size_bytes for s in missing)
            scope.rendered.recomputed.append((hint_of(kernel.calls[-1]), size_bytes))
        self.alive.update(missing)
        scope.rendered.gives.extend(missing)

    def _change(self, scope: Scope, op: int, kernel: ComputeKernel, change: Change, in_place: bool) -> None:
        """Write the change into the tensor, or into a copy of it if the tensor is read later."""
        (storage,), is_recomputation = kernel.makes, op in self.started
        self.started.add(op)
        if storage in self.alive:
            return  # a second run of a value that is still alive
        base = self.step.storages[storage].base
        source = scope.expression(change.of)
        scope.names.pop(base, None)
        scope.rendered.body.call(f"{scope.name(base)} = {source if in_place else f'aten.clone.default({source})'}")
        scope.rendered.body.call(scope.written(change, scope.names[base]))
        if is_recomputation:
            scope.rendered.recomputed.append((hint_of(kernel.calls[-1]), self.step.storages[storage].size_bytes))
        self.alive.add(storage)
        scope.rendered.gives.append(storage)

    def _called(self, scope: Scope, call: fx.Node, without: tuple[fx.Node, ...]) -> str:
        """Return a call, or the product with a code's levels that replaces it."""
        if call not in self.products:
            return scope.called(call, scope.arguments(call, without=without))
        key = self.products[call]
        site = self._site(key[1], key[2])  # pyright: ignore
        assert site.product is not None
        arguments = [scope.expression(site.product.replaced.gradient), scope.key_name(key)]
        arguments += [
            named_argument(name, scope.constant(constant)) for name, constant in site.product_keywords().items()
        ]
        return scope.called(site.product.call, ", ".join(arguments))

    def _encode(self, scope: Scope, value: int, encoding: int) -> None:
        base, site = self.step.storages[self.mapping.storages[value]].base, self._site(value, encoding)
        source = scope.expression(base)
        others = self._codec_arguments(scope, site, site.encode, value)
        code = scope.give(("code", value, encoding), identifier(f"{hint_of(base)}_{site.codec.name}"))
        scope.rendered.body.call(f"{code} = {scope.called(site.encode, ', '.join((source, *others)))}")
        self.codes[("code", value, encoding)] = site.code_bytes

    def _decode(self, scope: Scope, value: int, encoding: int) -> None:
        storage, site = self.mapping.storages[value], self._site(value, encoding)
        if self.mapping.problem.values[value].encodings[encoding].is_read_itself:
            assert site.product is not None
            key = self.read_themselves[storage] = ("code", value, encoding)
            self.products[site.product.replaced.call] = key
            return
        code = scope.key_name(("code", value, encoding))
        others = self._codec_arguments(scope, site, site.decode, value)
        name = scope.name(self.step.storages[storage].base)
        scope.rendered.body.call(f"{name} = {scope.called(site.decode, ', '.join((code, *others)))}")
        self.alive.add(storage)
        scope.rendered.gives.append(storage)

    def _site(self, value: int, encoding: int) -> CodecSite:
        return self.mapping.codec_sites[self.mapping.storages[value]][encoding]

    def _codec_arguments(self, scope: Scope, site: CodecSite, call: fx.Node, value: int) -> list[str]:
        """Return a codec's arguments after the value or code. Each value has its own seed, different in each step."""
        arguments = [scope.argument(argument) for argument in call.args[1:]]
        for name, argument in site.keywords(call, value).items():
            seed = f"{scope.key_name(SEED_KEY)} + " if name == "seed" else ""
            is_tuple = isinstance(argument, tuple)  # borders or levels, which are one constant
            text = scope.constant(argument) if is_tuple else scope.argument(argument)
            arguments.append(named_argument(name, f"{seed}{text}"))
        return arguments

    def _free(self, scope: Scope, storage: int) -> None:
        if (code := self.read_themselves.pop(storage, None)) is not None:
            self.products = {call: key for call, key in self.products.items() if key != code}
            return
        self.alive.discard(storage)
        if storage in scope.returned or storage not in self.returned_gradients:
            scope.free(storage)


def _first_node(kernel: Kernel) -> fx.Node | None:
    """Return the node of the joint graph that a kernel carries out first, if any."""
    match kernel:
        case ComputeKernel() | DecisionCheck():
            return kernel.calls[0]
        case BufferUpdate():
            return kernel.value
        case GradAccumulate():
            return kernel.gradient
    return None
