"""Hooks on inner modules, which a rewritten forward does not call."""

from __future__ import annotations

import warnings

import torch

from ...errors import LowtideWarning

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def warn_of_hooks(model: torch.nn.Module, known: set[str]) -> None:
    """Warn about inner modules whose hooks will not be called at each step, once for each module."""
    hooked = [name for name, module in model.named_modules() if name and any(getattr(module, h, None) for h in HOOKS)]
    hooked = [name for name in hooked if name not in known]
    known.update(hooked)
    if hooked:
        shown = ", ".join(hooked[:5]) + (f" and {len(hooked) - 5} more" if len(hooked) > 5 else "")
        warnings.warn(
            f"hooks on inner modules do not fire in a rewritten forward: {shown}; what they compute on tensors is "
            "captured once, and other effects happen only during capture; remove them before rewriting if that matters",
            LowtideWarning,
            stacklevel=4,
        )
