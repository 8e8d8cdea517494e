"""Which labels are likely wrong: cells that models of other groups are sure are of another class."""

import numpy as np

MOST = 30


def find_suspects(probability, truth, *, most=MOST):
    """Find labels that are likely wrong, by confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068).

    Parameters
    ----------
    probability : array of float, shape (N, K)
        Of held-out cells: by a model that has seen neither the label nor others of the cell's group.
    truth : array of int, shape (N,)
        The labels.
    most : int
        Suspects listed at most.

    Returns
    -------
    dict
        `share` of labels that are suspect, `per_class` (the same by label), and `suspects`, the most likely ones: rows of
        `row` (of the arrays), `label`, `looks_like` (classes as int), `probability` of the latter.

    Notes
    -----
    A cell counts for a class if its probability is at least the mean probability of the cells so labeled. Labels whose cell counts
    for another class than its own, and most for that, are suspect. Where whole wells are labeled this also finds cells that the
    treatment has left as they were.
    """
    n, n_classes = probability.shape
    usual = np.array([probability[truth == c, c].mean() if (truth == c).any() else 1.0 for c in range(n_classes)])
    counted = np.where(probability >= usual, probability, -1.0)
    looks = counted.argmax(axis=1)
    suspect = (counted.max(axis=1) > 0) & (looks != truth)
    margin = probability[np.arange(n), looks] - probability[np.arange(n), truth]
    rows = np.flatnonzero(suspect)
    rows = rows[np.argsort(-margin[rows], kind="stable")][:most]
    return {
        "share": float(suspect.mean()),
        "per_class": [float(suspect[truth == c].mean()) if (truth == c).any() else 0.0 for c in range(n_classes)],
        "suspects": [
            {
                "row": int(i),
                "label": int(truth[i]),
                "looks_like": int(looks[i]),
                "probability": round(float(probability[i, looks[i]]), 4),
            }
            for i in rows
        ],
    }
