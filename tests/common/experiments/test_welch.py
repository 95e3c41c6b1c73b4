"""Welch's t-test gives the p-values of tables, of closed forms and of R."""
import math
import statistics

import pytest

from common.experiments import welch

# (x, y, the p-value of R's t.test(x, y)): the three are Student's data on sleep (1908), as on R's page on t.test, and
# two pairs with different numbers from https://rosettacode.org/wiki/Welch%27s_t-test
EXAMPLES = [
    ([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0], [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
     pytest.approx(0.07939, abs=5e-6)),
    ([3.0, 4.0, 1.0, 2.1], [490.2, 340.0, 433.9], pytest.approx(0.0107515611497845, rel=1e-9)),
    ([17.2, 20.9, 22.6, 18.1, 21.7, 21.4, 23.5, 24.2, 14.7, 21.8],
     [21.5, 22.8, 21.0, 23.0, 21.6, 23.6, 22.5, 20.7, 23.4, 21.8, 20.7, 21.7, 21.5, 22.5, 23.6, 21.5, 22.5, 23.5, 21.5,
      21.8], pytest.approx(0.148841696605327, rel=1e-9))]


def p_value(x, y):
    return welch.p_value(statistics.mean(x) - statistics.mean(y), *((statistics.stdev(z), len(z)) for z in (x, y)))


@pytest.mark.parametrize('t, degrees, p', [(12.706, 1, 0.05), (4.303, 2, 0.05), (2.776, 4, 0.05), (2.228, 10, 0.05),
                                           (1.984, 100, 0.05), (3.169, 10, 0.01), (0.700, 10, 0.5), (0.727, 5, 0.5)])
def test_the_tail_of_students_t_is_as_in_tables(t, degrees, p):
    step = 5e-4  # the tables' t is rounded: p lies between those of its neighbours
    assert welch.two_sided_tail(t + step, degrees) < p < welch.two_sided_tail(t - step, degrees)


@pytest.mark.parametrize('t', [0.0, 1e-6, 0.5, 1.0, 1.001, 2.0, 50.0, 1e6])
def test_the_tail_of_students_t_is_exact_however_small_it_is(t):
    for sign in (1, -1):
        assert welch.two_sided_tail(sign * t, 1) == pytest.approx(math.atan2(1, t) * 2 / math.pi, rel=1e-9, abs=0)
        root = math.sqrt(2 + t * t)
        assert welch.two_sided_tail(sign * t, 2) == pytest.approx(2 / (root * (root + t)), rel=1e-9, abs=0)


@pytest.mark.parametrize('t, degrees, p', [(2.0, 10, 0.07338803477074), (9.0, 40.5, 3.287744573228e-11),
                                           (math.inf, 3.5, 0.0)])
def test_any_degrees_of_freedom_give_an_exact_tail(t, degrees, p):  # p by mpmath's betainc
    assert welch.two_sided_tail(t, degrees) == pytest.approx(p, rel=1e-9, abs=0)


@pytest.mark.parametrize('x, y, p', EXAMPLES)
def test_p_values_are_those_of_r(x, y, p):
    assert p_value(x, y) == p == p_value(y, x)


@pytest.mark.parametrize('scale', [1e-200, 1e200])
def test_the_unit_of_the_values_does_not_matter(scale):
    x, y, p = EXAMPLES[1]
    assert p_value([scale * value for value in x], [scale * value for value in y]) == p


def test_without_any_deviation_nothing_is_known_of_chance():
    assert p_value([1.5, 1.5], [1.5, 1.5, 1.5]) is None and p_value([1.5, 1.5], [1.6, 1.6]) is None


def test_a_group_without_deviation_leaves_the_degrees_of_freedom_to_the_other_one():
    # three values have 2 degrees of freedom, and t is sqrt(3)
    assert p_value([1.0, 1.0], [1.0, 2.0, 3.0]) == pytest.approx(1 - math.sqrt(3 / 5), rel=1e-9)
