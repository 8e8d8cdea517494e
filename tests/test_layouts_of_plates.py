"""Everything downstream works with stitched wells as with single fields, and with NGFF 0.4 as with 0.5."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from conftest import simulate
from in_process import run_stages
from layouts import harmony
from scipy.ndimage import gaussian_filter
from test_run import plateloom
from test_workflow import bytes_of

from plateloom import repair
from plateloom.config import read_config
from plateloom.planning import Screen
from plateloom.stages.latent import crop_well
from plateloom.store import plate as store
from plateloom.store.provenance import read_json
from plateloom.store.tables import read_table

SIZE, OVERLAP = 256, 32
STEP_UM = (SIZE - OVERLAP) * 0.65
POSITIONS = {1: (0.0, 0.0), 2: (0.0, STEP_UM), 3: (STEP_UM, 0.0), 4: (STEP_UM, STEP_UM)}

TO_SEGMENTATION = ("conversion", "assembly", "illumination", "quality", "flagging", "segmentation")
TO_PROFILES = (*TO_SEGMENTATION, "features", "profiling")


def lay_out(folder):
    """A screen whose wells are large scenes, photographed as four overlapping fields; read through a vendor's metadata."""
    simulate(folder, rows=2, columns=3, size_px=2 * SIZE - OVERLAP, cells_per_field=30.0)
    planes = {}
    for path in sorted((folder / "raw/P1").glob("*.tif")):
        well, _, channel = path.stem.split("_")
        scene = tifffile.imread(path)
        for field, (y, x) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)], start=1):
            top, left = y * (SIZE - OVERLAP), x * (SIZE - OVERLAP)
            planes[well, field, int(channel[1:]), 1, 1] = scene[top : top + SIZE, left : left + SIZE]
    for channel in (1, 2, 3):
        plane = planes["B03", 2, channel, 1, 1]
        planes["B03", 2, channel, 1, 1] = gaussian_filter(plane.astype(float), 6).astype(plane.dtype)
    shutil.rmtree(folder / "raw/P1")
    (folder / "raw/P1").mkdir()
    harmony.write(folder / "raw/P1", planes, pixel_size_um=0.65, positions=POSITIONS, channels=("DNA", "ER", "GFP"))
    sheet = folder / "plates.tsv"
    sheet.write_text(sheet.read_text().replace("pattern", "harmony"))

    def change(settings):
        settings["conversion"] = {"layout": "stitched"}
        settings.pop("readers", None)
        for name, channel in settings["channels"].items():
            channel["source"] = name
        settings["engine"]["tile_px"] = 192
        settings["classification"] = {"labels": "controls"}

    edit(folder, change)
    return planes


def edit(folder, change):
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    change(settings)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


@pytest.fixture(scope="module")
def stitched(once):
    """A screen of stitched wells, run whole, and its planes."""

    def make(folder):
        planes = lay_out(folder / "screen")
        run_stages(folder / "screen")
        (folder / "planes.pickle").write_bytes(pickle.dumps(planes))

    folder = once("stitched", make)
    return folder / "screen", pickle.loads((folder / "planes.pickle").read_bytes())


@pytest.mark.slow
def test_a_stitched_screen_runs_whole(stitched):
    folder, _ = stitched
    for path in folder.glob("results/**/records/**/*.json"):
        record = read_json(path)
        assert record["status"] == "done" or record["stage"] in ("classifier", "classes"), (path, record["reason"])
    cells = pd.concat([read_table(path) for path in sorted(folder.glob("results/plates/P1/features/*.parquet"))])
    assert set(cells["Metadata_Field"]) == {1} and len(cells) > 6 * 15
    assert cells["Location_Center_X" if "Location_Center_X" in cells else "Nuclei_Location_Center_X"].max() > SIZE
    assert (folder / "results/plates/P1/report.html").stat().st_size > 50_000
    assert repair.find_damage(folder, "P1", deep=True) == []


@pytest.mark.slow
def test_every_field_of_a_stitched_well_is_judged_by_itself(stitched):
    folder, _ = stitched
    found = read_table(folder / "results/plates/P1/qc.parquet")
    assert set(found["Metadata_Field"]) == {1} and len(found) == 6 * 4 * 3
    assert set(found["SourceField"]) == {1, 2, 3, 4}


@pytest.mark.slow
def test_the_picture_of_a_flagged_field_of_a_stitched_well_is_that_fields(stitched, monkeypatch):
    from plateloom.stages import report_montage

    folder, _ = stitched
    monkeypatch.chdir(folder)
    wells = read_table(Path("results/plates/P1/profiles.parquet"))
    quality = read_table(Path("results/plates/P1/qc.parquet"))
    flagged = quality[quality["Reason"].str.startswith("blurred")]
    settings = Screen(read_config(folder).model_dump(mode="json"), folder).settings("report", "P1")
    settings["report"] = settings["report"] | {"montage_wells": 12}
    none = pd.DataFrame(columns=["Metadata_Well", "Metadata_Field", "what", "reason"])
    counted = wells.assign(Metadata_CellCount=1.0)
    tiles, _ = report_montage.describe_montage("P1", counted, settings, none, flagged, "µm")
    (tile,) = [tile for tile in tiles if "blurred" in tile.why + tile.caption]
    assert tile.well == "B03" and "field 2" in tile.caption
    (tile,) = report_montage.picture_flagged("P1", counted, settings, flagged, quality, "µm")
    assert tile.well == "B03" and tile.caption.startswith("field 2") and tile.width_um <= SIZE * 0.65


@pytest.mark.slow
def test_cells_on_a_flagged_field_of_a_stitched_well_are_left_out_and_the_others_stay(stitched):
    base = stitched[0] / "results/plates/P1"
    quality = read_table(base / "qc.parquet")
    flagged = quality.loc[quality["Reason"].str.startswith("blurred"), ["Metadata_Well", "SourceField"]]
    assert flagged.drop_duplicates().to_numpy().tolist() == [["B03", 2]]
    cells = read_table(base / "features/B03.parquet")
    right, below = (cells[f"Nuclei_Location_Center_{axis}"] > SIZE - OVERLAP // 2 for axis in "XY")
    expected = np.select([~right & ~below, right & ~below, ~right], [1, 2, 3], 4)
    assert (cells["Metadata_SourceField"] == expected).mean() > 0.95, "a center near a seam may be rounded across it"
    wells = read_table(base / "aggregates.parquet").set_index("Metadata_Well")
    counts = cells["Metadata_SourceField"].value_counts()
    assert 0 < counts[2] < len(cells) / 2 and wells.loc["B03", "Metadata_CellCount"] == len(cells) - counts[2]
    others = read_table(base / "features/B02.parquet")
    assert wells.loc["B02", "Metadata_CellCount"] == len(others)


@pytest.mark.slow
def test_models_do_not_learn_from_cells_on_a_flagged_field_of_a_stitched_well(stitched, tmp_path, monkeypatch):
    folder, _ = stitched
    monkeypatch.chdir(folder)
    made = read_json("results/plates/P1/records/segmentation/part-0.json")["artefacts"]["B03"]
    light = read_json("results/plates/P1/records/illumination/part-0.json")["artefacts"]["illumination"]
    cells = read_table("results/plates/P1/features/B03.parquet")
    number = {}
    for excluded in ([], [2], [1, 2, 3, 4]):
        (tmp_path / str(excluded)).mkdir()
        number[str(excluded)] = crop_well("P1", "B03", made, excluded, light, 1000, 32.0, 32, tmp_path / str(excluded))
    assert list(number.values()) == [len(cells), (cells["Metadata_SourceField"] != 2).sum(), 0]


@pytest.mark.slow
def test_overlapping_fields_of_one_scene_are_put_together_to_the_pixel(stitched):
    folder, planes = stitched
    path = store.field_path(folder / "results/plates/P1/plate.zarr", "A02", 1)
    image = store.read_image(path)
    assert image.shape == (3, 2 * SIZE - OVERLAP, 2 * SIZE - OVERLAP)
    corner = planes["A02", 4, 2, 1, 1]
    np.testing.assert_array_equal(image[1, SIZE:, SIZE:], corner[OVERLAP:, OVERLAP:])
    np.testing.assert_array_equal(
        image[1, : SIZE - OVERLAP, : SIZE - OVERLAP], planes["A02", 1, 2, 1, 1][:-OVERLAP, :-OVERLAP]
    )


@pytest.mark.slow
def test_a_cell_on_a_seam_is_one_cell(stitched, tmp_path):
    folder, _ = stitched
    nuclei = store.read_labels(store.field_path(folder / "results/plates/P1/plate.zarr", "A02", 1), "Nuclei")
    seam = SIZE - OVERLAP // 2
    above, below = nuclei[seam - 1], nuclei[seam]
    crossing = (above > 0) & (below > 0)
    assert not crossing.any() or (above[crossing] == below[crossing]).mean() > 0.9


@pytest.mark.slow
def test_a_plate_of_ngff_04_gives_the_same_tables_as_one_of_05(tmp_path):
    tables = {}
    for version in ("0.5", "0.4"):
        folder = simulate(tmp_path / version, rows=2, columns=3)
        edit(folder, lambda settings, version=version: settings["conversion"].update(ngff=version))
        run_stages(folder, TO_PROFILES + (("autoencoder", "latent") if version == "0.4" else ()))
        base = folder / "results/plates/P1"
        assert (base / "plate.zarr" / (".zattrs" if version == "0.4" else "zarr.json")).exists()
        assert repair.find_damage(folder, "P1", deep=True) == []
        tables[version] = {
            str(path.relative_to(base)): read_table(path)
            for kind in ("features", "quality")
            for path in sorted((base / kind).glob("*.parquet"))
        } | {"profiles": read_table(base / "profiles.parquet")}
    assert len(tables["0.5"]) == 13 and tables["0.5"].keys() == tables["0.4"].keys()
    for name, table in tables["0.5"].items():
        pd.testing.assert_frame_equal(table, tables["0.4"][name], check_exact=True)
    assert len(list(base.glob("latent/*.parquet"))) == 6


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["fields", "stitched"])
def test_a_damaged_plate_of_ngff_04_is_repaired_to_the_last_byte(tmp_path, layout):
    folder = tmp_path / "screen"
    if layout == "stitched":
        lay_out(folder)
    else:
        simulate(folder, rows=2, columns=2)
    edit(folder, lambda settings: settings["conversion"].update(ngff="0.4"))
    run_stages(folder, TO_SEGMENTATION)
    base = folder / "results/plates/P1/plate.zarr"
    expected = bytes_of(base, "**/*")
    wells = sorted(str(path.parent.relative_to(base)) for path in base.glob("?/*/.zattrs"))
    for well, below in ((wells[0], "1/0"), (wells[1], "1/labels/Nuclei/0")):
        chunks = [path for path in sorted((base / well / below).rglob("*")) if path.is_file() and path.name[0] != "."]
        chunk = max(chunks, key=lambda path: path.stat().st_size)
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 4
        chunk.write_bytes(data)
    names = [well.replace("/", "") for well in wells[:2]]
    found = repair.find_damage(folder, "P1", deep=True)
    assert {(damage.well, damage.stage) for damage in found} == {(names[0], "conversion"), (names[1], "segmentation")}
    code, text = plateloom("verify", folder, "--deep", "--repair", "--cores", "2")
    assert code == 0, text
    assert bytes_of(base, "**/*") == expected
    records = {
        stage: read_json(base.parent / f"records/{stage}/part-0.json") for stage in ("conversion", "segmentation")
    }
    assert {stage: record["computed"] for stage, record in records.items()} == {
        "conversion": names[:1],
        "segmentation": names,
    }
    assert repair.find_damage(folder, "P1", deep=True) == []
