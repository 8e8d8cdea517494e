"""What the classifier says of the cells of a plate, for the pages."""

import numpy as np
import pandas as pd

from plateloom.classification.fractions import estimate_fractions
from plateloom.store.layout import model_folder, well_table
from plateloom.store.provenance import read_json
from plateloom.store.tables import read_table


def estimate_class_shares(plate, wells, records):
    """Share of each class in each well with its interval, see `estimate_fractions`; None without classes.

    Columns ``Metadata_Well``, ``class``, ``cells``, ``counted`` (share of the cells taken for it), ``share``, ``low``, ``high``.
    """
    card = done_classifier(records)
    if card is None or not card["classes"]:
        return None
    names, draws = card["classes"], np.array(card["metrics"]["confusion_draws"])
    whole = labels_whole_wells()
    rows = []
    for well in wells:
        found = read_table(well_table(plate, "classes", well), ["Class"])["Class"]
        counts = [int((found == name).sum()) for name in names]
        shares = estimate_fractions(counts, draws, whole=whole)
        for i, name in enumerate(names):
            row = {"Metadata_Well": well, "class": name, "cells": sum(counts), "counted": shares["observed"][i]}
            rows.append(row | {"share": shares["fraction"][i], "low": shares["low"][i], "high": shares["high"][i]})
    return pd.DataFrame(rows) if rows else None


def mean_predictions(plate, wells, records):
    """Mean of the numbers predicted for the cells of each well; empty where there are none."""
    card = done_classifier(records)
    if card is None or card["classes"]:
        return {}
    return {
        well: float(read_table(well_table(plate, "classes", well), ["Predicted"])["Predicted"].mean()) for well in wells
    }


def done_classifier(records):
    """Card of the classifier, if every cell of the plate has been classified by it (records of all parts); else None."""
    if not records or any(record["status"] != "done" for record in records):
        return None
    return read_json(model_folder("classifier") / "model.json")["card"]


def labels_whole_wells():
    """Whether the classifier has learned from labels of whole wells or fields, some at least."""
    return read_json(model_folder("classifier") / "model.json").get("whole", 1) > 0  # models of before say nothing


def shares_note():
    """What the shares of classes are, for the page."""
    if labels_whole_wells():
        return (
            "Shares are counted. Whole wells were labeled, with the cells that their treatment left as they were: whether the classifier "
            "errs in these or the label does cannot be told. The intervals (95 %) reach from a classifier that never errs to one that does "
            "each time it disagrees with a label; labels of single cells (plateloom annotate) make them narrower."
        )
    return (
        "Shares are corrected for how often the classifier took one class for another in held-out wells; the intervals (95 %) hold the "
        "chance of which cells were seen, of which wells the classifier was tested on, and how much one well differs from the next."
    )


def learned_note(wells):
    """Which of some wells (plate, well) the classifier was trained on, and how their cells are classified all the same."""
    learned = set(read_json(model_folder("classifier") / "model.json").get("wells", ()))
    known = [well for plate, well in wells if f"{plate}/{well}" in learned]
    if not known:
        return ""
    shown = ", ".join(known) if len(known) <= 12 else f"{len(known)} of the wells"
    return f"Cells of {shown} were labeled; there the model of the test decides that has not learned from them."
