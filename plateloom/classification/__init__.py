"""Classes of cells: what an analyst labeled, learned by a method, honestly tested, applied to every cell.

A method is one module with its own pydantic `Params`, the `GRID` that a search tries, and ``build(params, *, weights)``, which returns an
unfitted scikit-learn estimator, with `weights` one to which cells of rare classes count more; gaps are filled and features scaled
before it (`plateloom.classification.fitting.make_pipeline`). Nothing heavy is imported to learn its name. `plateloom.classification.evaluation` tests a method on wells, plates
or batches that it has not seen (there is no way to test it on other cells of the same wells), `plateloom.classification.model`
trains, applies and stores it. Where labels are numbers, `plateloom.classification.regression` tests one of `REGRESSORS`, which have no
weights and no grid. What learns from crops of cells instead of a table stands in `CROP_METHODS`; it keeps to the same interface, but
scales its crops itself, and is told the groups of its cells, some of which it keeps for tuning.
"""

METHODS = {
    "gradient_boosting": "plateloom.classification.gradient_boosting",
    "linear_svm": "plateloom.classification.linear_svm",
    "logistic": "plateloom.classification.logistic",
    "nearest_neighbors": "plateloom.classification.nearest_neighbors",
    "random_forest": "plateloom.classification.random_forest",
}

CROP_METHODS = {"cnn": "plateloom.classification.cnn"}

REGRESSORS = {  # of numbers: a dose, a count, a score
    "forest_regression": "plateloom.classification.forest_regression",
    "ridge": "plateloom.classification.ridge",
}
