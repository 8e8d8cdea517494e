"""Patches: whole images, or squares of them, in the place of cells, from labels to pages."""

import re

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import simulate
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import run_stages
from pydantic import ValidationError
from test_segmentation import assert_contract

from plateloom.cli.check import find_problems
from plateloom.planning import Screen
from plateloom.segmentation import find_misfits, segment_image
from plateloom.segmentation.patches import Params, share_evenly
from plateloom.store.provenance import read_json


def segment(shape, *, tile_px=None, pixel_size_um=1.0, **parameters):
    image = np.zeros((1, *shape), np.float32)
    return segment_image(
        image, ["DNA"], method="patches", params=parameters, pixel_size_um=pixel_size_um, tile_px=tile_px
    )


def test_a_whole_image_is_one_object_also_if_it_is_empty():
    found = segment((40, 50))
    assert_contract_of_patches(found, (40, 50))
    assert (found["Cells"] == 1).all()


def assert_contract_of_patches(found, shape):
    """As of any method, but that a cell is all nucleus."""
    assert_contract(found | {"Cytoplasm": found["Cytoplasm"]}, shape)
    np.testing.assert_array_equal(found["Cells"], found["Nuclei"])
    assert found["Cytoplasm"].max() == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 90), st.integers(8, 90), st.one_of(st.none(), st.floats(8, 120)), st.integers(5, 60))
def test_patches_share_the_image_evenly_however_it_is_tiled(height, width, size, tile_px):
    whole = segment((height, width), size_um=size)
    assert_contract_of_patches(whole, (height, width))
    labels, areas = np.unique(whole["Nuclei"], return_counts=True)
    assert labels[0] == 1, "all pixels are of a patch"
    sides = np.sqrt(areas)
    assert sides.max() <= sides.min() + 1.5 + 0.5 * abs(height - width)
    for name, image in segment((height, width), size_um=size, tile_px=tile_px).items():
        np.testing.assert_array_equal(image, whole[name])


def test_what_no_field_covers_is_in_no_patch():
    image = np.zeros((1, 60, 60), np.float32)
    image[:, :30, :40] = np.nan
    labels = [
        segment_image(image, ["DNA"], method="patches", params={"size_um": 30.0}, pixel_size_um=1.0, tile_px=tile_px)
        for tile_px in (None, 25)
    ]
    np.testing.assert_array_equal(labels[0]["Cells"], labels[1]["Cells"])
    np.testing.assert_array_equal(labels[0]["Cells"] == 0, np.isnan(image[0]))
    assert labels[0]["Cells"].max() == 3


def test_sizes_are_in_micrometers():
    assert segment((100, 100), size_um=25.0, pixel_size_um=0.5)["Cells"].max() == 4
    np.testing.assert_array_equal(np.diff(share_evenly(1080, 250.0)), 270)


def test_patches_of_a_few_pixels_are_refused():
    assert find_misfits("patches", {"size_um": 2.0}, pixel_size_um=0.65) == [
        "size_um is 2, which is 3.1 px here; expected 5.2 or more"
    ]
    assert find_misfits("patches", {"size_um": 2.0}, pixel_size_um=0.0)
    for pixel_size_um in (0.0, float("nan"), 0.65):
        assert not find_misfits("patches", {}, pixel_size_um=pixel_size_um)
        assert segment((20, 20), pixel_size_um=pixel_size_um)["Cells"].max() == 1
    with pytest.raises(ValueError, match="size_um is 2, which is 4.0 px here; expected 4 or more"):
        segment((100, 100), size_um=2.0, pixel_size_um=0.5)
    with pytest.raises(ValidationError):
        Params(size_um=0)


# --- from images to pages --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(once):
    """A screen in which quarters of images are classified, profiled and reported in the place of cells."""
    return once("patches", make_patches)


def make_patches(folder):
    simulate(folder, plates=("P1", "P2"), cells_per_field=25.0)
    given = yaml.safe_load((folder / "config.yaml").read_text())
    given["segmentation"] = {"method": "patches", "parameters": {"size_um": 85.0}}
    given["features"]["families"] = ["Intensity", "Texture", "Correlation"]
    given["profiling"] = {"parameters": {"readout": "Cells_Correlation_Correlation_DNA_GFP"}}
    given["latent"]["autoencoder"] |= {"crop_um": 85.0}
    given["classification"] = {"labels": "controls", "method": "logistic"}
    (folder / "config.yaml").write_text(yaml.safe_dump(given))
    problems, notes = find_problems(folder, files=False)
    assert problems == []
    assert any("patch of an image" in note for note in notes)
    run_stages(folder)


@pytest.mark.slow
def test_features_are_of_patches_alone_without_empty_columns(finished):
    table = pd.read_parquet(finished / "results/plates/P1/features")
    assert len(table) == 12 * 4
    features = table.loc[:, [name for name in table if not name.startswith("Metadata_")]]
    assert {name.split("_")[0] for name in features} == {"Cells"}
    assert not features.isna().all().any()
    count = features["Cells_Intensity_IntegratedIntensity_DNA"] / features["Cells_Intensity_MeanIntensity_DNA"]
    np.testing.assert_allclose(count, 128 * 128)


@pytest.mark.slow
def test_profiles_classes_and_latents_follow(finished):
    profiles = pd.read_parquet(finished / "results/plates/P1/profiles.parquet")
    assert set(profiles["Metadata_CellCount"]) <= {0, 4}, "an empty well's images are flagged by QC"
    card = read_json(finished / "results/screen/models/classifier/model.json")
    assert card["card"]["metrics"]["balanced_accuracy"] > 0.8, "translocation shows in whole images"
    assert len(pd.read_parquet(finished / "results/plates/P1/classes")) == 48
    assert len(pd.read_parquet(finished / "results/plates/P1/latent")) == 48


@pytest.mark.slow
def test_pages_say_what_a_cell_is_and_show_patches(finished):
    page = (finished / "results/plates/P1/report.html").read_text()
    assert "patch of an image" in re.sub(r"<[^>]+>", "", page)
    assert "Nuclei" in page
    assert page.count("central ") + page.count("field 1") >= 2
    assert (finished / "results/screen/report.html").stat().st_size > 100_000


@pytest.mark.slow
def test_a_readout_of_a_nucleus_is_refused(finished):
    given = yaml.safe_load((finished / "config.yaml").read_text())
    given["profiling"]["parameters"]["readout"] = "Nuclei_Intensity_MeanIntensity_DNA"
    with pytest.raises(ValueError, match="no feature 'Nuclei_Intensity_MeanIntensity_DNA'.*Did you mean 'Cells_"):
        Screen(given, finished)


@pytest.mark.slow
def test_what_is_measured_is_part_of_the_recipe_only_where_it_is_not_all(finished):
    given = yaml.safe_load((finished / "config.yaml").read_text())
    assert Screen(given, finished).settings("features")["compartments"] == ["Cells"]
    given["segmentation"] = {"method": "watershed", "parameters": {}}
    assert "compartments" not in Screen(given, finished).settings("features")
