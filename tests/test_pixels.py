"""The pixel classifier: exact filters and forest, a test by image, the same labels in tiles, and better than a threshold."""

import json
import shutil

import numpy as np
import pytest
import tifffile
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import run_stages
from pydantic import ValidationError
from scipy import ndimage
from test_segmentation import assert_contract

from plateloom.cli import cli
from plateloom.cli.check import find_problems
from plateloom.errors import ConfigError, ModelMismatchError, TileOverlapError
from plateloom.planning import Screen
from plateloom.segmentation import make_method, pixel_model, pixels, segment_image
from plateloom.segmentation.filters import FILTERS, filter_image, filter_names, reach_px, smooth
from plateloom.segmentation.matching import match_objects
from plateloom.segmentation.pixel_model import (
    PixelModel,
    apply_forest,
    flatten_forest,
    load_pixel_model,
)
from plateloom.segmentation.pixel_training import Painted, TrainingParams, class_f1, map_image, train_pixels
from plateloom.segmentation.thresholds import bin_values, count_intensities, otsu
from plateloom.simulation import ScreenDesign, render_field
from plateloom.stages import segmentation
from plateloom.stages.pixels import write_pixel_model
from plateloom.stages.segmentation import segment_field
from plateloom.store import plate as store
from plateloom.store.layout import plate_store
from plateloom.store.provenance import read_json

CHANNELS = ["DNA", "ER", "GFP"]
CLASSES = ["background", "nuclei", "cells"]
PIXEL_UM = 0.65
DESIGN = ScreenDesign(plates=("P1",), rows=3, columns=4, fields=1, size_px=320, cells_per_field=25.0)


def truth_of(field):
    return np.where(field.nuclei > 0, 2, np.where(field.cells > 0, 3, 1)).astype(np.uint8)


def scribble(truth, *, strokes=10, length=14, seed=0):
    """Short strokes of two pixels' width on each class: uint8, 0 where nothing was painted."""
    rng, paint = np.random.default_rng(seed), np.zeros(truth.shape, np.uint8)
    for value in np.unique(truth):
        rows, columns = np.nonzero(truth == value)
        for at in rng.integers(len(rows), size=strokes):
            stroke = (
                slice(max(rows[at] - 1, 0), rows[at] + 1),
                slice(max(columns[at] - length // 2, 0), columns[at] + length // 2),
            )
            paint[stroke] = np.where(truth[stroke] == value, value, paint[stroke])
    return paint


def intensities(field):
    return (field.image / 65535).astype(np.float32)


def painted_wells(wells, channels=("DNA", "ER")):
    chosen = [CHANNELS.index(name) for name in channels]
    fields = {well: render_field(DESIGN, "P1", well, 1) for well in wells}
    return [
        Painted(well, well, intensities(field)[chosen], scribble(truth_of(field)), PIXEL_UM)
        for well, field in fields.items()
    ]


TAUGHT = ("A01", "B01", "C03")


@pytest.fixture(scope="module")
def trained_with_maps():
    maps = {}
    model = train_pixels(
        painted_wells(TAUGHT),
        channels=["DNA", "ER"],
        classes=CLASSES,
        on_map=lambda one, found: maps.update({one.name: found}),
    )
    return model, maps


@pytest.fixture(scope="module")
def trained(trained_with_maps):
    return trained_with_maps[0]


@pytest.fixture(scope="module")
def model_file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "pixels.safetensors"
    write_pixel_model(path, trained)
    return path


def segment(image, path, *, tile_px=None, channels=CHANNELS, **more):
    given = {"model": str(path), "nucleus_diameter_um": 14.0, "cells_class": "cells"} | more
    return segment_image(image, channels, method="pixels", params=given, pixel_size_um=PIXEL_UM, tile_px=tile_px)


# --- filters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.7, 1.6, 5.0, 40.0])
def test_smoothing_is_that_of_scipy_also_where_the_image_is_narrower_than_the_kernel(sigma):
    plane = np.random.default_rng(0).random((50, 37), np.float32)
    expected = ndimage.gaussian_filter(plane.astype(np.float64), sigma, truncate=3.0, mode="reflect")
    np.testing.assert_allclose(smooth(plane, sigma), expected, atol=2e-6)


def test_filters_of_a_slope_and_of_a_bowl_are_what_calculus_says():
    y, x = np.mgrid[:80, :80].astype(np.float32)
    sigma, middle = 2.0, (40, 40)
    named = dict(zip(FILTERS, filter_image((3 * y + 4 * x)[None], [sigma]), strict=True))
    assert named["GradientMagnitude"][middle] == pytest.approx(5 * sigma, rel=1e-4)
    assert named["LaplacianOfGaussian"][middle] == pytest.approx(0, abs=1e-2)
    assert named["StructureLarge"][middle] == pytest.approx(25 * sigma**2, rel=1e-4)
    assert named["StructureSmall"][middle] == pytest.approx(0, abs=1e-2)
    bowl = 0.5 * (2 * (y - 40) ** 2 + 6 * (x - 40) ** 2)
    named = dict(zip(FILTERS, filter_image(bowl[None], [sigma]), strict=True))
    assert named["HessianLarge"][middle] == pytest.approx(6 * sigma**2, rel=1e-3)
    assert named["HessianSmall"][middle] == pytest.approx(2 * sigma**2, rel=1e-3)
    assert named["LaplacianOfGaussian"][middle] == pytest.approx(8 * sigma**2, rel=1e-3)


def test_filters_have_a_name_each():
    image = np.zeros((2, 9, 9), np.float32)
    names = filter_names(["DNA", "ER"], [0.5, 1.0])
    assert len(filter_image(image, [0.7, 1.4])) == len(names) == len(set(names)) == 32


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.4, 6), min_size=1, max_size=3), st.integers(0, 2**16))
def test_a_view_with_the_filters_reach_gets_the_bits_of_the_whole_image(sigmas, seed):
    rng = np.random.default_rng(seed)
    image = rng.random((1, 120, 131), np.float32)
    reach, whole = reach_px(sigmas), filter_image(image, sigmas)
    top, left = rng.integers(0, 15, 2)
    view = filter_image(image[:, top:, left:], sigmas)
    np.testing.assert_array_equal(view[:, reach:, reach:], whole[:, top + reach :, left + reach :])


def test_values_do_not_depend_on_the_pixel_size():
    y, x = np.mgrid[:400, :400].astype(np.float32)
    fine = np.exp(-((y - 199.5) ** 2 + (x - 199.5) ** 2) / (2 * 30.0**2))[None]
    coarse = fine.reshape(1, 200, 2, 200, 2).mean(axis=(2, 4))
    of_fine, of_coarse = filter_image(fine, [8.0]), filter_image(coarse, [4.0])
    np.testing.assert_allclose(of_coarse[:, 80:120, 80:120], of_fine[:, 160:240:2, 160:240:2], atol=0.02)


# --- the forest ------------------------------------------------------------------------------------------------------


def test_the_forest_says_what_scikit_learn_says():
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(0)
    features = rng.normal(size=(3000, 6)).astype(np.float32)
    labels = (features[:, 0] + features[:, 1] * features[:, 2] > 0) + 2 * (features[:, 3] > 1)
    forest = RandomForestClassifier(20, random_state=0, class_weight="balanced").fit(features, labels)
    ours = flatten_forest([one.tree_ for one in forest.estimators_], forest.classes_, 4)
    new = rng.normal(size=(5000, 6)).astype(np.float32)
    new[:100] = features[:100]  # values that thresholds lie between
    np.testing.assert_allclose(apply_forest(ours, new.T).T, forest.predict_proba(new), atol=1e-4)


def test_a_value_at_a_limit_goes_where_scikit_learn_sends_it():
    class Stump:
        children_left, children_right = np.array([1, -1, -1]), np.array([2, -1, -1])
        feature, threshold = np.array([0, -2, -2]), np.array([0.1, -2, -2])  # no float32
        value = np.array([[[0.5, 0.5]], [[1.0, 0.0]], [[0.0, 1.0]]])

    near = np.nextafter(np.float32(0.1), np.float32([0, 1])).astype(np.float32)
    values = np.array([near[0], np.float32(0.1), near[1]], np.float32)
    expected = (values.astype(np.float64) > 0.1).astype(int)
    found = apply_forest(flatten_forest([Stump()], [0, 1], 2), values[None]).argmax(axis=0)
    np.testing.assert_array_equal(found, expected)


def test_a_class_that_a_fold_lacks_gets_no_vote():
    from sklearn.ensemble import RandomForestClassifier

    features = np.linspace(0, 1, 40, dtype=np.float32)[:, None]
    forest = RandomForestClassifier(3, random_state=0).fit(features, np.where(features[:, 0] > 0.5, 2, 0))
    found = apply_forest(flatten_forest([one.tree_ for one in forest.estimators_], forest.classes_, 3), features.T)
    assert found[1].max() == 0
    assert found[2, -1] == 1


# --- training and its test -------------------------------------------------------------------------------------------


def test_the_test_holds_out_whole_groups(trained_with_maps):
    trained, maps = trained_with_maps
    test = trained.card["test"]
    assert (test["groups"], test["folds"]) == (3, 3)
    painted = sum(int((one.paint > 0).sum()) for one in painted_wells(TAUGHT))
    assert np.sum(test["confusion"]) == painted
    assert min(test["f1"].values()) > 0.85
    assert maps.keys() == set(TAUGHT)
    np.testing.assert_allclose(maps["A01"].sum(axis=0), 1, atol=1e-3)


def test_labels_that_mean_nothing_are_not_learned():
    examples = [one._replace(paint=np.zeros_like(one.paint)) for one in painted_wells(TAUGHT)]
    rng = np.random.default_rng(0)
    for one in examples:  # single pixels, so that a split by pixel would not help either
        one.paint.ravel()[rng.permutation(one.paint.size)[:900]] = rng.integers(1, 4, 900)
    test = train_pixels(examples, channels=["DNA", "ER"], classes=CLASSES).card["test"]
    assert np.mean(list(test["f1"].values())) == pytest.approx(1 / 3, abs=0.06)


def test_one_group_has_no_test():
    examples = [one._replace(group="A01") for one in painted_wells(TAUGHT[:2])]
    names = []
    found = train_pixels(
        examples, channels=["DNA", "ER"], classes=CLASSES, on_map=lambda one, maps: names.append(one.name)
    )
    assert found.card["test"] is None
    assert names == ["A01", "B01"]


def test_images_without_paint_are_mapped_but_take_no_part_in_the_test():
    first, *others = painted_wells(TAUGHT)
    blank = [one._replace(paint=np.zeros_like(one.paint)) for one in others]
    maps, options = {}, {"channels": ["DNA", "ER"], "classes": CLASSES, "params": TrainingParams(trees=5)}
    keep = lambda one, found: maps.update({one.name: found})  # noqa: E731
    found = train_pixels([first, *blank], on_map=keep, **options)
    assert found.card["test"] is None, "one painted group is none to be held out"
    assert maps.keys() == set(TAUGHT)
    assert (found.card["images"], found.card["groups"]) == (["A01"], ["A01"])
    two = train_pixels([first, others[0], blank[1]], on_map=keep, **options)
    alone = train_pixels([first, others[0]], **options)
    assert two.card == alone.card and two.card["test"]["groups"] == 2
    np.testing.assert_array_equal(maps["C03"], map_image(two, others[1].image, PIXEL_UM))


def test_a_blank_field_of_a_painted_well_is_mapped_by_a_forest_that_has_not_seen_the_well():
    first, second, third = painted_wells(TAUGHT)
    blank = third._replace(group=first.group, paint=np.zeros_like(third.paint))
    maps, params = {}, TrainingParams(trees=5, pixels=10**6)  # all of them, so that the forests are the same
    options = {"channels": ["DNA", "ER"], "classes": CLASSES, "params": params}
    train_pixels([first, second, blank], on_map=lambda one, found: maps.update({one.name: found}), **options)
    without = train_pixels([second], **options)
    assert maps.keys() == set(TAUGHT)
    np.testing.assert_array_equal(maps["C03"], map_image(without, third.image, PIXEL_UM))


def test_images_that_the_model_would_refuse_are_not_learned_from():
    first, second, third = painted_wells(TAUGHT)
    options = {"channels": ["DNA", "ER"], "classes": CLASSES, "params": TrainingParams(trees=5)}
    with pytest.raises(
        ValueError, match=r"A01: 0\.3 µm/px; .* 0\.38 to 0\.594 µm/px.*B01: 0\.65 µm/px; .*one for each"
    ):
        train_pixels([first._replace(pixel_size_um=0.3), second._replace(pixel_size_um=0.65)], **options)
    other = np.zeros_like(third.paint)
    near = [first._replace(pixel_size_um=0.6), second._replace(pixel_size_um=0.65)]
    model = train_pixels([*near, third._replace(pixel_size_um=0.2, paint=other)], **options)
    assert model.card["pixel_size_um"] == 0.625
    params = pixels.Params(model="m.safetensors", nucleus_diameter_um=14.0)
    assert not any(pixels.find_faults(params, model.card, pixel_size_um=one.pixel_size_um) for one in near)


def test_the_same_strokes_give_the_same_file(trained, tmp_path):
    again = train_pixels(painted_wells(TAUGHT), channels=["DNA", "ER"], classes=CLASSES, threads=2)
    first, second = (write_pixel_model(tmp_path / name, one) for name, one in (("a", trained), ("b", again)))
    assert first == second


def test_pooled_f1_is_of_counts():
    np.testing.assert_allclose(class_f1([[6, 2, 0], [1, 3, 0], [0, 0, 0]])[:2], [12 / 15, 6 / 9])
    assert class_f1([[6, 2, 0], [1, 3, 0], [0, 0, 0]])[2] is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"paint": np.full((320, 320), 4, np.uint8)}, "class 4 is painted; there are 3"),
        ({"paint": np.ones((9, 9), np.uint8)}, "one pixel grid"),
        ({"paint": np.ones((320, 320), np.uint8)}, "class 'nuclei' .2. is painted nowhere"),
    ],
)
def test_paint_that_cannot_be_learned_from_is_refused(change, said):
    examples = [painted_wells(["A01"])[0]._replace(**change)]
    with pytest.raises(ValueError, match=said):
        train_pixels(examples, channels=["DNA", "ER"], classes=CLASSES)


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_file_gives_the_classifier_back(trained, model_file):
    found = load_pixel_model(model_file)
    assert found.card == json.loads(json.dumps(trained.card))
    for ours, theirs in zip(found.forest, trained.forest, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert read_json(model_file.with_suffix(".json"))["test"]["f1"] == trained.card["test"]["f1"]


def test_what_cannot_be_loaded_is_not_written(trained, model_file, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    monkeypatch.setattr(pixel_model, "LARGEST", model_file.stat().st_size - 1)
    with pytest.raises(ModelMismatchError, match="fewer trees"):
        write_pixel_model(path, trained)
    assert not path.exists()
    monkeypatch.setattr(pixel_model, "LARGEST", model_file.stat().st_size)
    write_pixel_model(path, trained)
    assert load_pixel_model(path).card == load_pixel_model(model_file).card


def test_other_files_are_refused(trained, model_file, tmp_path):
    broken = trained.forest._replace(right=trained.forest.right + 10**6)
    lost = trained.forest._replace(feature=np.where(trained.forest.feature >= 0, 999, -1).astype(np.int32))
    for name, content, said in (
        ("pickle", b"\x80\x04K\x01.", "no pixel classifier"),
        ("cut", model_file.read_bytes()[:-40], "not whole"),
        ("broken", broken, "leads out"),
        ("lost", lost, "what there is not"),
    ):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            write_pixel_model(path, PixelModel(content, trained.card))
        with pytest.raises(ModelMismatchError, match=said):
            load_pixel_model(path)
    with pytest.raises(ModelMismatchError, match="no pixel classifier at"):
        load_pixel_model(tmp_path / "absent")


# --- the method ------------------------------------------------------------------------------------------------------


def f1_of(counts):
    tp, fp, fn = counts
    return 2 * tp / (2 * tp + fp + fn)


def test_nuclei_of_other_wells_are_found_where_a_threshold_fails(model_file):
    """Strokes on three fields; the other wells of the plate. A threshold (Otsu) and its components are the yardstick."""
    ours, plain, cells = np.zeros(3, int), np.zeros(3, int), np.zeros(3, int)
    for well in sorted(set(DESIGN.wells) - set(TAUGHT)):
        field = render_field(DESIGN, "P1", well, 1)
        found = segment(intensities(field), model_file)
        if not field.nuclei.any():
            assert found["Nuclei"].max() == 0
            continue  # where a threshold finds nothing but noise
        ours += match_objects(found["Nuclei"], field.nuclei)
        cells += match_objects(found["Cells"], field.cells)
        smoothed = ndimage.gaussian_filter(intensities(field)[0], 1)
        components, _ = ndimage.label(smoothed > otsu(count_intensities(smoothed), bin_values()))
        plain += match_objects(components, field.nuclei)
    print(f"F1 at IoU 0.5: nuclei {f1_of(ours):.3f}, cells {f1_of(cells):.3f}, Otsu {f1_of(plain):.3f}")
    assert f1_of(ours) > 0.9
    assert f1_of(ours) > f1_of(plain) + 0.05
    assert f1_of(plain) < 0.8
    assert f1_of(cells) > 0.6


@pytest.mark.parametrize(
    "more", [{}, {"cells_class": None, "cells_channel": "ER"}, {"cells_class": None, "cells_distance_um": 5.0}]
)
def test_tiles_give_the_labels_of_the_whole_image(model_file, more):
    image = intensities(render_field(DESIGN, "P1", "A03", 1))
    whole = segment(image, model_file, **more)
    assert_contract(whole, image.shape[1:])
    assert whole["Nuclei"].max() > 15
    assert (whole["Cytoplasm"] > 0).sum() > 1000
    for tile_px in (61, 128):
        tiled = segment(image, model_file, tile_px=tile_px, **more)
        for name, labels in whole.items():
            np.testing.assert_array_equal(tiled[name], labels, err_msg=f"{name}, tiles of {tile_px} px")


def test_what_no_field_covers_has_no_objects_and_tiles_change_nothing(model_file):
    image = intensities(render_field(DESIGN, "P1", "A03", 1))
    covered = np.ones(image.shape[1:], bool)
    covered[:70, :80] = False
    full, holed = segment(image, model_file), np.where(covered, image, np.float32(np.nan))
    whole, tiled = segment(holed, model_file), segment(holed, model_file, tile_px=90)
    away = ndimage.binary_erosion(covered, iterations=25, border_value=1)
    for name, labels in whole.items():
        np.testing.assert_array_equal(tiled[name], labels)
        assert not labels[~covered].any()
        assert ((labels > 0) != (full[name] > 0))[away].mean() < 0.01
    with pytest.raises(ValueError, match="finite"):
        segment(np.where(covered, image, np.float32(np.inf)), model_file)


def test_probabilities_do_not_depend_on_the_block_in_which_pixels_are_filtered(trained, monkeypatch):
    image = intensities(render_field(DESIGN, "P1", "A03", 1))[:2]
    scaled = pixels.scale_channels(image, ["DNA", "ER"], trained.card, {})
    whole = pixels.predict_pixels(trained, scaled, pixel_size_um=PIXEL_UM)
    monkeypatch.setattr(pixels, "BLOCK_PX", 50)
    np.testing.assert_array_equal(pixels.predict_pixels(trained, scaled, pixel_size_um=PIXEL_UM), whole)


@pytest.mark.parametrize("background", [0.0, 0.002, 0.3])
def test_an_empty_field_has_no_objects(model_file, background):
    image = np.random.default_rng(1).normal(background, 0.05 * background, (3, 300, 300)).astype(np.float32)
    found = segment(image, model_file)
    assert_contract(found, (300, 300))
    assert found["Cells"].max() == 0


def test_brightness_and_background_do_not_matter(model_file):
    image = intensities(render_field(DESIGN, "P1", "A03", 1))
    found, other = segment(image, model_file)["Nuclei"], segment(3 * image + 0.01, model_file)["Nuclei"]
    assert f1_of(match_objects(other, found, min_iou=0.8)) > 0.97


def test_a_narrow_halo_is_refused(model_file):
    params = pixels.Params(model=str(model_file), nucleus_diameter_um=14.0, cells_class="cells")
    work = pixels.Pixels(params, CHANNELS, pixel_size_um=PIXEL_UM, shape=(2000, 2000))
    view, known = np.zeros((3, 500, 500), np.float32), {"channels": {}, "empty": False, "cells": {}}
    for phase, call in (
        ("seed", lambda core: work.seed(view, (700, 700), core, known)),
        ("grow", lambda core: work.grow(view, np.ones((500, 500), np.uint32), (700, 700), core, known)),
    ):
        narrow = slice(work.halo_px[phase] - 1, work.halo_px[phase] + 9)
        with pytest.raises(TileOverlapError, match=f"needs {work.halo_px[phase]} px"):
            call((narrow, narrow))


@pytest.mark.parametrize(
    ("channels", "pixel_um", "more", "said"),
    [
        (["DNA", "GFP", "Actin"], PIXEL_UM, {}, "trained on 'DNA', 'ER'.*'DNA', 'GFP', 'Actin'"),
        (CHANNELS, 0.3, {}, "trained at 0.65 µm/px and serves 0.52 to 0.812.*0.3 µm/px"),
        (CHANNELS, PIXEL_UM, {"nuclei_class": "nucleus"}, "Did you mean 'nuclei'.*background, nuclei, cells"),
    ],
)
def test_a_classifier_refuses_what_it_has_not_learned(model_file, channels, pixel_um, more, said):
    params = pixels.Params(model=str(model_file), **more)
    with pytest.raises(ModelMismatchError, match=said):
        make_method(pixels, params, channels, pixel_size_um=pixel_um, shape=(50, 50), device="cpu")


def test_without_a_model_it_is_said_how_to_make_one():
    with pytest.raises(ValidationError, match="train-pixels"):
        pixels.Params()


def test_pixels_that_are_no_numbers_are_refused(model_file):
    image = np.zeros((3, 50, 50), np.float32)
    image[1, 3, 3] = np.nan
    with pytest.raises(ValueError, match="ER.*finite"):
        segment(image, model_file)


# --- the command and the screen --------------------------------------------------------------------------------------


def invoke(*arguments):
    return CliRunner().invoke(cli, ["train-pixels", *map(str, arguments)], catch_exceptions=True)


@pytest.fixture(scope="module")
def lit_screen(raw_screen, tmp_path_factory):
    """A screen that has been run up to illumination, and strokes on three of its wells."""
    folder = tmp_path_factory.mktemp("lit") / "screen"
    shutil.copytree(raw_screen, folder)
    run_stages(folder, ["conversion", "assembly", "illumination"])
    for well in ("A01", "B01", "C01"):
        where = folder / "painted" / "P1" / well / "1"
        where.mkdir(parents=True)
        nuclei, cells = (
            tifffile.imread(folder / "truth" / "P1" / f"{well}_s1_{kind}.tif") for kind in ("nuclei", "cells")
        )
        truth = np.where(nuclei > 0, 2, np.where(cells > 0, 3, 1)).astype(np.uint8)
        tifffile.imwrite(where / "pixels.tif", scribble(truth))
    return folder


def choose(folder, method, parameters):
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["segmentation"] = {"method": method, "parameters": parameters}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return settings


def test_strokes_become_labels_of_a_screen(lit_screen, tmp_path):
    folder = tmp_path / "screen"
    shutil.copytree(lit_screen, folder)
    done = invoke(folder, "--labels", folder / "painted", "--channels", "DNA,ER", "--threads", 1,
                  "--maps", tmp_path / "maps", "--also", "P1/A02/1")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "pooled over 3 wells held out in 3 folds" in done.output
    maps = tifffile.imread(tmp_path / "maps/P1/A02/1/probabilities.ome.tif")
    assert maps.shape == (3, 256, 256)
    np.testing.assert_allclose(maps.sum(axis=0), 1, atol=1e-3)
    assert (tmp_path / "maps/P1/A01/1/probabilities.ome.tif").exists()
    parameters = {"model": "pixels.safetensors", "nucleus_diameter_um": 14.0, "cells_class": "cells"}
    settings = choose(folder, "pixels", parameters)
    assert find_problems(folder, files=False)[0] == []
    run_stages(folder, ["segmentation"])
    record = read_json(folder / "results/plates/P1/records/segmentation/part-0.json")
    assert record["status"] == "done"
    lacking = [one for one in record["failures"] if "lacks" in one["reason"]]
    assert lacking == [], "GFP is missing somewhere, but not asked for"
    found = store.read_labels(store.field_path(folder / plate_store("P1"), "B03", 1), "Nuclei")
    truth = tifffile.imread(folder / "truth/P1/B03_s1_nuclei.tif")
    assert f1_of(match_objects(found, truth)) > 0.8
    # Another classifier under the same name is another recipe.
    before = Screen(settings, folder).settings("segmentation")
    model = load_pixel_model(folder / "pixels.safetensors")
    write_pixel_model(folder / "pixels.safetensors", PixelModel(model.forest, model.card | {"note": 1}))
    assert Screen(settings, folder).settings("segmentation") != before


def test_a_field_without_a_channel_that_the_classifier_needs_fails_alone(lit_screen, tmp_path):
    folder = tmp_path / "screen"
    shutil.copytree(lit_screen, folder)
    assert invoke(folder, "--labels", folder / "painted", "--threads", 1).exit_code == 0
    choose(folder, "pixels", {"model": "pixels.safetensors", "nucleus_diameter_um": 14.0})
    run_stages(folder, ["segmentation"])
    record = read_json(folder / "results/plates/P1/records/segmentation/part-0.json")
    assert record["status"] == "done"
    assert [one["well"] for one in record["failures"] if "needs GFP" in one["reason"]] == ["B02"]


def test_fields_of_another_pixel_size_are_refused_as_data(lit_screen, trained, tmp_path):
    folder = tmp_path / "screen"
    shutil.copytree(lit_screen, folder)
    card = trained.card | {"pixel_size_um": 0.325}
    write_pixel_model(folder / "pixels.safetensors", PixelModel(trained.forest, card))
    choose(folder, "pixels", {"model": "pixels.safetensors"})
    run_stages(folder, ["segmentation"])
    record = read_json(folder / "results/plates/P1/records/segmentation/part-0.json")
    assert {one["well"] for one in record["failures"]} == set(DESIGN.wells) - {"C03"}, "C03 has no image"
    assert all("trained at 0.325 µm/px" in one["reason"] for one in record["failures"])
    (problem,), _ = find_problems(folder, files=True)
    assert problem.startswith("P1: segmentation.method pixels cannot work here: it was trained at 0.325 µm/px")


def test_a_classifier_that_is_replaced_during_the_run_ends_it(lit_screen, trained, tmp_path, monkeypatch):
    folder = tmp_path / "screen"
    shutil.copytree(lit_screen, folder)
    write_pixel_model(folder / "pixels.safetensors", trained)
    choose(folder, "pixels", {"model": "pixels.safetensors"})

    def replace_and_segment(*arguments):
        write_pixel_model("pixels.safetensors", trained._replace(card=trained.card | {"note": 1}))
        return segment_field(*arguments)

    monkeypatch.setattr(segmentation, "segment_field", replace_and_segment)
    with pytest.raises(ModelMismatchError, match="pixels.safetensors' was altered"):
        run_stages(folder, ["segmentation"])
    assert not list(folder.glob("results/plates/P1/segmentation/*.parquet"))


def test_check_says_what_a_classifier_does_not_fit(lit_screen, trained, tmp_path):
    folder = tmp_path / "screen"
    shutil.copytree(lit_screen, folder)
    card = trained.card | {"channels": ["DNA", "Tubulin"]}
    write_pixel_model(folder / "pixels.safetensors", PixelModel(trained.forest, card))
    choose(folder, "pixels", {"model": "pixels.safetensors", "nuclei_class": "Nuclei"})
    problems = "\n".join(find_problems(folder, files=False)[0])
    assert "'Tubulin'" in problems
    assert "Did you mean 'nuclei'" in problems
    choose(folder, "pixels", {"model": "absent.safetensors"})
    assert "absent.safetensors" in "\n".join(find_problems(folder, files=False)[0])


def test_whole_nuclei_and_cells_serve_as_well_as_strokes(lit_screen, tmp_path):
    for well in ("A01", "B01"):
        where = tmp_path / "masks/P1" / well / "1"
        where.mkdir(parents=True)
        for kind, name in (("nuclei", "Nuclei"), ("cells", "Cells")):
            shutil.copyfile(lit_screen / "truth/P1" / f"{well}_s1_{kind}.tif", where / f"{name}.tif")
    out = tmp_path / "m.safetensors"
    done = invoke(lit_screen, "--labels", tmp_path / "masks", "--out", out, "--pixels", 500, "--threads", 1)
    assert done.exit_code == 0, done.output
    card = load_pixel_model(out).card
    assert card["classes"] == CLASSES
    assert np.sum(card["test"]["confusion"]) == 2 * 256 * 256, "every pixel is painted, and tested"
    assert min(card["test"]["f1"].values()) > 0.8


def test_exported_labels_beside_strokes_are_not_learned_from(lit_screen, tmp_path):
    shutil.copytree(lit_screen / "painted", tmp_path / "painted")
    other = tmp_path / "painted/P1/A02/1"
    other.mkdir(parents=True)
    for place in (other, tmp_path / "painted/P1/A01/1"):
        for name in ("Nuclei", "Cells"):
            tifffile.imwrite(place / f"{name}.tif", np.ones((256, 256), np.uint16))
    out = tmp_path / "m.safetensors"
    done = invoke(lit_screen, "--labels", tmp_path / "painted", "--out", out, "--trees", 5, "--threads", 1)
    assert done.exit_code == 0, done.output
    assert load_pixel_model(out).card["images"] == ["P1/A01/1", "P1/B01/1", "P1/C01/1"]


def write_images(folder, count):
    for kind in ("images", "painted"):
        (folder / kind).mkdir(parents=True)
    for one in painted_wells(TAUGHT[:count]):
        tifffile.imwrite(folder / "images" / f"{one.name}.tif", (one.image * 65535).astype(np.uint16))
        tifffile.imwrite(folder / "painted" / f"{one.name}.tif", one.paint)
    return ["--images", folder / "images", "--labels", folder / "painted", "--channels", "DNA,ER"]


def test_images_without_a_screen_can_be_learned_from(tmp_path):
    given = write_images(tmp_path / "x", 2)
    names = {"1": "background", "2": "nuclei", "3": "cells"}
    (tmp_path / "x/painted/classes.json").write_text(json.dumps(names))
    out = tmp_path / "m.safetensors"
    done = invoke(*given, "--pixel-size", PIXEL_UM, "--out", out, "--trees", 10, "--sigmas", "0.5,1,2")
    assert done.exit_code == 0, done.output
    card = load_pixel_model(out).card
    assert card["classes"] == CLASSES
    assert card["sigmas_um"] == [0.5, 1.0, 2.0]
    assert card["test"]["groups"] == 2


def test_a_single_image_is_learned_from_with_a_warning(tmp_path):
    given = write_images(tmp_path, 1)
    done = invoke(*given, "--pixel-size", PIXEL_UM, "--out", tmp_path / "m.safetensors", "--trees", 5)
    assert done.exit_code == 0, done.output
    assert "no test is possible" in done.output
    assert load_pixel_model(tmp_path / "m.safetensors").card["test"] is None


def test_every_mistake_in_the_options_is_told_at_once(tmp_path):
    given = write_images(tmp_path, 1)[:4]
    done = invoke(*given, "--also", "P1/A01/1", "--sigmas", "0,1")
    assert isinstance(done.exception, ConfigError)
    said = "\n".join(done.exception.problems)
    for part in ("--pixel-size", "--channels", "--output", "--also needs --maps", "--sigmas"):
        assert part in said


def test_every_mistake_in_what_was_painted_is_told_at_once(lit_screen, tmp_path):
    for place, image in (
        ("P1/A01/1", np.zeros((9, 9), np.uint8)),
        ("P1/A02/7", np.ones((256, 256), np.uint8)),
        ("P9/A02/1", np.ones((256, 256), np.uint8)),
        ("P1/B01/1", np.full((256, 256), -1, np.int16)),
    ):
        (tmp_path / "painted" / place).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "painted" / place / "pixels.tif", image)
    done = invoke(lit_screen, "--labels", tmp_path / "painted")
    assert isinstance(done.exception, ConfigError)
    said = "\n".join(done.exception.problems)
    for part in ("P1/A01/1: ", "one pixel grid", "no field '7'", "no plate 'P9'. Plates: P1", "whole numbers"):
        assert part in said


def test_parameters_of_the_training_are_described():
    assert all(field.description for field in TrainingParams.model_fields.values())
    fields = pixels.Params.model_fields
    assert all("µm" in fields[name].description for name in fields if name.endswith("_um"))
