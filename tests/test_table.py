"""`plateloom table`: what stands in the parquet files, and nothing of a damaged one."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import call

from plateloom.cli.table import command
from plateloom.errors import ConfigError, CorruptStoreError
from plateloom.store.tables import write_table

CELLS = 3


def table(*arguments):
    return call(command, *arguments)


def write(path, frame):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, frame, {"fingerprint": "0"})


@pytest.fixture
def screen(tmp_path):
    """Two plates of two wells with cells, and hits."""
    results = tmp_path / "screen" / "results"
    for plate in ("P1", "P2"):
        for well in ("A01", "A02"):
            cells = pd.DataFrame(
                {"Metadata_Plate": plate, "Metadata_Well": well, "Metadata_Field": 1}, index=range(CELLS)
            )
            cells["Nuclei_AreaShape_Area"] = np.float32([0.1, np.nan, 3])
            cells["Cells_AreaShape_Area"] = [1 / 3, 2.0, 1e300]
            write(results / "plates" / plate / "features" / f"{well}.parquet", cells)
        wells = pd.DataFrame(
            {"Metadata_Plate": plate, "Metadata_Well": ["A01", "A02"], "Nuclei_AreaShape_Area": [1.5, 2.5]}
        )
        write(results / "plates" / plate / "aggregates.parquet", wells)
        write(results / "plates" / plate / "profiles.parquet", wells)
    write(results / "screen" / "profiles.parquet", wells)
    hits = pd.DataFrame({"Metadata_Treatment": ['a, "b"', "µ-drug"], "robust_z": [np.nan, -4.25], "hit": [False, True]})
    write(results / "screen" / "hits.parquet", hits)
    return tmp_path / "screen"


def test_the_tables_are_listed(screen):
    text = table(screen)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines == [
        "hits 3 columns of the screen",
        "profiles 3 columns of the screen",
        "aggregates 3 columns of 2 plates in 2 files",
        "features 5 columns of 2 plates in 4 files",
    ]
    (screen / "empty").mkdir()
    assert table(screen / "empty").startswith("no table yet: plateloom run ")


@pytest.mark.parametrize(("name", "separator"), [("hits.csv", ","), ("hits.TSV", "\t")])
def test_a_file_reads_as_the_table_does(screen, tmp_path, name, separator):
    text = table(screen, "hits", "--out", tmp_path / name, "--excel")
    assert "2 rows" in text
    assert (tmp_path / name).read_bytes().startswith(b"\xef\xbb\xbf"), "Excel takes it for another encoding"
    found = pd.read_csv(tmp_path / name, sep=separator)
    pd.testing.assert_frame_equal(found, pd.read_parquet(screen / "results/screen/hits.parquet"))


def test_a_formula_is_neutral(screen):
    path = screen / "results/screen/hits.parquet"
    write(path, pd.read_parquet(path).assign(Metadata_Treatment=["=1+1", None], Metadata_Dose=["-2.5", "-DMSO"]))
    text = table(screen, "hits", "--columns", "Metadata_*")
    assert text.splitlines() == ['"Metadata_Treatment","Metadata_Dose"', '"\'=1+1","-2.5"', ',"\'-DMSO"']


def test_cells_of_chosen_plates_wells_and_columns(screen, tmp_path):
    text = table(screen, "features")
    assert len(text.splitlines()) == 1 + 4 * CELLS and "nan" not in text
    chosen = ("--plate", "P2", "--wells", "a2", "--columns", "*_Area,Metadata_Plate")
    text = table(screen, "features", *chosen, "--out", tmp_path / "cells.csv")
    found = pd.read_csv(
        tmp_path / "cells.csv", dtype={"Nuclei_AreaShape_Area": np.float32}, float_precision="round_trip"
    )
    expected = pd.read_parquet(screen / "results/plates/P2/features/A02.parquet")
    pd.testing.assert_frame_equal(found, expected[list(found)])
    assert list(found) == ["Metadata_Plate", "Nuclei_AreaShape_Area", "Cells_AreaShape_Area"]


def test_wells_of_a_table_of_plates(screen):
    text = table(screen, "aggregates", "--wells", "A01", "--columns", "Nuclei*")
    assert text.splitlines()[1:] == ["1.5", "1.5"]
    text = table(screen, "profiles", "--plate", "P2", "--wells", "A02")
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hit"], "Did you mean 'hits'?"),
        (["**"], "there are hits, profiles, aggregates, features"),
        (["../x"], "there are hits, profiles, aggregates, features"),
        (["hits", "--plate", "P1"], "--plate: hits has no Metadata_Plate"),
        (["hits", "--wells", "A01"], "--wells: hits has no Metadata_Well"),
        (["features", "--plate", "P3"], "--plate: no P3; there are P1, P2"),
        (["features", "--wells", "A01,H12"], "no row of H12"),
        (["profiles", "--wells", "H12"], "no row of H12"),
        (["profiles", "--plate", "P9"], "--plate: no row of P9"),
        (["features", "--wells", "1"], "--wells: "),
        (["features", "--columns", "Nuclei_AreaShape_Aera"], "Did you mean 'Nuclei_AreaShape_Area'?"),
        (["hits", "--out", "hits.xlsx"], "ends with .csv or .tsv"),
        (["hits", "--out", "there.csv"], "is there already"),
    ],
)
def test_what_is_not_there_is_refused(screen, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").write_text("mine")
    with pytest.raises(ConfigError) as error:
        table(screen, *arguments)
    assert said in str(error.value)
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_tables_with_other_columns_are_not_mixed(screen):
    path = screen / "results/plates/P2/aggregates.parquet"
    write(path, pd.read_parquet(path).assign(Cells_AreaShape_Area=1.0))
    with pytest.raises(ConfigError, match="other columns"):
        table(screen, "aggregates")
    assert "Cells_AreaShape_Area" in table(screen, "aggregates", "--plate", "P2")


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_nothing_is_written_of_a_damaged_table(screen, tmp_path, damage):
    path = screen / "results/plates/P2/features/A02.parquet"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        footer = int.from_bytes(data[-8:-4], "little")
        data[-8 - footer - 3] ^= 1  # in the last page
    path.write_bytes(data if damage == "flipped" else data[:-20])
    with pytest.raises(CorruptStoreError, match=r"P2/features/A02\.parquet"):
        table(screen, "features", "--out", tmp_path / "cells.csv")
    assert list(tmp_path.iterdir()) == [screen]


def test_a_table_that_a_run_would_make_anew_is_told(profiled):
    options = (".", "aggregates", "--columns", "Metadata_Well")
    assert "not up to date" not in table(*options)
    settings = yaml.safe_load(Path("config.yaml").read_text())
    settings["profiling"] = settings.get("profiling", {}) | {"exclude_flagged": False}
    Path("config.yaml").write_text(yaml.safe_dump(settings))
    told = table(*options)
    assert "aggregates of P1 is not up to date (profiling stale: settings or quarantines have changed)" in told
    assert "Metadata_Well" in told, "what there is is written all the same"
