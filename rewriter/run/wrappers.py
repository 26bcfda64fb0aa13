"""Modules that wrap a model and cannot be rewritten from outside, each with what to do instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from ..errors import LowtideError

# Advice by (module of the class, its name). Names are used since importing some of these takes long.
_INSIDE = "rewrite the module inside, and wrap what rewrite returns"
_SHARDED = "rewrite the module before its parameters are sharded, and shard what rewrite returns"
_WRAPPERS = {
    ("torch.nn.parallel.", "DistributedDataParallel"): _INSIDE,
    ("torch.nn.parallel.", "DataParallel"): (
        "it copies the module at each call, and copies have no parameters of their own: rewrite the module inside, and "
        "wrap what rewrite returns in DistributedDataParallel"
    ),
    ("torch.distributed.fsdp.", "FullyShardedDataParallel"): _SHARDED,
    ("torch.distributed.fsdp.", "FSDPModule"): _SHARDED,
    ("torch.distributed.pipelining.", "Pipe"): "rewrite the module of each stage",
    ("deepspeed.", "DeepSpeedEngine"): _INSIDE,
    ("fairscale.", "FullyShardedDataParallel"): _SHARDED,
    ("fairscale.", "ShardedDataParallel"): _INSIDE,
}
_AT_THE_ROOT = {
    ("torch._dynamo.", "OptimizedModule"): (
        "rewrite the module that was compiled, its `_orig_mod`; a rewritten forward calls its kernels itself, and "
        "torch.compile around it does not change it"
    ),
    ("torch.jit.", "ScriptModule"): "TorchScript has no Python code: rewrite the module from which it was made",
}


def check_model(model: object) -> None:
    """Raise LowtideError for an object that is not a module or has no forward, and for one with such a wrapper."""
    if not isinstance(model, torch.nn.Module):
        is_pipeline = "pipelin" in type(model).__module__
        advice = "; it splits a model into stages: rewrite the module of each" if is_pipeline else ""
        raise LowtideError(f"rewrite takes a torch.nn.Module, not a {type(model).__qualname__}{advice}")
    for name, module in model.named_modules():
        what = f"part {name} of this module" if name else "this module"
        for cls, advice in _advised(module, _WRAPPERS):
            raise LowtideError(
                f"{what} is a {cls}, whose own work at each step (to reduce or gather) would be done once, during "
                f"capture: {advice}"
            )
        for cls, advice in _advised(module, _AT_THE_ROOT) if not name else ():
            raise LowtideError(f"{what} is a {cls}: {advice}")
    if type(model).forward is torch.nn.Module.forward and "forward" not in vars(model):
        raise LowtideError(
            f"{type(model).__qualname__} defines no forward, which is what is rewritten: rewrite the parts that are "
            "called, and put what rewrite returns in their place"
        )


def _advised(module: torch.nn.Module, table: Mapping[tuple[str, str], str]) -> Iterator[tuple[str, str]]:
    """Yield the classes of a module that are in a table, with the advice."""
    for cls in type(module).__mro__:
        for (home, name), advice in table.items():
            if cls.__name__ == name and cls.__module__.startswith(home):
                yield name, advice
