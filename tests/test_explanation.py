"""What a classifier goes by is found by shuffling families of features among cells that it has not seen."""

import numpy as np
from test_classification_stage import run, screen  # noqa: F401

from plateloom.classification import METHODS
from plateloom.classification.evaluation import evaluate
from plateloom.classification.explanation import permute_families
from plateloom.registry import load_method
from plateloom.report.screen import classifier_section
from plateloom.stages.report import _classifier

FAMILIES = ("Nuclei_Intensity", "Cells_Intensity", "Cells_AreaShape", "Cells_Texture")
FEATURES = [f"{family}_{i}" for family in FAMILIES for i in range(5)]


def cells(seed=0):
    """Two classes in 24 wells; only the intensity of nuclei tells, and five features say the same of it."""
    random = np.random.default_rng(seed)
    X, y, groups = [], [], []
    for well in range(24):
        values = random.normal(random.normal(0, 0.3, 20), 1, (30, 20))
        values[:, :5] = values[:, :1] + 3 * (well % 2) + random.normal(0, 0.05, (30, 5))
        X.append(values)
        y += ["ab"[well % 2]] * 30
        groups += [f"P{well // 12}/A{well:02d}"] * 30
    return np.vstack(X), np.array(y), np.array(groups)


def explain(X, y, groups, method="logistic", **options):
    kept = []
    params = load_method(METHODS, method, "classification method").Params()
    tested = evaluate(X, y, groups, method=method, params=params, kept=kept)
    found = permute_families(X, y, groups, features=FEATURES, pipelines=kept, folds=tested["folds"], **options)
    return found, tested


def test_the_family_that_tells_is_found_and_the_others_cost_nothing():
    found, tested = explain(*cells())
    assert [row["features"] for row in found] == [5] * 4 and found[0]["family"] == "Nuclei Intensity"
    assert tested["balanced_accuracy"] > 0.85
    assert abs(found[0]["loss"] - (tested["balanced_accuracy"] - 0.5)) < 0.06, "at chance without it"
    assert found[0]["low"] <= found[0]["loss"] <= found[0]["high"] and found[0]["low"] > 0.2
    assert all(abs(row["loss"]) < 0.03 for row in found[1:])


def test_one_of_several_features_that_say_the_same_would_seem_useless_by_itself():
    X, y, groups = cells()
    kept = []
    params = load_method(METHODS, "random_forest", "classification method").Params()
    tested = evaluate(X, y, groups, method="random_forest", params=params, kept=kept)
    options = {"pipelines": kept, "folds": tested["folds"], "n_bootstrap": 50}
    alone = [f"Feature_{i}" for i in range(20)]
    largest = permute_families(X, y, groups, features=alone, **options)[0]["loss"]
    assert permute_families(X, y, groups, features=FEATURES, **options)[0]["loss"] > 0.3 > 3 * largest


def test_where_nothing_tells_nothing_is_important():
    X, y, groups = cells()
    losses = []
    for seed in range(5):
        X, _, _ = cells(seed)
        X[:, :5] = np.random.default_rng(seed).normal(size=(len(X), 5))
        found, _ = explain(X, y, groups)
        losses += [row["loss"] for row in found]
        assert sum(row["low"] > 0 for row in found) <= 2
    assert abs(np.mean(losses)) < 0.02


def test_the_same_seed_gives_the_same_numbers():
    assert explain(*cells(), n_bootstrap=50)[0] == explain(*cells(), n_bootstrap=50)[0]


def test_the_card_says_what_the_classifier_goes_by_and_the_page_shows_it(screen):  # noqa: F811
    _, model, _ = run()
    metrics = model["card"]["metrics"]
    (row,) = metrics["importance"]
    assert row["family"] == "Cells Intensity" and row["features"] == 4 and row["loss"] > 0.3
    assert [row["tested_on"] for row in metrics["graded"]] == ["same well", "other well", "other plate", "other batch"]
    assert all(row["balanced_accuracy"] > 0.85 for row in metrics["graded"])
    shown = _classifier([{"status": "done"}], {})
    page = classifier_section(shown)
    assert "Cells Intensity" in page and "other batch" in page
