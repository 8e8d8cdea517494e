"""95 % intervals over resampled groups, and how few groups are too few for one."""

import math

import numpy as np

MIN_UNITS = 5  # plates, wells, treatments: with fewer there is no interval


def tail_of(units, confidence=0.95):
    """Share of resampled means beyond either end of an interval, for so many units.

    Percentiles are taken as far out as makes up for few units (Hesterberg 2015, doi:10.1080/00031305.2015.1089789): without,
    the interval of five units would hold the truth in 84 % of cases instead of 95 %.
    """
    from scipy.stats import norm, t

    return float(norm.cdf(-math.sqrt(units / (units - 1)) * t.ppf((1 + confidence) / 2, units - 1)))


def interval_of(resampled, units, *, confidence=0.95):
    """Interval of a figure, from its values over resampled units.

    Parameters
    ----------
    resampled : array of float, shape (R,)
    units : int
        That were resampled: groups, plates, treatments.
    confidence : float in (0, 1)

    Returns
    -------
    low, high : float or None
        None without values, or with fewer than `MIN_UNITS` units.

    Examples
    --------
    >>> interval_of([0.5, 0.6, 0.7], 4)
    (None, None)
    """
    if units < MIN_UNITS or not len(resampled):
        return None, None
    tail = tail_of(units, confidence)
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)
