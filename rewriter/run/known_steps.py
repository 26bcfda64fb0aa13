"""The captured steps that a rewritten module keeps, by kind of call, within a number of bytes of the host's memory."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..capture.call.key import CallKey
from .step_plans import StepPlans

_LEAST_BYTES = 2**30  # about a hundred kinds of calls of a small model, about ten of a deep one
_SHARE = 16  # the divisor of the host's memory


def most_bytes() -> int:
    """Return the bytes of the host's memory that captures and programs may take."""
    return max(_LEAST_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _SHARE)


@dataclass
class KnownSteps:
    """Captured steps by kind of call; those of one kind differ in settings and guards. The oldest are forgotten."""

    most_bytes: int = field(default_factory=most_bytes)
    _steps: OrderedDict[CallKey, list[StepPlans]] = field(default_factory=OrderedDict, repr=False)

    def __iter__(self) -> Iterator[StepPlans]:
        return (step for steps in self._steps.values() for step in steps)

    def __len__(self) -> int:
        return sum(map(len, self._steps.values()))

    @property
    def keys(self) -> Sequence[CallKey]:
        """The kinds of calls, those called longest ago first."""
        return tuple(self._steps)

    def of(self, key: CallKey) -> Sequence[StepPlans]:
        """Return the captured steps of a kind of call, and make it the latest."""
        steps = self._steps.get(key)
        if steps is None:
            return ()
        self._steps.move_to_end(key)
        return steps

    def add(self, key: CallKey, step: StepPlans) -> None:
        """Keep a captured step."""
        self._steps.setdefault(key, []).append(step)
        self._steps.move_to_end(key)

    def forget_oldest(self) -> int:
        """Forget the kinds of calls longest ago until the rest fits; return the number of forgotten kinds."""
        before = len(self._steps)
        while len(self._steps) > 1 and sum(step.host_bytes for step in self) > self.most_bytes:
            self._steps.popitem(last=False)
        return before - len(self._steps)
