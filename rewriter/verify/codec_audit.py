"""Audits the codes of an approximate plan: what each does to its value and to the gradient, and what was foretold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from ...passes.encodings.codec_sites import CodecSite
from ...passes.sources import Source
from ...solvers.problem.liveness import schedule_of, trace_order
from ...solvers.problem.plan import Plan
from ...solvers.problem.schedule import Decode, Free, Run
from ..noise.perturbed_backward import PerturbedRun, energy_of, errors_alongside
from ..noise.replay import Replay
from ..noise.sensitivity import SEED
from ..plan.step import PlannedStep
from ..text.module_names import plain_operation

MOST_VALUES = 24  # that are audited unless asked otherwise
_SEEDS = 2
_MOST_ALIKE = 0.1  # of unbiased errors, besides what rounding to the nearest number of the dtype makes alike
_DEVIATIONS = 5.0


@dataclass(frozen=True)
class AuditedValue:
    """A value that a plan keeps approximately, given back as decoded, alone, with two seeds.

    bits: of its code for each element. value_error: ‖decoded − value‖² / ‖value‖². predicted, measured: what that adds
    to ‖ĝ − g‖², as shares of the variance that the gradient has anyway. alike: the cosine between the errors that the
    seeds make in the value, at most alike_limit if the codec rounds without bias; 0 for one that draws nothing.
    """

    module: str
    operation: str
    shape: tuple[int, ...]
    codec: str
    bits: float
    size_bytes: int
    code_bytes: int
    value_error: float
    predicted: float
    measured: float
    alike: float
    alike_limit: float

    @property
    def is_unbiased(self) -> bool:
        """Whether two seeds' errors have as little in common as chance gives them; NaN is no answer."""
        return self.alike <= self.alike_limit


@dataclass(frozen=True)
class Audit:
    """The values audited, in the order of forward. encoded: how many the plan keeps approximately."""

    values: tuple[AuditedValue, ...] = ()
    encoded: int = 0

    @property
    def description(self) -> str:
        """Which values were audited, and how many."""
        if len(self.values) == self.encoded:
            return f"all {self.encoded} values that are kept approximately"
        return (
            f"{len(self.values)} of {self.encoded} values that are kept approximately, of each codec the one predicted "
            "to add most, and others predicted to add most"
        )

    @property
    def faults(self) -> Iterator[str]:
        """What is wrong, in words."""
        for one in self.values:
            if not one.is_unbiased:
                yield (
                    f"{one.codec} of {one.operation} in {one.module or '(root)'}: two seeds' errors are alike (cosine "
                    f"{one.alike:.2f}, limit {one.alike_limit:.2f}), so the code is biased or its seed without effect"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        return {"values": [asdict(one) for one in self.values], "encoded": self.encoded}


def audit_of(planned: PlannedStep, tensors: Mapping[Source, torch.Tensor], most_values: int = MOST_VALUES) -> Audit:
    """Audits at most so many values of a plan on the data that it was calibrated on.

    A value is given back as decoded, all else exactly, where the plan reads it decoded. For each value the step runs
    once, with everything kept, and for each of two seeds the part of its backward that the value reaches; memory peaks
    above that of the step by twice the gradients on their way, less the finished ones, which are freed. Two draws tell
    what a code adds within about a tenth for large values, within a half where few elements make most of the noise; a
    bias is found where it makes more than a tenth of a code's error.
    """
    plan, sensitivity = planned.plan, planned.costs.sensitivity
    readers = _approximate_readers(plan)
    if sensitivity is None or not readers or most_values < 1:
        return Audit(encoded=len(readers))
    own = sensitivity.own_variance
    predicted = {(v, n): sensitivity.added[planned.posed.storages[v]][n] / own for v, n in readers}
    cases = [_Case(planned, v, n, readers[v, n]) for v, n in _sample(plan, predicted, most_values)]
    schedule = schedule_of(planned.posed.problem, trace_order(planned.posed.problem))
    device = planned.costs.device
    devices = [device] if device.type == "cuda" else []
    for case in cases:
        with torch.no_grad(), torch.autocast(device.type, enabled=False), torch.random.fork_rng(devices=devices):
            torch.manual_seed(SEED)
            replay = Replay(planned.step, planned.posed, tensors, device)
            case.squares = sum(
                sum(squares) for _, _, squares in errors_alongside(replay, schedule, case.perturbed_runs())
            )
    return Audit(tuple(case.audited(predicted[case.value, case.number], own) for case in cases), len(readers))


def _approximate_readers(plan: Plan) -> dict[tuple[int, int], set[int]]:
    """By value and approximate encoding, the operations that read the value as decoded."""
    found: dict[tuple[int, int], set[int]] = {}
    decoded: dict[int, tuple[int, int]] = {}
    for one in plan.schedule.instructions:
        if isinstance(one, Decode):
            if plan.problem.values[one.value].encodings[one.encoding].fidelity == "approximate":
                decoded[one.value] = one.value, one.encoding
                found.setdefault(decoded[one.value], set())
        elif isinstance(one, Free):
            decoded.pop(one.value, None)
        elif isinstance(one, Run):
            for value in plan.problem.ops[one.op].reads:
                if value in decoded:
                    found[decoded[value]].add(one.op)
    return found


def _sample(plan: Plan, predicted: Mapping[tuple[int, int], float], most: int) -> list[tuple[int, int]]:
    """Values with their encodings: of each codec the one predicted to add most, then the others that are."""
    ranked = sorted(predicted, key=lambda key: -predicted[key])
    first: dict[str, tuple[int, int]] = {}
    for value, number in ranked:
        first.setdefault(plan.problem.values[value].encodings[number].name, (value, number))
    return sorted(list(dict.fromkeys((*first.values(), *ranked)))[:most])


@dataclass(eq=False)
class _Case:
    """A value under audit, with what has been measured of it."""

    planned: PlannedStep
    value: int
    number: int
    readers: set[int]
    squares: float = 0.0
    value_error: float = 0.0
    alike: tuple[float, float] = (0.0, 0.0)
    seen: bool = False

    @property
    def storage(self) -> int:
        return self.planned.posed.storages[self.value]

    @property
    def coding(self) -> CodecSite:
        return self.planned.posed.codec_sites[self.storage][self.number]

    def perturbed_runs(self) -> list[PerturbedRun]:
        """One for each seed."""
        return [PerturbedRun({self.storage: partial(self._given, draw)}, self.readers) for draw in range(_SEEDS)]

    def _given(self, draw: int, value: torch.Tensor) -> torch.Tensor:
        if not self.seen:
            self.seen = True
            self.value_error, self.alike = value_errors(self.coding, value, [self._seed(d) for d in range(_SEEDS)])
        return self.coding.coded(value, self._seed(draw))

    def _seed(self, draw: int) -> int:
        return SEED + 1 + self.value + draw * len(self.planned.plan.problem.values)

    def audited(self, predicted: float, own_variance: float) -> AuditedValue:
        """What has been found."""
        problem = self.planned.plan.problem
        told, maker = problem.values[self.value], problem.ops[problem.maker[self.value]]
        base = self.planned.step.storages[self.storage].base
        shape = tuple(map(int, base.meta["val"].shape))
        encoding = told.encodings[self.number]
        return AuditedValue(
            module=maker.module,
            operation=plain_operation(maker.name),
            shape=shape,
            codec=encoding.name,
            bits=8 * self.coding.code_bytes / max(base.meta["val"].numel(), 1),
            size_bytes=told.size_bytes,
            code_bytes=encoding.size_bytes,
            value_error=self.value_error,
            predicted=predicted,
            measured=self.squares / _SEEDS / own_variance if own_variance else 0.0,
            alike=self.alike[0],
            alike_limit=self.alike[1],
        )


def value_errors(coding: CodecSite, value: torch.Tensor, seeds: Sequence[int]) -> tuple[float, tuple[float, float]]:
    """The mean squared relative error of a value with two seeds; the cosine between their errors, and its limit.

    Products of errors, summed up by what a codec draws at once (a row, along the features that it is told of; of a
    vector each element), tell how far the cosine of unbiased ones strays from 0. Decoded values are rounded to the
    nearest of their dtype, which biases each by half its spacing at most.
    """
    one, other = (coding.coded(value, seed).sub_(value) for seed in seeds)
    squares, whole = (energy_of(one), energy_of(other)), energy_of(value)
    error = sum(squares) / len(squares) / whole if whole else 0.0
    if not coding.codec.draws or not all(squares):
        return error, (0.0, 0.0)
    one = one.to(torch.promote_types(one.dtype, torch.float32))  # half precision has no products of small errors
    products = one.mul_(other) if one.dim() > 1 else one.mul_(other).unsqueeze(-1)
    norms = (squares[0] * squares[1]) ** 0.5
    rows = products.sum(coding.codec.arguments[0].get("dim", -1), dtype=torch.float64) / norms
    shared_values = float((rows - rows.mean()).square().sum()) ** 0.5
    rounded = (torch.finfo(value.dtype).eps / 2) ** 2 * whole / norms
    return error, (float(rows.sum()), _MOST_ALIKE + _DEVIATIONS * shared_values + rounded)
