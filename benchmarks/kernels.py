"""lowtide's kernels compared with torch's own for the same work, and the bytes that each keeps for backward.

    python -m benchmarks.kernels [--rounds 15] [--json FILE]

All run in one process, in turn. A round runs torch's kernel, then lowtide's, and gives one ratio. Medians and quartiles
are printed. Dropout, cross-entropy and GELU are forward and backward together. GELU keeps its derivative in 3 bits.
The first row is how a plan runs it: GELU's own forward, encoding, the gradient times the code's levels. The second row
is for a gradient that is laid out unlike the input: decoding to inputs, GELU's own backward. The last line is for one
thread that encodes to 4 bits in groups of 256, rounded at random, and decodes. It prints the bytes of float32 that go
in, divided by the processor seconds of both, in 10⁹.
All are float32 on the CPU; where there is a GPU, larger sizes run there too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lowtide.kernels.dropout_masks import draw_bits
from lowtide.kernels.few_bit.derivative_codecs import usual_codes
from lowtide.kernels.few_bit.few_bit import decode_levels, encode_by_borders, multiply_levels
from lowtide.kernels.few_bit.saved_derivatives import SavedDerivative
from lowtide.kernels.loss.linear_cross_entropy import HIDDEN, MEAN, WEIGHT, linear_cross_entropy
from lowtide.kernels.packing.bits import multiply_bits, pack_bits, pack_plainly
from lowtide.kernels.pooling.pooling import max_pool2d_backward_from_codes, max_pool2d_codes
from lowtide.kernels.quantize.groups import decode_groups, encode_groups
from torch import Tensor
from torch.nn import functional

_CPU, _GPU = torch.device("cpu"), torch.device("cuda")
_BITS = 3  # of GELU's derivative
Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """The same work by torch and by lowtide on a device, and the bytes that each keeps for backward."""

    device: torch.device
    name: str
    theirs: Work
    ours: Work
    their_bytes: int
    our_bytes: int


@dataclass(frozen=True)
class Row:
    """The median of lowtide's time divided by torch's in the same round, and its quartiles."""

    device: str
    name: str
    their_milliseconds: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    their_bytes: int
    our_bytes: int


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds in which both run once, in turn")
    parser.add_argument("--json", type=Path, help="where to write the table as JSON")
    options = parser.parse_args()
    print(f"{'':<55} {'torch, ms':>9} {'lowtide / torch':>22} {'torch keeps':>12} {'lowtide keeps':>14}")
    rows = []
    for case in cases():
        row = measured(case, options.rounds)
        rows.append(asdict(row))
        name, (low, high) = f"{row.device}: {row.name}", row.ratio_quartiles
        print(
            f"{name:<55} {row.their_milliseconds:>9.2f} {row.ratio:>8.3f} ({low:.3f}–{high:.3f}) "
            f"{row.their_bytes:>12,} {row.our_bytes:>14,}",
            flush=True,
        )
    print(
        f"medians (quartiles) over {options.rounds} rounds, in turn; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    speed = group_speed(1 << 22, 4, options.rounds)
    print(f"4-bit groups, encoded and decoded by one thread: {speed / 1e9:.2f} GB/s of float32")
    if options.json:
        report = {"rows": rows, "group_bytes_per_second": speed}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def cases() -> list[Case]:
    """Return the cases that are compared."""
    torch.manual_seed(0)
    compared = [
        _packing(_CPU, 1 << 22),
        _dropout(_CPU, 8, 6, 256, 256),
        _cross_entropy(_CPU, 2048, 384, 8000),
        _pooling(_CPU, 16, 32, 64),
        _gelu(_CPU, 1 << 22, decodes=False),
        _gelu(_CPU, 1 << 22, decodes=True),
    ]
    if torch.cuda.is_available():
        compared += [
            _packing(_GPU, 1 << 28),
            _dropout(_GPU, 64, 12, 1024, 64),
            _cross_entropy(_GPU, 8192, 768, 50257),
            _pooling(_GPU, 256, 64, 112),
            _gelu(_GPU, 1 << 26, decodes=False),
            _gelu(_GPU, 1 << 26, decodes=True),
        ]
    return compared


def measured(case: Case, rounds: int) -> Row:
    """Measure a case, after a round that warms up."""
    seconds: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        pair = _seconds(case.device, case.theirs), _seconds(case.device, case.ours)
        if number:
            seconds.append(pair)
    ratios = [ours / theirs for theirs, ours in seconds]
    low, high = statistics.quantiles(ratios, n=4)[::2]
    milliseconds = 1e3 * statistics.median(theirs for theirs, _ in seconds)
    figures = (milliseconds, statistics.median(ratios), (low, high), case.their_bytes, case.our_bytes)
    return Row(case.device.type, case.name, *figures)


def _seconds(device: torch.device, work: Work) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _packing(device: torch.device, count: int) -> Case:
    truths = torch.rand(count, device=device) < 0.5
    name = f"pack {count:,} truth values (shift and sum)"
    return Case(device, name, lambda: pack_plainly(truths), lambda: pack_bits(truths), count, -(-count // 8))


def _dropout(device: torch.device, *size: int) -> Case:
    x, gradient = torch.randn(size, device=device, requires_grad=True), torch.randn(size, device=device)
    scale = float(torch.ones(()).div_(0.9))

    def theirs() -> None:
        x.grad = None
        functional.dropout(x, 0.1).backward(gradient)

    def ours() -> tuple[Tensor, Tensor]:
        bits = draw_bits(list(size), 0.9, device)
        return multiply_bits(x.detach(), bits, scale), multiply_bits(gradient, bits, scale)

    def ours_from_their_mask() -> tuple[Tensor, Tensor]:
        y, mask = torch.native_dropout(x.detach(), 0.1, True)
        return y, multiply_bits(gradient, pack_bits(mask), scale)

    name, count, on_cpu = f"dropout of {x.numel():,} numbers", x.numel(), device.type == "cpu"
    kept = count * (4 if on_cpu else 1), -(-count // 8)
    return Case(device, name, theirs, ours if on_cpu else ours_from_their_mask, *kept)


def _cross_entropy(device: torch.device, rows: int, width: int, classes: int) -> Case:
    hidden = torch.randn(rows, width, device=device, requires_grad=True)
    weight = torch.randn(classes, width, device=device, requires_grad=True)
    target = torch.randint(classes, (rows,), device=device)

    def theirs() -> None:
        hidden.grad = weight.grad = None
        functional.cross_entropy(functional.linear(hidden, weight), target).backward()

    def ours() -> object:
        options = (None, MEAN, -100, 0.0, None, HIDDEN | WEIGHT)
        return linear_cross_entropy(hidden.detach(), weight.detach(), None, target, *options)

    name = f"linear + cross-entropy, {rows:,} × {width} → {classes:,}"
    return Case(device, name, theirs, ours, 4 * rows * classes, 4 * width * (rows + classes))


def _pooling(device: torch.device, batch: int, channels: int, side: int) -> Case:
    x = torch.randn(batch, channels, side, side, device=device, requires_grad=True)
    window = ([3, 3], [2, 2], [1, 1], [1, 1], False)
    gradient = torch.randn_like(functional.max_pool2d(x.detach(), 3, 2, 1))

    def theirs() -> None:
        x.grad = None
        functional.max_pool2d(x, 3, 2, 1).backward(gradient)

    def ours() -> Tensor:
        _, codes = max_pool2d_codes(x.detach(), *window)
        return max_pool2d_backward_from_codes(gradient, codes, list(x.shape), *window, False)

    name = f"max pooling 3 × 3 of {x.numel():,} numbers"
    return Case(device, name, theirs, ours, 4 * x.numel() + 8 * gradient.numel(), gradient.numel() // 2)


def _gelu(device: torch.device, count: int, decodes: bool) -> Case:
    """Build the case of GELU.

    decodes: whether backward takes GELU's derivative at decoded inputs instead of multiplying with levels.
    """
    x, gradient = torch.randn(count, device=device, requires_grad=True), torch.randn(count, device=device)
    backward = torch.ops.aten.gelu_backward.default
    encoding, decoding = usual_codes(SavedDerivative("gelu"), _BITS)
    inputs = torch.tensor(decoding["representatives"])
    levels = backward(torch.ones_like(inputs), inputs).tolist()

    def theirs() -> None:
        x.grad = None
        functional.gelu(x).backward(gradient)

    def ours() -> tuple[Tensor, Tensor]:
        y, code = functional.gelu(x.detach()), encode_by_borders(x.detach(), **encoding)
        if decodes:
            return y, backward(gradient, decode_levels(code, **decoding, size=[count], stride=[1], dtype=x.dtype))
        return y, multiply_levels(gradient, code, levels, _BITS)

    name = f"GELU of {count:,} numbers, {_BITS} bits" + (", decoded" if decodes else "")
    return Case(device, name, theirs, ours, 4 * count, -(-count * _BITS // 8))


def group_speed(count: int, bits: int, rounds: int) -> float:
    """Return the median of float32 bytes per second of processor time that a thread encodes in groups and decodes."""
    x, threads, seconds = torch.randn(count), torch.get_num_threads(), []
    torch.set_num_threads(1)
    for seed in range(rounds + 1):
        started = time.thread_time()
        code = encode_groups(x, bits, 256, True, False, seed)
        decode_groups(code, bits, 256, True, False, seed, [count], [1], x.dtype)
        seconds.append(time.thread_time() - started)
    torch.set_num_threads(threads)
    return x.nbytes / statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
