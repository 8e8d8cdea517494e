"""`plateloom quarantine`: what a person has taken out is in no result, is told everywhere, and comes back as it was."""

import json
import threading
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import call, copy_of, simulate
from in_process import run_stages

from plateloom.cli import quarantine, rerun, status
from plateloom.errors import ConfigError
from plateloom.export import export_screen
from plateloom.planning import STAGES, Screen
from plateloom.quarantines import COLUMNS, TABLE, append_rows, list_quarantined
from plateloom.status import read_screen, screen_state, states_until
from plateloom.store.provenance import file_digest, read_json
from plateloom.store.tables import read_table

WELL = "B03"  # a negative control, so that it would be part of the reference
P1 = Path("results/plates/P1")
QUICK = [stage for stage in STAGES if stage not in ("maps", "classes")]  # of every cell, whose well nobody asks for
TABLES = {"profiles": "profiles.parquet", "aggregates": "aggregates.parquet"}


@pytest.fixture(scope="module")
def finished(once):
    """Two plates, with profiles, hits, a map, a classifier and pages."""

    def make(folder):
        simulate(folder, plates=("P1", "P2"))
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        settings["latent"]["autoencoder"]["enabled"] = False
        settings["classification"] = {"labels": "controls", "folds": 2}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        run_stages(folder, QUICK)

    return once("quarantine", make)


@pytest.fixture
def done(finished, tmp_path, monkeypatch):
    return copy_of(finished, tmp_path, monkeypatch)


def settings(folder="."):
    return yaml.safe_load(Path(folder, "config.yaml").read_text())


def computed():
    """What the jobs of the last run have made, by plate and stage."""
    paths = [*Path("results/plates").glob("*/records/*/*.json"), *Path("results/screen/records").glob("*.json")]
    return {path: read_json(path)["computed"] for path in paths}


@pytest.mark.slow
def test_a_well_is_in_no_result_and_comes_back_as_it_was(done):
    before = {path: file_digest(path.read_bytes()) for path in sorted(done.rglob("*.parquet"))}
    control = read_table(P1 / TABLES["aggregates"]).set_index("Metadata_Well")["Metadata_Control"]
    assert control[WELL] == "negative"
    call(quarantine.command, ".", f"P1/{WELL.lower()}", "--reason", "a leaking well", "--by", "Ada")
    run_stages(done, QUICK)
    made = computed()
    assert not any(made[P1 / f"records/{stage}/part-0.json"] for stage in ("conversion", "segmentation", "features"))
    assert not made[Path("results/plates/P2/records/profiling/part-0.json")]
    for name in TABLES.values():
        assert WELL not in set(read_table(P1 / name)["Metadata_Well"])
    screen = read_table("results/screen/wells.parquet")
    assert len(screen) == 23 and not ((screen["Metadata_Plate"] == "P1") & (screen["Metadata_Well"] == WELL)).any()
    facts = read_json(P1 / "records/profiling/part-0.json")["facts"]
    assert facts["normalization"]["n_reference"] == (control == "negative").sum() - 1
    qc = read_table(P1 / "qc.parquet")
    assert set(qc.loc[qc["Metadata_Well"] == WELL, "Reason"]) == {"quarantined"} and len(qc) == len(
        pd.read_parquet(done / P1 / "quality").drop_duplicates(["Metadata_Well", "Metadata_Field", "Channel"])
    )
    for model in ("map/map.json", "classifier/model.json"):
        card = read_json(f"results/screen/models/{model}")
        learned = card["plateloom"]["inputs"]
        assert "P1/A01" in learned or "P1/B01" in learned or len(learned) > 1
        assert f"P1/{WELL}" not in learned, model
    page = (P1 / "report.html").read_text()
    assert "a leaking well" in page and "One well is quarantined by hand" in page
    assert "a leaking well" in Path("results/screen/report.html").read_text()
    assert "were not imaged" not in Path("results/screen/report.html").read_text()
    call(quarantine.command, ".", f"P1/{WELL}", "--lift")
    run_stages(done, QUICK)
    assert {path: file_digest(path.read_bytes()) for path in sorted(done.rglob("*.parquet"))} == before


@pytest.mark.slow
def test_a_plate_is_left_out_and_said_to_be(done, tmp_path):
    call(quarantine.command, ".", "P2", "--reason", "wrong staining", "--by", "Ada")
    assert Screen(settings()).complete_plates == ["P1"] and not Screen(settings()).missing_from("profiling")
    old = (Path("results/plates/P2/records/profiling/part-0.json")).read_bytes()
    run_stages(done, QUICK)
    assert (Path("results/plates/P2/records/profiling/part-0.json")).read_bytes() == old
    assert set(read_table("results/screen/profiles.parquet")["Metadata_Plate"]) == {"P1"}
    assert read_json("results/screen/records/profiles.json")["facts"]["missing"] == {"P2": "quarantined by hand"}
    assert not [name for name in read_json("results/screen/models/map/map.json")["plateloom"]["inputs"] if "P2" in name]
    for page in ("results/screen/report.html", "results/plates/P2/report.html"):
        assert "wrong staining" in Path(page).read_text()
    states = read_screen(".")
    found = screen_state(states_until(states, ["profiles"]))
    assert found["quarantined"] == ["P2"] and found["complete"] == ["P1"] and not found["open"]
    assert states["plates"]["P2"]["conversion"].reason.startswith("by Ada on 20")
    assert states["plates"]["P2"]["profiling"].state == "skipped"
    assert "conversion of P2: quarantined: by Ada" in call(status.command, ".")
    with pytest.raises(ConfigError, match="quarantined by Ada"):
        call(rerun.command, ".", "--plate", "P2", "-n")
    export_screen(done, tmp_path / "out", tables=False, incomplete=True)
    assert "wrong staining" in (tmp_path / "out" / TABLE).read_text()
    assert (tmp_path / "out/screen/hits.parquet").exists() and not (tmp_path / "out/plates/P2").exists()
    call(quarantine.command, ".", "P2", "--lift")
    run_stages(done, QUICK)
    assert "wrong staining" not in Path("results/plates/P2/report.html").read_text()
    assert screen_state(states_until(read_screen("."), ["profiles"]))["complete"] == ["P1", "P2"]


@pytest.mark.slow
def test_only_what_depends_on_it_is_stale(done):
    append_rows(".", [("P1", WELL)], action="quarantine", reason="dust", who="Ada")
    states = read_screen(".")
    stale = {
        stage
        for stage, state in states["plates"]["P1"].items()
        if state.reason == "settings or quarantines have changed"
    }
    assert stale == {"flagging", "profiling", "report"}
    assert states["plates"]["P1"]["features"].state == "done"
    append_rows(".", [("P1", WELL)], action="quarantine", reason="no, a fiber", who="Ada")
    run_stages(done, ("flagging", "profiling", "profiles"))
    kept = Path(P1 / "profiles.parquet").read_bytes()
    append_rows(".", [("P1", WELL)], action="quarantine", reason="dust after all", who="Eve")
    changed = {stage for stage, state in read_screen(".")["plates"]["P1"].items() if "settings" in state.reason}
    assert changed == {"report"}, "another reason changes no number"
    assert Path(P1 / "profiles.parquet").read_bytes() == kept


def test_without_rows_no_setting_changes(screen):
    plain = Screen(settings())
    empty = {stage: plain.recorded_settings(stage, "P1") for stage in STAGES}
    Path(TABLE).write_text("\t".join(COLUMNS) + "\n")
    assert {stage: Screen(settings()).recorded_settings(stage, "P1") for stage in STAGES} == empty
    append_rows(".", [("P1", "A01")], action="quarantine", reason="x", who="")
    append_rows(".", [("P1", "A01")], action="lift", reason="", who="")
    assert {stage: Screen(settings()).recorded_settings(stage, "P1") for stage in STAGES} == empty
    assert not any("quarantined" in found for found in empty.values())
    frozen = plain.freeze()
    append_rows(".", [("P1", "")], action="quarantine", reason="while a run goes on", who="")
    assert Screen({}, frozen=frozen).complete_plates == ["P1"] and not Screen(settings()).complete_plates


def test_the_list_and_its_json(screen):
    assert "nothing is quarantined" in call(quarantine.command, ".")
    call(quarantine.command, ".", "P1/c03", "P1", "--reason", "two  \t words\nand a line", "--by", "Ada")
    lines = Path(TABLE).read_text().splitlines()
    assert lines[0].split("\t") == list(COLUMNS) and len(lines) == 3
    assert lines[1].split("\t")[1:] == ["P1", "C03", "quarantine", "two words and a line", "Ada"]
    said = call(quarantine.command, ".")
    assert "P1/C03: quarantined by Ada on 20" in said and "\nP1/C03" in f"\n{said}" and "\nP1: " in f"\n{said}"
    assert json.loads(call(status.command, ".", "--json"))["quarantined_by_hand"]["P1"]["C03"]["who"] == "Ada"


@pytest.mark.parametrize(
    "row, said",
    [
        ("\tP3\t\tquarantine\tx\t", "no plate 'P3' in the list of plates. Mend or remove its lines"),
        ("\tP1\tZ99\tquarantine\tx\t", "'Z99'"),
        ("\tP1\tA01\tquarantined\tx\t", "action 'quarantined': expected quarantine or lift"),
        ("\tP1\tA01\tquarantine\t\t", "no reason"),
        ("yesterday\tP1\tA01\tquarantine\tx\t", "time 'yesterday'"),
    ],
)
def test_a_wrong_line_is_an_error_with_its_number(screen, row, said):
    Path(TABLE).write_text("# by hand\n" + "\t".join(COLUMNS) + "\n\tP1\tA1\tquarantine\tfine\tEve\n" + row + "\n")
    from plateloom.cli.check import find_problems

    (problem,) = find_problems(screen, files=False)[0]
    assert problem.startswith(f"{screen / TABLE}:4: ") and said in problem
    with pytest.raises(ConfigError, match=":4: "):
        Screen(settings())


def test_a_table_written_by_hand_is_continued_as_it_stands(screen):
    Path(TABLE).write_text('plate,well,action,reason,who,time\nP1,A1,quarantine,"dust, much",Eve,')
    call(quarantine.command, ".", "P1/A02", "--reason", "fibers, too", "--by", "Ada")
    found, problems = list_quarantined(".", ["P1"])
    assert not problems
    assert {well: entry["reason"] for well, entry in found["P1"].items()} == {"A01": "dust, much", "A02": "fibers, too"}


@pytest.mark.parametrize(
    "options, said",
    [
        (("P9", "--reason", "x"), "no plate 'P9'"),
        (("P1/Z99", "--reason", "x"), "P1/Z99: 'Z99'"),
        (("P1/H12", "--reason", "x"), "P1/H12: the plate has no such well; it has 12: A01, A02"),
        (("P1/A01",), "--reason"),
        (("P1/A01", "--lift"), "is not quarantined by hand"),
        (("--lift",), "which plate or well?"),
    ],
)
def test_a_wrong_call_writes_nothing(screen, options, said):
    with pytest.raises(ConfigError) as refused:
        call(quarantine.command, ".", *options)
    assert said in "\n".join(refused.value.problems) and not Path(TABLE).exists()


def test_two_people_at_once_lose_no_line(screen):
    def add(name):
        for column in range(1, 6):
            append_rows(".", [("P1", f"{name}{column:02}")], action="quarantine", reason="x", who=name)

    people = [threading.Thread(target=add, args=(name,)) for name in "ABC"]
    for one in people:
        one.start()
    for one in people:
        one.join()
    found, problems = list_quarantined(".", ["P1"])
    assert not problems and len(found["P1"]) == 15 and Path(TABLE).read_text().count("time\t") == 1
