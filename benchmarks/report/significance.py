"""Student's t distribution and Holm's correction. Written here because the package does not require scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from m3dt_agent.errors import InvalidValueError


def student_p_value(t: float, df: int) -> float:
    """Two-sided p-value of Student's t with an integer number of degrees of freedom (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    angle = math.atan(abs(t) / math.sqrt(df))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = df % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(odd, df - 1, 2):  # odd or even powers of the cosine, up to df - 2
        total += term
        term *= cosine * cosine * (k + 1) / (k + 2)
    inside = 2.0 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, max(0.0, 1.0 - inside))


def student_quantile(probability: float, df: int) -> float:
    """The quantile of Student's t for a probability in (0.5, 1), found by bisection.

    Raises:
        InvalidValueError: the probability is not in (0.5, 1), or df is below 1.
    """
    if not 0.5 < probability < 1.0 or df < 1:
        raise InvalidValueError(f"probability must be in (0.5, 1) and df >= 1; got {probability!r} and {df!r}")
    low, high = 0.0, 1e8
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p_value(middle, df) > 2 * (1 - probability) else (low, middle)
    return (low + high) / 2


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given.

    The i-th smallest of m p-values is multiplied by m - i + 1; the results are made monotonic and at most 1.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
