"""Small networks in plain torch, and a module whose forward is a given function."""

from typing import Any

import torch
from torch import Tensor, nn


class Called(nn.Module):
    """A module with named parts, parameters and buffers, and a function of the module and the arguments as forward."""

    def __init__(self, function: Any, **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function on the module and the arguments."""
        return self.function(self, *args, **kwargs)


def deep(width: int = 16, depth: int = 4) -> nn.Sequential:
    """Build blocks with dropout, so that random streams matter, and a head."""
    blocks = [
        nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Linear(4 * width, width),
            nn.LayerNorm(width),
        )
        for _ in range(depth)
    ]
    return nn.Sequential(*blocks, nn.Linear(width, 3))


def batch(width: int = 16, rows: int = 64) -> Tensor:
    """Return the same numbers each time."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
