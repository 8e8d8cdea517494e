"""The export: one folder that says what it is, holds no place of ours, and leaves the screen as it was."""

import csv
import datetime
import errno
import hashlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from conftest import simulate
from in_process import run_stages

from plateloom.classification.enrichment import NUMBERS
from plateloom.cli.export import command
from plateloom.comparison import SCORES
from plateloom.config import load_config
from plateloom.engine import locks
from plateloom.errors import ConfigError, CorruptStoreError, LockedError
from plateloom.export import copies, export_screen, fractal
from plateloom.export.crate import COLUMNS, Crate, Run, describe_column
from plateloom.export.redaction import Redaction, without_formula, write_sheet
from plateloom.export.screen import MADE_ALSO_FROM, MADE_FROM, TABLES, find_unfinished, made_by, made_from, write_inside
from plateloom.planning import STAGES, Screen
from plateloom.store import corrections
from plateloom.store import plate as store
from plateloom.store.layout import plate_store, record_path
from plateloom.store.provenance import read_json, write_json
from plateloom.store.sheets import read_plate_map, read_sheet
from plateloom.store.tables import read_record, read_table, write_table
from plateloom.store.verification import check_group

TRUNCATED = "B02"


def make_screen(folder, **design):
    """Simulate and run a small screen whose raw images lie elsewhere, so that its list of plates names an absolute path."""
    simulate(folder, size_px=160, cells_per_field=9.0, **design)
    shutil.move(folder / "raw", folder.with_name("inbox of the microscope"))
    inbox = folder.with_name("inbox of the microscope")
    (folder / "plates.tsv").write_text((folder / "plates.tsv").read_text().replace("raw/", f"{inbox}/"))
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["latent"] = {"autoencoder": {"enabled": False}, "maps": {"method": "pca", "cells": 100}}
    settings["classification"] = {"labels": ""}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    run_stages(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished screen of two plates of six wells, two fields each; one field could not be read. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "screen"
    truncated = {"truncated": [("P1", TRUNCATED, 1)]}
    return make_screen(folder, plates=("P1", "P2"), rows=2, columns=3, fields=2, defects=truncated)


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """The whole screen, exported by the command as it is. Not to be changed."""
    out = tmp_path_factory.mktemp("exported") / "handed on"
    found = run(finished, out, "--license", "https://creativecommons.org/licenses/by/4.0/")
    assert found.exit_code == 0, found.output
    return out


@pytest.fixture
def again(finished, tmp_path):
    """A copy of the finished screen that may be changed; its source folder stays where it is."""
    return Path(shutil.copytree(finished, tmp_path / "screen"))


def run(folder, out, *options):
    """Call the command; what is no error of the command's own is raised."""
    found = CliRunner().invoke(command, [str(folder), str(out), *options])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def state_of(folder):
    """Content and time of every file, the lock aside, which says who held it last."""
    found = {name: path for name, path in files_below(folder).items() if name != ".plateloom.lock"}
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}
    return {name: (digests[name], path.stat().st_mtime_ns, path.stat().st_mode) for name, path in found.items()}


def crate_of(out):
    return json.loads((out / "ro-crate-metadata.json").read_text())


def entities_of(out):
    return {entity["@id"]: entity for entity in crate_of(out)["@graph"]}


def as_list(value):
    return value if isinstance(value, list) else [value]


def references(value):
    """Every reference in a value, however nested."""
    if isinstance(value, dict):
        if set(value) == {"@id"}:
            yield value["@id"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def texts_of(out):
    """Every text that an export holds, by file: pages, JSON, lists, columns of text and records of tables."""
    for name, path in files_below(out).items():
        if path.suffix in (".json", ".tsv", ".yaml", ".html") or path.name.startswith(".z"):
            yield name, path.read_text()
        elif path.suffix == ".parquet":
            table = pq.read_table(path)
            yield name, json.dumps({str(key): str(value) for key, value in (table.schema.metadata or {}).items()})
            for column in table.column_names:
                if str(table.schema.field(column).type) == "string":
                    yield name, "\n".join(str(cell) for cell in table[column].to_pylist())


# What is in it


def test_every_stage_says_what_it_makes_and_from_what():
    assert set(MADE_FROM) == set(STAGES)
    made = {name for stage in STAGES for name in made_by(stage).split()}
    below_plate = {name for name in made if not name.startswith("screen/")}
    assert below_plate == {*TABLES, "plate.zarr", "illumination.zarr", "report.html"}
    given = {"source", "plate_map.tsv", "labels.tsv", "corrections"}
    assert {name for names in [*MADE_FROM.values(), *MADE_ALSO_FROM.values()] for name in names.split()} <= made | given


def test_a_stage_is_said_to_be_made_from_what_the_config_has_it_read(finished):
    settings = yaml.safe_load((finished / "config.yaml").read_text())
    settings["latent"] = {"autoencoder": {"enabled": True}}

    def added(latent=None, **sections):
        config = load_config(settings | {"latent": settings["latent"] | (latent or {})} | sections)
        return {
            stage: more
            for stage in STAGES
            if (more := set(made_from(stage, config).split()) - set(MADE_FROM[stage].split()))
        }

    assert added() == {}
    assert added({"maps": {"inputs": "latent"}}) == {"map": {"latent"}, "maps": {"latent"}}
    chosen = {"labels": "controls", "inputs": "latent"}
    assert added(classification=chosen) == {"classifier": {"latent"}, "classes": {"latent"}}
    chosen |= {"inputs": "crops", "method": "cnn"}
    pixels = {"plate.zarr", "illumination.zarr"}
    assert added(classification=chosen) == {"classifier": pixels, "classes": pixels}
    without = {"exclude_badly_restored": True}
    model = "screen/models/autoencoder"
    assert added(profiling=without) == {"profiling": {"latent", model}, "latent_profiling": {model}}


def test_a_map_of_latents_is_not_said_to_be_of_features_alone(again, tmp_path):
    settings = yaml.safe_load((again / "config.yaml").read_text())
    settings["latent"]["autoencoder"]["enabled"] = True
    settings["latent"]["maps"]["inputs"] = "latent"
    (again / "config.yaml").write_text(yaml.safe_dump(settings))
    features = read_table(again / "results/plates/P1/features/A01.parquet")
    keys = [name for name in features if name in ("Metadata_Plate", "Metadata_Well", "Metadata_Field")]
    (again / "results/plates/P1/latent").mkdir()
    write_table(again / "results/plates/P1/latent/A01.parquet", features[keys], {})
    run(again, tmp_path / "out", "--incomplete", "--no-tables", "--plate", "P1")
    entities = entities_of(tmp_path / "out")
    for name in ("#maps-of-P1", "#map-of-screen"):
        used = {one["@id"] for one in as_list(entities[name]["object"])}
        assert {"plates/P1/features/", "plates/P1/latent/"} <= used


def test_all_of_a_finished_screen_is_there_and_nothing_else(exported, finished):
    assert {path.name for path in exported.iterdir()} == {
        "config.yaml",
        "plates",
        "plates.tsv",
        "ro-crate-metadata.json",
        "schemas",
        "screen",
    }
    of_plate = {path.name for path in (exported / "plates/P1").iterdir()}
    made = {
        "fields",
        "quality",
        "qc.parquet",
        "segmentation",
        "features",
        "aggregates.parquet",
        "profiles.parquet",
        "maps",
    }
    assert of_plate == made | {"illumination.zarr", "report.html", "plate_map.tsv", "records"}
    for name in ("features/A01.parquet", "profiles.parquet", "fields/B02.parquet"):
        source = finished / "results/plates/P1" / name
        assert (exported / "plates/P1" / name).read_bytes() == source.read_bytes()
    assert (exported / "screen/models/map/map.json").exists()
    links = re.findall(r'href="(\.\.[^"]+)"', (exported / "screen/report.html").read_text())
    assert links and all((exported / "screen" / link.partition("#")[0]).exists() for link in links)
    assert not [name for name in files_below(exported) if Path(name).name.startswith(".")]


def test_the_settings_and_the_list_of_plates_hold_in_the_export(exported):
    from plateloom.config import read_config
    from plateloom.planning import list_plates

    config = read_config(exported)
    plates, problems = list_plates(exported / config.plates)
    assert problems == [] and [plate.plate for plate in plates] == ["P1", "P2"]
    assert all(read_plate_map(exported / plate.plate_map) for plate in plates)
    assert "engine" not in yaml.safe_load((exported / "config.yaml").read_text())


@pytest.mark.slow
def test_the_screen_stays_as_it_is(finished, tmp_path):
    before = state_of(finished)
    for option in ("--link", "--copy", "--no-tables"):
        assert run(finished, tmp_path / option, option).exit_code == 0
    assert state_of(finished) == before


def test_some_plates_can_be_taken_and_then_nothing_speaks_of_the_others(finished, tmp_path):
    found = run(finished, tmp_path / "out", "--plate", "P2", "--no-tables")
    assert "left out" in found.output
    assert {path.name for path in (tmp_path / "out/plates").iterdir()} == {"P2", "P2.zarr"}
    assert {path.name for path in (tmp_path / "out/screen").iterdir()} == {"models", "records"}
    assert {path.name for path in (tmp_path / "out/screen/records").iterdir()} == {"map.json"}
    assert read_sheet(tmp_path / "out/plates.tsv", {"plate"}, None)[0][0][1]["plate"] == "P2"
    graph = (tmp_path / "out/ro-crate-metadata.json").read_text()
    assert "of the 2 plates" in graph and "P1" not in graph


# Copies


def inodes_shared(out, folder):
    of_folder = {path.stat().st_ino for path in files_below(folder).values()}
    return {name for name, path in files_below(out).items() if path.stat().st_ino in of_folder}


def test_hard_links_are_pixels_only(finished, tmp_path):
    found = run(finished, tmp_path / "out", "--link", "--plate", "P1")
    assert "pixels as hard links" in found.output
    shared = inodes_shared(tmp_path / "out", finished)
    assert shared and all(re.fullmatch(r"plates/P1\.zarr/.*/c(/\d+)+", name) for name in shared)
    chunks = {name for name in files_below(tmp_path / "out/plates/P1.zarr") if re.search(r"/c(/\d+)+$", name)}
    assert {f"plates/P1.zarr/{name}" for name in chunks} == shared


def test_copies_share_no_byte_with_the_screen(finished, tmp_path):
    found = run(finished, tmp_path / "out", "--copy", "--plate", "P1")
    assert "pixels as copies" in found.output
    assert inodes_shared(tmp_path / "out", finished) == set()


def test_the_first_way_that_works_is_taken_and_told(finished, tmp_path):
    way = copies.choose_way(finished / "config.yaml", tmp_path, None)
    assert way in (copies.CLONE, copies.LINK)
    assert list(tmp_path.iterdir()) == []
    assert copies.choose_way(finished / "config.yaml", tmp_path, False) == copies.COPY


def test_links_to_another_disk_are_refused_and_otherwise_copies(finished, tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == finished.stat().st_dev:
        pytest.skip("no second file system")
    with pytest.raises(ConfigError, match="hard links"):
        copies.choose_way(finished / "config.yaml", other, True)
    assert copies.choose_way(finished / "config.yaml", other, None) == copies.COPY


def test_a_file_with_as_many_names_as_it_can_have_is_copied(finished, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    monkeypatch.setattr(os, "link", refuse)
    copies.take_file(finished / "config.yaml", tmp_path / "taken", copies.LINK, pixels=True)
    assert (tmp_path / "taken").read_bytes() == (finished / "config.yaml").read_bytes()


def test_what_a_killed_job_left_behind_is_not_taken(again, tmp_path):
    of_plate = again / plate_store("P1")
    (of_plate / "A/01/.tiles").mkdir()
    (of_plate / "A/01/.tiles/1.npy").write_bytes(b"left")
    (of_plate / "A/01/1/0/c/.0.abc").write_bytes(b"left")
    (again / "results/plates/P1/features/.A01.parquet.abc").write_bytes(b"left")
    run(again, tmp_path / "out", "--plate", "P1", "--no-tables")
    assert not [name for name in files_below(tmp_path / "out") if "/." in name]


# The plates


@pytest.mark.parametrize("plate", ["P1", "P2"])
def test_an_exported_plate_reads_as_the_original_with_all_its_checks(exported, finished, plate):
    original, copy = finished / plate_store(plate), exported / f"plates/{plate}.zarr"
    assert store.list_fields(copy) == store.list_fields(original)
    for well, fields in store.list_fields(copy).items():
        for field in fields:
            paths = [store.field_path(one, well, field) for one in (original, copy)]
            np.testing.assert_array_equal(*(store.read_image(path) for path in paths))
            for compartment in store.list_labels(paths[0]):
                np.testing.assert_array_equal(*(store.read_labels(path, compartment) for path in paths))
    problems = check_group(copy, deep=True)
    assert problems == []


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_a_plate_of_either_format_is_taken_whole_and_can_say_what_it_is(tmp_path, ngff):
    make_plate(tmp_path / "P.zarr", ngff)
    (tmp_path / "P.zarr/notes.txt").write_text("not of the plate")
    taken = copies.take_plate(tmp_path / "P.zarr", tmp_path / "copy.zarr", copies.COPY, incomplete=False)
    assert (taken.fields, taken.left_out) == ({"B03": [1]}, [])
    assert taken.size == copies.measure_tree(tmp_path / "copy.zarr")
    assert check_group(tmp_path / "copy.zarr", deep=True) == []
    rows = [{"well": "B03", "dose": float("nan")}]
    write_inside(tmp_path / "copy.zarr", about={"name": "P"}, plate_map=rows, config={"a": 1}, provenance={})
    found = store.read_group(tmp_path / "copy.zarr/plateloom")
    found = found["ome"] if ngff == "0.4" else found
    assert (found["about"], found["plate_map"]) == ({"name": "P"}, [{"well": "B03", "dose": None}])
    assert store.list_fields(tmp_path / "copy.zarr") == {"B03": [1]}


def test_damage_of_an_exported_plate_is_noticed(finished, tmp_path):
    run(finished, tmp_path / "out", "--copy", "--plate", "P1", "--no-tables")
    image = store.field_path(tmp_path / "out/plates/P1.zarr", "A01", 1)
    chunk = next(path for name, path in files_below(image / "0").items() if name.startswith("c/"))
    damaged = bytearray(chunk.read_bytes())
    damaged[20] ^= 1
    chunk.write_bytes(damaged)
    with pytest.raises(CorruptStoreError):
        store.read_image(image)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def flip_page(path):
    column = pq.read_metadata(path).row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 2] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "a file of pixels that is cut": ("plates/P1/plate.zarr/A/02/1/0/c/0/0/0", lambda path: os.truncate(path, 100)),
    "a pixel": ("plates/P1/plate.zarr/A/02/1/0/c/0/0/0", flip),
    "a label": ("plates/P1/plate.zarr/A/02/1/labels/Nuclei/0/c/0/0", flip),
    "a flat-field": ("plates/P1/illumination.zarr/DNA/c/0/0", flip),
    "a table": ("plates/P1/features/A01.parquet", flip_page),
    "a plate": ("plates/P1/plate.zarr", shutil.rmtree),
    "a model": ("screen/models/map/map.npz", flip),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_what_is_damaged_is_not_handed_on(again, tmp_path, what):
    name, damage = DAMAGES[what]
    damage(again / "results" / name)
    found = run(again, tmp_path / "out", "--no-tables", "--plate", "P1")
    assert found.exit_code == 1 and str(again / "results" / name) in found.output
    assert f"plateloom verify {again} --deep --repair" in found.output
    assert [path.name for path in tmp_path.iterdir()] == ["screen"]


def test_a_plate_that_is_gone_is_not_said_to_be_at_fault(again, tmp_path):
    shutil.rmtree(again / plate_store("P1"))
    found = run(again, tmp_path / "out", "--no-tables", "--incomplete", "--plate", "P1")
    assert found.exit_code == 0 and "P1: no images, since the list of its wells is gone" in found.output


def test_an_exported_plate_is_valid_to_ome_zarr_models_and_yaozarrs(exported):
    import yaozarrs

    yaozarrs.validate_zarr_store(str(exported / "plates/P1.zarr"))
    code = "import sys, zarr; from ome_zarr_models.v05.hcs import HCS; HCS.from_zarr(zarr.open_group(sys.argv[1], mode='r'))"
    found = subprocess.run(
        [sys.executable, "-c", code, str(exported / "plates/P1.zarr")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


def test_a_plate_alone_knows_its_map_and_how_it_was_made(exported, finished, tmp_path):
    alone = Path(shutil.copytree(exported / "plates/P1.zarr", tmp_path / "alone.zarr"))
    found = store.read_group(alone / "plateloom")
    expected = [
        {key: None if value != value else value for key, value in row.items()}
        for row in read_plate_map(finished / "maps/P1.tsv")
    ]
    assert found["plate_map"] == expected
    assert found["about"] == {"name": "P1", "batch": "batch1", "source": "P1", "reader": "pattern"}
    told, record = found["provenance"]["segmentation"], read_json(finished / record_path("P1", "segmentation"))
    assert told["code"] == [record["code"]] and told["versions"] == [record["versions"]]
    assert told["parameters"]["method"] == found["config"]["segmentation"]["method"] == "watershed"
    assert len(found["provenance"]["conversion"]["listings"][0]) == 32
    assert store.list_fields(alone) == store.list_fields(finished / plate_store("P1"))


# Tables of ngio and Fractal


def test_ngio_reads_the_features_that_the_parquet_files_hold(exported, finished):
    import ngio

    plate = ngio.open_ome_zarr_plate(str(exported / "plates/P1.zarr"), mode="r")
    cells = 0
    for well, fields in store.list_fields(exported / "plates/P1.zarr").items():
        table = pd.read_parquet(finished / f"results/plates/P1/features/{well}.parquet")
        for field in fields:
            image = plate.get_image(well[0], well[1:], str(field))
            rows = table[table["Metadata_Field"] == field].set_index("Metadata_ObjectNumber")
            for compartment in ("Nuclei", "Cells", "Cytoplasm"):
                found = image.get_feature_table(f"{compartment}_feature_table")
                assert found.reference_label == compartment and found.backend_name == "parquet"
                expected = rows[[name for name in rows if name.startswith(f"{compartment}_")]].dropna(how="all")
                pd.testing.assert_frame_equal(found.dataframe, expected, check_names=False, check_exact=True)
                assert found.dataframe.index.name == "label" and set(found.dataframe.dtypes) == {np.dtype("float64")}
                labels = image.get_label(compartment).get_as_numpy()
                assert set(found.dataframe.index) == set(np.unique(labels)) - {0}
                cells += len(expected)
    assert cells > 100


def test_ngio_reads_the_plate_map(exported, finished):
    import ngio

    plate = ngio.open_ome_zarr_plate(str(exported / "plates/P2.zarr"), mode="r")
    found = plate.get_condition_table("condition_table").dataframe
    expected = pd.DataFrame(read_plate_map(finished / "maps/P2.tsv"))
    assert list(found.columns) == ["row", "column", *expected.columns]
    pd.testing.assert_frame_equal(
        found[list(expected.columns)].sort_values("well", ignore_index=True),
        expected.sort_values("well", ignore_index=True),
        check_dtype=False,
    )
    assert set(found["row"] + "/" + found["column"]) == set(plate.wells_paths())
    assert found["dose"].dtype == np.float64


def test_ngio_reads_the_regions_and_cuts_them_out(exported):
    import ngio

    path = store.field_path(exported / "plates/P2.zarr", "A02", 2)
    container = ngio.open_ome_zarr_container(str(path), mode="r")
    assert set(container.list_roi_tables()) == {"FOV_ROI_table", "well_ROI_table"}
    (roi,) = container.get_roi_table("FOV_ROI_table").rois()
    assert roi.name == "FOV_2"
    np.testing.assert_array_equal(container.get_image().get_roi_as_numpy(roi), store.read_image(path))


def make_plate(path, ngff):
    """A plate by hand: a stitched well of two fields side by side, one nucleus without a cell."""
    labels = np.zeros((40, 70), np.uint32)
    labels[5:9, 5:9], labels[20:26, 50:58] = 3, 7
    tiles = [{"field": 4, "y": 0, "x": 0}, {"field": 9, "y": 2, "x": 35}]
    image = np.arange(2800, dtype=np.uint16).reshape(1, 40, 70)
    where = store.field_path(path, "B03", 1)
    kind = store.Format(ngff=ngff)
    channels = [{"label": "DNA", "color": "FFFFFF", "window": (0, 1)}]
    options = {"pixel_size_um": 0.5, "levels": 1, "format": kind}
    record = {"tiles": tiles, "tile_shape": [38, 35]}
    store.write_image(where, image, channels=channels, record=record, position_um=(100.0, -20.0), **options)
    cells = np.where(labels == 7, labels, 0)
    store.write_labels(where, {"Nuclei": labels, "Cells": cells}, record={}, **options)
    store.write_well(path, "B03", [1], {})
    store.write_plate(path, name="P", wells=["B03"], shape=(2, 3), field_count=1, record={})
    return image


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_stitched_wells_absent_compartments_and_the_older_format(tmp_path, ngff):
    import ngio

    image = make_plate(tmp_path / "P.zarr", ngff)
    features = pd.DataFrame(
        {
            "Metadata_Field": [1, 1],
            "Metadata_ObjectNumber": [3, 7],
            "Nuclei_A": [1.5, np.nan],
            "Cells_A": [np.nan, 0.1],
        }
    )
    write_table(tmp_path / "B03.parquet", features, {})
    rows = [
        {"well": "B03", "treatment": "x", "dose": 0.1, "row": "mine"},
        {"well": "A01", "treatment": "", "dose": np.nan},
    ]
    number = fractal.add_tables(
        tmp_path / "P.zarr", {"B03": [1]}, plate_map=rows, features=lambda well: tmp_path / f"{well}.parquet"
    )
    assert number == 5
    path = store.field_path(tmp_path / "P.zarr", "B03", 1)
    container = ngio.open_ome_zarr_container(str(path), mode="r")
    # A nucleus that could not be measured keeps its row; a nucleus without a cell has none among the cells.
    assert container.get_feature_table("Nuclei_feature_table").dataframe.index.tolist() == [3, 7]
    found = container.get_feature_table("Cells_feature_table").dataframe
    assert found.index.tolist() == [7] and found["Cells_A"].tolist() == [0.1]
    rois = {roi.name: roi for roi in container.get_roi_table("FOV_ROI_table").rois()}
    assert list(rois) == ["FOV_4", "FOV_9"]
    np.testing.assert_array_equal(container.get_image().get_roi_as_numpy(rois["FOV_9"]), image[:, 2:40, 35:70])
    table = container.get_roi_table("FOV_ROI_table").dataframe
    assert table.loc["FOV_9", ["y_micrometer_original", "x_micrometer_original"]].tolist() == [101.0, -2.5]
    conditions = ngio.open_ome_zarr_plate(str(tmp_path / "P.zarr"), mode="r").get_condition_table("condition_table")
    assert conditions.dataframe["well"].tolist() == ["A01", "B03"]
    assert conditions.dataframe["row_of_map"].tolist() == ["", "mine"]
    assert check_group(tmp_path / "P.zarr", deep=True) == []


def test_a_well_with_images_that_the_map_lacks_has_a_row_without_treatment():
    rows = fractal.condition_rows([{"well": "A02", "treatment": "x", "dose": 1.0}], {"A01": [1], "A02": [1]})
    assert rows["well"].tolist() == ["A01", "A02"] and rows["treatment"].tolist() == ["", "x"]
    assert np.isnan(rows["dose"][0])


def test_a_field_without_cells_has_empty_tables_with_every_column(again, tmp_path):
    import ngio

    path = again / "results/plates/P1/features/A01.parquet"
    table = read_table(path)
    write_table(path, table[table["Metadata_Field"] != 2], read_record(path))
    run(again, tmp_path / "out", "--plate", "P1")
    image = store.field_path(tmp_path / "out/plates/P1.zarr", "A01", 2)
    found = ngio.open_ome_zarr_container(str(image), mode="r").get_feature_table("Nuclei_feature_table").dataframe
    assert len(found) == 0 and len(found.columns) == sum(name.startswith("Nuclei_") for name in table)


def test_where_ngio_is_missing_tables_are_refused_by_name_and_the_rest_works(finished, tmp_path, monkeypatch):
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ngio" else known(name, *more))
    with pytest.raises(ConfigError, match="pip install ngio"):
        run(finished, tmp_path / "out")
    run(finished, tmp_path / "out", "--no-tables", "--plate", "P2")
    assert not list((tmp_path / "out").rglob("tables"))


# The crate


def test_every_part_exists_and_every_reference_is_described(exported):
    entities = entities_of(exported)
    assert len(entities) == len(crate_of(exported)["@graph"])
    parts_of_all = [part for entity in entities.values() for part in references(entity.get("hasPart", []))]
    assert len(parts_of_all) == len(set(parts_of_all))
    for part in parts_of_all:
        path = exported / unquote(part)
        assert path.is_dir() if part.endswith("/") else path.is_file(), part
        assert entities[part]["@type"] == ("Dataset" if part.endswith("/") else "File")
    mentioned = {reference for entity in entities.values() for reference in references(entity)}
    assert mentioned <= set(entities)
    assert set(entities) - mentioned == {"ro-crate-metadata.json"}


def test_every_file_is_described_by_itself_or_by_its_folder(exported):
    entities = entities_of(exported)
    described = {unquote(name) for name in entities}
    whole = {name for name in described if name.endswith("/") and "hasPart" not in entities[name] and name != "./"}
    for name in files_below(exported):
        assert name in described or any(name.startswith(folder) for folder in whole), name


def test_sizes_and_digests_are_those_of_the_files(exported):
    checked = 0
    for name, entity in entities_of(exported).items():
        path = exported / unquote(name)
        if entity["@type"] == "File":
            data = path.read_bytes()
            assert (entity["contentSize"], entity["sha256"]) == (str(len(data)), hashlib.sha256(data).hexdigest())
            checked += 1
        elif "contentSize" in entity:
            assert int(entity["contentSize"]) == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            checked += 1
    assert checked > 40


def test_the_root_says_what_it_is(exported):
    entities = entities_of(exported)
    assert crate_of(exported)["@context"][0] == "https://w3id.org/ro/crate/1.1/context"
    assert entities["ro-crate-metadata.json"] == {
        "@id": "ro-crate-metadata.json",
        "@type": "CreativeWork",
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        "about": {"@id": "./"},
    }
    root = entities["./"]
    assert root["name"] == "screen" and "P1, P2" in root["description"]
    assert datetime.date.fromisoformat(root["datePublished"])
    assert root["license"] == {"@id": "https://creativecommons.org/licenses/by/4.0/"}


def test_a_license_is_a_matter_of_the_user(finished, tmp_path):
    run(finished, tmp_path / "out", "--no-tables", "--plate", "P1")
    assert "No license" in entities_of(tmp_path / "out")["./"]["license"]
    with pytest.raises(ConfigError, match="expected a URL"):
        run(finished, tmp_path / "other", "--license", "CC-BY")


def test_a_plate_is_described_with_its_format_and_sizes(exported):
    entities = entities_of(exported)
    plate = entities["plates/P1.zarr/"]
    assert plate["encodingFormat"][1] == {"@id": "https://ngff.openmicroscopy.org/0.5/"}
    facts = {entities[one["@id"]]["name"]: entities[one["@id"]] for one in plate["additionalProperty"]}
    assert (facts["wells"]["value"], facts["fields"]["value"]) == (6, 11)
    assert facts["channels"]["value"] == "DNA, ER, GFP"
    assert (facts["pixel size"]["value"], facts["pixel size"]["unitText"]) == (0.65, "micrometer")
    assert facts["shape of the first image"]["value"] == "3, 160, 160"
    assert facts["label images"]["value"] == "Cells, Cytoplasm, Nuclei"


def test_every_table_links_to_a_schema_that_describes_each_of_its_columns(exported):
    entities = entities_of(exported)
    tables = {
        name: one for name, one in entities.items() if one.get("encodingFormat") == "application/vnd.apache.parquet"
    }
    assert len(tables) == 2 * 8 + 8
    for name, table in tables.items():
        path = exported / unquote(name)
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        fields = json.loads((exported / table["conformsTo"]["@id"]).read_text())["fields"]
        for file in files:
            assert [field["name"] for field in fields] == pq.read_schema(file).names
        assert [field for field in fields if not field["description"] or field["type"] == "any"] == []
        rows = entities[table["additionalProperty"]["@id"]]["value"]
        assert rows == sum(pq.read_metadata(file).num_rows for file in files)


def test_every_stage_is_an_action_with_its_software_code_parameters_inputs_and_results(exported, finished):
    entities = entities_of(exported)
    actions = {name: one for name, one in entities.items() if one["@type"] == "CreateAction"}
    assert {one["@id"] for one in entities["./"]["mentions"]} == set(actions)
    expected = {f"#{stage}-of-{plate}" for stage in STAGES for plate in ("P1", "P2") if STAGES[stage].scope != "screen"}
    expected |= {f"#{stage}-of-screen" for stage in STAGES if STAGES[stage].scope == "screen"}
    without = {"training", "autoencoder", "latent", "latent_profiling", "classifier", "classes"}
    assert set(actions) - {"#export"} == {name for name in expected if name[1:].split("-of-")[0] not in without}
    record = read_json(finished / record_path("P1", "features"))
    action = actions["#features-of-P1"]
    software = entities[action["instrument"]["@id"]]
    assert (software["@type"], software["softwareVersion"]) == ("SoftwareApplication", record["versions"]["plateloom"])
    packages = {entities[one["@id"]]["name"]: entities[one["@id"]] for one in software["softwareRequirements"]}
    versions = {name: found["softwareVersion"] for name, found in packages.items()}
    assert versions == {name: version for name, version in record["versions"].items() if name != "plateloom"}
    used = {one["@id"] for one in action["object"]}
    assert {"plates/P1.zarr/", "plates/P1/illumination.zarr/", "config.yaml"} <= used
    assert as_list(action["result"]) == [{"@id": "plates/P1/features/"}]
    values = {entities[name]["name"]: entities[name].get("value") for name in used}
    assert values["digest of the code of features"] == record["code"]
    assert values["neighbor_distance"] == 5 and json.loads(values["channels"]) == ["DNA", "ER", "GFP"]
    started = datetime.datetime.fromisoformat(action["startTime"])
    assert started.tzinfo and started <= datetime.datetime.fromisoformat(action["endTime"])


def test_the_digests_of_the_source_listings_are_there(exported, finished):
    entities = entities_of(exported)
    assert {"@id": "#source-of-P2"} in entities["#conversion-of-P2"]["object"]
    source = entities["#source-of-P2"]
    listing = read_json(finished / record_path("P2", "conversion"))["facts"]["listing"]
    assert entities[as_list(source["identifier"])[0]["@id"]]["value"] == listing
    assert source["name"] == "P2"


def test_the_package_rocrate_reads_the_crate(exported):
    rocrate = pytest.importorskip("rocrate.rocrate")
    crate = rocrate.ROCrate(exported)
    assert crate.name == "screen"
    assert crate.dereference("plates/P1.zarr/")["name"] == "P1.zarr"
    assert {part.id for part in crate.root_dataset["hasPart"]} >= {"plates/P1.zarr/", "plates/P1/", "screen/"}
    assert len(crate.root_dataset["mentions"]) == len(entities_of(exported)["./"]["mentions"])


def test_parts_that_ran_with_other_versions_are_one_action_with_two_instruments(tmp_path):
    record = {
        "status": "done",
        "reason": "",
        "started": "2024-01-01T10:00:00",
        "seconds": 60.0,
        "code": "c",
        "facts": {},
    }
    record |= {"artefacts": {"A01": "f"}, "failures": []}
    records = [record | {"versions": {"plateloom": "1"}}, record | {"versions": {"plateloom": "2"}, "seconds": 90.0}]
    one = Run("features", "P", records, {"a": 1})
    crate = Crate(tmp_path, name="n", description="d", license="", now=datetime.datetime.now())
    crate.add_run(one, made_from=[], made=[])
    action = crate.entities["#features-of-P"]
    assert [crate.entities[found["@id"]]["softwareVersion"] for found in action["instrument"]] == ["1", "2"]
    assert action["endTime"].startswith("2024-01-01T10:01:30")


def test_columns_are_told_from_their_names():
    assert describe_column("Cells_Correlation_Overlap_DNA_My Dye", ["DNA", "My Dye"]).count("My Dye") == 2
    assert describe_column("Probability_normal") == "Probability of the class normal."
    assert describe_column("Metadata_Replicate").startswith("Column Replicate of the plate map")
    assert {*SCORES[2:], "space", "correction", "kind", *NUMBERS, "change", "reason"} <= set(COLUMNS)
    assert all("wells of different treatments" in describe_column(name) for name in ("p", "expected"))


# What is not handed on


def test_no_path_machine_or_user_is_named_anywhere(exported, finished):
    places = [str(finished), str(finished.parent), str(Path.home()), str(Path(__file__).parents[1])]
    places += [str(finished.with_name("inbox of the microscope"))]
    for name, text in texts_of(exported):
        assert not [place for place in places if re.search(rf"{re.escape(place)}(?![\w-])", text)], name
    records = [read_json(path) for name, path in files_below(exported).items() if "/records/" in name]
    assert records and not [key for record in records for key in record if key in ("host", "log")]
    graph = crate_of(exported)["@graph"]
    host = socket.gethostname()
    for entity in graph:
        for text in [text for value in entity.values() for text in as_list(value) if isinstance(text, str)]:
            assert not text.startswith("/") and host != text and f"tcp://{host}" not in text and "tcp://" not in text
            assert not re.search(r"(?<![\w:/.(\])-])/[\w.]+/", text), text


def test_paths_in_reasons_are_shortened_in_tables_records_and_crate(again, tmp_path):
    inbox = str((again.parent.parent / "inbox").resolve())
    reason = f"[Errno 2] No such file or directory: '{inbox}/deep er/A01_s1_w1.tif'"
    path = again / "results/plates/P1/fields/A01.parquet"
    write_table(path, read_table(path).assign(Reason=reason), read_record(path) | {"failures": [{"reason": reason}]})
    record = again / record_path("P1", "report")
    write_json(record, read_json(record) | {"status": "failed", "reason": reason})
    rows = (again / "plates.tsv").read_text().splitlines()
    source = rows[1].split("\t")[1]
    (again / "plates.tsv").write_text("\n".join([rows[0], rows[1].replace(source, f"{inbox}/deep er"), rows[2]]) + "\n")
    run(again, tmp_path / "out", "--no-tables")
    found = pd.read_parquet(tmp_path / "out/plates/P1/fields/A01.parquet")
    assert set(found["Reason"]) == {"[Errno 2] No such file or directory: 'deep er/A01_s1_w1.tif'"}
    assert not [name for name, text in texts_of(tmp_path / "out") if inbox in text]
    action = entities_of(tmp_path / "out")["#report-of-P1"]
    assert action["actionStatus"] == "http://schema.org/FailedActionStatus" and "deep er/A01" in action["error"]


def test_corrected_labels_and_labels_of_cells_go_along_without_names(again, tmp_path):
    corrected = {name: np.ones((160, 160), np.uint32) for name in ("Nuclei", "Cells")}
    corrections.write_correction(again / "corrections/P1/A01/1.tif", corrected)
    settings = yaml.safe_load((again / "config.yaml").read_text())
    (again / "config.yaml").write_text(yaml.safe_dump(settings | {"classification": {"labels": "mine.tsv"}}))
    labels = ["P1 A01 round Ada", "P2 A02 flat Grace", "P2 A03 flat Ada"]
    (again / "mine.tsv").write_text("\n".join(["plate well class who", *labels]).replace(" ", "\t"))
    run(again, tmp_path / "out", "--no-tables", "--incomplete")
    assert list(corrections.list_corrections(tmp_path / "out/plates/P1", ".")) == ["A01"]
    labels, problems = read_sheet(tmp_path / "out/labels.tsv", {"plate", "well", "class", "who"}, None)
    assert [row["who"] for _, row in labels] == ["person 1", "person 2", "person 1"] and not problems


def test_paths_are_told_from_other_slashes(tmp_path):
    hide = Redaction(tmp_path, ["/mnt/scope/run 1", "raw/P1"])
    assert hide.sentence("1/2 of the wells, and/or km/h") == "1/2 of the wells, and/or km/h"
    assert hide.sentence(r"no C:\Users\ada\P1\a.tif, no \\nas\share\b.tif") == "no a.tif, no b.tif"
    assert hide.sentence(f"{tmp_path}/results/x.json: bad") == "results/x.json: bad"
    assert hide.sentence("see https://example.org/a/b") == "see https://example.org/a/b"
    assert (
        hide.text("src='data:image/png;base64,AAA/mnt/scope/run 1'")
        == "src='data:image/png;base64,AAA/mnt/scope/run 1'"
    )
    assert hide.text(f"{tmp_path}/raw/P1/a.tif") == "P1/a.tif"
    pattern = r"(?P<plate>\w+)/(?P<well>[A-Z]\d+)/x"
    assert hide.setting({"pattern": pattern, "file": "/mnt/other/labels.tsv"}) == {
        "pattern": pattern,
        "file": "labels.tsv",
    }


@pytest.mark.parametrize(
    ("cell", "safe"),
    [
        ("=1+1", "'=1+1"),
        ("+A1", "'+A1"),
        ("-DMSO", "'-DMSO"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("-1.5e-3", "-1.5e-3"),
        ("+7", "+7"),
        ("DMSO", "DMSO"),
        ("", ""),
    ],
)
def test_a_cell_that_a_spreadsheet_would_run_is_made_text(cell, safe):
    assert without_formula(cell) == safe


def test_no_formula_stands_in_any_list_that_is_written(again, tmp_path):
    rows = list(csv.DictReader((again / "maps/P1.tsv").read_text().splitlines(), delimiter="\t"))
    rows[0]["treatment"], rows[1]["replicate"] = "=HYPERLINK(1)", "@x"
    write_sheet(tmp_path / "plain.tsv", ["a", "=b"], [{"a": float("nan"), "=b": -1.0}, {"a": None}])
    assert (tmp_path / "plain.tsv").read_text() == "a\t'=b\n\t-1.0\n\t\n"
    with open(again / "maps/P1.tsv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    run(again, tmp_path / "out", "--incomplete", "--no-tables", "--plate", "P1")
    for name, path in files_below(tmp_path / "out").items():
        if path.suffix == ".tsv":
            cells = [cell for row in csv.reader(path.read_text().splitlines(), delimiter="\t") for cell in row]
            assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))], name
    exact = store.read_group(tmp_path / "out/plates/P1.zarr/plateloom")["plate_map"]
    assert exact[0]["treatment"] == "=HYPERLINK(1)"


# Wrong input


def test_a_finished_screen_lacks_nothing(finished):
    screen = Screen(yaml.safe_load((finished / "config.yaml").read_text()), finished)
    assert find_unfinished(screen, ["P1", "P2"]) == []


def test_an_unfinished_screen_is_refused_with_what_is_missing(again, tmp_path):
    (again / record_path("P2", "report")).unlink()
    (again / record_path("P2", "maps")).unlink()
    (again / "results/screen/records/screen_report.json").unlink()
    with pytest.raises(ConfigError) as error:
        run(again, tmp_path / "out")
    assert "P2: maps, report missing" in str(error.value) and "the screen: screen_report missing" in str(error.value)
    assert "P1" not in str(error.value) and "--incomplete" in str(error.value)
    assert f"`plateloom run {again}` finishes it" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_plate_alone_needs_no_page_of_the_screen(again, tmp_path):
    (again / record_path("P2", "report")).unlink()
    (again / "results/screen/records/screen_report.json").unlink()
    assert run(again, tmp_path / "out", "--plate", "P1", "--no-tables").exit_code == 0
    (again / "results/screen/records/map.json").unlink()
    with pytest.raises(ConfigError, match="the screen: map missing"):
        run(again, tmp_path / "other", "--plate", "P1", "--no-tables")


def test_settings_that_changed_after_the_run_are_noticed(again, tmp_path):
    settings = yaml.safe_load((again / "config.yaml").read_text())
    settings["segmentation"]["parameters"]["nucleus_diameter_um"] = 9
    (again / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match="P1: segmentation, report made with other settings"):
        run(again, tmp_path / "out")
    run(again, tmp_path / "out", "--incomplete", "--no-tables", "--plate", "P1")
    action = entities_of(tmp_path / "out")["#segmentation-of-P1"]
    assert "not known" in action["description"] and "#segmentation-method" not in json.dumps(action)


def test_what_is_there_of_an_unfinished_screen_can_be_exported(again, tmp_path):
    shutil.rmtree(again / "results/plates/P2/features")
    shutil.rmtree(again / "results/plates/P2/records/features")
    store.remove_well(again / plate_store("P2"), "A02")
    found = run(again, tmp_path / "out", "--incomplete", "--plate", "P2")
    assert "P2: features missing" in found.output and "left out: A02" in found.output
    copy = tmp_path / "out/plates/P2.zarr"
    assert "A02" not in store.list_fields(copy) and len(store.list_fields(copy)) == 5
    assert check_group(copy) == []
    assert (
        not (copy / "A/01/1/tables/Nuclei_feature_table").exists() and (copy / "A/01/1/tables/FOV_ROI_table").exists()
    )
    assert "#features-of-P2" not in entities_of(tmp_path / "out")


def test_a_plate_whose_data_are_at_fault_is_finished_and_has_no_images(again, tmp_path):
    fault = "12 of 12 fields failed"
    for stage, status in (("assembly", "failed"), ("features", "skipped")):
        path = again / record_path("P1", stage)
        write_json(path, read_json(path) | {"status": status, "reason": fault, "artefacts": {}})
    (again / plate_store("P1") / "zarr.json").unlink()
    found = run(again, tmp_path / "out", "--no-tables", "--plate", "P1")
    assert f"P1: no images, since the plate was not assembled: {fault}" in found.output
    entities = entities_of(tmp_path / "out")
    assert "plates/P1.zarr/" not in entities and not (tmp_path / "out/plates/P1.zarr").exists()
    assert entities["#assembly-of-P1"]["error"] == fault and "#features-of-P1" not in entities


def test_a_running_screen_is_left_alone(again, tmp_path):
    with locks.hold(again / ".plateloom.lock", wait=False), pytest.raises(LockedError):
        run(again, tmp_path / "out")
    job = (again / record_path("P1", "features")).with_name(".part-0.lock")
    with locks.hold(job, wait=False), pytest.raises(LockedError, match="features of P1 is at work"):
        run(again, tmp_path / "out", "--incomplete")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_or_in_the_screen_is_refused(finished, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        run(finished, tmp_path / "there")
    with pytest.raises(ConfigError, match="own folder"):
        run(finished, finished / "results/out")
    os.symlink(finished, tmp_path / "alias")
    with pytest.raises(ConfigError, match="own folder"):
        run(finished, tmp_path / "alias/out")
    with pytest.raises(ConfigError, match="no folder"):
        run(finished, tmp_path / "absent/out")


def test_an_unknown_plate_is_refused_with_the_nearest(finished, tmp_path):
    with pytest.raises(ConfigError, match=r"no plate 'P22'\. Did you mean 'P2'\? Plates: P1, P2"):
        run(finished, tmp_path / "out", "--plate", "P22")


def test_a_full_disk_says_what_was_needed_and_leaves_nothing_behind(finished, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    found = run(finished, tmp_path / "out", "--copy", "--no-tables")
    assert found.exit_code == 1 and re.search(r"No space left on device: about \d+ MB were needed", found.output)
    assert list(tmp_path.iterdir()) == []


def test_copies_are_not_begun_where_they_have_no_room(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    found = run(finished, tmp_path / "out", "--copy")
    assert found.exit_code == 1 and "MB are needed, 0 MB are free" in found.output
    assert list(tmp_path.iterdir()) == []


def test_the_library_says_what_it_does(finished, tmp_path):
    said = []
    taken = export_screen(finished, tmp_path / "out", plates=["P2"], tables=False, say=said.append)
    assert any(line.startswith("P2: 6 wells, 12 fields, 0 tables") for line in said)
    assert taken.size > 1e5
