"""What the classifier says of the cells of a plate, for the pages."""

import numpy as np
import pandas as pd

from plateloom.classification.enrichment import NOVEL
from plateloom.classification.fractions import adjust_prior, estimate_fractions
from plateloom.stages.fields import without_fields
from plateloom.store.layout import model_folder, well_table
from plateloom.store.provenance import read_json
from plateloom.store.tables import KEYS, read_table


def estimate_class_shares(plate, wells, records, excluded=()):
    """Share of each class among the cells of each well with its interval, see `estimate_fractions`; None without classes.

    Left out are cells of fields that are `excluded` (well, field) and novel ones, which are of no class.

    Columns ``Metadata_Well``, ``class``, ``cells``, ``novel`` (cells left out), ``counted`` (share of the cells taken for it),
    ``share``, ``low``, ``high``.
    """
    card = done_classifier(records)
    if card is None or not card["classes"]:
        return None
    names, draws = card["classes"], np.array(card["metrics"]["confusion_draws"])
    columns, whole = [f"Probability_{name}" for name in names], labels_whole_wells()
    learned = np.array([card["counts"][name] for name in names], float)
    prior = learned / learned.sum() if card["balance"] == "none" else np.full(len(names), 1 / len(names))
    rows = []
    for well in wells:
        cells = read_table(well_table(plate, "classes", well), [*KEYS, "Class", *columns, "Novelty"])
        cells = without_fields(cells, plate, well, [field for other, field in excluded if other == well])
        cells = cells[cells["Class"] != ""]
        novel = cells["Novelty"] > NOVEL
        known = cells[~novel]
        counts = [int((known["Class"] == name).sum()) for name in names]
        fraction = adjust_prior(known[columns], prior)
        shares = estimate_fractions(counts, draws, fraction=fraction, whole=whole)
        for i, name in enumerate(names):
            row = {"Metadata_Well": well, "class": name, "cells": sum(counts), "novel": int(novel.sum())}
            row |= {"counted": shares["observed"][i], "share": shares["fraction"][i]}
            rows.append(row | {"low": shares["low"][i], "high": shares["high"][i]})
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
            "Shares are what the probabilities of all cells say. Whole wells were labeled, with the cells that their treatment left as they "
            "were: whether the classifier errs in these or the label does cannot be told. So the intervals (95 %) reach from a classifier "
            "that never errs to one that does each time it disagrees with a label; labels of single cells (plateloom annotate) make them narrower."
        )
    return (
        "Shares are what the probabilities of all cells say; the intervals (95 %) hold how often the classifier took one class for another "
        "in held-out wells, which cells were seen, which wells the classifier was tested on, and how much one well differs from the next."
    )


def learned_note(wells):
    """Which of some wells (plate, well) the classifier was trained on, and how their cells are classified all the same."""
    learned = set(read_json(model_folder("classifier") / "model.json").get("wells", ()))
    known = [well for plate, well in wells if f"{plate}/{well}" in learned]
    if not known:
        return ""
    shown = ", ".join(known) if len(known) <= 12 else f"{len(known)} of the wells"
    return f"Cells of {shown} were labeled; there the model of the test decides that has not learned from them."
