"""`plateloom trace`: from a result to the settings, jobs and files that it was made from."""

import json
import shutil

import pytest
from conftest import call

from plateloom.cli.trace import command
from plateloom.errors import ConfigError, PlateLayoutError
from plateloom.store.tables import read_record


def trace(path, *options):
    return call(command, path, *options)


def test_a_table_leads_to_the_files_of_its_well(profiled_screen):
    path = profiled_screen / "results/plates/P1/features/A02.parquet"
    said = trace(path)
    first, *rest = said.splitlines()
    assert first == f"P1 features A02  [{read_record(path)['fingerprint'][:12]}]"
    assert '"families"' in rest[0] and "log logs/measure_features/P1/part-0.log" not in rest[0]
    for told in ("P1 segmentation A02", "P1 conversion A02", "P1 illumination", "A02_s1_w1.tif", "made by the job of"):
        assert told in said, told


def test_pixels_and_labels_lead_to_what_made_them(profiled_screen):
    images = profiled_screen / "results/plates/P1/plate.zarr/A/02/1"
    assert trace(images / "labels/Nuclei/0/zarr.json").startswith("P1 segmentation A02")
    assert "A02_s1_w3.tif" in trace(images / "0" / "zarr.json")


def test_everything_stands_in_the_json(profiled_screen):
    found = json.loads(trace(profiled_screen / "results/plates/P1/profiles.parquet", "--json"))
    stages = {}
    for one in found["made"].values():
        stages.setdefault(one["stage"], set()).add(one["name"])
    assert len(stages["features"]) == 12 and len(stages["segmentation"]) == 12
    assert {"profiling", "flagging", "illumination", "conversion"} <= stages.keys()
    top = found["made"][found["result"]]
    assert top["stage"] == "profiling" and top["job"]["started"] and top["parameters"]["exclude_flagged"]
    assert all(one["inputs"] for one in found["made"].values()), "every chain ends at files"


def test_what_nobody_vouches_for_is_told(profiled_screen, tmp_path):
    folder = tmp_path / "screen"
    shutil.copytree(profiled_screen, folder)
    (folder / "results/plates/P1/records/features/part-0.json").unlink()
    said = trace(folder / "results/plates/P1/features/A02.parquet")
    assert said.startswith("a result that no record vouches for") and "P1 segmentation A02" in said


def test_a_screen_that_has_not_run_says_so(screen):
    with pytest.raises(ConfigError, match="was not run yet.*plateloom run"):
        trace("maps/P1.tsv")


def test_other_files_are_refused(profiled_screen, tmp_path):
    with pytest.raises(PlateLayoutError, match="no result that carries its recipe"):
        trace(profiled_screen / "config.yaml")
    with pytest.raises(PlateLayoutError, match="lies in no screen"):
        trace(tmp_path)
