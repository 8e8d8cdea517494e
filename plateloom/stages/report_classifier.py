"""The classifier's section of the screen's page."""

import numpy as np
import pandas as pd

from plateloom import report
from plateloom.classification.splits import SCHEMES
from plateloom.intervals import MIN_UNITS
from plateloom.stages.explanation import describe_explanation
from plateloom.stages.report_readouts import to_number
from plateloom.store.layout import model_folder
from plateloom.store.provenance import read_json

LITTLE = 0.01  # a gain in balanced accuracy below this is not worth more labels


def describe_classifier(records, notes, settings=None):
    """What the page says of the classifier.

    Parameters
    ----------
    records : list of dict
        Of the classifier; empty where the config does not ask for one.
    notes : dict of str to str
        Gets why there is nothing to show.
    settings : dict, optional
        Of the page; without them there are no pictures.

    Returns
    -------
    ClassifierReport, RegressionReport or None
    """
    if not records or records[0]["status"] != "done":
        notes["classifier"] = records[0]["reason"] if records else "No labels were given (classification.labels)."
        return None
    described = read_json(model_folder("classifier") / "model.json")
    card, tuned = described["card"], ""
    found = card["metrics"]
    unit = found["scheme"]
    units = SCHEMES[unit]
    if card.get("tuned"):
        tuned = f"; settings were searched by other {units} of each fold's training part"
    scheme = (
        f"Tested by cross-validation in {len(found['folds'])} folds on {found['n_cells']:,} cells of {found['n_groups']:,} "
        f"{units}; all cells of a {unit} are in the same fold, so that no {unit} is tested by a model that has seen it{tuned}"
    )
    if "classes" in found and described.get("whole"):
        scheme += (
            f". All cells of {described['whole']} labeled wells have the well's label: one that the treatment left as it was counts as "
            "an error"
        )
    if found.get("counted"):
        scheme += f". {found['counted'].rstrip('.')}"
    if "classes" not in found:
        novelty = _novelty(card.get("novelty", {}).get("held_out", ()))
        return _regression(found, scheme, units, describe_explanation(described), novelty)
    columns = [
        "precision",
        "recall",
        "f1",
        "false_positives",
        "false_negatives",
        "average_precision",
        "support",
        "groups",
    ]
    renamed = {"groups": units, "support": "cells", "average_precision": "average precision"}
    renamed |= {"false_positives": "false positives", "false_negatives": "false negatives"}
    per_class = pd.DataFrame(found["per_class"])
    per_class = per_class[["class", *(name for name in columns if name in per_class)]].rename(columns=renamed)
    return report.ClassifierReport(
        classes=found["classes"],
        confusion=np.array(found["confusion"]),
        per_class=per_class,
        balanced_accuracy=to_number(found["balanced_accuracy"]),
        low=to_number(found["balanced_accuracy_low"]),
        high=to_number(found["balanced_accuracy_high"]),
        scheme=scheme,
        interval_note=_no_interval(found, units),
        novelty_note=_novelty(card.get("novelty", {}).get("held_out", ())),
        explanation=describe_explanation(described, settings),
        **_classifier_details(found, units),
    )


def _no_interval(found, units):
    """Why there is no interval of the balanced accuracy; empty where there is one."""
    fewest = min(found["per_class"], key=lambda row: row["groups"])
    if found["balanced_accuracy_low"] is not None or fewest["groups"] >= MIN_UNITS:
        return ""
    return (
        f"No 95 % interval: {fewest['class']} is labeled in {fewest['groups']} {units}, and fewer than {MIN_UNITS} do not tell "
        f"how {units} differ."
    )


def _novelty(held):
    """What share of known cells is called novel, in a sentence."""
    if not held:
        return ""
    of_class = ", ".join(f"{100 * row['novel']:.1f} %{' of ' * bool(row['class'])}{row['class']}" for row in held)
    return f"Of the labeled cells held out by the test, novel to the rest (about 1 % is expected): {of_class}."


def _classifier_details(found, units):
    """Curves, calibration, sets, doubted labels and subgroups, of a test that has them."""
    if "calibration" not in found:
        return {}
    sets, noise, learning, calibration = (found[name] for name in ("sets", "noise", "learning", "calibration"))
    there = {row["class"]: row["groups"] for row in found["per_class"]}
    limits = zip(found["classes"], sets["limits"], strict=True)
    lacking = [f"{name} ({there[name]} {units})" for name, limit in limits if limit is None]
    words = (
        f"A class is excluded for a cell only where that is wrong for at most {100 * (1 - sets['coverage']):.0f} % of the cells of that "
        f"class in new {units}. In the test the classes that were left held the true one for {100 * sets['covered']:.0f} % of the "
        f"cells, and were one class only for {100 * sets['single']:.0f} %; on the others the classifier abstains (Set_size is not 1)."
    )
    if lacking:
        words = (
            f"{', '.join(lacking)} cannot be excluded for any cell, so that no cell is sure not to be of it: {sets['groups_needed']} {units} "
            f"of a class are needed for {100 * sets['coverage']:.0f} % (classification.coverage). Label more of them, or ask for less."
        )
    if learning["gain"] is not None and learning["gain_low"] is not None:
        low, gain, high = (learning[name] for name in ("gain_low", "gain", "gain_high"))
        verdict = "so more labels would help" if low > 0 else "which may be chance"
        verdict = f"so more of the same labels would hardly help (below {LITTLE})" if high < LITTLE else verdict
        half, whole = (round(step["groups"]) for step in learning["steps"][-2:])
        learned = (
            f"In a test of its own (three folds, at most 2,000 cells) learning from {whole} {units}, all that two folds hold, instead of {half} changes the "
            f"balanced accuracy by {gain:+.3f} (95 % interval {low:+.3f} to {high:+.3f}), {verdict}."
        )
    else:
        learned = f"Too few {units} to tell whether more labels would help."
    weighed = "" if found["balance"] == "none" else " Classes count alike, however many of their cells are labeled."
    suspects = pd.DataFrame(noise["suspects"])
    if len(suspects):
        suspects = suspects[["plate", "well", "field", "object", "label", "looks_like", "probability"]]
        suspects = suspects.rename(columns={"looks_like": "looks like"})
    subgroups = pd.DataFrame(found["subgroups"])
    if len(subgroups):
        order = ["by", "part", "cells", "groups", "classes", "error", "balanced_accuracy", "low", "high"]
        subgroups = subgroups[order].rename(columns={"groups": "wells", "balanced_accuracy": "balanced accuracy"})
    return {
        "error": found["error"],
        "calibration": pd.DataFrame(calibration["reliability"]),
        "uncalibrated": pd.DataFrame(calibration["before"]),
        "calibration_note": (
            f"Brier score {calibration['brier']:.3f} (before calibration {calibration['brier_before']:.3f}), expected calibration "
            f"error {calibration['expected_calibration_error']:.3f} ({calibration['expected_calibration_error_before']:.3f}), "
            f"temperature {calibration['temperature']:.2f}.{weighed}"
        ),
        "precision_recall": {row["class"]: row["curve"] for row in found["per_class"]},
        "learning": pd.DataFrame(learning["steps"]),
        "learning_note": learned,
        "sets_note": words,
        "suspects": suspects,
        "suspects_note": (
            f"{100 * noise['share']:.1f} % of the labels are of cells that models of other {units} take for another class. The clearest are "
            "listed; where whole wells are labeled, cells that the treatment left as they were are among them."
        ),
        "subgroups": subgroups,
        "graded": _graded(found.get("graded", ())),
        "units": units,
    }


def _graded(rows):
    """Table of `grade_transfer`'s rows."""
    table = pd.DataFrame(rows)
    if len(table):
        numbers = {name: table[name].astype(float) for name in ("balanced_accuracy", "low", "high")}
        table = table.assign(**numbers)[["tested_on", *numbers, "cells", "reason"]]
        table = table.rename(columns={"tested_on": "tested on", "balanced_accuracy": "balanced accuracy"})
    return table


def _regression(found, scheme, units, explanation, novelty):
    """What the page says of a model of numbers."""
    points = pd.DataFrame(found["points"])
    width = found["half_width"]
    words = (
        f"R² {found['r2']:.3f} of cells ({to_number(found['group_r2']):.3f} of the means of {units}), Spearman's correlation "
        f"{to_number(found['spearman']):.3f} ({to_number(found['group_spearman']):.3f}); mean error {found['mean_error']:.3g}."
    )
    if width is not None:
        words += (
            f" A prediction is within {width:.3g} of the truth for {found['coverage']:.0%} of the cells of new {units}."
        )
    if found.get("r2_low") is not None:
        words += f" 95 % interval of R² over {units}: {found['r2_low']:.3f} to {found['r2_high']:.3f}."
    elif found["n_groups"] < MIN_UNITS:
        words += f" No intervals: {found['n_groups']} {units} are labeled, and fewer than {MIN_UNITS} do not tell how {units} differ."
    words = f"{words} {novelty}".rstrip()
    parts = pd.DataFrame(found.get("subgroups", ()))
    if len(parts):
        parts = parts.rename(columns={"groups": "wells", "mean_error": "mean error"})
    shown = {"units": units, "explanation": explanation, "subgroups": parts}
    return report.RegressionReport(points=points, words=words, scheme=scheme, **shown)
