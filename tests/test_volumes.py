"""Plates that keep their z planes: cells found and measured in volumes, through the whole pipeline."""

import importlib

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from click.testing import CliRunner
from conftest import SMALL, copy_of
from in_process import run_stages
from scipy.ndimage import distance_transform_edt, gaussian_filter, label
from skimage.filters import threshold_otsu
from skimage.measure import regionprops

from plateloom.cli import cli
from plateloom.config import load_config
from plateloom.errors import ConfigError
from plateloom.features import measure_volume
from plateloom.latent.crops import crop_cells
from plateloom.planning import Screen
from plateloom.segmentation import memory_of_volume, segment_image, segment_volume
from plateloom.segmentation.matching import count_matches, pair_objects
from plateloom.store import plate as store
from plateloom.store.tables import read_table

STEP, PIXEL = 2.0, 0.65  # of the volumes here [µm]


def make_spheroid(seed, shape=(14, 128, 128), *, nuclei=20, diameter=10.0, step=STEP, noise=0.01, blur=1.2, fading=1.0):
    """Textured ellipsoids that touch, of 2 channels (DNA, body), float32 (2, Z, Y, X), and their labels.

    `blur` is the sigma along z [µm]; `fading` how many times darker the last plane is than the first.
    """
    rng, spacing = np.random.default_rng(seed), np.array([step, PIXEL, PIXEL])
    size, truth = np.array(shape) * spacing, np.zeros(shape, np.uint32)
    grid = np.stack(np.meshgrid(*[np.arange(n) * d for n, d in zip(shape, spacing, strict=True)], indexing="ij"), -1)
    bright, centers = np.zeros(shape, np.float32), np.zeros((0, 3))
    texture = gaussian_filter(rng.normal(size=shape), 1.2 / spacing)
    texture = np.clip(1 + 0.3 * texture / texture.std(), 0.1, None)
    for _ in range(2000):
        if len(centers) == nuclei:
            break
        center = rng.uniform(0, 1, 3) * size
        if len(centers) and rng.random() < 0.7:
            towards = rng.normal(size=3)
            distance = diameter * rng.uniform(0.95, 1.1)
            center = centers[rng.integers(len(centers))] + towards / np.linalg.norm(towards) * distance
        near = np.linalg.norm(centers - center, axis=1).min(initial=np.inf)
        if (center < 0.3 * diameter).any() or (center > size - 0.3 * diameter).any() or near < 0.85 * diameter:
            continue
        turned, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        inside = (((grid - center) @ turned / (diameter / 2 * rng.uniform(0.85, 1.15, 3))) ** 2).sum(-1) < 1
        inside &= truth == 0
        centers = np.concatenate([centers, center[None]])
        truth[inside] = len(centers)
        bright[inside] = rng.uniform(0.4, 1.0) * texture[inside]
    dna = gaussian_filter(bright, [blur / step, 0.5 / PIXEL, 0.5 / PIXEL])
    dna /= fading ** np.linspace(0, 1, shape[0])[:, None, None]
    body = gaussian_filter((truth > 0).astype(np.float32), 2.5 / spacing)
    image = np.stack([0.03 + 0.3 * dna, 0.03 + 0.2 * body])
    image += noise * rng.normal(size=image.shape) * np.sqrt(image / 0.3)
    return np.clip(image, 0, 1).astype(np.float32), truth


def score(labels, truth):
    """F1 of objects that overlap by half or more."""
    overlaps = pair_objects(labels, truth)
    return 2 * count_matches(overlaps, 0.5) / (len(overlaps.found_px) + len(overlaps.true_px))


def find(image, *, step=STEP, **params):
    params = {"nucleus_diameter_um": 10.0} | params
    return segment_volume(image, ["DNA", "body"], params=params, pixel_size_um=PIXEL, z_step_um=step)


@pytest.mark.parametrize(
    ("shape", "design", "least"),
    [
        ((26, 96, 96), {"step": 1.0}, 0.95),
        ((14, 128, 128), {"nuclei": 40, "fading": 3.0, "noise": 0.02}, 0.95),
        ((8, 128, 128), {"step": 4.0, "blur": 2.0}, 0.95),
        ((14, 128, 128), {"nuclei": 40, "blur": 3.0}, 0.85),  # a third of a nucleus
    ],
)
def test_touching_nuclei_are_told_apart_where_a_threshold_does_not(shape, design, least):
    found, naive, sizes = [], [], []
    for seed in range(2):
        image, truth = make_spheroid(seed, shape, **design)
        nuclei = find(image, step=design.get("step", STEP))["Nuclei"]
        found.append(score(nuclei, truth))
        naive.append(score(label(image[0] > threshold_otsu(image[0]))[0], truth))
        sizes.append(np.median(np.bincount(nuclei.ravel())[1:]) / np.median(np.bincount(truth.ravel())[1:]))
    assert np.mean(found) >= least > 0.8 > np.mean(naive)
    if design.get("blur", 1) < 3:
        assert 0.9 < np.mean(sizes) < 1.1


def test_hollow_nuclei_are_whole():
    z, y, x = np.mgrid[:15, :60, :60]
    distance = np.sqrt(((z - 7) * STEP) ** 2 + ((y - 30) * PIXEL) ** 2 + ((x - 30) * PIXEL) ** 2)
    rng = np.random.default_rng(0)
    image = np.where((distance < 6) & (distance > 2.5), 0.5, 0.05) + 0.01 * rng.normal(size=distance.shape)
    image = gaussian_filter(image, [0.5, 0.7, 0.7])[None].astype(np.float32)
    labels = segment_volume(image, ["DNA"], params={"nucleus_diameter_um": 12.0}, pixel_size_um=PIXEL, z_step_um=STEP)
    assert labels["Nuclei"].max() == 1 and (labels["Nuclei"][distance < 2] == 1).all()


def test_labels_of_a_volume_are_canonical():
    image, _ = make_spheroid(1)
    labels = find(image, cells_channel="body", cells_distance_um=6.0)
    nuclei, cells, cytoplasm = labels["Nuclei"], labels["Cells"], labels["Cytoplasm"]
    assert {one.dtype for one in labels.values()} == {np.dtype(np.uint32)}
    values, first = np.unique(nuclei[nuclei > 0], return_index=True)
    assert values.tolist() == list(range(1, len(values) + 1)) and (np.diff(first) > 0).all()
    assert (cells[nuclei > 0] == nuclei[nuclei > 0]).all() and set(np.unique(cells)) == {0, *values}
    assert (cytoplasm == np.where(nuclei == 0, cells, 0)).all() and (cytoplasm > 0).any()
    # Each nucleus and each cell is one piece.
    for image_ in (nuclei, cells):
        assert all(label(image_ == value)[1] == 1 for value in values)
    again = find(image, cells_channel="body", cells_distance_um=6.0)
    assert all((again[name] == one).all() for name, one in labels.items())


def test_without_a_channel_cells_reach_so_many_micrometers_in_every_direction():
    image = np.full((1, 15, 60, 60), 0.02, np.float32)
    z, y, x = np.mgrid[:15, :60, :60]
    distance = np.sqrt(((z - 7) * STEP) ** 2 + ((y - 30) * PIXEL) ** 2 + ((x - 30) * PIXEL) ** 2)
    image[0, distance < 4] = 0.5
    options = {"params": {"nucleus_diameter_um": 8.0, "cells_distance_um": 4.0}, "pixel_size_um": PIXEL}
    labels = segment_volume(image, ["DNA"], z_step_um=STEP, **options)
    assert abs(np.cbrt((labels["Nuclei"] > 0).sum() * PIXEL**2 * STEP * 0.75 / np.pi) - 4) < 0.4  # its radius
    far = distance_transform_edt(labels["Nuclei"] == 0, sampling=(STEP, PIXEL, PIXEL))
    assert ((labels["Cells"] > 0) == (far <= 4.0)).all()
    alone = segment_volume(image, ["DNA"], params={"nucleus_diameter_um": 8.0}, pixel_size_um=PIXEL, z_step_um=STEP)
    assert (alone["Cells"] == alone["Nuclei"]).all() and not alone["Cytoplasm"].any()


def test_volumes_without_nuclei_and_nuclei_at_the_faces():
    rng = np.random.default_rng(0)
    empty = np.clip(0.05 + 0.01 * rng.normal(size=(2, 6, 64, 64)), 0, 1).astype(np.float32)
    assert not any(one.any() for one in find(empty, cells_channel="body").values())
    assert not any(one.any() for one in find(np.zeros((2, 1, 64, 64), np.float32)).values())
    image, _ = make_spheroid(2)
    kept, dropped = find(image)["Nuclei"], find(image, border="drop")["Nuclei"]
    faces = [dropped.take(end, axis=axis) for axis in range(3) for end in (0, -1)]
    assert not any(face.any() for face in faces) and 0 < dropped.max() < kept.max()


def test_planes_and_volumes_are_not_taken_for_each_other():
    image = np.zeros((2, 4, 32, 32), np.float32)
    with pytest.raises(ValueError, match=r"Expected an image \(C, Z, Y, X\)"):
        find(image[:, 0])
    with pytest.raises(ValueError, match="watershed segments planes; call segment_image"):
        segment_volume(image, ["DNA", "body"], method="watershed", pixel_size_um=1, z_step_um=1)
    with pytest.raises(ValueError, match="volume segments volumes; call segment_volume"):
        segment_image(image[:, 0], ["DNA", "body"], method="volume", pixel_size_um=1)
    for step in (0, None):
        with pytest.raises(ValueError, match=f"z_step_um is {step}, expected a distance above 0"):
            find(image, step=step)
    with pytest.raises(ValueError, match="Expected intensities from 0 to 1, found uint16"):
        find(image.astype(np.uint16))
    with pytest.raises(ValueError, match=r"found \(2, 0, 32, 32\)"):
        find(image[:, :0])
    with pytest.raises(ValueError, match="nuclei_channel is 'Hoechst', but the image has the channels"):
        find(image, nuclei_channel="Hoechst")


def test_a_mask_from_a_volume_is_what_belongs_to_the_cell_in_any_plane():
    labels = np.zeros((2, 8, 8), int)
    labels[0, 2:5, 2:5], labels[1, 4:7, 4:7] = 1, 2
    crops = crop_cells(np.ones((1, 8, 8)), [[3.5, 3.5]] * 2, size_px=8, out_px=8, labels=labels, label_values=[1, 2])
    assert (crops[:, 0].astype(bool) == [(labels == 1).any(0), (labels == 2).any(0)]).all()


TREATED = ("B01", "B02", "B03", "B04")


def write_stacks(folder, wells, **more):
    """A screen of volumes: one file per plane, positive controls with larger nuclei."""
    source = folder / "raw" / "P1"
    source.mkdir(parents=True)
    rows = ["well\ttreatment\tdose\tunit\tcontrol"]
    for number, well in enumerate(wells):
        large = well in TREATED
        image, _ = make_spheroid(number, (10, 128, 128), nuclei=14, diameter=13.0 if large else 9.0)
        counts = (image * 65535).astype(np.uint16)
        for c, z in np.ndindex(counts.shape[:2]):
            tifffile.imwrite(source / f"{well}_f1_z{z + 1:02d}_c{c + 1}.tif", counts[c, z])
        rows.append(f"{well}\t{'drug' if large else 'DMSO'}\t\t\t{'positive' if large else 'negative'}")
    (folder / "map.tsv").write_text("\n".join(rows) + "\n")
    (folder / "plates.tsv").write_text("plate\tsource\treader\tplate_map\tbatch\nP1\traw/P1\tpattern\tmap.tsv\t\n")
    settings = yaml.safe_load(SMALL) | {
        "channels": {"DNA": {"source": "1"}, "body": {"source": "2"}},
        "readers": {"pattern": {"pattern": r"(?P<well>[A-H]\d+)_f(?P<field>\d)_z(?P<z>\d+)_c(?P<channel>\d)\.tif"}},
        "conversion": {"z": "keep", "pixel_size_um": PIXEL, "z_step_um": STEP, "levels": 2},
        "segmentation": {
            "method": "volume",
            "parameters": {"nucleus_diameter_um": 10.0, "cells_channel": "body", "cells_distance_um": 5.0},
        },
        "features": {"physical_units": True},
        "profiling": {"parameters": {"readout": "Nuclei_AreaShape_Volume", "min_controls": 2}},
        "classification": {"labels": "controls", "folds": 2},
    }
    settings["latent"]["autoencoder"] |= {"mask": "cell", "crop_um": 16.0}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | more))
    return folder


@pytest.fixture(scope="session")
def finished(once):
    """A screen of volumes that has run; copy it."""

    def make(folder):
        write_stacks(folder, ("A01", "A02", "A03", "A04", *TREATED))
        run_stages(folder)

    return once("volumes", make)


def test_a_screen_of_volumes_runs_from_stacks_to_the_report(finished):
    plate = finished / "results/plates/P1"
    field = store.field_path(plate / "plate.zarr", "A01", 1)
    image, described = store.read_image(field), store.describe_image(field)
    assert described["axes"] == "czyx" and image.shape == (2, 10, 128, 128) and described["z_step_um"] == STEP
    files = [path for path in field.rglob("*") if path.is_file()]  # a stack is one file, not one per plane
    assert len(files) == store.count_files(image.shape, described["levels"], labels=3)
    labels = {name: store.read_labels(field, name) for name in ("Nuclei", "Cells", "Cytoplasm")}
    truth = make_spheroid(0, (10, 128, 128), nuclei=14, diameter=9.0)[1]
    assert labels["Nuclei"].shape == truth.shape and score(labels["Nuclei"], truth) >= 0.9
    # What is measured is what scikit-image says of the labels that lie there.
    cells = read_table(plate / "features/A01.parquet").set_index("Metadata_ObjectNumber")
    regions = {one.label: one for one in regionprops(labels["Nuclei"])}
    assert set(cells.index) == set(regions)
    volumes = [regions[value].area for value in cells.index]
    assert cells["Nuclei_AreaShape_Volume"].tolist() == volumes
    assert np.allclose(cells["Nuclei_AreaShape_Volume_um3"], np.array(volumes) * PIXEL**2 * STEP)
    centers = [regions[value].centroid for value in cells.index]
    measured = cells[[f"Nuclei_AreaShape_Center_{axis}" for axis in "ZYX"]]
    assert np.allclose(measured, centers)
    assert not [name for name in cells if "Texture" in name or name.endswith("_um")]
    profiles = read_table(plate / "profiles.parquet")
    by_control = profiles.groupby("Metadata_Control")["Nuclei_AreaShape_Volume"].median()
    assert by_control["positive"] > 1.5 * by_control["negative"]
    assert not [name for name in profiles if "Location" in name or "Center" in name]
    latent = read_table(plate / "latent/A01.parquet")
    assert len(latent) == len(cells) and latent.filter(like="Latent_").notna().all().all()
    page = (plate / "report.html").read_text()
    assert "Nuclei_AreaShape_Volume" in page and "voxels" in page
    assert "Nuclei_AreaShape_Volume" in (finished / "results/screen/report.html").read_text()


def test_volumes_are_measured_as_measure_volume_measures_corrected_planes(finished, monkeypatch, tmp_path):
    copy_of(finished, tmp_path, monkeypatch)
    from plateloom.stages.illumination import read_corrected, read_volume

    field = store.field_path("results/plates/P1/plate.zarr", "B02", 1)
    made = store.read_group("results/plates/P1/illumination.zarr")["plateloom"]["fingerprint"]
    volume = read_volume("P1", "B02", 1, made)
    assert volume.shape == (2, 10, 128, 128)
    assert np.allclose(read_corrected("P1", "B02", 1, made), volume.max(axis=1), atol=1e-6)
    window = (slice(10, 50), slice(20, 70))
    assert np.array_equal(read_corrected("P1", "B02", 1, made, window=window, z=3), volume[:, 3, 10:50, 20:70])
    tables = measure_volume(volume, {"Cells": store.read_labels(field, "Cells")}, ["DNA", "body"])
    stored = read_table("results/plates/P1/features/B02.parquet")
    for name, values in tables["Cells"].items():
        assert np.allclose(stored[name], values, equal_nan=True), name


def test_plates_of_volumes_are_valid(finished):
    yaozarrs = pytest.importorskip("yaozarrs")
    path = finished / "results/plates/P1/plate.zarr"
    yaozarrs.validate_zarr_store(str(path))
    image = importlib.import_module("ome_zarr_models.v05.image_label")
    import zarr

    image.ImageLabel.from_zarr(zarr.open_group(f"{store.field_path(path, 'A01', 1)}/labels/Nuclei", mode="r"))
    found = CliRunner().invoke(cli, ["verify", str(finished), "--deep"])
    assert found.exit_code == 0, found.output


def test_a_preview_shows_volumes_from_above(finished, tmp_path, monkeypatch):
    folder = copy_of(finished, tmp_path, monkeypatch)
    found = CliRunner().invoke(cli, ["preview", str(folder), "--wells", "A01", "--out", str(tmp_path / "page.html")])
    assert found.exit_code == 0, found.output
    page = (tmp_path / "page.html").read_text()
    assert "cell [µm³]" in page and "nuclei in all of it" in page


def say(*words):
    """What a command prints, and what its mistake says."""
    found = CliRunner().invoke(cli, [str(word) for word in words])
    assert found.exception is None or isinstance(found.exception, ConfigError | SystemExit), found.exception
    return found.output + str(found.exception or "")


def edit(folder, **sections):
    path = folder / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    for name, values in sections.items():
        settings[name] = settings.get(name, {}) | values
    path.write_text(yaml.safe_dump(settings))


def test_check_says_what_volumes_need(tmp_path):
    folder = write_stacks(tmp_path / "screen", ("A01", "A02", "B01"))
    edit(folder, conversion={"z_step_um": None}, classification={"labels": ""})
    assert "do not say how far the z planes lie apart; set conversion.z_step_um" in say("check", folder)
    edit(folder, conversion={"z_step_um": STEP})
    assert CliRunner().invoke(cli, ["check", str(folder)]).exit_code == 0
    edit(folder, segmentation={"method": "watershed"}, profiling={"parameters": {}})
    assert "choose the method volume, or a projection, or run with --until quality" in say("check", folder)
    edit(folder, segmentation={"method": "volume"}, conversion={"z": "max"}, features={"families": ["Texture"]})
    said = say("check", folder)
    assert "volume segments volumes, and no z planes are kept: set conversion.z: keep" in said
    assert "Texture: not measured in volumes; families there: AreaShape, Location, Intensity" in said
    edit(folder, segmentation={"method": "watershed"}, features={"families": None})
    assert "conversion.z_step_um is of no use without conversion.z: keep" in say("check", folder)
    for path in (folder / "raw/P1").iterdir():
        if "_z01_" not in path.name:
            path.unlink()
    edit(folder, segmentation={"method": "volume"}, conversion={"z": "keep"})
    assert "P1: one z plane is there, which is no volume" in say("check", folder)


def test_a_method_for_planes_refuses_planes_that_are_kept_and_says_what_to_choose(tmp_path, monkeypatch):
    folder = write_stacks(tmp_path / "screen", ("A01", "A02", "B01"))
    edit(folder, segmentation={"method": "watershed"}, profiling={"parameters": {}}, classification={"labels": ""})
    monkeypatch.chdir(folder)
    run_stages(folder, ("conversion", "assembly", "illumination", "quality", "flagging", "segmentation"))
    record = (folder / "results/plates/P1/records/segmentation/part-0.json").read_text()
    assert (
        "watershed segments one plane, and z planes are kept (conversion.z: keep): choose the method volume" in record
    )


def test_memory_of_volumes_is_asked_for_by_their_size(finished, monkeypatch):
    monkeypatch.chdir(finished)
    screen = Screen(yaml.safe_load((finished / "config.yaml").read_text()))
    for stage, bytes_ in (("segmentation", 74), ("features", 132)):
        assert screen.volume_mb(stage, "P1") == memory_of_volume(stage, (10, 128, 128), 2)
        assert screen.volume_mb(stage, "P1") == pytest.approx(1e-6 * 10 * 128**2 * bytes_)
    planes = load_config({"channels": {"DNA": {"source": "1"}}})
    assert Screen(planes.model_dump(mode="json"), finished).volume_mb("features", "P1") == 0


def test_features_of_a_screen_of_volumes_are_listed(finished):
    found = CliRunner().invoke(cli, ["features", str(finished), "--columns"])
    listed = pd.DataFrame([line.split("\t") for line in found.output.splitlines()[1:]])
    cells = read_table(finished / "results/plates/P1/features/A01.parquet")
    assert listed[0].tolist() == [name for name in cells if not name.startswith("Metadata_")]
    assert listed.set_index(0).loc["Nuclei_AreaShape_Volume", 4] == "px^3"
    assert CliRunner().invoke(cli, ["features", str(finished), "--time"]).exit_code == 2


def test_labels_of_volumes_are_not_taken_back(finished, tmp_path, monkeypatch):
    folder = copy_of(finished, tmp_path, monkeypatch)
    say("labels", "export", folder, "--wells", "A01", "--to", tmp_path / "out")
    assert tifffile.imread(tmp_path / "out/P1/A01/1/Nuclei.tif").shape == (10, 128, 128)
    assert "labels of volumes are not taken back" in say("labels", "import", folder, tmp_path / "out")
