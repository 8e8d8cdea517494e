"""Calibration, conformal sets and fractions of classes: each against a simulated truth that differs from well to well."""

import numpy as np
import pytest

from plateloom.classification.calibration import (
    apply_temperature,
    brier_score,
    calibration_error,
    class_weights,
    fit_temperature,
    reliability,
    set_members,
    set_thresholds,
)
from plateloom.classification.fractions import adjust_prior, draw_confusions, estimate_fractions


def softmax(logits):
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def make_cells(random, wells, *, cells=40, classes=2, signal=1.5, spread=0.7):
    """Cells of wells with their true class, and what a classifier would say that does not know the well's own shift."""
    groups = np.repeat(np.arange(wells), cells)
    truth = random.integers(classes, size=len(groups))
    shift = random.normal(0, spread, (wells, classes))[groups]
    logits = signal * np.eye(classes)[truth] + random.normal(0, 0.6, (len(groups), classes)) + shift
    return softmax(2 * logits), truth, groups


def test_a_temperature_finds_how_much_too_sure_a_method_is():
    random = np.random.default_rng(0)
    right = softmax(random.normal(0, 2, (20000, 3)))
    truth = (right.cumsum(axis=1) < random.random((20000, 1))).sum(axis=1)
    for factor in (0.5, 1.0, 2.0):
        stated = softmax(np.log(right) * factor)
        temperature = fit_temperature(stated, truth)
        assert temperature == pytest.approx(factor, rel=0.05)
        calibrated = apply_temperature(stated, temperature)
        np.testing.assert_array_equal(calibrated.argmax(axis=1), stated.argmax(axis=1))
        np.testing.assert_allclose(calibrated.sum(axis=1), 1)
        assert calibration_error(calibrated.max(axis=1), calibrated.argmax(axis=1) == truth) < 0.015
    assert apply_temperature(np.zeros((0, 3)), 2.0).shape == (0, 3)
    certain = apply_temperature(np.array([[1.0, 0.0]]), 2.0)
    assert 0 < certain[0, 1] < 0.02, "a zero is no proof"


def test_scores_of_probabilities_are_those_of_a_hand_calculation():
    probability, truth = np.array([[0.8, 0.2], [0.6, 0.4]]), np.array([0, 1])
    assert brier_score(probability, truth) == pytest.approx((2 * 0.2**2 + 2 * 0.6**2) / 2)
    assert brier_score(np.full((6, 3), 1 / 3), np.arange(6) % 3) == pytest.approx(1 - 1 / 3)
    rows = reliability([0.95, 0.95, 0.55, 0.55], [True, True, True, False])
    assert [row["accuracy"] for row in rows] == [0.5, 1.0] and [row["share"] for row in rows] == [0.5, 0.5]
    assert calibration_error([0.95, 0.95, 0.55, 0.55], [True, True, True, False]) == pytest.approx(0.05)
    weights = class_weights(np.array([0, 0, 0, 1]), 2, True)
    assert weights.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2]) and weights.mean() == 1


def test_sets_cover_cells_of_new_wells_as_often_as_they_promise_class_by_class():
    random = np.random.default_rng(1)
    covered, single = [], []
    for _ in range(60):
        limits = set_thresholds(*make_cells(random, 20, classes=3), coverage=0.8)
        probability, truth, _ = make_cells(random, 40, classes=3)
        inside = set_members(probability, limits)
        covered.append([inside[truth == c, c].mean() for c in range(3)])
        single.append((inside.sum(axis=1) == 1).mean())
    covered = np.mean(covered, axis=0)
    assert (covered > 0.79).all() and (covered < 0.87).all(), covered
    assert 0.1 < np.mean(single) < 0.9, "it neither abstains always nor never"


def test_every_well_counts_the_same_however_many_cells_it_has():
    """One well of 1,000 easy cells must not hide nineteen of 10 hard ones."""
    probability = np.r_[np.tile([0.9, 0.1], (1000, 1)), np.tile([0.3, 0.7], (190, 1)), np.tile([0.0, 1.0], (100, 1))]
    truth = np.r_[np.zeros(1190, int), np.ones(100, int)]
    groups = np.r_[np.zeros(1000, int), 1 + np.repeat(np.arange(19), 10), 20 + np.repeat(np.arange(10), 10)]
    limits = set_thresholds(probability, truth, groups, coverage=0.9)
    assert limits == [0.3, 1.0]


def test_a_class_of_fewer_wells_than_the_coverage_needs_is_never_excluded():
    probability, truth, groups = make_cells(np.random.default_rng(0), 8)
    assert set_thresholds(probability, truth, groups, coverage=0.9) == [None, None]
    assert set_members(probability, [None, None]).all()
    probability, truth, groups = make_cells(np.random.default_rng(0), 9)
    assert None not in set_thresholds(probability, truth, groups, coverage=0.9)


@pytest.mark.parametrize("classes", [2, 3])
def test_intervals_of_fractions_hold_the_truth_where_counting_is_biased(classes):
    random = np.random.default_rng(2)
    inside, counted_inside, errors, counted_errors = [], [], [], []
    for _ in range(40):
        probability, truth, groups = make_cells(random, 24, classes=classes, cells=60)
        draws = draw_confusions(truth, probability.argmax(axis=1), groups, classes, seed=0)
        np.testing.assert_allclose(draws.sum(axis=2), 1)
        for _ in range(4):  # new wells of another composition: mostly the first class
            share = np.r_[0.8, np.full(classes - 1, 0.2 / (classes - 1))]
            probability, found, _ = make_cells(random, 1, classes=classes, cells=3000)
            chosen = np.concatenate(
                [np.flatnonzero(found == c)[: round(400 * share[c])] for c in range(classes)]
            )  # the well's own shift, its own composition
            counts = np.bincount(probability[chosen].argmax(axis=1), minlength=classes)
            estimate = estimate_fractions(counts, draws)
            inside.append((estimate["low"] - 1e-9 <= share) & (share <= estimate["high"] + 1e-9))
            wide = 1.96 * np.sqrt(estimate["observed"] * (1 - estimate["observed"]) / counts.sum())
            counted_inside.append(np.abs(estimate["observed"] - share) <= wide)
            errors.append(estimate["fraction"] - share)
            counted_errors.append(estimate["observed"] - share)
    assert np.mean(inside) > 0.9, np.mean(inside)
    assert np.mean(counted_inside) < 0.5, "counting alone is surer than it may be"
    assert abs(np.mean(errors, axis=0)[0]) < 0.5 * abs(np.mean(counted_errors, axis=0)[0])


def test_where_whole_wells_are_labeled_what_looks_like_an_error_may_be_none():
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(24), 100)
    label = groups % 2
    truth = np.where(
        random.random(2400) < 0.7, label, 0
    )  # the treatment changes 70 % of the cells, and the classifier sees which
    draws = draw_confusions(label, truth, groups, 2)
    counts = [500, 500]
    found = estimate_fractions(counts, draws, fraction=[0.5, 0.5], whole=True)
    assert found["low"][1] < 0.5 < 0.7 < found["high"][1] < 0.8  # half of all, or 0.5 / 0.7 of what is labeled so
    assert estimate_fractions(counts, draws)["fraction"][1] > 0.65
    assert estimate_fractions(counts, draws)["low"][1] > 0.5, "surer than labels of wells allow"


def test_shares_of_a_rare_class_are_what_calibrated_probabilities_say():
    random = np.random.default_rng(4)
    truth = random.random(20_000) < 0.03
    logit = random.normal(np.where(truth, 1.0, -1.0), np.sqrt(2))  # so that the odds of even classes are exp(logit)
    probability = 1 / (1 + np.exp(-np.c_[-logit, logit]))
    counted = (logit > 0).mean()
    found = adjust_prior(probability, [0.5, 0.5])
    assert counted > 0.2 and found[1] == pytest.approx(0.03, abs=0.01) and found.sum() == pytest.approx(1)
    weighed = adjust_prior(probability * [0.8, 0.2] / (probability * [0.8, 0.2]).sum(axis=1, keepdims=True), [0.8, 0.2])
    np.testing.assert_allclose(weighed, found, atol=1e-3)
    assert np.isnan(adjust_prior(np.zeros((0, 2)), [0.5, 0.5])).all()


def test_a_classifier_that_knows_nothing_says_so():
    random = np.random.default_rng(0)
    truth, predicted, groups = random.integers(2, size=400), random.integers(2, size=400), np.repeat(np.arange(20), 20)
    found = estimate_fractions([50, 50], draw_confusions(truth, predicted, groups, 2))
    assert (found["low"] < 0.05).all() and (found["high"] > 0.95).all()


def test_a_perfect_classifier_leaves_what_is_counted_and_an_empty_well_has_no_fraction():
    truth, groups = np.repeat([0, 1, 2], 400), np.arange(1200) % 30
    draws = draw_confusions(truth, truth, groups, 3)
    found = estimate_fractions([300, 600, 100], draws)
    np.testing.assert_allclose(found["fraction"], [0.3, 0.6, 0.1], atol=0.003)
    assert (found["low"] < found["fraction"]).all() and (found["fraction"] < found["high"]).all()
    assert np.isnan(estimate_fractions([0, 0, 0], draws)["fraction"]).all()
    again = estimate_fractions([300, 600, 100], draws)
    np.testing.assert_array_equal(again["low"], found["low"])
