"""Test operations that are not torch's own, since their behaviour may differ from their declaration.

It is known which of torch's own operations draw random numbers, and how their results are laid out. Users can register
others (`torch.library`), with a fake kernel that describes the real results. Each is run on generated operands before
a step is planned with it. A plan that assumes wrong results, or wrongly assumes equal results of a second run, would
be wrong.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from ....passes.calls import call_signature, operation_name
from ....passes.foreign_calls import is_foreign, present_autocast, runs_alone, with_autocast
from ...errors import CaptureError, LowtideWarning
from ...text.source_text import identifier
from ..operands.operands import OperandMaker, tensors_in
from ..torch_internals import tensors_with_data
from ..watch.kept_streams import random_streams_kept
from .functional_variants import call_changing


class ForeignCalls(TorchFunctionMode):
    """A mode that replaces operations which change their arguments by functional variants, and refuses returned views.

    It records in `operations` the autocast of each call, which is not visible below autograd.
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
        previous, self.operations.autocast = self.operations.autocast, present_autocast(args)
        try:
            if called._schema.is_mutable:
                return call_changing(called, args, kwargs, where)
            return func(*args, **kwargs)
        finally:
            self.operations.autocast = previous


def _overload(func: Any) -> Any:
    """Return the overload that a call by an operation's name means, if there is only one."""
    if not isinstance(func, torch._ops.OpOverloadPacket):
        return func
    names = torch._ops.OpOverloadPacket.overloads(func)
    return getattr(func, names[0]) if len(names) == 1 else func


def _check_schema(called: torch._ops.OpOverload, where: str) -> None:
    name = called._schema.name
    for argument in called._schema.arguments:
        if argument.alias_info is not None and argument.type.str() != "Tensor":  # pyright: ignore[reportAttributeAccessIssue]
            raise CaptureError(
                f"{name} changes its argument {argument.name}, which may be several tensors or none, {where}; let it "
                "change tensors that are passed one by one"
            )
    if any(returned.alias_info is not None for returned in called._schema.returns):
        raise CaptureError(
            f"{name} returns its argument or a view of it, {where}: lowtide follows only views by torch's own "
            "operations; let it return a copy, or nothing"
        )


def fake_kernel_failed(called: torch._ops.OpOverload, error: Exception, where: str) -> CaptureError:
    """Return the error to raise for an operation that fails on tensors without data."""
    schema = called._schema
    arguments = ", ".join(identifier(argument.name) for argument in schema.arguments)
    return CaptureError(
        f"what {schema.name} returns is not known without running it, {where} ({type(error).__name__}: "
        f"{str(error).splitlines()[0] if str(error) else ''}); give its result's shape, dtype and strides by a fake "
        f'kernel:\n@torch.library.register_fake("{schema.name}")\n'
        f"def _({arguments}): return torch.empty_like({arguments.partition(',')[0]})"
    )


@dataclass(frozen=True)
class _Behaviour:
    """The behaviour of an operation on generated operands.

    draws: whether it draws random numbers.
    repeats: whether a second run gives the same bits.
    results: its results, without data.
    """

    draws: bool
    repeats: bool
    results: Any


@dataclass
class ForeignOperations:
    """The observed behaviour of foreign operations; each distinct call is tried once.

    where: describes the module and line that are running.
    are_here: whether the operations can be run on this machine, rather than only planned for.
    autocast: the autocast of the running call.
    """

    where: Callable[[], str]
    are_here: bool = True
    autocast: tuple[str, torch.dtype] | None = None
    _known: dict[str, _Behaviour | None] = field(default_factory=dict)

    def seen(self, node: fx.Node, out: Any) -> Any:
        """Return the fake result of a call with the real kernel's layout; set `meta` for `is_random` and others.

        Raises CaptureError for an operation that changes its arguments, or whose results differ from its declaration.
        """
        node.meta.update(val=out, autocast=self.autocast)
        if not runs_alone(node.target):
            node.meta["repeats"] = False
            return out
        if not self.are_here:
            return out
        text = call_signature(node)
        if text not in self._known:
            self._known[text] = self._try_call(node)
        behaviour = self._known[text]
        node.meta["draws"] = behaviour is None or behaviour.draws
        node.meta["repeats"] = behaviour is not None and behaviour.repeats
        if behaviour is None or node.meta.get("shaped_by_data"):
            return out
        return self._match_layout(node, out, behaviour.results)

    def _try_call(self, node: fx.Node) -> _Behaviour | None:
        """Run a call twice on the same operands and random numbers; None if it cannot be run alone."""
        name = operation_name(node)
        fakes = list(tensors_in(node.meta["val"]))
        device = fakes[0].device if fakes else torch.device("cpu")
        with tensors_with_data(), torch.no_grad(), random_streams_kept(device) as streams:
            args, kwargs = OperandMaker(device).make(node)
            operands = [*tensors_in(args), *tensors_in(tuple(kwargs.values()))]
            before = [operand.clone() for operand in operands]
            try:
                first = with_autocast(node)(*args, **kwargs)
                draws = streams.moved()
                streams.restart()
                second = with_autocast(node)(*args, **kwargs)
            except Exception as error:  # its operands were generated, so it may raise anything
                warnings.warn(
                    f"{name} cannot be run alone ({type(error).__name__}: {error}), {self.where()}: it is planned for "
                    "by its fake kernel, and never recomputed",
                    LowtideWarning,
                    stacklevel=2,
                )
                return None
            if not all(map(_same_bits, operands, before)):
                raise CaptureError(
                    f"{name} changes its arguments although its schema does not say so, {self.where()}; name them in "
                    "mutates_args, or let it work on a copy"
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
                "schema does not say; let it return a copy"
            )

    def _match_layout(self, node: fx.Node, out: Any, results: Any) -> Any:
        """Return the fake results with the real strides and storages. Raises CaptureError for other shapes."""
        if isinstance(out, torch.Tensor) and isinstance(results, torch.Tensor):
            if (out.shape, out.dtype) != (results.shape, results.dtype):
                raise CaptureError(
                    f"{operation_name(node)} returns {_format_tensor(results)} where its fake kernel says "
                    f"{_format_tensor(out)}, {self.where()}; correct the fake kernel"
                )
            if out.layout != torch.strided or results.layout != torch.strided:
                return out
            return _laid_out_like(results, out.device)
        if isinstance(out, (list, tuple)) and isinstance(results, (list, tuple)):
            return type(out)(self._match_layout(node, fake, real) for fake, real in zip(out, results, strict=True))
        return out


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    if (left.shape, left.dtype, left.layout) != (right.shape, right.dtype, right.layout):
        return False
    if left.layout != torch.strided:
        return True
    return torch.equal(*(part.contiguous().reshape(-1).view(torch.uint8) for part in (left, right)))


def _without_data(results: Any) -> Any:
    """Return results on the meta device, in storages of the same sizes."""
    if isinstance(results, torch.Tensor):
        return _laid_out_like(results, torch.device("meta")) if results.layout == torch.strided else results
    return type(results)(map(_without_data, results)) if isinstance(results, (list, tuple)) else results


def _laid_out_like(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    length = tensor.untyped_storage().nbytes() // tensor.element_size()
    whole = torch.empty(length, dtype=tensor.dtype, device=device)
    return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _format_tensor(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
