"""The codes that fine-tuning compares: each kind alone, on all values that it fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lowtide.solvers.problem.problem import Problem

from benchmarks.approximate.force_encoded import EncodingPicker, named

DERIVATIVES, ROWS, PRODUCTS, ALL = "derivatives", "rows", "products", "all values"
FAMILY_LABELS = {
    DERIVATIVES: "activations' derivatives, few bits",
    ROWS: "linear layers' inputs, some rows",
    PRODUCTS: "inputs of products, few bits",
    ALL: "all values, few bits",
}


@dataclass(frozen=True)
class Setting:
    """A code on every value that has it.

    family: one of `FAMILY_LABELS`, or "" for exact gradients.
    amount: bits, or a share.
    """

    name: str
    family: str
    amount: str
    kinds: tuple[EncodingPicker, ...]


def of_linear_inputs(suffix: str) -> EncodingPicker:
    """Pick the encoding whose name ends in `suffix`, for values that only matrix products read in backward.

    A product is linear in what it reads, so rows sampled without bias give a gradient without bias. Attention is not
    linear in its queries, keys and values.
    """
    pick = named(suffix)

    def pick_linear_input(problem: Problem, value: int) -> int | None:
        readers = [problem.ops[reader].name for reader in problem.readers[value] if reader >= problem.forward_length]
        return pick(problem, value) if all(name.startswith("mm") for name in readers) else None

    return pick_linear_input


def _settings_of(
    family: str, unit: str, amounts: tuple[str, ...], kind: Callable[[str], EncodingPicker]
) -> tuple[Setting, ...]:
    return tuple(Setting(f"{family}, {amount} {unit}", family, amount, (kind(amount),)) for amount in amounts)


EXACT = Setting("exact", "", "", ())
SETTINGS = (
    EXACT,
    *_settings_of(DERIVATIVES, "bits", ("1", "2", "3", "4"), lambda bits: named(f"{bits}-bit gelu'")),
    *_settings_of(
        ROWS, "kept", ("0.5", "0.2", "0.1"), lambda share: of_linear_inputs(f"{share} of rows, without_replacement")
    ),
    *_settings_of(PRODUCTS, "bits", ("8", "4", "2"), lambda bits: named(f"{bits}-bit groups", only_products=True)),
    *(
        # values that attention exponentiates have 6 bits at least
        Setting(f"{ALL}, {bits} bits", ALL, bits, (named(f"{bits}-bit groups"), named("6-bit groups")))
        for bits in ("8", "4", "2")
    ),
)
