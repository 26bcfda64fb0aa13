"""Holds the options of `rewrite`, `plan`, `sweep` and `profile`, which are checked when they are given."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from inspect import Parameter, signature
from math import inf
from typing import Any, TypedDict, TypeVar

from ...kernels.approximate_codecs import check_families
from ...passes.pipeline import FIDELITIES
from ...solvers.portfolio import SOLVER_NAMES
from ..errors import LowtideWarning
from ..measure.device_presets import DevicePreset, load_device

_COSTS = ("measured", "roofline", "flops")
_EXAMPLES = {"outputs": "loss", "differentiable": "loss", "codecs": "groups"}  # of the options that are lists of names
# Earlier names of solvers, which the next version refuses.
_RENAMED_SOLVERS = {"dp": "rotor", "hierarchical": "rockmate", "ilp": "checkmate"}
_Function = TypeVar("_Function", bound=Callable[..., Any])


class OptionArguments(TypedDict, total=False):
    """The options as keyword arguments, for type checkers; `Options` has the defaults, `rewrite` says what they do."""

    fidelity: str
    outputs: Iterable[str] | None
    differentiable: Iterable[str] | None
    costs: str
    solver: str
    device: str | None
    time_limit: float
    error_budget: float
    codecs: Iterable[str] | None


@dataclass(frozen=True)
class Options:
    """The options for capturing and planning; `lowtide.rewrite` explains each. Raises ValueError for a wrong value."""

    fidelity: str = "bitwise"
    outputs: tuple[str, ...] | None = None
    differentiable: tuple[str, ...] | None = None
    costs: str = "measured"
    solver: str = "auto"
    device: str | None = None
    time_limit: float = inf
    error_budget: float = 0.01
    codecs: tuple[str, ...] | None = None

    @staticmethod
    def of(function: str, arguments: Mapping[str, Any]) -> Options:
        """Return the options among a function's keyword arguments. Raises TypeError for any other name."""
        for name in arguments.keys() - _NAMES:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}; options: {', '.join(_NAMES)}")
        return Options(**{name: _as_tuple(value) if name in _EXAMPLES else value for name, value in arguments.items()})

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        self.preset()
        for name, example in _EXAMPLES.items():
            _check_names(name, getattr(self, name), example)
        if self.codecs is not None:
            check_families(self.codecs)
        for name in ("error_budget", "codecs") if self.fidelity != "approximate" else ():
            if getattr(self, name) != getattr(Options, name):
                raise ValueError(
                    f'{name}={getattr(self, name)!r} is for fidelity="approximate", and fidelity is {self.fidelity!r}: '
                    f'leave {name} out, or pass fidelity="approximate"'
                )

    def _check_choices(self) -> None:
        if self.fidelity not in FIDELITIES:
            raise ValueError(f"fidelity={self.fidelity!r} is unknown; choose among {', '.join(FIDELITIES)}")
        if self.costs not in _COSTS:
            raise ValueError(f"costs={self.costs!r} is unknown; choose among {', '.join(_COSTS)}")
        object.__setattr__(self, "solver", _solver_named(self.solver))

    def _check_numbers(self) -> None:
        if not self.time_limit > 0:
            raise ValueError(f"time_limit={self.time_limit!r} is not a time: pass seconds above 0")
        if isinstance(self.error_budget, bool) or not isinstance(self.error_budget, (int, float)):
            raise ValueError(
                f"error_budget={self.error_budget!r} is not a number: pass a share of a variance, like 0.01"
            )
        if not self.error_budget >= 0:
            raise ValueError(
                f"error_budget={self.error_budget!r} is not a share of a variance: pass 0 or more, 0.01 for a hundredth"
            )

    def preset(self) -> DevicePreset | None:
        """Return the preset of the device planned for, or None for the device at hand."""
        return load_device(self.device) if self.device else None

    def arguments(self) -> OptionArguments:
        """Return the options that differ from the defaults, as keyword arguments."""
        chosen = {name: getattr(self, name) for name in _NAMES}
        return {name: value for name, value in chosen.items() if value != getattr(Options, name)}  # pyright: ignore


_NAMES = tuple(field.name for field in fields(Options))


def shows_options(function: _Function) -> _Function:
    """Make `help` and `inspect.signature` list the options of a function that takes them as `**options`."""
    shown = signature(function)
    own = [parameter for parameter in shown.parameters.values() if parameter.kind is not Parameter.VAR_KEYWORD]
    options = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(Options)
    ]
    function.__signature__ = shown.replace(parameters=[*own, *options])  # pyright: ignore[reportFunctionMemberAccess]
    return function


def _as_tuple(names: Any) -> Any:
    # A single string would be taken for its letters; Options refuses it by name.
    return names if isinstance(names, str) or not isinstance(names, Iterable) else tuple(names)


def _check_names(option: str, names: Any, example: str) -> None:
    if names is None:
        return
    if isinstance(names, str):
        raise ValueError(f'{option}={names!r} is one string; pass a list: {option}=["{example}"]')
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{option}={names!r} is not a list of names: {option}=["{example}"]')


def _solver_named(name: str) -> str:
    """Return the name of a solver, given that or an earlier one, of which it warns.

    Raises ValueError if no solver has that name.
    """
    solver = _RENAMED_SOLVERS.get(str(name), name)
    if solver not in SOLVER_NAMES:
        raise ValueError(f"there is no solver {name!r}: choose among {', '.join(SOLVER_NAMES)}")
    if solver != name:
        note = f"the solver {name!r} is now called {solver!r}; the next version refuses the old name"
        warnings.warn(note, LowtideWarning, stacklevel=2)
    return solver
