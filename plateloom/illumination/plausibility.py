"""Whether a flat-field can be true."""

import numpy as np


def doubt_flatfield(flatfield, *, max_range, error=0.0, max_error=np.inf):
    """Say why a flat-field must not be used.

    Parameters
    ----------
    flatfield : ndarray of float, shape (Y, X)
    max_range : float
        Brightest over darkest place of a flat-field that can be true.
    error : float
        Its standard error, as two halves of the fields tell it: RMS of half the difference of the flat-fields estimated
        from either, as a share of 1.
    max_error : float
        The largest that is taken. Beyond, what was found is objects rather than light.

    Returns
    -------
    str
        Empty if nothing speaks against it.

    Examples
    --------
    >>> doubt_flatfield(np.array([[0.5, 1.5]]), max_range=2.0)
    'implausible flat-field: brightest over darkest place is 3, at most 2'
    >>> doubt_flatfield(np.array([[0.9, 1.1]]), max_range=2.0, error=0.1, max_error=0.05)
    'two halves of the fields disagree: standard error 10 %, taken is 5 % at most'
    """
    if not np.isfinite(flatfield).all() or np.min(flatfield) <= 0:
        return "implausible flat-field: it is not positive everywhere"
    reach = np.max(flatfield) / np.min(flatfield)
    if reach > max_range:
        return f"implausible flat-field: brightest over darkest place is {reach:.3g}, at most {max_range:g}"
    if error > max_error:
        return f"two halves of the fields disagree: standard error {100 * error:.2g} %, taken is {100 * max_error:g} % at most"
    return ""
