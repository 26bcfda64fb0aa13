"""Defines the options that several commands share, with their help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from functools import wraps
from inspect import Parameter, Signature, signature
from math import inf
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer


class Costs(StrEnum):
    """The source of the seconds of a kernel."""

    measured = "measured"
    roofline = "roofline"
    flops = "flops"


class Fidelity(StrEnum):
    """The largest difference allowed between results and the original's."""

    bitwise = "bitwise"
    rounding = "rounding"
    approximate = "approximate"


_MODEL = "A transformers type (gpt2), a preset (llama-70b), a local folder or config.json, or a hub name (owner/name)."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL, show_default=False)]
Budget = Annotated[
    str,
    typer.Option(
        help='Peak bytes of a step: "2GiB", "500MB", or "60%" of the peak with everything kept.', show_default=False
    ),
]
Batch = Annotated[
    int | None, typer.Option(help="Rows of the batch; by default the preset's, else 1.", show_default=False)
]
Sequence = Annotated[
    int | None,
    typer.Option(
        "--seq",
        help="Tokens, or pixels of an image's side; by default the preset's, else 512 or 224.",
        show_default=False,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Change the configuration (n_layer=4); repeatable.", show_default=False
    ),
]
NumberType = Annotated[
    str | None,
    typer.Option("--dtype", help="Of the parameters; by default the preset's, else float32.", show_default=False),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, or a preset to plan for without having it (h200-141gb).", show_default=False),
]
CostSource = Annotated[
    Costs | None, typer.Option(help="By default measured, and roofline for a preset's device.", show_default=False)
]
Outputs = Annotated[
    list[str] | None,
    typer.Option(
        help="An output to return (loss); the others need not be kept. Repeatable; by default all.", show_default=False
    ),
]
Padded = Annotated[bool, typer.Option("--padded", help="Rows of different lengths, with an attention mask.")]
FidelityChoice = Annotated[Fidelity, typer.Option("--fidelity", help="What results may differ by.")]
Solver = Annotated[str, typer.Option(help="auto, keep_all, recipes, rockmate, greedy, rotor or checkmate.")]
ErrorBudget = Annotated[
    float,
    typer.Option(min=0.0, help="With --fidelity approximate: how much of its own variance the gradient's may grow by."),
]
Codecs = Annotated[
    list[str] | None,
    typer.Option(
        help="With --fidelity approximate: a code to choose among (groups, rows, gaussian). Repeatable; by default "
        "groups, spread, derivatives and rows.",
        show_default=False,
    ),
]
TimeLimit = Annotated[
    float, typer.Option(help="Seconds of solving, then the best so far; recipes are always tried.", show_default="none")
]
Depth = Annotated[
    int | None,
    typer.Option(
        min=1, help="Names of a module's path that tell rows apart; by default up to its number.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to standard output.")]
PlanTarget = Annotated[Path | None, typer.Option(help="Save the plan here, as JSON.", show_default=False)]
Picture = Annotated[Path | None, typer.Option(help="Save a picture here (.png, .svg, .pdf).", show_default=False)]
PlanSource = Annotated[
    Path, typer.Argument(metavar="PLAN", help="A plan that `lowtide plan --out` saved.", show_default=False)
]
ActivationName = Annotated[
    str,
    typer.Argument(
        metavar="ACTIVATION",
        help="A name (gelu, silu, hardswish), or package.module:function of your own.",
        show_default=False,
    ),
]
Bits = Annotated[int, typer.Option(help="Of a code, 1 to 8.", show_default=False)]
Weight = Annotated[str, typer.Option(help="Of inputs: uniform:LOW,HIGH or normal:MEAN,STD.")]


_OF_MODEL = ("batch", "seq", "settings", "dtype", "device")


@dataclass(frozen=True)
class StepOptions:
    """The options of every command on a model's step."""

    batch: Batch = None
    seq: Sequence = None
    settings: Settings = None
    dtype: NumberType = None
    device: Device = None
    costs: CostSource = None
    outputs: Outputs = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The options of `lowtide.rewrite` among those given, as its keyword arguments; not the device."""
        chosen = {option.name: getattr(self, option.name) for option in fields(self) if option.name not in _OF_MODEL}
        return {
            name: str(value) if isinstance(value, StrEnum) else value
            for name, value in chosen.items()
            if value is not None
        }


@dataclass(frozen=True)
class PlanOptions(StepOptions):
    """The options of every command that plans."""

    fidelity: FidelityChoice = Fidelity.bitwise
    error_budget: ErrorBudget = 0.01
    codecs: Codecs = None
    time_limit: TimeLimit = inf


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with separate options in the place of the one parameter that groups them."""
    kinds = get_type_hints(command, include_extras=True)
    group = next(name for name, kind in kinds.items() if is_dataclass(kind))
    options = fields(kinds[group])
    option_kinds = get_type_hints(kinds[group], include_extras=True)

    @wraps(command)
    def called(**arguments: Any) -> None:
        own = {option.name: arguments.pop(option.name) for option in options}
        command(**arguments, **{group: kinds[group](**own)})

    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        if parameter.name == group:
            separate = ((option.name, option.default, option_kinds[option.name]) for option in options)
            parameters += [
                Parameter(name, parameter.kind, default=value, annotation=kind) for name, value, kind in separate
            ]
        else:
            parameters.append(parameter.replace(annotation=kinds[parameter.name]))
    called.__signature__ = Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called
