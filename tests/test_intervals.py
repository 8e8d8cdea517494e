"""Intervals over few groups: as wide as they say, or none."""

import numpy as np
import pytest

from plateloom.classification.regression import evaluate_numbers
from plateloom.classification.scores import accuracy_interval, count_units
from plateloom.classification.shift import grade_transfer
from plateloom.cli.annotate import _interval
from plateloom.intervals import interval_of
from plateloom.registry import load_method
from plateloom.report.screen import ClassifierReport, classifier_section
from plateloom.stages.report_classifier import _no_interval, _novelty


def guesses(seed, groups, mixed):
    """Truth, guess and group of cells of two classes, of which a fifth is guessed wrong, in some groups more, in others fewer."""
    random, cells = np.random.default_rng(seed), 60
    member = np.repeat(np.arange(groups), cells)
    truth = np.arange(groups * cells) % 2 if mixed else member % 2
    wrong = random.random(len(truth)) < random.beta(2, 8, (groups, 2))[member, truth]
    return truth, np.where(wrong, 1 - truth, truth), member


@pytest.mark.parametrize(("groups", "mixed"), [(5, True), (8, True), (10, False), (16, False)])
def test_an_interval_holds_the_truth_about_as_often_as_it_says(groups, mixed):
    inside = 0
    for seed in range(200):
        low, high = accuracy_interval(*guesses(seed, groups, mixed), 2, n=200, seed=seed)
        inside += low <= 0.8 <= high
    assert inside / 200 > 0.88, inside


def test_few_groups_have_no_interval():
    assert accuracy_interval(*guesses(0, 4, True), 2) == (None, None)
    truth, guess, member = guesses(0, 9, False)
    assert count_units(truth, member) == 4 and accuracy_interval(truth, guess, member, 2) == (None, None)
    assert interval_of([], 9) == (None, None) and interval_of([0.5, 0.5], 5) == (0.5, 0.5)


def test_numbers_of_few_plates_have_none_either():
    random = np.random.default_rng(0)
    X, plates = random.normal(size=(300, 4)), np.repeat(["P1", "P2", "P3"], 100)
    params = load_method({"ridge": "plateloom.classification.ridge"}, "ridge", "method").Params()
    found = evaluate_numbers(X, X[:, 0], plates, method="ridge", params=params, scheme="plate", n_bootstrap=20)
    assert found["r2"] > 0.5 and {found[f"{name}_{end}"] for name in ("r2", "spearman") for end in ("low", "high")} == {
        None
    }


def test_other_plates_are_judged_over_plates_and_their_pipelines_are_kept():
    random = np.random.default_rng(0)
    plates = np.repeat([f"P{i}" for i in range(6)], 80)
    wells = np.char.add(plates, np.char.add("/A", (np.arange(480) // 20 % 4).astype(str)))
    y = np.array(list("ab"))[np.arange(480) // 20 % 2]
    X = random.normal(size=(480, 4)) + 2 * (y == "b")[:, None]
    from plateloom.classification import METHODS

    options = {"method": "logistic", "params": load_method(METHODS, "logistic", "method").Params(), "n_bootstrap": 50}
    for some, known in ((6, True), (4, False)):
        kept, own = [], np.isin(plates, np.unique(plates)[:some])
        batches = np.where(plates < "P2", "B1", "B2")[own]
        rows = grade_transfer(X[own], y[own], wells[own], plates[own], batches, kept=kept, **options)
        by = {row["tested_on"]: row for row in rows}
        assert (by["other plate"]["low"] is not None) == known and by["other well"]["low"] is not None
        assert by["other batch"]["balanced_accuracy"] > 0.8 and by["other batch"]["low"] is None
        assert [fold["groups"] for _, fold in kept] == [[f"P{i}"] for i in range(some)]
        held = plates == kept[0][1]["groups"][0]
        assert (np.array(list("ab"))[kept[0][0].predict(X[held])] == y[held]).mean() > 0.8


def test_the_page_says_why_there_is_no_interval_and_what_is_novel():
    found = {"balanced_accuracy_low": None, "per_class": [{"class": "a", "groups": 7}, {"class": "b", "groups": 2}]}
    note = _no_interval(found, "plates")
    assert "b is labeled in 2 plates, and fewer than 5" in note
    assert _no_interval(found | {"balanced_accuracy_low": 0.5}, "plates") == ""
    novelty = _novelty([{"class": "a", "cells": 9, "novel": 0.011}, {"class": "b", "cells": 9, "novel": 0.0}])
    assert "1.1 % of a, 0.0 % of b" in novelty and _novelty(()) == ""
    shown = ClassifierReport(
        classes=("a",), confusion=np.array([[3]]), balanced_accuracy=0.9, interval_note=note, novelty_note=novelty
    )
    words = str(classifier_section(shown))
    assert note in words and novelty in words and "95 % interval nan" not in words
    assert _interval({"value": 0.5, "low": None, "high": None}).startswith("0.500 (no interval")
