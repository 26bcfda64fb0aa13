"""Operations that are not torch's own: what they really do, which need not be what was declared of them.

Of torch's own operations it is known which draw random numbers and how their results are laid out. Anybody can register
others (`torch.library`), with a fake kernel that says what the real one returns. Each is run on made-up operands before
a step is planned with it: a plan for other results, or for a second run that gives the same, would be wrong.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from ....passes.calls import operation_name
from ....passes.foreign_calls import calling, is_foreign, present_autocast, runs_alone
from ...errors import CaptureError, LowtideWarning
from ...text.source_text import identifier
from ..operands.operands import OperandMaker, signature, tensors_in
from ..torch_internals import tensors_with_data
from ..watch.kept_streams import random_streams_kept
from .functional_twins import call_changing


class ForeignCalls(TorchFunctionMode):
    """Has operations that change their arguments return the new values instead, and refuses those that return views.

    Tells `operations` under which autocast a call runs: below autograd it can no longer be seen.
    """

    def __init__(self, operations: ForeignOperations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called, kwargs = _overload(func), kwargs or {}
        if not is_foreign(called):
            return func(*args, **kwargs)
        where = self.operations.where()
        _check_schema(called, where)
        outside, self.operations.autocast = self.operations.autocast, present_autocast(args)
        try:
            if called._schema.is_mutable:
                return call_changing(called, args, kwargs, where)
            return func(*args, **kwargs)
        finally:
            self.operations.autocast = outside


def _overload(func: Any) -> Any:
    """The overload that a call by an operation's name means, if it has only one."""
    if not isinstance(func, torch._ops.OpOverloadPacket):
        return func
    names = torch._ops.OpOverloadPacket.overloads(func)
    return getattr(func, names[0]) if len(names) == 1 else func


def _check_schema(called: torch._ops.OpOverload, where: str) -> None:
    name = called._schema.name
    for argument in called._schema.arguments:
        if argument.alias_info is not None and argument.type.str() != "Tensor":  # pyright: ignore[reportAttributeAccessIssue]
            raise CaptureError(
                f"{name} changes its argument {argument.name}, which may be several tensors or none, {where}; have it "
                "change tensors that are given one by one"
            )
    if any(returned.alias_info is not None for returned in called._schema.returns):
        raise CaptureError(
            f"{name} returns its argument or a view of it, {where}: lowtide follows views by torch's own operations "
            "only; have it return a copy, or nothing"
        )


def fake_kernel_failed(called: torch._ops.OpOverload, error: Exception, where: str) -> CaptureError:
    """What to raise where an operation gave nothing on tensors without data."""
    schema = called._schema
    arguments = ", ".join(identifier(argument.name) for argument in schema.arguments)
    return CaptureError(
        f"what {schema.name} returns is not known without running it, {where} ({type(error).__name__}: "
        f"{str(error).splitlines()[0] if str(error) else ''}); tell its result's shape, dtype and strides by a fake "
        f'kernel:\n@torch.library.register_fake("{schema.name}")\n'
        f"def _({arguments}): return torch.empty_like({arguments.partition(',')[0]})"
    )


@dataclass(frozen=True)
class _Behaviour:
    """What an operation did on made-up operands. results: what it returned, without data."""

    draws: bool
    repeats: bool
    results: Any


@dataclass
class ForeignOperations:
    """Knows foreign operations by what they do; each distinct call is tried once.

    where: says which module and line are running. are_here: whether they can be run, and are not only planned for.
    autocast: that of the call that is running.
    """

    where: Callable[[], str]
    are_here: bool = True
    autocast: tuple[str, torch.dtype] | None = None
    _known: dict[str, _Behaviour | None] = field(default_factory=dict)

    def seen(self, node: fx.Node, out: Any) -> Any:
        """The fake result of a call as the real kernel makes it; notes in `meta` what `is_random` and others look at.

        Raises CaptureError for an operation that changes its arguments, or returns what was not declared.
        """
        node.meta.update(val=out, autocast=self.autocast)
        if not runs_alone(node.target):
            node.meta["repeats"] = False
            return out
        if not self.are_here:
            return out
        text = signature(node)
        if text not in self._known:
            self._known[text] = self._tried(node)
        behaviour = self._known[text]
        node.meta["draws"] = behaviour is None or behaviour.draws
        node.meta["repeats"] = behaviour is not None and behaviour.repeats
        if behaviour is None or node.meta.get("shaped_by_data"):
            return out
        return self._as_made(node, out, behaviour.results)

    def _tried(self, node: fx.Node) -> _Behaviour | None:
        """What a call does, run twice on the same operands and random numbers; None where it cannot be run alone."""
        name = operation_name(node)
        fakes = list(tensors_in(node.meta["val"]))
        device = fakes[0].device if fakes else torch.device("cpu")
        with tensors_with_data(), torch.no_grad(), random_streams_kept(device) as streams:
            args, kwargs = OperandMaker(device).make(node)
            operands = [*tensors_in(args), *tensors_in(tuple(kwargs.values()))]
            before = [operand.clone() for operand in operands]
            try:
                first = calling(node)(*args, **kwargs)
                draws = streams.moved()
                streams.restart()
                second = calling(node)(*args, **kwargs)
            except Exception as error:  # whatever it raises: its operands were made up
                warnings.warn(
                    f"{name} cannot be run alone ({type(error).__name__}: {error}), {self.where()}: it is planned for "
                    "by what its fake kernel says, and never run a second time",
                    LowtideWarning,
                    stacklevel=2,
                )
                return None
            if not all(map(_same_bits, operands, before)):
                raise CaptureError(
                    f"{name} changes its arguments although its schema does not say so, {self.where()}; name them in "
                    "mutates_args, or have it work on a copy"
                )
            self._check_fresh(name, operands, first)
            repeats = all(map(_same_bits, tensors_in(first), tensors_in(second)))
            return _Behaviour(draws, repeats, _without_data(first))

    def _check_fresh(self, name: str, operands: list[torch.Tensor], results: Any) -> None:
        storages = {operand.untyped_storage()._cdata for operand in operands}
        made = [result.untyped_storage()._cdata for result in tensors_in(results)]
        if storages & set(made) or len(set(made)) < len(made):
            raise CaptureError(
                f"{name} returns its argument or a view of it, or the same memory twice, {self.where()}, which its "
                "schema does not say; have it return a copy"
            )

    def _as_made(self, node: fx.Node, out: Any, results: Any) -> Any:
        """The fake results with the strides and storages of the real ones. Raises CaptureError for other shapes."""
        if isinstance(out, torch.Tensor) and isinstance(results, torch.Tensor):
            if (out.shape, out.dtype) != (results.shape, results.dtype):
                raise CaptureError(
                    f"{operation_name(node)} returns {_told(results)} where its fake kernel says {_told(out)}, "
                    f"{self.where()}; correct the fake kernel"
                )
            if out.layout != torch.strided or results.layout != torch.strided:
                return out
            return _laid_out_like(results, out.device)
        if isinstance(out, (list, tuple)) and isinstance(results, (list, tuple)):
            return type(out)(self._as_made(node, one, other) for one, other in zip(out, results, strict=True))
        return out


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.shape, one.dtype, one.layout) != (other.shape, other.dtype, other.layout):
        return False
    if one.layout != torch.strided:
        return True
    return torch.equal(*(part.contiguous().reshape(-1).view(torch.uint8) for part in (one, other)))


def _without_data(results: Any) -> Any:
    """Results on the meta device, in storages of the same sizes."""
    if isinstance(results, torch.Tensor):
        return _laid_out_like(results, torch.device("meta")) if results.layout == torch.strided else results
    return type(results)(map(_without_data, results)) if isinstance(results, (list, tuple)) else results


def _laid_out_like(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    length = tensor.untyped_storage().nbytes() // tensor.element_size()
    whole = torch.empty(length, dtype=tensor.dtype, device=device)
    return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _told(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
