"""Trains a module and its rewriting side by side and compares everything bit for bit."""

import copy
from collections.abc import Callable
from typing import Any

import lowtide
import torch
from lowtide.rewriter.capture.boundary.pytree import flatten
from torch import Tensor, nn

Step = Callable[[nn.Module], Any]


def plans(model: nn.Module, *args: Any, count: int = 6, **kwargs: Any) -> list[Any]:
    """Plans from the fastest to the one of the smallest peak, under a cost table that is the same each time."""
    return lowtide.sweep(model, args, kwargs, costs="flops", count=count)


def smallest_bytes(model: nn.Module, *args: Any, **kwargs: Any) -> int:
    """The smallest budget that can be met."""
    return plans(model, *args, count=2, **kwargs)[-1].peak_bytes


def rewritten(model: nn.Module, *args: Any, budget: int | str | None = None, **kwargs: Any) -> Any:
    """A copy of a module rewritten for a call on these arguments, by default for the smallest feasible budget.

    The copy has parameters of its own, so that the module and it can be trained apart.
    """
    wanted = smallest_bytes(model, *args, **kwargs) if budget is None else budget
    return lowtide.rewrite(copy.deepcopy(model), wanted, args, kwargs, costs="flops")


def backward_of(returned: Any) -> None:
    """Backward from the loss, or from the sum of all outputs that carry a gradient."""
    outputs, structure = flatten(returned, "output")
    if "loss" in structure.names:
        outputs = [outputs[structure.names.index("loss")]]
    able = [output for output in outputs if output.requires_grad]
    torch.autograd.backward(able, [torch.ones_like(output) for output in able])


def calling(*args: Any, **kwargs: Any) -> Step:
    """A step that calls the module on these arguments and runs backward; it returns the outputs."""

    def step(module: nn.Module) -> Any:
        returned = module(*args, **kwargs)
        backward_of(returned)
        return returned

    return step


def trained(module: nn.Module, step: Step, steps: int = 3) -> list[dict[str, Tensor | None]]:
    """What `steps` optimizer steps leave: outputs, gradients, parameters, buffers, the generator's state; by name."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9) if parameters else None
    seen = []
    for number in range(steps):
        torch.manual_seed(number)
        module.zero_grad()
        outputs, structure = flatten(step(module), "result")
        told: dict[str, Tensor | None] = {
            f"result {name}": output.detach().clone() for name, output in zip(structure.names, outputs, strict=True)
        }
        for name, parameter in module.named_parameters():
            told[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad.clone()
        if optimizer is not None:
            optimizer.step()
        told |= {f"parameter {name}": p.detach().clone() for name, p in module.named_parameters()}
        told |= {f"buffer {name}": b.clone() for name, b in module.named_buffers()}
        told["generator"] = torch.get_rng_state()
        seen.append(told)
    return seen


def differences(one: list[dict[str, Tensor | None]], other: list[dict[str, Tensor | None]]) -> list[str]:
    """What is not the same to the bit, in words; NaN is equal to NaN."""
    found = []
    for step, (mine, its) in enumerate(zip(one, other, strict=True)):
        assert mine.keys() == its.keys()
        for name, value in mine.items():
            if not _same(value, its[name]):
                found.append(f"step {step}: {name}")
    return found


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())


def assert_trains_alike(
    model: nn.Module, *args: Any, step: Step | None = None, budget: int | str | None = None, **kwargs: Any
) -> Any:
    """Trains copies of a module in eager and rewritten on the same call; returns the rewritten one."""
    small = rewritten(model, *args, budget=budget, **kwargs)
    step = step or calling(*args, **kwargs)
    assert differences(trained(copy.deepcopy(model), step), trained(small, step)) == []
    return small


def assert_exact_everywhere(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """At the smallest budget and with everything kept: bits equal, and the peak predicted to the byte."""
    ladder = plans(model, *args, count=2, **kwargs)
    report = None
    for budget in sorted({ladder[0].peak_bytes, ladder[-1].peak_bytes}):
        report = lowtide.verify(model, budget, args, kwargs, costs="flops")
        off = report.measured_peak_bytes - report.plan.peak_bytes
        assert report.differences == (), report.differences
        assert off == 0, f"measured {report.measured_peak_bytes}, {off} more than predicted"
        assert report.within_budget, f"{report.dropped_peak_bytes} with outputs dropped, over {budget}"
    return report
