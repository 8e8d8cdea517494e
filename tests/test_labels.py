"""Labels out, corrected by hand and in again: what is accepted, what is refused, and what is computed anew."""

import re
import shutil

import numpy as np
import pytest
import tifffile
import yaml
from conftest import simulate, snakemake
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from in_process import run_stages
from test_run import plateloom

from plateloom.engine import locks
from plateloom.errors import PlateLayoutError
from plateloom.segmentation.reconciling import find_faults, reconcile
from plateloom.status import read_screen
from plateloom.store import corrections, plate
from plateloom.store.provenance import read_json
from plateloom.store.tables import read_table

TO_FEATURES = ("conversion", "assembly", "illumination", "quality", "flagging", "segmentation", "features")
STAGES = ("segmentation", "features")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A screen of one plate of two wells, as far as features; copy it, do not change it."""
    folder = simulate(tmp_path_factory.mktemp("labels") / "screen", rows=1, columns=2, fields=2)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["features"] = {"families": ["AreaShape", "Intensity"]}
    config["latent"] = {"autoencoder": {"enabled": False}, "maps": {"method": "pca"}}
    config["classification"] = {"labels": ""}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run_stages(folder, TO_FEATURES)
    return folder


@pytest.fixture
def screen(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "screen", copy_function=shutil.copy2)
    return tmp_path / "screen"


@pytest.fixture
def exported(screen, tmp_path):
    """The labels of A01, exported."""
    code, said = plateloom("labels", "export", screen, "--wells", "a1", "--to", tmp_path / "fixes")
    assert code == 0 and "2 fields" in said
    return tmp_path / "fixes"


def stored(screen, compartment="Nuclei", well="A01", field=1):
    path = plate.field_path(screen / "results/plates/P1/plate.zarr", well, field)
    return plate.read_labels(path, compartment)


def computed(screen, stage):
    """Wells that the last run of a stage made."""
    return read_json(screen / f"results/plates/P1/records/{stage}/part-0.json")["computed"]


def edit(path, change):
    """Change a label image as a person would."""
    tifffile.imwrite(path, change(tifffile.imread(path)))


def split_one_delete_one(labels):
    """Give the lower half of the largest nucleus a value of its own; delete the nucleus of the highest value."""
    labels, sizes = labels.copy(), np.bincount(labels.ravel())
    sizes[0] = 0
    largest, last = int(sizes.argmax()), len(sizes) - 1
    if largest == last:
        last -= 1
    rows, columns = np.nonzero(labels == largest)
    lower = rows > np.median(rows)
    labels[rows[lower], columns[lower]] = len(sizes) + 5
    labels[labels == last] = 0
    return labels


def assert_agree(nuclei, cells):
    """What holds for nuclei and cells of any method."""
    assert nuclei.dtype == cells.dtype == np.uint32
    np.testing.assert_array_equal(np.unique(nuclei), np.unique(np.where(cells > 0, cells, 0)))
    np.testing.assert_array_equal(cells[nuclei > 0], nuclei[nuclei > 0])


def test_exported_labels_and_images_are_those_of_the_plate(screen, exported):
    folder = exported / "P1/A01/1"
    for name in ("Nuclei", "Cells"):
        found = tifffile.imread(folder / f"{name}.tif")
        assert found.dtype == np.uint16, "which Fiji keeps as integers"
        np.testing.assert_array_equal(found, stored(screen, name))
    field = plate.field_path(screen / "results/plates/P1/plate.zarr", "A01", 1)
    with tifffile.TiffFile(folder / "image.ome.tif") as tiff:
        np.testing.assert_array_equal(tiff.asarray(), plate.read_image(field))
        assert tiff.series[0].axes == "CYX"
        for part in ('Name="DNA"', f'PhysicalSizeX="{plate.describe_image(field)["pixel_size_um"]}"'):
            assert part in tiff.ome_metadata
    code, said = plateloom("labels", "export", screen / "results/plates/P1", "--to", exported)
    assert code == 2 and "is there already" in said


def test_a_correction_computes_its_well_anew_and_withdrawing_it_brings_the_labels_back(screen, exported):
    before = {(name, well): stored(screen, name, well) for name in ("Nuclei", "Cells") for well in ("A01", "A02")}
    table = read_table(screen / "results/plates/P1/segmentation/A01.parquet")
    edit(exported / "P1/A01/1/Nuclei.tif", split_one_delete_one)
    corrected = tifffile.imread(exported / "P1/A01/1/Nuclei.tif")
    code, said = plateloom("labels", "import", screen, exported)
    count = len(np.unique(before["Nuclei", "A01"])) - 1
    assert code == 0 and f"P1 A01 field 1: {count} nuclei before, {count} now" in said
    assert "1 field corrected, 1 as before" in said
    state = read_screen(screen)["plates"]["P1"]["segmentation"]
    assert state.state == "stale" and "corrected labels" in state.reason

    run_stages(screen, STAGES)
    assert computed(screen, "segmentation") == computed(screen, "features") == ["A01"]
    assert read_screen(screen)["plates"]["P1"]["segmentation"].state == "done"
    nuclei, cells = (stored(screen, name) for name in ("Nuclei", "Cells"))
    np.testing.assert_array_equal(nuclei, corrected)
    assert_agree(nuclei, cells)
    np.testing.assert_array_equal(stored(screen, "Cytoplasm"), np.where(nuclei > 0, 0, cells))
    # Only the cell that was split and the one that was deleted are others than before.
    touched = np.unique(before["Cells", "A01"][cells != before["Cells", "A01"]])
    assert len(touched) == 2 and touched.min() > 0
    after = read_table(screen / "results/plates/P1/segmentation/A01.parquet")
    assert list(after["Corrected"]) == [True, False] and not table["Corrected"].any()
    assert list(after["Status"]) == ["done", "done"] and list(after["Reason"]) == ["", ""]
    measured = read_table(screen / "results/plates/P1/features/A01.parquet")
    measured = measured[measured["Metadata_Field"] == 1].set_index("Metadata_ObjectNumber")
    assert list(measured.index) == sorted(np.unique(nuclei)[1:])
    sizes = np.bincount(nuclei.ravel())
    np.testing.assert_array_equal(measured["Nuclei_AreaShape_Area"], sizes[measured.index])

    run_stages(screen, STAGES)
    assert computed(screen, "segmentation") == computed(screen, "features") == []
    assert plateloom("labels", "list", screen) == (0, f"P1 A01 field 1: {count} cells\n")
    code, said = plateloom("labels", "withdraw", screen, "--wells", "A01")
    assert code == 0 and "1 correction withdrawn" in said and not (screen / "corrections").exists()
    run_stages(screen, STAGES)
    assert computed(screen, "segmentation") == computed(screen, "features") == ["A01"]
    for (name, well), labels in before.items():
        np.testing.assert_array_equal(stored(screen, name, well), labels)


def test_labels_that_nobody_changed_correct_nothing(screen, exported):
    code, said = plateloom("labels", "import", screen, exported)
    assert code == 0 and "0 fields corrected, 2 as before" in said
    assert not (screen / "corrections").exists()


def test_a_second_correction_replaces_the_first_and_leaves_other_fields(screen, exported):
    def delete(value):
        return lambda labels: np.where(labels == value, 0, labels)

    for field in (1, 2):
        edit(exported / f"P1/A01/{field}/Nuclei.tif", delete(1))
    assert plateloom("labels", "import", screen, exported)[0] == 0
    first = corrections.list_corrections(screen, "P1")
    edit(exported / "P1/A01/2/Nuclei.tif", delete(2))
    code, said = plateloom("labels", "import", screen, exported)
    assert code == 0 and "1 field corrected, 1 as before" in said
    second = corrections.list_corrections(screen, "P1")
    assert first["A01"]["1"] == second["A01"]["1"] and first["A01"]["2"] != second["A01"]["2"]
    assert [path.name for path in (screen / "corrections/P1/A01").iterdir()].count("2.tif") == 1
    run_stages(screen, STAGES)
    assert not np.isin([1, 2], stored(screen, field=2)).any()


def test_every_mistake_is_told_at_once_with_its_file_and_nothing_is_imported(screen, exported):
    folder = exported / "P1/A01"
    edit(folder / "1/Nuclei.tif", lambda labels: labels[:-1])
    edit(folder / "1/Cells.tif", lambda labels: labels + np.float32(0.5))
    edit(folder / "2/Nuclei.tif", lambda labels: np.where(np.arange(len(labels))[:, None] == 0, 7, labels * 0 + 8))
    for name in ("P1/A01/2/Nuclear.tif", "P2/A01/1/Nuclei.tif", "P1/A03/1/Nuclei.tif", "Nuclei.tif"):
        (exported / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "2/Cells.tif", exported / name)
    (folder / "2/Cells.tif").write_bytes(b"no TIFF")
    code, said = plateloom("labels", "import", screen, exported)
    assert code == 2 and "nothing was started" in said
    for file, part in (
        ("P1/A01/1/Nuclei.tif", "is 255 × 256 px; the field is 256 × 256 px"),
        ("P1/A01/1/Cells.tif", "its pixels are float"),
        ("P1/A01/2/Cells.tif", "cannot be read"),
        ("P1/A01/2/Nuclear.tif", "Did you mean 'Nuclei'?"),
        ("P2/A01/1/Nuclei.tif", "no plate 'P2'"),
        ("P1/A03/1/Nuclei.tif", "no field '1' of well 'A03'"),
        ("fixes/Nuclei.tif", "expected PLATE/WELL/FIELD/Nuclei.tif"),
    ):
        assert re.search(rf"{re.escape(file)}: .*{re.escape(part)}", said), (file, said)
    assert not (screen / "corrections").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda labels: np.where(np.isin(labels, [1, 2]), 1, labels), "label 1 is in 2 pieces"),
        (lambda labels: np.where(labels == 1, 1_000_000, labels.astype(np.uint32)), "label 1000000: expected 0"),
        (lambda labels: np.where(labels == 1, -4, labels.astype(np.int32)), "label -4: expected 0"),
        (lambda labels: np.where(labels == 1, 2, np.where(labels == 2, 1, labels)), "nucleus 1 lies outside of cell 1"),
    ],
)
def test_labels_that_name_no_single_object_are_refused(screen, exported, change, said):
    edit(exported / "P1/A01/1/Nuclei.tif", change)
    code, text = plateloom("labels", "import", screen, exported)
    assert code == 2 and said in text and "P1/A01/1/Nuclei.tif" in text
    assert not (screen / "corrections").exists()


def test_unknown_plates_and_wells_are_told_at_once(screen, tmp_path):
    code, said = plateloom("labels", "export", screen, "--to", tmp_path / "x", "--plate", "P9", "--wells", "A09,Q")
    assert code == 2 and "no 'P9'" in said and "'Q' is not a well" in said and not (tmp_path / "x").exists()
    code, said = plateloom("labels", "export", tmp_path, "--to", tmp_path / "x")
    assert code == 2 and "holds no plate.zarr" in said
    code, said = plateloom("labels", "withdraw", screen)
    assert code == 2 and "--all" in said
    code, said = plateloom("labels", "withdraw", screen, "--wells", "A01")
    assert code == 2 and "there are none" in said


def test_a_field_that_nobody_touched_stays_the_method_s_after_a_new_segmentation(screen, exported):
    edit(exported / "P1/A01/1/Nuclei.tif", split_one_delete_one)
    edit(exported / "P1/A01/2/Nuclei.tif", lambda labels: labels.astype(np.int32))  # as another program saves it
    painted, before = tifffile.imread(exported / "P1/A01/1/Nuclei.tif"), stored(screen, field=2)
    config = yaml.safe_load((screen / "config.yaml").read_text())
    config["segmentation"]["parameters"] |= {"threshold_correction": 1.5}
    (screen / "config.yaml").write_text(yaml.safe_dump(config))
    run_stages(screen, ["segmentation"])
    assert (stored(screen, field=2) != before).any()
    (exported / "P1/A01/1/Cells.tif").rename(exported / "Cells")
    code, said = plateloom("labels", "import", screen, exported)
    assert code == 2 and "was segmented anew since the export, so Cells.tif is needed" in said
    (exported / "Cells").rename(exported / "P1/A01/1/Cells.tif")
    code, said = plateloom("labels", "import", screen, exported)
    assert (
        code == 0 and "1 field corrected, 1 as before" in said and said.count("painted on an older segmentation") == 1
    )
    assert list(corrections.list_corrections(screen, "P1")["A01"]) == ["1"]
    labels, _ = corrections.read_correction(screen / "corrections/P1/A01/1.tif")
    np.testing.assert_array_equal(labels["Nuclei"], painted)
    # What was exported by an earlier version is compared with what holds.
    (exported / "P1/A01/2/exported.json").unlink()
    code, said = plateloom("labels", "import", screen, exported)
    assert code == 0 and "1 field corrected, 1 as before" in said and "older" not in said


def test_a_correction_is_of_the_images_that_it_was_painted_on(screen, exported):
    edit(exported / "P1/A01/1/Nuclei.tif", split_one_delete_one)
    assert plateloom("labels", "import", screen, exported)[0] == 0
    corrected = screen / "corrections/P1/A01/1.tif"
    group = plate.field_path(screen / "results/plates/P1/plate.zarr", "A01", 1)
    assert corrections.read_correction(corrected)[1] == corrections.digest_image(group)
    raw = sorted((screen / "raw/P1").glob("A01_*"))
    for path in raw:
        shutil.copyfile(path.with_name(path.name.replace("A01", "A02")), path)
    run_stages(screen, TO_FEATURES[:-1])
    table = read_table(screen / "results/plates/P1/segmentation/A01.parquet")
    assert list(table["Status"]) == ["failed", "done"] and "painted on other images" in table["Reason"][0]
    assert "labels withdraw" in table["Reason"][0]

    edit(exported / "P1/A01/1/Cells.tif", lambda labels: np.where(labels == 1, 0, labels))
    code, said = plateloom("labels", "import", screen, exported)
    assert code == 2 and re.search(r"P1/A01/1/.*: painted on other images than the field has now", said)
    # Without the digests it is the person who says that the labels are of these images.
    (exported / "P1/A01/1/exported.json").unlink()
    assert plateloom("labels", "import", screen, exported)[0] == 0
    assert corrections.read_correction(corrected)[1] == corrections.digest_image(group)
    run_stages(screen, ["segmentation"])
    table = read_table(screen / "results/plates/P1/segmentation/A01.parquet")
    assert list(table["Status"]) == ["done", "done"] and list(table["Corrected"]) == [True, False]


def test_an_image_is_known_by_its_pixels_alone(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 900, (3, 40, 30), np.uint16)

    def digest(name, chosen, fingerprint="f", missing=()):
        channels = [{"label": f"{name}{i}", "color": "0000FF", "window": [0, 9]} for i in chosen]
        told = {"channels": channels, "pixel_size_um": 0.5, "levels": 1, "record": {"fingerprint": fingerprint}}
        shutil.rmtree(tmp_path / "1", ignore_errors=True)
        plate.forget_opened()
        plate.write_image(tmp_path / "1", pixels[list(chosen)], **told, missing=[f"{name}{i}" for i in missing])
        return corrections.digest_image(tmp_path / "1")

    whole = digest("C", (0, 1, 2))
    assert len(set(whole)) == 3 and whole == digest("D", (2, 0, 1), "another")
    assert corrections.same_image(whole, digest("C", (0, 2))) and corrections.same_image(digest("C", (1,)), whole)
    assert digest("C", (0, 1), missing=[1]) == digest("C", (0,))
    pixels[1, 39, 29] += 1
    assert not corrections.same_image(whole, digest("C", (0, 1, 2)))
    assert not corrections.same_image(whole, digest("C", (0, 1)))
    assert corrections.same_image(whole, digest("C", (0,))) and corrections.same_image([], whole)


def test_nothing_is_imported_while_a_run_works_on_the_screen(screen, exported):
    edit(exported / "P1/A01/1/Nuclei.tif", split_one_delete_one)
    with locks.hold(screen / ".plateloom.lock", wait=False):
        code, said = plateloom("labels", "import", screen, exported)
    assert code == 1 and not (screen / "corrections").exists(), said


def test_a_correction_of_another_size_fails_its_field_alone(screen):
    wrong = np.ones((9, 8), np.uint32)
    path = screen / corrections.correction_path("P1", "A02", 1)
    corrections.write_correction(path, {"Nuclei": wrong, "Cells": wrong})
    run_stages(screen, STAGES)
    table = read_table(screen / "results/plates/P1/segmentation/A02.parquet")
    assert list(table["Status"]) == ["failed", "done"]
    assert "9 × 8 px and the image is 256 × 256 px" in table["Reason"][0]


def test_a_correction_is_one_whole_file(tmp_path):
    labels = {"Nuclei": np.eye(40, dtype=np.uint32) * 70_000, "Cells": np.full((40, 40), 70_000, np.uint32)}
    path = tmp_path / "1.tif"
    corrections.write_correction(path, labels)
    first = path.read_bytes()
    for name, pixels in corrections.read_correction(path)[0].items():
        np.testing.assert_array_equal(pixels, labels[name])
    assert len(first) < 40 * 40 * 4, "compressed"
    corrections.write_correction(path, labels)
    assert path.read_bytes() == first, "the same labels are the same bytes"
    with pytest.raises(RuntimeError, match="has changed since"):
        corrections.read_correction(path, "another digest")
    assert corrections.read_correction(path)[1] == []
    corrections.write_correction(path, labels, ["a", "b"])
    assert corrections.read_correction(path)[1] == ["a", "b"]
    path.write_bytes(first[:-100])
    with pytest.raises(PlateLayoutError, match="import the labels again"):
        corrections.read_correction(path)
    tifffile.imwrite(path, labels["Nuclei"])
    with pytest.raises(PlateLayoutError, match="expected a page"):
        corrections.read_correction(path)


@pytest.mark.slow
def test_snakemake_reruns_the_part_of_a_corrected_well(screen, exported):
    """Through the rules themselves: the digest is a param of the one rule that reads it."""
    until = ("--until", "measure_features", "--config", "parts=2")
    snakemake(screen, *until)
    edit(exported / "P1/A01/1/Nuclei.tif", split_one_delete_one)
    assert plateloom("labels", "import", screen, exported)[0] == 0
    said = snakemake(screen, *until, "--dry-run").stdout
    stats = dict(re.findall(r"^(\w+)\s+(\d+)$", said.split("Job stats:")[-1], re.M))
    assert stats["segment_plate"] == "1" and "convert_plate" not in stats
    snakemake(screen, *until)
    assert_agree(stored(screen), stored(screen, "Cells"))
    np.testing.assert_array_equal(stored(screen), tifffile.imread(exported / "P1/A01/1/Nuclei.tif"))
    assert re.search(r"^total +0$", snakemake(screen, *until, "--dry-run").stdout, re.M)


def test_the_page_of_a_plate_says_which_fields_were_corrected(screen, exported):
    edit(exported / "P1/A01/2/Nuclei.tif", split_one_delete_one)
    assert plateloom("labels", "import", screen, exported)[0] == 0
    run_stages(screen)
    page = (screen / "results/plates/P1/report.html").read_text()
    assert "fields corrected by hand" in page and "A01 2" in page and "A01 1," not in page


# --- nuclei and cells that agree --------------------------------------------------------------------------------------


def test_a_split_nucleus_splits_its_cell():
    nuclei = np.array([[0, 1, 0, 0, 9, 0, 0]])
    cells = np.array([[1, 1, 1, 1, 1, 1, 0]])
    found, faults = reconcile(nuclei, cells)
    assert not faults
    np.testing.assert_array_equal(found, [[1, 1, 1, 9, 9, 9, 0]])


def test_merged_nuclei_merge_their_cells():
    nuclei = np.array([[0, 4, 4, 4, 4, 0, 0]])
    cells = np.array([[4, 4, 4, 5, 5, 5, 0]])
    np.testing.assert_array_equal(reconcile(nuclei, cells)[0], [[4, 4, 4, 4, 4, 4, 0]])


def test_a_nucleus_on_bare_ground_is_its_own_cell_and_one_that_reaches_over_a_border_takes_its_pixels():
    nuclei = np.array([[3, 3, 0, 0, 2, 2, 2, 0, 0, 0]])
    cells = np.array([[0, 0, 0, 2, 2, 2, 6, 6, 6, 6]])
    nuclei[0, 8] = 6
    np.testing.assert_array_equal(reconcile(nuclei, cells)[0], [[3, 3, 0, 2, 2, 2, 2, 6, 6, 6]])


def test_only_what_was_painted_over_is_judged():
    before = np.array([[3, 0, 3, 0, 0]])
    assert find_faults(before, before) == []
    assert find_faults(np.array([[3, 0, 3, 0, 3]]), before) == [
        "label 3 is in 3 pieces (1 and 1 and 1 px): give each object a value of its own"
    ]


def test_pieces_that_touch_at_a_corner_are_one():
    assert find_faults(np.array([[1, 0], [0, 1]])) == []


@settings(max_examples=150, deadline=None)
@given(
    arrays(np.uint32, (7, 8), elements=st.integers(0, 4)),
    arrays(np.uint32, (7, 8), elements=st.integers(0, 5)),
)
def test_reconciled_labels_agree_or_are_refused(nuclei, cells):
    found, faults = reconcile(nuclei, cells)
    np.testing.assert_array_equal(found[nuclei > 0], nuclei[nuclei > 0])
    assert faults or set(np.unique(found)) <= set(np.unique(nuclei)) | {0}
    again, _ = reconcile(nuclei, found)
    if not faults:
        np.testing.assert_array_equal(again, found)
    assert found[(cells == 0) & (nuclei == 0)].max(initial=0) == 0, "cells do not spread"
    elsewhere = [
        n
        for n in range(1, 5)
        if (nuclei == n).any() and (cells == n).any() and not ((nuclei == n) & (cells == n)).any()
    ]
    assert len(faults) == len(elsewhere)
