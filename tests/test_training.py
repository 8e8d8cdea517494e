"""The network that a screen trains itself before it is segmented: wanted or not, killed and resumed, followed to its files."""

import json
import re
import shutil

import numpy as np
import pytest
import tifffile
import yaml
from conftest import ROOT, simulate, snakemake
from in_process import run_stages
from safetensors.numpy import load_file

from plateloom.cli.check import find_problems
from plateloom.config import TRAINED, load_config, read_config
from plateloom.engine.schedulers import slurm_command
from plateloom.errors import ConfigError, ModelMismatchError
from plateloom.planning import STAGES, Screen, nearest_stages
from plateloom.segmentation.network_file import SHIPPED, hash_file
from plateloom.simulation import ScreenDesign, render_field
from plateloom.stages import training
from plateloom.stages.segmentation import check_network
from plateloom.status import later, read_screen
from plateloom.store.annotations import explain_mask, read_pairs
from plateloom.store.provenance import read_json, write_json
from plateloom.store.tables import read_record

pytestmark = pytest.mark.usefixtures("one_thread")
UNTIL = ("training", "conversion", "assembly", "illumination", "segmentation")
# Without holdout the last weights are taken; else those that it began with, which so few steps do not better.
QUICK = {"steps": 4, "batch_size": 1, "validations": 4, "all_images": True, "learning_rate": 0.02}
WANTED = {"images": "fields", "labels": "nuclei"} | QUICK

WATERSHED = {"nuclei_channel": "DNA", "cells_distance_um": 5.0}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A screen of two wells, and four annotated fields; copy it, do not run it."""
    folder = simulate(tmp_path_factory.mktemp("raw") / "screen", rows=1, columns=2, size_px=200, cells_per_field=20.0)
    for name in ("fields", "nuclei"):
        (folder / name).mkdir()
    design = ScreenDesign(size_px=160, cells_per_field=20.0, seed=3)
    for i, well in enumerate(design.wells[:4]):
        field = render_field(design, design.plates[0], well, 1)
        tifffile.imwrite(folder / f"fields/f{i}.tif", field.image[0])
        tifffile.imwrite(folder / f"nuclei/f{i}.tif", field.nuclei.astype(np.uint16))
    parameters = {"nuclei_channel": "DNA", "nucleus_diameter_um": 15.0}
    change(folder, segmentation={"method": "unet", "parameters": parameters, "training": WANTED})
    change(folder, engine={"kind": "threads", "device": "cpu"})
    return folder


@pytest.fixture(scope="module")
def finished(raw, tmp_path_factory):
    """The same, run up to its labels; copy it."""
    folder = shutil.copytree(raw, tmp_path_factory.mktemp("finished") / "screen")
    run_stages(folder, UNTIL)
    return folder


@pytest.fixture
def fresh(raw, tmp_path):
    return shutil.copytree(raw, tmp_path / "fresh")


@pytest.fixture
def again(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "again", copy_function=shutil.copy2)


def change(folder, **sections):
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | sections))


def change_training(folder, **values):
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["segmentation"]["training"] |= values
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def trained_in(folder):
    return read_json(folder / "results/screen/records/training.json")


def segmented_in(folder):
    return read_json(folder / "results/plates/P1/records/segmentation/part-0.json")


def weights_of(folder):
    return load_file(folder / TRAINED)


def settings_of(folder, stage):
    return Screen(read_config(folder).model_dump(mode="json"), folder).settings(stage)


def test_a_screen_is_segmented_with_the_network_that_it_trains(finished):
    record = trained_in(finished)
    assert record["status"] == "done" and record["facts"]["device"] == "cpu"
    assert record["facts"]["images"] == 4 and record["facts"]["resumed_after_step"] == 0
    card = read_json(finished / "results/screen/models/segmenter/model.json")
    assert card["content"] == hash_file(finished / TRAINED) != hash_file(SHIPPED)
    assert [row["step"] for row in card["curves"]] == [0, 1, 2, 3, 4]
    found = segmented_in(finished)
    assert found["facts"] == {"device": "cpu", "precision": "float32", "batch": 1}
    for well, made in found["artefacts"].items():
        labels = read_record(finished / f"results/plates/P1/segmentation/{well}.parquet")
        assert labels["fingerprint"] == made
        assert labels["inputs"]["network"] == record["artefacts"]["network"]
    assert read_screen(finished)["screen"]["training"].state == "done"


def test_a_second_run_does_nothing(again):
    stamp = (again / TRAINED).stat().st_mtime_ns
    run_stages(again, UNTIL)
    assert trained_in(again)["computed"] == [] == segmented_in(again)["computed"]
    assert (again / TRAINED).stat().st_mtime_ns == stamp


def test_training_that_was_killed_goes_on_and_ends_as_if_nothing_had_been(fresh, finished, monkeypatch):
    class Killed(BaseException):
        pass

    write, written = training.write_bytes, []

    def kill_at_the_third(path, data):
        write(path, data)
        written.append(path)
        if len(written) == 3:
            raise Killed

    monkeypatch.setattr(training, "write_bytes", kill_at_the_third)
    with pytest.raises(Killed):
        run_stages(fresh, UNTIL)
    assert trained_in(fresh) is None and segmented_in(fresh) is None and not (fresh / TRAINED).exists()
    monkeypatch.setattr(training, "write_bytes", write)
    run_stages(fresh, UNTIL)
    assert trained_in(fresh)["facts"]["resumed_after_step"] == 2
    assert trained_in(fresh)["artefacts"] == trained_in(finished)["artefacts"]
    for name, values in weights_of(finished).items():
        np.testing.assert_allclose(weights_of(fresh)[name], values, rtol=0, atol=1e-6, err_msg=name)
    assert not list((fresh / TRAINED).parent.glob(".work-*"))


@pytest.mark.parametrize("what", ["a label image", "an image", "a name", "the number of steps"])
def test_whatever_it_learns_from_trains_and_segments_anew(again, what):
    if what == "the number of steps":
        change_training(again, steps=2, validations=2)
    elif what == "a name":
        for folder in ("fields", "nuclei"):
            (again / folder / "f3.tif").rename(again / folder / "g3.tif")
    else:
        path = again / ("nuclei" if what == "a label image" else "fields") / "f1.tif"
        pixels = tifffile.imread(path)
        pixels[:12] = 0
        tifffile.imwrite(path, pixels)
    states = read_screen(again)
    assert "settings have changed" in states["screen"]["training"].reason
    assert states["plates"]["P1"]["segmentation"].waits_for == "training"
    before = trained_in(again)["artefacts"]
    run_stages(again, UNTIL)
    assert trained_in(again)["computed"] == ["network"] and trained_in(again)["artefacts"] != before
    assert segmented_in(again)["computed"] == ["A01", "A02"]


def test_a_file_that_is_only_touched_changes_nothing(again):
    before = settings_of(again, "training")
    (again / "nuclei/f1.tif").touch()
    assert settings_of(again, "training") == before


def test_wrong_annotations_are_a_fault_of_the_data_and_nothing_is_segmented(fresh):
    tifffile.imwrite(fresh / "nuclei/f2.tif", np.zeros((9, 9), np.uint8))
    run_stages(fresh, UNTIL)
    assert trained_in(fresh)["status"] == "failed" and "one pixel grid" in trained_in(fresh)["reason"]
    assert segmented_in(fresh)["status"] == "skipped" and "one pixel grid" in segmented_in(fresh)["reason"]
    states = read_screen(fresh)
    assert states["screen"]["training"].state == "quarantined"


def test_masks_are_refused_and_a_field_of_one_nucleus_is_not(fresh):
    paths = sorted((fresh / "nuclei").iterdir())
    labels = [tifffile.imread(path) for path in paths]
    lone = (labels[3] == 1).astype(np.uint8)
    lone[0, 0] = 1  # a slip of the brush
    for path, changed in zip(
        paths, [(labels[0] > 0) * np.uint8(255), (labels[1] > 0) * 1, labels[2] % 4, lone], strict=True
    ):
        tifffile.imwrite(path, changed.astype(np.uint8))
    with pytest.raises(ConfigError, match="label the connected parts first") as caught:
        read_pairs(fresh / "fields", fresh / "nuclei")
    assert len(caught.value.problems) == 3
    for path, told in zip(paths[:3], ("label 255 is in", "label 1 is in", "3 of 3 labels are in"), strict=True):
        assert any(str(path) in line and told in line for line in caught.value.problems), path
    halves = np.zeros((9, 30), np.uint8)
    halves[2:6, 2:8] = halves[2:6, 12:18] = 1  # it divides
    assert not explain_mask(halves) and explain_mask(halves * np.uint8(255))
    for path, whole in zip(paths[:3], labels, strict=False):
        tifffile.imwrite(path, whole)
    assert len(read_pairs(fresh / "fields", fresh / "nuclei")[1]) == 4


def test_a_network_that_was_altered_is_refused(again, monkeypatch):
    monkeypatch.chdir(again)
    made = trained_in(again)["artefacts"]["network"]
    assert check_network(made) == made
    with pytest.raises(ModelMismatchError, match="does not hold the network"):
        check_network("another")
    shutil.copyfile(SHIPPED, again / TRAINED)
    with pytest.raises(ModelMismatchError, match="was altered"):
        check_network(made)


def test_fields_that_change_while_a_run_goes_on_are_refused(fresh, monkeypatch):
    monkeypatch.chdir(fresh)
    settings = settings_of(fresh, "training")
    settings["content"]["labels"] = "others"
    training.train_segmenter(settings=settings, code="", record="record.json")
    assert "have changed since this run began" in read_json("record.json")["reason"]


# --- wanted or not ---------------------------------------------------------------------------------------------------


def test_a_screen_that_does_not_ask_for_it_knows_nothing_of_it(fresh):
    change(fresh, segmentation={"method": "watershed", "parameters": WATERSHED})
    screen = Screen(read_config(fresh).model_dump(mode="json"), fresh)
    assert "training" not in screen.stages() and screen.code("training") == ""
    assert set(screen.settings("segmentation")) == {"method", "parameters"}
    for page in ("report", "screen_report"):
        assert "training" not in screen.settings(page)["config"]["segmentation"]
    assert "train_segmenter" not in snakemake(fresh, "--dry-run").stdout


def test_one_that_does_is_planned_with_the_training_before_every_segmentation(fresh):
    screen = Screen(read_config(fresh).model_dump(mode="json"), fresh)
    assert screen.stages()[0] == "training"
    assert screen.settings("segmentation")["parameters"]["weights"] == TRAINED
    for page in ("report", "screen_report"):
        assert screen.settings(page)["config"]["segmentation"]["training"]["images"] == "fields"
    following = later("training", nearest_stages(screen.config))
    assert following >= {"segmentation", "features", "screen_report"} and STAGES["training"].after == ()
    frozen = json.loads(json.dumps(screen.freeze()))
    shutil.rmtree(fresh / "nuclei")
    kept = Screen({}, fresh, frozen=frozen)
    assert kept.settings("training") == screen.settings("training")
    assert kept.settings("segmentation") == screen.settings("segmentation")


def test_plates_are_not_complete_without_the_training_that_they_wait_for(again):
    for stage in ("quality", "flagging", "features", "profiling"):
        write_json(again / f"results/plates/P1/records/{stage}/part-0.json", {"status": "done"})
    settings = read_config(again).model_dump(mode="json") | {"complete_only": True}
    assert Screen(settings, again).complete_plates == ["P1"]
    record = again / "results/screen/records/training.json"
    record.unlink()
    assert Screen(settings, again).complete_plates == []
    change(again, segmentation={"method": "watershed", "parameters": WATERSHED})
    settings = read_config(again).model_dump(mode="json") | {"complete_only": True}
    assert Screen(settings, again).complete_plates == ["P1"]


def gpus_of(folder, stage):
    """What the rules ask for, by the function of theirs."""
    (source,) = re.findall(r"^def gpus_for.*?(?=^\w|\Z)", (ROOT / "rules/common.smk").read_text(), re.S | re.M)
    known = {"SCREEN": Screen(read_config(folder).model_dump(mode="json"), folder)}
    exec(source, known)
    return known["gpus_for"](stage)


@pytest.mark.parametrize("device", ["require", "prefer", "cpu"])
def test_networks_go_to_the_partition_of_gpus_unless_the_config_says_cpu(fresh, device):
    site = {"slurm_partition": "cpu", "slurm_gpu_partition": "gpu"}
    found = {}
    for method, parameters in (("unet", {}), ("watershed", WATERSHED)):
        change(fresh, segmentation={"method": method, "parameters": parameters}, engine={"device": device})
        asked = {"log": ["logs/a.log"], "threads": 2, "resources": site | {"gpu": gpus_of(fresh, "segmentation")}}
        found[method] = [option for option in slurm_command(asked, "a") if re.match("--(partition|gres)", option)]
    assert found["watershed"] == ["--partition=cpu"]
    assert found["unet"] == (["--partition=cpu"] if device == "cpu" else ["--partition=gpu", "--gres=gpu:1"])
    assert gpus_of(fresh, "training") == (device != "cpu")
    for rule, stage in (("segmentation", "segmentation"), ("training", "training")):
        assert f'gpu=gpus_for("{stage}")' in (ROOT / f"rules/{rule}.smk").read_text()


def test_mistakes_are_named_before_anything_is_planned(fresh):
    config = {"channels": {"DNA": {"source": "1"}}}
    asked = {"images": "fields", "labels": "nuclei"}

    def refused(match, **segmentation):
        with pytest.raises(ConfigError, match=match):
            load_config(config | {"segmentation": segmentation})

    refused("segmentation.method is watershed", training=asked)
    refused("no folder of label images", method="unet", training={"images": "fields"})
    refused("given without images", method="unet", training={"labels": "nuclei"})
    refused("leave it out", method="unet", parameters={"weights": "x.safetensors"}, training=asked)
    refused("Did you mean 'steps'", method="unet", training=asked | {"step": 3})
    (fresh / "nuclei/f0.tif").unlink()
    problems, _ = find_problems(fresh, files=False)
    assert any("segmentation.training" in problem and "has no 'f0'" in problem for problem in problems)
    shutil.rmtree(fresh / "nuclei")
    change_training(fresh, start="none.safetensors")
    problems, _ = find_problems(fresh, files=False)
    assert any("no folder" in problem for problem in problems)
    assert any("training.start: no weights at 'none.safetensors'" in problem for problem in problems)
    with pytest.raises(ConfigError, match="no folder"):
        settings_of(fresh, "segmentation")


# --- with Snakemake --------------------------------------------------------------------------------------------------


def planned(folder):
    """Names of the rules that a dry run up to the labels would run."""
    stats = snakemake(folder, "--dry-run", "--until", "segment_plate").stdout.split("Job stats:")[-1].split("total")[0]
    return set(re.findall(r"^(\w+)\s+\d+$", stats, re.M)) - {"job"}


@pytest.mark.slow
def test_snakemake_trains_first_and_a_changed_label_trains_again(fresh):
    snakemake(fresh, "--until", "segment_plate")
    assert trained_in(fresh)["status"] == "done" and segmented_in(fresh)["status"] == "done"
    assert trained_in(fresh)["log"] == "logs/train_segmenter.log" and (fresh / "logs/train_segmenter.log").exists()
    assert planned(fresh) == set()
    pixels = tifffile.imread(fresh / "nuclei/f1.tif")
    pixels[:12] = 0
    tifffile.imwrite(fresh / "nuclei/f1.tif", pixels)
    assert planned(fresh) == {"train_segmenter", "segment_plate"}
