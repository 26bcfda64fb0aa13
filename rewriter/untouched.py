"""Watches what forward does besides computing: buffers it replaces, random streams of others that it uses."""

from __future__ import annotations

import copy
import operator
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch

from .errors import CaptureError, LowtideWarning, Unsettled


@contextmanager
def random_streams_untouched(model: torch.nn.Module) -> Iterator[None]:
    """Raises CaptureError if what runs under it sets or uses a random stream that is not followed; puts it back.

    Draws of torch's own generator are recorded, not made, so any change of its state is somebody setting it.
    """
    before = (random.getstate(), numpy.random.get_state(), torch.get_rng_state())
    try:
        with _setting_refused(model):
            yield
    finally:
        python, arrays, torch_state = before
        moved = [
            told
            for told, same in (
                ("uses Python's random numbers", python == random.getstate()),
                ("uses numpy's random numbers", _same_arrays(arrays, numpy.random.get_state())),
                ("sets the state of torch's generator", torch.equal(torch_state, torch.get_rng_state())),
            )
            if not same
        ]
        random.setstate(python)
        numpy.random.set_state(arrays)
        torch.set_rng_state(torch_state)
    if moved:
        raise CaptureError(
            f"forward of {type(model).__name__} {' and '.join(moved)}: a rewritten forward would use what was drawn "
            "while capturing for ever; draw with torch's own functions, or keep that part out of the rewritten module"
        )


@contextmanager
def _setting_refused(model: torch.nn.Module) -> Iterator[None]:
    """Refuses calls that set the state of torch's generator, even back to what it was."""

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise CaptureError(
            f"forward of {type(model).__name__} sets the state of torch's generator: the random numbers after "
            "that would "
            "not be the original's; draw without setting it, or keep that part out of the rewritten module"
        )

    places = [(where, name) for where in (torch, torch.random) for name in ("manual_seed", "set_rng_state")]
    before = [getattr(where, name) for where, name in places]
    for where, name in places:
        setattr(where, name, refuse)
    try:
        yield
    finally:
        for (where, name), function in zip(places, before, strict=True):
            setattr(where, name, function)


def _same_arrays(one: Any, other: Any) -> bool:
    return one[0] == other[0] and bool((one[1] == other[1]).all()) and one[2:] == other[2:]


@contextmanager
def held_tensors_untouched(model: torch.nn.Module) -> Iterator[dict[torch.Tensor, torch.Tensor]]:
    """Tells what forward replaced buffers by (old tensor → new one), when it has ended, and puts them back.

    Raises CaptureError for a replacement that is no new value of the same buffer, and Unsettled where forward gives the
    module other tensors than it had: another shape or dtype, or one in the place of None.
    """
    before = [(name, module, dict(module._buffers), dict(module._parameters)) for name, module in model.named_modules()]
    replaced: dict[torch.Tensor, torch.Tensor] = {}
    try:
        yield replaced
        for prefix, module, buffers, parameters in before:
            for held, now in ((buffers, module._buffers), (parameters, module._parameters)):
                for name in [n for n in now if now[n] is not held.get(n)]:
                    place = f"{prefix}.{name}" if prefix else name
                    replaced[_checked(held.get(name), now[name], place)] = now[name]  # pyright: ignore[reportArgumentType]
    except Unsettled:
        raise
    except Exception as error:
        _refuse_growth(model, {id(module): {**buffers, **parameters} for _, module, buffers, parameters in before}, error)
        raise
    finally:
        for _, module, buffers, parameters in before:
            for held, now in ((buffers, module._buffers), (parameters, module._parameters)):
                now.clear()
                now.update(held)  # pyright: ignore


def _checked(old: torch.Tensor | None, new: torch.Tensor | None, place: str) -> torch.Tensor:
    """The old tensor, when the new one can be written into it."""
    if old is None or new is None or (old.shape, old.dtype, old.device) != (new.shape, new.dtype, new.device):
        raise Unsettled(
            f"forward puts {_described(new)} in the place of {place}, which was {_described(old)}"
        )
    if old.requires_grad or new.requires_grad:
        raise CaptureError(
            f"forward puts a tensor that requires a gradient in the place of {place}, so that one step's backward "
            "would reach into the step before; detach it"
        )
    return old


def _refuse_growth(model: torch.nn.Module, before: dict[int, dict[str, Any]], error: Exception) -> None:
    """Raises Unsettled if what failed is a forward that gives its module parts, parameters or buffers."""
    for prefix, module in model.named_modules():
        held = before.get(id(module), {})
        now = {**module._buffers, **module._parameters}
        gained = [name for name, tensor in now.items() if tensor is not None and held.get(name) is None]
        if gained:
            place = f"{prefix}.{gained[0]}" if prefix else gained[0]
            raise Unsettled(f"forward gives the module {place}, which it did not have before") from error


def _described(tensor: torch.Tensor | None) -> str:
    return "None" if tensor is None else f"{tensor.dtype} of shape {list(tensor.shape)} on {tensor.device}"


def _contents(module: torch.nn.Module) -> dict[str, tuple[Any, Any]]:
    """The lists, dicts and sets that a module holds (its hooks are in such), each with a copy."""
    return {key: (held, copy.copy(held)) for key, held in vars(module).items() if isinstance(held, (list, dict, set))}


def _is_same(held: Any, content: Any) -> bool:
    """Whether a collection holds the same objects as its copy."""
    if isinstance(held, dict):
        return list(held) == list(content) and all(held[key] is content[key] for key in content)
    return len(held) == len(content) and all(map(operator.is_, held, content))


@contextmanager
def attributes_restored(model: torch.nn.Module, notes: list[str]) -> Iterator[None]:
    """Puts back what forward sets on modules, and notes it: a rewritten forward does not set it again."""
    before = {name: (module, dict(vars(module)), _contents(module)) for name, module in model.named_modules()}
    try:
        yield
    finally:
        for name, (module, told, contents) in before.items():
            now = vars(module)
            changed = [key for key in now if key not in told or now[key] is not told[key]]
            changed += [key for key, (held, content) in contents.items() if not _is_same(held, content)]
            for held, content in contents.values():
                held.clear()
                (held.extend if isinstance(held, list) else held.update)(content)
            if changed or len(now) != len(told):
                now.clear()
                now.update(told)
                note = (
                    f"forward sets {', '.join(sorted(changed))} of {name or 'the root module'}: capture put it "
                    "back, and "
                    "the rewritten forward leaves it alone"
                )
                notes.append(note)
                if any(key in told and not key.startswith("_") for key in changed):
                    warnings.warn(f"{note}; what it computes from it stays as it was", LowtideWarning, stacklevel=2)
