"""The operations that generated code calls, without their layer of Python."""

from __future__ import annotations

from typing import Any

import torch

from ..capture.torch_internals import direct_call


class DirectOperations:
    """The operations of a namespace (`torch.ops.aten`), each looked up once and called without its layer of Python."""

    def __init__(self, holder: Any) -> None:
        self._holder = holder

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._holder, name)
        direct: Any = direct_call(value) if isinstance(value, torch._ops.OpOverload) else DirectOperations(value)
        setattr(self, name, direct)
        return direct
