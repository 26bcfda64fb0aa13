"""A training step as solvers see it: operations in trace order and the values they read and make."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from math import fsum
from typing import Literal

from .problem_text import problem_text

_READ = ", read as it is"  # marks a code from which backward computes; part of fingerprints


@dataclass(frozen=True, slots=True)
class EncodingOption:
    """A method to keep a value in fewer bytes.

    name: the name of the codec.
    size_bytes: the bytes of the code.
    encode_seconds: the time of encoding once.
    decode_seconds: the time of decoding once.
    encode_working_bytes: the most bytes allocated at any moment of encoding, the code included.
    decode_working_bytes: the most bytes allocated at any moment of decoding, the value included.
    fidelity: the result of decoding: the same bits ("bitwise"), a value that differs by rounding ("rounding"), or an
        approximate one ("approximate"), which only backward may read.
    error: the variance that it adds to the gradient, as a share of the gradient's own variance
        (`Problem.error_budget`).
    decodes_to_placeholder: whether decoding an exact code returns another value, from which backward alone makes the
        same bits.
    read_itself_bytes: None if decoding returns the value, in its own size. Otherwise decoding makes nothing: the one
        operation of backward that reads the value computes from the code, which stays alive until then, and takes this
        many more bytes.
    """

    name: str
    size_bytes: int
    encode_seconds: float
    decode_seconds: float
    encode_working_bytes: int
    decode_working_bytes: int
    fidelity: Literal["bitwise", "rounding", "approximate"] = "bitwise"
    error: float = 0.0
    decodes_to_placeholder: bool = False
    read_itself_bytes: int | None = None

    @property
    def for_backward_alone(self) -> bool:
        """True if recomputed forward may not read the decoded value."""
        return self.decodes_to_placeholder or self.fidelity == "approximate" or self.is_read_itself

    @property
    def is_read_itself(self) -> bool:
        """True if backward computes from the code itself, so that decoding makes nothing."""
        return self.read_itself_bytes is not None

    @property
    def seconds(self) -> float:
        """The time of encoding once and decoding once."""
        return self.encode_seconds + self.decode_seconds


@dataclass(frozen=True, slots=True)
class Value:
    """A storage that one operation creates; its views cost nothing and are not values.

    name: the name of the value.
    size_bytes: its bytes.
    held: whether it is never freed once made: values returned to the step's caller, gradients that become `.grad`,
        tangents that the caller of backward holds.
    resident: whether it exists before the step: parameters, buffers, inputs. Its bytes are part of
        `Problem.resident_bytes`, and it cannot be freed.
    encodings: the methods to keep it in fewer bytes. While alive it may be encoded any number of times, and decoding a
        code makes it alive again.
    """

    name: str
    size_bytes: int
    held: bool = False
    resident: bool = False
    encodings: tuple[EncodingOption, ...] = ()

    def decoded_bytes(self, number: int) -> int:
        """Return the bytes of the value once decoded by one of its encodings, in addition to the code."""
        read_itself_bytes = self.encodings[number].read_itself_bytes
        return self.size_bytes if read_itself_bytes is None else read_itself_bytes

    @property
    def stated_encodings(self) -> tuple[tuple[str, int, str], ...]:
        """The properties of the encodings on which a schedule depends: all except their costs."""
        return tuple((f"{e.name}{_READ * e.is_read_itself}", e.size_bytes, e.fidelity) for e in self.encodings)

    @property
    def least_read_bytes(self) -> int:
        """The fewest bytes in which backward can read it: its own, or those of a code and of computing from it."""
        read_themselves = [
            encoding.size_bytes + (encoding.read_itself_bytes or 0)
            for encoding in self.encodings
            if encoding.is_read_itself
        ]
        return min([self.size_bytes, *read_themselves])


@dataclass(frozen=True, slots=True)
class Op:
    """One kernel of the step.

    name: the name of the operation.
    reads: the values that it reads.
    makes: the values that it makes.
    seconds: its time.
    working_bytes: the most bytes allocated at any moment while it runs, its results included; so at least the sum of
        the sizes of `makes`.
    block: the block in whose forward or backward segment the operation first runs.
    repeatable: whether it may run any number of times; the others run exactly once, in trace order among themselves.
    random: whether it draws from the generator. First runs of random operations keep trace order, and a second run
        needs the generator state recorded before the first one.
    compute_intensive: whether it is a matrix product, convolution or fused attention, which selective checkpointing
        keeps.
    kind: equal for operations that are equal up to renaming.
    module: the module that it belongs to.
    view_bytes: if not None, the result is a view of the values read, which stay alive as long, and takes this many
        bytes in addition.
    reuses: if not None, a value of which it makes a changed copy of the same size. If that value dies with the run, it
        is changed in place, and the result takes its bytes.
    """

    name: str
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    seconds: float
    working_bytes: int
    block: int
    repeatable: bool = True
    random: bool = False
    compute_intensive: bool = False
    kind: str = ""
    module: str = ""
    view_bytes: int | None = None
    reuses: int | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """Time and peak of the step that plans are compared with, with everything kept."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Problem:
    """A training step as a scheduling problem.

    ops: in trace order; `ops[:forward_length]` is the forward. Blocks of forward operations never decrease,
        blocks of backward operations never increase.
    block_classes: for each block the number of its class; blocks of one class have the same operations in
        the same order (equal `kind`s), in forward and backward.
    resident_bytes: bytes that exist before the step and stay: parameters, buffers, inputs, existing `.grad`.
    state_bytes: the bytes of a recorded generator state (5,056 on CPU).
    floor_bytes: a peak outside the schedule that no schedule lowers (the optimizer's own `step`); 0 if none.
    error_budget: the limit for the sum of the errors of a schedule's approximate encodings (`EncodingOption.error`).
    costs: the kind of cost table: "measured", "roofline" or "flops".
    reference: the step that plans are compared with, if it is not this one with everything kept: one that makes the
        same gradients in less time or fewer bytes.
    """

    ops: tuple[Op, ...] = field(repr=False)
    values: tuple[Value, ...] = field(repr=False)
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

    def __str__(self) -> str:
        return problem_text(self)

    def __hash__(self) -> int:
        # The fingerprint is computed once: results are cached by problem, and problems have thousands of parts.
        return hash((self.fingerprint, self.costs, self.seconds))

    def error_of(self, encoded: Iterable[tuple[int, int]]) -> float:
        """Return the sum of the errors of encodings, each given as value and number."""
        return fsum(self.values[value].encodings[number].error for value, number in encoded)

    @cached_property
    def maker(self) -> tuple[int, ...]:
        """The operation that makes each value, -1 for resident ones."""
        maker = [-1] * len(self.values)
        for index, op in enumerate(self.ops):
            for value in op.makes:
                maker[value] = index
        return tuple(maker)

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """The operations that read each value, in trace order."""
        readers: list[list[int]] = [[] for _ in self.values]
        for index, op in enumerate(self.ops):
            for value in dict.fromkeys(op.reads):
                readers[value].append(index)
        return tuple(tuple(r) for r in readers)

    @cached_property
    def segment_operations(self) -> tuple[tuple[int, ...], ...]:
        """The operations of each segment in trace order: forward of blocks 0..n-1, then backward of n-1..0."""
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
        """Identify the problem except for the costs of its operations: a schedule is valid for one fingerprint."""
        ops = [(op.reads, op.makes, op.block, op.repeatable, op.random, op.kind, op.reuses) for op in self.ops]
        values = [(value.size_bytes, value.held, value.resident, value.stated_encodings) for value in self.values]
        parts = ops, values, self.forward_length, self.block_classes
        return sha256(repr(parts).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the problem as JSON, for files and for solving elsewhere."""
        return json.dumps(asdict(self))
