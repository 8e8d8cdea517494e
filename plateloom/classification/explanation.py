"""What a classifier goes by: how much worse it is without a group of features, on cells of groups that it has not seen."""

import numpy as np

from plateloom.classification.scores import bootstrap_accuracy, count_confusion, interval_of, summarize

MOST_CELLS = 4000


def family_of(feature):
    """Group that a feature is permuted with: compartment and family, or the latents as one.

    Features of a family say nearly the same; permuted one by one each would seem to be of no use, since the others stand in.

    Examples
    --------
    >>> family_of("Nuclei_Texture_Contrast_DNA_3_00_256"), family_of("Latent_Autoencoder_03")
    ('Nuclei Texture', 'Latent Autoencoder')
    """
    return " ".join(feature.split("_")[:2])


def permute_families(X, y, groups, *, features, pipelines, folds, repeats=3, n_bootstrap=500, seed=0):
    """Measure how much accuracy is lost when a family of features is shuffled among held-out cells.

    Parameters
    ----------
    X : array of float, shape (N, F)
        Features of the labeled cells.
    y, groups : array of str, shape (N,)
        As for `plateloom.classification.evaluation.evaluate`.
    features : sequence of str, length F
    pipelines : sequence of sklearn.pipeline.Pipeline
        What that kept of its folds: each is asked about the groups only that it has not seen.
    folds : sequence of dict
        The `folds` that it returned, in the same order.
    repeats : int
        Shuffles, the mean of which is stated.
    n_bootstrap, seed : int

    Returns
    -------
    list of dict
        Per family (see `family_of`): `family`, `features` (how many), `loss` of balanced accuracy with its 95 % interval
        over resampled groups `low`, `high`. The greatest loss first.

    Notes
    -----
    Breiman 2001, doi:10.1023/A:1010933404324, with groups of features. A loss of 0 means that the others suffice, not that the
    family differs in nothing. Up to 4,000 cells, drawn evenly over the folds.
    """
    classes, truth = np.unique(y, return_inverse=True)
    _, member = np.unique(groups, return_inverse=True)
    random = np.random.default_rng(seed)
    quota = -(-MOST_CELLS // max(len(folds), 1))
    held = [random.permutation(np.flatnonzero(np.isin(groups, fold["groups"])))[:quota] for fold in folds]
    rows = np.concatenate(held)
    families = np.array([family_of(name) for name in features])
    n_classes = len(classes)

    def predict(columns=None):
        guess = []
        for pipeline, own in zip(pipelines, held, strict=True):
            values = X[own].copy()
            if columns is not None:
                values[:, columns] = values[random.permutation(len(own))][:, columns]
            guess.append(pipeline.predict(values))
        return np.concatenate(guess)

    def score(guess):
        resampled = bootstrap_accuracy(truth[rows], guess, member[rows], n_classes, n=n_bootstrap, seed=seed)
        return summarize(count_confusion(truth[rows], guess, n_classes))["balanced_accuracy"], resampled

    whole, of_whole = score(predict())
    found = []
    for family in np.unique(families):
        columns = np.flatnonzero(families == family)
        shuffled = [score(predict(columns)) for _ in range(repeats)]
        # the same groups are drawn for every score, so the resamples are paired
        low, high = interval_of(of_whole - np.mean([resampled for _, resampled in shuffled], axis=0))
        loss = whole - float(np.mean([level for level, _ in shuffled]))
        found.append({"family": str(family), "features": len(columns), "loss": loss, "low": low, "high": high})
    return sorted(found, key=lambda row: -row["loss"])
