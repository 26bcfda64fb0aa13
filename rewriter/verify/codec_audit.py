"""Audits the codes of an approximate plan: the error of each in its value and in the gradient, against prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from ...passes.encodings.codec_sites import CodecSite
from ...passes.sources import Source
from ...solvers.problem.liveness import schedule_of, trace_order
from ...solvers.problem.module_names import plain_operation
from ...solvers.problem.plan import Plan
from ...solvers.problem.schedule import Decode, Free, Run
from ..noise.perturbed_backward import PerturbedRun, energy_of, errors_alongside
from ..noise.replay import Replay
from ..noise.sensitivity import MEASURE_SEED
from ..plan.step_problem import PlannedStep

MOST_VALUES = 24  # audited by default
_SEEDS = 2
_MOST_COSINE = 0.1  # of unbiased deviations, in addition to the effect of rounding to the nearest number of the dtype
_DEVIATIONS = 5.0


@dataclass(frozen=True)
class AuditedValue:
    """A value that a plan keeps approximately, replaced alone by its decoded version, with two seeds.

    module: the module that makes it.
    operation: the operation that makes it.
    shape: its shape.
    codec: the name of its codec.
    bits: the bits of its code for each element.
    original_bytes: the bytes of the value.
    packed_bytes: the bytes of its code.
    value_error: ‖decoded − value‖² / ‖value‖².
    predicted, measured: the amount added to ‖ĝ − g‖², as shares of the gradient's own variance.
    alike: the cosine between the deviations of the value with the two seeds; 0 for a codec that draws nothing.
    alike_limit: the largest cosine of a codec that rounds without bias.
    """

    module: str
    operation: str
    shape: tuple[int, ...]
    codec: str
    bits: float
    original_bytes: int
    packed_bytes: int
    value_error: float
    predicted: float
    measured: float
    alike: float
    alike_limit: float

    @property
    def is_unbiased(self) -> bool:
        """Return whether two seeds' deviations have as little in common as by chance; NaN counts as biased."""
        return self.alike <= self.alike_limit


@dataclass(frozen=True)
class Audit:
    """The audited values, in the order of forward.

    encoded: the number of values that the plan keeps approximately.
    """

    values: tuple[AuditedValue, ...] = ()
    encoded: int = 0

    @property
    def description(self) -> str:
        """Describe the choice and the number of audited values."""
        if len(self.values) == self.encoded:
            return f"all {self.encoded} values that are kept approximately"
        return (
            f"{len(self.values)} of {self.encoded} values that are kept approximately, of each codec the one predicted "
            "to add most, and others predicted to add most"
        )

    @property
    def faults(self) -> Iterator[str]:
        """Yield a sentence about each biased value."""
        for value in self.values:
            if not value.is_unbiased:
                yield (
                    f"{value.codec} of {value.operation} in {value.module or '(root)'}: two seeds' errors are alike "
                    f"(cosine {value.alike:.2f}, limit {value.alike_limit:.2f}), so the code is biased or its seed "
                    "has no effect"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and texts, for JSON."""
        return {"values": [asdict(value) for value in self.values], "encoded": self.encoded}


def audit_of(planned: PlannedStep, tensors: Mapping[Source, torch.Tensor], most_values: int = MOST_VALUES) -> Audit:
    """Audit at most `most_values` values of a plan on the data that it was calibrated on.

    Each value is replaced by its decoded version wherever the plan reads it decoded; everything else stays exact. For
    each value the step runs once, with everything kept. For each of two seeds, the part of its backward that the value
    reaches runs too. Memory peaks above that of the step by twice the gradients on their way, minus the finished ones,
    which are freed.

    Two draws give the added variance within about a tenth for large values. They give it within a half where few
    elements make most of the noise. A bias is detected if it makes more than a tenth of a code's error.
    """
    plan, sensitivity = planned.plan, planned.measured.sensitivity
    readers = _approximate_readers(plan)
    if sensitivity is None or not readers or most_values < 1:
        return Audit(encoded=len(readers))
    own = sensitivity.own_variance
    predicted = {(v, n): sensitivity.added[planned.mapping.storages[v]][n] / own for v, n in readers}
    cases = [_Case(planned, v, n, readers[v, n]) for v, n in _sample(plan, predicted, most_values)]
    schedule = schedule_of(planned.mapping.problem, trace_order(planned.mapping.problem))
    device = planned.measured.device
    devices = [device] if device.type == "cuda" else []
    for case in cases:
        with torch.no_grad(), torch.autocast(device.type, enabled=False), torch.random.fork_rng(devices=devices):
            torch.manual_seed(MEASURE_SEED)
            replay = Replay(planned.step, planned.mapping, tensors, device)
            case.squares = sum(
                sum(squares) for _, _, squares in errors_alongside(replay, schedule, case.perturbed_runs())
            )
    return Audit(tuple(case.audited(predicted[case.value, case.number], own) for case in cases), len(readers))


def _approximate_readers(plan: Plan) -> dict[tuple[int, int], set[int]]:
    """Return, by value and approximate encoding, the operations that read the value as decoded."""
    readers: dict[tuple[int, int], set[int]] = {}
    decoded: dict[int, tuple[int, int]] = {}
    for instruction in plan.schedule.instructions:
        if isinstance(instruction, Decode):
            if plan.problem.values[instruction.value].encodings[instruction.encoding].fidelity == "approximate":
                decoded[instruction.value] = instruction.value, instruction.encoding
                readers.setdefault(decoded[instruction.value], set())
        elif isinstance(instruction, Free):
            decoded.pop(instruction.value, None)
        elif isinstance(instruction, Run):
            for value in plan.problem.ops[instruction.op].reads:
                if value in decoded:
                    readers[decoded[value]].add(instruction.op)
    return readers


def _sample(plan: Plan, predicted: Mapping[tuple[int, int], float], most: int) -> list[tuple[int, int]]:
    """Return values with their encodings: the largest predicted one of each codec, then the others by prediction."""
    ranked = sorted(predicted, key=lambda key: -predicted[key])
    first: dict[str, tuple[int, int]] = {}
    for value, number in ranked:
        first.setdefault(plan.problem.values[value].encodings[number].name, (value, number))
    return sorted(list(dict.fromkeys((*first.values(), *ranked)))[:most])


@dataclass(eq=False)
class _Case:
    """A value under audit, with its measurements."""

    planned: PlannedStep
    value: int
    number: int
    readers: set[int]
    squares: float = 0.0
    value_error: float = 0.0
    cosine: tuple[float, float] = (0.0, 0.0)
    is_measured: bool = False

    @property
    def storage(self) -> int:
        return self.planned.mapping.storages[self.value]

    @property
    def site(self) -> CodecSite:
        return self.planned.mapping.codec_sites[self.storage][self.number]

    def perturbed_runs(self) -> list[PerturbedRun]:
        """Return one perturbed run for each seed."""
        return [PerturbedRun({self.storage: partial(self._decoded, draw)}, self.readers) for draw in range(_SEEDS)]

    def _decoded(self, draw: int, value: torch.Tensor) -> torch.Tensor:
        if not self.is_measured:
            self.is_measured = True
            self.value_error, self.cosine = value_deviations(self.site, value, [self._seed(d) for d in range(_SEEDS)])
        return self.site.round_trip(value, self._seed(draw))

    def _seed(self, draw: int) -> int:
        return MEASURE_SEED + 1 + self.value + draw * len(self.planned.plan.problem.values)

    def audited(self, predicted: float, own_variance: float) -> AuditedValue:
        """Return the results of the audit."""
        problem = self.planned.plan.problem
        value, maker = problem.values[self.value], problem.ops[problem.maker[self.value]]
        base = self.planned.step.storages[self.storage].base
        shape = tuple(map(int, base.meta["val"].shape))
        encoding = value.encodings[self.number]
        return AuditedValue(
            module=maker.module,
            operation=plain_operation(maker.name),
            shape=shape,
            codec=encoding.name,
            bits=8 * self.site.code_bytes / max(base.meta["val"].numel(), 1),
            original_bytes=value.size_bytes,
            packed_bytes=encoding.size_bytes,
            value_error=self.value_error,
            predicted=predicted,
            measured=self.squares / _SEEDS / own_variance if own_variance else 0.0,
            alike=self.cosine[0],
            alike_limit=self.cosine[1],
        )


def value_deviations(site: CodecSite, value: torch.Tensor, seeds: Sequence[int]) -> tuple[float, tuple[float, float]]:
    """Return the mean squared relative error of a value over two seeds, the cosine of the deviations, and its limit.

    The deviations are multiplied and summed over the elements that a codec draws at once. These are a row along the
    codec's feature dimension, and of a vector each element. The sums show how far the cosine of unbiased deviations
    varies around 0. Decoded values are rounded to the nearest of their dtype, which biases each by at most half its
    spacing.
    """
    first, second = (site.round_trip(value, seed).sub_(value) for seed in seeds)
    squares, whole = (energy_of(first), energy_of(second)), energy_of(value)
    quantization_error = sum(squares) / len(squares) / whole if whole else 0.0
    if not site.codec.draws or not all(squares):
        return quantization_error, (0.0, 0.0)
    first = first.to(torch.promote_types(first.dtype, torch.float32))  # half precision has no products of small errors
    products = first.mul_(second) if first.dim() > 1 else first.mul_(second).unsqueeze(-1)
    norms = (squares[0] * squares[1]) ** 0.5
    rows = products.sum(site.codec.arguments[0].get("dim", -1), dtype=torch.float64) / norms
    shared_values = float((rows - rows.mean()).square().sum()) ** 0.5
    rounded = (torch.finfo(value.dtype).eps / 2) ** 2 * whole / norms
    return quantization_error, (float(rows.sum()), _MOST_COSINE + _DEVIATIONS * shared_values + rounded)
