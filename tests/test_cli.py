"""The command: what it says, what it refuses, and what it writes."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from plateloom.cli import COMMANDS
from plateloom.cli.config import describe_settings
from plateloom.config import Config, load_config
from plateloom.errors import ConfigError

CHANNELS = {"DNA": {"source": "1"}, "GFP": {"source": "2"}}


def plateloom(*arguments):
    """Run the command; returns exit code and everything that it said."""
    command = [sys.executable, "-c", "from plateloom.cli import main; main()", *map(str, arguments)]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, check=False)
    return found.returncode, found.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_is_in_the_readme(name):
    code, text = plateloom(name, "--help")
    assert code == 0 and f"plateloom {name}" in text
    assert f"plateloom {name}" in (ROOT / "README.md").read_text()


def test_an_unknown_command_names_the_nearest():
    code, text = plateloom("statu")
    assert code == 2 and "Did you mean 'status'?" in text


def test_the_config_file_is_what_the_model_says():
    assert (ROOT / "config/config.yaml").read_text() == describe_settings()
    defaults = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    assert Config.model_validate(defaults) == Config()


def test_every_setting_has_a_meaning():
    def walk(model):
        for name, field in model.model_fields.items():
            nested = field.annotation if hasattr(field.annotation, "model_fields") else None
            assert nested or field.description, name
            if nested:
                walk(nested)

    walk(Config)


def test_the_schema_is_json():
    code, text = plateloom("config", "--schema")
    assert code == 0 and json.loads(text)["properties"]["segmentation"]


def test_the_parameters_of_methods_are_listed_with_meaning_and_unit():
    code, text = plateloom("config", "--methods")
    assert code == 0 and "segmentation.parameters of watershed" in text
    assert re.search(r"nucleus_diameter_um: 12.0 .*µm", text)


def test_all_mistakes_of_a_config_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        load_config(
            {
                "channels": CHANNELS,
                "segmentation": {"method": "watersheds", "parameters": {}},
                "features": {"families": ["Intensty"], "channels": ["DAN"]},
                "readers": {"pattern": {"pattern": "(?P<well>["}},
            }
        )
    text = "\n".join(caught.value.problems)
    for part in (
        "Did you mean 'watershed'?",
        "Did you mean 'Intensity'?",
        "Did you mean 'DNA'?",
        "no regular expression",
    ):
        assert part in text


def test_every_parameter_of_every_method_has_a_meaning():
    code, text = plateloom("config", "--methods")
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    assert code == 0 and len(lines) > 60
    assert not [line for line in lines if not re.search(r"\S    \S", line.strip())]


def test_a_wrong_value_hides_no_other_mistake():
    settings = {
        "channels": CHANNELS,
        "conversion": {"pixel_size_um": -1},
        "segmentaton": {},
        "segmentation": {"parameters": {"nuclei_chanel": "DNA"}},
        "report": {"composite": ["DAN"]},
    }
    with pytest.raises(ConfigError) as caught:
        load_config(settings)
    text = "\n".join(caught.value.problems)
    for part in (
        "conversion.pixel_size_um",
        "Did you mean 'segmentation'?",
        "Did you mean 'nuclei_channel'?",
        "Did you mean 'DNA'?",
    ):
        assert part in text, part


def test_an_unknown_parameter_of_a_method_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"nucleus_diameter: unknown setting. Did you mean 'nucleus_diameter_um'\?"):
        load_config({"channels": CHANNELS, "segmentation": {"parameters": {"nucleus_diameter": 3}}})


def test_simulate_check_and_a_wrong_map(tmp_path):
    folder = tmp_path / "screen"
    options = ["--plates", 1, "--rows", 3, "--columns", 4, "--fields", 1, "--size", 128, "--cells", 3]
    assert plateloom("simulate", folder, *options)[0] == 0
    assert plateloom("simulate", folder)[0] == 2, "a screen is never overwritten"
    code, text = plateloom("check", folder)
    assert code == 0 and "12 wells, 12 fields, 36 files" in text
    path = folder / "maps/plate1.tsv"
    path.write_text(path.read_text() + "A1\tx\t1\tuM\t\t1\nZ99\tx\tmuch\tuM\tmaybe\t1\n")
    (folder / "plates.tsv").write_text((folder / "plates.tsv").read_text() + "plate1\traw/plate1\tpatern\t\t\n")
    code, text = plateloom("check", folder)
    assert code == 2
    for part in (
        "well A01 stands there twice",
        "'Z99'",
        "plate 'plate1' stands there twice",
        "Did you mean 'pattern'?",
    ):
        assert part in text, part
    code, text = plateloom("run", folder)
    assert code == 2 and "nothing was started" in text and not (folder / "results").exists()


def test_init_writes_a_screen_that_only_lacks_treatments(tmp_path, data):
    folder = tmp_path / "screen"
    code, text = plateloom("init", folder, "--source", data / "bbbc013_sbs_rows_ABEF")
    assert code == 0 and "48 wells" in text
    code, text = plateloom("check", folder)
    assert code == 2 and "set conversion.pixel_size_um" in text, "µm without a pixel size would mean nothing"
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert set(settings["channels"]) == {"Channel1", "Channel2"}
    assert settings["segmentation"]["parameters"]["nuclei_channel"] == "Channel2", "by its pixels alone"
    settings["conversion"]["pixel_size_um"] = 1.0
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    code, text = plateloom("check", folder)
    assert code == 0 and "48 wells, 48 fields, 96 files" in text
    assert "no well is a negative control" in text and "no mistake, but 2 warnings" in text


def test_a_key_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("parts: 1\nreport: {montage_wells: 2}\nparts: 2\n")
    code, text = plateloom("check", tmp_path)
    assert code == 2 and "'parts' stands there twice" in text and "line 3" in text


def test_a_misspelt_readout_is_a_mistake_of_the_config():
    wrong = {"channels": CHANNELS, "profiling": {"parameters": {"readout": "Nuclei_Intensity_Mean_GFP"}}}
    with pytest.raises(ConfigError, match="Did you mean 'Nuclei_Intensity_MeanIntensity_GFP'"):
        load_config(wrong)


def test_what_is_odd_about_files_and_maps_is_a_warning(screen):
    (screen / "raw/P1/A01_s1_w2.tif").write_bytes(b"")
    (screen / "raw/P1/A02_s1_w3.tif").unlink()
    path = screen / "maps/P1.tsv"
    path.write_text(path.read_text().replace("negative", "") + "H12\tx\t1\tuM\t\n")
    code, text = plateloom("check", screen)
    assert code == 0
    for part in ("1 files have no content: A01_s1_w2.tif", "A02 field 1 lacks", "no well is a negative", "H12"):
        assert part in text, part


def test_a_plate_that_was_imaged_again_needs_an_acquisition_number(screen):
    from plateloom.planning import list_plates

    shutil.copytree(screen / "raw/P1", screen / "raw/again")
    path = screen / "plates.tsv"
    path.write_text("plate\tsource\nP1\traw/P1\nP1\traw/again\n")
    _, (problem,) = list_plates(path)
    assert "'raw/P1' and 'raw/again'" in problem and "column `acquisition`" in problem
    path.write_text("plate\tsource\tacquisition\nP1\traw/P1\t1\nP1\traw/again\t2\n")
    plates, problems = list_plates(path)
    assert not problems and [plate.plate for plate in plates] == ["P1", "P1-acquisition2"]
    path.write_text("plate\tsource\tacquisition\nP1\traw/P1\tsecond\n")
    assert "expected a number" in list_plates(path)[1][0]


def test_the_table_of_planes_is_listed_without_a_screen(screen, tmp_path):
    code, text = plateloom("scan", screen / "raw/P1", "--out", tmp_path / "planes.tsv")
    assert code == 0 and "pattern: 35 planes, 12 wells" in text
    lines = (tmp_path / "planes.tsv").read_text().splitlines()
    assert lines[0].startswith("well\tfield\tchannel\tz\tt\tfile") and len(lines) == 36
    assert plateloom("scan", screen / "raw/P1", "--reader", "pattern", "--set", "patern=x")[0] == 2
    assert plateloom("scan", tmp_path / "nowhere")[0] == 2


def test_two_files_for_one_plane_stop_everything_before_any_job_and_are_both_named(screen):
    (screen / "raw/P1/more").mkdir()
    shutil.copyfile(screen / "raw/P1/A01_s1_w1.tif", screen / "raw/P1/more/A01_s1_w1.tif")
    for command in ("check", "run"):
        code, text = plateloom(command, screen)
        assert code == 2 and "'A01_s1_w1.tif' and 'more/A01_s1_w1.tif' claim the same plane" in text
    assert not (screen / "results").exists()


def test_two_plates_of_one_folder_or_name_are_refused(screen):
    path = screen / "plates.tsv"
    path.write_text(path.read_text() + "p1\traw/P1\tpattern\t\t\n")
    code, text = plateloom("check", screen)
    assert code == 2 and "capital letters" in text and "belongs to another plate" in text


def test_init_shows_file_names_where_it_knows_no_layout(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "strange.tif").touch()
    code, text = plateloom("init", tmp_path / "screen", "--source", tmp_path / "in")
    assert code == 2 and "strange.tif" in text and "--pattern" in text
    assert not (tmp_path / "screen").exists()


def test_status_of_a_screen_that_never_ran(screen):
    code, text = plateloom("status", screen)
    assert code == 0 and "0 of 1 plates complete" in text
    code, text = plateloom("status", screen, "--json")
    assert json.loads(text)["plates"]["P1"]["segmentation"]["state"] == "missing"


def test_environments_are_in_step_with_the_lock():
    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().split() if "==" in line)
    pins = {name.lower(): version for name, version in pins.items()}
    wanted = set()
    for path in (ROOT / "envs").glob("*.yaml"):
        packages = yaml.safe_load(path.read_text())["dependencies"][-1]["pip"]
        for package in packages:
            name, version = package.split("==")
            assert pins[name.lower()] == version, f"{path.name}: {name}"
            wanted.add(name.lower())
    named = re.findall(r"^([A-Za-z][\w-]+)", (ROOT / "requirements.in").read_text().split("# development")[0], re.M)
    assert {name.lower() for name in named} <= wanted
