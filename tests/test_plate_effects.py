"""Effects of the position on a plate: found where they are, in words, and not cried where there are none."""

import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from conftest import simulate
from in_process import run_stages
from pyarrow import parquet

from plateloom.planning import STAGES
from plateloom.plate_effects import QUANTITIES, find_effects
from plateloom.report import PlateReport, render_plate
from plateloom.simulation import ScreenDesign, all_fields, plate_map, render_field
from plateloom.status import read_screen
from plateloom.store.provenance import read_json
from plateloom.wells import well_name


def layout(rows=8, columns=12, kind="controls"):
    """A plate: negative controls in the first and the last column, and a screen, dose series or nothing between."""
    wells = [(row, column) for row in range(rows) for column in range(columns)]
    control = ["negative" if column in (0, columns - 1) and kind != "none" else "" for _, column in wells]
    treatment = [f"compound {i}" for i in range(len(wells))]
    dose = [1.0] * len(wells)
    if kind == "doses":  # a compound per row, its dose along the columns
        treatment, dose = [f"compound {row}" for row, _ in wells], [float(column) for _, column in wells]
    if kind == "none":
        treatment, dose = [""] * len(wells), [np.nan] * len(wells)
    table = pd.DataFrame({"Metadata_Well": [well_name(*well) for well in wells], "Metadata_Control": control})
    blank = table["Metadata_Control"] == "negative"
    table["Metadata_Treatment"] = np.where(blank, "DMSO", treatment)
    table["Metadata_Dose"] = np.where(blank, np.nan, dose)
    row, column = np.array(wells).T
    return table, row, column


def noise(count, seed, names=("cells", "background DNA", "background ER", "focus DNA"), spread=0.15):
    rng = np.random.default_rng(seed)
    return pd.DataFrame({name: 100 * (1 + spread * rng.normal(size=count)).clip(0.01) for name in names})


def test_on_plates_of_nothing_but_noise_no_more_than_one_in_twenty_gives_an_alarm():
    alarms = []
    for kind, columns in (("none", 12), ("controls", 12), ("doses", 12), ("controls", 6)):
        wells, *_ = layout(columns=columns, kind=kind)
        for seed in range(60):
            values = noise(len(wells), (columns, seed), names=["cells", "background DNA"], spread=0.3)
            alarms.append(find_effects(wells, values, permutations=999)["found"].any())
    assert len(alarms) == 240 and 0 < np.mean(alarms) <= 0.05


EFFECTS = {
    "edge": (lambda row, column: np.where((row % 7 == 0) | (column % 11 == 0), 0.77, 1), "edge wells have 2"),
    "rows": (lambda row, column: np.where(row == 2, 1.4, 1), "row C has "),
    "columns": (lambda row, column: np.where(column == 5, 0.6, 1), "column 6 has "),
    "drift": (lambda row, column: 1.2 - 0.4 * (row * 12 + column) / 95, "the last wells, row by row, have "),
}


@pytest.mark.parametrize("kind", ["none", "controls"])
@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_is_found_and_said_in_words(name, kind):
    wells, row, column = layout(kind=kind)
    factor, words = EFFECTS[name]
    for seed in range(3):
        values = noise(len(wells), seed, spread=0.1)
        values["cells"] *= factor(row, column)
        found = find_effects(wells, values)
        found = found[found["found"]]
        assert set(found["metric"]) == {"cells"} and name in set(found["effect"])
        (said,) = found.loc[found["effect"] == name, "text"]
        assert said.startswith(words) and said.split(" % ")[1].split(" than")[0] in QUANTITIES["cells"]


def test_an_effect_on_the_edge_is_told_once_and_not_by_row_and_column_as_well():
    wells, row, column = layout(kind="none")
    values = noise(len(wells), 0, spread=0.05)
    values["background DNA"] *= EFFECTS["edge"][0](row, column)
    found = find_effects(wells, values)
    (one,) = found[found["found"]].to_dict("records")
    assert one["effect"] == "edge" and one["size"] == pytest.approx(-0.23, abs=0.03)
    assert one["text"] == f"edge wells have {-one['size']:.0%} less background in DNA".replace("%", " %")


def test_what_treatments_do_is_no_effect_of_the_plate():
    wells, row, column = layout(kind="doses")
    values = noise(len(wells), 1)
    values["cells"] *= np.where(wells["Metadata_Control"] == "", 1 - 0.08 * column, 1)
    values["focus DNA"] *= np.where(wells["Metadata_Control"] == "", 3, 1)
    assert not find_effects(wells, values)["found"].any()
    blind = find_effects(wells[["Metadata_Well"]], values)
    assert blind["found"].any(), "without the map they cannot be told apart"


def test_replicates_tell_an_effect_though_treatments_differ():
    wells, row, column = layout(kind="none")
    wells["Metadata_Treatment"] = [f"compound {(3 * r + c) % 6}" for r, c in zip(row, column, strict=True)]
    strength = np.array([(3 * r + c) % 6 for r, c in zip(row, column, strict=True)])
    values = noise(len(wells), 2, spread=0.1)
    values["cells"] *= (1 + strength) * EFFECTS["edge"][0](row, column)
    found = find_effects(wells, values)
    edge = found[(found["metric"] == "cells") & (found["effect"] == "edge")].iloc[0]
    assert edge["found"] and edge["size"] == pytest.approx(-0.23, abs=0.06)


def test_a_small_change_is_not_worth_a_word_however_certain():
    wells, row, column = layout(16, 24, kind="none")
    values = noise(len(wells), 3, names=["cells"], spread=0.02)
    values["cells"] *= np.where(row == 0, 0.95, 1)
    found = find_effects(wells, values)
    assert found["q"].min() < 0.01 and not found["found"].any()


def test_wells_drift_in_the_order_of_imaging_where_times_are_known_and_row_by_row_elsewhere():
    wells, row, column = layout(kind="none")
    order = np.random.default_rng(4).permutation(len(wells))
    values = noise(len(wells), 4, names=["background DNA"], spread=0.05)
    values["background DNA"] *= 1 + 0.4 * order / 95
    wells["Seconds"] = 1.7e9 + 30.0 * order
    (one,) = find_effects(wells, values).query("found").to_dict("records")
    assert (one["effect"], one["where"]) == ("drift", "as imaged") and one["size"] == pytest.approx(0.33, abs=0.06)
    assert one["text"].startswith("the last wells, as imaged, have ") and "more background in DNA" in one["text"]
    # A day's pause between two wells is no reason to see less of it.
    paused = find_effects(wells.assign(Seconds=wells["Seconds"] + 86400 * (order > 40)), values)
    pd.testing.assert_frame_equal(paused, find_effects(wells, values))

    unknown = wells.assign(Seconds=wells["Seconds"].where(wells.index != 3))
    one_date = wells.assign(Seconds=1.7e9)
    for blind in (wells.drop(columns="Seconds"), unknown, one_date):
        found = find_effects(blind, values)
        assert set(found.loc[found["effect"] == "drift", "where"]) == {"row by row"} and not found["found"].any()
    # A well that has no value needs no time.
    values.loc[3, "background DNA"] = np.nan
    assert set(find_effects(unknown, values).query("found")["where"]) == {"as imaged"}


def test_lost_wells_empty_wells_and_small_plates_are_no_trouble():
    wells, row, column = layout()
    values = noise(len(wells), 5)
    values.loc[::7, "cells"], values.loc[5:20, "background DNA"], values["focus DNA"] = np.nan, 0.0, np.nan
    wells.loc[30:40, "Metadata_Control"] = "empty"
    found = find_effects(wells, values)
    assert "focus DNA" not in set(found["metric"]) and np.isfinite(found[["size", "p", "q"]]).all(axis=None)
    assert not len(find_effects(wells[:12], values[:12])) and not len(find_effects(wells[:0], values[:0]))
    reordered = np.random.default_rng(6).permutation(len(wells))
    again = find_effects(wells.iloc[reordered], values.iloc[reordered])
    np.testing.assert_allclose(again["size"], found["size"], atol=1e-12)


def test_the_simulated_loss_of_cells_on_the_edge_is_seen_and_none_where_there_is_none():
    said = {}
    for loss in (0.0, 0.5):
        design = ScreenDesign(
            plates=("P1",), rows=8, columns=12, fields=1, size_px=96, cells_per_field=5.0, seed=3, edge_effect=loss
        )
        wells = pd.DataFrame(plate_map(design, "P1")).rename(columns=lambda name: f"Metadata_{name.capitalize()}")
        counts = {well: len(render_field(design, "P1", well, field).table) for _, well, field in all_fields(design)}
        found = find_effects(wells, pd.DataFrame({"cells": wells["Metadata_Well"].map(counts).astype(float)}))
        said[loss] = [text for text, is_found in zip(found["text"], found["found"], strict=True) if is_found]
    assert said[0.0] == [] and said[0.5][0].startswith("edge wells have ") and "fewer cells" in said[0.5][0]


def test_the_page_says_what_was_found_and_shows_all_tests():
    wells, row, column = layout(kind="none")
    values = noise(len(wells), 0, spread=0.05)
    values["background DNA"] *= EFFECTS["edge"][0](row, column)
    for factor, words in ((values, "Edge wells have 2"), (values * 0 + 1, "No effect of edge, rows, columns or order")):
        effects = find_effects(wells, factor, permutations=999)
        page = render_plate(PlateReport(screen="S", plate="P", shape=(8, 12), wells=wells, position=effects))
        assert words in page and page.count("<td>focus DNA</td>") == 4
        assert "from the first well to the last (row by row)" in page


@pytest.mark.slow
def test_status_warns_of_an_effect_on_a_plate_that_is_done(tmp_path, monkeypatch):
    folder = simulate(
        tmp_path / "screen", rows=4, columns=6, size_px=96, cells_per_field=8.0, edge_effect=0.8, treatments=(), seed=2
    )
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings |= {"features": {"families": ["Intensity"]}, "latent": {"autoencoder": {"enabled": False}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(folder)
    run_stages(folder, set(STAGES) - {"profiles", "map", "maps", "screen_report"})
    (said,) = [
        one
        for one in read_json("results/plates/P1/records/report/part-0.json")["facts"]["notices"]
        if one["kind"] == "position"
    ]
    assert "edge wells have " in said["text"] and " fewer cells" in said["text"]
    assert said["text"] in read_screen(folder)["plates"]["P1"]["report"].warnings
    assert said["text"] in (folder / "results/plates/P1/report.html").read_text()


@pytest.mark.slow
def test_drift_follows_the_times_of_the_source_and_the_rows_where_a_plate_has_none(tmp_path, monkeypatch):
    folder = simulate(tmp_path / "screen", rows=4, columns=6, size_px=96, cells_per_field=8.0, treatments=(), seed=2)
    raw, wells = folder / "raw/P1", sorted({path.name[:3] for path in (folder / "raw/P1").glob("*.tif")})
    start = datetime.datetime(2026, 3, 1, 12)
    for well, order in zip(wells, np.random.default_rng(7).permutation(len(wells)), strict=True):
        planes = sorted(raw.glob(f"{well}_*.tif"))
        pixels = np.stack([tifffile.imread(path) for path in planes]) * (1 + 0.6 * order / (len(wells) - 1))
        when = (start + datetime.timedelta(minutes=int(order))).isoformat()
        said = {"axes": "CYX", "AcquisitionDate": when, "Channel": {"Name": [str(i + 1) for i in range(len(planes))]}}
        tifffile.imwrite(raw / f"{well}.ome.tif", pixels.clip(0, 65535).astype(np.uint16), metadata=said)
        for path in planes:
            path.unlink()
    plates = folder / "plates.tsv"
    plates.write_text(plates.read_text().replace("\tpattern\t", "\tome_tiff\t"))
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings |= {"readers": {"ome_tiff": {"pattern": r"(?P<well>[A-P]\d\d)\.ome\.tif"}}}
    settings |= {"features": {"families": ["Intensity"]}, "latent": {"autoencoder": {"enabled": False}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(folder)

    def drifts():
        """What the plate's page says of a drift, and status with it."""
        notices = read_json("results/plates/P1/records/report/part-0.json")["facts"]["notices"]
        said = [one["text"] for one in notices if one["kind"] == "position"]
        assert set(said) <= set(read_screen(folder)["plates"]["P1"]["report"].warnings)
        return " ".join(said), Path("results/plates/P1/report.html").read_text()

    run_stages(folder, set(STAGES) - {"profiles", "map", "maps", "screen_report"})
    said, page = drifts()
    assert "the last wells, as imaged, have " in said and "more background in DNA than the first" in said
    assert "from the first well to the last (as imaged)" in page

    for path in Path("results/plates/P1/fields").glob("*.parquet"):  # as before times were kept
        table = parquet.read_table(path)
        assert table["Seconds"].null_count == 0
        parquet.write_table(table.drop_columns("Seconds"), path)
    run_stages(folder, {"report"})
    said, page = drifts()
    assert "the last wells" not in said and "from the first well to the last (row by row)" in page
