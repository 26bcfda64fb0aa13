"""The record of one model of the sweep, as it is written to the JSON lines."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

EXACT = "exact"
REFUSED = "refused"
NOT_PLANNED = "not planned"
DIFFERENT = "different"
OVER_PREDICTION = "over prediction"
OVER_BUDGET = "over budget"
CRASHED = "crashed"
EAGER_VARIES = "eager varies"
NOT_BUILT = "not built"

VERDICTS = {
    EXACT: "bits equal in all steps, peak within prediction and budget",
    REFUSED: "an error of lowtide's own says what cannot be captured",
    NOT_PLANNED: "the original ran instead of a plan",
    DIFFERENT: "an output, gradient, buffer or the generator's state is not eager's",
    OVER_PREDICTION: "the measured peak is above the predicted one",
    OVER_BUDGET: "the measured peak is above the budget",
    CRASHED: "any other exception, a signal, or the limit of time or memory",
    EAGER_VARIES: "eager differs from itself, and lowtide from it in nothing else",
    NOT_BUILT: "the model does not build or train in eager here; not counted",
}
BREAKS_THE_PROMISE = (DIFFERENT, OVER_PREDICTION, OVER_BUDGET)
NOT_COUNTED = (NOT_BUILT, EAGER_VARIES)


@dataclass
class Record:
    """One model's verdict, with its measurements. `*_bytes` count everything, resident bytes too.

    stage: the last stage that began.
    text: the error's message, or what differs most.
    kind: the same without names and numbers, so that similar failures count together.
    budget: the requested share, or "smallest" where that was infeasible.
    eager_peak_bytes: measured.
    seconds: of the processor.
    """

    name: str
    task: str = ""
    verdict: str = NOT_BUILT
    stage: str = "building"
    kind: str = ""
    text: str = ""
    where: str = ""
    torch: str = ""
    package: str = ""
    class_name: str = ""
    parameters: int = 0
    tensors_with_gradient: int = 0
    tensors: int = 0
    budget: str = ""
    budget_bytes: int | None = None
    predicted_peak_bytes: int | None = None
    measured_peak_bytes: int | None = None
    eager_peak_bytes: int | None = None
    kept_peak_bytes: int | None = None
    extra_share: float | None = None
    operations: int | None = None
    differences: list[tuple[int, str, float]] = field(default_factory=list)
    different_count: int = 0
    varying: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The package that the model comes from."""
        return self.name.split("/")[0]

    @property
    def is_counted(self) -> bool:
        """Return whether it builds, trains in eager, and always gives the same results there."""
        return self.verdict not in NOT_COUNTED

    def plain(self) -> dict[str, Any]:
        """Convert to types that JSON knows."""
        return asdict(self)


def kind_of(text: str) -> str:
    """Return at most 100 letters of a message, without what depends on the model: quoted and dotted names, numbers."""
    text = text.split("\n")[0]
    text = re.sub(r"0x[0-9a-f]+", "…", text)
    text = re.sub(r"\[[^\]]*\]|\([^()]*\)", "(…)", text)
    text = re.sub(r"\((?:[^()]|\(…\))*\)", "(…)", text)
    text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "'…'", text)
    text = re.sub(r"\b(?!\w+Error\b)[A-Z]\w*[a-z]\w*[A-Z]\w*\b", "…", text)  # class names
    text = re.sub(r"\b\w+(?:\.\w+)+\b", "…", text)
    text = re.sub(r"\d[\d,._]*", "N", text)
    return text[:100]
