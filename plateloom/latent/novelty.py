"""Which cells an autoencoder does not know: what it restores badly is debris, or new."""

import math

import numpy as np

MAD_TO_SD = 1.482602218505602


def error_limit(errors, spread=4.0):
    """Find the reconstruction error from which on a cell is unlike those that the model knows.

    Parameters
    ----------
    errors : array of float, shape (N,)
        Of cells that were not trained on.
    spread : float
        How far the limit lies above the median of the errors' logarithms [robust SD].

    Returns
    -------
    float
        NaN without errors.

    Examples
    --------
    >>> round(error_limit([0.1, 0.1, 0.2, 0.2, 0.2, 0.4, 0.4], spread=2), 2)
    1.56
    """
    errors = np.asarray(errors, dtype=float)
    logs = np.log(errors[np.isfinite(errors) & (errors > 0)])
    if not len(logs):
        return math.nan
    middle = np.median(logs)
    return float(np.exp(middle + spread * MAD_TO_SD * np.median(np.abs(logs - middle))))
