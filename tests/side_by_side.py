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
    """Return plans from the fastest to the one of the smallest peak, under the same cost table each time."""
    return lowtide.sweep(model, args, kwargs, costs="flops", count=count)


def smallest_bytes(model: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Return the smallest budget that can be met."""
    return plans(model, *args, count=2, **kwargs)[-1].peak_bytes


def rewritten(model: nn.Module, *args: Any, budget: int | str | None = None, **kwargs: Any) -> Any:
    """Rewrite a copy of a module for a call on these arguments, by default for the smallest feasible budget.

    The copy has its own parameters, so that it and the module can be trained separately.
    """
    chosen = smallest_bytes(model, *args, **kwargs) if budget is None else budget
    return lowtide.rewrite(copy.deepcopy(model), chosen, args, kwargs, costs="flops")


def backward_of(returned: Any) -> None:
    """Run backward from the loss, or from the sum of all outputs that require a gradient."""
    outputs, structure = flatten(returned, "output")
    if "loss" in structure.names:
        outputs = [outputs[structure.names.index("loss")]]
    differentiable = [output for output in outputs if output.requires_grad]
    torch.autograd.backward(differentiable, [torch.ones_like(output) for output in differentiable])


def calling(*args: Any, **kwargs: Any) -> Step:
    """Return a step that calls the module on these arguments, runs backward and returns the outputs."""

    def step(module: nn.Module) -> Any:
        returned = module(*args, **kwargs)
        backward_of(returned)
        return returned

    return step


def trained(module: nn.Module, step: Step, steps: int = 3) -> list[dict[str, Tensor | None]]:
    """Return for each optimizer step outputs, gradients, parameters, buffers and the generator's state, by name."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9) if parameters else None
    seen = []
    for number in range(steps):
        torch.manual_seed(number)
        module.zero_grad()
        outputs, structure = flatten(step(module), "result")
        record: dict[str, Tensor | None] = {
            f"result {name}": output.detach().clone() for name, output in zip(structure.names, outputs, strict=True)
        }
        for name, parameter in module.named_parameters():
            record[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad.clone()
        if optimizer is not None:
            optimizer.step()
        record |= {f"parameter {name}": p.detach().clone() for name, p in module.named_parameters()}
        record |= {f"buffer {name}": b.clone() for name, b in module.named_buffers()}
        record["generator"] = torch.get_rng_state()
        seen.append(record)
    return seen


def differences(left: list[dict[str, Tensor | None]], right: list[dict[str, Tensor | None]]) -> list[str]:
    """Describe what is not the same to the bit; NaN is equal to NaN."""
    lines = []
    for step, (left_record, right_record) in enumerate(zip(left, right, strict=True)):
        assert left_record.keys() == right_record.keys()
        for name, value in left_record.items():
            if not _same(value, right_record[name]):
                lines.append(f"step {step}: {name}")
    return lines


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(left, right) or bool(((left == right) | ((left != left) & (right != right))).all())


def assert_trains_alike(
    model: nn.Module, *args: Any, step: Step | None = None, budget: int | str | None = None, **kwargs: Any
) -> Any:
    """Train copies of a module in eager and rewritten on the same call; return the rewritten one."""
    small = rewritten(model, *args, budget=budget, **kwargs)
    step = step or calling(*args, **kwargs)
    assert differences(trained(copy.deepcopy(model), step), trained(small, step)) == []
    return small


def assert_exact_everywhere(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Check bits and the predicted peak, to the byte, at the smallest budget and with everything kept."""
    candidates = plans(model, *args, count=2, **kwargs)
    report = None
    for budget in sorted({candidates[0].peak_bytes, candidates[-1].peak_bytes}):
        report = lowtide.verify(model, budget, args, kwargs, costs="flops")
        excess = report.measured_peak_bytes - report.plan.peak_bytes
        assert report.differences == (), report.differences
        assert excess == 0, f"measured {report.measured_peak_bytes}, {excess} more than predicted"
        assert report.within_budget, f"{report.dropped_peak_bytes} with outputs dropped, over {budget}"
    return report
