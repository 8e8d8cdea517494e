"""The pipeline against what is known: the simulated screen's truth, and a real plate."""

import html
import re
import runpy
import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from conftest import ROOT, TO_FEATURES, simulate
from in_process import run_stages

from plateloom.features import FAMILIES
from plateloom.features.meaning import describe_columns
from plateloom.planning import STAGES
from plateloom.segmentation.matching import match_objects
from plateloom.store import plate as store
from plateloom.store.provenance import read_json
from plateloom.store.tables import read_table, read_tables

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def screen(once):
    """One plate of 32 wells, classified; no network, no maps and no pages, which have tests of their own."""
    return once("truth", run_screen)


def run_screen(folder):
    simulate(folder, rows=4, columns=8, size_px=384, cells_per_field=28.0, seed=5)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["features"] = {"families": ["AreaShape", "Location", "Intensity", "Correlation", "Neighbors"]}
    settings["latent"] = {"autoencoder": {"enabled": False}, "maps": {"method": "pca", "cells": 500}}
    settings["illumination"] = {"fields": 32}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    run_stages(folder, set(STAGES) - {"map", "maps", "comparison", "report", "screen_report"})


def labels_of(screen, well, kind):
    found = store.read_labels(store.field_path(screen / "results/plates/P1/plate.zarr", well, 1), kind)
    return found, tifffile.imread(screen / f"truth/P1/{well}_s1_{kind.lower()}.tif")


def wells(screen):
    return read_table(screen / "results/plates/P1/aggregates.parquet")


def test_nuclei_and_cells_are_found(screen):
    pooled = {"Nuclei": np.zeros(3), "Cells": np.zeros(3)}
    for well in wells(screen)["Metadata_Well"]:
        for kind, counts in pooled.items():
            counts += match_objects(*labels_of(screen, well, kind))
    f1 = {kind: 2 * tp / (2 * tp + fp + fn) for kind, (tp, fp, fn) in pooled.items()}
    assert f1["Nuclei"] >= 0.9
    assert f1["Cells"] >= 0.75


def test_a_plain_threshold_would_not_have_found_them(screen):
    from scipy import ndimage
    from skimage.filters import gaussian, threshold_otsu
    from skimage.measure import label

    pooled = np.zeros(3)
    for well in wells(screen)["Metadata_Well"]:
        truth = tifffile.imread(screen / f"truth/P1/{well}_s1_nuclei.tif")
        if not truth.any():
            continue
        plane = gaussian(tifffile.imread(screen / f"raw/P1/{well}_s1_w1.tif").astype(float), 1)
        found = label(ndimage.binary_fill_holes(plane > threshold_otsu(plane)))
        pooled += match_objects(found, truth)
    tp, fp, fn = pooled
    assert 2 * tp / (2 * tp + fp + fn) < 0.8


def test_counts_follow_the_truth(screen):
    truth = pd.read_parquet(screen / "truth/cells.parquet").groupby("Metadata_Well").size()
    found = wells(screen).set_index("Metadata_Well")["Metadata_CellCount"]
    assert abs(found.sum() / truth.sum() - 1) < 0.05
    assert np.corrcoef(found, truth.reindex(found.index, fill_value=0))[0, 1] > 0.97


def test_doses_come_in_order_and_only_what_acts_is_a_hit(screen):
    table = wells(screen)
    medians = (
        table[table["Metadata_Control"] == ""]
        .groupby(["Metadata_Treatment", "Metadata_Dose"])["Metadata_Readout"]
        .median()
    )
    rising = medians["nuclearin"]
    assert rising.is_monotonic_increasing and rising.iloc[-1] > 2 * rising.iloc[0]
    assert medians["inertol"].max() < 1.2 * medians["inertol"].min()
    hits = read_table(screen / "results/screen/hits.parquet")
    hits = hits[hits["hit"] & (hits["Metadata_Control"] == "")]
    assert "nuclearin" in set(hits["Metadata_Treatment"]) and "inertol" not in set(hits["Metadata_Treatment"])
    assay = read_json(screen / "results/plates/P1/records/profiling/part-0.json")["facts"]["assay"]
    assert assay["z_prime"] > 0.5


def test_classes_are_recovered_cell_by_cell(screen):
    truth = pd.read_parquet(screen / "truth/cells.parquet").set_index(["Metadata_Well", "Metadata_ObjectNumber"])[
        "Class"
    ]
    rows = []
    for well in wells(screen)["Metadata_Well"]:
        found, known = labels_of(screen, well, "Nuclei")
        classes = read_tables([screen / f"results/plates/P1/classes/{well}.parquet"])
        for label, name in zip(classes["Metadata_ObjectNumber"], classes["Class"], strict=True):
            inside = known[found == label]
            values, counts = np.unique(inside[inside > 0], return_counts=True)
            if len(values):
                rows.append((truth[well, values[counts.argmax()]], name))
    table = pd.DataFrame(rows, columns=["truth", "found"])
    recall = (table["truth"] == table["found"]).groupby(table["truth"]).mean()
    assert recall.mean() > 0.8, recall.to_dict()


def test_cells_of_held_out_wells_are_reconstructed_far_better_than_by_the_mean_crop(screen, tmp_path):
    folder = shutil.copytree(screen, tmp_path / "screen", copy_function=shutil.copy2)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["latent"]["autoencoder"] = {"cells": 700, "parameters": {"epochs": 20, "out_px": 32, "latent_dim": 16}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    run_stages(folder, {*TO_FEATURES, "autoencoder"})
    facts = read_json(folder / "results/screen/records/autoencoder.json")["facts"]
    assert facts["cells"]["holdout"] > 50, facts
    assert facts["held_out_error"] < 0.5 * facts["mean_crop_error"], facts


def test_the_flatfield_is_close_to_the_truth(screen):
    import zarr

    truth = tifffile.imread(screen / "truth/P1/flatfield.tif")
    for i, channel in enumerate(pd.read_csv(screen / "truth/staining.tsv", sep="\t")["channel"]):
        found = zarr.open_array(screen / f"results/plates/P1/illumination.zarr/{channel}", mode="r")[...]
        error = np.sqrt(np.mean((found / truth[i] - 1) ** 2))
        assert error < 0.75 * np.sqrt(np.mean((1 / truth[i] - 1) ** 2)), channel


@pytest.fixture(scope="module")
def bbbc013(once):
    """The real plate by its example config, as far as profiles and report; skipped where its images are not."""
    source = ROOT.parent / "shared/data/bbbc013_sbs_rows_ABEF"
    if not source.is_dir():
        pytest.skip(f"no BBBC013 images at {source}")
    return once("bbbc013", lambda folder: run_bbbc013(folder, source))


def run_bbbc013(folder, source):
    runpy.run_path(str(ROOT / "config/examples/bbbc013/prepare.py"))["main"](source, folder)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["latent"] = {"autoencoder": {"enabled": False}, "maps": {"method": "pca", "cells": 500}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    run_stages(folder)


def test_the_real_plate_is_measured_with_every_family(bbbc013):
    cells = read_table(bbbc013 / "results/plates/BBBC013/features/A01.parquet")
    channels = list(yaml.safe_load((bbbc013 / "config.yaml").read_text())["channels"])
    described = describe_columns(
        ("Nuclei", "Cells", "Cytoplasm"), channels, texture_scales=(3, 5, 10), neighbor_distance=5
    )
    assert len(channels) == 2 and {column["family"] for column in described.values()} == set(FAMILIES)
    assert [name for name in cells if not name.startswith("Metadata_")] == list(described)
    assert len(cells) > 20 and cells[list(described)].notna().any().mean() > 0.99


def test_translocation_rises_with_the_dose_of_both_drugs(bbbc013):
    table = read_table(bbbc013 / "results/plates/BBBC013/aggregates.parquet")
    for drug in ("Wortmannin", "LY294002"):
        treated = table[(table["Metadata_Treatment"] == drug) & (table["Metadata_Control"] == "")]
        means = treated.groupby("Metadata_Dose")["Metadata_Readout"].mean()
        assert len(means) == 9
        assert means.rank().corr(pd.Series(range(9), index=means.index), method="pearson") > 0.7
        assert means.iloc[-3:].mean() > 4 * means.iloc[:2].mean()


def test_the_controls_of_the_real_plate_are_apart(bbbc013):
    facts = read_json(bbbc013 / "results/plates/BBBC013/records/profiling/part-0.json")["facts"]
    assert facts["assay"]["n_negative"] == 6 and facts["assay"]["n_positive"] == 4, "E12 and F12 are no controls"
    assert facts["assay"]["z_prime"] > 0.6
    page = (bbbc013 / "results/plates/BBBC013/report.html").read_text()
    text = html.unescape(re.sub("<[^>]+>", " ", page))
    assert f"{facts['assay']['z_prime']:.2f}" in text and "robust Z" in text
    for drug, unit in (("LY294002", "µM"), ("Wortmannin", "nM")):
        assert re.search(rf"{drug}\s+EC50 [\d.]+ {unit}", text), "the page shows the fitted doses of both drugs"


def test_cells_of_the_controls_are_told_apart_by_well(bbbc013):
    card = read_json(bbbc013 / "results/screen/models/classifier/model.json")["card"]
    assert card["metrics"]["scheme"] == "well" and card["metrics"]["n_groups"] == 10
    assert card["metrics"]["balanced_accuracy"] > 0.9
