"""The rewritten module: the user's class with another forward, which plans at the first call of each kind."""

from __future__ import annotations

import copy
import inspect
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from ..solvers.plan import Plan
from ..solvers.portfolio import Portfolio
from .call import Call, describe, modules_key
from .captured import NothingToDifferentiate
from .emit import emit
from .errors import LowtideError, LowtideWarning
from .header import header_of
from .planning import Options, PlannedStep, PosedStep, StepCosts, calibrated, capture_step, pose_step, situation_of
from .program import Program
from .progress import shown_progress
from .runtime import run_forward
from .settings import Settings
from .solving import solve_step
from .sources import Owners, Source
from .torch_internals import left_alone_by_compile

# Plans kept at once. Each costs only host memory, but a training loop whose every batch is another shape would
# plan at every step, and should be told.
_MOST_PLANS = 16

_planning = threading.RLock()

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NOT_THE_ORIGINALS = ("lowtide", "_lowtide_forward", "_compiled_call_impl", *_HOOKS)


@dataclass
class _Ready:
    """A planned kind of call."""

    planned: PlannedStep
    program: Program
    constants: dict[Source, torch.Tensor]


@dataclass
class Rewriting:
    """What a rewritten module knows of its rewriting: the budget, the options, and a plan per kind of call.

    It is reached as `small.lowtide`. Copies and pickles carry the budget, the options and the plans' schedules;
    captures and code are made again.
    """

    budget: int | str
    options: Options
    optimizer: torch.optim.Optimizer | None = None
    given_plan: Plan | None = None
    kept_plan: Plan | None = None
    portfolio: Portfolio = field(default_factory=Portfolio, repr=False)
    _steps: dict[Hashable, list[StepCosts]] = field(default_factory=dict, repr=False)
    _ready: OrderedDict[Hashable, _Ready] = field(default_factory=OrderedDict, repr=False)
    _eager: dict[Hashable, list[Settings]] = field(default_factory=dict, repr=False)
    _owners: tuple[Hashable, Owners] | None = field(default=None, repr=False)
    _last: _Ready | None = field(default=None, repr=False)
    _hooked: set[str] = field(default_factory=set, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # An optimizer belongs to the parameters of one module: a copy has other ones.
        return {"budget": self.budget, "options": self.options, "kept_plan": self.plan}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rewriting:
        return Rewriting(**self.__getstate__())

    @property
    def plan(self) -> Plan | None:
        """The plan of the last kind of call, None before the first."""
        return self._last.planned.plan if self._last is not None else self.given_plan or self.kept_plan

    @property
    def code(self) -> str:
        """The generated Python of the last kind of call. Raises LowtideError before the first."""
        if self._last is None:
            raise LowtideError("there is no code before the first training-mode call, or rewrite(model, budget, args)")
        return self._last.program.code

    @property
    def planned(self) -> PlannedStep | None:
        """The plan of the last kind of call together with the captured step it is for."""
        return self._last.planned if self._last is not None else None

    def run(self, model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """One forward of the rewritten module."""
        preset = self.options.preset()
        if preset is not None and preset.kind != self._owners_of(original_view(model)).device_type:
            raise LowtideError(
                f"this module was rewritten for the preset {self.options.device!r}, which is for planning only; "
                "rewrite it without device= to run it here"
            )
        original = original_view(model)
        owners = self._owners_of(original)
        call = describe(original, args, kwargs, owners)
        ready = self._find(original, args, kwargs, call, owners)
        if ready is None:
            return original.forward(*args, **kwargs)
        tensors = owners.sources(call.inputs, call.structure)
        outputs = run_forward(ready.program, {**tensors, **ready.constants}, owners.device_type)
        return ready.planned.costs.captured.outputs.unflatten(list(outputs))

    def prepare(self, model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> Plan:
        """Plans for a kind of call without running it. Raises NothingToDifferentiate where there is no backward."""
        original = original_view(model)
        owners = self._owners_of(original)
        call = describe(original, args, kwargs, owners)
        with torch.enable_grad():
            ready = self._find(original, args, kwargs, call, owners)
        if ready is None:
            raise NothingToDifferentiate("no output requires a gradient: there is no backward to plan")
        return ready.planned.plan

    def _owners_of(self, original: torch.nn.Module) -> Owners:
        # Modules that gained, lost or exchanged a part, or tie other parameters, have other tensors.
        _, *inner = original.modules()
        shape = (tuple(id(module) for module in inner), modules_key(original))
        if self._owners is None or self._owners[0] != shape:
            self._owners = (shape, Owners(original, shape[1]))
        return self._owners[1]

    def _find(
        self, original: torch.nn.Module, args: tuple, kwargs: dict[str, Any], call: Call, owners: Owners
    ) -> _Ready | None:
        parts = {**owners.modules, "": original}  # as they are now, since each call looks at them anew
        if any(settings.hold(parts) for settings in self._eager.get(call.key, ())):
            return None
        costs = self._matching(parts, call, owners)
        full_key = (call.key, call.grad_key, id(costs))
        if costs is None or full_key not in self._ready:
            try:
                costs, ready = self._plan(original, args, kwargs, costs)
            except NothingToDifferentiate as error:
                if error.settings is not None:
                    self._eager.setdefault(call.key, []).append(error.settings)
                return None
            if all(known is not costs for known in self._steps.setdefault(call.key, [])):
                self._steps[call.key].append(costs)
            full_key = (call.key, call.grad_key, id(costs))
            self._remember(full_key, ready)
        self._ready.move_to_end(full_key)
        self._last = self._ready[full_key]
        return self._last

    def _matching(self, parts: Mapping[str, torch.nn.Module], call: Call, owners: Owners) -> StepCosts | None:
        """The captured step whose settings and guard hold for this call. parts: the module's by name, itself too."""
        for costs in self._steps.get(call.key, ()):
            guard = costs.captured.guard
            if not costs.captured.settings.hold(parts):
                continue
            if guard is None or guard.holds(owners.sources(call.inputs, call.structure)):
                return costs
        return None

    def _plan(
        self, original: torch.nn.Module, args: tuple, kwargs: dict[str, Any], costs: StepCosts | None
    ) -> tuple[StepCosts, _Ready]:
        # Capturing watches what the whole process runs: one thread at a time.
        with _planning, shown_progress(f"planning {type(original).__name__}") as progress:
            found = costs
            if found is None:
                _check_arguments(original, args, kwargs)
                _warn_of_hooks(original, self._hooked)
                found = capture_step(original, args, kwargs, self.options, progress)
            situation = situation_of(
                original, args, kwargs, self.options, found.device, found.captured.constants, self.optimizer
            )
            costs = calibrated(found, situation, progress) if costs is None else found
            # A given plan is for the first kind of call; a kept one, of a copy, serves where it happens to fit.
            given = self.given_plan if not self._ready else None
            posed = PosedStep(costs, situation, *pose_step(costs, situation))
            kept = self.kept_plan
            if given is None and kept is not None:
                fits = any(way.posed.problem.fingerprint == kept.fingerprint for way in posed.ways)
                given = kept if fits else None
            planned = solve_step(posed, self.budget, self.portfolio, progress, given)
        program = emit(
            planned.costs.captured,
            planned.step,
            planned.posed,
            planned.plan.schedule,
            costs.name,
            header_of(planned),
            costs.device,
        )
        constants = {Source("constant", str(i), i): c for i, c in enumerate(costs.captured.constants)}
        return costs, _Ready(planned, program, constants)

    def _remember(self, key: Hashable, ready: _Ready) -> None:
        self._ready[key] = ready
        if len(self._ready) > _MOST_PLANS:
            self._ready.popitem(last=False)
            used = {key[2] for key in self._ready}  # pyright: ignore[reportIndexIssue]
            kept = {key: [costs for costs in steps if id(costs) in used] for key, steps in self._steps.items()}
            self._steps = {key: steps for key, steps in kept.items() if steps}
            warnings.warn(
                f"lowtide has planned for more than {_MOST_PLANS} kinds of calls (shapes, dtypes, modes, numbers) and "
                "forgets the oldest; pad batches to a few shapes, and pass numbers that change as tensors",
                LowtideWarning,
                stacklevel=5,
            )


class Rewritten:
    """Mixed into the user's class: forward goes through the plan in training, and through the original otherwise."""

    lowtide: Rewriting

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's forward, in less memory while training."""
        model: Any = self
        if not (model.training and torch.is_grad_enabled()):
            return original_forward(model)(*args, **kwargs)
        return self.lowtide.run(model, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = _state(self)
        return _restore, (original_class(self), state.pop("lowtide"), state.pop("_lowtide_forward", None)), state

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in _state(self).items()})
        return twin


def _state(module: Any) -> dict[str, Any]:
    """What copies and pickles carry: not what `compile()` made, which would call the module that it was made of."""
    return {name: value for name, value in vars(module).items() if name != "_compiled_call_impl"}


def _restore(cls: type, rewriting: Rewriting, forward: Any) -> torch.nn.Module:
    """An empty rewritten module, for pickle to fill."""
    module = object.__new__(_rewritten_class(cls))
    module.__dict__["lowtide"] = rewriting
    if forward is not None:
        module.__dict__["_lowtide_forward"] = forward
    return module


@cache
def _rewritten_class(cls: type) -> type:
    """The user's class with `Rewritten` before it, under its own name."""
    told: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    for name in ("plan", "code"):
        # A model's own attribute of that name goes first; ours is still reached through `small.lowtide`.
        if not hasattr(cls, name):
            told[name] = property(lambda self, name=name: getattr(self.lowtide, name))
    made = type(cls.__name__, (Rewritten, cls), told)
    forward = _with_signature(Rewritten.forward, cls.forward)
    made.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    return made


def _with_signature(forward: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that tells the original's signature, which trainers look at."""

    @left_alone_by_compile
    def rewritten_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    rewritten_forward.__name__, rewritten_forward.__doc__ = "forward", original.__doc__
    rewritten_forward.__wrapped__ = original  # pyright: ignore[reportFunctionMemberAccess]
    return rewritten_forward


def original_class(model: Any) -> type:
    """The class that a rewritten module was made of."""
    classes = type(model).__mro__
    return classes[classes.index(Rewritten) + 1]


def original_forward(model: Any) -> Callable[..., Any]:
    """The forward that a rewritten module had before."""
    own = vars(model).get("_lowtide_forward")
    return own if own is not None else original_class(model).forward.__get__(model)


def original_view(model: Any) -> torch.nn.Module:
    """The same module under its original class: it shares all parts, and its own hooks do not run."""
    view = object.__new__(original_class(model))
    attributes = {k: v for k, v in vars(model).items() if k not in _NOT_THE_ORIGINALS}
    view.__dict__.update(attributes, **{name: OrderedDict() for name in _HOOKS})
    if "_lowtide_forward" in vars(model):
        view.__dict__["forward"] = vars(model)["_lowtide_forward"]
    return view


def make_rewritten(model: torch.nn.Module, rewriting: Rewriting) -> torch.nn.Module:
    """A new module beside the original: copies of the module objects, the same parameters and buffers in them."""
    if isinstance(model, Rewritten):
        raise LowtideError("this module is rewritten already; pass the original to rewrite")
    if not isinstance(model, torch.nn.Module):
        raise LowtideError(f"rewrite takes a torch.nn.Module, not a {type(model).__qualname__}")
    for name, module in model.named_modules():
        if isinstance(module, Rewritten):
            raise LowtideError(
                f"part {name} of this module is rewritten already, and its plan cannot be planned again; rewrite the "
                "whole from the original, or this part alone"
            )
    shared = {id(tensor): tensor for module in model.modules() for tensor in _tensors(module)}
    twin: Any = copy.deepcopy(model, dict(shared))
    twin.__class__ = _rewritten_class(type(model))
    if "forward" in vars(twin):
        twin.__dict__["_lowtide_forward"] = twin.__dict__.pop("forward")
    twin.__dict__["lowtide"] = rewriting
    _warn_of_hooks(twin, rewriting._hooked)
    return twin


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    """The parameters, buffers and other tensors that a module holds itself."""
    told = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
    return [tensor for tensor in told if isinstance(tensor, torch.Tensor)]


def _check_arguments(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raises the TypeError that calling forward with these arguments would raise."""
    inspect.signature(model.forward).bind(*args, **kwargs)


def _warn_of_hooks(model: torch.nn.Module, known: set[str]) -> None:
    """Names the inner modules whose hooks will not be called at each step, each once."""
    hooked = [name for name, module in model.named_modules() if name and any(getattr(module, h, None) for h in _HOOKS)]
    hooked = [name for name in hooked if name not in known]
    known.update(hooked)
    if hooked:
        shown = ", ".join(hooked[:5]) + (f" and {len(hooked) - 5} more" if len(hooked) > 5 else "")
        warnings.warn(
            f"hooks on inner modules do not fire in a rewritten forward: {shown}; what they compute on tensors is "
            "captured "
            "once, what else they do happens only while capturing",
            LowtideWarning,
            stacklevel=4,
        )
