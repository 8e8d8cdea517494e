import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage, spatial
from skimage import measure, segmentation

from plateloom.errors import UnknownMethodError
from plateloom.features import FAMILIES, feature_columns, measure_image

REFERENCE = Path(__file__).parents[2] / "shared" / "data" / "cellprofiler_reference"
COMPARTMENTS = ("Nuclei", "Cells", "Cytoplasm")

# What of CellProfiler's columns each family must have.
FAMILY_COLUMNS = {
    "AreaShape": "AreaShape_(?!Zernike)",
    "Location": "Location_(CenterMassIntensity|MaxIntensity)_",
    "Intensity": "Intensity_",
    "Texture": "Texture_",
    "Correlation": "Correlation_",
    "RadialDistribution": "RadialDistribution_(FracAtD|MeanFrac|RadialCV)_",
    "Neighbors": "Neighbors_",
    "Zernike": "AreaShape_Zernike_|RadialDistribution_Zernike",
    "Granularity": "Granularity_",
}

# What leaves the values alone, but for the columns named here, and why these do not hold. Positions move, labels are
# renamed and axes swapped: that is part of the test, not an exception. Objects at the border of the image are not moved
# or padded here, as it is no edge for some columns; and where no object of a call has a pixel that counts in both channels,
# Overlap, K, Manders, RWC and Costes of all are 0 and not NaN (tests/test_features_correlation.py).
_CIRCLE = "whether a pixel on the circle counts is up to rounding; tests/test_features_zernike.py bounds it"
EXCEPTIONS = {
    "relabeling": {},
    "splitting": {
        "Correlation_RWC_": "ranks are taken over all objects",
        "Neighbors_": "the other objects are gone",
    },
    "moving": {
        "Granularity_": "the grid of samples begins at the corner of the image",
        "(AreaShape|RadialDistribution)_Zernike": _CIRCLE,
    },
    "padding": {
        "Granularity_": "the grid of samples begins at the corner of the image",
        "(AreaShape|RadialDistribution)_Zernike": _CIRCLE,
        "Correlation_Costes_": "thresholds come from all pixels of the image",
    },
    "transposing": {
        "AreaShape_(Spatial|Central)Moment_._3": "the orders go to 2 along the rows and to 3 along the columns",
        "RadialDistribution_RadialCV_": "pixels on a diagonal through the center change wedges",
        "(AreaShape|RadialDistribution)_Zernike": _CIRCLE,
    },
}


# --- CellProfiler's tables


@pytest.fixture(scope="module", params=["examplehuman", "synthetic"])
def reference(request):
    """Folder, channels, texture scales and our tables of one of the reference fields."""
    folder = REFERENCE / request.param
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    if request.param == "examplehuman":
        field = json.loads((folder / "field.json").read_text())
        channels, images = list(field["channels"]), [folder / path for path in field["channels"].values()]
        labels = {compartment: folder / path for compartment, path in field["labels"].items()}
    else:
        images = sorted((folder / "images").glob("*.tif"))
        channels = [path.stem.split("_")[1] for path in images]
        labels = {compartment: folder / "labels" / f"{compartment}.tif" for compartment in COMPARTMENTS}
    scales = (3, 5, 10) if request.param == "synthetic" else (3,)
    tables = measure_image(
        np.stack([tifffile.imread(path) for path in images]),
        {compartment: tifffile.imread(path) for compartment, path in labels.items()},
        channels,
        texture_scales=scales,
    )
    return folder, channels, scales, tables


def agree(measured, expected, absolute=1e-9):
    """CellProfiler's README: 1e-6 relative, NaN equals NaN, infinity equals infinity."""
    return np.isclose(measured, expected, rtol=1e-6, atol=absolute, equal_nan=True)


def absolute_tolerance(feature, expected):
    """The absolute term for features that are differences of large numbers."""
    if feature in ("AreaShape_Eccentricity", "AreaShape_MinorAxisLength") or feature.startswith("Texture_InfoMeas2_"):
        return 1e-6
    if moment := re.match(r"AreaShape_CentralMoment_(\d)_(\d)", feature):
        diameter = np.maximum(expected["AreaShape_MaxFeretDiameter"], 1)
        return 1e-9 + 1e-10 * expected["AreaShape_Area"] * diameter ** (int(moment[1]) + int(moment[2]))
    if hu := re.match(r"AreaShape_HuMoment_(\d)", feature):
        return (1e-9, 1e-9, 1e-12, 1e-12, 1e-15, 1e-12, 1e-15)[int(hu[1])]
    return 1e-9


def compare(feature, measured, expected, ties):
    """Where one feature agrees, and where it is defined at all: two arrays of bool."""
    ours, theirs = measured[feature].to_numpy(), expected[feature].to_numpy()
    ok, defined = agree(ours, theirs, absolute_tolerance(feature, expected)), np.ones(len(theirs), bool)
    if feature == "AreaShape_Orientation":
        ok = np.abs((ours - theirs + 90) % 180 - 90) <= 1e-6 * np.abs(theirs) + 1e-7
        defined = (expected["AreaShape_Eccentricity"] >= 1e-3).to_numpy()
        # Equal moments along both axes: CellProfiler's sign hangs on whether they are equal as rounded.
        moments = expected["AreaShape_InertiaTensor_0_0"], expected["AreaShape_InertiaTensor_1_1"]
        ok |= np.isclose(*moments, rtol=1e-12) & np.isclose(np.abs(ours), 45) & np.isclose(np.abs(theirs), 45)
    elif pair := re.match(r"Correlation_Correlation_(.+)_(.+)", feature):
        for channel in pair.groups():
            mean, deviation = (expected[f"Intensity_{m}Intensity_{channel}"].to_numpy() for m in ("Mean", "Std"))
            defined &= deviation > 1e-9 * mean + 1e-12
    elif feature.startswith("Neighbors_AngleBetweenNeighbors"):
        # Collinear centers: CellProfiler's cosine may be rounded beyond 1 and its angle NaN.
        cosine = np.cos(np.radians(ours))
        ok |= np.abs(cosine - np.cos(np.radians(theirs))) <= 1e-12
        ok |= np.isnan(theirs) & (np.abs(cosine) > 1 - 1e-12)
    elif position := re.match(r"Location_MaxIntensity_[XY]_(.+)", feature):
        x, y = (measured[f"Location_MaxIntensity_{axis}_{position[1]}"] for axis in "XY")
        ok |= [key in ties for key in zip(measured.index, [position[1]] * len(x), x, y, strict=True)]
    elif "_ZernikePhase_" in feature:
        magnitude = feature.replace("Phase", "Magnitude")
        ok = agree(*(table[magnitude] * np.exp(1j * table[feature]) for table in (measured, expected)))
        defined = ~(expected[magnitude] < 1e-9).to_numpy()
    return ok, defined


def take_over_tied_centers(measured, expected, tied):
    """Expect the values of that of several tied centers, if any, from which all of an object's rings are as measured."""
    features = [column for column in tied if column.startswith("RadialDistribution_")]
    for label, candidates in tied.groupby("ObjectNumber"):
        fitting = agree(measured.loc[label, features].to_numpy(), candidates[features].to_numpy()).all(axis=1)
        if fitting.any():
            expected.loc[label, features] = candidates.loc[fitting, features].iloc[0]


def without(prefix, table):
    return table.rename(columns=lambda column: column.removeprefix(f"{prefix}_"))


def compare_family(family, measured, expected, ties):
    """Number of compared values, and the objects that disagree by feature; without the one that a family may miss."""
    compared, wrong = 0, {}
    for feature in [column for column in expected if re.match(FAMILY_COLUMNS[family], column)]:
        ok, defined = compare(feature, measured, expected, ties)
        compared += defined.sum()
        if not ok[defined].all():
            wrong[feature] = set(measured.index[defined & ~ok])
    # One object may differ: of tied corners of the hull, CellProfiler's unstable sort takes any.
    if family == "Zernike" and len(set().union(*wrong.values())) == 1:
        wrong = {}
    return compared, wrong


@pytest.mark.parametrize("family", FAMILY_COLUMNS)
def test_values_are_those_of_cellprofiler(reference, family):
    folder, channels, scales, tables = reference
    for compartment in COMPARTMENTS:
        expected = without(compartment, pd.read_parquet(folder / f"{compartment}.parquet").set_index("ObjectNumber"))
        ties = pd.read_parquet(folder / "ties" / f"{compartment}_max_positions.parquet")
        ties = set(ties[["ObjectNumber", "Channel", "X", "Y"]].itertuples(index=False, name=None))
        measured = without(compartment, tables[compartment])
        assert len(expected) > 70
        assert_array_equal(measured.index, expected.index)
        features = [column for column in expected if re.match(FAMILY_COLUMNS[family], column)]
        assert set(features) == {
            column.removeprefix(f"{compartment}_")
            for column in feature_columns(compartment, channels, families=[family], texture_scales=scales)
            # CellProfiler's identification modules add these, not its measurements.
            if "_Location_Center_" not in column
        }
        if family == "RadialDistribution":
            tied = pd.read_parquet(folder / "ties" / f"{compartment}_radial_centres.parquet")
            take_over_tied_centers(measured, expected, without(compartment, tied))
        compared, wrong = compare_family(family, measured, expected, ties)
        assert compared > 0.8 * len(expected) * len(features)
        assert np.isfinite(expected[features]).to_numpy().mean() > 0.8
        assert not wrong, compartment


@pytest.mark.parametrize("family", FAMILY_COLUMNS)
def test_a_value_that_is_off_is_seen_in_every_column(reference, family):
    folder = reference[0]
    expected = without("Cells", pd.read_parquet(folder / "Cells.parquet").set_index("ObjectNumber"))
    off, features = expected.copy(), []
    for feature in [column for column in expected if re.match(FAMILY_COLUMNS[family], column)]:
        _, defined = compare(feature, expected, expected, set())
        # Two objects: one is what the Zernike moments may miss. Phases count through their magnitudes; the first
        # central moments are 0 but for rounding.
        labels = expected.index[defined & np.isfinite(expected[feature]) & ~expected[feature].isin([0])][:2]
        if len(labels) and not re.search("Phase|CentralMoment_(0_1|1_0)", feature):
            off.loc[labels, feature] *= 1.001
            features.append(feature)
    assert features
    assert set(compare_family(family, off, expected, set())[1]) >= set(features)


def test_every_family_is_compared_with_cellprofiler():
    assert {*FAMILY_COLUMNS, "Links"} == set(FAMILIES), "links are compared in their own file"


def test_the_brightest_pixel_is_the_first_of_those_that_are_equally_bright():
    image = np.array([[[0, 9, 9], [9, 0, 9]]], np.uint8)
    table = measure_image(image, {"Nuclei": np.ones((2, 3), int)}, ["DNA"])["Nuclei"]
    assert table[["Nuclei_Location_MaxIntensity_X_DNA", "Nuclei_Location_MaxIntensity_Y_DNA"]].to_numpy().tolist() == [
        [1, 0]
    ]


# --- the contract of every family


def blobs(seed=0, size=60, margin=8):
    """Label image of about 20 irregular objects, some touching, some with holes or in pieces, none near the border."""
    random = np.random.default_rng(seed)
    height = ndimage.gaussian_filter(random.normal(size=(size, size)), 2)
    territory = np.add.outer(np.arange(size) // 13 * 5, np.arange(size) // 13) + 1
    labels = np.where((height > -0.05) & (height < 0.2), territory, 0)
    labels[:margin] = labels[-margin:] = labels[:, :margin] = labels[:, -margin:] = 0
    return labels


def noise(seed=0, size=60, channels=3):
    return np.random.default_rng(seed).integers(0, 65536, (channels, size, size), dtype=np.uint16)


def measure_one(image, labels, family=None, **options):
    """Table of one compartment without its prefix; all families if none is named."""
    channels = ["DNA", "ER", "RNA", "AGP", "Mito"][: len(image)]
    table = measure_image(image, {"Cells": labels}, channels, families=family, **options)["Cells"]
    return table.rename(columns=lambda column: column.removeprefix("Cells_"))


@pytest.mark.parametrize("family", FAMILIES)
def test_columns_can_be_listed_without_an_image(family):
    listed = feature_columns("Cells", ["DNA", "ER"], families=[family], neighbor_distance=3, texture_scales=(3, 5))
    tables = measure_image(
        noise(channels=2),
        {"Cells": blobs()},
        ["DNA", "ER"],
        families=[family],
        neighbor_distance=3,
        texture_scales=(3, 5),
    )
    assert list(tables["Cells"].columns) == listed
    assert all(column.startswith("Cells_") for column in listed)
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_without_cells_gives_an_empty_table_with_all_columns(family):
    table = measure_one(noise(), np.zeros((60, 60), np.int32), family)
    assert table.shape == (0, len(feature_columns("Cells", ["DNA", "ER", "RNA"], families=[family])))
    assert set(table.dtypes) == {np.dtype(float)}
    assert table.index.name == "ObjectNumber"


@pytest.mark.parametrize("family", FAMILIES)
def test_relabeling_changes_no_value(family):
    labels = blobs()
    numbers = np.unique(labels)[1:]
    # Gaps, more than 16 bits, more than a table could hold, and another order.
    for renamed in (numbers + 70_000, 3 * numbers[::-1], (numbers + 1) << 34):
        lookup = dict(zip([0, *numbers], [0, *renamed], strict=True))
        relabeled = np.vectorize(lookup.get, otypes=[np.int64])(labels)
        before, after = measure_one(noise(), labels, family), measure_one(noise(), relabeled, family)
        assert_array_equal(after.index, np.sort(renamed))
        after = after.loc[renamed]
        for column in before:
            expected = before[column]
            if re.search("Object_?Number", column):
                expected = expected.map(lookup)
            assert_array_equal(after[column].to_numpy(), expected.to_numpy(), err_msg=column)


def held_columns(change, family):
    """Columns of a family whose values a change leaves alone."""
    columns = without("Cells", pd.DataFrame(columns=feature_columns("Cells", ["DNA", "ER", "RNA"], families=[family])))
    return [column for column in columns if not any(re.match(pattern, column) for pattern in EXCEPTIONS[change])]


def families_that_hold(change):
    return [family for family in FAMILIES if held_columns(change, family)]


def assert_moved(before, after, family, change, shift):
    """The values are the same, positions moved by rows and columns."""
    for column in held_columns(change, family):
        position = re.search(r"(Center|BoundingBoxM\w+|CenterMassIntensity|MaxIntensity)_([XY])(_|$)", column)
        expected = before[column] + shift["YX".index(position[2])] if position else before[column]
        if family == "AreaShape" and not position:
            assert_array_equal(after[column], expected, err_msg=column)
        assert_allclose(after[column], expected, rtol=1e-10, err_msg=column)


@pytest.mark.parametrize("family", families_that_hold("moving"))
def test_moving_by_whole_pixels_moves_positions_only(family):
    image, labels = noise(), blobs()
    moved = measure_one(np.roll(image, (4, -6), (1, 2)), np.roll(labels, (4, -6), (0, 1)), family)
    assert_moved(measure_one(image, labels, family), moved, family, "moving", (4, -6))


@pytest.mark.parametrize("family", families_that_hold("padding"))
def test_padding_moves_positions_only(family):
    image, labels, pads = noise(), blobs(), ((0, 0), (3, 8), (5, 1))
    padded = measure_one(np.pad(image, pads), np.pad(labels, pads[1:]), family)
    assert_moved(measure_one(image, labels, family), padded, family, "padding", (3, 5))


@pytest.mark.parametrize("family", families_that_hold("splitting"))
def test_splitting_the_objects_over_two_calls_changes_no_value(family):
    image, labels = noise(), blobs()
    # Every second object, so that neighbors are apart.
    halves = [measure_one(image, np.where(labels % 2 == odd, labels, 0), family) for odd in (0, 1)]
    assert min(len(half) for half in halves) > 5
    columns = held_columns("splitting", family)
    pd.testing.assert_frame_equal(
        pd.concat(halves).sort_index()[columns], measure_one(image, labels, family)[columns], check_exact=True
    )


def transposed(column):
    """Name of the column that has this one's values in the transposed image."""
    if column.startswith("Texture_"):
        # To the right becomes down; both diagonals stay, as pairs count both ways.
        return re.sub("_(00|02)_256$", lambda direction: "_02_256" if direction[1] == "00" else "_00_256", column)
    column = re.sub(r"Moment_(\d)_(\d)$", r"Moment_\2_\1", column)
    column = re.sub(
        r"InertiaTensor_(\d)_\1$", lambda axis: f"InertiaTensor_{1 - int(axis[1])}_{1 - int(axis[1])}", column
    )
    return re.sub("(?<=_)[XY](?=_|$)", lambda axis: "YX"["XY".index(axis[0])], column)


@pytest.mark.parametrize("family", families_that_hold("transposing"))
def test_transposing_swaps_the_axes_only(family):
    image, labels = noise()[:, :51], blobs()[:51]
    before = measure_one(image, labels, family)
    after = measure_one(image.transpose(0, 2, 1), labels.T, family)
    if family == "RadialDistribution":
        # Of equally deep pixels the first is the center.
        depths = [ndimage.distance_transform_edt(np.pad(labels == label, 1)) for label in before.index]
        single = [(depth == depth.max()).sum() == 1 for depth in depths]
        assert sum(single) > 2
        before, after = before[single], after[single]
    for column in held_columns("transposing", family):
        expected, swapped = before[column], after[transposed(column)]
        if column == "AreaShape_Orientation":
            # Both angles are to their own axis.
            assert_allclose((swapped + expected) % 180, 90, atol=1e-9)
            continue
        if column == "AreaShape_HuMoment_6":
            # Tells an object from its mirror image.
            swapped = -swapped
        tolerance = absolute_tolerance(column, before)
        assert (np.isclose(swapped, expected, rtol=1e-9, atol=tolerance, equal_nan=True)).all(), column


@pytest.mark.parametrize(
    ("change", "pattern"),
    [(change, pattern) for change, patterns in EXCEPTIONS.items() for pattern in patterns if "Zernike" not in pattern],
)
def test_no_exception_is_made_in_vain(change, pattern):
    image, labels = noise()[:, :51], blobs()[:51]
    family = next(family for family in FAMILIES if re.match(pattern, f"{family}_") or pattern.startswith(family))
    before, pads = measure_one(image, labels, family), ((3, 8), (5, 1))
    after = {
        "splitting": lambda: measure_one(image, np.where(labels % 2, labels, 0), family),
        "moving": lambda: measure_one(np.roll(image, (4, -6), (1, 2)), np.roll(labels, (4, -6), (0, 1)), family),
        "padding": lambda: measure_one(np.pad(image, ((0, 0), *pads)), np.pad(labels, pads), family),
        "transposing": lambda: measure_one(image.transpose(0, 2, 1), labels.T, family),
    }[change]()
    columns = [column for column in before if re.match(pattern, column)]
    assert columns
    missing = [column for column in columns if transposed(column) not in after]
    assert missing or not np.allclose(before.loc[after.index, columns], after[columns], equal_nan=True)


def place(*rectangles, shape=(60, 47)):
    """Label image of rectangles (label, first row, last row + 1, first column, last column + 1); later ones on top."""
    labels = np.zeros(shape, np.int64)
    for label, top, bottom, left, right in rectangles:
        labels[top:bottom, left:right] = label
    return labels


HARD = {
    "one pixel": place((5, 20, 21, 30, 31)),
    "four pixels": place((5, 20, 22, 30, 32)),
    "four pixels in a row": place((5, 20, 21, 30, 34)),
    "one pixel in a corner": place((5, 59, 60, 46, 47)),
    "pixels side by side": place((2, 20, 21, 30, 31), (7, 20, 21, 31, 32), (9, 21, 22, 30, 31)),
    "pixels of one object on a diagonal": np.eye(60, 47, dtype=int),
    "on every border": place((5, 0, 60, 0, 47), (0, 2, 58, 2, 45)),
    "along two borders": place((5, 0, 60, 0, 3), (8, 55, 60, 3, 47)),
    "with a hole": place((5, 10, 30, 10, 30), (0, 15, 20, 15, 20)),
    "around another": place((5, 10, 30, 10, 30), (9, 15, 20, 15, 20)),
    "in pieces": place((5, 2, 9, 2, 9), (5, 40, 50, 30, 40)),
    "the whole image": place((5, 0, 60, 0, 47)),
    "all but a pixel": place((5, 0, 60, 0, 47), (0, 30, 31, 20, 21)),
    "labels with gaps above 65,535": place((3, 2, 9, 2, 9), (70_000, 2, 9, 9, 20), (1 << 40, 20, 50, 5, 40)),
    "every pixel another": np.arange(60 * 47).reshape(60, 47),
}

# Where there is nothing to divide by, or no circle. All else is finite, in every channel.
NOT_FINITE = {
    "AreaShape_NormalizedMoment_(0_0|0_1|1_0)": lambda table: True,
    "AreaShape_FormFactor": lambda table: table["AreaShape_Perimeter"] == 0,
    ".*_Zernike": lambda table: table["AreaShape_Area"] == 1,
    # Three of the channels are constant in every object.
    "Correlation_Correlation_": lambda table: True,
    "Correlation_.*Zero": lambda table: True,
    # No pixel of the object may reach the thresholds of the image.
    "Correlation_Costes_": lambda table: True,
    "(Location_CenterMassIntensity|Intensity_MassDisplacement)_.*Zero": lambda table: True,
    "RadialDistribution_(FracAtD|MeanFrac)_Zero": lambda table: True,
    "Intensity_(Mean|Std)IntensityEdge_": lambda table: table["AreaShape_Area"] == 60 * 47,
}


def hard_channels(kind):
    """Noise that is nowhere 0, a constant, the largest level, zeros."""
    top = 255 if kind is np.uint8 else 65535
    levels = np.random.default_rng(1).integers(1 + top // 50, top, (60, 47))
    planes = np.stack([levels, np.full((60, 47), top // 3), np.full((60, 47), top), np.zeros((60, 47), int)])
    return (planes / top if kind is float else planes).astype(kind), ["Noise", "Constant", "Saturated", "Zero"]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, float])
@pytest.mark.parametrize("hard", HARD)
def test_hard_objects_have_right_rows_and_numbers(hard, kind):
    image, channels = hard_channels(kind)
    table = without("Cells", measure_image(image, {"Cells": HARD[hard]}, channels)["Cells"])
    labels, areas = np.unique(HARD[hard][HARD[hard] > 0], return_counts=True)
    assert_array_equal(table.index, labels)
    assert_array_equal(table["AreaShape_Area"], areas)
    assert_array_equal(table["Number_Object_Number"], labels)
    for column in table.columns[~np.isfinite(table).all()]:
        undefined = table[~np.isfinite(table[column])]
        excuses = [excuse for pattern, excuse in NOT_FINITE.items() if re.match(pattern, column)]
        assert any(np.all(excuse(undefined)) for excuse in excuses), column


def test_an_empty_cytoplasm_has_no_row_and_leaves_the_others_alone():
    nuclei, cells = place((3, 5, 9, 5, 9), (4, 20, 25, 20, 25)), place((3, 5, 9, 5, 9), (4, 15, 30, 15, 30))
    image, channels = hard_channels(np.uint16)
    tables = measure_image(image, {"Nuclei": nuclei, "Cells": cells, "Cytoplasm": cells - nuclei}, channels)
    assert [table.index.tolist() for table in tables.values()] == [[3, 4], [3, 4], [4]]
    empty = measure_image(image, {"Nuclei": nuclei, "Cells": nuclei, "Cytoplasm": nuclei - nuclei}, channels)
    assert [table.shape[0] for table in empty.values()] == [2, 2, 0]
    assert [table.columns.tolist() for table in empty.values()] == [table.columns.tolist() for table in tables.values()]
    for family in ("AreaShape", "Intensity", "Texture", "Granularity"):
        columns = tables["Nuclei"].columns.str.startswith(f"Nuclei_{family}_")
        pd.testing.assert_frame_equal(empty["Nuclei"].loc[:, columns], tables["Nuclei"].loc[:, columns])


def test_5_000_cells_are_measured():
    labels = np.kron(np.arange(1, 5042).reshape(71, 71), np.pad(np.ones((5, 4), int), ((0, 1), (0, 2)))) * 13
    image = np.random.default_rng(0).integers(1, 65536, (2, *labels.shape), dtype=np.uint16)
    table = measure_one(image, labels)
    assert_array_equal(table.index, 13 * np.arange(1, 5042))
    assert (table["AreaShape_Area"] == 20).all()
    columns = [column for column in table if not re.match("AreaShape_NormalizedMoment|Correlation_Costes", column)]
    assert np.isfinite(table[columns]).all(axis=None)
    # Far apart, cells have the values that each has alone.
    for label in (13, 13 * 2500, 13 * 5041):
        for family in ("AreaShape", "Intensity", "Texture", "RadialDistribution", "Zernike", "Granularity"):
            alone = measure_one(image, np.where(labels == label, label, 0), family)
            assert_array_equal(alone.loc[label], table.loc[label, alone.columns])


@pytest.mark.parametrize("channels", [0, 1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 33), (0, 7), (0, 0)])
def test_narrow_images_and_few_channels_are_measured(shape, channels):
    image = np.random.default_rng(0).integers(1, 256, (channels, *shape), dtype=np.uint8)
    labels = np.arange(shape[0] * shape[1]).reshape(shape) // 7 * 3
    table = measure_one(image, labels)
    assert table.index.tolist() == [label for label in np.unique(labels) if label]
    names = ["DNA", "ER"][:channels]
    assert [f"Cells_{column}" for column in table] == feature_columns("Cells", names)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_float_image_gives_what_the_integers_that_it_came_from_give(family):
    image = noise()
    pd.testing.assert_frame_equal(
        measure_one(image, blobs(), family), measure_one(image / 65535.0, blobs(), family, bit_depth=16)
    )


def test_threads_and_the_order_of_families_do_not_matter():
    once = measure_one(noise(), blobs())
    pd.testing.assert_frame_equal(
        once, measure_one(noise(), blobs(), list(FAMILIES)[::-1], threads=2), check_exact=True
    )


def test_families_can_be_switched_off():
    assert all(column.startswith("Intensity_") for column in measure_one(noise(), blobs(), ["Intensity"]))
    assert measure_one(noise(), blobs(), []).shape == (len(np.unique(blobs())) - 1, 0)


def test_an_unknown_family_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownMethodError, match="Did you mean 'Intensity'"):
        measure_one(noise(), blobs(), ["Intensty"])
    with pytest.raises(UnknownMethodError):
        feature_columns("Cells", ["DNA"], families=["Intensty"])


def test_listing_columns_imports_neither_numba_nor_pandas():
    code = (
        "import sys, plateloom.features as f; assert 'numpy' not in sys.modules;"
        "f.feature_columns('Cells', ['DNA', 'ER']); assert not {'numba', 'pandas', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_every_compartment_has_the_rows_of_its_own_labels():
    nuclei = np.array([[1, 0, 4], [0, 0, 0]])
    cells = np.array([[1, 1, 4], [1, 1, 0]])
    tables = measure_image(
        np.ones((1, 2, 3), np.uint8), {"Nuclei": nuclei, "Cells": cells, "Cytoplasm": cells - nuclei}, ["DNA"]
    )
    assert {compartment: table.index.tolist() for compartment, table in tables.items()} == {
        "Nuclei": [1, 4],
        "Cells": [1, 4],
        "Cytoplasm": [1],
    }
    assert tables["Cytoplasm"].loc[1, "Cytoplasm_AreaShape_Area"] == 3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int16, np.int64, ">i4"])
def test_labels_may_have_any_integer_type(dtype):
    pd.testing.assert_frame_equal(measure_one(noise(), blobs().astype(dtype)), measure_one(noise(), blobs()))


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("u1", "backwards"),
        ("u1", "channels last"),
        ("u2", "Fortran"),
        (">u2", "every second"),
        ("f4", "channels last"),
        ("f8", "Fortran"),
        ("f8", "every second"),
        (">f8", "backwards"),
    ],
)
def test_arrays_may_be_read_only_and_lie_in_memory_as_they_like(kind, order):
    image, labels = noise()[:, :51], blobs()[:51]
    image = (image >> 8).astype(kind) if kind == "u1" else image.astype(kind) / (65535 if "f" in kind else 1)
    image = image.astype(kind)
    expected = measure_one(image, labels)
    image, labels = (
        {
            "Fortran": lambda array: np.asfortranarray(array),
            "backwards": lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
            "every second": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
            "channels last": lambda array: np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 0, -1)), -1, 0),
        }[order](image),
        np.asfortranarray(labels),
    )
    image.flags.writeable = labels.flags.writeable = False
    untouched = image.copy(), labels.copy()
    pd.testing.assert_frame_equal(measure_one(image, labels), expected, check_exact=True)
    assert_array_equal(image, untouched[0])
    assert_array_equal(labels, untouched[1])


@pytest.mark.parametrize(
    ("image", "labels", "channels", "error", "message"),
    [
        (np.zeros((1, 2, 2), np.uint8), np.array([[0, -1], [0, 0]]), ["DNA"], ValueError, "found -1"),
        (np.zeros((1, 1, 1), np.uint8), np.full((1, 1), 2**64 - 1, np.uint64), ["DNA"], ValueError, "up to 9007199254"),
        (np.zeros((1, 2, 2), np.uint8), np.zeros((2, 3), int), ["DNA"], ValueError, r"\(2, 3\)"),
        (np.zeros((1, 2, 2), np.uint8), np.zeros((2, 2)), ["DNA"], TypeError, "float64"),
        (np.zeros((1, 2, 2), np.int32), np.zeros((2, 2), int), ["DNA"], TypeError, "int32"),
        (np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2), int), ["DNA"], ValueError, "shape"),
        (np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2), int), ["DNA", "DNA"], ValueError, "twice"),
        (np.full((1, 2, 2), np.nan), np.zeros((2, 2), int), ["DNA"], ValueError, "NaN"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(image, labels, channels, error, message):
    with pytest.raises(error, match=message):
        measure_image(image, {"Cells": labels}, channels)


# --- AreaShape


@pytest.mark.parametrize("seed", range(4))
def test_shapes_are_those_of_scikit_image(seed):
    labels = blobs(seed)
    table = measure_one(noise(channels=0), labels, "AreaShape")
    names = {
        "area": "Area",
        "area_bbox": "BoundingBoxArea",
        "bbox-3": "BoundingBoxMaximum_X",
        "bbox-2": "BoundingBoxMaximum_Y",
        "bbox-1": "BoundingBoxMinimum_X",
        "bbox-0": "BoundingBoxMinimum_Y",
        "centroid-1": "Center_X",
        "centroid-0": "Center_Y",
        "area_convex": "ConvexArea",
        "eccentricity": "Eccentricity",
        "equivalent_diameter_area": "EquivalentDiameter",
        "euler_number": "EulerNumber",
        "extent": "Extent",
        "axis_major_length": "MajorAxisLength",
        "axis_minor_length": "MinorAxisLength",
        "perimeter": "Perimeter",
        "solidity": "Solidity",
        **{f"moments-{p}-{q}": f"SpatialMoment_{p}_{q}" for p in range(3) for q in range(4)},
        **{f"moments_central-{p}-{q}": f"CentralMoment_{p}_{q}" for p in range(3) for q in range(4)},
        **{f"moments_normalized-{p}-{q}": f"NormalizedMoment_{p}_{q}" for p in range(4) for q in range(4)},
        **{f"moments_hu-{k}": f"HuMoment_{k}" for k in range(7)},
        **{f"inertia_tensor-{i}-{j}": f"InertiaTensor_{i}_{j}" for i in range(2) for j in range(2)},
        **{f"inertia_tensor_eigvals-{i}": f"InertiaTensorEigenvalues_{i}" for i in range(2)},
    }
    oracle = measure.regionprops_table(labels, properties=sorted({name.split("-")[0] for name in names}))
    for theirs, ours in names.items():
        assert_allclose(table[f"AreaShape_{ours}"], oracle[theirs], rtol=1e-8, atol=1e-6, err_msg=ours)
    assert (table["AreaShape_EulerNumber"] < 1).any()
    assert (table["AreaShape_EulerNumber"] > 1).any()


def test_radii_are_those_of_the_distance_transform():
    labels = blobs(size=90)
    table = measure_one(noise(size=90, channels=0), labels, "AreaShape")
    for label in table.index:
        inside = np.pad(labels == label, 1)
        distances = ndimage.distance_transform_edt(inside)[inside]
        radii = table.loc[label, [f"AreaShape_{name}Radius" for name in ("Maximum", "Mean", "Median")]]
        assert_allclose(radii.to_numpy(), [distances.max(), distances.mean(), np.median(distances)], rtol=1e-12)


def test_feret_diameters_are_those_of_the_convex_hull():
    labels = blobs(1)
    table = measure_one(noise(channels=0), labels, "AreaShape")
    for label in table.index:
        points = np.argwhere(labels == label)
        hull = spatial.ConvexHull(points)
        widths = -(points @ hull.equations[:, :2].T + hull.equations[:, 2]).min(axis=0)
        ferets = table.loc[label, ["AreaShape_MinFeretDiameter", "AreaShape_MaxFeretDiameter"]]
        assert_allclose(ferets.to_numpy(), [widths.min(), spatial.distance.pdist(points).max()], rtol=1e-9)


def test_a_rectangle_has_the_values_that_geometry_gives():
    labels = np.zeros((9, 12), int)
    labels[2:5, 3:10] = 1
    shape = measure_one(np.zeros((0, 9, 12), np.uint8), labels, "AreaShape").loc[1].rename(lambda c: c[10:])
    assert shape["Area"] == shape["ConvexArea"] == shape["BoundingBoxArea"] == 21
    assert (shape["Center_X"], shape["Center_Y"]) == (6, 3)
    assert shape["Perimeter"] == 2 * (6 + 2)
    assert shape["FormFactor"] == pytest.approx(4 * np.pi * 21 / 16**2)
    assert shape["Compactness"] == pytest.approx(1 / shape["FormFactor"])
    assert shape["MinFeretDiameter"] == 2
    assert shape["MaxFeretDiameter"] == pytest.approx(np.hypot(2, 6))
    assert shape["MaximumRadius"] == 2
    assert shape["Orientation"] == 90
    assert shape["InertiaTensorEigenvalues_0"] == pytest.approx((7**2 - 1) / 12)
    assert shape["InertiaTensorEigenvalues_1"] == pytest.approx((3**2 - 1) / 12)


def test_a_single_pixel_has_a_shape():
    shape = measure_one(np.zeros((0, 1, 1), np.uint8), np.ones((1, 1), int), "AreaShape").loc[1]
    shape = shape.rename(lambda c: c.removeprefix("AreaShape_"))
    for name in ("Area", "ConvexArea", "Solidity", "Extent", "EulerNumber", "MaximumRadius", "MedianRadius"):
        assert shape[name] == 1
    for name in ("Perimeter", "Compactness", "Eccentricity", "MajorAxisLength", "MinFeretDiameter", "MaxFeretDiameter"):
        assert shape[name] == 0
    assert shape["FormFactor"] == np.inf


def test_the_image_border_is_outside_for_shapes():
    labels = blobs()
    top, left = (coordinates.min() for coordinates in np.nonzero(labels))
    cut, whole = (
        measure_one(noise(channels=0)[:, top:, left:], labels[top:, left:]),
        measure_one(noise(channels=0), labels),
    )
    for column in ("Perimeter", "MaximumRadius", "EulerNumber", "ConvexArea"):
        assert_array_equal(cut[f"AreaShape_{column}"], whole[f"AreaShape_{column}"])


# --- Intensity and Location


def test_intensities_are_those_of_numpy():
    image, labels = noise(), blobs()
    table = measure_one(image, labels, ["Intensity", "Location"])
    border = segmentation.find_boundaries(labels, mode="inner")
    for label in table.index:
        inside = labels == label
        values, rows, columns = image[1][inside] / 65535, *np.nonzero(inside)
        edge = image[1][inside & border] / 65535
        center = np.average(columns, weights=values), np.average(rows, weights=values)
        expected = {
            "Location_CenterMassIntensity_X_ER": center[0],
            "Location_CenterMassIntensity_Y_ER": center[1],
            "Location_CenterMassIntensity_Z_ER": 0,
            "Location_MaxIntensity_X_ER": columns[values.argmax()],
            "Location_MaxIntensity_Y_ER": rows[values.argmax()],
            "Intensity_MassDisplacement_ER": np.hypot(center[0] - columns.mean(), center[1] - rows.mean()),
        }
        for suffix, pixels in (("", values), ("Edge", edge)):
            for name in ("Mean", "Std", "Min", "Max"):
                expected[f"Intensity_{name}Intensity{suffix}_ER"] = getattr(np, name.lower())(pixels)
            expected[f"Intensity_IntegratedIntensity{suffix}_ER"] = pixels.sum()
        assert_allclose(table.loc[label, list(expected)].to_numpy(), list(expected.values()), rtol=1e-11, err_msg=label)


@pytest.mark.parametrize(
    ("levels", "lower", "median", "upper", "deviation"),
    [
        ([51], 51, 51, 51, 0),
        ([0, 10], 5, 10, 10, 10),
        ([0, 10, 20, 100], 10, 20, 100, 20),
        # Position n * q: 1.25, 2.5, 3.75; the deviations from 25 are 5, 5, 15, 25, 75.
        ([0, 10, 20, 30, 100], 12.5, 25, 82.5, 20),
    ],
)
def test_quantiles_lie_where_cellprofiler_puts_them(levels, lower, median, upper, deviation):
    image = np.array(levels, np.uint8)[::-1].reshape(1, 1, -1)
    names = [f"Intensity_{name}Intensity_DNA" for name in ("LowerQuartile", "Median", "UpperQuartile", "MAD")]
    for intensities in (image, image / 255.0):
        table = measure_one(intensities, np.ones((1, len(levels)), int), "Intensity")
        assert_allclose(table.loc[1, names].to_numpy() * 255, [lower, median, upper, deviation], atol=1e-12)


@pytest.mark.parametrize("largest", [3, 200, 255, 256, 257, 65535])
def test_integers_and_the_same_floats_give_the_same_intensities(largest):
    image = np.random.default_rng(largest).integers(65535 - largest, 65536, (1, 60, 60), dtype=np.uint16)
    pd.testing.assert_frame_equal(
        measure_one(image, blobs(), "Intensity"),
        measure_one(image / 65535, blobs(), "Intensity"),
        rtol=1e-12,
        atol=1e-12,
    )


def test_the_image_border_is_no_edge_for_intensities():
    labels = np.zeros((4, 4), int)
    labels[:, :3] = 1
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    edge = measure_one(image, labels, "Intensity")["Intensity_IntegratedIntensityEdge_DNA"]
    assert edge[1] == pytest.approx((2 + 6 + 10 + 14) / 255)


def test_an_object_that_fills_the_image_has_no_edge():
    table = measure_one(np.full((1, 3, 3), 51, np.uint8), np.ones((3, 3), int), "Intensity")
    names = [f"Intensity_{name}IntensityEdge_DNA" for name in ("Integrated", "Min", "Max", "Mean", "Std")]
    assert_array_equal(table.loc[1, names].to_numpy(), [0, 0, 0, np.nan, np.nan])


def test_an_object_without_intensity_has_no_center_of_mass():
    table = measure_one(np.zeros((1, 60, 60), np.uint8), blobs(), ["Intensity", "Location"])
    for column in table:
        if "CenterMass" in column or "MassDisplacement" in column:
            assert table[column].isna().all()
        elif column.startswith("Intensity_"):
            assert (table[column] == 0).all()


# --- Correlation


def test_correlations_are_those_of_numpy():
    image, labels = noise(), blobs()
    table = measure_one(image, labels, "Correlation")
    for label in table.index:
        first, second = image[0][labels == label] / 65535, image[2][labels == label] / 65535
        assert table.loc[label, "Correlation_Correlation_DNA_RNA"] == pytest.approx(np.corrcoef(first, second)[0, 1])
        both = (first >= 0.15 * first.max()) & (second >= 0.15 * second.max())
        first, second = first[both], second[both]
        overlap = first @ second / np.sqrt(first @ first * (second @ second))
        assert table.loc[label, "Correlation_Overlap_DNA_RNA"] == pytest.approx(overlap)


def test_a_constant_channel_has_no_correlation():
    image = noise(channels=2)
    image[1] = 4711
    table = measure_one(image, blobs(), "Correlation")
    assert table["Correlation_Correlation_DNA_ER"].isna().all()
    assert table["Correlation_Overlap_DNA_ER"].notna().all()
    image[1] = 0
    assert measure_one(image, blobs(), "Correlation")["Correlation_Overlap_DNA_ER"].isna().all()


# --- Neighbors


def disk(radius):
    y, x = np.mgrid[-int(radius) : int(radius) + 1, -int(radius) : int(radius) + 1]
    return y * y + x * x <= radius * radius


@pytest.mark.parametrize("distance", [1, 2, 5, 7])
def test_neighbors_are_those_that_a_dilation_meets(distance):
    labels = blobs(margin=0)
    table = measure_one(noise(channels=0), labels, "Neighbors", neighbor_distance=distance)
    inner = segmentation.find_boundaries(np.pad(labels, 1), mode="inner", connectivity=2)[1:-1, 1:-1]
    for label in table.index:
        inside = labels == label
        met = np.unique(labels[ndimage.binary_dilation(inside, disk(distance))])
        others = ndimage.binary_dilation((labels > 0) & ~inside, disk(distance + 0.5))
        outline = inside & inner
        assert table.loc[label, f"Neighbors_NumberOfNeighbors_{distance}"] == len(set(met) - {0, label})
        share = 100 * (outline & others).sum() / outline.sum()
        assert table.loc[label, f"Neighbors_PercentTouching_{distance}"] == pytest.approx(share)
        if distance == 1:
            for name in ("NumberOfNeighbors", "PercentTouching"):
                assert table.loc[label, f"Neighbors_{name}_Adjacent"] == table.loc[label, f"Neighbors_{name}_1"]


@pytest.mark.parametrize("seed", range(3))
def test_the_closest_objects_are_those_of_a_tree_of_centers(seed):
    labels = blobs(seed)
    table = measure_one(noise(channels=0), labels, "Neighbors")
    centers = np.array(ndimage.center_of_mass(labels > 0, labels, table.index))
    distances, order = spatial.KDTree(centers).query(centers, k=3)
    assert_allclose(table["Neighbors_FirstClosestDistance_5"], distances[:, 1])
    assert_allclose(table["Neighbors_SecondClosestDistance_5"], distances[:, 2])
    assert_array_equal(table["Neighbors_FirstClosestObjectNumber_Adjacent"], table.index[order[:, 1]])
    assert_array_equal(table["Neighbors_SecondClosestObjectNumber_Adjacent"], table.index[order[:, 2]])
    first, second = centers[order[:, 1]] - centers, centers[order[:, 2]] - centers
    angle = np.angle(complex_numbers(first) / complex_numbers(second), deg=True)
    assert_allclose(table["Neighbors_AngleBetweenNeighbors_5"], np.abs(angle), atol=1e-5)


def complex_numbers(vectors):
    return vectors[:, 1] + 1j * vectors[:, 0]


def test_one_object_has_no_neighbors_and_two_have_no_second():
    alone = measure_one(noise(channels=0, size=3), np.array([[0, 0, 0], [0, 4, 4], [0, 0, 0]]), "Neighbors")
    assert (alone == 0).all(axis=None)
    pair = measure_one(noise(channels=0, size=3), np.array([[4, 0, 0], [4, 0, 0], [0, 0, 9]]), "Neighbors")
    assert pair["Neighbors_FirstClosestObjectNumber_5"].tolist() == [9, 4]
    assert pair["Neighbors_FirstClosestDistance_5"].tolist() == [2.5, 2.5]
    assert pair["Neighbors_NumberOfNeighbors_Adjacent"].tolist() == [0, 0]
    assert pair["Neighbors_NumberOfNeighbors_5"].tolist() == [1, 1]
    for name in ("SecondClosestObjectNumber", "SecondClosestDistance", "AngleBetweenNeighbors"):
        assert (pair[f"Neighbors_{name}_5"] == 0).all()


def test_diagonal_pixels_touch_but_are_not_adjacent():
    table = measure_one(noise(channels=0, size=2), np.array([[1, 0], [0, 2]]), "Neighbors")
    assert table["Neighbors_NumberOfNeighbors_Adjacent"].tolist() == [0, 0]
    assert table["Neighbors_PercentTouching_Adjacent"].tolist() == [100, 100]


def test_of_equally_far_objects_the_smaller_label_is_the_closer():
    table = measure_one(noise(channels=0, size=5), np.diag([3, 0, 1, 0, 2]), "Neighbors")
    assert table.loc[1, "Neighbors_FirstClosestObjectNumber_5"] == 2
    assert table.loc[1, "Neighbors_SecondClosestObjectNumber_5"] == 3
    assert table.loc[1, "Neighbors_AngleBetweenNeighbors_5"] == pytest.approx(180)


@pytest.mark.parametrize("distance", [0, -1, 2.5])
def test_a_neighbor_distance_that_is_no_number_of_pixels_is_refused(distance):
    with pytest.raises(ValueError, match="neighbor_distance"):
        measure_one(noise(), blobs(), "Neighbors", neighbor_distance=distance)


# --- Intensity


@pytest.mark.parametrize("count", [1, 2, 15, 16, 100, 3000])
def test_floats_are_sorted_however_unevenly_they_lie(count):
    random = np.random.default_rng(0)
    for values in (
        random.random(count),
        random.normal(size=count) ** 9,
        random.integers(0, 5, count) / 7,
        np.r_[random.random(count - 1) * 1e-300, 1.0],
        np.full(count, 0.3),
    ):
        image = np.clip(values, -1e3, 1e3).reshape(1, 1, count)
        table = measure_one(image, np.ones((1, count), int), "Intensity").loc[1]
        expected = {name: quantile(image, q) for name, q in (("Lower", 0.25), ("Median", 0.5), ("Upper", 0.75))}
        expected["MAD"] = quantile(abs(image - expected["Median"]), 0.5)
        measured = {
            name: table[f"Intensity_{name}{'Quartile' * name.endswith('er')}Intensity_DNA"] for name in expected
        }
        assert measured == pytest.approx(expected, rel=1e-12)


def quantile(values, fraction):
    """At position n * fraction, interpolated, and no higher than the last value."""
    ordered = np.sort(values, axis=None)
    k, weight = int(ordered.size * fraction), ordered.size * fraction % 1
    return ordered[-1] if k >= ordered.size - 1 else (1 - weight) * ordered[k] + weight * ordered[k + 1]


def test_floats_beyond_all_reason_are_sorted_too():
    values = np.where(np.arange(40) % 2, 1.7e308, -1.7e308).reshape(1, 1, 40)
    table = measure_one(values, np.ones((1, 40), int), "Intensity").loc[1]
    assert table["Intensity_MinIntensity_DNA"] == -1.7e308 and table["Intensity_MaxIntensity_DNA"] == 1.7e308
