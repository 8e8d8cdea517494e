"""The command: what it says, what it refuses, and what it writes."""

import errno
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from conftest import ROOT, edit
from test_run import add_plate

from plateloom.cli import COMMANDS, cli
from plateloom.cli.check import find_problems
from plateloom.cli.config import describe_settings
from plateloom.cli.run import check_screen
from plateloom.config import Config, load_config, read_config
from plateloom.errors import ConfigError
from plateloom.store.provenance import write_json

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
    shutil.rmtree(folder)
    code, _ = plateloom("init", folder, "--source", data / "bbbc013_sbs_rows_ABEF", "--pixel-size", 0.65)
    assert code == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["conversion"]["pixel_size_um"] == 0.65
    code, text = plateloom("check", folder)
    assert code == 0 and "48 wells, 48 fields, 96 files" in text
    assert "no well is a negative control" in text and "no mistake, but 2 warnings to read" in text


def test_a_key_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("parts: 1\nreport: {montage_wells: 2}\nparts: 2\n")
    code, text = plateloom("check", tmp_path)
    assert code == 2 and "'parts' stands there twice" in text and "line 3" in text


def test_a_misspelt_readout_is_a_mistake_of_the_config():
    wrong = {"channels": CHANNELS, "profiling": {"parameters": {"readout": "Nuclei_Intensity_Mean_GFP"}}}
    with pytest.raises(ConfigError, match="Did you mean 'Nuclei_Intensity_MeanIntensity_GFP'"):
        load_config(wrong)


@pytest.mark.parametrize(
    "settings, said",
    [
        (
            {"classification": {"labels": "controls", "method": "cnn"}},
            "classification.method: cnn learns from crops: set classification.inputs: crops",
        ),
        (
            {"classification": {"labels": "controls", "inputs": "crops"}},
            "classification.method: logistic learns from tables: inputs: crops needs method: cnn",
        ),
        (
            {"classification": {"labels": "t.tsv", "target": "number"}},
            "classification.method: logistic learns classes: target: number needs method: ridge or forest_regression",
        ),
        (
            {"classification": {"labels": "t.tsv", "method": "ridge"}},
            "classification.method: ridge learns numbers: set classification.target: number",
        ),
        (
            {"segmentation": {"method": "pixels"}},
            "segmentation.parameters: model: none given. `plateloom train-pixels` makes one from strokes that you paint; then set "
            "segmentation.parameters.model: pixels.safetensors",
        ),
        (
            {"profiling": {"parameters": {"readout": "Metadata_CellCount"}}},
            "profiling.parameters.readout: Metadata_CellCount falls with every field that is left out; write Metadata_CellsPerField",
        ),
        (
            {
                "profiling": {
                    "parameters": {
                        "readout": "Metadata_CellsPerField",
                        "readout_denominator": "Nuclei_Intensity_MeanIntensity_DNA",
                    }
                }
            },
            "profiling.parameters.readout_denominator: Metadata_CellsPerField is divided by nothing; write readout_denominator: null",
        ),
        ({"profiling": None}, "profiling: expected `setting: value` lines; found nothing"),
        (
            {"profiling": {"parameters": {"readout_denominator": "Nuclei_Intensity_MeanIntensity_DNA"}}},
            "profiling.parameters.readout_denominator: there is no readout to divide by it; name that too, readout: "
            "Nuclei_Intensity_MeanIntensity_…",
        ),
        ({"readers": {"operetta": {}}}, "readers.operetta: no such reader. Did you mean 'harmony'? Readers: "),
    ],
)
def test_what_does_not_go_together_says_what_to_set(settings, said):
    with pytest.raises(ConfigError) as caught:
        load_config({"channels": CHANNELS} | settings)
    (problem,) = caught.value.problems
    assert problem.startswith(said)


def test_what_is_odd_about_files_and_maps_is_a_warning(screen):
    (screen / "raw/P1/A01_s1_w2.tif").write_bytes(b"")
    (screen / "raw/P1/A02_s1_w3.tif").unlink()
    path = screen / "maps/P1.tsv"
    text = path.read_text().replace("negative", "").replace("nuclearin", "Nuclearin", 1)
    path.write_text(text + "H12\tx\t1\tuM\t\n")
    code, text = plateloom("check", screen)
    assert code == 0
    for part in (
        "1 file without content: A01_s1_w2.tif",
        "A02 field 1 lacks",
        "no well is a negative",
        "H12",
        "'Nuclearin', 'nuclearin'",
    ):
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


def test_two_files_for_one_plane_of_a_plate_that_comes_later_are_named_before_any_job(screen):
    write_json(screen / "results/plates/P1/records/conversion/part-0.json", {"status": "done"})
    shutil.copytree(screen / "raw/P1", screen / "raw/P2")
    add_plate(screen, "P2")
    assert "quarantines" not in "".join(check_screen(screen))
    (screen / "raw/P2/more").mkdir()
    shutil.copyfile(screen / "raw/P2/A01_s1_w1.tif", screen / "raw/P2/more/A01_s1_w1.tif")
    (line,) = [line for line in check_screen(screen) if "claim" in line]
    assert "P2: 'A01_s1_w1.tif' and 'more/A01_s1_w1.tif' claim the same plane" in line and "quarantines this" in line


def test_too_few_negative_controls_with_images_are_a_warning(screen):
    path = screen / "maps/P1.tsv"
    head, *rows = path.read_text().splitlines()
    control = head.split("\t").index("control")
    rows = [row.split("\t") for row in rows]
    for row in rows:
        row[control] = "negative" if row[0] in ("A01", "A02") else ""
    rows.append([*rows[0]])
    rows[-1][0] = "H12"  # has no image
    path.write_text("\n".join([head, *map("\t".join, rows), ""]))
    told = "\n".join(find_problems(screen, files=True)[1])
    assert "2 negative and 0 positive controls" in told
    assert "P1: warning: only 2 wells are negative controls, 3 needed (profiling.parameters.min_controls), so" in told
    edit(screen, lambda given: given["profiling"]["parameters"].update(min_controls=2))
    assert "needed (profiling" not in "\n".join(find_problems(screen, files=True)[1])


def test_what_is_not_yaml_is_told_in_one_line_with_its_place(screen):
    (screen / "config.yaml").write_text("channels:\n  DNA: {source: 1\nparts: 2\n")
    code, text = plateloom("check", screen)
    assert code == 2 and "config.yaml: not YAML: line 3, column 6: expected ',' or '}', but got ':'" in text
    assert text.splitlines()[-1] == "1 problem"
    assert plateloom("run", screen)[1].splitlines()[-1] == "1 problem; nothing was started"


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


def _lay_out(folder, *names):
    """Empty images, which a layout is recognized by."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def test_init_takes_each_folder_of_a_folder_as_a_plate(tmp_path):
    for plate in ("P2", "P1"):
        _lay_out(tmp_path / "in" / plate, "A01_s1_w1.tif", "A02_s1_w1.tif")
    for other in (".cache", "logs"):
        (tmp_path / "in" / other).mkdir()
    code, text = plateloom("init", tmp_path / "screen", "--plates", tmp_path / "in")
    assert code == 0 and "2 plates" in text and "logs' is left out: no images" in text and ".cache" not in text
    listed = (tmp_path / "screen" / "plates.tsv").read_text().splitlines()
    assert [line.split("\t")[:2] for line in listed[1:]] == [[p, str(tmp_path / "in" / p)] for p in ("P1", "P2")]
    _lay_out(tmp_path / "in" / "overviews", "strange.tif")
    code, text = plateloom("init", tmp_path / "none", "--plates", tmp_path / "in")
    assert code == 2 and "strange.tif" in text and "If this is no plate" in text
    code, text = plateloom("init", tmp_path / "none", "--plates", tmp_path / "in" / "logs")
    assert code == 2 and "no plate in" in text
    code, text = plateloom("init", tmp_path / "none")
    assert code == 2 and "--source" in text and "--plates" in text


def test_init_tells_a_note_of_many_plates_once(tmp_path):
    for plate in ("P1", "P2"):
        _lay_out(tmp_path / "in" / plate, "A01_s1_w1.tif", "overview.tif")
    code, text = plateloom("init", tmp_path / "screen", "--plates", tmp_path / "in")
    assert code == 0 and text.count("overview.tif") == 1 and "P1, P2: " in text


@pytest.mark.parametrize("second", [["A01_s1_w1.tif"], ["B7_01_1_3_DAPI_001.tif", "B8_01_1_3_DAPI_001.tif"]])
def test_init_takes_no_folder_of_plates_for_a_plate(tmp_path, second):
    _lay_out(tmp_path / "in" / "P1", *(f"A0{i}_s1_w1.tif" for i in range(1, 5)))
    _lay_out(tmp_path / "in" / "P2", *second)
    code, text = plateloom("init", tmp_path / "screen", "--source", tmp_path / "in")
    assert code == 2 and "P1" in text and "P2" in text and f"--plates {tmp_path / 'in'}" in text
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


def append(path, text):
    path.write_text(path.read_text() + text)


@pytest.mark.parametrize(("kind", "said"), [("cut", "truncated or damaged; copy it"), ("pages", "holds 3 pages")])
def test_a_plate_of_which_no_sampled_file_can_be_decoded_is_a_mistake(screen, kind, said):
    import tifffile

    stack = np.zeros((3, 8, 8), np.uint16)
    for path in (screen / "raw/P1").iterdir():
        if kind == "cut":
            path.write_bytes(path.read_bytes()[:2000])
        else:
            tifffile.imwrite(path, stack, photometric="minisblack")
    code, text = plateloom("check", screen)
    assert (
        code == 2 and "9 of 9 sampled files cannot be decoded; the plate would be quarantined" in text and said in text
    )


def test_a_plate_of_empty_files_is_a_mistake(screen):
    for path in (screen / "raw/P1").iterdir():
        path.write_bytes(b"")
    problems, _ = find_problems(screen, files=True)
    assert problems == ["P1: all files are empty; the plate would be quarantined"]


def test_files_that_cannot_be_decoded_are_warnings_while_others_can(screen):
    for channel in (1, 2, 3):
        (screen / f"raw/P1/A01_s1_w{channel}.tif").write_bytes(b"II*\0 cut")
    problems, notes = find_problems(screen, files=True)
    assert not problems and sum("truncated or damaged" in note for note in notes) == 3


def test_every_kind_of_mistake_is_told_at_once_and_none_follows_from_another(screen):
    append(screen / "config.yaml", "segmentaton: {}\n")
    append(screen / "maps/P1.tsv", "A1\tx\t0,3\tuM\t\t1\nB1;x\n")
    append(screen / "plates.tsv", "P2\traw/nowhere\tpattern\tmaps/P2.tsv\tb\nP3\traw/P1\tpattern\t\tb\n")
    code, text = plateloom("check", screen)
    assert code == 2
    for part in (
        "Did you mean 'segmentation'?",
        "did you mean 0.3?",
        "'B1;x' is not a well",
        f"P2: no folder '{screen}/raw/nowhere' ({screen}/plates.tsv:3)",
        f"plates.tsv:3: plate_map of 'P2': no file '{screen}/maps/P2.tsv'; without a map, leave the cell empty",
        "belongs to another plate already, 'P1'",
    ):
        assert part in text, part


def test_a_misspelt_column_of_the_plate_list_hides_nothing(screen):
    path = screen / "plates.tsv"
    path.write_text(path.read_text().replace("source", "sorce", 1) + "P2\traw/nowhere\tpatern\t\tb\n")
    problems, _ = find_problems(screen, files=True)
    text = "\n".join(problems)
    assert "Did you mean 'source' by 'sorce'?" in text and "Did you mean 'pattern'?" in text and "no folder" in text
    path.write_text("plate\tsource\tcolor\nP1\traw/P1\tred\nP1\traw/P1\tred\n")
    problems, notes = find_problems(screen, files=True)
    assert "unknown column 'color'. Columns: acquisition, batch, plate" in problems[0]
    assert "twice: remove one of the lines" in problems[1] and sum("files" in note for note in notes) == 1
    path.write_text("plate\tsource\n")
    assert find_problems(screen, files=True)[0] == [
        f"{path}: lists no plate; each has a line: plate, source, reader, plate_map, batch"
    ]


def test_time_points_want_a_choice_and_are_kept_for_conversion_only(screen):
    for path in sorted((screen / "raw/P1").glob("*.tif")):
        first, channel = path.stem.rsplit("_", 1)
        for t in (0, 1):
            shutil.copyfile(path, path.with_name(f"{first}_t{t}_{channel}.tif"))
        path.unlink()
    pattern = r"(?P<well>[A-Z]\d+)_s(?P<field>\d+)_t(?P<t>\d)_w(?P<channel>\d)\.tif"
    edit(screen, lambda settings: settings.update(readers={"pattern": {"pattern": pattern}}))
    problems, _ = find_problems(screen, files=True)
    assert "P1: 2 time points (0, 1): set conversion.time to one of them, or to keep" in problems
    edit(screen, lambda settings: settings["conversion"].update(time=1))
    problems, notes = find_problems(screen, files=True)
    assert not problems and "time points" not in "\n".join(notes)
    edit(screen, lambda settings: settings["conversion"].update(time="keep"))
    problems, notes = find_problems(screen, files=True)
    assert not problems and "P1: warning: all its time points are kept" in "\n".join(notes)


def test_labels_are_checked_against_plates_and_wells(screen):
    path = screen / "labels.tsv"
    path.write_text("plate\twell\tclass\tfield\nP1\tA01\tnormal\t\nP1\tQ01\tnormal\t\n")
    _, notes = find_problems(screen, files=True)
    assert "P1: warning: 1 labeled well without an image: Q01 (labels.tsv:3)" in notes
    append(path, "P9\tA01\tnormal\t\nP1\tA99\tnormal\t\nP1\tA02\t\t\nP1\tA03\tnormal\tx\n")
    problems, _ = find_problems(screen, files=True)
    assert [problem.removeprefix(f"{path}:")[:9] for problem in problems] == [
        "4: no pla",
        "5: 'A99' ",
        "6: no cla",
        "7: field ",
    ]
    path.write_text("class\twell\tplate\nnormal\tA01\n")
    (problem,), _ = find_problems(screen, files=True)
    assert "labels.tsv:2: no plate ''" in problem
    path.unlink()
    (problem,), _ = find_problems(screen, files=True)
    assert "classification.labels: no file" in problem


@pytest.mark.parametrize(
    "settings, rows, said",
    [
        ({}, "P1\tA01\tnormal\nP1\tA02\tnormal\n", "Found the classes ['normal']. At least 2 are needed"),
        ({}, "P1\tA01\tnormal\nP1\tA03\tnormal\nP1\tA02\tother\n", "fewer than 2 wells: 'other' in 1"),
        ({}, "", "no well is labeled (labels.tsv)"),
        (
            {"target": "number", "method": "ridge"},
            None,
            "A label is no number: could not convert string to float: 'normal'",
        ),
        ({"scheme": "batch"}, None, "Classes in fewer than 2 batches"),
        (
            {"scheme": "batch"},
            "P2\tA01\tnormal\n",
            "needs the batch of every labeled plate in plates.tsv; it is not there of P2",
        ),
        ({"folds": 50}, None, "9 wells for 50 folds. Use 2 to 9 folds"),
        ({"labels": "controls"}, None, "controls: no well of the plate maps is a positive control"),
    ],
)
def test_labels_that_nothing_can_be_learned_from_are_a_mistake_before_anything_is_measured(
    screen, settings, rows, said
):
    edit(screen, lambda given: given["classification"].update(settings))
    path = screen / "maps/P1.tsv"
    path.write_text(path.read_text().replace("positive", ""))
    append(screen / "plates.tsv", "P2\traw/P2\tpattern\n")
    shutil.copytree(screen / "raw/P1", screen / "raw/P2")
    if rows is not None:
        (screen / "labels.tsv").write_text("plate\twell\tclass\n" + rows)
    (problem,), _ = find_problems(screen, files=True)
    assert problem.startswith("config.yaml: classification") and said in problem
    assert not find_problems(screen, files=False)[0], "what was measured can be exported and repaired"


def test_a_method_that_cannot_work_on_these_pixels_is_a_mistake_told_once(tmp_path):
    from conftest import simulate

    folder = simulate(tmp_path / "s", plates=("P1", "P2"), cells_per_field=2.0)

    def change(given):
        given["segmentation"] = {"method": "patches", "parameters": {"size_um": 2}}
        given["profiling"] = {}

    edit(folder, change)
    problems, _ = find_problems(folder, files=True)
    said = "segmentation.method patches cannot work here: size_um is 2, which is 3.1 px here; expected 5.2 or more"
    assert problems == [f"P1: {said}"]


@pytest.mark.parametrize(
    "section, key, value, said",
    [
        ("segmentation.parameters", "nucleus_diameter_um", 1200, "1846 px, 7.2 times the width of a field (256 px)"),
        (
            "segmentation.parameters",
            "nucleus_diameter_um",
            1.5,
            "2.3 px; expected 2.0 µm or more, or the pixel size of 0.65 µm is wrong",
        ),
        ("latent.autoencoder", "crop_um", 3000, "4615 px, 18 times the width of a field (256 px)"),
    ],
)
def test_sizes_that_can_hardly_be_are_warnings_in_pixels(screen, section, key, value, said):
    def change(given):
        for name in section.split("."):
            given = given.setdefault(name, {})
        given[key] = value

    assert not any("which is" in note for note in find_problems(screen, files=True)[1])
    edit(screen, change)
    problems, notes = find_problems(screen, files=True)
    assert not problems and [note for note in notes if "which is" in note] == [
        f"P1: warning: {section}.{key} is {value} µm, which is {said}"
    ]


def test_a_nucleus_below_one_pixel_is_an_error(screen):
    edit(screen, lambda given: given["conversion"].update(pixel_size_um=6500))
    problems, notes = find_problems(screen, files=True)
    said = "12 µm, which is 0.002 px; expected 19500 µm or more, or the pixel size of 6500 µm is wrong"
    assert f"P1: segmentation.parameters.nucleus_diameter_um is {said}" in problems
    assert not any("which is" in note for note in notes)


def test_a_reader_is_known_by_its_microscope(screen):
    append(screen / "plates.tsv", "P2\traw/P2\tOperetta\n")
    problems, _ = find_problems(screen, files=False)
    assert any("no reader 'Operetta'. Did you mean 'harmony'?" in problem for problem in problems)


@pytest.mark.parametrize("section", ["autoencoder", "maps"])
def test_plates_to_learn_from_are_those_of_the_list(screen, section):
    edit(screen, lambda given: given["latent"][section].update(plates=["P1", "p1"]))
    (problem,), _ = find_problems(screen, files=True)
    assert problem == f"config.yaml: latent.{section}.plates: no plate 'p1' in plates.tsv. Did you mean 'P1'?"
    for path in (None, screen / "results/plates/P1/records/conversion/part-0.json"):  # before and after its first run
        if path:
            path.parent.mkdir(parents=True)
            path.write_text("{}")
        with pytest.raises(ConfigError, match=f"latent.{section}.plates: no plate 'p1'"):
            check_screen(screen)
        check_screen(screen, sources=False)  # at night, the plate may come tomorrow


def test_too_few_controls_are_a_warning_since_plates_may_follow(screen):
    edit(screen, lambda given: given["classification"].update(labels="controls", scheme="plate"))
    problems, notes = find_problems(screen, files=True)
    assert not problems and any("warning: classification: " in note and "fewer than 2 plates" in note for note in notes)


def test_a_well_of_two_classes_is_a_warning(screen):
    append(screen / "labels.tsv", "P1\tA01\ttranslocated\n")
    problems, notes = find_problems(screen, files=True)
    assert not problems and any("P1/A01 is 'translocated' here and 'normal' on line 2" in note for note in notes)


def test_no_controls_are_counted_on_a_map_that_is_wrong_or_not_there(screen):
    append(screen / "maps/P1.tsv", "Z99\tx\t1\tuM\t\t1\n")
    append(screen / "plates.tsv", "P2\traw/again\tpattern\t\tb\n")
    shutil.copytree(screen / "raw/P1", screen / "raw/again")
    _, notes = find_problems(screen, files=True)
    assert "P1: 12 wells, 12 fields, 35 files" in notes and "P2: 12 wells, 12 fields, 35 files" in notes


def test_an_offset_that_the_pixels_do_not_reach_is_refused(screen):
    edit(screen, lambda settings: settings.update(illumination={"parameters": {"camera_offset": 100}}))
    assert not find_problems(screen, files=True)[0]
    edit(screen, lambda settings: settings.update(illumination={"parameters": {"camera_offset": 30000}}))
    (problem,) = find_problems(screen, files=True)[0]
    assert "camera_offset is 30000, which most pixels of " in problem


def test_values_that_mean_nothing_are_refused(screen):
    for section, given, said in (
        ("conversion", {"pixel_size_um": True}, "pixel_size_um: yes is no number or text"),
        ("quality", {"parameters": {"min_focus_slope": 6.5}}, "min_focus_slope"),
        ("profiling", {"parameters": {"readout": "Nuclei_A", "readout_denominator": "Nuclei_A"}}, "the readout itself"),
    ):
        before = (screen / "config.yaml").read_text()
        edit(screen, lambda settings, section=section, given=given: settings.setdefault(section, {}).update(given))
        problems, _ = find_problems(screen, files=False)
        assert any(said in problem for problem in problems), problems
        (screen / "config.yaml").write_text(before)
    edit(screen, lambda settings: settings["channels"]["DNA"].update(window=[500, 10]))
    assert any("the lower end first" in problem for problem in find_problems(screen, files=False)[0])
    (screen / "config.yaml").write_text(before)
    edit(
        screen, lambda settings: settings.update(restoration=[{"method": "background", "parameters": {"radius_um": 3}}])
    )
    assert any("takes nuclei away" in note for note in find_problems(screen, files=True)[1])


def test_doses_under_another_name_and_doses_that_are_none_are_refused(screen):
    path = screen / "maps/P1.tsv"
    good = path.read_text()
    for text, said in (
        (good.replace("\tdose\t", "\tConcentration (nM)\t", 1), "column 'Concentration (nM)': name it `dose`"),
        (good.replace("\tdose\t", "\tconc\t", 1), "column 'conc': name it `dose`"),
        (good.replace("\tdose\t", "\tamount\t", 1), "column `unit` without a dose"),
        (good.replace("\t10\t", "\tinf\t", 1).replace("\t10.0\t", "\tinf\t", 1), "dose 'inf' is no number"),
        (good.replace("\t10\t", "\tnan\t", 1).replace("\t10.0\t", "\tnan\t", 1), "leave it empty where there is none"),
    ):
        assert text != good
        path.write_text(text)
        problems, _ = find_problems(screen, files=True)
        assert any(said in problem for problem in problems), (said, problems)
    path.write_text(good.replace("\ttreatment\t", "\tcompound\t", 1))
    assert any("(column treatment); did you mean 'compound'?" in note for note in find_problems(screen, files=True)[1])
    lines = [line.split("\t") for line in good.splitlines()]
    i, j = lines[0].index("treatment"), lines[0].index("control")
    sample = next(line for line in lines[1:] if not line[j])
    next(line for line in lines[1:] if line[i] == sample[i] and line is not sample)[j] = "negative"
    path.write_text("\n".join("\t".join(line) for line in lines) + "\n")
    _, notes = find_problems(screen, files=True)
    assert any(f"treatment {sample[i]!r} is a negative control in" in note for note in notes), notes


def test_what_excel_makes_of_a_map_is_named(screen):
    path = screen / "maps/P1.tsv"
    good = path.read_text()
    found = find_problems(screen, files=True)
    path.write_text(good.replace("treatment", "Treatment", 1).replace("control", " CONTROL ", 1))
    assert find_problems(screen, files=True) == found
    for data, said in (
        (good.replace("\t", ";").encode(), "the separator is ';'"),
        (good.replace("\t", "  ").encode(), "columns are parted by spaces, expected tabs or commas"),
        (b"PK\x03\x04\xff\xfe", "is an Excel workbook; save it as CSV"),
    ):
        path.write_bytes(data)
        (problem,), _ = find_problems(screen, files=True)
        assert said in problem
    for text, said in (
        (good.replace("well\t", "wall\t", 1), "maps/P1.tsv:1: no column 'well'. Did you mean 'well' by 'wall'?"),
        (
            good.replace("treatment\t", "well\t", 1),
            "maps/P1.tsv:1: column 'well' stands there twice: remove one of them",
        ),
        (good + "Z99\ta\n", f"maps/P1.tsv:{len(good.splitlines()) + 1}: "),
        (good + "A1\ta\n", f"maps/P1.tsv:{len(good.splitlines()) + 1}: "),
    ):
        path.write_text(text)
        problems, _ = find_problems(screen, files=True)
        assert any(said in problem for problem in problems), problems
    path.write_text(good.replace("treatment", "treatmnt", 1))
    problems, notes = find_problems(screen, files=True)
    assert not problems and any("did you mean 'treatment'?" in note for note in notes)


@pytest.mark.parametrize("name", ["Chan nel", "a/b", "../x", "", "-x"])
def test_a_channel_has_a_name_for_columns_and_files(name):
    with pytest.raises(ConfigError, match="is no name for columns and files"):
        load_config({"channels": {name: {"source": "1"}}, "segmentation": {"parameters": {"nuclei_channel": name}}})
    load_config(
        {
            "channels": {"α-tub_488.5": {"source": "1"}},
            "segmentation": {"parameters": {"nuclei_channel": "α-tub_488.5"}},
        }
    )


def test_a_readout_of_a_cytoplasm_that_nothing_grows_is_refused():
    cytoplasm = "Cytoplasm_Intensity_MeanIntensity_GFP"
    settings = {"channels": CHANNELS, "profiling": {"parameters": {"readout": cytoplasm}}}
    for more, good in (({}, False), ({"cells_distance_um": 5.0}, True), ({"cells_channel": "GFP"}, True)):
        settings["segmentation"] = {"parameters": {"nuclei_channel": "DNA"} | more}
        if good:
            load_config(settings)
        else:
            with pytest.raises(
                ConfigError, match="cells are no more than their nuclei: set segmentation.parameters.cells_"
            ):
                load_config(settings)


def test_what_is_not_there_or_no_mapping_is_told_once_and_plainly():
    nuclei = {"segmentation": {"parameters": {"nuclei_channel": "DNA"}}}
    for settings, said in (({}, "channels: none given"), ({"channels": ["a"]}, "channels: expected `setting: value`")):
        with pytest.raises(ConfigError) as caught:
            load_config(settings | nuclei)
        (problem,) = caught.value.problems
        assert problem.startswith(said)


@pytest.mark.parametrize("name", ["config.yaml", "plates.tsv", "maps/P1.tsv", "raw/P1"])
def test_what_may_not_be_read_is_one_line(screen, monkeypatch, name):
    def refuse(path, *, real, **options):
        if str(path).startswith(str(screen / name)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(os, "scandir", functools.partial(refuse, real=os.scandir))
    for call in ("read_text", "read_bytes"):
        monkeypatch.setattr(Path, call, functools.partialmethod(refuse, real=getattr(Path, call)))
    problems, _ = find_problems(screen, files=True)
    assert len(problems) == 1 and "cannot be read: Permission denied" in problems[0]


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path, screen, monkeypatch):
    def refuse(*_, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    calls = (["init", str(tmp_path / "in"), "--source", str(screen / "raw/P1")], ["simulate", str(tmp_path / "in")])
    for call in calls:
        with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
            cli.main(call, standalone_mode=False)


@pytest.mark.parametrize("pattern", ["foo(", "foo(.*)"])
def test_a_wrong_pattern_is_one_line(screen, tmp_path, pattern):
    code, text = plateloom("init", tmp_path / "new", "--source", screen / "raw/P1", "--pattern", pattern)
    assert code == 2 and text.startswith("--pattern: ") and "Traceback" not in text
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--plates", "-1"],
        ["--size", "5"],
        ["--rows", "40"],
        ["--columns", "60"],
        ["--rows", "3", "--columns", "4", "--defect", "blurred=200"],
    ],
)
def test_a_screen_that_cannot_be_simulated_leaves_nothing_behind(tmp_path, options):
    with pytest.raises((click.UsageError, ConfigError)):
        cli.main(["simulate", str(tmp_path / "s"), *options], standalone_mode=False)
    assert not (tmp_path / "s").exists()


def test_init_takes_a_site_for_a_site_and_doubts_files_of_several_planes(tmp_path):
    import tifffile

    (tmp_path / "in").mkdir()
    stack = np.zeros((3, 8, 8), np.uint16)
    tifffile.imwrite(tmp_path / "in/IXMtest_A02_s9.tif", stack, imagej=True, metadata={"axes": "CYX"})
    code, text = plateloom("init", tmp_path / "a screen", "--source", tmp_path / "in")
    assert code == 0 and "1 plate, layout generic, channel Channel1 (1), 1 well." in text
    assert "holds 3 planes" in text and "suffixes: [.tif, .tiff]" in text and "guessed from the names" in text
    assert f"plateloom check '{tmp_path}/a screen'" in text


def test_a_pattern_may_be_of_paths_and_serves_scan_as_it_serves_init(tmp_path):
    import tifffile

    for well in ("A01", "B02"):
        for channel in ("Actin", "DAPI"):
            path = tmp_path / f"in/{well}/field1_{channel}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, np.full((8, 8), 100, np.uint16))
    code, text = plateloom("init", tmp_path / "s", "--source", tmp_path / "in")
    assert code == 2 and "--plates" not in text and "Give --pattern" in text
    pattern = r"(?P<well>[A-P]\d{2})/field(?P<field>\d+)_(?P<channel>\w+)[.]tif"
    code, text = plateloom("scan", tmp_path / "in", "--pattern", pattern)
    assert code == 0 and "pattern: 4 planes, 2 wells, channels Actin, DAPI" in text
    code, text = plateloom(
        "init", tmp_path / "s", "--source", tmp_path / "in", "--pattern", pattern, "--pixel-size", "1"
    )
    assert code == 0 and "channels Actin, DAPI, 2 wells" in text
    channels = read_config(tmp_path / "s").channels
    assert channels["DAPI"].color == "4080FF" != channels["Actin"].color, "nuclei are blue"
    assert read_config(tmp_path / "s").readers["pattern"]["folders"] is True
    assert plateloom("scan", tmp_path / "in", "--pattern", pattern, "--reader", "harmony")[0] == 2


def test_init_says_which_time_point_is_taken(tmp_path):
    import tifffile

    (tmp_path / "in").mkdir()
    for t in (1, 2, 3):
        tifffile.imwrite(tmp_path / f"in/P_A01_T000{t}F001L01A01Z01C01.tif", np.full((8, 8), 100, np.uint16))
    options = ["--pattern", r"P_(?P<well>[A-P]\d{2})_T(?P<t>\d+)F(?P<field>\d+)L01A01Z01C(?P<channel>\d+)[.]tif"]
    code, text = plateloom("init", tmp_path / "s", "--source", tmp_path / "in", *options, "--pixel-size", "1")
    assert code == 0 and "3 time points (1, 2, 3): config.yaml takes the first one" in text


def test_scan_names_the_nearest_parameter(screen):
    code, text = plateloom("scan", screen / "raw/P1", "--set", "ptern=3")
    assert code == 2 and "--set ptern: unknown setting. Did you mean 'pattern'?" in text


def test_a_simulated_config_counts_its_own_fields_and_cells(screen):
    from plateloom.cli.simulate import write_screen
    from plateloom.simulation import ScreenDesign

    design = ScreenDesign(plates=("P1",), rows=1, columns=2, fields=1, size_px=64, cells_per_field=3.0)
    write_screen(screen / "small", design)
    text = (screen / "small/config.yaml").read_text()
    assert "of 2 a plate" in text and "of about 6;" in text
    problems, _ = find_problems(screen / "small", files=True)
    assert not problems, "wells too few to learn from are no mistake of a screen that is made so"
