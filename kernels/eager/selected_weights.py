"""The sum of the weights of all counted targets, as eager takes it: over the selected ones only, without zeros for
the others.
"""

from __future__ import annotations

from torch import Tensor

from ..backend.library import define


def _sum(weight: Tensor, target: Tensor, ignored: int) -> Tensor:
    return weight.gather(0, target.masked_select(~(target == ignored)).flatten()).sum()


selected_weights_sum = define(
    "selected_weights_sum(Tensor weight, Tensor target, int ignored) -> Tensor",
    _sum,
    lambda weight, target, ignored: weight.new_empty(()),
)
"""The sum of weight[t], [classes], over all t of target (any shape) except those equal to `ignored`: a number."""
