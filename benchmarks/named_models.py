"""Trains models with any names of classes, parts, arguments and outputs, in eager and rewritten, and compares both."""

from __future__ import annotations

import ast
import copy
import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lowtide
import torch
from lowtide.rewriter.display.profile import profile
from lowtide.rewriter.display.tables import plan_text, profile_text, show
from torch import nn

_WIDTH, _ROWS = 4, 48
_BUDGET = "80%"
_OPTIONS: Any = {"costs": "flops", "solver": "greedy"}


class _Named(nn.Module):
    """A module with a part, a parameter, a buffer and an attribute of each name, and an argument of that name.

    attributes: the names that torch accepts for parts and parameters.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.first = nn.Linear(_WIDTH, _WIDTH)
        self.dict, self.parameter_dict = nn.ModuleDict(), nn.ParameterDict()
        self.attributes = [name for name in names if _is_free(name)]
        for name in self.attributes:
            self.add_module(name, nn.Linear(_WIDTH, _WIDTH))
        for number, name in enumerate(self.attributes):
            if name not in self.dict:  # `keys` and its other attributes are not free
                self.dict[name] = nn.Tanh()
                self.parameter_dict[name] = nn.Parameter(torch.ones(_WIDTH))
            self.first.register_buffer(f"{name}_b", torch.full((_WIDTH,), 1.0 + number))
            setattr(self.first, f"{name}_s", 0.5 + number)

    def forward(self, batch: dict[str, torch.Tensor], **named: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.first(sum(batch.values()) + sum(named.values()))  # pyright: ignore[reportArgumentType]
        for name in self.attributes:
            x = x + getattr(self, name)(x) * getattr(self.first, f"{name}_b") + getattr(self.first, f"{name}_s")
        for name, part in self.dict.items():
            x = part(x) * self.parameter_dict[name]
        return {"loss": x.square().mean(), **{name: x[:1].detach() * 2 for name in batch if name != "loss"}}


def _is_free(name: str) -> bool:
    """Return whether torch lets a module have a part of this name."""
    try:
        nn.Module().add_module(name, nn.Tanh())
        nn.ModuleDict()[name] = nn.Tanh()
        nn.ParameterDict()[name] = nn.Parameter(torch.ones(1))
    except (KeyError, TypeError, ValueError):
        return False
    return not hasattr(_Named, name) and name not in ("first", "dict", "parameter_dict", "attributes", "training")


@dataclass
class Outcome:
    """The text that was shown for one model, and descriptions of what was wrong."""

    shown: str = ""
    refused: str = ""
    wrong: list[str] = field(default_factory=list)


def class_named(name: str) -> type[nn.Module]:
    """Return the models' class under another name, where Python lets a class have it."""
    try:
        return type(name, (_Named,), {})
    except (ValueError, UnicodeEncodeError):
        return _Named


def tried(names: Sequence[str], folder: Path | None = None) -> Outcome:
    """Train a model with these names for two steps in eager and rewritten, and print its code and plan.

    folder: for the plan's file; if given, a profile is shown too, and the plan is used from the file.
    """
    torch.manual_seed(0)
    model = class_named(names[0])(names)
    batch = {name: torch.randn(_ROWS, _WIDTH) for name in names}
    named = {name: torch.randn(_ROWS, _WIDTH) for name in names if name not in ("self", "batch")}
    outcome = Outcome()
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            small = lowtide.rewrite(copy.deepcopy(model), _BUDGET, (batch,), named, **_OPTIONS)
            outcome.wrong += _differences(model, small, batch, named)
            outcome.wrong += list(_faults_of_code(small.code))
            _show(type(model).__name__, small)
            if folder is not None:
                _show_more(model, small, batch, named, folder)
    except lowtide.LowtideError as error:
        outcome.refused = str(error)
    outcome.shown = f"{printed.getvalue()}\n{outcome.refused}"
    outcome.wrong += [f"printed {line!r}" for line in outcome.shown.split("\n") if not line.isprintable()]
    return outcome


def _differences(model: nn.Module, small: Any, batch: dict[str, Any], named: dict[str, Any]) -> Iterator[str]:
    """Yield the differences between two steps in eager and rewritten."""
    for step in range(2):
        for module in (model, small):
            module.zero_grad()
        theirs, ours = model(batch, **named), small(batch, **named)
        theirs["loss"].backward(), ours["loss"].backward()
        if list(theirs) != list(ours):
            yield f"outputs of step {step} have other names"
        yield from (f"output {name!r}" for name in theirs if not torch.equal(theirs[name], ours[name]))
        pairs = zip(model.named_parameters(), small.parameters(), strict=True)
        yield from (f"gradient of {name!r}" for (name, p), q in pairs if not _equal(p.grad, q.grad))


def _equal(left: torch.Tensor | None, right: torch.Tensor | None) -> bool:
    return left is right if left is None or right is None else torch.equal(left, right)


def _show(title: str, small: Any) -> None:
    """Print the code and the plan."""
    print(small.code)
    print(small.plan)
    show(plan_text(title, small.plan))


def _show_more(model: nn.Module, small: Any, batch: dict[str, Any], named: dict[str, Any], folder: Path) -> None:
    """Print a profile, and save and load the plan."""
    show(profile_text(type(model).__name__, profile(model, (batch,), named, costs="flops")))
    lowtide.save_plan(small.plan, folder / "plan.json")
    loaded = lowtide.load_plan(folder / "plan.json")
    again = lowtide.rewrite(copy.deepcopy(model), _BUDGET, (batch,), named, **_OPTIONS, plan=loaded)
    show(plan_text(str(loaded.problem.name), again.plan))


_ROOTS = {"aten", "lowtide", "torch", "device", "float", "complex", "slice", "getattr", "generator_state"}
_ROOTS |= {"drawing_from", "values"}


def _faults_of_code(code: str) -> Iterator[str]:
    """Yield the faults of generated code: statements other than functions at its top, other calls, imports."""
    tree = ast.parse(code)
    others = [statement for statement in tree.body if not isinstance(statement, ast.FunctionDef)]
    yield from (f"{ast.dump(statement)[:80]} at the top" for statement in others)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Lambda, ast.JoinedStr, ast.Global, ast.NamedExpr)):
            yield f"a {type(node).__name__}"
        if isinstance(node, ast.Call):
            root: ast.AST = node.func
            while isinstance(root, (ast.Attribute, ast.Call)):
                root = root.value if isinstance(root, ast.Attribute) else root.func
            known = isinstance(root, ast.Name) and (root.id in _ROOTS or root.id.startswith("object_"))
            if not known and not ast.unparse(node.func).endswith(".copy_"):
                yield f"calls {ast.unparse(node.func)[:80]}"
