import itertools

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage, stats

from plateloom.features import costes, measure_image
from plateloom.features.correlation import _rank

# What depends on nothing but the object's own pixels.
LOCAL = "Correlation_(Correlation|Overlap|K|Manders)_"


def measure(image, labels, **options):
    """Table of one compartment without its prefix."""
    channels = ["DNA", "ER", "RNA", "AGP", "Mito"][: len(image)]
    table = measure_image(image, {"Cells": labels}, channels, families=["Correlation"], **options)["Cells"]
    return table.rename(columns=lambda column: column.removeprefix("Cells_Correlation_"))


def texture(seed=0, size=48, channels=3):
    """Channels in 0 … 1 that share structure, one of them inverted."""
    random = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(random.normal(size=(channels + 1, size, size)), (0, 2, 2))
    noise /= noise.std()
    planes = noise[:-1] + noise[-1] * np.resize([1.0, 0.8, -1.5], channels)[:, None, None]
    planes = np.exp(0.4 * planes) / 8 + 0.01 * random.random(planes.shape)
    return np.clip(planes, 0, 1)


def objects(seed=0, size=48):
    """Label image of blobs, some of them in pieces, with a gap in the numbers."""
    random = np.random.default_rng(seed + 100)
    inside = ndimage.gaussian_filter(random.normal(size=(size, size)), 2) > 0
    return np.where(inside, np.add.outer(np.arange(size) // 12 * 6, np.arange(size) // 12) + 1, 0)


def digitize(image, dtype):
    return np.rint(image * np.iinfo(dtype).max).astype(dtype)


# --- the definitions, spelled out


def plain_thresholds(first, second, steps):
    """Costes' thresholds: the line along the principal axis, every candidate tried on all pixels."""
    x, y = first.ravel(), second.ravel()
    lit = (x > 0) | (y > 0)
    values, axes = np.linalg.eigh(np.cov(x[lit], y[lit]))
    slope = axes[1, values.argmax()] / axes[0, values.argmax()]
    offset = y[lit].mean() - slope * x[lit].mean()
    left, right, last, found = 1, steps, 0, 1
    candidate = left + (right - left) // 1.2
    while candidate != last:
        below = (x < candidate / steps) | (y < slope * (candidate / steps) + offset)
        if below.sum() <= 2:
            left = candidate - 1
        elif np.ptp(x[below]) > 0 and np.ptp(y[below]) > 0:
            if stats.pearsonr(x[below], y[below])[0] < 0:
                left = candidate - 1
            else:
                right, found = candidate + 1, candidate
        last = candidate
        candidate = left + (right - left) // (1.2 if right - left > 6 else 2)
    threshold = (found - 1) / steps
    return threshold, slope * threshold + offset


def plain_table(image, labels, steps):
    """All columns of the first two channels; the objects must have pixels that count."""
    x, y, thresholds = image[0], image[1], plain_thresholds(image[0], image[1], steps)
    inside = labels > 0
    ranks = np.zeros((2, *labels.shape))
    for rank, plane in zip(ranks, image, strict=False):
        rank[inside] = stats.rankdata(plane[inside], method="dense")
    weights = 1 - np.abs(ranks[0] - ranks[1]) / ranks.max()
    rows = {}
    for label in np.unique(labels)[1:]:
        u, v, weight = (plane[labels == label] for plane in (x, y, weights))
        bright_u, bright_v = u >= 0.15 * u.max(), v >= 0.15 * v.max()
        both = bright_u & bright_v
        above = (u > thresholds[0]) & (v > thresholds[1])
        product = (u * v)[both].sum()
        with np.errstate(invalid="ignore"):
            rows[label] = {
                "Correlation_DNA_ER": np.corrcoef(u, v)[0, 1],
                "Overlap_DNA_ER": product / np.sqrt((u[both] ** 2).sum() * (v[both] ** 2).sum()),
                "K_DNA_ER": product / (u[both] ** 2).sum(),
                "K_ER_DNA": product / (v[both] ** 2).sum(),
                "Manders_DNA_ER": u[both].sum() / u[bright_u].sum(),
                "Manders_ER_DNA": v[both].sum() / v[bright_v].sum(),
                "RWC_DNA_ER": (u * weight)[both].sum() / u[bright_u].sum(),
                "RWC_ER_DNA": (v * weight)[both].sum() / v[bright_v].sum(),
                "Costes_DNA_ER": u[above].sum() / u[u >= thresholds[0]].sum(),
                "Costes_ER_DNA": v[above].sum() / v[v >= thresholds[1]].sum(),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


@pytest.mark.parametrize("pair", [[0, 1], [1, 0], [0, 2], [2, 1]])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "float64"])
def test_values_are_those_of_the_definitions(kind, pair):
    image, labels = texture()[pair], objects()
    image = digitize(image, kind) if kind.startswith("u") else image.astype(kind)
    steps, unit = (255, 255) if kind == "uint8" else (65535, 65535 if kind == "uint16" else 1)
    expected = plain_table(image.astype(float) / unit, labels, steps)
    measured = measure(image, labels)
    assert list(measured.columns) == list(expected.columns)
    assert_array_equal(measured.index, expected.index)
    for column in expected:
        assert_allclose(measured[column], expected[column], rtol=1e-9, err_msg=column)


def test_every_pair_is_measured_in_the_order_of_the_channels():
    image, labels = texture(channels=5), objects()
    table = measure(image, labels)
    assert table.shape[1] == 10 * 10
    for number, (a, b) in enumerate(itertools.combinations(range(5), 2)):
        pair = measure(image[[a, b]], labels)
        assert_array_equal(table.iloc[:, 10 * number : 10 * number + 10], pair)
        assert (
            table.columns[10 * number]
            == f"Correlation_{'_'.join(['DNA', 'ER', 'RNA', 'AGP', 'Mito'][c] for c in (a, b))}"
        )


def test_four_pixels_have_the_values_that_one_computes_by_hand():
    image = np.array([[[10, 40, 100, 14]], [[50, 20, 100, 100]]], np.uint8)
    row = measure(image, np.ones((1, 4), int)).loc[1]
    # Of the first channel only 40 and 100 reach 15; all of the second do.
    assert row["K_DNA_ER"] == pytest.approx((40 * 20 + 100 * 100) / (40**2 + 100**2))
    assert row["K_ER_DNA"] == pytest.approx((40 * 20 + 100 * 100) / (20**2 + 100**2))
    assert row["Overlap_DNA_ER"] == pytest.approx(np.sqrt(row["K_DNA_ER"] * row["K_ER_DNA"]))
    assert row["Manders_DNA_ER"] == 1
    assert row["Manders_ER_DNA"] == pytest.approx(120 / 270)
    # Ranks 0 2 3 1 and 1 0 2 2: of four ranks, 40 is two apart and 100 one.
    assert row["RWC_DNA_ER"] == pytest.approx((40 * 2 / 4 + 100 * 3 / 4) / 140)
    assert row["RWC_ER_DNA"] == pytest.approx((20 * 2 / 4 + 100 * 3 / 4) / 270)


def test_a_pixel_on_the_threshold_of_15_percent_counts():
    # 0.15 * (100 / 255) is 15 / 255 or its neighbor: the expression decides, as written.
    counts = [15 / 255 >= 0.15 * (100 / 255), 30 / 255 >= 0.15 * (200 / 255)]
    for level, largest, counted in ((15, 100, counts[0]), (30, 200, counts[1])):
        image = np.array([[[level, largest]], [[100, 100]]], np.uint8)
        manders = measure(image, np.ones((1, 2), int)).loc[1, "Manders_ER_DNA"]
        assert manders == (1.0 if counted else 0.5)


# --- Costes' thresholds


def scene(seed):
    """Channels of a field with a dark background, of noise or of zeros: rising and falling lines."""
    random = np.random.default_rng(seed)
    image = texture(seed, size=int(random.integers(20, 40)))
    dark = ndimage.gaussian_filter(random.normal(size=image.shape[1:]), 3) > 0
    image[:, dark] *= random.choice([0, 0.1, 0.5])
    return image


@pytest.mark.parametrize("seed", range(12))
def test_thresholds_are_those_of_the_plain_search(seed):
    image = scene(seed)
    pairs = list(itertools.combinations(range(3), 2))
    for dtype, steps in ((np.uint8, 255), (np.uint16, 65535)):
        levels = digitize(image, dtype)
        expected = [plain_thresholds(levels[a] / steps, levels[b] / steps, steps) for a, b in pairs]
        assert_allclose(costes.find_thresholds(levels, float(steps), steps), expected, rtol=1e-9, atol=1e-12)
        assert_allclose(costes.find_thresholds(levels / steps, 0.0, steps), expected, rtol=1e-9, atol=1e-12)
    for bits in (1, 2, 4, 12):
        expected = [plain_thresholds(image[a], image[b], 2**bits - 1) for a, b in pairs]
        assert_allclose(costes.find_thresholds(image, 0.0, 2**bits - 1), expected, rtol=1e-9, atol=1e-12)


def test_thresholds_are_searched_along_rising_and_falling_lines():
    rising = falling = 0
    for image in map(scene, range(12)):
        thresholds = costes.find_thresholds(image, 0.0, 65535)
        for (a, b), (threshold, _) in zip(itertools.combinations(image, 2), thresholds, strict=True):
            lit = (a > 0) | (b > 0)
            inverse = np.corrcoef(a[lit], b[lit])[0, 1] < 0
            rising += not inverse and threshold > 0
            falling += inverse and threshold > 0
    assert rising > 2
    assert falling > 2


@pytest.mark.parametrize("slope", [1.0, 0.3, 40.0, 1e-9, 1e-18, 0.0, -0.0, -1e-18, -1e-9, -0.3, -40.0, np.inf, np.nan])
@pytest.mark.parametrize("offset", [0.0, 0.01, -0.5, 0.7, np.nan])
def test_a_value_turns_at_the_first_step_that_the_line_passes(slope, offset):
    grid = np.arange(256) / 255
    with np.errstate(invalid="ignore"):
        line = slope * grid + offset
    values = np.concatenate([grid, line[np.isfinite(line)], np.random.default_rng(0).uniform(-0.1, 2, 500)])
    passed = np.hstack([(values[:, None] < line) != (slope < 0), np.ones((len(values), 1), bool)])
    assert_array_equal(costes._find_turns(values, line, slope, offset, slope < 0), passed.argmax(axis=1))


def test_thresholds_come_from_the_image_not_from_the_objects():
    image, labels = digitize(texture(), np.uint16), objects()
    nuclei = np.where(np.indices(labels.shape).sum(0) % 3 == 0, labels, 0)
    tables = measure_image(image, {"Cells": labels, "Nuclei": nuclei}, ["DNA", "ER", "RNA"], families=["Correlation"])
    alone = measure_image(image, {"Nuclei": nuclei}, ["DNA", "ER", "RNA"], families=["Correlation"])
    pd.testing.assert_frame_equal(tables["Nuclei"], alone["Nuclei"], check_exact=True)
    some = np.where(labels < 10, labels, 0)
    costes_of_some = measure(image, some).filter(regex="^Costes")
    pd.testing.assert_frame_equal(
        costes_of_some, measure(image, labels).filter(regex="^Costes").loc[costes_of_some.index]
    )


def test_a_float_image_is_searched_in_the_steps_of_its_bit_depth():
    levels, labels = digitize(texture(), np.uint8), objects()
    table = measure(levels, labels)
    pd.testing.assert_frame_equal(measure(levels / 255, labels, bit_depth=8), table)
    coarse = measure(levels / 255, labels, bit_depth=4)
    assert not np.allclose(coarse["Costes_DNA_ER"], table["Costes_DNA_ER"], equal_nan=True)


@pytest.mark.parametrize("bit_depth", [0, 17, 7.5])
def test_a_bit_depth_that_no_camera_has_is_refused(bit_depth):
    with pytest.raises(ValueError, match="bit_depth"):
        measure(texture(), objects(), bit_depth=bit_depth)


# --- ranks


@pytest.mark.parametrize("seed", range(3))
def test_ranks_are_dense_ranks(seed):
    random = np.random.default_rng(seed)
    for values, levels in (
        (random.integers(0, 256, (2, 3000)) / 255, 255.0),
        (random.integers(0, 65536, (2, 3000)) / 65535, 65535.0),
        (random.random((2, 3000)), 0.0),
        (random.random((2, 3000), np.float32).astype(float), 0.0),
        (np.round(random.normal(size=(2, 3000)), 2), 0.0),
        (random.choice([-0.0, 0.0, 5e-324, 1e-300, 1.0, -1e-300, 1e300], (2, 3000)), 0.0),
        (np.full((1, 7), 0.3), 0.0),
        (np.zeros((2, 0)), 0.0),
    ):
        ranks, distinct = _rank(values, levels)
        assert_array_equal(ranks, [stats.rankdata(row, method="dense") - 1 for row in values])
        assert distinct.tolist() == [len(np.unique(row)) for row in values]


def test_ranks_are_those_among_all_objects():
    image, labels = digitize(texture(), np.uint16), objects()
    some = np.where(labels < 10, labels, 0)
    table, alone = measure(image, labels), measure(image, some)
    shared = table.loc[alone.index]
    assert (np.abs(alone.filter(regex="^RWC") - shared.filter(regex="^RWC")) > 1e-4).all(axis=None)


# --- what leaves the values alone


@pytest.mark.parametrize("kind", [np.uint16, float])
def test_values_of_the_object_alone_stay_when_the_objects_are_split_over_two_calls(kind):
    image, labels = texture(), objects()
    image = digitize(image, kind) if kind is np.uint16 else image
    whole = measure(image, labels).add_prefix("Correlation_").filter(regex=LOCAL)
    halves = [measure(image, np.where((labels > 10) == upper, labels, 0)) for upper in (False, True)]
    halves = pd.concat(halves).add_prefix("Correlation_").filter(regex=LOCAL)
    assert whole.shape[1] == 3 * (2 + 2 * 2)
    pd.testing.assert_frame_equal(halves, whole, check_exact=True)


def test_moving_changes_no_value_and_padding_none_but_those_of_costes():
    image, labels = digitize(texture(), np.uint16), objects()
    table = measure(image, labels)
    rolled = measure(np.roll(image, (5, -7), (1, 2)), np.roll(labels, (5, -7), (0, 1)))
    assert_allclose(rolled, table, rtol=1e-9)
    padded = measure(np.pad(image, ((0, 0), (3, 1), (0, 9))), np.pad(labels, ((3, 1), (0, 9))))
    pd.testing.assert_frame_equal(
        padded.filter(regex="^[^C]|^Corr"), table.filter(regex="^[^C]|^Corr"), check_exact=True
    )


def test_transposing_changes_no_value():
    image, labels = digitize(texture(size=40)[:, :31], np.uint16), objects(size=40)[:31]
    assert_allclose(measure(image.transpose(0, 2, 1), labels.T), measure(image, labels), rtol=1e-9)


def test_the_order_of_the_channels_matters_to_costes_only():
    image, labels = digitize(texture(), np.uint16), objects()
    forth, back = measure(image[:2], labels), measure(image[1::-1], labels)
    for measurement in ("Correlation", "Overlap"):
        assert_allclose(back[f"{measurement}_DNA_ER"], forth[f"{measurement}_DNA_ER"], rtol=1e-12)
    for measurement in ("K", "Manders", "RWC"):
        for one, other in (("DNA", "ER"), ("ER", "DNA")):
            assert_allclose(back[f"{measurement}_{one}_{other}"], forth[f"{measurement}_{other}_{one}"], rtol=1e-12)


def test_brightness_changes_k_only():
    image, labels = texture() / 2, objects()
    table, brighter = measure(image, labels), measure(image * [[[2.0]], [[1.0]], [[1.0]]], labels)
    for column in table.filter(regex="^(Correlation|Overlap|Manders|RWC)"):
        assert_allclose(brighter[column], table[column], rtol=1e-9, err_msg=column)
    assert_allclose(brighter["K_DNA_ER"], table["K_DNA_ER"] / 2, rtol=1e-9)
    assert_allclose(brighter["K_ER_DNA"], table["K_ER_DNA"] * 2, rtol=1e-9)


def test_a_channel_lies_within_itself():
    plane = digitize(texture()[:1], np.uint16)
    table = measure(np.concatenate([plane, plane]), objects())
    costes_of_self = table.pop("Costes_DNA_ER"), table.pop("Costes_ER_DNA")
    assert_allclose(table, 1, rtol=1e-12)
    assert_array_equal(*costes_of_self)


# --- hard objects


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, float])
def test_a_channel_of_zeros_has_no_values(kind):
    image = texture()
    image[1] = 0
    image = image if kind is float else digitize(image, kind)
    table = measure(image, objects())
    for column in ("Correlation_DNA_ER", "Overlap_DNA_ER", "K_ER_DNA", "Manders_ER_DNA", "RWC_ER_DNA"):
        assert table[column].isna().all()
    assert (table[["K_DNA_ER", "Costes_DNA_ER", "Costes_ER_DNA"]] == 0).all(axis=None)
    assert (table["Manders_DNA_ER"] == 1).all()
    assert table["Correlation_DNA_RNA"].notna().all()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, float])
def test_constant_and_saturated_channels_are_measured(kind):
    image = texture()
    image[1], image[2] = 1, 0.3
    image = image if kind is float else digitize(image, kind)
    table = measure(image, objects())
    assert table.filter(regex="^Correlation").isna().all(axis=None)
    assert_allclose(table["Manders_ER_RNA"], 1)
    # No line fits through a constant: no threshold, nothing above it.
    assert (table.filter(regex="^Costes") == 0).all(axis=None)


def test_what_no_object_has_a_pixel_for_is_0_and_what_this_object_has_none_for_is_nan():
    apart, together = [[0, 9], [9, 0]], [[9, 9], [9, 9]]
    image = np.array([apart + together, apart[::-1] + together], np.uint8).transpose(0, 2, 1)
    labels = np.array([[1, 1, 2, 2], [1, 1, 2, 2]])
    columns = ["Overlap_DNA_ER", "K_DNA_ER", "K_ER_DNA"]
    both, alone = measure(image, labels), measure(image, np.where(labels == 1, 1, 0))
    assert both.loc[1, columns].isna().all()
    assert both.loc[2, columns].tolist() == [1, 1, 1]
    assert alone.loc[1, columns].tolist() == [0, 0, 0]
    assert (both.loc[1, ["Manders_DNA_ER", "RWC_DNA_ER"]] == 0).all()
    assert (alone.loc[1, ["Manders_DNA_ER", "RWC_DNA_ER"]] == 0).all()


def test_an_object_that_reaches_no_costes_threshold_is_nan():
    image, labels = digitize(texture(), np.uint16), objects()
    image[0][labels == 1] = 0
    assert costes.find_thresholds(image, 65535.0, 65535)[0, 0] > 0
    table = measure(image, labels)
    assert np.isnan(table.loc[1, "Costes_DNA_ER"])
    assert table.loc[1, "Costes_ER_DNA"] == 0


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, float])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 9), (9, 2)])
def test_tiny_images_are_measured(kind, shape):
    image = texture()[:, : shape[0], : shape[1]]
    image = image if kind is float else digitize(image, kind)
    for labels in (np.ones(shape, int), np.arange(1, shape[0] * shape[1] + 1).reshape(shape), np.zeros(shape, int)):
        table = measure(image, labels)
        assert table.shape == (len(np.unique(labels[labels > 0])), 30)
        for column in table.filter(regex="Overlap|K|Manders|RWC"):
            assert table[column].notna().all()


@pytest.mark.parametrize("channels", [0, 1])
def test_less_than_two_channels_have_no_columns(channels):
    assert measure(texture()[:channels], objects()).shape == (len(np.unique(objects())) - 1, 0)


def test_thousands_of_objects_with_large_labels_are_measured():
    random = np.random.default_rng(0)
    image = random.integers(0, 65536, (3, 150, 150), dtype=np.uint16)
    labels = np.repeat(np.repeat(np.arange(75 * 75).reshape(75, 75), 2, 0), 2, 1)
    table = measure(image, np.where(labels, labels + 10**6, 0))
    assert len(table) == 75 * 75 - 1
    block = image[:, 148:, 148:].reshape(3, 4) / 65535
    assert table["Correlation_DNA_RNA"].iloc[-1] == pytest.approx(np.corrcoef(block[[0, 2]])[0, 1])
