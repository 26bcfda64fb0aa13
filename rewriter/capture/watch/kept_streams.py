"""Restore the random streams of a process after code that may draw from them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


class Streams:
    """The saved states of the streams of torch (the CPU's and one device's), numpy and Python."""

    def __init__(self, device: torch.device) -> None:
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            self._generators.append(torch.cuda.default_generators[device.index or torch.cuda.current_device()])
        self._states = [generator.get_state() for generator in self._generators]
        self._others = random.getstate(), numpy.random.get_state()

    def moved(self) -> bool:
        """Return whether the state of a torch generator has changed since."""
        now = [generator.get_state() for generator in self._generators]
        return not all(map(torch.equal, now, self._states))

    def restart(self) -> None:
        """Restore torch's generators. The other streams stay, since they cannot be replayed."""
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)

    def restore(self) -> None:
        """Restore all streams."""
        if self.moved():
            self.restart()
        python, arrays = self._others
        random.setstate(python)
        numpy.random.set_state(arrays)


@contextmanager
def random_streams_kept(device: torch.device) -> Iterator[Streams]:
    """Restore all streams when the context ends."""
    streams = Streams(device)
    try:
        yield streams
    finally:
        streams.restore()
