"""New code and old results: what a run would make again is told and asked for, and `plateloom accept` keeps it."""

from pathlib import Path

import pytest
import yaml
from conftest import TO_PROFILES, call, edit
from in_process import run_stages

from plateloom.acceptances import TABLE
from plateloom.cli import accept, rerun, run, trace
from plateloom.cli.run import check_cost
from plateloom.errors import ConfigError
from plateloom.estimate import RATES
from plateloom.planning import Screen
from plateloom.status import read_screen
from plateloom.store.provenance import digest, read_json, write_json
from plateloom.upgrades import core_hours, find_changed

FOLLOWING = ["segmentation", "features", "profiling"]
PLATE = Path("results/plates/P1")


@pytest.fixture
def upgrade(monkeypatch):
    """Give a stage other code, as the next version of Plateloom would."""
    present = Screen.code

    def change(*stages, version):
        def code(self, stage, plate=None):
            found = present(self, stage, plate)
            return digest([found, version]) if stage in stages else found

        monkeypatch.setattr(Screen, "code", code)

    return change


def open_screen():
    return Screen(yaml.safe_load(Path("config.yaml").read_text()))


def record(stage):
    return read_json(PLATE / f"records/{stage}/part-0.json")


def set_bound(hours):
    settings = yaml.safe_load(Path("config.yaml").read_text())
    settings["engine"]["recompute_without_asking_hours"] = hours
    Path("config.yaml").write_text(yaml.safe_dump(settings))


def test_the_cost_is_that_of_the_jobs_and_of_all_that_follows(profiled, upgrade):
    assert find_changed(open_screen()) == []
    upgrade("segmentation", version=2)
    found = find_changed(open_screen())
    assert [one.stage for one in found] == FOLLOWING
    assert [bool(one.codes) for one in found] == [True, False, False]
    spent = sum(record(stage)["seconds"] * record(stage)["threads"] for stage in FOLLOWING)
    assert core_hours(found) * 3600 == pytest.approx(spent) and spent > 0
    assert [one.stage for one in find_changed(open_screen(), ["segmentation"])] == ["segmentation"]


def test_a_run_asks_before_much_work_and_says_it_before_little(profiled, upgrade, capsys, monkeypatch):
    upgrade("segmentation", version=2)
    assert "made again: segmentation, features, profiling (" in check_cost(Path("."))
    assert capsys.readouterr().out == "", "a small screen is not worth a question"
    monkeypatch.setattr(run, "run_group", lambda arguments: 0)
    assert call(run.command, ".", "--dry-run").count("Plateloom's code has changed; made again: segmentation") == 1
    set_bound(0)
    with pytest.raises(ConfigError) as refused:
        check_cost(Path("."))
    said = str(refused.value)
    assert refused.value.exit_code == 2
    for part in ("segmentation: its code has changed: 1 plate, 1 job", "features: follows", "in all at least"):
        assert part in said
    assert "plateloom run . --recompute" in said and "plateloom accept . --stage segmentation" in said
    check_cost(Path("."), ask=False)
    assert capsys.readouterr().out.strip() == said
    before = (PLATE / "features/A02.parquet").read_bytes()
    with pytest.raises(ConfigError, match="--recompute"):
        call(rerun.command, ".", "--well", "A02")
    assert (PLATE / "features/A02.parquet").read_bytes() == before, (
        "nothing is removed before a run that does not begin"
    )


def test_what_jobs_have_kept_of_earlier_ones_costs_what_it_did(profiled, upgrade):
    """Cut into other parts, a plate keeps its wells: its jobs then took no time, and making it all again takes as long as ever."""
    for stage in FOLLOWING:
        (PLATE / f"records/{stage}/part-0.json").unlink()
    run_stages(profiled, TO_PROFILES)
    assert not record("features")["computed"] and record("features")["kept"]
    upgrade("segmentation", version=2)
    pixels, wells = 1e-9 * 12 * 3 * 256 * 256, 12 / 1000
    expected = [
        fixed + rate * (wells if stage == "profiling" else pixels)
        for stage in FOLLOWING
        for fixed, rate in [RATES[stage]]
    ]
    spent = {one.stage: one.core_seconds for one in find_changed(open_screen())}
    assert list(spent.values()) == [pytest.approx(one, rel=0.2) for one in expected]
    set_bound(sum(spent.values()) / 3600 / 2)
    with pytest.raises(ConfigError, match="in all about .* kept of earlier ones is estimated"):
        check_cost(Path("."))
    half = record("features") | {"parts": 2, "threads": 2}
    edit(profiled, lambda settings: settings.update(parts=2))
    wells = half["kept"]
    for part, made, kept in ((0, wells[:6], []), (1, [], wells[6:])):
        said = {"part": part, "computed": made, "kept": kept, "seconds": 1800.0 if made else 0.01}
        write_json(PLATE / f"records/features/part-{part}.json", half | said)
    spent = {one.stage: one.core_seconds for one in find_changed(open_screen())}
    assert spent["features"] == pytest.approx(7200), "another job of the screen tells"
    said = {"part": 0, "computed": wells[:2], "kept": wells[2:6], "seconds": 1005.0}
    write_json(PLATE / "records/features/part-0.json", half | said)
    (PLATE / "records/features/part-1.json").unlink()
    spent = {one.stage: one.core_seconds for one in find_changed(open_screen())}
    assert spent["features"] == pytest.approx(10 + 3 * 2000), "those wells that were computed tell of the others"


def test_what_is_kept_is_current_and_made_by_the_earlier_code(profiled, upgrade):
    set_bound(0)
    earlier = record("segmentation")
    upgrade("segmentation", version=2)
    assert read_screen(".")["plates"]["P1"]["segmentation"].reason == "its code has changed"
    assert "segmentation: its code has changed" in call(accept.command, ".") and not Path(TABLE).exists()
    said = call(accept.command, ".", "--stage", "segmentation", "--reason", "same labels", "--by", "Ada")
    assert "segmentation: 1 job kept as they are" in said and "nothing is left" in said
    check_cost(Path("."))
    assert read_screen(".")["plates"]["P1"]["segmentation"].state == "done"
    run_stages(profiled, TO_PROFILES)
    assert not any(record(stage)["computed"] for stage in TO_PROFILES)
    assert record("segmentation")["code"] == earlier["code"]
    told = call(trace.command, str(PLATE / "segmentation/A02.parquet"))
    assert f"code: {earlier['code'][:12]}" in told and "adopted by Ada on 20" in told and "same labels" in told
    upgrade("segmentation", version=3)
    with pytest.raises(ConfigError, match="segmentation: its code has changed"):
        check_cost(Path("."))


def test_a_new_plate_is_made_by_the_present_code_and_says_so(profiled, upgrade):
    upgrade("segmentation", version=2)
    call(accept.command, ".", "--all")
    (PLATE / "records/segmentation/part-0.json").rename("elsewhere.json")
    screen = open_screen()
    assert screen.code_for("segmentation", "P1") == screen.code("segmentation") != read_json("elsewhere.json")["code"]
    Path("elsewhere.json").rename(PLATE / "records/segmentation/part-0.json")
    frozen = open_screen().freeze()
    (PLATE / "records/segmentation/part-0.json").unlink()  # as Snakemake does before a job
    again = Screen({}, frozen=frozen)
    assert again.code_for("segmentation", "P1") != again.code("segmentation") and len(again.codes("segmentation")) == 2
    assert again.code_for("features", "P1") == again.code("features")


def test_another_plates_reader_is_no_change_of_this_plates_code(profiled):
    before = open_screen().codes("conversion", "P1")
    with open("plates.tsv", "a") as file:
        file.write("P2\traw/P2\tharmony\t\t\n")
    screen = open_screen()
    assert screen.codes("conversion", "P1") == before == {record("conversion")["code"]}
    assert screen.code("conversion", "P2") not in before and screen.code("features", "P2") == screen.code("features")
    assert not find_changed(screen)


def test_results_of_two_earlier_versions_are_kept_at_once(profiled, upgrade):
    upgrade("features", version=2)
    run_stages(profiled, TO_PROFILES)
    second = record("features")["code"]
    upgrade("features", "quality", version=3)
    call(accept.command, ".", "--all")
    assert second in open_screen().codes("features") and not find_changed(open_screen())
    assert len(Path(TABLE).read_text().splitlines()) == 3


def test_wrong_names_and_lines_are_refused(profiled):
    with pytest.raises(ConfigError, match="Did you mean 'segmentation'"):
        call(accept.command, ".", "--stage", "segmentaton")
    assert "its code is that of its results" in call(accept.command, ".", "--stage", "features")
    assert "comparison: it has no results yet: plateloom run" in call(accept.command, ".", "--stage", "comparison")
    assert not Path(TABLE).exists()
    Path(TABLE).write_text("stage\tcode\tkeeps\nfeatures\t" + "0" * 32 + "\tabc\nfeature\t" + "\t".join(["0" * 32] * 2))
    with pytest.raises(ConfigError) as refused:
        open_screen()
    assert ["2: keeps 'abc'" in refused.value.problems[0], "3: no stage" in refused.value.problems[1]] == [True, True]
