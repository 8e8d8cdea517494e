"""The simulated screen: its truth holds, its pictures are as hard as real ones, and any field can be made alone."""

import functools
import pickle
from functools import cache

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

from plateloom.cli.simulate import write_screen
from plateloom.simulation import (
    CLASSES,
    DEFAULT_CHANNELS,
    Channel,
    ScreenDesign,
    Treatment,
    all_defects,
    all_fields,
    flatfields,
    plate_map,
    render_field,
    staining,
)

DESIGN = ScreenDesign()


@cache
def rendered(well, field=1, plate="P1"):
    return render_field(DESIGN, plate, well, field)


def well_of(control="", treatment=None, dose=None, design=DESIGN):
    for row in plate_map(design, design.plates[0]):
        if row["control"] == control and treatment in (None, row["treatment"]) and dose in (None, row["dose"]):
            return row["well"]
    raise AssertionError("no such well")


def f1(truth, found):
    """F1 at an intersection over union above one half, by the plain definition."""
    hits = 0
    for label in range(1, truth.max() + 1):
        region = truth == label
        for other in set(found[region].tolist()) - {0}:
            overlap = (region & (found == other)).sum()
            hits += bool(2 * overlap > region.sum() + (found == other).sum() - overlap)
    return 2 * hits / (truth.max() + len(np.unique(found[found > 0])))


def threshold_nuclei(plane):
    smooth = ndimage.gaussian_filter(plane.astype(np.float32), 1)
    return ndimage.label(smooth > threshold_otsu(smooth))[0]


def split_nuclei(plane):
    """A plain watershed on distance and brightness, above a threshold of the log image."""
    plane = plane.astype(np.float32)
    log = np.log(np.maximum(ndimage.gaussian_filter(plane, 1) - 115, 5))
    inside = ndimage.binary_fill_holes(ndimage.binary_opening(log > threshold_otsu(log)))
    bright = ndimage.gaussian_filter(plane, 2.5)
    height = ndimage.gaussian_filter(ndimage.distance_transform_edt(inside), 1) / 8
    height += 0.4 * bright / ndimage.maximum_filter(bright, 25)
    peaks = peak_local_max(height, min_distance=5, labels=inside.astype(int), exclude_border=False)
    seeds = np.zeros(plane.shape, int)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-height, seeds, mask=inside)


def test_a_threshold_fails_on_the_nuclei_and_a_watershed_does_not():
    fields = [rendered(well) for well in ("A04", "B01", "C04", "D01", "A02", "D03")]
    assert np.mean([f1(one.nuclei, threshold_nuclei(one.image[0])) for one in fields]) < 0.8
    assert np.mean([f1(one.nuclei, split_nuclei(one.image[0])) for one in fields]) > 0.9


def test_a_field_rendered_alone_and_later_has_the_same_pixels():
    first = render_field(DESIGN, "P2", "C02", 2)
    render_field(DESIGN, "P1", "A01", 1)
    other = ScreenDesign(plates=("P0", "P2"), fields=5, defects={"blurred": [("P0", "A01", 1)]})
    for again in (
        render_field(pickle.loads(pickle.dumps(DESIGN)), "P2", "C02", 2),
        render_field(other, "P2", "C02", 2),
    ):
        np.testing.assert_array_equal(again.image, first.image)
        np.testing.assert_array_equal(again.cells, first.cells)
        assert again.table.equals(first.table)


@pytest.mark.parametrize("other", [("P2", "C02", 1), ("P1", "C03", 1), ("P1", "C02", 2)])
def test_another_plate_well_or_field_shows_other_cells(other):
    assert not np.array_equal(render_field(DESIGN, *other).cells, rendered("C02").cells)


def test_another_seed_gives_another_field():
    other = render_field(ScreenDesign(seed=1), "P1", "C02", 1)
    assert not np.array_equal(other.cells, rendered("C02").cells)


@pytest.mark.parametrize("well", ["A04", "B02", "C05"])
def test_labels_run_without_gaps_and_each_nucleus_lies_in_its_own_cell(well):
    one = rendered(well)
    count = len(one.table)
    assert one.nuclei.dtype == one.cells.dtype == np.uint16
    np.testing.assert_array_equal(np.unique(one.nuclei), np.arange(count + 1))
    np.testing.assert_array_equal(np.unique(one.cells), np.arange(count + 1))
    inside = one.nuclei > 0
    np.testing.assert_array_equal(one.cells[inside], one.nuclei[inside])
    for label in range(1, count + 1):
        assert ndimage.label(one.nuclei == label)[1] == 1
        assert ndimage.label(one.cells == label)[1] == 1


def test_the_table_agrees_with_the_labels():
    one = rendered("A04")
    labels = one.table["Metadata_ObjectNumber"].to_numpy()
    np.testing.assert_array_equal(one.table["Nuclei_Area"], ndimage.sum_labels(one.nuclei > 0, one.nuclei, labels))
    np.testing.assert_array_equal(one.table["Cells_Area"], ndimage.sum_labels(one.cells > 0, one.cells, labels))
    centers = ndimage.center_of_mass(one.nuclei > 0, one.nuclei, labels)
    np.testing.assert_allclose(one.table[["Center_Y", "Center_X"]], centers)
    assert set(one.table["Class"]) <= set(CLASSES)
    assert one.table["Response"].between(0, 1).all()


def test_pixels_are_twelve_bit_counts_above_the_camera_offset_and_not_saturated():
    for well in ("A04", "B02", "C05"):
        image = rendered(well).image
        assert image.dtype == np.uint16
        assert image.shape == (3, 512, 512)
        assert image.min() > 90
        assert image.max() <= 4095
        assert (image == 4095).mean() < 1e-4


def test_controls_stand_in_several_rows_and_columns_and_not_on_one_edge_only():
    for design in (DESIGN, ScreenDesign(rows=8, columns=12), ScreenDesign(rows=16, columns=24)):
        for control in ("negative", "positive"):
            wells = [row["well"] for row in plate_map(design, "P1") if row["control"] == control]
            assert len({well[0] for well in wells}) > 1
            assert len({well[1:] for well in wells}) > 1
            assert any(well[0] not in f"A{design.wells[-1][0]}" for well in wells)


@pytest.mark.parametrize("shape", [(2, 2), (3, 4), (4, 6), (8, 12), (16, 24)])
def test_the_plate_map_names_every_well_once_and_replicates_every_condition_alike(shape):
    design = ScreenDesign(rows=shape[0], columns=shape[1])
    rows = plate_map(design, "P2")
    assert [row["well"] for row in rows] == list(design.wells)
    assert {row["plate"] for row in rows} == {"P2"}
    treated = [(row["treatment"], row["dose"]) for row in rows if row["control"] == ""]
    counts = {treated.count(condition) for condition in treated}
    assert len(counts) == 1
    if shape[0] >= 4:
        assert {name for name, _ in treated} == {"nuclearin", "shrinkamide", "inertol"}
        assert counts.pop() >= 2


def test_the_layout_is_the_same_on_every_plate():
    drop = [[{**row, "plate": ""} for row in plate_map(DESIGN, plate)] for plate in DESIGN.plates]
    assert drop[0] == drop[1]


def test_half_of_the_top_responds_at_the_ec50():
    treatment = Treatment("x", "translocated", ec50=0.4, hill=2, top=0.8)
    assert treatment.response(0.4) == pytest.approx(0.4)
    assert treatment.response(0) == 0
    assert Treatment("y").response(5) == 0


def test_the_fraction_of_translocated_cells_follows_the_dose():
    doses = (0.05, 0.25, 5.0)
    design = ScreenDesign(
        plates=("P",),
        rows=2,
        columns=2,
        size_px=(400, 400),
        fields=3,
        treatments=(Treatment("n", "translocated", 0.25),),
    )
    seen = []
    for dose in doses:
        treatment = Treatment("n", "translocated", 0.25, doses=(dose,))
        dosed = ScreenDesign(**{**vars(design), "treatments": (treatment,)})
        well = well_of("positive", design=dosed)
        classes = np.concatenate([render_field(dosed, "P", well, f).table["Class"].to_numpy() for f in (1, 2, 3)])
        seen.append(np.mean(classes == "translocated"))
    np.testing.assert_allclose(seen, [treatment.response(dose) for dose in doses], atol=0.12)


def test_the_marker_stands_in_the_nucleus_of_translocated_cells_only():
    ratios = {}
    for well in (well_of("negative"), well_of("positive")):
        one = rendered(well)
        marker = one.image[2].astype(float) - np.percentile(one.image[2], 1)
        cytoplasm = np.where(one.nuclei > 0, 0, one.cells)
        for label, kind in zip(one.table["Metadata_ObjectNumber"], one.table["Class"], strict=True):
            if (cytoplasm == label).sum() > 200:
                ratio = marker[one.nuclei == label].mean() / marker[cytoplasm == label].mean()
                ratios.setdefault(kind, []).append(ratio)
    assert np.median(ratios["normal"]) < 1.2
    assert np.median(ratios["translocated"]) > 2.5


def test_condensed_cells_are_fewer_and_smaller_with_brighter_nuclei():
    calm, sick = rendered(well_of("negative")), rendered(well_of("", "shrinkamide", 10.0))
    condensed = sick.table[sick.table["Class"] == "condensed"]
    assert len(sick.table) < 0.8 * len(calm.table)
    assert condensed["Nuclei_Area"].median() < 0.6 * calm.table["Nuclei_Area"].median()
    assert condensed["Cells_Area"].median() < 0.6 * calm.table["Cells_Area"].median()
    bright = sick.image[0][np.isin(sick.nuclei, condensed["Metadata_ObjectNumber"])].mean()
    assert bright > 1.3 * calm.image[0][calm.nuclei > 0].mean()


def made(treatment, **design):
    """A field of a well that holds nothing but this treatment, and the same field of the solvent."""
    options = {"plates": ("P",), "rows": 1, "columns": 4, "size_px": 384, "cells_per_field": 30} | design
    treated = ScreenDesign(**options, treatments=(treatment,))
    solvent = ScreenDesign(**options, treatments=(Treatment(treatment.name, doses=treatment.doses),))
    well = well_of("positive", design=treated)
    return render_field(treated, "P", well, 1), render_field(solvent, "P", well, 1)


def test_swollen_cells_are_larger_with_dimmer_nuclei():
    swollen, calm = made(Treatment("x", "swollen", ec50=0.01, top=1.0))
    assert set(swollen.table["Class"]) == {"swollen"}
    assert swollen.table["Nuclei_Area"].median() > 1.4 * calm.table["Nuclei_Area"].median()
    assert swollen.table["Cells_Area"].median() > 1.2 * calm.table["Cells_Area"].median()
    assert swollen.image[0][swollen.nuclei > 0].mean() < calm.image[0][calm.nuclei > 0].mean()


def test_speckled_cells_have_spots_in_the_cytoplasm_and_no_other_brightness():
    speckled, calm = made(Treatment("x", "speckled", ec50=0.01, top=1.0))
    assert set(speckled.table["Class"]) == {"speckled"}
    for channel in (1, 2):
        rough, level = [], []
        for one in (speckled, calm):
            plane = one.image[channel].astype(float)
            cytoplasm = (one.cells > 0) & (one.nuclei == 0)
            rough.append((plane - ndimage.gaussian_filter(plane, 4))[cytoplasm].std())
            level.append(plane[cytoplasm].mean() - np.percentile(plane, 1))
        assert rough[0] > 2 * rough[1]
        assert level[0] == pytest.approx(level[1], rel=0.2)
    assert speckled.table["Nuclei_Area"].median() == pytest.approx(calm.table["Nuclei_Area"].median(), rel=0.15)


def test_a_rare_phenotype_is_as_rare_as_it_is_said_to_be():
    rare = Treatment("x", "condensed", ec50=0.001, top=0.01, labeled=False)
    design = ScreenDesign(
        plates=("P",),
        rows=1,
        columns=4,
        fields=5,
        size_px=512,
        pixel_size_um=2.6,
        cells_per_field=300,
        treatments=(rare,),
    )
    well = well_of("positive", design=design)
    classes = np.concatenate([render_field(design, "P", well, field).table["Class"] for field in range(1, 6)])
    assert len(classes) > 1000
    assert 0.003 < (classes == "condensed").mean() < 0.02


def test_a_shift_makes_one_channel_of_one_plate_brighter_and_nothing_else():
    shifted = ScreenDesign(shifts={"P2": {"GFP": 2.0}})
    np.testing.assert_array_equal(render_field(shifted, "P1", "A04", 1).image, rendered("A04").image)
    one, was = render_field(shifted, "P2", "A04", 1), rendered("A04", plate="P2")
    np.testing.assert_array_equal(one.image[:2], was.image[:2])
    np.testing.assert_array_equal(one.cells, was.cells)
    inside, outside = was.cells > 0, ndimage.binary_dilation(was.cells > 0, iterations=20) == 0
    signal = [a.image[2][inside].mean() - a.image[2][outside].mean() for a in (one, was)]
    assert signal[0] == pytest.approx(2 * signal[1], rel=0.05)
    assert pickle.loads(pickle.dumps(shifted)) == shifted


def test_the_inactive_treatment_leaves_cells_normal():
    assert set(rendered(well_of("", "inertol")).table["Class"]) == {"normal"}


def test_an_empty_control_well_has_no_cells_and_a_table_with_all_columns():
    one = rendered(well_of("empty"))
    assert one.nuclei.max() == one.cells.max() == 0
    assert len(one.table) == 0
    assert list(one.table.columns) == list(rendered("A04").table.columns)
    assert one.defects == ()


def test_defects_spread_by_number_spare_the_empty_wells_and_each_other():
    design = ScreenDesign(defects={"blurred": 5, "debris": 4, "truncated": 2, "empty": [("P1", "A01", 1)]})
    found = all_defects(design)
    assert sorted(kind for kinds in found.values() for kind in kinds) == (
        ["blurred"] * 5 + ["debris"] * 4 + ["empty"] + ["truncated"] * 2
    )
    assert all(len(kinds) == 1 for kinds in found.values())
    assert well_of("empty") not in {well for _, well, _ in found}
    assert set(found) <= set(all_fields(design))


def test_each_defect_shows():
    key = ("P1", "A04", 1)
    good = rendered("A04")
    for kind in ("blurred", "debris", "saturated", "empty", "truncated"):
        one = render_field(ScreenDesign(defects={kind: [key]}), *key)
        assert one.defects == (kind,)
        if kind == "empty":
            assert len(one.table) == 0
            assert one.image[0].std() < 15
            continue
        np.testing.assert_array_equal(one.cells, good.cells)
        sharp, was = (ndimage.gaussian_laplace(a.image[0].astype(float), 2).var() for a in (one, good))
        if kind == "blurred":
            assert sharp < 0.5 * was
        elif kind == "saturated":
            assert (one.image == 4095).mean() > 0.02
        elif kind == "debris":
            assert np.percentile(one.image[1], 99.9) > 1.5 * np.percentile(good.image[1], 99.9)
        else:
            np.testing.assert_array_equal(one.image, good.image)


def test_the_light_is_smooth_positive_differs_between_channels_and_has_mean_one():
    light = flatfields(DESIGN, "P1")
    assert light.shape == (3, 512, 512)
    np.testing.assert_allclose(light.mean((1, 2)), 1, atol=1e-5)
    assert 0.5 < light.min() < 0.9 < 1.05 < light.max() < 1.5
    assert np.abs(light[0] - light[1]).max() > 0.02
    assert np.abs(np.diff(light, axis=1)).max() < 0.005
    np.testing.assert_allclose(flatfields(ScreenDesign(illumination_strength=0), "P1"), 1)


def test_plates_differ_in_staining_by_the_batch_strength():
    spread = []
    for strength in (0.0, 0.4):
        design = ScreenDesign(plates=tuple("ABCDEF"), batch_strength=strength, size_px=256, cells_per_field=20)
        means = [render_field(design, p, "A04", 1) for p in design.plates]
        levels = [np.log(one.image[0][one.nuclei > 0].mean() - 150) for one in means]
        spread.append(np.std(levels))
    assert spread[1] > spread[0] + 0.15


def test_oblong_fields_and_other_channels_are_rendered():
    channels = (*DEFAULT_CHANNELS, Channel("Actin", "actin"))
    one = render_field(ScreenDesign(size_px=(200, 331), channels=channels, cells_per_field=15), "P1", "A04", 1)
    assert one.image.shape == (4, 200, 331)
    assert one.nuclei.shape == (200, 331)


@pytest.mark.parametrize(
    "call",
    [
        lambda: render_field(DESIGN, "P9", "A01", 1),
        lambda: render_field(DESIGN, "P1", "Z01", 1),
        lambda: render_field(DESIGN, "P1", "A01", 0),
        lambda: ScreenDesign(defects={"blurry": 3}),
        lambda: all_defects(ScreenDesign(defects={"blurred": [("P1", "A01", 99)]})),
        lambda: all_defects(ScreenDesign(defects={"blurred": 10_000})),
        lambda: Channel("DNA", "dapi"),
        lambda: Treatment("x", "mitotic"),
        lambda: ScreenDesign(shifts={"P9": {"GFP": 2.0}}),
        lambda: ScreenDesign(shifts={"P1": {"Actin": 2.0}}),
        lambda: ScreenDesign(shifts={"P1": {"GFP": 0.0}}),
    ],
)
def test_what_is_not_in_the_design_is_refused(call):
    with pytest.raises(ValueError):
        call()


def test_the_truth_that_is_written_is_that_of_the_design(tmp_path):
    design = ScreenDesign(
        plates=("P1", "P2"), rows=3, columns=4, fields=1, size_px=96, cells_per_field=3.0, defects=(("blurred", 2),)
    )
    write_screen(tmp_path / "s", design)
    truth = tmp_path / "s/truth"
    read = functools.partial(pd.read_csv, sep="\t", keep_default_na=False)
    treatments = read(truth / "treatments.tsv").set_index("treatment")
    assert list(treatments.index) == [treatment.name for treatment in design.treatments]
    for treatment in design.treatments:
        row = treatments.loc[treatment.name]
        assert (row["phenotype"], row["ec50_uM"], row["hill"], row["top"]) == (
            treatment.phenotype,
            treatment.ec50,
            treatment.hill,
            treatment.top,
        )
        assert tuple(map(float, row["doses_uM"].split(","))) == treatment.doses
    blurred = read(truth / "defects.tsv")
    assert {tuple(row) for row in blurred.to_numpy()} == {(*one, "blurred") for one in all_defects(design)}
    assert len(blurred) == 2
    stained = read(truth / "staining.tsv").set_index(["plate", "channel"])
    for plate in design.plates:
        np.testing.assert_array_equal(tifffile.imread(truth / plate / "flatfield.tif"), flatfields(design, plate))
        np.testing.assert_allclose(stained.loc[plate].to_numpy(), staining(design, plate))
        assert len(list((truth / plate).glob("*_nuclei.tif"))) == len(list((truth / plate).glob("*_cells.tif"))) == 12
    classes = pd.read_parquet(truth / "cells.parquet")
    assert set(classes["Metadata_Plate"]) <= {"P1", "P2"} and "Class" in classes
