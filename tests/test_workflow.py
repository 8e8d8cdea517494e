"""The spine, through Snakemake: nothing runs twice, a change reruns what it affects, a killed job goes on where it was."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import ROOT, TRUNCATED, WITHOUT_GFP, copy_project, edit, snakemake

from plateloom.engine import locks
from plateloom.stages.illumination import choose_fields
from plateloom.store.provenance import read_json
from plateloom.store.tables import read_table

AFTER_FEATURES = {
    "measure_features",
    "profile_plate",
    "profile_screen",
    "profile_latents",
    "compare_spaces",
    "fit_map",
    "map_plate",
    "train_classifier",
    "classify_plate",
    "report_plate",
    "report_screen",
}
AFTER_SEGMENTATION = AFTER_FEATURES | {"segment_plate", "train_autoencoder", "encode_plate"}
WELLS = [f"{row}{column:02d}" for row in "ABC" for column in range(1, 5)]
ELSE = [well for well in WELLS if well not in (WITHOUT_GFP, TRUNCATED)]
LATE = next(well for well in ELSE[1:] if (well, 1) not in choose_fields([(well, 1) for well in ELSE], 6))
PART_STAGES = {
    "conversion": "fields",
    "quality": "quality",
    "segmentation": "segmentation",
    "features": "features",
    "latent": "latent",
    "maps": "maps",
    "classes": "classes",
}


@pytest.fixture(scope="module")
def finished(raw_screen, once):
    """The small screen, run whole, but for the images of one well that come late; copy it, do not change it."""

    def make(folder):
        shutil.copytree(raw_screen, folder, copy_function=shutil.copy2)
        (folder / "late").mkdir()
        for path in (folder / "raw/P1").glob(f"{LATE}_*"):
            shutil.move(path, folder / "late" / path.name)
        snakemake(folder)

    return once("finished", make)


@pytest.fixture
def again(finished, tmp_path):
    """A copy of the finished screen, times kept, to change and run again."""
    shutil.copytree(finished, tmp_path / "screen", copy_function=shutil.copy2)
    return tmp_path / "screen"


def planned(folder, *options, project=ROOT):
    """Names of the rules that a dry run would run."""
    found = snakemake(folder, "--dry-run", *options, project=project).stdout
    if "Nothing to be done" in found:
        return set()
    stats = found.split("Job stats:")[-1].split("total")[0]
    return set(re.findall(r"^(\w+)\s+\d+$", stats, re.M)) - {"all", "job"}


def record_of(folder, stage, part=0, plate="P1"):
    return read_json(folder / f"results/plates/{plate}/records/{stage}/part-{part}.json")


def bytes_of(folder, *patterns):
    """Digest of every file, by its path below the folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.mark.slow
def test_snakemakes_own_report_and_summary_work(again, tmp_path):
    snakemake(again, "--report", str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").stat().st_size > 100_000
    rows = snakemake(again, "--dry-run", "--summary").stdout.splitlines()
    rows = [line.split("\t") for line in rows if line.startswith("results/")]
    assert {row[0] for row in rows} >= {
        str(path.relative_to(again)) for path in again.glob("results/**/records/**/*.json")
    }
    assert {row[-1] for row in rows} == {"no update"}


def test_every_stage_is_done_and_leaves_what_the_layout_names(finished):
    plate = finished / "results/plates/P1"
    assert {path.parent.name for path in plate.glob("records/*/part-0.json")} == {
        *PART_STAGES,
        "assembly",
        "illumination",
        "flagging",
        "profiling",
        "latent_profiling",
        "report",
    }
    for path in finished.glob("results/**/records/**/*.json"):
        assert read_json(path)["status"] == "done", path
    logs = [path.read_text() for path in finished.glob("logs/**/*.log")]
    assert logs and not any("distributed" in text or "Traceback" in text for text in logs), "a log tells what matters"
    for name in (
        "qc.parquet",
        "profiles.parquet",
        "report.html",
        "plate.zarr/zarr.json",
        "illumination.zarr/zarr.json",
    ):
        assert (plate / name).exists()
    shares = read_table(plate / "class_shares.parquet").dropna()  # of wells without cells
    assert ((shares["low"] <= shares["share"]) & (shares["share"] <= shares["high"])).all() and len(shares)
    for name in ("profiles.parquet", "hits.parquet", "report.html", "models/autoencoder/model.safetensors"):
        assert (finished / "results/screen" / name).exists()
    cells = read_table(plate / "features/A01.parquet")
    for kind in ("latent", "maps", "classes"):
        keys = ["Metadata_Field", "Metadata_ObjectNumber"]
        assert cells[keys].equals(read_table(plate / kind / "A01.parquet")[keys])


def test_a_truncated_field_is_a_row_with_its_reason_and_an_empty_table_with_every_column(finished):
    plate = finished / "results/plates/P1"
    fields = read_table(plate / f"fields/{TRUNCATED}.parquet")
    assert set(fields["Status"]) == {"failed"} and fields["Reason"].str.contains(f"{TRUNCATED}_s1_w1.tif").any()
    empty, other = (read_table(plate / f"features/{well}.parquet") for well in (TRUNCATED, "A01"))
    assert len(empty) == 0 and list(empty.columns) == list(other.columns)
    profile = read_table(plate / "aggregates.parquet").set_index("Metadata_Well").loc[TRUNCATED]
    assert profile["Metadata_CellCount"] == 0 and np.isnan(profile["Nuclei_AreaShape_Area"])
    assert TRUNCATED in [failure["well"] for failure in record_of(finished, "conversion")["failures"]]


def test_a_missing_channel_gives_nan_never_zero(finished):
    cells = read_table(finished / f"results/plates/P1/features/{WITHOUT_GFP}.parquet")
    lacking = [name for name in cells if "GFP" in name]
    present = [name for name in cells if name.startswith("Nuclei_Intensity") and "GFP" not in name]
    assert len(cells) and len(lacking) > 50
    assert cells[lacking].isna().all(axis=None) and cells[present].notna().all(axis=None)
    latent = read_table(finished / f"results/plates/P1/latent/{WITHOUT_GFP}.parquet")
    assert len(latent) == len(cells) and latent.filter(like="Latent_").isna().all(axis=None)


def test_nothing_runs_again_for_a_fresh_clone_a_comment_or_how_jobs_run(again, tmp_path):
    project = copy_project(tmp_path / "project")
    for path in project.rglob("*.py"):
        path.touch()
    module = project / "plateloom/features/intensity.py"
    module.write_text("# a comment is no change\n" + module.read_text())
    edit(again, lambda settings: settings["engine"].update(kind="processes", tasks_per_worker=5, tile_px=128))
    assert planned(again, project=project) == set()


def test_one_line_of_a_feature_module_reruns_features_and_what_follows(again, tmp_path):
    project = copy_project(tmp_path / "project")
    module = project / "plateloom/features/intensity.py"
    module.write_text(module.read_text() + "\nTOUCHED = True\n")
    assert planned(again, project=project) == AFTER_FEATURES


def test_one_parameter_reruns_its_stage_and_what_follows(again):
    edit(again, lambda settings: settings["segmentation"]["parameters"].update(nucleus_diameter_um=13))
    assert planned(again) == AFTER_SEGMENTATION


def test_another_encoder_in_a_copy_of_the_screen_reruns_what_follows_from_it_and_nothing_else(again):
    """What `plateloom compare` rests on."""
    edit(again, lambda settings: settings["latent"]["autoencoder"].update(method="contrastive"))
    encoding = {"train_autoencoder", "encode_plate", "profile_latents", "compare_spaces"}
    assert planned(again) == encoding | {"report_plate", "report_screen"}


def test_records_that_were_lost_on_the_way_are_made_again_though_the_report_is_there(again):
    for stage in ("segmentation", "flagging"):
        (again / f"results/plates/P1/records/{stage}/part-0.json").unlink()
    assert {"segment_plate", "flag_fields"} <= planned(again)


def test_late_images_of_one_well_recompute_that_well_only(again):
    before = bytes_of(again, "results/plates/P1/features/*.parquet")
    for path in (again / "late").iterdir():
        shutil.move(path, again / "raw/P1" / path.name)
    assert "convert_plate" in planned(again)
    snakemake(again, "--until", "measure_features", "measure_quality")
    for stage in ("conversion", "quality", "segmentation", "features"):
        assert record_of(again, stage)["computed"] == [LATE], stage
    assert record_of(again, "illumination")["kept"] == ["illumination"]
    after = bytes_of(again, "results/plates/P1/features/*.parquet")
    assert {name: digest for name, digest in after.items() if LATE not in name} == before
    assert len(after) == len(before) + 1


def run_and_kill(folder, target, seen):
    """Start a run, and end driver and job with SIGKILL as soon as `seen` says so."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    process = subprocess.Popen(
        [*command, "--cores", "2", target],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    )
    deadline = time.monotonic() + 900
    while not seen() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_job_that_is_killed_with_its_driver_goes_on_at_the_wells_that_are_done(again):
    folder = again / "results/plates/P1"
    expected = bytes_of(folder, "segmentation/*.parquet", "plate.zarr/**/*")
    shutil.rmtree(folder / "segmentation")
    target = "results/plates/P1/records/segmentation/part-0.json"
    (again / target).unlink()

    def tables():
        return sorted(path.stem for path in (folder / "segmentation").glob("[!.]*.parquet"))

    run_and_kill(again, target, lambda: len(tables()) >= 2)
    done = tables()
    assert 2 <= len(done) < len(ELSE), "killed too late to prove anything"
    assert not (again / target).exists()
    snakemake(again, target)
    record = record_of(again, "segmentation")
    assert record["kept"] == done
    assert record["computed"] == sorted({path.stem for path in (folder / "segmentation").glob("*.parquet")} - set(done))
    assert bytes_of(folder, "segmentation/*.parquet", "plate.zarr/**/*") == expected


@pytest.mark.slow
def test_killed_training_resumes_from_its_checkpoint(again):
    from safetensors.numpy import load_file

    folder = again / "results/screen/models/autoencoder"
    expected = load_file(folder / "model.safetensors")
    for path in folder.iterdir():
        path.unlink()
    target = "results/screen/records/autoencoder.json"
    (again / target).unlink()
    run_and_kill(again, target, lambda: list(folder.glob(".work-*/checkpoint.safetensors")))
    assert not (folder / "model.json").exists(), "killed too late to prove anything"
    snakemake(again, target)
    record = read_json(again / target)
    assert record["facts"]["resumed_after_epoch"] >= 1 and record["facts"]["epochs"] == 3
    found = load_file(folder / "model.safetensors")
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_every_job_killed_once_and_retried_ends_as_if_nothing_had_been(again):
    """But the training, which a test of its own kills: what it gives is only as good as equal."""
    results = again / "results"
    of_wells = {f"plates/P1/records/{stage}/part-0": kind for stage, kind in PART_STAGES.items()}
    records = {path.relative_to(results).with_suffix("").as_posix() for path in results.glob("**/records/**/*.json")}
    others = records - of_wells.keys() - {"screen/records/autoencoder"}
    patterns = ("plates/**/*.parquet", "plates/**/*.html", "plates/P1/*.zarr/**/*", "screen/**/*")
    expected = {name: digest for name, digest in bytes_of(results, *patterns).items() if "/records/" not in name}
    shutil.rmtree(results / "plates")
    for path in results.glob("screen/**/*"):
        if path.is_file() and "autoencoder" not in str(path):
            path.unlink()
    done, over = {}, threading.Event()

    def kill_first_attempts():
        while not over.wait(0.002):
            for record in (of_wells.keys() | others) - done.keys():
                folder, name = f"{results / record}".rsplit("/", 1)
                said = locks.read(f"{folder}/.{name}.lock")
                if said.get("attempts") == 1 and (record in others or said.get("done", 0) >= 2):
                    os.kill(said["process"], signal.SIGKILL)
                    tables = results.glob(f"plates/P1/{of_wells.get(record)}/[!.]*.parquet")
                    done[record] = sorted(path.stem for path in tables)

    killer = threading.Thread(target=kill_first_attempts)
    killer.start()
    try:
        snakemake(again, "--retries", "2")
    finally:
        over.set()
        killer.join()
    assert done.keys() == of_wells.keys() | others
    for record in done:
        found = read_json(results / f"{record}.json")
        assert found["status"] == "done" and found["attempts"] == 2, record
        if record in of_wells:
            wells = sorted(path.stem for path in results.glob(f"plates/P1/{of_wells[record]}/*.parquet"))
            assert 2 <= len(done[record]) < len(wells), f"{record} was killed too late to prove anything"
            assert found["kept"] == done[record] and found["computed"] == sorted(set(wells) - set(done[record]))
    found = bytes_of(results, *patterns)
    assert {name: digest for name, digest in found.items() if "/records/" not in name} == expected
    assert len(expected) > 100


@pytest.mark.slow
def test_results_do_not_depend_on_parts_workers_threads_or_tiles(finished, tmp_path):
    from pandas.testing import assert_frame_equal
    from safetensors.numpy import load_file

    folder = tmp_path / "screen"
    folder.mkdir()
    for name in ("raw", "maps"):
        shutil.copytree(finished / name, folder / name, copy_function=shutil.copy2)
    for name in ("config.yaml", "plates.tsv", "labels.tsv"):
        shutil.copyfile(finished / name, folder / name)

    def change(settings):
        settings["parts"] = 2
        settings["engine"] = {"kind": "processes", "tasks_per_worker": 1, "tile_px": 160}
        settings["segmentation"]["parameters"]["nucleus_diameter_um"] = 12.0

    edit(folder, change)
    threads = {name: 3 for name in ("convert_plate", "segment_plate", "encode_plate", "classify_plate")}
    threads |= {name: 1 for name in ("measure_quality", "measure_features", "train_autoencoder", "map_plate")}
    threads |= {name: 3 for name in ("fit_map", "train_classifier")}
    snakemake(folder, "--cores", "3", "--set-threads", *(f"{name}={count}" for name, count in threads.items()))
    patterns = ("plates/P1/*/*.parquet", "plates/P1/*.parquet", "plates/P1/*.zarr/**/*", "screen/**/*")
    found, expected = (bytes_of(where / "results", *patterns) for where in (folder, finished))
    assert len(found) > 150 and found.keys() == expected.keys()
    unlike = {name for name in found if found[name] != expected[name]}
    trained = "screen/models/autoencoder/"
    pages = {name for name in unlike if name.endswith(".html") or "/records/" in name}  # say how it was run
    tables = {name for name in unlike if name.endswith(".parquet")}
    assert unlike - pages - tables <= {
        trained + name for name in ("model.safetensors", "model.json", "examples.safetensors")
    }
    networks = [load_file(where / "results" / trained / "model.safetensors") for where in (folder, finished)]
    for name, values in networks[1].items():
        np.testing.assert_allclose(networks[0][name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    for name in (
        tables
    ):  # of latents, within what training leaves; else only the records that they are made from have other names
        one, other = (read_table(where / "results" / name) for where in (folder, finished))
        latents = [column for column in one if column.startswith("Latent_")]
        assert_frame_equal(one.drop(columns=latents), other.drop(columns=latents), check_exact=True)
        assert_frame_equal(one[latents], other[latents], rtol=1e-4, atol=1e-5)
    assert {name.split("/")[-2] for name in tables} == {"latent", "P1", "screen"}
    record = record_of(folder, "segmentation", part=1)
    assert len(record["cluster"]["workers"]) == 3 and record["cluster"]["peak_in_flight"] <= 3
    assert len(record_of(folder, "features", part=1)["cluster"]["workers"]) == 1
    records = [read_json(where / "results/screen/records/autoencoder.json") for where in (folder, finished)]
    assert [record["threads"] for record in records] == [1, 2]


def test_there_are_no_more_jobs_than_parts_times_stages(screen):
    edit(screen, lambda settings: settings.update(parts=3))
    found = snakemake(screen, "--dry-run").stdout
    jobs = int(re.search(r"^total\s+(\d+)", found, re.M)[1])
    of_plate, of_screen = 6, 6
    assert jobs == 3 * len(PART_STAGES) + of_plate + of_screen + 1


def test_a_second_driver_is_told_who_holds_the_screen(screen):
    with locks.hold(screen / ".plateloom.lock", wait=False):
        found = snakemake(screen, "--until", "convert_plate", check=False)
    assert found.returncode != 0
    assert f"process {os.getpid()}" in found.stdout
    assert not (screen / "results").exists()


def test_a_wrong_setting_stops_everything_before_it_starts(screen):
    with open(screen / "config.yaml", "a") as file:
        file.write("segmentaton: {method: watershed}\n")
    found = snakemake(screen, "--dry-run", check=False)
    assert found.returncode != 0
    assert "segmentaton: unknown setting. Did you mean 'segmentation'?" in found.stdout


def test_records_are_json_that_anyone_reads(finished):
    def refuse(name):
        raise ValueError(name)

    for path in finished.glob("results/**/records/**/*.json"):
        json.loads(path.read_text(), parse_constant=refuse)
