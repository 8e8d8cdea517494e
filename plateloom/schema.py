"""What a model was fitted on: the digest that it and the tables it meets are compared by."""

import hashlib


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
