"""What a classifier goes by: families of features that it is worse without, what moves its trees, pixels, pairs of cells."""

import copy
import importlib.util

import numpy as np
import pytest
import torch
from test_classification_stage import learned, run, screen, tables  # noqa: F401
from test_cnn import FAST, make_crops

from plateloom.classification import METHODS, REGRESSORS
from plateloom.classification.attribution import explain_network, grad_cam, integrated_gradients, rank_correlation
from plateloom.classification.evaluation import evaluate
from plateloom.classification.explanation import (
    explain_trees,
    find_pairs,
    held_out_probability,
    permute_families,
    shapley_values,
)
from plateloom.classification.model import input_space
from plateloom.classification.regression import evaluate_numbers
from plateloom.registry import load_method
from plateloom.report.screen import classifier_section
from plateloom.stages.report_classifier import describe_classifier

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
    params = load_method(METHODS, "random_forest", "classification method").Params(n_trees=30)
    tested = evaluate(X, y, groups, method="random_forest", params=params, kept=kept, folds=3, n_bootstrap=0)
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


@pytest.mark.parametrize("method", sorted(REGRESSORS))
def test_what_numbers_are_predicted_by_is_found_too(method):
    X, _, groups = cells()
    dose = np.array([int(group[-2:]) % 4 for group in groups], float)
    X[:, :5] += (dose - 3 * (dose % 2))[:, None]  # instead of 3 for every second well
    kept = []
    params = load_method(REGRESSORS, method, "regression method").Params()
    tested = evaluate_numbers(X, dose, groups, method=method, params=params, kept=kept, n_bootstrap=50)
    options = {"features": FEATURES, "pipelines": kept, "folds": tested["folds"]}
    first, *others = permute_families(X, dose, groups, **options)
    assert first["family"] == "Nuclei Intensity" and first["low"] > 0.3 and tested["r2"] > 0.2
    assert first["loss"] > tested["r2"] - 0.1, "worse than guessing without it"
    assert all(abs(row["loss"]) < 0.1 for row in others)
    if method == "ridge":
        return
    pytest.importorskip("shap")
    values = shapley_values(kept[0]["estimator"], scaled := input_space(kept[0], X[:40]))
    said = kept[0]["estimator"].predict(scaled)
    np.testing.assert_allclose(values.sum(axis=(1, 2)) - values[0].sum(), said - said[0], atol=1e-5)
    found = explain_trees(X, dose, groups, **options)
    assert found["unit"] == "prediction" and [len(row["values"]) for row in found["families"]] == [1] * 4
    first, second = found["families"][:2]
    assert first["family"] == "Nuclei Intensity" and first["values"][0] > 3 * second["values"][0]


def test_the_same_seed_gives_the_same_numbers():
    assert explain(*cells(), n_bootstrap=50)[0] == explain(*cells(), n_bootstrap=50)[0]


@pytest.mark.slow
def test_the_card_says_what_the_classifier_goes_by_and_the_page_shows_it(learned):  # noqa: F811
    _, model, _ = learned()
    metrics = model["card"]["metrics"]
    (row,) = metrics["importance"]
    assert row["family"] == "Cells Intensity" and row["features"] == 4 and row["loss"] > 0.3
    assert [row["tested_on"] for row in metrics["graded"]] == ["same well", "other well", "other plate", "other batch"]
    assert all(row["balanced_accuracy"] > 0.85 for row in metrics["graded"])
    shown = describe_classifier([{"status": "done"}], {})
    page = classifier_section(shown)
    assert "Cells Intensity" in page and "other batch" in page


SMALL = {"random_forest": {"n_trees": 30, "min_cells_per_leaf": 5}, "gradient_boosting": {"n_rounds": 20}}


def learn(method, X, y, groups, **params):
    """What `evaluate` says, and the pipelines of its folds."""
    kept = []
    chosen = load_method(METHODS, method, "classification method").Params(**params)
    found = evaluate(X, y, groups, method=method, params=chosen, kept=kept, folds=3, n_bootstrap=0)
    return {"pipelines": kept, "folds": found["folds"]}, found


@pytest.mark.parametrize("method", sorted(SMALL))
@pytest.mark.parametrize("names", ["ab", "abc"])
def test_shapley_values_sum_to_what_the_trees_say(method, names):
    pytest.importorskip("shap")
    X, _, groups = cells()
    kind = np.digitize(X[:, 0] + X[:, 7], np.quantile(X[:, 0] + X[:, 7], [0.4, 0.7][: len(names) - 1]))
    options, _ = learn(method, X, np.array(list(names))[kind], groups, **SMALL[method])
    pipeline = options["pipelines"][0]
    scaled = input_space(pipeline, X[:40])
    values = shapley_values(pipeline["estimator"], scaled)
    assert values.shape == (40, 20, len(names))
    if method == "random_forest":
        said = pipeline["estimator"].predict_proba(scaled)
    else:
        said = pipeline["estimator"].decision_function(scaled)
        said = np.column_stack([-said, said]) if said.ndim == 1 else said
    summed = values.sum(axis=1)
    np.testing.assert_allclose(summed - summed[0], said - said[0], atol=1e-5)
    assert np.abs(values[:, [0, 7]]).sum() > np.abs(np.delete(values, [0, 7], axis=1)).sum() / 3


@pytest.mark.parametrize("method", sorted(SMALL))
def test_the_family_that_tells_moves_the_trees_most_though_five_features_share_it(method):
    pytest.importorskip("shap")
    X, y, groups = cells()
    options, _ = learn(method, X, y, groups, **SMALL[method])
    found = explain_trees(X, y, groups, features=FEATURES, **options)
    assert found["unit"] == {"random_forest": "probability", "gradient_boosting": "log odds"}[method]
    first, second = found["families"][:2]
    assert first["family"] == "Nuclei Intensity" and first["features"] == 5 and 60 <= found["cells"] <= 300
    assert min(first["values"]) > 5 * max(second["values"])
    assert len(found["features"]) == 20 and {row["feature"] for row in found["features"][:3]} <= set(FEATURES[:5])
    assert found == explain_trees(X, y, groups, features=FEATURES, **options)


def test_a_typical_cell_is_paired_with_the_nearest_of_the_other_class():
    space = np.array([[0.0, 0.0], [1, 0], [3, 0], [4, 0], [9, 9], [0.5, 0]])
    truth = np.array([0, 0, 1, 1, 1, 1])
    probability = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9], [0.05, 0.95], [0.6, 0.4]])
    there, back = find_pairs(probability, truth, space, features=["x", "y"], X=10 * space)
    assert (there["class"], there["other"], there["typical"], there["nearest"]) == (0, 1, 0, 2), "5 looks like class 0"
    assert there["distance"] == 3 and there["usual"] == 4 and there["nearest_probability"] == 0.7
    assert there["differ"][0] == {"feature": "x", "typical": 0.0, "nearest": 30.0, "change": 3.0}
    assert (back["class"], back["typical"], back["nearest"]) == (1, 4, 1) and back["probability"] == 0.95
    assert find_pairs(probability, truth, space)[0]["differ"] == []
    angle = ["Cells_RadialDistribution_ZernikePhase_DNA_6_6", "y"]
    (told,) = find_pairs(probability, truth, space, features=angle, X=space)[0]["differ"]
    assert told["feature"] == "y", "+3.1 rad and -3.1 rad are alike"


def test_of_many_classes_those_that_are_confused_most_are_paired():
    random = np.random.default_rng(0)
    truth = np.repeat(np.arange(5), 20)
    space = random.normal(size=(100, 3)) + truth[:, None] * 10
    probability = np.full((100, 5), 0.05) + 0.75 * np.eye(5)[truth]
    for one, other in ((1, 3), (3, 1)):  # half of either is taken for the other
        probability[np.flatnonzero(truth == one)[:10]] = 0.05 + 0.75 * np.eye(5)[other]
    found = find_pairs(probability, truth, space)
    assert len(found) == 6 and {(row["class"], row["other"]) for row in found[:2]} == {(1, 3), (3, 1)}
    for row in found:
        assert truth[row["typical"]] == row["class"] and truth[row["nearest"]] == row["other"]


def test_probabilities_of_cells_are_by_the_fold_that_has_not_seen_them():
    X, y, groups = cells()
    options, found = learn("logistic", X, y, groups)
    probability = held_out_probability(X, groups, **options)
    confusion = np.zeros((2, 2), int)
    np.add.at(confusion, (np.unique(y, return_inverse=True)[1], probability.argmax(axis=1)), 1)
    assert confusion.tolist() == found["confusion"]


@pytest.fixture(scope="module")
def network():
    """A network tested on crops in which only the second channel tells the classes apart."""
    X, y, groups = make_crops()
    kept = []
    found = evaluate(X, y, groups, method="cnn", params=FAST, folds=3, kept=kept, n_bootstrap=0)
    return X, y, groups, {"pipelines": kept, "folds": found["folds"]}


def test_channels_of_crops_are_shuffled_one_by_one_whatever_their_names_begin_with(network):
    X, y, groups, options = network
    names = ["Alexa_488_low", "Alexa_488_high"]
    found = permute_families(X, y, groups, features=names, n_bootstrap=50, **options)
    assert {row["family"] for row in found} == set(names) and {row["features"] for row in found} == {1}
    assert found[0]["family"] == "Alexa_488_high" and found[0]["loss"] > 0.2 > abs(found[1]["loss"])


class Linear(torch.nn.Module):
    """Two classes told apart by a weighted sum of the pixels."""

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.tensor(weights, dtype=torch.float32)

    def forward(self, crops):
        said = (crops * self.weights).sum(dim=(1, 2, 3))
        return torch.stack([-said, said], dim=1)


def test_integrated_gradients_of_a_weighted_sum_are_its_terms():
    pytest.importorskip("captum")
    random = np.random.default_rng(0)
    weights, crops = random.normal(size=(2, 4, 4)), random.normal(size=(3, 2, 4, 4))
    found, gaps = integrated_gradients(
        Linear(weights), torch.tensor(crops, dtype=torch.float32), np.array([1, 1, 0]), steps=4
    )
    np.testing.assert_allclose(found, crops * weights * np.array([1, 1, -1])[:, None, None, None], atol=1e-5)
    assert gaps.max() < 1e-4


def test_integrated_gradients_of_a_network_sum_to_what_they_explain(network):
    pytest.importorskip("captum")
    X, _, _, options = network
    estimator = options["pipelines"][0]["estimator"]
    crops = estimator.prepare(X[:6])
    targets = estimator.predict_proba(X[:6]).argmax(axis=1)
    found, gaps = integrated_gradients(estimator.network_, crops, targets, steps=128)
    with torch.no_grad():
        said, black = (estimator.network_(one).numpy() for one in (crops, torch.zeros_like(crops)))
    over_mean = lambda logits: (logits - logits.mean(axis=1, keepdims=True))[np.arange(6), targets]  # noqa: E731
    np.testing.assert_allclose(found.sum(axis=(1, 2, 3)), over_mean(said) - over_mean(black), rtol=0.03, atol=0.02)
    assert gaps.shape == (6,)
    cam = grad_cam(estimator.network_, crops, targets)
    assert cam.shape == (6, 16, 16) and cam.min() >= 0 and cam.max() > 0


def test_maps_are_compared_by_the_order_of_their_pixels_whatever_their_sign():
    maps = np.random.default_rng(0).normal(size=(3, 8, 8))
    assert rank_correlation(maps, -5 * maps) == pytest.approx(1)
    assert abs(rank_correlation(maps, np.random.default_rng(1).normal(size=(3, 8, 8)))) < 0.3
    assert rank_correlation(maps, np.zeros((3, 8, 8))) is None


def test_maps_of_a_trained_network_depend_on_what_it_has_learned(network):
    pytest.importorskip("captum")
    X, y, groups, options = network
    before = copy.deepcopy(options["pipelines"][0]["estimator"].network_.state_dict())
    found, pictures = explain_network(X, y, groups, **options)
    after = options["pipelines"][0]["estimator"].network_.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the weights of a copy were randomized"
    assert [row["layers"] for row in found["randomized"]] == [1, 2, 3, 4, 5, 6]
    name = "integrated gradients"
    assert {name, "Grad-CAM"} <= set(found["randomized"][0])
    assert found["randomized"][-1][name] < found["agreement"][name] - 0.1
    held = set(options["folds"][0]["groups"])
    assert set(groups[pictures["examples"]]) <= held and set(y[pictures["examples"]]) == {"a", "b"}
    assert pictures["gradients"].shape == pictures["cam_randomized"].shape == (8, 16, 16)
    again, _ = explain_network(X, y, groups, **options)
    assert again == found


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(SMALL))
def test_the_page_shows_what_moves_trees_or_says_what_is_not_installed_and_lists_pairs(screen, method):  # noqa: F811
    _, model, _ = run(method=method, parameters=SMALL[method])
    pairs = model["card"]["metrics"]["pairs"]
    assert [(row["class"], row["other"]) for row in pairs] == [("negative", "positive"), ("positive", "negative")]
    assert "picture" not in pairs[0]["typical"], "there are no images to cut it from"
    assert len(pairs[0]["differ"]) == 4 and pairs[0]["typical"]["plate"] in ("P1", "P2", "P3")
    page = str(classifier_section(describe_classifier([{"status": "done"}], {})))
    assert "Nearly alike, and of two classes" in page and "change [SD]" in page
    installed = importlib.util.find_spec("shap") is not None
    assert ("What moves its trees" in page) == installed
    assert ("the package shap is not installed" in page) != installed
