"""What `benchmarks/learning.py` finds on a small simulated screen: phenotypes, a rare one, a novel one, a plate stained differently."""

import importlib.util

import click
import pandas as pd
import pytest
from conftest import ROOT

from plateloom.cli import cli
from plateloom.errors import ConfigError
from plateloom.store.provenance import read_json


@pytest.fixture(scope="module")
def learning():
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("learning", ROOT / "benchmarks" / "learning.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_recall_is_of_the_true_precision_of_the_called_and_other_classes_are_left_out(learning):
    truth, found = ["a", "a", "a", "a", "b", "b", "c"], ["a", "a", "a", "b", "b", "a", "a"]
    recall, precision, balanced = learning.recalls(truth, found, ["a", "b"])
    assert recall == {"a": 0.75, "b": 0.5} and balanced == 0.625
    assert precision == {"a": 0.75, "b": 0.5}


def test_doses_are_judged_by_wells_without_those_of_controls(learning):
    rows = []
    wells = [
        ("negative", 0, "A1", 0.1),
        ("positive", 9, "A2", 0.9),
        ("", 1, "A3", 0.2),
        ("", 2, "A4", 0.5),
        ("", 4, "A5", 0.4),
    ]
    for control, dose, well, probability in wells:
        for shift in (-0.05, 0.05):
            found = "positive" if probability + shift > 0.87 else "negative"
            rows.append(("X", control, dose, well, probability + shift, found))
    columns = ["Treatment", "Control", "Dose", "Well"]
    cells = pd.DataFrame(rows, columns=[*(f"Metadata_{name}" for name in columns), "Probability_positive", "Class"])
    balanced, doses = learning.measure_controls(cells)
    assert balanced == 0.75
    assert doses.loc["X", "n"] == 3 and doses.loc["X", "rho"] == pytest.approx(0.5)
    assert doses.loc["X", "low"] == pytest.approx(0.2) and doses.loc["X", "high"] == pytest.approx(0.4)


def test_simulate_adds_a_rare_and_a_novel_treatment_that_no_label_names_and_says_what_was_shifted(tmp_path):
    options = ["--plates", "2", "--rows", "4", "--columns", "6", "--size", "64", "--cells", "2", "--threads", "1"]
    more = ["--rare", "0.01", "--novel", "--shift", "plate2:GFP=1.5"]
    cli.main(["simulate", str(tmp_path / "s"), *options, *more], standalone_mode=False)
    wells = pd.read_csv(tmp_path / "s/maps/plate1.tsv", sep="\t", keep_default_na=False)
    assert {"rarecidin", "novelin"} < set(wells["treatment"])
    labels = pd.read_csv(tmp_path / "s/labels.tsv", sep="\t")
    labeled = wells[wells["well"].isin(labels.loc[labels["plate"] == "plate1", "well"])]
    assert set(labels["class"]) == {"normal", "translocated", "condensed"}
    assert set(labeled["treatment"]) == {"DMSO", "nuclearin", "shrinkamide"}
    shifts = pd.read_csv(tmp_path / "s/truth/shifts.tsv", sep="\t")
    assert shifts.to_dict("records") == [{"plate": "plate2", "channel": "GFP", "factor": 1.5}]


@pytest.mark.parametrize("text", ["plate9:GFP=2", "plate1:Actin=2", "plate1:GFP", "plate1:GFP=-1"])
def test_a_shift_of_what_is_not_there_is_refused(tmp_path, text):
    with pytest.raises((click.UsageError, ConfigError), match="--shift"):
        cli.main(["simulate", str(tmp_path / "s"), "--plates", "1", "--shift", text], standalone_mode=False)
    assert not (tmp_path / "s").exists()


@pytest.fixture(scope="module")
def screen(learning, once):
    """Seven small plates, where the rare phenotype is less rare."""
    return once("learning", lambda folder: run_features(learning, folder)) / "features"


def run_features(learning, folder):
    folder.mkdir()
    small = {"rows": 4, "columns": 4, "size_px": 256, "cells_per_field": 27.0, "rare": 0.1}
    prepare = lambda made: learning.prepare_simulated(made, **small)  # noqa: E731
    learning.run_spaces(
        folder, prepare, spaces=("features",), reduced=learning.REDUCED | {"illumination": {"method": "none"}}
    )


@pytest.mark.slow
@pytest.mark.long
def test_three_phenotypes_are_found_the_rare_one_among_them_and_the_novel_one_is_flagged(learning, screen):
    cells, count = learning.add_truth(learning.read_cells(screen), screen)
    assert (cells["Truth"] != "").sum() > 0.9 * count
    classes = learning.read_card(screen)["classes"]
    found = learning.measure_truth(cells, classes)
    assert found["balanced"] > 0.8 and min(found["recall"].values()) > 0.5
    assert found["rare"]["true"] >= 10 and found["rare"]["found"] > 0.25 * found["rare"]["true"]
    assert found["novel"]["auc"] > 0.85 and found["novel"]["flagged"] > 10 * found["novel"]["known"]
    enriched = learning.read_enrichment(cells, classes)
    named = enriched[enriched["change"] == "enriched"].groupby("kind")["Metadata_Treatment"].agg(set)
    assert "novelin" in named["novel"]
    assert {"shrinkamide", "rarecidin"} <= named["class condensed"] and "inertol" not in named["class condensed"]


@pytest.mark.slow
@pytest.mark.long
def test_the_plate_that_was_stained_differently_is_alarmed_and_no_other(screen):
    facts = read_json(screen / "results/screen/records/profiles.json")["facts"]["shift"]
    alarmed = {row["plate"]: row for row in facts if row["alarm"]}
    assert set(alarmed) == {"plate4"}
    assert "GFP" in alarmed["plate4"]["shifted"][0]["kind"]
