"""Volumes are measured as scikit-image and scipy do it, wherever the objects lie and whatever their labels are."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from skimage import measure, segmentation

from plateloom.errors import UnknownMethodError
from plateloom.features import measure_image, measure_volume

SHAPE = (14, 26, 30)
CHANNELS = ["DNA", "ER"]
POSITION = r"(Center|BoundingBoxM\w+|CenterMassIntensity|MaxIntensity)_([XYZ])(_|$)"


def blobs(seed=0, margin=0, shape=SHAPE):
    """About 18 irregular objects with gaps in their labels; they touch each other, the border, have holes and pieces."""
    height = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2)
    z, y, x = np.indices(shape)
    labels = np.where((height > -0.08) & (height < 0.12), 3 * (z // 8 + 2 * (y // 9) + 6 * (x // 11)) + 2, 0)
    inner = tuple(slice(margin, n - margin) for n in shape)
    kept = np.zeros_like(labels)
    kept[inner] = labels[inner]
    return kept


def noise(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 65536, (len(CHANNELS), *shape), dtype=np.uint16)


def measure_one(image, labels, families=None):
    """Table of one compartment without its prefix."""
    table = measure_volume(image, {"Cells": labels}, CHANNELS[: len(image)], families=families)["Cells"]
    return table.rename(columns=lambda column: column.removeprefix("Cells_"))


# --- against other implementations


@pytest.mark.parametrize("seed", range(3))
def test_shapes_are_those_of_scikit_image(seed):
    labels = blobs(seed)
    table = measure_one(noise()[:0], labels, "AreaShape")
    names = {
        "area": "Volume",
        "area_bbox": "BoundingBoxVolume",
        **{f"bbox-{k}": f"BoundingBox{end}_{'ZYX'[k % 3]}" for k, end in enumerate(["Minimum"] * 3 + ["Maximum"] * 3)},
        **{f"centroid-{k}": f"Center_{axis}" for k, axis in enumerate("ZYX")},
        "equivalent_diameter_area": "EquivalentDiameter",
        "euler_number": "EulerNumber",
        "extent": "Extent",
        "axis_major_length": "MajorAxisLength",
        "axis_minor_length": "MinorAxisLength",
    }
    oracle = measure.regionprops_table(labels, properties=["label", *{name.split("-")[0] for name in names}])
    assert_array_equal(table.index, oracle["label"])
    for theirs, ours in names.items():
        assert_allclose(table[f"AreaShape_{ours}"], oracle[theirs], rtol=1e-9, atol=1e-9, err_msg=ours)
    assert {*table} == {f"AreaShape_{ours}" for ours in (*names.values(), "SurfaceArea")}
    assert table["AreaShape_EulerNumber"].nunique() > 3


def test_the_euler_number_counts_pieces_tunnels_and_hollows():
    labels = np.zeros((5, 5, 25), int)
    labels[1:4, 1:4, 1:4] = 1
    labels[2, 2, 2] = 0  # a hollow
    labels[1:4, 1:4, 6:9] = 2
    labels[:, 2, 7] = 0  # a tunnel
    labels[0, 0, 12] = labels[1, 1, 13] = 3  # a corner in common
    labels[0, 0, 16] = labels[0, 0, 18] = 4  # two pieces
    labels[0, 0, 22] = 5
    table = measure_one(noise(shape=labels.shape), labels, "AreaShape")
    assert table["AreaShape_EulerNumber"].tolist() == [2, 0, 1, 2, 1]


def test_the_surface_is_that_of_marching_cubes_around_the_object():
    labels = blobs()
    table = measure_one(noise()[:0], labels, "AreaShape")
    for label in table.index:
        vertices, faces, _, _ = measure.marching_cubes((labels == label).astype(float), 0)
        expected = measure.mesh_surface_area(vertices.astype(float), faces)
        assert table.loc[label, "AreaShape_SurfaceArea"] == pytest.approx(expected, rel=1e-6)


def test_the_surface_of_a_voxel_is_an_octahedron_through_its_neighbors():
    labels = np.zeros((5, 3, 3), int)
    labels[1, 1, 1] = 1
    labels[4, 1, 1] = 2
    table = measure_one(noise(shape=labels.shape), labels, "AreaShape")
    # Half of it at the border, where the surface is open.
    assert_allclose(table["AreaShape_SurfaceArea"], [4 * np.sqrt(3), 2 * np.sqrt(3)], rtol=1e-6)


def test_the_axes_of_a_ball_are_its_diameter():
    z, y, x = np.indices((41, 41, 41)) - 20
    ball = (z**2 + y**2 + x**2 <= 15.2**2).astype(int)
    table = measure_one(np.zeros((0, *ball.shape), np.uint8), ball, "AreaShape")
    for length in ("MajorAxisLength", "MinorAxisLength", "EquivalentDiameter"):
        assert table.loc[1, f"AreaShape_{length}"] == pytest.approx(2 * 15.2, rel=0.01)
    # Between that of the ball and that of a ball with one voxel more around it.
    assert 4 * np.pi * 15.2**2 < table.loc[1, "AreaShape_SurfaceArea"] < 1.1 * 4 * np.pi * 16.2**2


@pytest.mark.parametrize("seed", range(3))
def test_intensities_are_those_of_numpy(seed):
    image, labels = noise(seed), blobs(seed)
    table = measure_one(image, labels, ["Intensity", "Location"])
    edges = segmentation.find_boundaries(labels, mode="inner")
    for label in table.index:
        inside = labels == label
        where = np.argwhere(inside)
        for channel, values in zip(CHANNELS, image / 65535, strict=True):
            found, edge = values[inside], values[inside & edges]
            mass = ndimage.center_of_mass(values, labels, label)
            brightest = where[found.argmax()]
            expected = {
                f"Intensity_{name}Intensity{part}": function(pixels)
                for part, pixels in (("", found), ("Edge", edge))
                for name, function in (
                    ("Integrated", np.sum),
                    ("Mean", np.mean),
                    ("Std", np.std),
                    ("Min", np.min),
                    ("Max", np.max),
                )
            }
            expected["Intensity_MassDisplacement"] = np.linalg.norm(mass - where.mean(axis=0))
            for k, axis in enumerate("ZYX"):
                expected[f"Location_CenterMassIntensity_{axis}"] = mass[k]
                expected[f"Location_MaxIntensity_{axis}"] = brightest[k]
            for name, value in expected.items():
                assert table.loc[label, f"{name}_{channel}"] == pytest.approx(value, rel=1e-10), name
        assert_allclose(table.loc[label, [f"Location_Center_{axis}" for axis in "ZYX"]], where.mean(axis=0))


def test_quantiles_split_the_voxels():
    # 101 voxels: CellProfiler's rule interpolates after the voxel that numpy's does.
    values = np.random.default_rng(0).permutation(101)
    image, labels = values.reshape(1, 1, 101, 1).astype(np.uint8), np.ones((1, 101, 1), int)
    table = measure_one(image, labels, "Intensity").loc[1] * 255
    assert_allclose(
        table[[f"Intensity_{name}Intensity_DNA" for name in ("LowerQuartile", "Median", "UpperQuartile")]],
        [25.25, 50.5, 75.75],
    )
    assert table["Intensity_MADIntensity_DNA"] == pytest.approx(25.5)


def test_the_brightest_voxel_is_the_first_of_those_that_are_equally_bright():
    image = np.array([[[[0, 0], [0, 9]], [[9, 0], [0, 9]]]], np.uint8)
    table = measure_one(image, np.ones((2, 2, 2), int), "Location")
    assert [table.loc[1, f"Location_MaxIntensity_{axis}_DNA"] for axis in "ZYX"] == [0, 1, 1]


def test_a_volume_of_one_plane_has_the_values_of_the_plane():
    shape = (1, 60, 60)
    image, labels = noise(shape=shape), blobs(shape=shape)
    volume = measure_one(image, labels)
    plane = measure_image(image[:, 0], {"Cells": labels[0]}, CHANNELS, families=["AreaShape", "Location", "Intensity"])
    plane = plane["Cells"].rename(columns=lambda column: column.removeprefix("Cells_"))
    renamed = {"AreaShape_Area": "AreaShape_Volume", "AreaShape_BoundingBoxArea": "AreaShape_BoundingBoxVolume"}
    other = {f"AreaShape_{name}" for name in ("EquivalentDiameter", "MajorAxisLength", "MinorAxisLength")}
    plane = plane.rename(columns=renamed)
    both = [column for column in volume if column in plane and column not in other]
    assert len(both) == 10 + 2 + 6 * 2 + 15 * 2
    pd.testing.assert_frame_equal(volume[both], plane[both], rtol=1e-10)
    ratio = volume["AreaShape_MajorAxisLength"] / plane["AreaShape_MajorAxisLength"]
    assert_allclose(ratio[volume["AreaShape_Volume"] > 1], np.sqrt(5) / 2)
    assert_allclose(volume["AreaShape_MinorAxisLength"], 0, atol=1e-9)
    assert volume["AreaShape_SurfaceArea"].isna().all()
    assert (volume["AreaShape_BoundingBoxMaximum_Z"] == 1).all()


# --- wherever and however


def test_relabeling_changes_no_value():
    labels = blobs()
    before, numbers = measure_one(noise(), labels), np.unique(labels)[1:]
    # More than 16 bits, more than a table could hold, and another order.
    for renamed in (numbers[::-1] + 70_000, (numbers + 1) << 34):
        lookup = dict(zip([0, *numbers], [0, *renamed], strict=True))
        after = measure_one(noise(), np.vectorize(lookup.get, otypes=[np.int64])(labels))
        assert_array_equal(after.index, np.sort(renamed))
        assert_array_equal(after.loc[renamed].to_numpy(), before.to_numpy())


def test_moving_or_padding_by_whole_voxels_moves_positions_only():
    image, labels = noise(), blobs(margin=3)
    before = measure_one(image, labels)
    pads = ((2, 0), (3, 8), (5, 1))
    for shift, moved in {
        (2, -1, -2): measure_one(np.roll(image, (2, -1, -2), (1, 2, 3)), np.roll(labels, (2, -1, -2), (0, 1, 2))),
        (2, 3, 5): measure_one(np.pad(image, ((0, 0), *pads)), np.pad(labels, pads)),
    }.items():
        for column in before:
            position = re.search(POSITION, column)
            expected = before[column] + shift["ZYX".index(position[2])] if position else before[column]
            assert_allclose(moved[column], expected, rtol=1e-12, err_msg=column)


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_exchanging_axes_exchanges_positions(order):
    image, labels = noise(), blobs()
    before = measure_one(image, labels)
    after = measure_one(image.transpose(0, *(axis + 1 for axis in order)), labels.transpose(order))
    for column in before:
        exchanged = re.sub(POSITION, lambda p: f"{p[1]}_{'ZYX'[order['ZYX'.index(p[2])]]}{p[3]}", column)
        # Marching cubes may join ambiguous corners along either diagonal.
        tolerance = 0.02 if column == "AreaShape_SurfaceArea" else 1e-9
        assert_allclose(after[column], before[exchanged], rtol=tolerance, atol=1e-9, err_msg=column)


def test_an_object_does_not_see_its_neighbors():
    image, labels = noise(), blobs()
    together = measure_one(image, labels)
    alone = pd.concat([measure_one(image, np.where(labels == label, label, 0)) for label in together.index])
    pd.testing.assert_frame_equal(alone, together, check_exact=True)


def test_a_float_volume_gives_what_the_integers_that_it_came_from_give():
    pd.testing.assert_frame_equal(measure_one(noise(), blobs()), measure_one(noise() / 65535, blobs()))


def test_arrays_may_be_read_only_and_not_contiguous():
    image, labels = np.asfortranarray(noise()), blobs()[::-1, ::-1].astype(np.uint8)
    image.flags.writeable = labels.flags.writeable = False
    pd.testing.assert_frame_equal(measure_one(image, labels), measure_one(image.copy("C"), labels.astype(np.int64)))


# --- what is hardly there


def test_objects_of_one_voxel_are_measured():
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, 0], labels[2, 2, 2], labels[2, 2, 3] = 1, 2, 5
    table = measure_one(noise(shape=labels.shape), labels)
    assert table.index.tolist() == [1, 2, 5]
    assert table["AreaShape_Volume"].tolist() == [1, 1, 1]
    assert table["AreaShape_MajorAxisLength"].tolist() == [0, 0, 0]
    assert table["AreaShape_EulerNumber"].tolist() == [1, 1, 1]
    assert table["Location_MaxIntensity_Z_DNA"].tolist() == [0, 2, 2]
    assert_array_equal(
        table["Intensity_MeanIntensity_DNA"],
        table["Intensity_MADIntensity_DNA"] + table["Intensity_MeanIntensityEdge_DNA"],
    )
    assert table.notna().all(axis=None)


def test_a_channel_of_zeros_has_no_center_of_mass():
    table = measure_one(np.zeros((2, *SHAPE), np.uint16), blobs())
    undefined = {column for column in table if table[column].isna().any()}
    assert undefined == {column for column in table if re.search("CenterMassIntensity|MassDisplacement", column)}


def test_an_object_that_fills_the_volume_has_neither_edge_nor_surface():
    table = measure_one(noise(shape=(3, 4, 5)), np.ones((3, 4, 5), int)).loc[1]
    assert table["AreaShape_Volume"] == table["AreaShape_BoundingBoxVolume"] == 60
    assert table["AreaShape_SurfaceArea"] == table["Intensity_IntegratedIntensityEdge_DNA"] == 0
    assert np.isnan(table["Intensity_MeanIntensityEdge_DNA"])


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1), (0, 4, 4), (4, 0, 4)])
def test_an_empty_volume_gives_an_empty_table_with_all_columns(shape):
    table = measure_one(noise(shape=shape), np.zeros(shape, np.int32))
    assert list(table) == list(measure_one(noise(), blobs()))
    assert table.shape == (0, 17 + 3 + 6 * 2 + 15 * 2)
    assert set(table.dtypes) == {np.dtype(float)}
    assert table.index.name == "ObjectNumber"


def test_every_compartment_has_the_rows_of_its_own_labels():
    cells = blobs()
    nuclei = np.where(cells > cells.max() // 2, cells, 0)
    tables = measure_volume(noise(), {"Nuclei": nuclei, "Cells": cells}, CHANNELS, families=["Intensity", "AreaShape"])
    assert tables["Nuclei"].index.tolist() == np.unique(nuclei)[1:].tolist()
    assert tables["Cells"].index.tolist() == np.unique(cells)[1:].tolist()
    assert tables["Nuclei"].columns[0] == "Nuclei_AreaShape_BoundingBoxMaximum_X"
    assert tables["Nuclei"].columns[-1] == "Nuclei_Intensity_UpperQuartileIntensity_ER"
    assert measure_volume(noise(), {"Cells": cells}, CHANNELS, families=[])["Cells"].shape == (len(tables["Cells"]), 0)


def test_what_measures_volumes_is_imported_when_it_is_asked_for():
    code = (
        "import sys, plateloom.features as f; assert 'numpy' not in sys.modules;"
        "f.measure_volume; assert not {'numba', 'pandas', 'scipy', 'skimage'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# --- what is refused


def test_a_family_of_planes_is_refused_with_those_of_volumes():
    with pytest.raises(UnknownMethodError, match="Registered: AreaShape, Intensity, Location"):
        measure_one(noise(), blobs(), ["Texture"])


@pytest.mark.parametrize(
    ("image", "labels", "channels", "error", "message"),
    [
        (np.zeros((1, 2, 2), np.uint8), np.zeros((2, 2), int), ["DNA"], ValueError, r"\(1, Z, Y, X\)"),
        (np.zeros((2, 1, 2, 2), np.uint8), np.zeros((1, 2, 2), int), ["DNA"], ValueError, r"\(2, 1, 2, 2\)"),
        (np.zeros((1, 2, 2, 3), np.uint8), np.zeros((4, 3), int), ["DNA"], ValueError, r"\(4, 3\).*\(2, 2, 3\)"),
        (np.zeros((1, 2, 2, 2), np.uint8), np.full((2, 2, 2), -1), ["DNA"], ValueError, "found -1"),
        (np.zeros((1, 2, 2, 2), np.uint8), np.zeros((2, 2, 2)), ["DNA"], TypeError, "float64"),
        (np.zeros((1, 2, 2, 2), np.int32), np.zeros((2, 2, 2), int), ["DNA"], TypeError, "int32"),
        (np.zeros((2, 2, 2, 2), np.uint8), np.zeros((2, 2, 2), int), ["DNA", "DNA"], ValueError, "twice"),
        (np.full((1, 2, 2, 2), np.nan), np.zeros((2, 2, 2), int), ["DNA"], ValueError, "NaN"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(image, labels, channels, error, message):
    with pytest.raises(error, match=message):
        measure_volume(image, {"Cells": labels}, channels)
