"""Holds the options of `rewrite` for capturing and planning, which are checked when they are given."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from ...kernels.approximate_codecs import check_families
from ...passes.pipeline import FIDELITIES
from ...solvers.portfolio import SOLVER_NAMES
from ..measure.device_presets import DevicePreset, load_device


@dataclass(frozen=True)
class Options:
    """The options for capturing and planning; `lowtide.rewrite` explains each."""

    fidelity: str = "bitwise"
    outputs: tuple[str, ...] | None = None
    differentiable: tuple[str, ...] | None = None
    costs: str = "measured"
    solver: str = "auto"
    device: str | None = None
    time_limit_seconds: float = inf
    error_budget: float = 0.01
    codecs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.fidelity not in FIDELITIES:
            raise ValueError(f"fidelity={self.fidelity!r} is unknown; choose among {', '.join(FIDELITIES)}")
        if self.costs not in ("measured", "roofline", "flops"):
            raise ValueError(f"costs={self.costs!r} is unknown; choose among measured, roofline, flops")
        if self.solver not in SOLVER_NAMES:
            raise ValueError(f"there is no solver {self.solver!r}: choose among {', '.join(SOLVER_NAMES)}")
        if not self.time_limit_seconds > 0:
            raise ValueError(f"time_limit={self.time_limit_seconds!r} is not a time: pass seconds above 0")
        if isinstance(self.error_budget, bool) or not isinstance(self.error_budget, (int, float)):
            raise ValueError(
                f"error_budget={self.error_budget!r} is not a number: pass a share of a variance, like 0.01"
            )
        if not self.error_budget >= 0:
            raise ValueError(
                f"error_budget={self.error_budget!r} is not a share of a variance: pass 0 or more, 0.01 for a hundredth"
            )
        self.preset()
        for name, item in (("outputs", "loss"), ("differentiable", "loss"), ("codecs", "groups")):
            if not isinstance(getattr(self, name), (tuple, str, type(None))):
                raise ValueError(f'{name}={getattr(self, name)!r} is not a list of names: {name}=["{item}"]')
            if isinstance(getattr(self, name), str):
                raise ValueError(f'{name}={getattr(self, name)!r} is one string; pass a list: {name}=["{item}"]')
        if self.codecs is not None:
            check_families(self.codecs)
        for name in ("error_budget", "codecs") if self.fidelity != "approximate" else ():
            if getattr(self, name) != getattr(Options, name):
                raise ValueError(
                    f'{name}={getattr(self, name)!r} is for fidelity="approximate", and fidelity is {self.fidelity!r}: '
                    f'leave {name} out, or pass fidelity="approximate"'
                )

    def preset(self) -> DevicePreset | None:
        """Return the preset of the device planned for, or None for the device at hand."""
        return load_device(self.device) if self.device else None
