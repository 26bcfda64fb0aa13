"""Codecs for a linear layer's input: their size, time and the error of the weight's gradient.

    python -m benchmarks.approximate.codecs [--rows 2048] [--features 768] [--rounds 9]

X are normal numbers, a few features a hundred times as large with --outliers. Y, the gradient, is normal and partly X
itself. The error is |Xᵀ Y - its estimate|² / |Xᵀ Y|² (Frobenius), predicted by the formula and measured over the
rounds. Times are medians of processor time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from lowtide.kernels.quantize.groups import decode_groups, encode_groups
from lowtide.kernels.quantize.plain_groups import expected_squared_error
from lowtide.kernels.rows.sampling import SAMPLINGS, restore_rows, sample_rows, sampling_variance
from lowtide.kernels.rows.sketches import SKETCHES, sketch, sketch_variance, unsketch
from torch import Tensor


@dataclass(frozen=True)
class CodecCase:
    """A codec with its parameters.

    encode: takes a seed.
    decode: takes a code and the same seed.
    predicted: the error.
    """

    name: str
    encode: Callable[[int], Tensor]
    decode: Callable[[Tensor, int], Tensor]
    predicted: float


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("rows", 2048), ("features", 768), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--outliers", action="store_true", help="a hundredth of the features a hundred times as large")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(options.rows, options.features, generator=generator) for _ in range(2))
    y = 0.9 * y + 0.1 * x
    if options.outliers:
        x[:, ::100] *= 100
    print(f"{'':<32} {'of its bytes':>12} {'encode, ms':>11} {'decode, ms':>11} {'predicted':>10} {'measured':>10}")
    for codec in codec_cases(x, y):
        print_row(codec, x, y, options.rounds)
    print(
        f"{options.rows} × {options.features} in float32, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


def codec_cases(x: Tensor, y: Tensor) -> Iterator[CodecCase]:
    """Yield groups in 1 to 8 bits, and sketches and samples of as many bytes as 4 bits take."""
    size, stride, whole = list(x.shape), list(x.stride()), (x.T @ y).square().sum()
    weights = y.square().sum(1, keepdim=True)
    for bits in (8, 6, 5, 4, 3, 2, 1):
        for transformed in (False, True):
            error = (expected_squared_error(x, bits, 256, True, transformed, 0) * weights).sum() / whole
            yield CodecCase(
                f"groups, bits: {bits}{', Hadamard before' if transformed else ''}",
                lambda seed, b=bits, h=transformed: encode_groups(x, b, 256, True, h, seed),
                lambda code, seed, parameters=(bits, 256, True, transformed): decode_groups(
                    code, *parameters, seed, size, stride, x.dtype
                ),
                float(error),
            )
    kept = size[0] // 8
    for kind in SKETCHES:
        yield CodecCase(
            f"sketch, {kind}",
            lambda seed, kind=kind: sketch(x, kind, kept, seed),
            lambda code, seed, kind=kind: unsketch(code, kind, seed, size, stride, x.dtype),
            float(sketch_variance(kind, x, y, kept) / whole),
        )
    for method in SAMPLINGS:
        yield CodecCase(
            f"rows, {method}",
            lambda seed, method=method: sample_rows(x, method, kept, seed),
            lambda code, seed: restore_rows(code, kept, size, stride, x.dtype),
            float(sampling_variance(method, x, y, kept) / whole),
        )


def print_row(codec: CodecCase, x: Tensor, y: Tensor, rounds: int) -> None:
    """Run a codec once to warm up and then `rounds` times, each with another seed."""
    exact, encoding, decoding, errors, share = x.T @ y, [], [], [], 0.0
    for seed in range(rounds + 1):
        started = time.process_time()
        code = codec.encode(seed)
        encoded = time.process_time()
        decoded = codec.decode(code, seed)
        done = time.process_time()
        if seed:
            encoding.append(encoded - started)
            decoding.append(done - encoded)
            errors.append(float((decoded.T @ y - exact).square().sum() / exact.square().sum()))
        share = code.nbytes / x.nbytes
    times = 1e3 * statistics.median(encoding), 1e3 * statistics.median(decoding)
    print(
        f"{codec.name:<32} {share:>12.4f} {times[0]:>11.2f} {times[1]:>11.2f} {codec.predicted:>10.3g} "
        f"{statistics.mean(errors):>10.3g}",
        flush=True,
    )


if __name__ == "__main__":
    main()
