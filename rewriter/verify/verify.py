"""Trains a module in eager and rewritten, and compares results, peaks and times."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from ...passes.sources import Source
from ..capture.boundary.outputs import Outputs, is_named
from ..capture.boundary.pytree import flatten
from ..capture.call.caches import without_caches
from ..capture.torch_internals import checkpoints_passed
from ..measure.measure_peak import measure_peak
from ..plan.situation import Situation, device_of, rounding_bytes, situation_with, storages_bytes, tensors_of
from ..plan.step_problem import PlannedStep
from ..rewrite import rewrite
from .codec_audit import MOST_VALUES, audit_of
from .comparison import GENERATOR, STEPPED, Comparison
from .noise_check import GradientNoise, MeasuredNoise
from .report import Report
from .tolerances import GRADIENT, limit_of

_LEARNING_RATE = 1e-3
_DRAWS = 5  # of the noise of approximate codes


def verify(
    model: torch.nn.Module,
    budget: int | str,
    args: tuple | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    steps: int = 3,
    timed_pairs: int = 0,
    audited: int = MOST_VALUES,
    make_optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    **options: Any,
) -> Report:
    """Train copies of a module for a few steps, in eager and rewritten, and compare the results of each step.

    steps: the number of optimizer steps.
    timed_pairs: the number of steps of each copy that are timed in turn.
    audited: the most values that are audited (`audit_of`).
    make_optimizer: a function that makes an optimizer from parameters; AdamW by default.
    options: the options of `rewrite`, `time_limit` included.

    Results that differ between two runs of eager are listed separately: no rewriting can equal them. The module itself
        and the random state do not change. A module may have checkpoints of its own (`torch.utils.checkpoint`), which
        rewriting turns into plain calls. Results are then compared with eager in which they are plain calls too;
        eager's peak is measured with them.

    With fidelity="bitwise", outputs, gradients, parameters, buffers and the generator's state are compared after each
    step, bit for bit. With a looser fidelity each step begins from eager's parameters and buffers, since training
    magnifies rounding (AdamW divides a gradient by its own size). Relative errors of outputs, gradients and buffers are
    held to limits that follow the dtype (`tolerances.limit_of`); the generator is compared bit for bit. A single
    gradient may deviate by a few times the effect of a rounding of the parameters in eager: the gradient of a bias
    before BatchNorm consists of rounding only.

    With "approximate", all gradients together are held to the predicted noise of the plan's codes. Five more draws at
    the first parameters hold each parameter's gradient to its prediction, and their mean to the exact gradient
    (`GradientNoise`). At most `audited` values that are kept approximately are replaced by their decoded versions, each
    alone (`audit_of`).

    Raises the errors of `rewrite`, and ValueError for a dtype whose rounding has not been measured.
    """
    args, kwargs = tuple(args or ()), dict(kwargs or {})
    make_optimizer = make_optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=_LEARNING_RATE))
    with _generators_restored(device_of(model, args, kwargs)):
        rewritten = rewrite(copy.deepcopy(model).train(), budget, args, kwargs, **options)
        constants = rewritten.lowtide.planned.measured.captured.held
        modules = (copy.deepcopy(model).train(), copy.deepcopy(model).train(), rewritten)
        runners = [_Runner(module, args, kwargs, options, make_optimizer, constants) for module in modules]
        return _report_of(runners, type(model).__name__, steps, timed_pairs, audited)


def _report_of(runners: Sequence[_Runner], name: str, steps: int, timed_pairs: int, audited: int) -> Report:
    """Return the report on eager, eager once more, and the rewritten module, which all have the same parameters."""
    eager, _, rewritten = runners
    first = rewritten.model.lowtide.planned
    limit = None if first.measured.options.fidelity == "bitwise" else limit_of(_dtypes_made(first))
    audit = audit_of(first, rewritten.situation().tensors, audited)
    with checkpoints_passed() if first.measured.captured.checkpoints else nullcontext():
        noise = _measure_noise(GradientNoise.of(first, limit), runners) if limit is not None else None
        comparison = _compare_steps(runners, steps, limit, first.noise_energy**0.5)
    peaks = _peaks(eager, rewritten, rewritten.model.lowtide.planned.measured.captured.outputs)
    return Report(
        name=name,
        plan=first.plan,
        steps=steps,
        compared=comparison.compared,
        differences=comparison.differences,
        unstable=tuple(comparison.unstable),
        eager_peak_bytes=peaks[0],
        measured_peak_bytes=peaks[1],
        dropped_peak_bytes=peaks[2],
        time_ratio=_time_ratio(eager, rewritten, timed_pairs) if timed_pairs else None,
        timed_pairs=timed_pairs,
        device_type=first.measured.device.type,
        notes=first.mapping.problem.notes,
        errors=comparison.deviations,
        predicted_error=_predicted_error(first),
        audit=audit,
        noise=noise,
    )


def _compare_steps(runners: Sequence[_Runner], steps: int, limit: float | None, noise: float) -> Comparison:
    """Compare the results of each step; with a limit, all copies begin each step from the same parameters."""
    comparison = Comparison(limit, noise)
    eager, repeated, rewritten = runners
    for step in range(steps):
        nudged = None
        if limit is not None and not noise:  # with noise no gradient is judged alone
            repeated.copy_state_from(eager)
            nudged = repeated.nudged_gradients(step)
        if limit is not None:
            repeated.copy_state_from(eager)
            rewritten.copy_state_from(eager)
        comparison.add(step, *(runner.step(step) for runner in runners), nudged=nudged)
    return comparison


def _measure_noise(noise: GradientNoise | None, runners: Sequence[_Runner]) -> MeasuredNoise | None:
    """Measure the noise of codes over several draws at the first parameters."""
    if noise is None:
        return None
    for seed in range(_DRAWS):
        noise.add(*(runner.gradients(seed) for runner in (runners[0], runners[2])))
    return noise.summarize()


def _predicted_error(planned: PlannedStep) -> float:
    """Return the predicted relative error that a plan's approximate codes cause in all gradients together."""
    sensitivity, energy = planned.measured.sensitivity, planned.noise_energy
    return (energy / sensitivity.squared_gradient) ** 0.5 if sensitivity is not None and energy else 0.0


def _dtypes_made(planned: PlannedStep) -> set[torch.dtype]:
    """Return the floating-point dtypes that a step computes in, those of autocast included."""
    values = (node.meta["val"] for node in planned.measured.captured.graph.graph.nodes if "val" in node.meta)
    tensors = (value for value in values if isinstance(value, torch.Tensor))
    return {tensor.dtype.to_real() for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()}


@contextmanager
def _generators_restored(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


class _Runner:
    """One copy of the module with its optimizer."""

    def __init__(
        self,
        model: Any,
        args: tuple,
        kwargs: dict[str, Any],
        options: Mapping[str, Any],
        make_optimizer: Any,
        constants: Mapping[Source, torch.Tensor],
    ) -> None:
        self.model = model
        self.constants = constants
        self.args, self.kwargs = args, kwargs
        self.differentiable, self.returned = options.get("differentiable"), options.get("outputs")
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(trained) if trained else None
        self.device = device_of(model, args, kwargs)

    def step(self, seed: int) -> dict[str, torch.Tensor | None]:
        """Take one optimizer step and return all results to compare, by name."""
        outputs, names = self._forward_and_backward(seed)
        results: dict[str, torch.Tensor | None] = {
            f"output {name}": output.detach().clone()
            for name, output in zip(names, outputs, strict=True)
            if self.returned is None or is_named(name, self.returned)
        }
        results |= {what: None if grad is None else grad.clone() for what, grad in self._grads().items()}
        if self.optimizer is not None:
            self.optimizer.step()
        results |= {f"{STEPPED}{name}": p.detach().clone() for name, p in self.model.named_parameters()}
        results |= {f"buffer {name}": b.clone() for name, b in self.model.named_buffers()}
        results[GENERATOR] = torch.get_rng_state()
        if self.device.type == "cuda":
            results["generator state on the device"] = torch.cuda.get_rng_state(self.device)
        return results

    def gradients(self, seed: int) -> dict[str, torch.Tensor | None]:
        """Return all gradients of one forward and backward, by name; none stays in `.grad`."""
        self._forward_and_backward(seed)
        gradients = self._grads()
        self.clear()
        return gradients

    def nudged_gradients(self, seed: int) -> dict[str, torch.Tensor | None]:
        """Return `gradients` after moving each parameter up or down by a rounding; the parameters stay moved."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in (p for p in self.model.parameters() if p.is_floating_point() or p.is_complex()):
                signs = torch.randint(2, parameter.shape, generator=generator).mul_(2).sub_(1)
                parameter.mul_(1 + torch.finfo(parameter.dtype).eps * signs.to(parameter))
        return self.gradients(seed)

    def _forward_and_backward(self, seed: int) -> tuple[list[torch.Tensor], Sequence[str]]:
        """Run forward and backward; return the outputs with their names."""
        torch.manual_seed(seed)
        # Under a context that spans steps, eager would continue with the casts of parameters from before they changed.
        torch.clear_autocast_cache()
        self.clear()
        outputs, structure = flatten(without_caches(self.model(*self.args, **self.kwargs)), "output")
        self._backward(outputs, structure.names)
        return outputs, structure.names

    def _grads(self) -> dict[str, torch.Tensor | None]:
        gradients = {f"{GRADIENT}{name}": parameter.grad for name, parameter in self.model.named_parameters()}
        return gradients | {f"{GRADIENT}input {index}": tensor.grad for index, tensor in enumerate(self._inputs())}

    def copy_state_from(self, other: _Runner) -> None:
        """Copy the values of another runner's parameters and buffers."""
        own_model, other_model = (runner.model for runner in (self, other))
        with torch.no_grad():
            for kind in ("named_parameters", "named_buffers"):
                values = dict(getattr(other_model, kind)())
                for name, tensor in getattr(own_model, kind)():
                    if not torch.equal(tensor, values[name]):
                        tensor.copy_(values[name])

    def run_once(self, *, hold: bool) -> None:
        """Run forward and backward.

        hold: whether to keep the outputs of forward until backward has ended.
        """
        outputs, structure = flatten(without_caches(self.model(*self.args, **self.kwargs)), "output")
        if not hold:
            chosen = self._chosen(outputs, structure.names)
            outputs = [outputs[i] if i in chosen else None for i in range(len(outputs))]  # pyright: ignore
        self._backward(outputs, structure.names)

    def clear(self) -> None:
        """Release all gradients."""
        for tensor in (*self.model.parameters(), *self._inputs()):
            tensor.grad = None

    def situation(self) -> Situation:
        """Return the situation in which a step begins."""
        present = {**tensors_of(self.model, self.args, self.kwargs), **self.constants}
        return situation_with(present, rounding_bytes(self.device, None))

    def resident_bytes(self, outputs: Outputs) -> int:
        """Return the bytes present when a step begins, including all that the previous step has left in the module."""
        situation, granularity = self.situation(), rounding_bytes(self.device, None)
        left, _ = flatten(outputs.left_before(dict(self.model.named_modules())), "left")
        own = list(situation.tensors.values())
        left_bytes = storages_bytes([*own, *left], granularity) - storages_bytes(own, granularity)
        return situation.resident_bytes + left_bytes

    def _inputs(self) -> list[torch.Tensor]:
        tensors, _ = flatten((self.args, self.kwargs), "argument")
        return [t for t in tensors if t.requires_grad and t.is_leaf]

    def _chosen(self, outputs: Sequence[torch.Tensor | None], names: Sequence[str]) -> list[int]:
        """Return the outputs that backward starts from: the loss among those returned, or all that carry a gradient."""
        places = {id(output): i for i, output in reversed(list(enumerate(outputs)))}
        able = [i for i in sorted(places.values()) if (output := outputs[i]) is not None and output.requires_grad]
        if self.returned is not None:
            able = [i for i in able if is_named(names[i], self.returned)]
        if self.differentiable is not None:
            return [i for i in able if is_named(names[i], self.differentiable)]
        return [i for i in able if names[i] == "loss"] or able

    def _backward(self, outputs: Sequence[torch.Tensor | None], names: Sequence[str]) -> None:
        chosen = [outputs[i] for i in self._chosen(outputs, names)]
        # As torch recommends, and as steps are planned: autocast is for forward.
        with torch.autocast(self.device.type, enabled=False):
            torch.autograd.backward(chosen, [torch.ones_like(output) for output in chosen])  # pyright: ignore


def _peaks(eager: _Runner, rewritten: _Runner, outputs: Outputs) -> tuple[int, int, int]:
    """Return the measured peaks of eager, of the rewritten module, and of the latter with outputs dropped before
    backward.

    Tensors that the previous step has left in the module are present at the start and are freed during the step.
    """
    peaks = []
    for runner, hold in ((eager, True), (rewritten, True), (rewritten, False)):
        runner.clear()
        resident_bytes = runner.resident_bytes(outputs)
        above = measure_peak(lambda runner=runner, hold=hold: runner.run_once(hold=hold), runner.device)
        peaks.append(resident_bytes + above)
        runner.clear()
    return peaks[0], peaks[1], peaks[2]


def _time_ratio(eager: _Runner, rewritten: _Runner, pairs: int) -> float:
    """Return the median over pairs, run in turn, of the rewritten step's time divided by eager's."""
    ratios = []
    for _ in range(pairs):
        seconds = []
        for runner in (eager, rewritten):
            runner.clear()
            if runner.device.type == "cuda":
                torch.cuda.synchronize(runner.device)
            started = time.perf_counter()
            runner.run_once(hold=True)
            if runner.device.type == "cuda":
                torch.cuda.synchronize(runner.device)
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)
