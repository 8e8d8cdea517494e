"""How good a segmentation is: counted by hand, by a plain oracle, of files, folders, plates and real nuclei."""

import json
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from conftest import DATA, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from plateloom.cli.evaluate import command
from plateloom.errors import ConfigError
from plateloom.segmentation.evaluation import THRESHOLDS, compare_labels, pool
from plateloom.segmentation.matching import count_matches, match_objects, pair_objects
from plateloom.store import plate

KINDS = ("splits", "merges", "missed", "spurious")
SMALL = arrays(np.uint8, (4, 6), elements=st.integers(0, 4))


def image(text):
    """A label image of one row, written as digits: ``"1102"``."""
    return np.array([[int(digit) for digit in text]])


def kinds(found, true):
    """Splits, merges, missed and spurious objects of two rows."""
    compared = compare_labels(image(found), image(true))
    return tuple(getattr(compared, kind) for kind in KINDS)


def compare_plainly(labels, truth, thresholds):
    """The definitions, word by word: sets of pixels, exact fractions, and any maximum matching."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    def objects(image):
        return [set(np.flatnonzero(image == value)) for value in np.unique(image) if value]

    found, true = objects(labels), objects(truth)
    tp = []
    for least in thresholds:
        same = np.array([[Fraction(len(f & t), len(f | t)) >= Fraction(least) for t in true] for f in found], bool)
        same = same.reshape(len(found), len(true))
        tp.append(int((maximum_bipartite_matching(csr_array(same)) >= 0).sum()) if same.size else 0)

    def lies_in(one, other):
        return len(one & other) > len(one) / 2

    def related(one, others):
        return any(lies_in(one, other) or lies_in(other, one) for other in others)

    splits = sum(sum(lies_in(f, t) for f in found) >= 2 for t in true)
    merges = sum(sum(lies_in(t, f) for t in true) >= 2 for f in found)
    missed = sum(not related(t, found) for t in true)
    spurious = sum(not related(f, true) for f in found)
    return tuple(tp), (splits, merges, missed, spurious)


# --- counted by hand -------------------------------------------------------------------------------------------------


def test_the_truth_itself_is_perfect_at_every_threshold():
    truth = image("110223330")
    compared = compare_labels(truth, truth)
    assert compared.thresholds == THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
    assert (compared.tp, compared.fp, compared.fn) == ((3,) * 9, (0,) * 9, (0,) * 9)
    assert (compared.found, compared.true) == (3, 3) and kinds("110223330", "110223330") == (0, 0, 0, 0)
    summary = pool([compared])
    for scores in (summary.f1, summary.ap, summary.precision, summary.recall):
        assert scores == (1.0,) * 9
    assert summary.mean_ap == summary.image_ap == 1 and summary.images == 1


def test_one_split():
    assert kinds("11220", "77770") == (1, 0, 0, 0)
    assert kinds("11120", "77770") == (1, 0, 0, 0), "also where one of the pieces matches"
    assert kinds("112233", "777777") == (1, 0, 0, 0), "three pieces are one split"
    assert kinds("1122", "7770") == (0, 0, 0, 1), "what lies half outside is no piece"


def test_one_merge():
    assert kinds("77770", "11220") == (0, 1, 0, 0)
    assert kinds("77777777777777777777777777", "11022033044055066077088099") == (0, 1, 0, 0), "however many"


def test_one_missed_and_one_spurious():
    assert kinds("11000", "11022") == (0, 0, 1, 0)
    assert kinds("11022", "11000") == (0, 0, 0, 1)
    assert kinds("00110", "01100") == (0, 0, 1, 1), "half of it is not enough"


def test_an_outline_that_is_too_small_or_too_large_is_neither_missed_nor_spurious():
    for found, true in (("010000", "111111"), ("111111", "010000")):
        compared = compare_labels(image(found), image(true))
        assert (compared.tp[0], compared.fp[0], compared.fn[0]) == (0, 1, 1)
        assert kinds(found, true) == (0, 0, 0, 0)


def test_a_border_between_neighbors_drawn_elsewhere_is_no_split_and_no_merge():
    assert kinds("11111111112222", "11111112222222") == (0, 0, 0, 0)


def test_an_iou_of_just_the_threshold_is_a_match():
    assert compare_labels(image("1100"), image("1111")).tp == (1, *(0,) * 8)
    for shared in range(10, 21):  # of 20 pixels: 0.50, 0.55 … 1.00, none of which binary fractions hold but three
        truth = np.ones((1, 20), int)
        found = (np.arange(20)[None] < shared).astype(int)
        compared = compare_labels(found, truth)
        assert compared.tp == tuple(int(20 * Fraction(str(least)) <= shared) for least in THRESHOLDS), shared
        assert match_objects(found, truth, min_iou=shared / 20)[0] == 1
    assert compare_labels(image("111110"), image("111110"), thresholds=np.arange(0.5, 1, 0.05)).tp == (1,) * 10


def test_of_two_halves_one_matches_on_either_side():
    assert match_objects(image("1122"), image("4444")) == (1, 1, 0)
    assert match_objects(image("4444"), image("1122")) == (1, 0, 1)
    # Both at once: three objects of either image have a partner, yet only two pairs are one to one.
    assert match_objects(image("11224444"), image("33331122")) == (2, 1, 1)


def test_without_objects_shares_are_not_numbers_and_errors_are_none():
    empty, some = image("0000"), image("1102")
    summary = pool([compare_labels(empty, empty)])
    assert math.isnan(summary.f1[0]) and math.isnan(summary.mean_ap) and math.isnan(summary.image_ap)
    summary = pool([compare_labels(empty, some)])
    assert (summary.fn[0], summary.missed, summary.recall[0], summary.f1[0], summary.ap[0]) == (2, 2, 0, 0, 0)
    assert math.isnan(summary.precision[0])
    summary = pool([compare_labels(some, empty)])
    assert (summary.fp[0], summary.spurious, summary.precision[0], summary.f1[0]) == (2, 2, 0, 0)
    assert math.isnan(summary.recall[0])
    pooled = pool([compare_labels(empty, empty), compare_labels(some, some)])
    assert pooled.image_ap == 1 and pooled.images == 2, "an image without objects is left out of the mean"
    assert compare_labels(np.zeros((0, 5), int), np.zeros((0, 5), int)).tp[0] == 0


def test_images_without_background_are_compared():
    assert compare_labels(image("1122"), image("1122")).tp[0] == 2


def test_large_numbers_are_only_names():
    top = np.iinfo(np.uint64).max
    labels = np.array([[top, top, 0, top - 1]], np.uint64)
    assert match_objects(labels, image("1102").astype(np.int8)) == (2, 0, 0)
    assert match_objects(labels, labels) == (2, 0, 0)


def test_five_thousand_objects_are_compared_without_a_table_of_all_pairs():
    import tracemalloc

    side, step = 710, 10
    y, x = np.mgrid[:side, :side]
    truth = (y // step) * (side // step) + x // step + 1
    truth[(y % step >= 8) | (x % step >= 8)] = 0
    found = np.roll(truth, 2, axis=1)  # 6 × 8 of 10 × 8 pixels are shared: 0.6
    tracemalloc.start()
    compared = compare_labels(found, truth)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert compared.true == compared.found == 5041
    assert compared.tp == (5041,) * 3 + (0,) * 6
    assert (compared.splits, compared.merges, compared.missed, compared.spurious) == (0, 0, 0, 0)
    assert peak < 5041**2 * 8 / 4


def test_scores_are_those_of_the_counts():
    first = compare_labels(image("1102203300"), image("1102200044"))  # 2 tp, 1 fp, 1 fn
    second = compare_labels(image("1100000000"), image("1102203304"))  # 1 tp, 3 fn
    summary = pool([first, second])
    assert (summary.tp[0], summary.fp[0], summary.fn[0]) == (3, 1, 4)
    assert summary.f1[0] == 6 / 11 and summary.ap[0] == 3 / 8
    assert summary.precision[0] == 3 / 4 and summary.recall[0] == 3 / 7
    assert summary.image_ap == (2 / 4 + 1 / 4) / 2
    assert summary.mean_ap == pytest.approx(sum(summary.ap) / 9)
    assert (summary.images, summary.found, summary.true, summary.missed, summary.spurious) == (2, 4, 7, 4, 1)


def test_time_and_depth_are_compared_as_one_image():
    truth = np.stack([image("1100"), image("1122")])
    assert match_objects(truth, truth) == (2, 0, 0)


# --- properties ------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(SMALL, SMALL)
def test_all_counts_are_those_of_the_plain_definitions(labels, truth):
    thresholds = (0.5, 0.625, 0.75, 1.0)  # which binary fractions hold
    compared = compare_labels(labels, truth, thresholds=thresholds)
    assert (compared.tp, tuple(getattr(compared, kind) for kind in KINDS)) == compare_plainly(labels, truth, thresholds)


@settings(max_examples=100, deadline=None)
@given(SMALL, SMALL)
def test_exchange_of_the_images_exchanges_the_errors(labels, truth):
    one, other = compare_labels(labels, truth), compare_labels(truth, labels)
    assert (one.tp, one.fp, one.fn) == (other.tp, other.fn, other.fp)
    assert (one.splits, one.merges, one.missed, one.spurious) == (
        other.merges,
        other.splits,
        other.spurious,
        other.missed,
    )
    assert one.missed <= one.fn[0] and one.spurious <= one.fp[0]
    assert list(one.tp) == sorted(one.tp, reverse=True)


@settings(max_examples=100, deadline=None)
@given(SMALL, SMALL, st.permutations(range(1, 5)), st.permutations([3, 70_000, 2**40, 2**63]))
def test_other_numbers_of_the_same_objects_change_nothing(labels, truth, ours, theirs):
    renamed = np.array([0, *theirs], np.uint64)[labels]
    assert compare_labels(renamed, np.array([0, *ours])[truth]) == compare_labels(labels, truth)


@settings(max_examples=50, deadline=None)
@given(SMALL, SMALL)
def test_a_list_of_pairs_and_a_table_of_them_agree(labels, truth):
    overlaps = pair_objects(labels, truth)
    few = pair_objects(*(np.concatenate([part.ravel(), np.zeros(1000, np.uint8)]) for part in (labels, truth)))
    for name, values in vars(overlaps).items():
        np.testing.assert_array_equal(values, getattr(few, name))
    assert overlaps.shared_px.sum() == ((labels > 0) & (truth > 0)).sum()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "truth", "message"),
    [
        (image("110"), image("1100"), r"different shapes, \(1, 3\) and \(1, 4\)"),
        (image("110") * 1.0, image("110"), "The labels are float64; expected integers"),
        (image("110"), image("110") > 0, "The truth are bool, a mask; expected integers"),
        (image("110"), -image("110"), "The truth have the negative number -1; expected 0 for background"),
    ],
)
def test_what_is_no_pair_of_label_images_is_refused(labels, truth, message):
    with pytest.raises(ValueError, match=message):
        compare_labels(labels, truth)
    with pytest.raises(ValueError, match=message):
        match_objects(labels, truth)


def test_thresholds_that_allow_several_partners_are_refused():
    for wrong in (0.4, 1.1, math.nan):
        with pytest.raises(ValueError, match="min_iou is"):
            count_matches(pair_objects(image("1"), image("1")), wrong)
    with pytest.raises(ValueError, match="No thresholds"):
        compare_labels(image("1"), image("1"), thresholds=())


def test_only_comparisons_of_the_same_thresholds_are_pooled():
    one = compare_labels(image("1"), image("1"))
    with pytest.raises(ValueError, match="Found nothing to pool"):
        pool([])
    with pytest.raises(ValueError, match=r"Found thresholds .*0\.7"):
        pool([one, compare_labels(image("1"), image("1"), thresholds=[0.7])])


# --- the command -----------------------------------------------------------------------------------------------------

FOUND, TRUE = np.repeat(image("11022033000"), 4, axis=0), np.repeat(image("11022000044"), 4, axis=0)


def evaluate(*arguments):
    """Run the command; returns what it printed and what it said beside."""
    done = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def refuse(*arguments):
    """Run the command on what is wrong; returns what it says."""
    with pytest.raises(ConfigError) as caught:
        CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert caught.value.exit_code == 2
    return str(caught.value)


def save(path, labels):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, labels)
    elif path.suffix == ".png":
        Image.fromarray(labels.astype(np.uint8)).save(path)
    else:
        tifffile.imwrite(path, labels.astype(np.uint16), compression="zlib")
    return path


def make_plate(store, wells=("B03", "B04"), fields=(1, 2)):
    """A plate whose every field has the same nuclei, and larger cells."""
    described = {"pixel_size_um": 0.5, "levels": 1, "record": {"fingerprint": "f"}}
    channels = [{"label": "DNA", "color": "0000FF", "window": [0, 9]}]
    for well in wells:
        for field in fields:
            path = plate.field_path(store, well, field)
            plate.write_image(path, np.zeros((1, *FOUND.shape), np.uint16), channels=channels, **described)
            labels = {"Nuclei": FOUND.astype(np.uint32), "Cells": TRUE.astype(np.uint32)}
            plate.write_labels(path, labels, **described)
        plate.write_well(store, well, fields, described["record"])
    shape = {"shape": (8, 12), "field_count": len(fields), "record": described["record"]}
    plate.write_plate(store, name="P1", wells=wells, **shape)
    return store


@pytest.mark.parametrize("suffix", [".tif", ".ome.tiff", ".png", ".npy"])
def test_two_files(tmp_path, suffix):
    text, beside = evaluate(save(tmp_path / f"found{suffix}", FOUND), save(tmp_path / "true.npy", TRUE))
    lines = text.splitlines()
    assert lines[0] == "1 image, 3 true objects, 3 found"
    assert lines[1].split() == ["IoU", "F1", "AP", "precision", "recall", "tp", "fp", "fn"]
    assert lines[2].split() == ["0.50", "0.667", "0.500", "0.667", "0.667", "2", "1", "1"]
    assert len(lines) == 2 + 9 + 3
    assert lines[-3:] == [
        "mean AP 0.500 (IoU 0.50 to 0.90)",
        "mean of the images' AP 0.500 (IoU 0.50)",
        "splits 0, merges 0, missed 1, spurious 1",
    ]
    assert not beside


def test_a_palette_image_is_labels_and_a_plane_of_a_stack_is_an_image(tmp_path):
    picture = Image.fromarray(FOUND.astype(np.uint8))
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.save(tmp_path / "found.png")
    with Image.open(tmp_path / "found.png") as saved:
        assert saved.mode == "P"
    np.save(tmp_path / "true.npy", FOUND[None])
    assert "1.000" in evaluate(tmp_path / "found.png", tmp_path / "true.npy")[0].splitlines()[2]


def test_a_mask_is_compared_and_told(tmp_path):
    labels = np.zeros((30, 40), np.uint8)
    labels[2:9, 3:9], labels[2:9, 20:28], labels[20:28, 3:9] = 1, 2, 3
    for folder, image in (("found", labels), ("true", (labels > 0) * np.uint8(255))):
        save(tmp_path / folder / "a.png", image)
    save(tmp_path / "found/b.png", labels == 2)
    save(tmp_path / "true/b.png", labels == 2)
    text, beside = evaluate(tmp_path / "found", tmp_path / "true")
    assert text.startswith("2 images, 2 true objects, 4 found")
    assert beside.splitlines() == [line for line in beside.splitlines() if "true', a.png: label 255 is in 3" in line]
    assert "label the connected parts first" in beside


def test_only_what_is_whole_is_written_as_one(tmp_path):
    truth = np.arange(1, 4001).reshape(40, 100)
    found = np.where(truth == 4000, 0, truth)
    text, _ = evaluate(save(tmp_path / "found.npy", found), save(tmp_path / "true.npy", truth))
    assert text.splitlines()[2].split() == ["0.50", "0.999", "0.999", "1.000", "0.999", "3,999", "0", "1"]


def test_folders_are_matched_by_name(tmp_path):
    for name, labels in (("b.tif", FOUND), ("a.png", TRUE)):
        save(tmp_path / "found" / name, labels)
    for name in ("a.ome.tif", "b.npy"):
        save(tmp_path / "true" / name, TRUE)
    (tmp_path / "true/README.txt").write_text("not an image")
    text, beside = evaluate(tmp_path / "found", tmp_path / "true", "--per-image", "--json", tmp_path / "scores.json")
    assert not beside
    rows = [line.split("\t") for line in text.splitlines()]
    at = [f"{name}_0.50" for name in ("tp", "fp", "fn", "F1", "AP")]
    assert rows[0] == ["image", "true", "found", *at, "mean_AP", *KINDS]
    assert rows[1] == ["a.png", "3", "3", "3", "0", "0", "1", "1", "1", "0", "0", "0", "0"]
    assert rows[2] == ["b.tif", "3", "3", "2", "1", "1", "0.666667", "0.5", "0.5", "0", "0", "1", "1"]
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["images"] == 2 and scores["tp"] == [5] * 9 and scores["ap"][0] == 5 / 7
    assert scores["image_ap"] == 0.75 and scores["thresholds"] == list(THRESHOLDS)
    assert [one["image"] for one in scores["per_image"]] == ["a.png", "b.tif"]
    assert scores["per_image"][1]["missed"] == 1


def test_scores_that_are_not_numbers_are_null_in_json_and_dashes_in_the_table(tmp_path):
    for side in ("found", "true"):
        save(tmp_path / side / "a.npy", FOUND * 0)
    text, _ = evaluate(tmp_path / "found", tmp_path / "true", "--json", tmp_path / "scores.json")
    assert text.splitlines()[2].split() == ["0.50", "-", "-", "-", "-", "0", "0", "0"]
    scores = json.loads((tmp_path / "scores.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert scores["f1"] == [None] * 9 and scores["mean_ap"] is None
    text, _ = evaluate(tmp_path / "found", tmp_path / "true", "--per-image")
    assert text.splitlines()[1].split("\t")[6:9] == ["", "", ""]


def test_images_that_one_side_lacks_are_named(tmp_path):
    for side, names in (("found", "abc"), ("true", "bcd")):
        for name in names:
            save(tmp_path / side / f"{name}.tif", FOUND)
    text = refuse(tmp_path / "found", tmp_path / "true")
    assert f"only in {str(tmp_path / 'found')!r}: a.tif\n" in text
    assert f"only in {str(tmp_path / 'true')!r}: d.tif; --allow-missing compares the others" in text
    text, beside = evaluate(tmp_path / "found", tmp_path / "true", "--allow-missing")
    assert text.startswith("2 images") and "a.tif" in beside and "d.tif" in beside
    for name in "bcd":
        (tmp_path / "true" / f"{name}.tif").rename(tmp_path / "true" / f"truth_{name}.tif")
    assert "no image is in both" in refuse(tmp_path / "found", tmp_path / "true", "--allow-missing")


@pytest.mark.parametrize("name", ["{}_{}.tif", "{}_s{}_nuclei.tif", "{}_{}_Nuclei.png"])
def test_a_plate_is_compared_with_masks_by_well_and_field(tmp_path, name):
    store = make_plate(tmp_path / "plate.zarr")
    for well in ("B03", "b4"):
        for field in ("1", "02"):
            save(tmp_path / "true" / name.format(well, field), FOUND)
    text, beside = evaluate(store, tmp_path / "true")
    assert text.startswith("4 images, 12 true objects, 12 found") and "1.000" in text and not beside
    text, _ = evaluate(tmp_path / "true", store, "--per-image")
    assert len(text.splitlines()) == 5, "the plate may be the truth too"
    text, _ = evaluate(store, store)
    assert "splits 0, merges 0, missed 0, spurious 0" in text


def test_masks_of_several_compartments_may_share_a_folder(tmp_path):
    store = make_plate(tmp_path / "plate.zarr", fields=(1,))
    for well in ("B03", "B04"):
        save(tmp_path / "true" / f"{well}_s1_nuclei.tif", FOUND)
        save(tmp_path / "true" / f"{well}_s1_cells.tif", TRUE)
    for compartment in ("Nuclei", "Cells"):
        text, _ = evaluate(store, tmp_path / "true", "--compartment", compartment)
        assert text.startswith("2 images, 6 true objects") and "missed 0, spurious 0" in text
    assert "of other compartments" in refuse(store, tmp_path / "true", "--compartment", "Nuclei", "--names", OTHERS)


OTHERS = r"(?P<well>\w\d\d)_s(?P<field>\d)_(?P<compartment>cells)"


def test_names_of_masks_are_told_by_a_regular_expression(tmp_path):
    store = make_plate(tmp_path / "plate.zarr", fields=(1,))
    for well in ("B03", "B04"):
        save(tmp_path / "true" / f"mask-{well}-f01.tif", FOUND)
    text = refuse(store, tmp_path / "true")
    assert "mask-B03-f01.tif" in text and "--names" in text
    pattern = r"mask-(?P<well>\w\d\d)-f(?P<field>\d+)"
    assert evaluate(store, tmp_path / "true", "--names", pattern)[0].startswith("2 images")
    save(tmp_path / "true" / "overview.tif", FOUND)
    text, beside = evaluate(store, tmp_path / "true", "--names", pattern)
    assert text.startswith("2 images") and "overview.tif" in beside
    assert evaluate(tmp_path / "true", tmp_path / "true", "--names", pattern)[0].startswith("2 images")
    assert "no regular expression" in refuse(store, tmp_path / "true", "--names", "(")
    assert "has no group 'field'" in refuse(store, tmp_path / "true", "--names", "(?P<well>.*)")


def test_fields_without_masks_or_labels_are_named(tmp_path):
    store = make_plate(tmp_path / "plate.zarr")
    save(tmp_path / "true" / "B03_1.tif", FOUND)
    save(tmp_path / "true" / "C05_1.tif", FOUND)
    text = refuse(store, tmp_path / "true")
    assert "B03_2, B04_1, B04_2" in text and "C05_1.tif" in text
    text, beside = evaluate(store, tmp_path / "true", "--allow-missing")
    assert text.startswith("1 image,") and "B04_1" in beside
    save(tmp_path / "true" / "B3_s01_nuclei.tif", FOUND)
    assert "are one image; remove one" in refuse(store, tmp_path / "true", "--allow-missing")


def test_wrong_inputs_say_what_to_give_instead(tmp_path):
    store = make_plate(tmp_path / "results/plates/P1/plate.zarr")
    found = save(tmp_path / "found" / "a.tif", FOUND)
    assert "Did you mean 'Nuclei'?" in refuse(store, store, "--compartment", "Nuclie")
    assert str(store) in refuse(tmp_path, tmp_path / "found"), "a screen's folder names the plate's"
    assert str(store) in refuse(store.parent, tmp_path / "found")
    assert "give two files or two folders" in refuse(found, tmp_path / "found")
    assert "is no plate" in refuse(store / "B/03/1/labels/Nuclei", tmp_path / "found")
    assert "--compartment" in refuse(tmp_path / "found", tmp_path / "found", "--compartment", "Cells")
    assert "leave them out" in refuse(found, found, "--compartment", "Cells")
    assert "there is no folder" in refuse(found, found, "--json", tmp_path / "none/scores.json")
    (tmp_path / "empty").mkdir()
    assert "holds no label images (.tif, .tiff, .png, .npy)" in refuse(tmp_path / "empty", tmp_path / "found")
    save(tmp_path / "other" / "a.npy", FOUND)
    save(tmp_path / "other" / "a.png", FOUND)
    assert "'a.npy' and 'a.png'" in refuse(tmp_path / "found", tmp_path / "other")


def test_every_file_that_is_no_label_image_is_told_at_once(tmp_path):
    color = np.zeros((*FOUND.shape, 3), np.uint8)
    made = {
        "color.png": lambda path: Image.fromarray(color).save(path),
        "color.tif": lambda path: tifffile.imwrite(path, color, photometric="rgb"),
        "cut.tif": lambda path: path.write_bytes(b"II*\0 and no more"),
        "cut.png": lambda path: path.write_bytes(b"\x89PNG"),
        "empty.npy": lambda path: path.write_bytes(b""),
        "floats.npy": lambda path: np.save(path, FOUND / 2),
        "flat.npy": lambda path: np.save(path, FOUND[0]),
        "mask.png": lambda path: Image.fromarray(FOUND > 0).save(path),
        "negative.npy": lambda path: np.save(path, -FOUND),
        "objects.npy": lambda path: np.save(path, np.array([{}]), allow_pickle=True),
        "smaller.npy": lambda path: np.save(path, FOUND[1:]),
        "two.tif": lambda path: tifffile.imwrite(path, FOUND.astype(np.uint8)),
    }
    for folder in ("found", "true"):
        (tmp_path / folder).mkdir()
    for i, (name, make) in enumerate(made.items()):
        make(tmp_path / "found" / f"{i}{name}")
        np.save(tmp_path / f"true/{i}{name}".rsplit(".")[0], FOUND)
    with tifffile.TiffWriter(tmp_path / "found/11two.tif") as writer:
        writer.write(FOUND.astype(np.uint8), metadata=None)
        writer.write(FOUND[1:].astype(np.uint8), metadata=None)
    text = refuse(tmp_path / "found", tmp_path / "true", "--json", tmp_path / "scores.json").splitlines()
    assert len(text) == len(made)
    for i, name in enumerate(made):
        assert sum(f"{i}{name}" in line for line in text) == 1, name
    for said in (
        "RGB",
        "3 samples",
        "float64",
        "bool, a mask",
        "negative number -3",
        "(3, 11) and (4, 11)",
        "2 images",
    ):
        assert sum(said in line for line in text) == 1, said
    assert not (tmp_path / "scores.json").exists()


def test_a_damaged_plate_is_no_result(tmp_path):
    from plateloom.errors import CorruptStoreError

    store = make_plate(tmp_path / "plate.zarr", fields=(1,))
    for file in (store / "B/03/1/labels/Nuclei/0/c").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-1])
    plate.forget_opened()
    with pytest.raises(CorruptStoreError):
        CliRunner().invoke(command, [str(store), str(store)], catch_exceptions=False)


def test_the_command_ends_with_two_where_the_input_is_wrong(tmp_path):
    save(tmp_path / "found" / "a.tif", FOUND)
    save(tmp_path / "true" / "b.tif", FOUND)
    call = [sys.executable, "-c", "from plateloom.cli import main; main()", "evaluate"]
    ended = subprocess.run([*call, tmp_path / "found", tmp_path / "true"], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2 and "a.tif" in ended.stderr and not ended.stdout
    ended = subprocess.run([*call, tmp_path / "found", tmp_path / "found"], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0 and ended.stdout.startswith("1 image, 3 true objects, 3 found")


def test_what_a_simulated_screen_holds_as_truth_is_read_by_name(raw_screen):
    truth = raw_screen / "truth/P1"
    for compartment in ("Nuclei", "Cells"):
        pattern = r"(?P<well>\w\d\d)_s(?P<field>\d+)_(?P<compartment>\w+)"
        text, _ = evaluate(truth, truth, "--names", pattern, "--compartment", compartment)
        assert text.startswith("12 images") and "missed 0, spurious 0" in text


# --- real nuclei -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (DATA / "dsb2018_fluo").exists(), reason="shared/data/dsb2018_fluo is not there")
class TestRealNuclei:
    """1,705 nuclei of 30 images, drawn by hand, and what is made of them."""

    truth = DATA / "dsb2018_fluo" / "labels"

    def changed(self, folder, change):
        folder.mkdir()
        for path in self.truth.glob("*.tif"):
            tifffile.imwrite(folder / path.name, change(tifffile.imread(path)))
        return folder

    def scores(self, folder, out):
        evaluate(folder, self.truth, "--json", out)
        return json.loads(out.read_text())

    def test_the_truth_agrees_with_itself(self, tmp_path):
        import csv

        with open(DATA / "dsb2018_fluo" / "index.csv", newline="") as file:
            expected = {f"{row['file']}.tif": int(row["n_nuclei"]) for row in csv.DictReader(file)}
        scores = self.scores(self.truth, tmp_path / "scores.json")
        assert scores["images"] == 30 and scores["mean_ap"] == scores["image_ap"] == 1
        assert {one["image"]: one["true"] for one in scores["per_image"]} == expected
        assert [scores[kind] for kind in KINDS] == [0, 0, 0, 0]

    def test_nuclei_that_lose_their_rim_match_less_and_are_not_missed(self, tmp_path):
        from scipy.ndimage import binary_erosion, find_objects

        def erode(labels):
            kept = np.zeros_like(labels)
            for value, box in enumerate(find_objects(labels), 1):
                if box:
                    kept[box][binary_erosion(labels[box] == value)] = value
            return kept

        scores = self.scores(self.changed(tmp_path / "found", erode), tmp_path / "scores.json")
        vanished = scores["true"] - scores["found"]
        assert scores["missed"] == vanished and scores["spurious"] == 0 and scores["merges"] == scores["splits"] == 0
        assert 0.9 < scores["f1"][0] < 1 and scores["f1"][-1] < 0.3
        assert scores["f1"] == sorted(scores["f1"], reverse=True)

    def test_nuclei_moved_far_away_are_missed_and_spurious(self, tmp_path):
        near = self.scores(self.changed(tmp_path / "near", lambda x: np.roll(x, 1, axis=1)), tmp_path / "near.json")
        far = self.scores(self.changed(tmp_path / "far", lambda x: np.roll(x, 12, axis=1)), tmp_path / "far.json")
        assert near["f1"][0] > 0.95 and far["f1"][0] < 0.5 * near["f1"][0]
        assert far["missed"] > 10 * near["missed"] and far["spurious"] > 10 * near["spurious"]

    def test_two_classes_of_errors_are_told_apart(self, tmp_path):
        from scipy.ndimage import find_objects, label

        touching = self.scores(
            self.changed(tmp_path / "touching", lambda x: label(x > 0)[0].astype(np.uint16)), tmp_path / "touching.json"
        )
        assert touching["merges"] == 220 and touching["missed"] == touching["spurious"] == 0
        assert touching["splits"] == 2, "nuclei that are drawn in two pieces"

        def halve(labels):
            halves = labels.astype(np.uint32)
            for value, box in enumerate(find_objects(labels), 1):
                if box:
                    rows, columns = np.nonzero(labels[box] == value)
                    lower = rows > np.median(rows)
                    halves[box][rows[lower], columns[lower]] += 100_000
            return halves

        halved = self.scores(self.changed(tmp_path / "halved", halve), tmp_path / "halved.json")
        assert halved["splits"] == halved["found"] - halved["true"] > 0.9 * halved["true"]
        assert halved["merges"] == halved["missed"] == halved["spurious"] == 0
