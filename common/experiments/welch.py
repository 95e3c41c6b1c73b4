"""Welch's t-test: would chance alone make two means differ this much? No torch, no scipy."""
import math


def p_value(difference, *groups):
    """
    The two-sided p-value of a difference between the means of two groups whose variances may differ; None if neither
    group varies. groups: of each (standard deviation of the sample, how many there are, at least 2).
    Welch (1947), https://doi.org/10.2307/2332510
    """
    errors = [deviation / math.sqrt(count) for deviation, count in groups]  # of each mean
    error = math.hypot(*errors)
    if error == 0:
        return None
    degrees = 1 / sum((each / error) ** 4 / (count - 1) for each, (_, count) in zip(errors, groups))
    return two_sided_tail(difference / error, degrees)


def two_sided_tail(t, degrees):
    """P(|T| >= |t|) of Student's t-distribution with `degrees` of freedom, which need not be whole."""
    square = t * t
    if square > 1:
        return incomplete_beta(degrees / (degrees + square), degrees / 2, 0.5)
    # near t = 0 the series for the tail would take too many terms, and at 0 it has no end
    return 1 - incomplete_beta(square / (degrees + square), 0.5, degrees / 2)


def incomplete_beta(x, a, b):
    """
    The regularized incomplete beta function I_x(a, b), 0 <= x < 1, by its series: https://dlmf.nist.gov/8.17.E8. No
    term is negative, so that small values are exact too; the closer x is to 1, the more terms it takes.
    """
    total, term, n = 0.0, 1.0, 0
    while total + term > total:
        total += term
        term *= x * (a + b + n) / (a + 1 + n)
        n += 1
    scale = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)) / a
    return scale * x ** a * (1 - x) ** b * total
