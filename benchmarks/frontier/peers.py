"""The peers that lowtide is compared with: torch's checkpointing of blocks, of groups, selective, and mixtures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from benchmarks.frontier.step import Runner, Subject, runner_of
from benchmarks.networks import Network

aten = torch.ops.aten
KEPT: list[Any] = [
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]
"""The operations whose outputs selective checkpointing keeps: matrix products, convolutions and attention."""

_GROUP_SIZES = (2, 3, 4, 6)
_MIXTURES = 6


class Group(nn.Module):
    """Several blocks in a row, called as one."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, first: Any, *args: Any, **kwargs: Any) -> Any:
        """Call each block on the result of the block before it, with the same other arguments."""
        for block in self.blocks:
            first = block(first, *args, **kwargs)
        return first


def checkpointing_peers(network: Network, subject: Subject) -> Iterator[Callable[[], Runner]]:
    """Yield functions that build the peers, in the order of the table."""
    blocks = network.blocks(subject.model)
    most = max(len(list(subject.model.get_submodule(name).children())) for name in network.containers)
    yield lambda: _in_full(subject, blocks)
    for size in _GROUP_SIZES if network.chained else ():
        if size <= most and size < len(blocks):
            yield functools.partial(_in_groups, network, subject, size)
    yield lambda: _selective(subject, blocks, len(blocks))
    counts = {round(len(blocks) * part / _MIXTURES) for part in range(1, _MIXTURES)} - {0, len(blocks)}
    for count in sorted(counts, reverse=True):
        yield functools.partial(_selective, subject, blocks, count)


def _in_full(subject: Subject, blocks: Sequence[str]) -> Runner:
    model = subject.shadow_copy()
    for name in blocks:
        _wrap(model.get_submodule(name))
    return runner_of("checkpoint every block", "checkpoint", model, subject.batch)


def _in_groups(network: Network, subject: Subject, size: int) -> Runner:
    """Make every `size` blocks of a container one checkpoint; the last group may be smaller."""
    model = subject.shadow_copy()
    for name in network.containers:
        container: Any = model.get_submodule(name)
        blocks = list(container.children())
        groups = [Group(blocks[start : start + size]) for start in range(0, len(blocks), size)]
        for group in groups:
            _wrap(group)
        replaced = nn.Sequential(*groups) if isinstance(container, nn.Sequential) else nn.ModuleList(groups)
        model.set_submodule(name, replaced)
    return runner_of(f"checkpoint every {size} blocks", "checkpoint", model, subject.batch)


def _selective(subject: Subject, blocks: Sequence[str], count: int) -> Runner:
    """Have the last `count` blocks keep the outputs of expensive operations, the others only their inputs."""
    model = subject.shadow_copy()
    kept = blocks[len(blocks) - count :]
    for name in blocks:
        _wrap(model.get_submodule(name), selective=name in kept)
    is_all = count == len(blocks)
    title = "selective in every block" if is_all else f"last {count} selective, others full"
    return runner_of(title, "selective" if is_all else "mixture", model, subject.batch)


def _wrap(module: nn.Module, selective: bool = False) -> None:
    """Make `module.forward` run under torch's checkpoint."""
    forward = module.forward
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": True}
    if selective:
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, KEPT)

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, **options, **kwargs)

    module.forward = checkpointed
