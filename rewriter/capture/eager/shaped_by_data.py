"""Results whose shapes depend on the values of only some operands: on a mask or lengths, not on the selected data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten


def result_by_shape(func: Any, args: tuple) -> Any:
    """Return the result, without data, of an operation for which only some operands need to be read; else None.

    The caller records all calls, so that the values that are read are guarded.
    """
    make = _MAKERS.get(func)
    return None if make is None else make(*args)


def _masked_select(taken: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    shape = torch.broadcast_shapes(taken.shape, mask.shape)
    spread = aten.expand.default(mask, list(shape))
    count = aten.sum.default(spread).item()
    return torch.empty((int(count),), dtype=taken.dtype, device=taken.device)


def _ctc_loss(
    log_probabilities: torch.Tensor, targets: torch.Tensor, input_lengths: Any, target_lengths: Any, *_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses, and the log forward probabilities of each target with a blank around each letter."""
    if isinstance(target_lengths, torch.Tensor):
        longest = int(aten.max.default(target_lengths).item()) if target_lengths.numel() else 0
    else:
        longest = max(target_lengths, default=0)
    steps, samples = log_probabilities.shape[:2] if log_probabilities.dim() == 3 else (len(log_probabilities), 1)
    return (
        log_probabilities.new_empty((samples,)),
        log_probabilities.new_empty((samples, steps, 2 * longest + 1)),
    )


_MAKERS: dict[Any, Callable[..., Any]] = {
    aten.masked_select.default: _masked_select,
    aten._ctc_loss.default: _ctc_loss,
    aten._ctc_loss.Tensor: _ctc_loss,
}


CTC_LOSSES = (torch.ctc_loss, torch.nn.functional.ctc_loss)


def ctc_loss(
    log_probabilities: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: int | str = 1,
    zero_infinity: bool = False,
) -> torch.Tensor:
    """Compute `torch.ctc_loss` on a CPU by operations that can be recorded, as its tensor of the lengths cannot.

    reduction: 0 or "none", 1 or "mean", 2 or "sum".
    """
    is_batched = log_probabilities.dim() == 3
    spread = log_probabilities if is_batched else log_probabilities.unsqueeze(1)
    losses = aten._ctc_loss(
        spread, targets.to(spread.device, torch.long), input_lengths, target_lengths, blank, zero_infinity
    )[0]
    if zero_infinity:
        losses = torch.where(losses == float("inf"), torch.zeros((), dtype=losses.dtype, device=losses.device), losses)
    if reduction in (1, "mean"):
        is_tensor = isinstance(target_lengths, torch.Tensor)
        lengths = target_lengths if is_tensor else torch.tensor(list(target_lengths), dtype=losses.dtype)
        return (losses / lengths.to(losses.device, losses.dtype).clamp_min(1)).mean()
    if reduction in (2, "sum"):
        return losses.sum()
    return losses if is_batched else losses.squeeze(0)
