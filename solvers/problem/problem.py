"""What a solver sees of a training step: operations in trace order and the values they read and make."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from math import fsum
from typing import Any, Literal

_READ = ", read as it is"  # of a code from which backward computes


@dataclass(frozen=True, slots=True)
class EncodingOption:
    """A way to keep a value in fewer bytes: what its code takes, and what encoding and decoding take.

    `encode_working_bytes` and `decode_working_bytes` are the most that is allocated at any moment meanwhile, what is
    made (the code, the value) included. `fidelity` says what decoding gives back: the same bits ("bitwise"), a value
    that differs by rounding, or an approximate one, which only backward may read. `error` is what it adds to the
    variance of the gradient, as a share of the variance that the gradient has anyway (`Problem.error_budget`). An exact
    one `stands_in` if decoding gives back something else, of which backward, and it alone, makes the same bits.

    `decoded_bytes` is None if decoding gives back the value, in its own size. Else it makes nothing: the one operation
    of backward that reads the value computes from the code itself, which stays until then, with so many bytes more.
    """

    name: str
    size_bytes: int
    encode_seconds: float
    decode_seconds: float
    encode_working_bytes: int
    decode_working_bytes: int
    fidelity: Literal["bitwise", "rounding", "approximate"] = "bitwise"
    error: float = 0.0
    stands_in: bool = False
    decoded_bytes: int | None = None

    @property
    def for_backward_alone(self) -> bool:
        """Whether forward, run again, may not read what decoding gives back."""
        return self.stands_in or self.fidelity == "approximate" or self.is_read_itself

    @property
    def is_read_itself(self) -> bool:
        """Whether backward computes from the code itself, so that decoding makes nothing."""
        return self.decoded_bytes is not None

    @property
    def seconds(self) -> float:
        """Of encoding once and decoding once."""
        return self.encode_seconds + self.decode_seconds


@dataclass(frozen=True, slots=True)
class Value:
    """Bytes that one operation creates (a storage; its views cost nothing and are not values).

    `held` values are never freed once made: what the step returns to its caller, gradients that become
    `.grad`, tangents that the caller of backward holds. `resident` values are there before the step
    (parameters, buffers, inputs); their bytes are part of `Problem.resident_bytes`, they cannot be freed.
    `encodings` are the ways to keep it in fewer bytes, if it has any: while it is alive it may be encoded any number
    of times, and a code makes it alive again.
    """

    name: str
    size_bytes: int
    held: bool = False
    resident: bool = False
    encodings: tuple[EncodingOption, ...] = ()

    def decoded_bytes(self, number: int) -> int:
        """What the value takes once it is decoded by one of its encodings, besides the code."""
        told = self.encodings[number].decoded_bytes
        return self.size_bytes if told is None else told

    @property
    def stated_encodings(self) -> tuple[tuple[str, int, str], ...]:
        """What of the encodings a schedule depends on: all but what they cost."""
        return tuple((f"{e.name}{_READ * e.is_read_itself}", e.size_bytes, e.fidelity) for e in self.encodings)

    @property
    def least_read_bytes(self) -> int:
        """The fewest bytes in which backward can read it: as it is, or a code with what computing from it takes."""
        read_themselves = [one.size_bytes + (one.decoded_bytes or 0) for one in self.encodings if one.is_read_itself]
        return min([self.size_bytes, *read_themselves])


@dataclass(frozen=True, slots=True)
class Op:
    """One kernel of the step.

    `working_bytes` is the most the kernel has allocated at any moment while it runs, what it makes included
    (so at least the sum of the sizes of `makes`). `repeatable` operations may run any number of times;
    the others run exactly once, in trace order among themselves. A `random` operation draws from the
    generator: its first runs keep trace order, and a second run needs the generator state recorded before
    the first one. `kind` is equal for operations that are equal up to renaming. `intensive` marks matrix
    products, convolutions and fused attention, which selective checkpointing keeps. `block` is the index of
    the block in whose forward or backward segment the operation first runs. `view_bytes`, if not None, says that what
    the operation makes is a view of what it reads, which stays alive as long, and takes so many bytes besides.
    `reuses`, if not None, is a value that it reads and of which it makes a changed copy of the same size: where that
    value dies with the run, it is changed in place, and what is made takes its bytes.
    """

    name: str
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    seconds: float
    working_bytes: int
    block: int
    repeatable: bool = True
    random: bool = False
    intensive: bool = False
    kind: str = ""
    module: str = ""
    view_bytes: int | None = None
    reuses: int | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """What a step that plans are compared with takes, with everything kept."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Problem:
    """A training step as a scheduling problem.

    ops: in trace order; `ops[:forward_length]` is the forward. Blocks of forward operations never decrease,
        blocks of backward operations never increase.
    block_classes: for each block the number of its class; blocks of one class have the same operations in
        the same order (equal `kind`s), in forward and backward.
    resident_bytes: all that is there before the step and stays: parameters, buffers, inputs, existing
    `.grad`.
    state_bytes: what a recorded generator state takes (5,056 on CPU).
    floor_bytes: a peak outside the schedule that no schedule lowers (the optimizer's own `step`); 0 if none.
    error_budget: what the approximate encodings of a schedule may add up to (`Encoding.error`).
    reference: the step that plans are compared with, where that is another one than this with everything kept: one that
        makes the same gradients with less.
    """

    ops: tuple[Op, ...]
    values: tuple[Value, ...]
    forward_length: int
    block_classes: tuple[int, ...]
    resident_bytes: int = 0
    state_bytes: int = 0
    floor_bytes: int = 0
    error_budget: float = 0.0
    name: str = "step"
    costs: str = "measured"
    notes: tuple[str, ...] = field(default=())
    reference: Reference | None = None

    def __hash__(self) -> int:
        # Hashed once: what is computed from a problem is cached by problem, and problems have thousands of
        # parts.
        return hash((self.fingerprint, self.costs, self.seconds))

    def error_of(self, encoded: Iterable[tuple[int, int]]) -> float:
        """What encodings, each given as value and number, add up to of `error_budget`."""
        return fsum(self.values[value].encodings[number].error for value, number in encoded)

    @cached_property
    def maker(self) -> tuple[int, ...]:
        """For each value the operation that makes it, -1 for resident ones."""
        maker = [-1] * len(self.values)
        for index, op in enumerate(self.ops):
            for value in op.makes:
                maker[value] = index
        return tuple(maker)

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For each value the operations that read it, in trace order."""
        readers: list[list[int]] = [[] for _ in self.values]
        for index, op in enumerate(self.ops):
            for value in dict.fromkeys(op.reads):
                readers[value].append(index)
        return tuple(tuple(r) for r in readers)

    @cached_property
    def segment_operations(self) -> tuple[tuple[int, ...], ...]:
        """Operations of each segment in trace order: forward of blocks 0..n-1, then backward of blocks
        n-1..0."""
        blocks = len(self.block_classes)
        segments: list[list[int]] = [[] for _ in range(2 * blocks)]
        for index, op in enumerate(self.ops):
            segments[op.block if index < self.forward_length else 2 * blocks - 1 - op.block].append(index)
        return tuple(tuple(operations) for operations in segments)

    @cached_property
    def seconds(self) -> float:
        """The time of the step with every operation run once."""
        return fsum(op.seconds for op in self.ops)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the problem up to what its operations cost: a schedule is valid for one fingerprint."""
        # what is there by default is told as it was before there was anything else, so that older plans stay valid
        told = [
            (op.reads, op.makes, op.block, op.repeatable, op.random, op.kind)
            + ((op.reuses,) if op.reuses is not None else ())
            for op in self.ops
        ]
        values = [
            (value.size_bytes, value.held, value.resident) + ((value.stated_encodings,) if value.encodings else ())
            for value in self.values
        ]
        return sha256(repr((told, values, self.forward_length, self.block_classes)).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The problem as JSON, for files and for solving elsewhere."""
        told = asdict(self)
        for op in told["ops"]:
            _leave_out(op, "view_bytes", None)
            _leave_out(op, "reuses", None)
        for value in told["values"]:
            _leave_out(value, "encodings", ())
            for encoding in value.get("encodings", ()):
                _leave_out(encoding, "decoded_bytes", None)
        _leave_out(told, "reference", None)
        return json.dumps(told)


def _leave_out(told: dict[str, Any], name: str, usual: object) -> None:
    """Takes out what says nothing, so that files are as they were before it could be said."""
    if told[name] == usual:
        del told[name]
