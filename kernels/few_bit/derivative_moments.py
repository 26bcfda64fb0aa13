"""Integrals of a derivative and its square under a weight, up to an input or up to a value of the derivative."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from .activations import Activation
from .input_weights import InputWeight

# Activations bend near zero, so inputs there are sampled at any scale of the weight.
_BENDS = np.linspace(-20.0, 20.0, 161)
_PANELS = 64
_MOST_PANELS = 100_000
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(10)
_HALVINGS = 64
# The precision of a crossing, relative to its input.
_FINEST = 1e-14


@dataclass(frozen=True)
class SlopeMoments:
    """The moments of f' under a weight w on its support, in panels within which both are smooth.

    edges: of the panels [P + 1], increasing.
    sums: integrals of w, w (f' - center), w (f' - center)^2 up to each edge [3, P + 1].
    center: the mean of f', subtracted so that nothing cancels.
    turns: inputs between each two of which f' is monotone [T + 1]; the first and the last are the support's ends.
    turn_slopes: f' at the turns [T + 1].
    """

    activation: Activation
    weight: InputWeight
    center: float
    edges: np.ndarray
    sums: np.ndarray
    turns: np.ndarray
    turn_slopes: np.ndarray

    @property
    def lowest(self) -> float:
        """Return the least value of f' on the support."""
        return float(self.turn_slopes.min())

    @property
    def highest(self) -> float:
        """Return the greatest value of f' on the support."""
        return float(self.turn_slopes.max())

    @property
    def spread(self) -> float:
        """Return the integral of w (f' - its mean)^2: the error of one level for all inputs."""
        return float(squared_error(self.sums[:, -1]))

    @property
    def rounding(self) -> float:
        """Return the uncertainty of sums of squared errors."""
        return 1e-12 * float(self.sums[2, -1]) + 1e-30

    def up_to(self, x: np.ndarray) -> np.ndarray:
        """Return the three integrals up to x (float64, any shape, within the support): [3, *x.shape]."""
        panel = np.clip(np.searchsorted(self.edges, x, "right") - 1, 0, len(self.edges) - 2)
        begun = integrate(self.activation, self.weight, self.center, self.edges[panel], x)
        return self.sums[:, panel] + begun

    def up_to_slope(self, slope: np.ndarray) -> np.ndarray:
        """Return the three integrals over all inputs at which f' is not above a slope (any shape): [3,
        *slope.shape].
        """
        at_ends = self.up_to(self.turns).reshape(3, -1, *[1] * slope.ndim)
        crossed = self.up_to(self.where(slope))
        rises = self.rises.reshape(-1, *[1] * slope.ndim)
        return np.where(rises, crossed - at_ends[:, :-1], at_ends[:, 1:] - crossed).sum(1)

    @cached_property
    def rises(self) -> np.ndarray:
        """Return whether f' rises from each turn to the next [T]."""
        return self.turn_slopes[1:] >= self.turn_slopes[:-1]

    @cached_property
    def _marks(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return, for each stretch between turns, inputs from end to end and f' between the ends.

        f' is made monotone despite rounding.
        """
        stretches = []
        for low, high, rises in zip(self.turns[:-1], self.turns[1:], self.rises, strict=True):
            inner = self.edges[(self.edges > low) & (self.edges < high)]
            slopes = self.activation.slopes(inner)
            slopes = np.maximum.accumulate(slopes) if rises else -np.maximum.accumulate(-slopes)
            stretches.append((np.concatenate([[low], inner, [high]]), slopes))
        return stretches

    def where(self, slope: np.ndarray) -> np.ndarray:
        """Return the inputs between each two turns at which f' passes a slope (any shape), or their nearer end [T,
        *slope.shape].

        More exactly, where f' rises: the end of the inputs at which f' <= slope; where it falls: their beginning.
        """
        left, right = [], []
        for (marks, slopes), rises in zip(self._marks, self.rises, strict=True):
            below = np.searchsorted(slopes, slope, "right") if rises else np.searchsorted(-slopes, -slope, "left")
            left.append(marks[below])
            right.append(marks[below + 1])
        signs = np.where(self.rises, 1.0, -1.0).reshape(-1, *[1] * slope.ndim)
        return _crossing(self.activation, slope, np.stack(left), np.stack(right), signs)


def squared_error(sums: np.ndarray) -> np.ndarray:
    """Return the error of the best single level for a set of inputs [...], from its three integrals [3, ...]."""
    weight, first, second = sums
    mean = np.divide(first, weight, out=np.zeros_like(first), where=weight > 0)
    return np.maximum(second - mean * first, 0.0)


@lru_cache(maxsize=16)
def slope_moments(activation: Activation, weight: InputWeight) -> SlopeMoments:
    """Return the moments, with panels halved until ten Gauss-Legendre nodes and twice ten agree to rounding.

    Raises ValueError where f' is not finite, or so rough that a hundred thousand panels do not suffice.
    """
    low, high = weight.support
    inner = np.concatenate([np.linspace(low, high, _PANELS + 1), _BENDS, activation.breakpoints, weight.edges])
    start = np.unique(np.concatenate([[low, high], inner[(inner > low) & (inner < high)]]))
    rough = integrate(activation, weight, 0.0, start[:-1], start[1:]).sum(1)
    center = float(rough[1] / rough[0])
    edges = _resolved(activation, weight, center, start)
    parts = integrate(activation, weight, center, edges[:-1], edges[1:])
    sums = np.concatenate([np.zeros((3, 1)), np.cumsum(parts, 1)], 1)
    return SlopeMoments(activation, weight, center, edges, sums, *_turns(activation, edges))


def _crossing(
    activation: Activation, slope: np.ndarray, left: np.ndarray, right: np.ndarray, signs: np.ndarray
) -> np.ndarray:
    """Return the inputs at which sign f' passes sign slope between left and right (all broadcast to the shape of left).

    The ITP method: superlinear where f' is smooth, and never more than a step slower than bisection.
    Source: Oliveira and Takahashi, ACM TOMS 47 (2020), article 5.
    """
    shape = left.shape
    target, signs = np.broadcast_to(slope, shape).ravel(), np.broadcast_to(signs, shape).ravel()
    left, right = left.ravel().copy(), right.ravel().copy()
    far_left, far_right = (signs * (activation.slopes(end) - target) for end in (left, right))
    width = right - left
    finest = _FINEST * (np.abs(left) + np.abs(right)) + 1e-300
    unsettled = np.flatnonzero(width > finest)
    for step in range(_HALVINGS):
        if not len(unsettled):
            break
        a, b = left[unsettled], right[unsettled]
        x = _next_guess(a, b, far_left[unsettled], far_right[unsettled], width[unsettled], step)
        sign = signs[unsettled]
        beyond = sign * (activation.slopes(x) - target[unsettled])
        # where f' equals the slope over a stretch, that belongs to the inputs at which f' <= slope
        before = np.where(sign > 0, beyond <= 0, beyond < 0)
        left[unsettled], right[unsettled] = np.where(before, x, a), np.where(before, b, x)
        far_left[unsettled[before]] = beyond[before]
        far_right[unsettled[~before]] = beyond[~before]
        unsettled = unsettled[right[unsettled] - left[unsettled] > finest[unsettled]]
    return (0.5 * (left + right)).reshape(shape)


def _next_guess(
    a: np.ndarray, b: np.ndarray, below: np.ndarray, above: np.ndarray, width: np.ndarray, step: int
) -> np.ndarray:
    """Return ITP's next input between a and b, where the function is below and above zero: interpolate, truncate,
    project.
    """
    middle, rise = 0.5 * (a + b), above - below
    safe = np.where(rise > 0, rise, 1.0)
    secant = np.where(rise > 0, (a * above - b * below) / safe, middle)
    away = middle - secant
    truncated = secant + np.copysign(np.minimum(0.2 * (b - a) ** 2 / width, np.abs(away)), away)
    reach = np.maximum(width * 0.5**step - 0.5 * (b - a), 0.0)
    x = np.clip(truncated, middle - reach, middle + reach)
    return np.where((x > a) & (x < b), x, middle)


def integrate(
    activation: Activation, weight: InputWeight, center: float | np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Return the integrals of w, w (f' - center), w (f' - center)^2 from low to high: [3, *low.shape].

    They are computed by Gauss and Legendre. center: a number, or one for each interval [*low.shape, 1].
    """
    half = 0.5 * (high - low)
    x = (low + half)[..., None] + half[..., None] * _NODES
    mass = weight.density(x) * _NODE_WEIGHTS * half[..., None]
    slopes = activation.slopes(x) - center
    return np.stack([mass.sum(-1), (mass * slopes).sum(-1), (mass * slopes * slopes).sum(-1)])


def _resolved(activation: Activation, weight: InputWeight, center: float, start: np.ndarray) -> np.ndarray:
    """Return the edges of panels that need no more halving."""
    low, high = start[:-1], start[1:]
    done = [start]
    total = np.abs(integrate(activation, weight, center, low, high)).sum(1)
    while len(low):
        middle = 0.5 * (low + high)
        whole = integrate(activation, weight, center, low, high)
        parts = integrate(activation, weight, center, low, middle) + integrate(activation, weight, center, middle, high)
        differs = np.abs(whole - parts) > 1e-14 * total[:, None] + 1e-300
        width = 1e-14 * (np.abs(low) + np.abs(high)) + 1e-15 * (start[-1] - start[0])
        split = differs.any(0) & (high - low > width)
        done.append(middle[split])
        low, high = np.concatenate([low[split], middle[split]]), np.concatenate([middle[split], high[split]])
        if sum(map(len, done)) > _MOST_PANELS:
            raise ValueError(
                f"the derivative of {activation.name} is too rough under {weight}: more than {_MOST_PANELS:,} "
                "pieces are not smooth; choose a narrower weight or a smoother function"
            )
    return np.unique(np.concatenate(done))


def _turns(activation: Activation, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs at which f' turns from rising to falling or back, with both ends, and f' there."""
    inside = (edges[:-1] + 0.5 * (edges[1:] - edges[:-1]))[:, None] + 0.5 * np.diff(edges)[:, None] * _NODES
    x = np.unique(np.concatenate([edges, inside.ravel()]))
    slopes = activation.slopes(x)
    places = [0, *_extremes(slopes, 1e-11 * max(float(np.ptp(slopes)), 1e-300)), len(x) - 1]
    turns, turn_slopes = x[places], slopes[places]
    for turn in range(1, len(places) - 1):
        peak = slopes[places[turn]] > slopes[places[turn - 1]]
        near = slice(max(places[turn] - 1, 0), places[turn] + 2)
        turns[turn], turn_slopes[turn] = _sharpened(activation, x[near], 1 if peak else -1)
    return turns, turn_slopes


def _extremes(slopes: np.ndarray, noise: float) -> list[int]:
    """Return indices of the inner values from which the sequence turns by more than noise, highs and lows in turn."""
    extremes: list[int] = []
    high = low = 0
    direction = 0
    for place, slope in enumerate(slopes.tolist()):
        if slope > slopes[high]:
            high = place
        if slope < slopes[low]:
            low = place
        if direction >= 0 and slope < slopes[high] - noise:
            extremes += [high] if direction > 0 else []
            direction, low, high = -1, place, place
        elif direction <= 0 and slope > slopes[low] + noise:
            extremes += [low] if direction < 0 else []
            direction, low, high = 1, place, place
    return extremes


def _sharpened(activation: Activation, x: np.ndarray, sign: int) -> tuple[float, float]:
    """Return the input between the first and the last of x at which sign f' is greatest, by ever finer samples, and
    f' there.
    """
    best, slope = x[1], activation.slopes(x[1:2])[0]
    low, high = x[0], x[-1]
    for _ in range(12):
        sampled = np.linspace(low, high, 17)
        slopes = activation.slopes(sampled)
        place = int(np.argmax(sign * slopes))
        if sign * slopes[place] > sign * slope:
            best, slope = sampled[place], slopes[place]
        low, high = sampled[max(place - 1, 0)], sampled[min(place + 1, 16)]
    return float(best), float(slope)
