"""Student's t and Holm's correction against scipy and by hand."""

from __future__ import annotations

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.report import significance
from m3dt_agent.errors import InvalidValueError


@pytest.mark.parametrize("df", [1, 2, 3, 4, 9, 10, 99])
def test_students_t_is_scipys(df: int) -> None:
    for t in (0.0, 0.3, 2.0, 7.5):
        assert significance.student_p_value(-t, df) == pytest.approx(2 * scipy.stats.t.sf(t, df), abs=1e-12)
    for probability in (0.6, 0.975, 0.999):
        assert significance.student_quantile(probability, df) == pytest.approx(scipy.stats.t.ppf(probability, df), rel=1e-9)
    for wrong in (0.5, 1.0):
        with pytest.raises(InvalidValueError, match=r"\(0\.5, 1\)"):
            significance.student_quantile(wrong, df)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_adjusts_as_the_step_down_test_decides(p_values: list[float]) -> None:
    adjusted = significance.holm(p_values)
    for level in (0.01, 0.05, 0.3):
        order, rejected = sorted(range(len(p_values)), key=lambda i: p_values[i]), set()
        for rank, i in enumerate(order):  # step down while p ≤ level / (m - rank)
            if (len(p_values) - rank) * p_values[i] > level:
                break
            rejected.add(i)
        assert {i for i, p in enumerate(adjusted) if p <= level} == rejected


def test_holm_of_known_numbers() -> None:
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([]) == []
