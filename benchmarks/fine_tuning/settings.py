"""The ways of keeping values in fewer bytes that fine-tuning compares: each kind of code by itself, on all it fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lowtide.solvers.problem.problem import Problem

from benchmarks.approximate.force_encoded import Wanted, named

DERIVATIVES, ROWS, PRODUCTS, ALL = "derivatives", "rows", "products", "all values"
TOLD = {
    DERIVATIVES: "activations' derivatives, few bits",
    ROWS: "linear layers' inputs, some rows",
    PRODUCTS: "inputs of products, few bits",
    ALL: "all values, few bits",
}


@dataclass(frozen=True)
class Setting:
    """A code on every value that has it. family: one of `TOLD`, or "" for exact gradients; amount: bits, or a share."""

    name: str
    family: str
    amount: str
    kinds: tuple[Wanted, ...]


def of_linear_inputs(suffix: str) -> Wanted:
    """Picks the encoding whose name ends so, of values that in backward only matrix products read.

    A product is linear in what it reads, so that rows sampled without bias give a gradient without bias. Attention is
    not linear in its queries, keys and values.
    """
    pick = named(suffix)

    def wanted(problem: Problem, value: int) -> int | None:
        readers = [problem.ops[reader].name for reader in problem.readers[value] if reader >= problem.forward_length]
        return pick(problem, value) if all(name.startswith("mm") for name in readers) else None

    return wanted


def _several(family: str, unit: str, amounts: tuple[str, ...], kind: Callable[[str], Wanted]) -> tuple[Setting, ...]:
    return tuple(Setting(f"{family}, {amount} {unit}", family, amount, (kind(amount),)) for amount in amounts)


EXACT = Setting("exact", "", "", ())
SETTINGS = (
    EXACT,
    *_several(DERIVATIVES, "bits", ("1", "2", "3", "4"), lambda bits: named(f"{bits}-bit gelu'")),
    *_several(
        ROWS, "kept", ("0.5", "0.2", "0.1"), lambda share: of_linear_inputs(f"{share} of rows, without_replacement")
    ),
    *_several(PRODUCTS, "bits", ("8", "4", "2"), lambda bits: named(f"{bits}-bit groups", only_products=True)),
    *(
        # what attention exponentiates has 6 bits at least
        Setting(f"{ALL}, {bits} bits", ALL, bits, (named(f"{bits}-bit groups"), named("6-bit groups")))
        for bits in ("8", "4", "2")
    ),
)
