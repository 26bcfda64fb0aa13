"""Measures how much each approximate code of a step adds to the variance of its gradient, on real data."""

from __future__ import annotations

from dataclasses import replace

from ...solvers.portfolio import Portfolio
from ..errors import PlanError
from ..noise.sensitivity import sensitivity_of
from .measured_step import MeasuredStep
from .progress import Progress
from .situation import Situation
from .step_problem import formulate_step


def calibrate(measured: MeasuredStep, situation: Situation, progress: Progress | None = None) -> MeasuredStep:
    """Return the step with the error of each approximate codec site measured in the situation. Raises PlanError.

    The step runs once, in as few bytes as possible without encodings.
    """
    if measured.options.fidelity != "approximate":
        return measured
    if measured.options.preset() is not None or any(t.device.type == "meta" for t in situation.tensors.values()):
        raise PlanError(
            'fidelity="approximate" measures on real data how much each code adds to the gradient\'s variance: pass a '
            'model and inputs with data and no device= preset, or fidelity="rounding"'
        )
    if progress:
        progress(0.6, "measuring errors")
    unencoded = formulate_step(replace(measured, codec_sites={}), situation)
    plan = Portfolio().frontier(unencoded.problem, 2)[-1]
    sensitivity = sensitivity_of(
        measured.step,
        unencoded.mapping,
        plan.schedule,
        situation.tensors,
        measured.codec_sites,
        _batch(situation),
        measured.device,
        measured.options.error_budget,
    )
    notes = measured.captured.notes
    if measured.codec_sites and not sensitivity.own_variance > 0:
        notes = (*notes, "nothing is kept approximately: the sample shows no finite variance of the gradient")
    captured = replace(measured.captured, notes=notes)
    return replace(measured, captured=captured, codec_sites=sensitivity.codec_sites, sensitivity=sensitivity)


def _batch(situation: Situation) -> tuple[int, int]:
    """Return the number of samples in the inputs and the number of tokens in each.

    Both are the first dimensions of the first input, if it holds ids [samples, tokens] or vectors [samples, tokens,
    features]. A picture counts as one token.
    """
    for source, tensor in situation.tensors.items():
        if source.kind == "input" and tensor.dim():
            has_tokens = tensor.dim() == (3 if tensor.is_floating_point() else 2)
            return tensor.shape[0], tensor.shape[1] if has_tokens else 1
    return 1, 1
