"""Classes of cells: what an analyst labeled, learned by a method, honestly tested, applied to every cell.

A method is one module with its own pydantic `Params` and ``build(params)``, which returns a scikit-learn pipeline;
nothing heavy is imported to learn its name. `plateloom.classification.evaluation` tests a method on wells or plates
that it has not seen (there is no way to test it on other cells of the same wells), `plateloom.classification.model`
trains, applies and stores it.
"""

METHODS = {
    "gradient_boosting": "plateloom.classification.gradient_boosting",
    "logistic": "plateloom.classification.logistic",
    "random_forest": "plateloom.classification.random_forest",
}
