"""Nights without a person: what is taken from the inbox and what is not, and that any end of a night leaves the next one right."""

import dataclasses
import hashlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, simulate
from in_process import run_stages
from layouts import harmony, imagexpress, ome_tiff, ome_zarr, yokogawa
from test_run import COMMAND, Records, job_is_under_way, plateloom, wait_for
from test_shift import controls

from plateloom import inbox, nights
from plateloom.classification.shift import find_shift
from plateloom.cli import nightly, run
from plateloom.config import load_config, read_config
from plateloom.engine import locks
from plateloom.errors import ConfigError
from plateloom.planning import STAGES, Screen, list_plates
from plateloom.readers import load_reader
from plateloom.stages.report import _shift_notice

MANY = 3 * 6  # files of a plate


@pytest.fixture(scope="module")
def arrived(tmp_path_factory):
    """A screen without a plate, and an inbox with three; copy them, do not change them."""
    root = tmp_path_factory.mktemp("arrived")
    folder = simulate(root / "screen", plates=("P1", "P2", "P3"), rows=2, columns=3, size_px=160, cells_per_field=6.0)
    (folder / "raw").rename(root / "inbox")
    (folder / "plates.tsv").unlink()
    change(folder, settle_minutes=0, name="(?P<plate>P[0-9]+)")
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["latent"]["autoencoder"] = {"enabled": False}
    settings["classification"] = {"labels": ""}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return root


@pytest.fixture
def place(arrived, tmp_path):
    """A copy of screen and inbox; nothing is run but what a test says."""
    shutil.copytree(arrived, tmp_path / "place", copy_function=shutil.copy2)
    return tmp_path / "place"


@pytest.fixture
def idle(monkeypatch):
    """Instead of Snakemake nothing runs; what it was asked is kept."""
    asked = []
    monkeypatch.setattr(run, "run_group", lambda arguments: asked.append(arguments) or 0)
    return asked


def change(folder, **settings):
    """Change settings of the nights of a screen."""
    path = folder / "config.yaml"
    found = yaml.safe_load(path.read_text())
    found["nightly"] = found.get("nightly", {}) | settings
    path.write_text(yaml.safe_dump(found))


def night(place, *options):
    """One night in this process: exit code, all that was said, and the new summary's line and page."""
    before = summaries(place)
    code, text = plateloom("nightly", place / "screen", "--inbox", place / "inbox", *options)
    (stem,) = summaries(place) - before or {None}
    if stem is None:
        return code, text, "", ""
    folder = place / "screen/results/nights"
    return code, text, (folder / f"{stem}.txt").read_text(), (folder / f"{stem}.html").read_text()


def summaries(place):
    return {path.stem for path in (place / "screen/results/nights").glob("*.html")}


def registered(place):
    """Names of the plates of a screen; its list must be right."""
    path = place / "screen/plates.tsv"
    plates, problems = list_plates(path) if path.exists() else ([], [])
    assert problems == []
    return [plate.plate for plate in plates]


def look(place, **options):
    """Look at the inbox once more; arrivals by the names of their folders."""
    folder = place / "screen"
    state = inbox.read_state(folder)
    found = inbox.look(folder, read_config(folder), [place / "inbox"], state, **options)
    inbox.write_state(folder, state)
    return {one.source.name: one for one in found}


def look_twice(place, **options):
    look(place, **options)
    return look(place, **options)


def measured_bytes(folder):
    """Digests of what a plate has of its own: neither its page nor its cells' places on the screen's map."""
    paths = [path for pattern in ("plate.zarr/**/*", "features/*", "*.parquet") for path in folder.glob(pattern)]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()
    }


# Three nights


@pytest.mark.slow
def test_three_nights(place, monkeypatch):
    """New plates, one that is still copied, a broken one; then the rest and what was mended; then a re-imaged plate."""
    screen, box, aside = place / "screen", place / "inbox", place / "aside"
    monkeypatch.setattr(run, "run_group", lambda arguments: run_stages(screen) or 0)
    change(screen, files=MANY)
    aside.mkdir()
    for name in sorted(path.name for path in (box / "P2").iterdir())[7:]:
        (box / "P2" / name).rename(aside / name)
    whole = {path.name: path.read_bytes() for path in (box / "P3").iterdir()}
    for name in whole:
        (box / "P3" / name).write_bytes(whole[name][:100])
    (box / "notes").mkdir()
    (box / "notes/P9.txt").write_text("no plate")

    code, text, line, page = night(place)
    assert code == 3, text
    assert registered(place) == ["P1", "P3"]
    assert (
        "finished 1 (P1); new 2 (P1, P3); waiting 1 (P2); not taken 1 (notes)" in line and "quarantined 1 (P3)" in line
    )
    assert line.endswith("exit 3\n") and line.count("\n") == 1
    assert "7 of 18 image files (nightly.files)" in page and "nothing in &#39;notes&#39;" in page
    assert 'href="../plates/P1/report.html"' in page and 'href="../plates/P3/report.html"' in page
    table, first = (screen / "plates.tsv").read_bytes(), measured_bytes(screen / "results/plates/P1")
    assert len(first) > 20

    shutil.rmtree(box / "notes")
    for path in list(aside.iterdir()):
        path.rename(box / "P2" / path.name)
    for name, data in whole.items():
        (box / "P3" / name).write_bytes(data)
    shutil.copytree(box / "P1", box / "P1_again")
    code, text, line, page = night(place)
    assert code == 3, text
    assert registered(place) == ["P1", "P3", "P2"]
    assert (screen / "plates.tsv").read_bytes().startswith(table), "rows that are there stay as they are"
    assert "finished 2 (P3, P2); new 1 (P2); not taken 1 (P1)" in line and "quarantined" not in line
    assert "inbox/P1&#39; and by" in page and "P1_again&#39;" in page and "--acquisition P1_again=2" in page

    code, text, line, page = night(place, "--acquisition", "P1_again=2")
    assert code == 0, text
    assert registered(place) == ["P1", "P3", "P2", "P1-acquisition2"]
    assert "Everything is complete. finished 1 (P1-acquisition2); new 1 (P1-acquisition2)" in line
    assert measured_bytes(screen / "results/plates/P1") == first, "the first acquisition is not touched"
    assert set(Screen(read_config(screen).model_dump(mode="json"), screen).plates) == set(registered(place))

    code, text, line, page = night(place)
    assert code == 0 and "finished 0" in line and "new" not in line
    today = min(summaries(place), key=len)
    assert summaries(place) == {today, f"{today}-2", f"{today}-3", f"{today}-4"}, "a night does not hide another"


@pytest.mark.slow
def test_a_night_through_snakemake_ends_with_everything_done(place):
    code, text, line, page = night(place, "--cores", "2")
    assert code == 0, text
    assert registered(place) == ["P1", "P2", "P3"] and "finished 3 (P1, P2, P3)" in line
    code, text, line, page = night(place, "--cores", "2")
    assert code == 0 and "finished 0" in line


# When is a plate whole?


def test_a_folder_is_taken_when_two_looks_some_time_apart_find_the_same_files(place):
    change(place / "screen", settle_minutes=10)
    assert {one.state for one in look(place, now=1000.0).values()} == {inbox.SETTLING}
    assert {one.state for one in look(place, now=1000.0 + 599).values()} == {inbox.SETTLING}
    with open(place / "inbox/P2" / "A01_s1_w1.tif", "ab") as file:
        file.write(b"more")
    found = look(place, now=1000.0 + 600)
    assert {name: one.state for name, one in found.items()} == {
        "P1": inbox.COMPLETE,
        "P2": inbox.SETTLING,
        "P3": inbox.COMPLETE,
    }
    assert found["P2"].since == 1000.0 and found["P2"].unchanged == 1600.0


@pytest.mark.parametrize("what", ["name", "size", "time"])
def test_a_look_notices_names_sizes_and_times(place, what):
    look(place)
    path = place / "inbox/P1/A01_s1_w1.tif"
    if what == "name":
        (path.parent / "thumbs.db").touch()
    elif what == "size":
        path.write_bytes(path.read_bytes() + b"0")
    else:
        os.utime(path, ns=(1, 1))
    found = look(place)
    assert found["P1"].state == inbox.SETTLING and found["P2"].state == inbox.COMPLETE


def test_a_plate_waits_for_its_end_marker_however_long_it_takes(place):
    change(place / "screen", end_marker="*.finished")
    (place / "inbox/P2/done").mkdir()
    (place / "inbox/P2/done/x.finished").touch()
    look(place, now=0.0)
    found = look(place, now=1e8)
    assert found["P2"].state == inbox.COMPLETE
    assert found["P1"].state == inbox.WAITING and "no file '*.finished' (nightly.end_marker)" in found["P1"].reason


def test_a_plate_that_lacks_files_is_taken_as_it_is_when_none_has_come_for_long(place):
    change(place / "screen", files=MANY + 1, patience_hours=2)
    look(place, now=0.0)
    found = look(place, now=7000.0)["P1"]
    assert found.state == inbox.WAITING and found.reason == "18 of 19 image files (nightly.files)"
    assert look(place, now=7300.0)["P1"].state == inbox.COMPLETE


def test_an_empty_folder_waits(place):
    (place / "inbox/P4").mkdir()
    found = look_twice(place)["P4"]
    assert found.state == inbox.WAITING and found.reason == "the folder is empty"


PLANES = {
    (well, 1, channel, 1, 1): np.full((32, 32), 100 * channel, np.uint16)
    for well in ("A01", "A02")
    for channel in (1, 2)
}
GONE = ("A02", 1, 2, 1, 1)


@pytest.mark.parametrize(
    "reader, write, options, plate",
    [
        ("harmony", harmony.write, {"absent": [GONE]}, "Plate 1"),
        ("yokogawa", yokogawa.write, {"absent": [GONE]}, "PLATE"),
    ],
)
def test_readers_tell_what_metadata_declare_and_the_folder_lacks(tmp_path, reader, write, options, plate):
    module = load_reader(reader)
    for folder, more, absent in (("whole", {}, 0), ("part", options, 1)):
        write(tmp_path / folder, PLANES, **more)
        found = module.scan(tmp_path / folder, module.Params())
        assert (found.plate, found.absent) == (plate, absent)


def test_ome_metadata_tell_what_a_plate_lacks(tmp_path):
    ome_tiff.write(tmp_path / "tiff", PLANES)
    ome_zarr.write(tmp_path / "zarr", PLANES)
    for name, folder in (("ome_tiff", "tiff"), ("ome_zarr", "zarr")):
        module = load_reader(name)
        assert module.scan(tmp_path / folder, module.Params()).absent == 0
    min((tmp_path / "tiff").rglob("*.tif")).unlink()
    shutil.rmtree(tmp_path / "zarr/A/2")
    for name, folder in (("ome_tiff", "tiff"), ("ome_zarr", "zarr")):
        module = load_reader(name)
        assert module.scan(tmp_path / folder, module.Params()).absent == 1, name


def test_the_htd_tells_what_an_imagexpress_plate_lacks(tmp_path):
    imagexpress.write(tmp_path, PLANES)
    module = load_reader("imagexpress")
    found = module.scan(tmp_path, module.Params())
    assert found.absent == 0 and found.plate
    next(tmp_path.rglob("*A02*_w2.TIF")).unlink()
    assert module.scan(tmp_path, module.Params()).absent == 1


@pytest.fixture
def operetta(place):
    """The inbox holds one plate of an Operetta, of which a declared plane is not there; the config asks for its channels."""
    shutil.rmtree(place / "inbox")
    harmony.write(place / "inbox/measurement 7", PLANES, absent=[GONE])
    path = place / "screen/config.yaml"
    settings = yaml.safe_load(path.read_text())
    settings |= {"channels": {"DNA": {"source": "DNA"}, "GFP": {"source": "GFP"}}, "readers": {}}
    settings["segmentation"] = {"parameters": {"nuclei_channel": "DNA"}}
    settings["profiling"], settings["nightly"] = {}, {"settle_minutes": 0, "barcode": True, "plate_map": ""}
    path.write_text(yaml.safe_dump(settings))
    return place


def test_what_metadata_declare_is_waited_for_and_the_barcode_names_the_plate(operetta):
    look(operetta, now=0.0)
    found = look(operetta, now=3600.0)["measurement 7"]
    assert found.state == inbox.WAITING and found.reason.startswith("1 planes that the microscope's metadata declare")
    found = look(operetta, now=49 * 3600.0)["measurement 7"]
    assert (found.state, found.name, found.reader) == (inbox.COMPLETE, "Plate_1", "harmony")
    assert "1 planes" in found.reason, "taken as it is, and said so"


def test_the_microscopes_own_end_marker_is_waited_for(operetta):
    shutil.rmtree(operetta / "inbox")
    yokogawa.write(operetta / "inbox/plate", PLANES, ended=False)
    path = operetta / "screen/config.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["channels"] = {"DNA": {"source": "1"}, "GFP": {"source": "2"}}
    path.write_text(yaml.safe_dump(settings))
    found = look_twice(operetta)["plate"]
    assert found.state == inbox.WAITING and "end marker" in found.reason
    settings["engine"]["end_marker"] = False
    path.write_text(yaml.safe_dump(settings))
    assert look(operetta)["plate"].state == inbox.COMPLETE


# What is refused


def test_a_folder_that_cannot_be_a_plate_is_refused_and_said_why(place):
    box = place / "inbox"
    (box / "P4").mkdir()
    (box / "P4/a.tif").write_bytes(b"II*\0")
    (box / "P5").mkdir()
    for path in (box / "P1").glob("*_w1.tif"):
        shutil.copy2(path, box / "P5" / path.name)
    (box / "P\t6").mkdir()
    (box / "P\t6/x.tif").touch()
    (box / ".P7").mkdir()
    found = look_twice(place)
    assert {name for name, one in found.items() if one.state == inbox.REFUSED} == {"P4", "P5", "P\t6"}
    assert "knows its layout" in found["P4"].reason or "says" in found["P4"].reason
    assert "of the config are in no file" in found["P5"].reason
    assert look(place)["P5"].reason == found["P5"].reason, "it is told every night"


def test_two_folders_that_claim_a_plate_are_both_named_and_neither_is_taken(place):
    shutil.copytree(place / "inbox/P1", place / "inbox/P1-b")
    found = look_twice(place)
    for one, other in (("P1", "P1-b"), ("P1-b", "P1")):
        assert found[one].state == inbox.REFUSED
        assert str(found[one].source) in found[one].reason and str(found[other].source) in found[one].reason
    assert found["P2"].state == inbox.COMPLETE
    found = look(place, acquisitions={(place / "inbox/P1-b").resolve(): 2})
    assert found["P1"].state == inbox.COMPLETE and found["P1-b"].name == "P1-acquisition2"
    assert look(place)["P1-b"].name == "P1-acquisition2", "the number is remembered"


def test_an_acquisition_stands_in_the_name_where_the_pattern_says_so(place):
    change(place / "screen", name=r"(?P<plate>P\d)(__m(?P<acquisition>\d))?(~(?P<batch>.+))?")
    shutil.copytree(place / "inbox/P1", place / "inbox/P1__m2~may")
    found = look_twice(place)["P1__m2~may"]
    assert (found.name, found.batch, found.state) == ("P1-acquisition2", "may", inbox.COMPLETE)


def test_a_missing_or_wrong_map_is_that_plates_own_affair(place, idle):
    (place / "screen/maps/P1.tsv").unlink()
    (place / "screen/maps/P2.tsv").write_text("well\ttreatment\nZ99\tx\n")
    code, text, line, page = night(place)
    assert code != 2 and registered(place) == ["P3"]
    assert "no plate map" in page and "maps/P2.tsv:2" in page
    change(place / "screen", plate_map=["maps/{plate}.tsv", ""])
    night(place)
    (place / "screen/maps/P2.tsv").write_text("well\ttreatment\nA01\tx\n")
    night(place)
    assert registered(place) == ["P3", "P1", "P2"]
    plates = inbox.read_registered(place / "screen", read_config(place / "screen"))
    assert [plate.plate_map for plate in plates] == ["maps/P3.tsv", "", "maps/P2.tsv"]


def test_an_inbox_that_is_not_mounted_stops_no_plate_that_is_there(place, idle):
    night(place)
    (place / "inbox").rename(place / "away")
    idle.clear()
    code, text, line, page = night(place)
    assert code == 1 and "cannot be listed" in page and len(idle) == 1, "though no plate was ever converted"
    assert "cannot be listed" in text.splitlines()[0], "said before anything runs"
    with pytest.raises(ConfigError, match="no folder"):
        run.check_screen(place / "screen")


# Rows of plates.tsv


@pytest.mark.parametrize(
    "before, after",
    [
        (b"", b"plate\tsource\treader\tplate_map\tbatch\tacquisition\nP9\t/b\tharmony\t\tb1\t2\n"),
        (b"# mine", b"# mine\nplate\tsource\treader\tplate_map\tbatch\tacquisition\nP9\t/b\tharmony\t\tb1\t2\n"),
        (b"plate\tsource\nP1\t/a", b"plate\tsource\treader\tbatch\tacquisition\nP1\t/a\nP9\t/b\tharmony\tb1\t2\n"),
        (
            b"\xef\xbb\xbf# c\r\nBatch,Source,Plate\r\n,/a,P1\r\n",
            b"\xef\xbb\xbf# c\r\nBatch,Source,Plate,reader,acquisition\r\n,/a,P1\r\nb1,/b,P9,harmony,2\r\n",
        ),
    ],
)
def test_rows_are_appended_as_the_table_is_and_what_is_there_stays(tmp_path, before, after):
    row = {"plate": "P9", "source": "/b", "reader": "harmony", "plate_map": "", "batch": "b1", "acquisition": "2"}
    assert inbox.append_rows(before, [row]) == after
    (tmp_path / "plates.tsv").write_bytes(after)
    plates, problems = list_plates(tmp_path / "plates.tsv")
    assert problems == [] and plates[-1].plate == "P9-acquisition2" and plates[-1].batch == "b1"


def test_a_wrong_table_is_refused_and_not_added_to(place, idle):
    path = place / "screen/plates.tsv"
    path.write_text("plate\tsource\nP1\tx\nP1\ty\n")
    code, text, line, page = night(place)
    assert code == 2 and "stands there twice" in text and "stands there twice" in page and not idle
    assert path.read_text() == "plate\tsource\nP1\tx\nP1\ty\n"
    path.unlink()
    night(place)
    assert "finished 0" in night(place)[2], "what could not be read was not taken for new"


# Killed at any moment


def _die_in(module, name, when, arguments):
    """Kill this process when it calls a function, before or after it has done its work."""
    work = getattr(module, name)

    def killing(*args, **options):
        if when == "before" or name == "replace" and "plates.tsv" in str(args):
            os.kill(os.getpid(), signal.SIGKILL)
        found = work(*args, **options)
        if when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(module, name, killing)
    plateloom(*arguments)


@pytest.mark.parametrize(
    "module, name, when, there",
    [
        (inbox, "digest_folder", "after", []),
        (inbox, "register", "before", []),
        (os, "replace", "in plates.tsv", []),
        (inbox, "register", "after", ["P1", "P2", "P3"]),
        (run, "run_group", "before", ["P1", "P2", "P3"]),
        (nights, "describe_night", "before", ["P1", "P2", "P3"]),
        (nights, "write_summary", "after", ["P1", "P2", "P3"]),
    ],
)
def test_after_a_kill_at_any_moment_the_next_night_is_right(place, idle, module, name, when, there):
    arguments = ("nightly", place / "screen", "--inbox", place / "inbox")
    child = multiprocessing.get_context("fork").Process(target=_die_in, args=(module, name, when, arguments))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert registered(place) == there, "the old table or the new one"
    code, text, line, page = night(place)
    assert registered(place) == ["P1", "P2", "P3"] and len(idle) == 1
    assert "new 3 (P1, P2, P3)" in line, "no summary had told it"
    assert not locks.is_held(place / "screen" / nightly.LOCK)


def test_an_interrupted_night_ends_whole_and_says_so(place):
    """The one night here that is run by Snakemake itself."""
    shutil.rmtree(place / "inbox/P2")
    shutil.rmtree(place / "inbox/P3")
    screen, said = place / "screen", place / "said.txt"
    with open(said, "w") as file:
        command = [*COMMAND, "nightly", str(screen), "--inbox", str(place / "inbox"), "--cores", "2"]
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, start_new_session=True)
    wait_for(lambda: job_is_under_way(screen) or process.poll() is not None)
    process.terminate()
    assert process.wait(timeout=900) == 143, said.read_text()
    assert not locks.is_held(screen / ".plateloom.lock") and not job_is_under_way(screen)
    (path,) = (screen / "results/nights").glob("*.txt")
    line = path.read_text()
    assert "Interrupted by signal 15" in line and line.endswith("exit 143\n") and registered(place) == ["P1"]
    page = path.with_suffix(".html").read_text()
    assert "Plates that the next night goes on with" in page and "Plates that need somebody" not in page


def test_a_second_night_says_who_is_at_work(place):
    with locks.hold(place / "screen" / nightly.LOCK, wait=False):
        code, text, line, page = night(place)
    assert code == 1 and f"process {os.getpid()}" in text and len(text.splitlines()) == 1 and not line


def test_a_night_beside_a_run_takes_plates_and_leaves_the_work(place, idle):
    with locks.hold(place / "screen/.plateloom.lock", wait=False):
        code, text, line, page = night(place)
    assert code == 1 and not idle and f"process {os.getpid()}" in line and registered(place) == ["P1", "P2", "P3"]


# The time


def test_when_the_time_is_over_the_run_is_ended_and_complete_plates_are_summed_up(place, monkeypatch):
    asked, real = [], run.run_group

    def work(arguments):
        asked.append(arguments)
        if len(asked) > 1:
            return 0
        signal.setitimer(signal.ITIMER_REAL, 0.3)  # of the many hours, all but this are over
        return real([sys.executable, "-c", "import time; time.sleep(60)"])

    monkeypatch.setattr(run, "run_group", work)
    monkeypatch.setattr(Screen, "is_complete", lambda self, plate: plate == "P1")
    code, text, line, page = night(place, "--hours", "10")
    assert code == 1 and "The 10 hours are over" in line and line.endswith("exit 1\n")
    assert len(asked) == 2 and asked[1][-2:] == ["--config", "complete_only=1"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_profile_and_cores_are_handed_on(place, idle):
    page = night(place, "--cores", "3", "--profile", "default", "--jobs", "500", "--", "--set-threads", "fit_map=3")[-1]
    assert "--profile default --cores 3 --jobs 500 --set-threads fit_map=3" in page, "what the next night would do"
    assert "--cores 3 --jobs 500 --set-threads fit_map=3" in " ".join(idle[0]) and re.search(
        "--workflow-profile .*profiles/default", " ".join(idle[0])
    )
    code, text, line, page = night(place, "--profile", "defalt")
    assert code == 2 and "Did you mean 'default'?" in text and len(idle) == 1


# What is told


def test_the_hook_gets_the_line_and_the_paths(place, idle):
    change(place / "screen", hook='cat > got.txt; echo "$PLATELOOM_EXIT_CODE $PLATELOOM_SUMMARY_HTML" >> got.txt')
    code, text, line, page = night(place)
    got = (place / "screen/got.txt").read_text()
    assert got.startswith(line) and len(line.splitlines()) == 1
    number, path = got.splitlines()[1].split(maxsplit=1)
    assert int(number) == code and Path(path).read_text() == page


@pytest.mark.parametrize("hook", ["echo no such address >&2; exit 7", "sleep 30"])
def test_a_hook_that_fails_is_told_and_changes_no_exit_code(place, idle, monkeypatch, hook):
    monkeypatch.setattr(nights, "HOOK_SECONDS", 0.5)
    expected = night(place)[0]
    change(place / "screen", hook=hook)
    code, text, line, page = night(place)
    assert code == expected and "nightly.hook" in text and hook in text


def test_a_shift_is_an_alarm_in_the_morning_and_until_it_is_settled(place, monkeypatch):
    screen, shown = place / "screen", {}

    def work(arguments):
        records = Records(screen)
        records.write_all(registered(place))
        for plate, notices in shown.items():
            records.write("report", plate, facts={"notices": [dataclasses.asdict(one) for one in notices]})
        return 0

    monkeypatch.setattr(run, "run_group", work)
    values, plates, _ = controls(0, shifted=1, by=30.0)
    (row,) = (row for row in find_shift(values, plates) if row["alarm"])
    shown["P2"] = _shift_notice("P2", {"facts": {"shift": [row | {"plate": "P2"}]}})
    words = "Its negative controls are unlike those of 5 other plates"
    code, text, line, page = night(place)
    assert code == 3 and f"warning: P2: {words}" in text and words in page
    assert "finished 3 (P1, P2, P3)" in line and "alarmed 1 (P2); 1 warnings" in line and line.endswith("exit 3\n")
    code, text, line, page = night(place)
    assert code == 3 and words in page and "finished 0; alarmed 1 (P2)" in line, "why it ends with 3 once more"
    shown["P2"] = []
    code, text, line, page = night(place)
    assert code == 0 and words not in page and "alarmed" not in line


def test_a_dry_run_says_what_is_there_and_writes_nothing(place):
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    code, text = plateloom("nightly", place / "screen", "--inbox", place / "inbox", "--dry-run")
    assert code == 0 and text.count("settling: P") == 3
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    (place / "screen/maps/P2.tsv").unlink()  # what a first night would stumble over
    (place / "inbox/P4").mkdir()
    (place / "inbox/P4/notes.txt").write_text("no plate")
    code, text = plateloom("nightly", place / "screen", "--inbox", place / "inbox", "--dry-run")
    assert code == 0 and text.count("settling: P") == 2
    assert re.search("^waiting: P2 .*: no plate map 'maps/P2.tsv'", text, re.M)
    assert re.search(
        "^refused: P4 .*: no reader, with the parameters of this screen's config, knows its layout", text, re.M
    )


def test_a_mistake_in_the_config_is_told_in_the_morning(place, idle):
    change(place / "screen", hook='cat > got.txt; echo "$PLATELOOM_EXIT_CODE" >> got.txt')
    path = place / "screen/config.yaml"
    path.write_text(path.read_text() + "profilling: {}\n")
    code, text, line, page = night(place)
    assert code == 2 and "unknown setting. Did you mean 'profiling'?" in text and "profilling" in page
    assert "The configuration is wrong" in line and (place / "screen/got.txt").read_text() == f"{line}2\n"
    assert not idle and registered(place) == [], "nothing was taken or run"
    path.write_text("nightly: [\n")
    code, text, line, page = night(place)
    assert code == 2 and "not YAML" in page
    path.unlink()
    assert night(place)[0] == 2 and len(summaries(place)) == 2, "what is no screen gets no summary"


@pytest.mark.parametrize(
    "option, said", [("nothing=2", "no folder 'nothing'"), ("P1=x", "FOLDER=NUMBER"), ("P1", "FOLDER=NUMBER")]
)
def test_a_wrong_acquisition_is_told_and_starts_nothing(place, option, said):
    code, text, line, page = night(place, "--acquisition", option)
    assert code == 2 and said in text and not line


def test_a_fault_of_ours_is_told_in_the_morning_too(place, idle, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(inbox, "register", fail)
    code, text, line, page = night(place)
    assert code == 1 and "Traceback" in text and "RuntimeError: a bug" in page and line.endswith("exit 1\n")


def test_a_disk_that_is_full_at_the_end_is_no_complete_night(place, idle, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nights, "write_summary", fail)
    code, text, line, page = night(place)
    assert code == 1 and "the summary cannot be written: [Errno 28]" in text and not line


@pytest.mark.parametrize("module, name", [(nights, "read_screen"), (nights, "render_night")])
def test_a_night_that_cannot_be_described_still_has_its_line_and_calls_the_hook(place, idle, monkeypatch, module, name):
    change(place / "screen", hook='echo "$PLATELOOM_EXIT_CODE" > got.txt; cat >> got.txt')
    real, failed = getattr(module, name), []

    def fail(*given):
        if not failed:
            failed.append(name)
            raise KeyError("artefacts")
        return real(*given)

    monkeypatch.setattr(module, name, fail)
    code, text, line, page = night(place)
    assert code == 1 and "Traceback" in text and "KeyError(&#39;artefacts&#39;)" in page.replace("'", "&#39;")
    assert line.endswith("exit 1\n") and "cannot be told" in line and "artefacts" in line
    assert (place / "screen/got.txt").read_text() == f"1\n{line}"
    code, text, line, page = night(place)
    assert "new 3 " in line or "new 2 " in line, "what was not told yet is told by the next night"


def test_an_unusual_record_does_not_end_the_night(place, idle):
    night(place)
    records = Records(place / "screen")
    path = place / "screen" / records.screen.records("conversion", "P1")[0]
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    code, text, line, page = night(place)
    assert code == 1 and "failed 1 (P1)" in line and "record cannot be read" in page and "Traceback" not in text


def test_an_empty_inbox_is_a_quiet_night(place, idle):
    shutil.rmtree(place / "inbox")
    (place / "inbox").mkdir()
    code, text, line, page = night(place)
    assert code == 0 and "no plate yet" in text and not idle and "finished 0" in line


def test_names_are_text_on_the_page(place, idle):
    shutil.copytree(place / "inbox/P1", place / "inbox/<script>alert(1)<!-- ")
    code, text, line, page = night(place)
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_settings_of_nights_are_no_settings_of_results(place, idle):
    night(place)
    folder, found = place / "screen", []
    for minutes in (0, 5):
        change(folder, settle_minutes=minutes)
        screen = Screen(read_config(folder).model_dump(mode="json"), folder)
        found.append({stage: screen.recorded_settings(stage, "P1") for stage in STAGES if stage in screen.stages()})
    assert found[0] == found[1] and found[0]["report"]
    with pytest.raises(ConfigError, match="no group"):
        load_config(screen.config.model_dump(mode="json") | {"nightly": {"name": "P.*"}})


def test_the_units_of_the_docs_are_units_of_systemd(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd here")
    blocks = re.findall(r"```ini\n(.*?)```", (ROOT / "docs/nightly.md").read_text(), re.S)
    units = [tmp_path / "plateloom.service", tmp_path / "plateloom.timer"]
    for path, block in zip(units, blocks, strict=True):
        path.write_text(re.sub(r"=/opt/\S+", "=/bin/true", block).replace("/home/me/screens", "/tmp"))
    found = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")
