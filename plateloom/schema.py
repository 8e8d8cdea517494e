"""What a model was fitted on: the digest that it and the tables it meets are compared by."""

import hashlib
import re


def schema_hash(features):
    """Digest an ordered list of feature names: what a model was fitted on, and what it is applied to.

    Parameters
    ----------
    features : sequence of str

    Returns
    -------
    str
        12 hexadecimal digits.

    Examples
    --------
    >>> schema_hash(["a", "b"]) == schema_hash(["b", "a"])
    False
    """
    return hashlib.sha256("\n".join(features).encode()).hexdigest()[:12]


def is_angle(name):
    """Whether a feature is an angle, which has no ends: two cells of +179° and -179° are alike.

    >>> is_angle("Cells_RadialDistribution_ZernikePhase_DNA_6_6"), is_angle("Cells_AreaShape_Orientation_um")
    (True, False)
    """
    return re.search(r"_ZernikePhase_|_AngleBetweenNeighbors_|_Orientation$", str(name)) is not None
