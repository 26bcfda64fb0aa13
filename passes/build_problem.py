"""Poses a step graph as a scheduling problem: what a solver sees, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import fx

from ..solvers.problem.problem import EncodingOption, Op, Problem, Value
from .blocks import kernel_kind
from .compute_intensive import is_product
from .encodings.codec_sites import CodecSite
from .step_graph import Kernel, StepGraph


@dataclass(frozen=True)
class ProblemMapping:
    """A problem and the way back: the kernel of each operation, the storage of each value, and by storage what its
    encodings stand for."""

    problem: Problem
    kernels: tuple[Kernel, ...]
    storages: tuple[int, ...]
    value_of: Mapping[int, int]
    codec_sites: Mapping[int, tuple[CodecSite, ...]] = field(default_factory=dict)


def pose(
    step: StepGraph,
    cost_of: Callable[[fx.Node], tuple[float, int]],
    *,
    resident_bytes: int,
    codec_sites: Mapping[int, tuple[CodecSite, ...]] | None = None,
    grad_present: frozenset[object] = frozenset(),
    state_bytes: int = 0,
    floor_bytes: int = 0,
    error_budget: float = 0.0,
    rounding_bytes: int = 1,
    name: str = "step",
    costs: str = "measured",
    notes: tuple[str, ...] = (),
) -> ProblemMapping:
    """The problem of a step graph.

    cost_of: seconds and working bytes of a call; resident_bytes: parameters, buffers, inputs and existing `.grad`;
    codings: by storage the ways to encode it; grad_present: sources that have a `.grad`; state_bytes: of a generator's
    state, on the device; floor_bytes: a peak outside the schedule; error_budget: for the errors of approximate codings;
    rounding_bytes: the allocator's granularity.
    """

    def rounded(size_bytes: int) -> int:
        return -(-size_bytes // rounding_bytes) * rounding_bytes

    used = sorted({s for kernel in step.kernels for s in (*kernel.reads, *kernel.makes)})
    value_of = {storage: index for index, storage in enumerate(used)}
    held = held_storages(step, grad_present)
    made = {s for kernel in step.kernels for s in kernel.makes}
    values = tuple(
        Value(
            name=step.storages[s].name,
            size_bytes=rounded(step.storages[s].size_bytes),
            held=s in held,
            resident=s not in made,
            encodings=tuple(
                _encoding(one, step.storages[s].size_bytes, cost_of, rounded)
                for one in (codec_sites or {}).get(s, ())
                if s not in held
            ),
        )
        for s in used
    )
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
    return ProblemMapping(problem, step.kernels, tuple(used), value_of, codec_sites or {})


def _encoding(
    coding: CodecSite, size_bytes: int, cost_of: Callable[[fx.Node], tuple[float, int]], rounded: Callable[[int], int]
) -> EncodingOption:
    (encode_seconds, encode_bytes), (decode_seconds, decode_bytes) = cost_of(coding.encode), cost_of(coding.decode)
    decoded_bytes = None
    if coding.product is not None:
        seconds, product_bytes = cost_of(coding.product.call)
        replaced_seconds, replaced_bytes = cost_of(coding.product.replaced.call)
        more_bytes = max(rounded(product_bytes) - rounded(replaced_bytes), 0)
        if more_bytes < size_bytes:  # or else what is decoded takes less
            # solvers take no operation for less than nothing, so a product counts as no faster than what it replaces
            decode_seconds, decode_bytes = max(seconds - replaced_seconds, 0.0), more_bytes
            decoded_bytes = more_bytes
    return EncodingOption(
        name=coding.codec.name,
        size_bytes=rounded(coding.code_bytes),
        encode_seconds=encode_seconds,
        decode_seconds=decode_seconds,
        encode_working_bytes=rounded(encode_bytes),
        decode_working_bytes=rounded(decode_bytes),
        fidelity=coding.codec.fidelity,
        error=coding.error,
        stands_in=coding.codec.stands_in,
        decoded_bytes=decoded_bytes,
    )


def held_storages(step: StepGraph, grad_present: frozenset[object]) -> set[int]:
    """Storages that outlive the schedule: outputs, tangents (the caller holds both) and gradients that become
    `.grad`."""
    held = {step.storage_of[node] for node in step.outputs}
    for kernel in step.kernels:
        if kernel.role == "tangent":
            held.update(kernel.makes)
        if kernel.role == "accumulate":
            assert kernel.target is not None
            if kernel.target.meta["source"] not in grad_present:
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
    seconds, working_bytes = 0.0, 0
    if kernel.role == "compute":
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
        random=kernel.random,
        intensive=is_product(kernel),
        kind=kernel_kind(kernel),
        module=kernel.module,
        reuses=reuses,
    )


def _working_bytes(kernel: Kernel, measured: list[int]) -> int:
    """The most a kernel has allocated at once: what its first call takes, and what those in place take besides.

    measured: the working bytes of each call by itself, where those in place make a result of their own; what writes a
    change is measured in place, and is counted beside a copy here.
    """
    if kernel.change is not None:
        return kernel.calls[-1].meta["val"].untyped_storage().nbytes() + measured[0]
    results = [
        call.meta["val"].untyped_storage().nbytes() if i or kernel.writes else 0 for i, call in enumerate(kernel.calls)
    ]
    beside = [told - result for told, result in zip(measured, results, strict=True)]
    return max(beside[0], *(results[i] + beside[i] for i in range(1, len(beside))), 0)
