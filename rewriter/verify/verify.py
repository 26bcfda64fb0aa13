"""Runs the original and the rewritten module side by side, and compares results and peaks."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from ..capture.boundary.outputs import Outputs, is_named
from ..capture.boundary.pytree import flatten
from ..capture.call.caches import without_caches
from ..capture.torch_internals import checkpoints_passed
from ..measure.measure_peak import measure_peak
from ..plan.situation import Situation, device_of, rounding_bytes, situation_of, storages_bytes
from ..plan.step import Options, PlannedStep
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
    """Trains copies of a module for a few steps, in eager and rewritten, and compares what each step gives.

    steps: optimizer steps (AdamW unless `make_optimizer` makes another from parameters); timed_pairs: how many steps of
    each are timed in turn; options: those of `rewrite`, `time_limit` among them. What differs between two runs of eager
    is listed apart: no rewriting can be equal to it. The module itself is not changed, nor is the random state.
    Where the module has checkpoints of its own (`torch.utils.checkpoint`), which rewriting makes plain calls, results
    are compared with eager in which they are plain calls too; eager's peak is measured with them.

    With fidelity="bitwise" the outputs asked for, gradients, parameters, buffers and the generator's state are compared
    after each step, bit for bit. With a looser one each step begins from eager's parameters and buffers, as training
    magnifies what is rounded (AdamW divides a gradient by its own size): outputs, gradients and buffers are held to
    limits of their relative errors, which follow the dtype (`relative_errors.limit_of`), the generator bit for bit. A
    single gradient may be off by a few times what a rounding of the parameters moves it in eager: that of a bias before
    BatchNorm is nothing but what was rounded.
    With "approximate" all gradients together are held to what the codes of the plan are predicted to add to them; five
    more draws at the first parameters hold each parameter's gradient to what it is predicted to get, and their mean to
    the exact gradient (`gradient_noise`). At most `audited` of the values that are kept approximately are given back as
    decoded, each alone (`audit`).

    Raises what `rewrite` raises; ValueError for a dtype whose rounding has not been measured.
    """
    args, kwargs = tuple(args or ()), dict(kwargs or {})
    make_optimizer = make_optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=_LEARNING_RATE))
    with _generators_restored(device_of(model, args, kwargs)):
        small = rewrite(copy.deepcopy(model).train(), budget, args, kwargs, **options)
        first = small.lowtide.planned
        constants = first.costs.captured.constants
        modules = (copy.deepcopy(model).train(), copy.deepcopy(model).train(), small)
        runners = [_Runner(module, args, kwargs, options, make_optimizer, constants) for module in modules]
        limit = None if first.costs.options.fidelity == "bitwise" else limit_of(_dtypes_made(first))
        audit = audit_of(first, runners[2].situation().tensors, audited)
        with checkpoints_passed() if first.costs.captured.checkpoints else nullcontext():
            noise = _noise_found(GradientNoise.of(first, limit), runners) if limit is not None else None
            comparison = _compared(runners, steps, limit, first.noise_energy**0.5)
        peaks = _peaks(runners[0], runners[2], small.lowtide.planned.costs.captured.outputs)
        ratio = _time_ratio(runners[0], runners[2], timed_pairs) if timed_pairs else None
    return Report(
        name=type(model).__name__,
        plan=first.plan,
        steps=steps,
        compared=comparison.compared,
        differences=comparison.differences,
        unstable=tuple(comparison.unstable),
        eager_peak_bytes=peaks[0],
        measured_peak_bytes=peaks[1],
        dropped_peak_bytes=peaks[2],
        time_ratio=ratio,
        timed_pairs=timed_pairs,
        device_type=first.costs.device.type,
        notes=first.posed.problem.notes,
        errors=comparison.errors,
        predicted_error=_predicted_error(first),
        audit=audit,
        noise=noise,
    )


def _compared(runners: Sequence[_Runner], steps: int, limit: float | None, noise: float) -> Comparison:
    """What each step gives, in turn; with a limit all begin from the same parameters."""
    comparison = Comparison(limit, noise)
    eager, again, rewritten = runners
    for step in range(steps):
        nudged = None
        if limit is not None and not noise:  # with noise no gradient is judged alone
            again.take_over(eager)
            nudged = again.nudged_gradients(step)
        if limit is not None:
            again.take_over(eager)
            rewritten.take_over(eager)
        comparison.add(step, *(runner.step(step) for runner in runners), nudged=nudged)
    return comparison


def _noise_found(noise: GradientNoise | None, runners: Sequence[_Runner]) -> MeasuredNoise | None:
    """What draws at the first parameters show of the noise of codes."""
    if noise is None:
        return None
    for seed in range(_DRAWS):
        noise.add(*(runner.gradients(seed) for runner in (runners[0], runners[2])))
    return noise.found()


def _predicted_error(planned: PlannedStep) -> float:
    """How far the approximate codes of a plan move all gradients together, as a share of those it was predicted on."""
    sensitivity, energy = planned.costs.sensitivity, planned.noise_energy
    return (energy / sensitivity.squared_gradient) ** 0.5 if sensitivity is not None and energy else 0.0


def _dtypes_made(planned: PlannedStep) -> set[torch.dtype]:
    """The floating-point dtypes that a step computes in, autocast's too."""
    values = (node.meta["val"] for node in planned.costs.captured.graph.graph.nodes if "val" in node.meta)
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
        constants: tuple[torch.Tensor, ...],
    ) -> None:
        self.model = model
        self.constants = constants
        self.args, self.kwargs = args, kwargs
        self.wanted, self.returned = options.get("differentiable"), options.get("outputs")
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(trained) if trained else None
        self.device = device_of(model, args, kwargs)

    def step(self, seed: int) -> dict[str, torch.Tensor | None]:
        """One optimizer step; everything there is to compare, by name."""
        outputs, names = self._forward_and_backward(seed)
        told: dict[str, torch.Tensor | None] = {
            f"output {name}": output.detach().clone()
            for name, output in zip(names, outputs, strict=True)
            if self.returned is None or is_named(name, self.returned)
        }
        told |= {what: None if grad is None else grad.clone() for what, grad in self._grads().items()}
        if self.optimizer is not None:
            self.optimizer.step()
        told |= {f"{STEPPED}{name}": p.detach().clone() for name, p in self.model.named_parameters()}
        told |= {f"buffer {name}": b.clone() for name, b in self.model.named_buffers()}
        told[GENERATOR] = torch.get_rng_state()
        if self.device.type == "cuda":
            told["generator state on the device"] = torch.cuda.get_rng_state(self.device)
        return told

    def gradients(self, seed: int) -> dict[str, torch.Tensor | None]:
        """All gradients of one forward and backward, by name; none is left behind."""
        self._forward_and_backward(seed)
        found = self._grads()
        self.clear()
        return found

    def nudged_gradients(self, seed: int) -> dict[str, torch.Tensor | None]:
        """`gradients` with each parameter moved up or down by a rounding of its own, which is left so."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in (one for one in self.model.parameters() if one.is_floating_point() or one.is_complex()):
                signs = torch.randint(2, parameter.shape, generator=generator).mul_(2).sub_(1)
                parameter.mul_(1 + torch.finfo(parameter.dtype).eps * signs.to(parameter))
        return self.gradients(seed)

    def _forward_and_backward(self, seed: int) -> tuple[list[torch.Tensor], Sequence[str]]:
        """The outputs, with their names."""
        torch.manual_seed(seed)
        # Under a context that spans steps, eager would go on with the casts of parameters from before they changed.
        torch.clear_autocast_cache()
        self.clear()
        outputs, structure = flatten(without_caches(self.model(*self.args, **self.kwargs)), "output")
        self._backward(outputs, structure.names)
        return outputs, structure.names

    def _grads(self) -> dict[str, torch.Tensor | None]:
        told = {f"{GRADIENT}{name}": parameter.grad for name, parameter in self.model.named_parameters()}
        return told | {f"{GRADIENT}input {index}": tensor.grad for index, tensor in enumerate(self._inputs())}

    def take_over(self, other: _Runner) -> None:
        """Takes the values of another copy's parameters and buffers."""
        own, its = (runner.model for runner in (self, other))
        with torch.no_grad():
            for kind in ("named_parameters", "named_buffers"):
                values = dict(getattr(its, kind)())
                for name, tensor in getattr(own, kind)():
                    if not torch.equal(tensor, values[name]):
                        tensor.copy_(values[name])

    def once(self, *, hold: bool) -> None:
        """Forward and backward; `hold` keeps what forward returned until backward has ended."""
        outputs, structure = flatten(without_caches(self.model(*self.args, **self.kwargs)), "output")
        if not hold:
            chosen = self._chosen(outputs, structure.names)
            outputs = [outputs[i] if i in chosen else None for i in range(len(outputs))]  # pyright: ignore
        self._backward(outputs, structure.names)

    def clear(self) -> None:
        """Lets go of all gradients."""
        for tensor in (*self.model.parameters(), *self._inputs()):
            tensor.grad = None

    def situation(self) -> Situation:
        """What is there when a step begins."""
        return situation_of(self.model, self.args, self.kwargs, Options(), self.device, self.constants)

    def resident_bytes(self, outputs: Outputs) -> int:
        """What is there when a step begins, with all that the step before has left in the module."""
        situation, granularity = self.situation(), rounding_bytes(self.device, None)
        left, _ = flatten(outputs.left_before(dict(self.model.named_modules())), "left")
        own = list(situation.tensors.values())
        left_bytes = storages_bytes([*own, *left], granularity) - storages_bytes(own, granularity)
        return situation.resident_bytes + left_bytes

    def _inputs(self) -> list[torch.Tensor]:
        tensors, _ = flatten((self.args, self.kwargs), "argument")
        return [t for t in tensors if t.requires_grad and t.is_leaf]

    def _chosen(self, outputs: Sequence[torch.Tensor | None], names: Sequence[str]) -> list[int]:
        """The outputs that backward starts from: of those returned the loss, or all that carry a gradient."""
        places = {id(output): i for i, output in reversed(list(enumerate(outputs)))}
        able = [i for i in sorted(places.values()) if (output := outputs[i]) is not None and output.requires_grad]
        if self.returned is not None:
            able = [i for i in able if is_named(names[i], self.returned)]
        if self.wanted is not None:
            return [i for i in able if is_named(names[i], self.wanted)]
        return [i for i in able if names[i] == "loss"] or able

    def _backward(self, outputs: Sequence[torch.Tensor | None], names: Sequence[str]) -> None:
        chosen = [outputs[i] for i in self._chosen(outputs, names)]
        # As torch recommends, and as steps are planned: autocast is for forward.
        with torch.autocast(self.device.type, enabled=False):
            torch.autograd.backward(chosen, [torch.ones_like(output) for output in chosen])  # pyright: ignore


def _peaks(eager: _Runner, rewritten: _Runner, outputs: Outputs) -> tuple[int, int, int]:
    """Measured peaks: of eager, of the rewritten module, and of the latter with outputs dropped before backward.

    What the step before has left in the module is there at the start, and is let go of meanwhile.
    """
    peaks = []
    for runner, hold in ((eager, True), (rewritten, True), (rewritten, False)):
        runner.clear()
        resident_bytes = runner.resident_bytes(outputs)
        above = measure_peak(lambda runner=runner, hold=hold: runner.once(hold=hold), runner.device)
        peaks.append(resident_bytes + above)
        runner.clear()
    return peaks[0], peaks[1], peaks[2]


def _time_ratio(eager: _Runner, rewritten: _Runner, pairs: int) -> float:
    """The median over pairs, run in turn, of the rewritten step's time divided by eager's."""
    ratios = []
    for _ in range(pairs):
        seconds = []
        for runner in (eager, rewritten):
            runner.clear()
            if runner.device.type == "cuda":
                torch.cuda.synchronize(runner.device)
            started = time.perf_counter()
            runner.once(hold=True)
            if runner.device.type == "cuda":
                torch.cuda.synchronize(runner.device)
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)
