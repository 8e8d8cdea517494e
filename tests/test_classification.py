"""Classification: honest splits, refusals, storage without pickle, novelty."""

import hashlib
import json
import pickle

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support
from sklearn.model_selection import KFold, cross_val_predict
from threadpoolctl import threadpool_limits

from plateloom.classification import METHODS
from plateloom.classification.evaluation import evaluate
from plateloom.classification.fitting import make_pipeline
from plateloom.classification.gradient_boosting import sort_once
from plateloom.classification.model import Classifier, dumps, loads, predict, train
from plateloom.errors import ModelMismatchError
from plateloom.registry import load_method


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    with threadpool_limits(1):  # OpenMP's threads spin against each other on a busy machine
        yield


FAST = {
    "random_forest": {"n_trees": 25},
    "gradient_boosting": {"n_rounds": 15},
    "logistic": {},
    "linear_svm": {},
    "nearest_neighbors": {},
}


def params_of(method, **more):
    return load_method(METHODS, method, "classification method").Params(**FAST[method] | more)


def make_screen(seed=0, *, signal=0.0, classes=("a", "b"), plates=6, wells=16, cells=12, features=15):
    """Labeled cells of a screen in which each well and each plate looks a little different.

    Classes are dealt to wells at random, as many to each on every plate; `signal` is the shift between classes in
    units of the cells' spread.
    """
    random = np.random.default_rng(seed)
    X, y, well_names, plate_names = [], [], [], []
    directions = np.random.default_rng(7).normal(size=(len(classes), features))
    for plate in range(plates):
        plate_effect = random.normal(0, 1, features)
        dealt = random.permutation(np.arange(wells) % len(classes))
        for well, chosen in enumerate(dealt):
            center = plate_effect + random.normal(0, 1, features) + signal * directions[chosen]
            X.append(random.normal(center, 0.5, (cells, features)))
            y += [classes[chosen]] * cells
            well_names += [f"P{plate}/A{well + 1:02d}"] * cells
            plate_names += [f"P{plate}"] * cells
    X = np.concatenate(X)
    names = [f"Cells_AreaShape_F{i}" for i in range(features)]
    return X, np.array(y), np.array(well_names), np.array(plate_names), names


def test_a_screen_without_signal_is_at_chance_by_group_where_a_random_split_claims_success():
    few, params = (params_of("random_forest", min_cells_per_leaf=1, n_trees=n) for n in (6, 12))
    by_well, by_plate, by_cell = [], [], []
    for seed in range(20):
        X, y, wells, plates, _ = make_screen(seed, cells=8)
        settings = {"method": "random_forest", "params": few, "n_bootstrap": 0}
        by_well.append(evaluate(X, y, wells, scheme="well", **settings)["balanced_accuracy"])
        by_plate.append(evaluate(X, y, plates, scheme="plate", **settings)["balanced_accuracy"])
        if seed < 3:
            pipeline = make_pipeline(load_method(METHODS, "random_forest", "method").build(params))
            guessed = cross_val_predict(pipeline, X, y, cv=KFold(5, shuffle=True, random_state=seed))
            by_cell.append(balanced_accuracy_score(y, guessed))
    assert np.mean(by_cell) > 0.85
    assert abs(np.mean(by_well) - 0.5) < 0.03
    assert abs(np.mean(by_plate) - 0.5) < 0.03


@pytest.mark.parametrize(
    ("method", "tune"),
    [
        ("linear_svm", False),
        ("logistic", False),
        ("nearest_neighbors", False),
        pytest.param("linear_svm", True, marks=pytest.mark.slow),
        pytest.param("gradient_boosting", False, marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_a_screen_without_signal_is_at_chance_for_every_method_tuned_or_not(method, tune):
    """The forest is above: it takes longer, and so fewer trees are grown there. The network is in test_cnn.py."""
    scores = []
    for seed in range(20):
        X, y, wells, _, _ = make_screen(seed, plates=5, cells=5, features=10)
        settings = {"method": method, "params": params_of(method), "tune": tune, "n_bootstrap": 0}
        scores.append(evaluate(X, y, wells, folds=4, **settings)["balanced_accuracy"])
    assert abs(np.mean(scores) - 0.5) < 0.03


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("scheme", ["well", "plate"])
def test_every_method_finds_a_signal_that_is_there(method, scheme):
    X, y, wells, plates, _ = make_screen(signal=1.5, classes=("a", "b", "c"))
    groups = wells if scheme == "well" else plates
    result = evaluate(X, y, groups, method=method, params=params_of(method), scheme=scheme)
    assert result["balanced_accuracy"] > 0.85 and result["chance"] == pytest.approx(1 / 3)
    assert result["balanced_accuracy_low"] < result["balanced_accuracy"] < result["balanced_accuracy_high"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_figures_are_those_of_scikit_learn_and_no_group_is_on_both_sides():
    X, y, wells, _, _ = make_screen(signal=0.4, classes=("a", "b", "c"))
    y = y.copy()
    y[(y == "c") & (np.arange(len(y)) % 3 > 0)] = "a"  # unequal classes
    params = params_of("logistic")
    result = evaluate(X, y, wells, method="logistic", params=params, folds=4)
    held = [set(fold["groups"]) for fold in result["folds"]]
    assert len(held) == 4 and set.union(*held) == set(wells) and sum(map(len, held)) == len(set(wells))
    build = load_method(METHODS, "logistic", "method").build
    guessed = np.empty(len(y), dtype=object)
    for groups, fold in zip(held, result["folds"], strict=True):
        test = np.isin(wells, list(groups))
        guessed[test] = make_pipeline(build(params)).fit(X[~test], y[~test]).predict(X[test])
        assert fold["n_test"] == test.sum() and fold["n_train"] == (~test).sum()
        assert fold["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y[test], guessed[test].astype(str)))
    guessed = guessed.astype(str)
    np.testing.assert_array_equal(result["confusion"], confusion_matrix(y, guessed))
    assert result["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, guessed))
    assert result["macro_f1"] == pytest.approx(f1_score(y, guessed, average="macro"))
    expected = np.array(precision_recall_fscore_support(y, guessed))
    found = [[row[name] for row in result["per_class"]] for name in ("precision", "recall", "f1", "support")]
    np.testing.assert_allclose(found, expected)


def test_cells_that_were_asked_for_since_they_are_hard_are_learned_from_and_not_counted():
    X, y, wells, _, _ = make_screen(signal=0.9)
    options = {"method": "logistic", "params": params_of("logistic"), "folds": 4, "n_bootstrap": 0}
    whole = evaluate(X, y, wells, **options)
    assert whole["n_labels"] == whole["n_cells"] == len(y) and whole["counted"] == ""
    kept = []
    evaluate(X, y, wells, kept=kept, **options)
    doubt = np.empty(len(y))
    for fold, pipeline in zip(whole["folds"], kept, strict=True):
        own = np.isin(wells, fold["groups"])
        doubt[own] = 1 - pipeline.predict_proba(X[own]).max(axis=1)
    random = np.random.default_rng(0)
    chance = random.permutation(len(y)) < 150
    labeled = chance | (doubt > np.quantile(doubt, 0.7))
    asked = ~chance[labeled]
    rest = ~labeled
    naive, fair = (evaluate(X[labeled], y[labeled], wells[labeled], asked=given, **options) for given in (None, asked))
    truth = whole["balanced_accuracy"]
    assert abs(fair["balanced_accuracy"] - truth) < 0.5 * abs(naive["balanced_accuracy"] - truth)
    assert (
        fair["n_cells"] == chance.sum() and fair["n_labels"] == labeled.sum() and "not counted here" in fair["counted"]
    )
    assert sum(fold["n_test"] for fold in fair["folds"]) == fair["n_cells"] == np.sum(fair["confusion"]) < rest.sum()
    few = asked | (np.cumsum(~asked) > 30)
    told = evaluate(X[labeled], y[labeled], wells[labeled], asked=few, **options)
    assert told["n_cells"] == labeled.sum() and "lower than those of all cells" in told["counted"]


def test_each_plate_is_held_out_once():
    X, y, _, plates, _ = make_screen(signal=1.0)
    result = evaluate(X, y, plates, method="logistic", params=params_of("logistic"), scheme="plate")
    assert [fold["groups"] for fold in result["folds"]] == [[f"P{n}"] for n in range(6)]


def test_labels_that_cannot_be_tested_honestly_are_refused_with_the_reason():
    X, y, wells, plates, _ = make_screen(cells=4)
    settings = {"method": "logistic", "params": params_of("logistic")}
    with pytest.raises(ValueError, match="96 wells for 97"):
        evaluate(X, y, wells, folds=97, **settings)
    one_well = np.where(wells == wells[0], "rare", y)
    with pytest.raises(ValueError, match="fewer than 2 wells: 'rare' in 1"):
        evaluate(X, one_well, wells, **settings)
    with pytest.raises(ValueError, match="fewer than 2 plates"):
        evaluate(X, y, np.full(len(y), "P0"), scheme="plate", **settings)
    with pytest.raises(ValueError, match="At least 2"):
        evaluate(X, np.full(len(y), "a"), wells, **settings)
    with pytest.raises(ValueError, match="no group"):
        evaluate(X, y, np.where(plates == "P0", "", plates), **settings)
    with pytest.raises(ValueError, match="split by cell is not offered"):
        evaluate(X, y, wells, scheme="cell", **settings)
    with pytest.raises(ValueError, match="one of each per cell"):
        evaluate(X, y[1:], wells, **settings)


def test_gaps_and_infinities_are_imputed_inside_the_folds():
    X, y, wells, _, names = make_screen(signal=1.5)
    X[::7, 3], X[::11, 4], X[:, 5] = np.nan, np.inf, np.nan
    result = evaluate(X, y, wells, method="logistic", params=params_of("logistic"))
    assert result["balanced_accuracy"] > 0.85
    model = train(X, y, wells, features=names, method="logistic", params=params_of("logistic"))
    assert predict(model, pd.DataFrame(X, columns=names))["Novelty"].notna().all()


@pytest.fixture(scope="module", params=sorted(METHODS))
def trained(request):
    X, y, wells, _, names = make_screen(signal=1.5, classes=("a", "b", "c"))
    settings = {"method": request.param, "params": params_of(request.param)}
    folds = []
    metrics = evaluate(X, y, wells, kept=folds, **settings)
    options = settings | {"features": names, "metrics": metrics, "folds": folds, "versions": {"plateloom": "0.1.0"}}
    return train(X, y, wells, **options), metrics


@pytest.fixture(scope="module")
def stored(trained):
    """The bytes of the model, and the model that is read from them."""
    data = dumps(trained[0])
    return data, loads(data, sha256=hashlib.sha256(data).hexdigest())


def test_every_model_carries_its_card(trained):
    model, metrics = trained
    card = model.card
    assert (
        card["classes"] == ["a", "b", "c"] and card["metrics"] == metrics and card["versions"] == {"plateloom": "0.1.0"}
    )
    assert sum(card["counts"].values()) == 6 * 16 * 12 and len(card["groups"]) == 96
    assert len(card["schema"]) == 12 and len(card["features"]) == 15


def test_every_model_classifies_cells_of_another_screen_of_the_same_plates(trained):
    model, _ = trained
    X, y, _, _, names = make_screen(seed=1, signal=1.5, classes=("a", "b", "c"))
    table = pd.DataFrame(X, columns=names, index=np.arange(len(X)) + 5).assign(Metadata_Plate="P")
    found = predict(model, table)
    assert balanced_accuracy_score(y, found["Class"]) > 0.85
    probability = [f"Probability_{name}" for name in "abc"]
    assert list(found.columns) == ["Class", *probability, "Set_size", "Novelty"]
    assert list(found.index) == list(table.index)
    assert found["Set_size"].dtype == np.uint8 and found["Set_size"].between(0, 3).all()
    probabilities = found.filter(like="Probability_")
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (probabilities.idxmax(axis=1).str.removeprefix("Probability_") == found["Class"]).all()


def test_every_model_judges_cells_that_it_was_taught_by_the_fold_that_has_not_seen_them(trained, stored):
    model, metrics = trained
    X, y, wells, _, names = make_screen(signal=1.5, classes=("a", "b", "c"))
    table = pd.DataFrame(X, columns=names)
    for again in (model, stored[1]):
        found = pd.concat([predict(again, table[wells == well], group=well)["Class"] for well in np.unique(wells)])
        confusion = pd.crosstab(y, found.sort_index().to_numpy()).to_numpy()
        assert confusion.tolist() == metrics["confusion"]
    of_itself = predict(model, table)["Class"]
    assert balanced_accuracy_score(y, of_itself) > metrics["balanced_accuracy"], "it knows what it was taught"
    pd.testing.assert_series_equal(predict(model, table, group="another")["Class"], of_itself)


def test_every_model_judges_a_cell_the_same_whatever_else_is_in_the_call(trained):
    model, _ = trained
    X, _, _, _, names = make_screen(seed=2)
    table = pd.DataFrame(X, columns=names)
    whole = predict(model, table)
    parts = pd.concat([predict(model, table.iloc[start : start + 97]) for start in range(0, len(table), 97)])
    pd.testing.assert_frame_equal(parts, whole, check_exact=False, rtol=0, atol=1e-6)


def test_every_model_gives_identical_predictions_after_skops(trained, stored):
    (model, _), (data, again) = trained, stored
    X, _, _, _, names = make_screen(seed=3)
    assert again.card == model.card
    if model.card["method"] != "random_forest":  # whose trees have padding bytes of whatever lay in memory
        assert dumps(again) == data, "other objects, so other places in memory"
    table = pd.DataFrame(X, columns=names)
    pd.testing.assert_frame_equal(predict(again, table), predict(model, table), check_exact=True)


def test_every_model_refuses_other_features_and_names_both_hashes(trained):
    model, _ = trained
    X, _, _, _, names = make_screen()
    for table in (
        pd.DataFrame(X, columns=names).drop(columns=names[2]),
        pd.DataFrame(X, columns=names)[names[::-1]],
        pd.DataFrame(X, columns=names).assign(Cells_New=1.0),
    ):
        with pytest.raises(ModelMismatchError) as raised:
            predict(model, table)
        hashes = [word.strip(",;") for word in str(raised.value).split() if len(word.strip(",;")) == 12]
        assert model.card["schema"] in hashes and len(set(hashes)) >= 2


def test_every_model_takes_an_empty_table_and_marks_cells_without_values(trained):
    model, _ = trained
    X, _, _, _, names = make_screen()
    assert len(predict(model, pd.DataFrame(X[:0], columns=names))) == 0
    X[1] = np.nan
    found = predict(model, pd.DataFrame(X[:3], columns=names))
    assert found["Class"].isna().tolist() == [False, True, False]
    assert np.isnan(found["Novelty"][1]) and np.isnan(found["Probability_a"][1])


def test_cells_unlike_any_labeled_one_are_novel_and_cells_of_other_wells_are_not():
    X, y, wells, _, names = make_screen(signal=1.5)
    model = train(X, y, wells, features=names, method="logistic", params=params_of("logistic"))
    table = pd.DataFrame(make_screen(seed=5, signal=1.5)[0], columns=names)
    assert (predict(model, table)["Novelty"] > 1).mean() < 0.15
    strange = table + 12 * np.random.default_rng(0).choice([-1, 1], len(names))
    assert (predict(model, strange)["Novelty"] > 1).mean() > 0.99
    debris = table.copy()
    debris[names[3]] += 40.0  # off in one feature only
    assert (predict(model, debris)["Novelty"] > 1).mean() > 0.99


@pytest.mark.parametrize("method", ["linear_svm", "nearest_neighbors", "random_forest"])
def test_the_same_labels_give_the_same_model_with_any_number_of_threads(method):
    X, y, wells, _, names = make_screen(signal=1.0, plates=2)
    settings = {"features": names, "method": method, "params": params_of(method)}
    models = [train(X, y, wells, threads=threads, **settings) for threads in (1, 2)]
    table = pd.DataFrame(X, columns=names)
    pd.testing.assert_frame_equal(predict(models[0], table), predict(models[1], table), check_exact=True)
    assert models[0].pipeline["estimator"].get_params() == models[1].pipeline["estimator"].get_params()


def test_bins_of_boosted_trees_are_those_of_scikit_learn_and_are_found_at_once():
    from sklearn.ensemble._hist_gradient_boosting import binning

    slow, fast = sort_once()
    assert binning._find_binning_thresholds is fast, "what fits the trees calls"
    for seed in range(8):
        random = np.random.default_rng(seed)
        values = random.normal(size=700)
        values[:60], values[60:120] = (np.nan, np.inf) if seed % 2 else np.round(values[:120].reshape(2, 60), 1)
        weights = np.array([0.6, 3.1, 1.0 - seed % 3])[random.choice(3, 700, p=[0.7, 0.2, 0.1])]
        weights = np.ones(700) if seed == 7 else np.maximum(weights, 0)
        for chosen in (values, np.round(values)):
            np.testing.assert_array_equal(fast(chosen, 255, weights), slow(chosen, 255, weights))


def test_a_changed_file_a_pickle_and_a_foreign_archive_are_refused():
    import skops.io

    X, y, wells, _, names = make_screen(plates=2)
    model = train(X, y, wells, features=names, method="logistic", params=params_of("logistic"))
    data = dumps(model)
    with pytest.raises(ModelMismatchError, match="SHA-256"):
        loads(data, sha256="0" * 64)
    with pytest.raises(ModelMismatchError):
        loads(data[: len(data) // 2])

    class Trap:
        def __reduce__(self):
            return eval, ("1 / 0",)  # a ZeroDivisionError would show that it ran

    for unsafe in (pickle.dumps(Trap()), pickle.dumps({"a": 1}), b"", b"PK\x03\x04 but no archive"):
        with pytest.raises(ModelMismatchError):
            loads(unsafe)
    with pytest.raises(ModelMismatchError, match="no classifier of ours"):
        loads(skops.io.dumps({"format": "other"}))
    forged = Classifier(model.pipeline, model.card | {"schema": "0" * 12}, model.novelty)
    with pytest.raises(ModelMismatchError, match="schema"):
        loads(dumps(forged))


def test_an_archive_that_wants_to_build_other_types_is_refused_before_it_builds_them():
    import subprocess

    import skops.io

    with pytest.raises(ModelMismatchError, match="wants to build subprocess.list2cmdline"):
        loads(
            skops.io.dumps(
                {"format": "plateloom-classifier-1", "card": "{}", "pipeline": subprocess.list2cmdline, "novelty": {}}
            )
        )


def test_a_fit_that_did_not_converge_is_written_on_the_card():
    X, y, wells, _, names = make_screen(plates=2)
    params = params_of("logistic", max_iterations=1, inverse_penalty=1e4)
    model = train(X, y, wells, features=names, method="logistic", params=params)
    assert model.card["warnings"] and "converge" in model.card["warnings"][0]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_refuses_unknown_settings(method):
    with pytest.raises(ValidationError):
        params_of(method, split_by_cell=True)
