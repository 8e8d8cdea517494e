"""What is said of labels: whether they are wrong, unequal, too few, learned worse in some wells; and labels that are numbers."""

import json

import numpy as np
import pandas as pd
import pytest
from test_classification import make_screen, params_of
from threadpoolctl import threadpool_limits

from plateloom.classification import REGRESSORS
from plateloom.classification.evaluation import evaluate
from plateloom.classification.fitting import fit_method, search_params, subsample
from plateloom.classification.learning_curve import learn_by_steps
from plateloom.classification.model import dumps, loads, predict, train
from plateloom.classification.regression import evaluate_numbers
from plateloom.classification.scores import precision_recall
from plateloom.classification.splits import split_groups
from plateloom.registry import load_method


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    with threadpool_limits(1):
        yield


def test_labels_that_were_swapped_are_found():
    X, y, wells, _, _ = make_screen(signal=3.0)
    swapped = np.random.default_rng(0).choice(len(y), 25, replace=False)
    wrong = y.copy()
    wrong[swapped] = np.where(y[swapped] == "a", "b", "a")
    noise = evaluate(X, wrong, wells, method="logistic", params=params_of("logistic"))["noise"]
    found = [one["row"] for one in noise["suspects"][:25]]
    assert len(set(found) & set(swapped)) >= 21
    assert noise["share"] == pytest.approx(25 / len(y), abs=0.02)
    clean = evaluate(X, y, wells, method="logistic", params=params_of("logistic"))["noise"]
    assert clean["share"] < 0.3 * noise["share"]


def test_a_subsample_has_as_many_cells_of_each_class_evenly_over_their_groups():
    truth = np.r_[np.zeros(100, int), np.ones(20, int)]
    groups = np.r_[np.zeros(80, int), np.ones(20, int), np.full(20, 2)].astype(str)
    rows = subsample(truth, groups)
    assert np.bincount(truth[rows]).tolist() == [20, 20]
    assert [(groups[rows] == name).sum() for name in "012"] == [10, 10, 20]
    assert rows.tolist() == subsample(truth, groups).tolist()


@pytest.mark.parametrize("method", ["linear_svm", "logistic", "nearest_neighbors", "random_forest"])
def test_a_rare_class_is_found_with_balance_and_missed_without(method):
    X, y, wells, _, _ = make_screen(signal=0.5, features=6)
    kept = (y == "a") | (np.arange(len(y)) % 12 == 0)
    X, y, wells = X[kept], y[kept], wells[kept]
    recall = {}
    for balance in ("weights", "subsample", "none"):
        settings = {"method": method, "params": params_of(method), "balance": balance, "n_bootstrap": 0}
        found = evaluate(X, y, wells, **settings)
        recall[balance] = found["per_class"][1]["recall"]
    assert recall["weights"] > recall["none"] + 0.05 and recall["subsample"] > recall["none"] + 0.05
    with pytest.raises(ValueError, match="Unknown balance 'smote'"):
        fit_method(X, (y == "b").astype(int), wells, method=method, params=params_of(method), balance="smote")


def test_a_search_finds_the_setting_that_holds_in_other_wells_and_never_sees_the_tested_ones(monkeypatch):
    from plateloom.classification import evaluation

    X, y, wells, _, _ = make_screen(signal=0.6, plates=4)
    poor = params_of("logistic", inverse_penalty=1e-7)
    seen = []

    def spy(X, truth, groups, **options):
        seen.append(set(groups))
        return search_params(X, truth, groups, **options)

    monkeypatch.setattr(evaluation, "search_params", spy)
    tuned = evaluate(X, y, wells, method="logistic", params=poor, tune=True)
    assert len(seen) == 5
    for fold, groups in zip(tuned["folds"], seen, strict=True):
        assert not groups & set(fold["groups"]) and fold["params"]["inverse_penalty"] > 1e-4
    fixed = evaluate(X, y, wells, method="logistic", params=poor)
    assert tuned["balanced_accuracy"] >= fixed["balanced_accuracy"]
    assert "params" not in fixed["folds"][0]


def test_more_labels_help_where_there_are_few_and_not_where_there_are_plenty():
    random = np.random.default_rng(0)
    truth = np.repeat(np.arange(2), 48 * 8)
    groups = np.repeat([f"P{i % 2}/A{i:02d}" for i in range(96)], 8)
    easy = random.normal(6.0 * truth[:, None], 1, (len(truth), 3))
    found = learn_by_steps(easy, truth, groups, method="logistic", params=params_of("logistic"))
    assert found["gain"] == pytest.approx(0, abs=0.01) and found["gain_low"] <= 0 <= found["gain_high"]
    # Thirty phenotypes of two classes: who has not seen one cannot know its class.
    kind = np.arange(96) % 30
    centers = random.normal(0, 4, (30, 5))[kind]
    truth = np.repeat(random.integers(2, size=30)[kind], 8)
    hard = np.repeat(centers, 8, axis=0) + random.normal(0, 1, (len(truth), 5))
    options = {"method": "nearest_neighbors", "params": params_of("nearest_neighbors", n_neighbors=5)}
    found = learn_by_steps(hard, truth, groups, **options)
    assert [row["groups"] for row in found["steps"]] == [8, 16, 32, 64]
    assert found["gain_low"] > 0
    assert found["steps"][-1]["balanced_accuracy"] > found["steps"][0]["balanced_accuracy"] + 0.1
    some = np.isin(groups, np.unique(groups)[:12])
    assert len(learn_by_steps(easy[some], np.arange(some.sum()) % 2, groups[some], **options)["steps"]) == 3
    few = learn_by_steps(easy[:8], truth[:8], groups[:8], **options)
    assert few["steps"] == [] and few["gain"] is None


def test_subgroups_show_the_plate_on_which_a_classifier_fails():
    X, y, wells, plates, _ = make_screen(signal=2.0)
    turned = plates == "P3"
    y = y.copy()
    y[turned] = np.where(y[turned] == "a", "b", "a")  # as if the plate map of one plate were turned round
    categories = {"plate": plates, "batch": np.full(len(y), "")}
    rows = evaluate(X, y, wells, method="logistic", params=params_of("logistic"), categories=categories)["subgroups"]
    assert [row["part"] for row in rows] == [f"P{i}" for i in range(6)] and {row["by"] for row in rows} == {"plate"}
    score = {row["part"]: row["balanced_accuracy"] for row in rows}
    assert score["P3"] < 0.4 and min(score[name] for name in score if name != "P3") > 0.8
    assert all(row["low"] <= row["balanced_accuracy"] <= row["high"] for row in rows)
    assert rows[0]["cells"] == 16 * 12 and rows[0]["groups"] == 16


def test_a_plate_that_is_held_out_has_an_interval_over_its_wells():
    X, y, wells, plates, _ = make_screen(signal=2.0)
    options = {
        "method": "logistic",
        "params": params_of("logistic"),
        "scheme": "plate",
        "categories": {"plate": plates},
    }
    found = evaluate(X, y, plates, wells=wells, **options)
    for row in [*found["folds"], *found["subgroups"]]:
        assert row["low"] <= row["balanced_accuracy"] <= row["high"] and row["high"] - row["low"] < 0.5
    assert [row["groups"] for row in found["folds"]] == [[f"P{i}"] for i in range(6)]
    plain = evaluate(X, y, plates, **options)
    assert {row["low"] for row in plain["folds"]} == {None}, "a single group cannot be resampled"


def test_precision_and_recall_are_those_of_counting():
    truth = np.array([0, 0, 1, 1])
    probability = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.8, 0.2]])
    of_first, of_second = precision_recall(truth, probability, 2)
    assert of_first["precision"][:10] == [1.0] * 10, "the surest cell is right: recall 0.5 with precision 1"
    assert of_first["precision"][10:] == pytest.approx([2 / 3] * 10, abs=1e-4)
    assert of_second["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 0.5 + 0, abs=0.2)


def test_errors_are_split_into_false_positives_and_false_negatives():
    X, y, wells, _, _ = make_screen(signal=0.3, classes=("a", "b", "c"))
    found = evaluate(X, y, wells, method="logistic", params=params_of("logistic"), n_bootstrap=0)
    confusion = np.array(found["confusion"])
    wrong = confusion.sum() - np.trace(confusion)
    assert wrong > 0 and found["error"] == pytest.approx(wrong / len(y))
    for kind in ("false_positives", "false_negatives"):
        assert sum(row[kind] for row in found["per_class"]) == wrong
    assert found["per_class"][1]["false_positives"] == confusion[[0, 2], 1].sum()


def test_batches_are_held_out_whole_and_classes_are_dealt_evenly_on_every_plate():
    X, y, wells, plates, _ = make_screen(signal=1.5)
    batches = np.where(np.isin(plates, ["P0", "P1"]), "B1", np.where(plates == "P2", "B2", "B3"))
    found = evaluate(X, y, batches, method="logistic", params=params_of("logistic"), scheme="batch")
    assert [fold["groups"] for fold in found["folds"]] == [["B1"], ["B2"], ["B3"]]
    with pytest.raises(ValueError, match="fewer than 2 batches"):
        evaluate(X, y, np.full(len(y), "B1"), method="logistic", params=params_of("logistic"), scheme="batch")
    truth = (y == "b").astype(int)
    for train_rows, test in split_groups(truth, wells, folds=4, scheme="well"):
        assert not set(wells[train_rows]) & set(wells[test])
        for plate in np.unique(plates):
            held = truth[test][plates[test] == plate]
            assert held.mean() == 0.5, "as many wells of either class of each plate"


@pytest.mark.parametrize("method", sorted(REGRESSORS))
def test_numbers_are_learned_from_other_wells_stored_and_applied(method):
    X, dose, wells, names = make_doses(signal=1.0)
    params = load_method(REGRESSORS, method, "method").Params(
        **({"n_trees": 40} if method == "forest_regression" else {})
    )
    kept = []
    found = evaluate_numbers(X, dose, wells, method=method, params=params, kept=kept)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["r2"] > 0.6 and found["spearman"] > 0.75 and found["group_spearman"] > 0.9
    assert found["r2_low"] < found["r2"] < found["r2_high"] and len(kept) == 5
    held = [set(fold["groups"]) for fold in found["folds"]]
    assert set.union(*held) == set(wells) and sum(map(len, held)) == len(set(wells))
    model = train(X, dose, wells, features=names, method=method, params=params, metrics=found, folds=kept)
    again = loads(dumps(model))
    X, dose, _, _ = make_doses(signal=1.0, seed=1)
    table = predict(again, pd.DataFrame(X, columns=names))
    assert list(table.columns) == ["Class", "Predicted", "Novelty"] and table["Predicted"].dtype == np.float32
    assert np.corrcoef(table["Predicted"], dose)[0, 1] > 0.75
    inside = np.abs(table["Predicted"] - dose) <= found["half_width"]
    assert 0.8 < inside.mean() < 0.98


def test_a_plate_whose_numbers_are_predicted_too_high_shows():
    X, dose, wells, _ = make_doses(signal=1.0)
    names = np.unique(wells)
    plates = np.where(np.isin(wells, names[: len(names) // 3]), "P1", "P2")
    dose = dose - 3.0 * (plates == "P1")  # as if the plate had been labeled on another scale
    options = {"method": "ridge", "params": load_method(REGRESSORS, "ridge", "method").Params()}
    categories = {"plate": plates, "batch": np.full(len(plates), "")}
    rows = evaluate_numbers(X, dose, wells, categories=categories, **options)["subgroups"]
    assert [(row["by"], row["part"]) for row in rows] == [("plate", "P1"), ("plate", "P2")], (
        "what divides nothing is left out"
    )
    assert rows[0]["low"] > 1 and rows[1]["high"] < 0 and rows[0]["groups"] + rows[1]["groups"] == len(names)
    assert rows[0]["mean_error"] >= rows[0]["bias"] > 1


def test_numbers_without_relation_are_not_predicted_and_bad_ones_are_refused():
    ridge = load_method(REGRESSORS, "ridge", "method").Params()
    scores = []
    for seed in range(20):
        X, dose, wells, _ = make_doses(signal=0.0, seed=seed, wells=30)
        scores.append(evaluate_numbers(X, dose, wells, method="ridge", params=ridge, n_bootstrap=0)["group_spearman"])
    assert abs(np.mean(scores)) < 0.12 and np.mean(scores) < 3 * np.std(scores) / np.sqrt(20)
    X, dose, wells, _ = make_doses()
    settings = {"method": "ridge", "params": ridge}
    with pytest.raises(ValueError, match="A label is no number"):
        evaluate_numbers(X, np.where(dose > 1, "high", "low"), wells, **settings)
    with pytest.raises(ValueError, match="no finite number"):
        evaluate_numbers(X, np.where(dose > 1, np.nan, dose), wells, **settings)
    with pytest.raises(ValueError, match="the same number"):
        evaluate_numbers(X, np.ones(len(dose)), wells, **settings)
    with pytest.raises(ValueError, match="60 wells for 61 folds"):
        evaluate_numbers(X, dose, wells, folds=61, **settings)


def make_doses(*, signal=1.0, seed=0, wells=60, cells=15, features=8):
    """Cells of wells with a dose of 0, 1, 2 or 3 that moves one direction of the features, and well effects."""
    random = np.random.default_rng(seed)
    dose = np.repeat(random.permutation(np.arange(wells) % 4), cells).astype(float)
    well = np.repeat(np.arange(wells), cells)
    X = random.normal(0, 0.4, (wells, features))[well] + random.normal(0, 0.5, (len(dose), features))
    X[:, :3] += signal * dose[:, None]
    names = [f"Cells_AreaShape_F{i}" for i in range(features)]
    return X, dose, np.array([f"P{i % 3}/A{i:02d}" for i in well]), names
