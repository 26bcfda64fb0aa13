"""Defines the command line: profile, plan, sweep, verify and inspect, on models by name; codes, on activations."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as options
from .output import check_target, print_json, print_line, reporting_errors
from .validate import check_budget, check_picture, refuse_elsewhere, subject_of

if TYPE_CHECKING:
    from ...solvers.problem.plan import Plan

# The most plans of a drawn frontier.
_PLANS_DRAWN = 80

# torch and transformers take seconds to import: they are imported where a command needs them, so that help is instant.

app = typer.Typer(
    name="lowtide",
    help="Rewrites a PyTorch model so that one training step fits a given number of bytes, bit for bit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> None:
    """Run the command line."""
    app(prog_name="lowtide")


def _print_version(requested: bool) -> None:
    if requested:
        package = import_module(__name__.rpartition(".rewriter.")[0])
        typer.echo(f"lowtide {package.__version__}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Rewrites a PyTorch model so that one training step fits a given number of bytes, bit for bit."""


@app.command()
@options.with_options
def profile(
    model: options.Model,
    requested: options.StepOptions,
    depth: options.Depth = None,
    as_json: options.AsJson = False,
) -> None:
    """Shows where the bytes and the seconds of a training step go, module by module."""
    with reporting_errors():
        subject = subject_of(model, requested)
        from ..display.profile import profile as profile_step

        result = profile_step(subject.model, (), subject.batch, depth=depth, **subject.options)
        if as_json:
            print_json({"request": subject.request.to_dict(), **result.to_dict()})
            return
        from ..display.tables import profile_text, show

        show(profile_text(subject.description, result))


@app.command()
@options.with_options
def plan(
    model: options.Model,
    budget: options.Budget,
    requested: options.PlanOptions,
    solver: options.Solver = "auto",
    out: options.PlanTarget = None,
    as_json: options.AsJson = False,
) -> None:
    """Plans a training step within a budget: the values it keeps, the kernels it recomputes, the time it takes."""
    with reporting_errors():
        check_budget(budget)
        check_target(out)
        subject = subject_of(model, requested, solver=solver)
        from ..plan.plan_file import save_plan
        from ..rewrite import plan as plan_step

        result = plan_step(subject.model, budget, (), subject.batch, **subject.options)
        request = subject.request.to_dict()
        if out is not None:
            save_plan(result, out, made_by=request)
        if as_json:
            print_json(_plan_dict(result) | {"request": request, "saved": str(out) if out else None})
            return
        from ..display.tables import plan_text, show

        show(plan_text(subject.description, result))
        if out is not None:
            print_line(f"saved to {out}")


@app.command()
@options.with_options
def sweep(
    model: options.Model,
    requested: options.PlanOptions,
    count: Annotated[int, typer.Option(min=2, help="Plans at most.")] = 12,
    plot: options.Picture = None,
    as_json: options.AsJson = False,
) -> None:
    """Shows the frontier of peak against extra time, from everything kept to the smallest feasible peak."""
    with reporting_errors():
        check_picture(plot)
        subject = subject_of(model, requested)
        from ..plan.plan_file import summary_of
        from ..plan.solve import spread_out
        from ..rewrite import sweep as sweep_step

        # a picture's line needs more plans than a table has rows
        plan_count = max(count, _PLANS_DRAWN) if plot is not None else count
        all_plans = sweep_step(subject.model, (), subject.batch, count=plan_count, **subject.options)
        plans = spread_out(all_plans, count)
        payload: dict[str, Any] = {"request": subject.request.to_dict(), "plans": [summary_of(plan) for plan in plans]}
        if plot is not None:
            from ..display.pictures import draw_frontier

            recipes = draw_frontier(all_plans, subject.description, plot)
            payload["recipes"] = [
                {"recipe": recipe.description, "peak_bytes": recipe.peak_bytes, "seconds": recipe.seconds}
                for recipe in recipes
            ]
        if as_json:
            print_json(payload | {"picture": str(plot) if plot else None})
            return
        from ..display.tables import show, sweep_table

        show(sweep_table(subject.description, plans))
        if plot is not None:
            print_line(f"drawn in {plot}")


@app.command()
@options.with_options
def verify(
    model: options.Model,
    budget: options.Budget,
    requested: options.PlanOptions,
    padded: options.Padded = False,
    solver: options.Solver = "auto",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps to compare.")] = 3,
    pairs: Annotated[int, typer.Option(min=0, help="Pairs of steps to time, eager and rewritten in turn.")] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Trains in eager and rewritten side by side: same results, and within the budget? Exits with 1 if not."""
    with reporting_errors():
        check_budget(budget)
        refuse_elsewhere(requested.device)
        subject = subject_of(model, requested, padded, solver)
        from ..display.tables import show, verify_text
        from ..verify.verify import verify as verify_step

        report = verify_step(
            subject.model, budget, (), subject.batch, steps=steps, timed_pairs=pairs, **subject.options
        )
        if as_json:
            print_json({"request": subject.request.to_dict(), **report.to_dict()})
        else:
            show(verify_text(subject.description, report))
        if not report.ok:
            raise typer.Exit(1)


@app.command()
def inspect(
    path: options.PlanSource,
    code: Annotated[bool, typer.Option("--code", help="Print the generated Python and nothing else.")] = False,
    timeline: options.Picture = None,
    as_json: options.AsJson = False,
) -> None:
    """Shows a saved plan: its numbers, its code, a picture of its live bytes."""
    with reporting_errors():
        check_picture(timeline)
        from ..plan.plan_file import load_plan
        from .inspect_plan import code_of, request_of

        saved_plan = load_plan(path)
        request = request_of(path)
        text = code_of(path, saved_plan, request) if code else None
        title = request.description if request is not None else saved_plan.problem.name
        if timeline is not None:
            from ..display.pictures import draw_timeline

            draw_timeline(saved_plan, title, timeline)
        if as_json:
            code_entry = {"code": text} if code else {}
            picture = str(timeline) if timeline else None
            print_json(
                _plan_dict(saved_plan) | {"request": request and request.to_dict(), "picture": picture} | code_entry
            )
            return
        if text is not None:
            typer.echo(text)
            return
        from ..display.tables import plan_text, show

        show(plan_text(title, saved_plan))
        if timeline is not None:
            print_line(f"drawn in {timeline}")


@app.command()
def codes(
    activation: options.ActivationName,
    bits: options.Bits,
    weight: options.Weight = "normal:0,1",
    plot: options.Picture = None,
    as_json: options.AsJson = False,
) -> None:
    """Finds the best few-bit codes for an activation's derivative: by intervals of inputs, by value, without bias."""
    with reporting_errors():
        check_picture(plot)
        from ..codes import codes as find_codes
        from ..codes import resolve, resolve_weight

        resolved, input_weight = resolve(activation), resolve_weight(weight)
        result = find_codes(resolved, bits, input_weight)
        if plot is not None:
            from ..display.codes_table import draw_codes

            draw_codes(result, resolved, input_weight, plot)
        if as_json:
            print_json(result.to_dict() | {"picture": str(plot) if plot else None})
            return
        from ..display.codes_table import codes_text
        from ..display.tables import show

        show(codes_text(result))
        if plot is not None:
            print_line(f"drawn in {plot}")


def _plan_dict(plan: Plan) -> dict[str, Any]:
    """Return the numbers of a plan, its fullest moment and its modules."""
    from ..display.memory_timeline import peak_of
    from ..display.module_summary import module_summaries
    from ..plan.plan_file import summary_of

    modules = [summary.to_dict() for summary in module_summaries(plan)]
    return summary_of(plan) | {"peak": peak_of(plan).to_dict(), "modules": modules}
