"""Defines the kernels of a step, one class for each role: each runs as one operation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

from torch import fx

from .calls import call_signature

Phase = Literal["forward", "backward"]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One operation of a step.

    role: the word for its class in problems and saved plans.
    reads, makes: numbers of storages.
    writes: storages that it overwrites instead of making new ones.
    sequence: autograd's number.
    module: the module that forward was in.
    repeatable: whether it may be recomputed.
    block: the block whose forward or backward it belongs to.
    """

    role: ClassVar[str]
    name: str
    reads: tuple[int, ...] = ()
    makes: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    phase: Phase
    sequence: int
    module: str
    repeatable: bool = False
    block: int = 0

    @property
    def kind(self) -> str:
        """Return a text that is equal for kernels that are equal up to renaming."""
        return self.role


@dataclass(frozen=True)
class Change:
    """A write of the result of a kernel's calls into the operand that it is a changed copy of, or into a copy of that.

    of: that operand.
    place: views, each of the one before and the first one of the whole, of which the last is written to; none if it is
        the whole.
    by: the call whose in-place variant writes there, on its first operand; or, if `copies`, the node that is copied
        there.
    copies: whether `by` is copied.
    call: the writing call on placeholders, for its cost.
    calls: all calls that this replaces, in order.
    aliased: whether it also reads another part of the written storage, so that it needs a copy.
    """

    of: fx.Node
    place: tuple[fx.Node, ...]
    by: fx.Node
    copies: bool
    call: fx.Node
    calls: tuple[fx.Node, ...]
    aliased: bool


@dataclass(frozen=True, kw_only=True)
class ComputeKernel(Kernel):
    """One or more ATen calls that run as one operation.

    calls: the first makes the storages, each further one works in place on the storage of the one before it.
    random: whether it draws random numbers.
    updates: buffers, views of them, or values made in the step, which it changes in place on its first run;
        recomputation does not pass them.
    destination: the operand that lies in the storages that it writes.
    change: how the last call's result is written into the value that it is a changed copy of.
    reuses: the storage of that value, which the result takes if nothing reads it later; else it is copied first.
    """

    role: ClassVar[str] = "compute"
    calls: tuple[fx.Node, ...]
    random: bool = False
    updates: tuple[fx.Node, ...] = ()
    destination: fx.Node | None = None
    change: Change | None = None
    reuses: int | None = None

    @property
    def kind(self) -> str:
        """Return a text that is equal for kernels that are equal up to renaming."""
        return " > ".join(["change" if self.change is not None else self.role, *map(call_signature, self.calls)])

    @property
    def measured_calls(self) -> tuple[fx.Node, ...]:
        """Return the calls that determine its cost."""
        return self.calls if self.change is None else (self.change.call,)


@dataclass(frozen=True, kw_only=True)
class BufferUpdate(Kernel):
    """Writes the new value of a buffer or input into it.

    target: its placeholder.
    """

    role: ClassVar[str] = "update"
    target: fx.Node
    value: fx.Node


@dataclass(frozen=True, kw_only=True)
class TangentArrival(Kernel):
    """Stands for the arrival of the incoming gradients, which it makes."""

    role: ClassVar[str] = "tangent"


@dataclass(frozen=True, kw_only=True)
class GradAccumulate(Kernel):
    """Accumulates a finished gradient into `.grad`. Makes a storage where the gradient has to be cloned for that.

    target: the parameter or input, or the output that retains its gradient.
    """

    role: ClassVar[str] = "accumulate"
    target: fx.Node
    gradient: fx.Node


@dataclass(frozen=True, kw_only=True)
class Anchor(Kernel):
    """Does nothing: it runs once in forward, so that its operand is made there."""

    role: ClassVar[str] = "anchor"


@dataclass(frozen=True, kw_only=True)
class DecisionCheck(Kernel):
    """Verifies that decisions still are those of the capture (`kernels/checks.py`).

    calls: the checks that it makes at once, all with the same copies that undo the step.
    """

    role: ClassVar[str] = "check"
    calls: tuple[fx.Node, ...]

    @property
    def arguments(self) -> tuple[list[Any], list[Any], Any]:
        """Return the values that are checked, the expected ones, and the copies that undo the step."""
        values, expected, undo = zip(*(call.args for call in self.calls), strict=True)
        return list(chain.from_iterable(values)), list(chain.from_iterable(expected)), undo[0]
