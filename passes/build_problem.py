"""Builds a scheduling problem from a step graph: the solver's view, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import fx

from ..solvers.problem.problem import EncodingOption, Op, Problem, Value
from .compute_intensive import is_product
from .encodings.codec_sites import CodecSite
from .sources import Source
from .step_graph import StepGraph, Storage
from .step_kernels import ComputeKernel, GradAccumulate, Kernel, TangentArrival


@dataclass(frozen=True)
class ProblemMapping:
    """A problem and its mapping back to the step graph.

    problem: the scheduling problem.
    kernels: the kernel of each operation.
    storages: the storage of each value.
    value_of: the value of each storage.
    codec_sites: by storage, the codec sites of its encodings.
    """

    problem: Problem
    kernels: tuple[Kernel, ...]
    storages: tuple[int, ...]
    value_of: Mapping[int, int]
    codec_sites: Mapping[int, tuple[CodecSite, ...]] = field(default_factory=dict)


def build_problem(
    step: StepGraph,
    cost_of: Callable[[fx.Node], tuple[float, int]],
    *,
    resident_bytes: int,
    codec_sites: Mapping[int, tuple[CodecSite, ...]] | None = None,
    grad_present: frozenset[Source] = frozenset(),
    state_bytes: int = 0,
    floor_bytes: int = 0,
    error_budget: float = 0.0,
    rounding_bytes: int = 1,
    name: str = "step",
    costs: str = "measured",
    notes: tuple[str, ...] = (),
) -> ProblemMapping:
    """Return the problem of a step graph.

    cost_of: seconds and working bytes of a call.
    resident_bytes: parameters, buffers, inputs and existing `.grad`.
    codec_sites: by storage its possible encodings.
    grad_present: sources that have a `.grad`.
    state_bytes: of a generator's state, on the device.
    floor_bytes: a peak outside the schedule.
    error_budget: for the errors of approximate encodings.
    rounding_bytes: the allocator's granularity.
    """

    def rounded(size_bytes: int) -> int:
        return -(-size_bytes // rounding_bytes) * rounding_bytes

    used = sorted({s for kernel in step.kernels for s in (*kernel.reads, *kernel.makes)})
    value_of = {storage: index for index, storage in enumerate(used)}
    sites = codec_sites or {}
    held = find_held_storages(step, grad_present)
    made = {s for kernel in step.kernels for s in kernel.makes}
    values = tuple(_value(step.storages[s], s in held, s not in made, sites.get(s, ()), cost_of, rounded) for s in used)
    ops = tuple(_op(kernel, value_of, values, cost_of, rounded) for kernel in step.kernels)
    problem = Problem(
        ops=ops,
        values=values,
        forward_length=step.forward_length,
        block_classes=step.block_classes,
        resident_bytes=resident_bytes,
        state_bytes=state_bytes,
        floor_bytes=floor_bytes,
        error_budget=error_budget,
        name=name,
        costs=costs,
        notes=notes,
    )
    return ProblemMapping(problem, step.kernels, tuple(used), value_of, sites)


def _value(
    storage: Storage,
    held: bool,
    resident: bool,
    sites: tuple[CodecSite, ...],
    cost_of: Callable[[fx.Node], tuple[float, int]],
    rounded: Callable[[int], int],
) -> Value:
    """Return the value of a storage; one that is held is never kept encoded."""
    return Value(
        name=storage.name,
        size_bytes=rounded(storage.size_bytes),
        held=held,
        resident=resident,
        encodings=() if held else tuple(_encoding(site, storage.size_bytes, cost_of, rounded) for site in sites),
    )


def _encoding(
    site: CodecSite, size_bytes: int, cost_of: Callable[[fx.Node], tuple[float, int]], rounded: Callable[[int], int]
) -> EncodingOption:
    (encode_seconds, encode_bytes), (decode_seconds, decode_bytes) = cost_of(site.encode), cost_of(site.decode)
    read_itself_bytes = None
    if site.product is not None:
        seconds, product_bytes = cost_of(site.product.call)
        replaced_seconds, replaced_bytes = cost_of(site.product.replaced.call)
        more_bytes = max(rounded(product_bytes) - rounded(replaced_bytes), 0)
        if more_bytes < size_bytes:  # otherwise the decoded value takes fewer bytes
            # solvers take no negative times, so a product counts as no faster than the call that it replaces
            decode_seconds, decode_bytes = max(seconds - replaced_seconds, 0.0), more_bytes
            read_itself_bytes = more_bytes
    return EncodingOption(
        name=site.codec.name,
        size_bytes=rounded(site.code_bytes),
        encode_seconds=encode_seconds,
        decode_seconds=decode_seconds,
        encode_working_bytes=rounded(encode_bytes),
        decode_working_bytes=rounded(decode_bytes),
        fidelity=site.codec.fidelity,
        error=site.error,
        decodes_to_placeholder=site.codec.decodes_to_placeholder,
        read_itself_bytes=read_itself_bytes,
    )


def find_held_storages(step: StepGraph, grad_present: frozenset[Source]) -> set[int]:
    """Return storages that outlive the schedule.

    They are outputs, tangents (the caller holds both) and gradients that become `.grad`.
    """
    held = {step.storage_of[node] for node in step.outputs}
    for kernel in step.kernels:
        if isinstance(kernel, TangentArrival):
            held.update(kernel.makes)
        elif isinstance(kernel, GradAccumulate) and kernel.target.meta["source"] not in grad_present:
            held.update(kernel.makes or kernel.reads)
    return held


def _op(
    kernel: Kernel,
    value_of: dict[int, int],
    values: tuple[Value, ...],
    cost_of: Callable[[fx.Node], tuple[float, int]],
    rounded: Callable[[int], int],
) -> Op:
    makes = tuple(value_of[s] for s in kernel.makes)
    seconds, working_bytes, reuses = 0.0, 0, None
    if isinstance(kernel, ComputeKernel):
        costs = [cost_of(call) for call in kernel.measured_calls]
        seconds = sum(cost[0] for cost in costs)
        working_bytes = _working_bytes(kernel, [cost[1] for cost in costs])
        reuses = value_of[kernel.reuses] if kernel.reuses is not None else None
    if reuses is not None and (values[reuses].resident or values[reuses].held):
        reuses = None  # it never dies
    return Op(
        name=kernel.name,
        reads=tuple(value_of[s] for s in kernel.reads),
        makes=makes,
        seconds=seconds,
        working_bytes=max(rounded(working_bytes), sum(values[v].size_bytes for v in makes)),
        block=kernel.block,
        repeatable=kernel.repeatable,
        random=isinstance(kernel, ComputeKernel) and kernel.random,
        compute_intensive=is_product(kernel),
        kind=kernel.kind,
        module=kernel.module,
        reuses=reuses,
    )


def _working_bytes(kernel: ComputeKernel, measured: list[int]) -> int:
    """Return the most bytes that a kernel allocates at once: its first call's, and the additional bytes of calls in
    place.

    measured: the working bytes of each call by itself, where those in place make a result of their own. The call that
    writes a change is measured in place, and counts in addition to a copy here.
    """
    if kernel.change is not None:
        return kernel.calls[-1].meta["val"].untyped_storage().nbytes() + measured[0]
    results = [
        call.meta["val"].untyped_storage().nbytes() if i or kernel.writes else 0 for i, call in enumerate(kernel.calls)
    ]
    extra_bytes = [size_bytes - result for size_bytes, result in zip(measured, results, strict=True)]
    return max(extra_bytes[0], *(results[i] + extra_bytes[i] for i in range(1, len(extra_bytes))), 0)
