"""Labeling of cells: what is shown, what comes back, what it is worth, and a real browser."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from browser import Browser, find_chromium
from conftest import simulate
from in_process import run_stages

from plateloom.classification.fitting import make_pipeline
from plateloom.classification.identity import match_cells
from plateloom.classification.logistic import Params, build
from plateloom.classification.querying import choose_cells, doubt_of, embed, measure_gain
from plateloom.cli import cli
from plateloom.errors import ConfigError, PlateLayoutError
from plateloom.report.annotation import AnnotationPage, draw_outlines, render_annotation, stretch
from plateloom.store.cell_labels import COLUMNS, append_cell_labels, read_cell_labels
from plateloom.store.foreign_labels import read_foreign_labels

CLASSES = ["normal", "translocated", "condensed"]
MEASURING = ("conversion", "assembly", "illumination", "quality", "flagging", "segmentation", "features")


# --- which cells are asked for ---


def make_cells(seed=0, *, plates=3, wells=8, cells=30, features=6):
    random = np.random.default_rng(seed)
    X = random.normal(size=(plates * wells * cells, features))
    plate = np.repeat([f"P{i}" for i in range(plates)], wells * cells)
    well = np.tile(np.repeat([f"A{i + 1:02d}" for i in range(wells)], cells), plates)
    likely = 1 / (1 + np.exp(-3 * X[:, 0]))
    return X, plate, well, np.column_stack([likely, 1 - likely])


def test_a_batch_has_each_cell_once_and_a_share_by_chance():
    X, plate, well, probability = make_cells()
    chosen, why = choose_cells(X, plates=plate, wells=well, count=40, probability=probability, random_share=0.25)
    assert len(set(chosen.tolist())) == 40 and sorted(set(why)) == ["random", "uncertain"]
    assert why.count("random") == 10
    _, first = choose_cells(X, plates=plate, wells=well, count=40)
    assert sorted(set(first)) == ["diverse", "random"]


def test_doubtful_cells_are_asked_for():
    X, plate, well, probability = make_cells()
    chosen, why = choose_cells(X, plates=plate, wells=well, count=40, probability=probability)
    doubt = doubt_of(probability)
    picked = doubt[chosen[np.array(why) == "uncertain"]]
    assert picked.min() > np.quantile(doubt, 0.7)


def test_what_is_drawn_by_chance_depends_on_no_classifier():
    X, plate, well, probability = make_cells()
    drawn = []
    for given in (probability, probability[::-1], None):
        chosen, why = choose_cells(X, plates=plate, wells=well, count=40, probability=given, seed=3)
        drawn.append(set(chosen[np.array(why) == "random"].tolist()))
    assert drawn[0] == drawn[1] == drawn[2]


def test_no_well_and_no_plate_has_more_than_its_share():
    X, plate, well, probability = make_cells()
    probability[plate == "P0"] = 0.5  # one plate, and one well of another, are all doubt
    probability[(plate == "P1") & (well == "A01")] = 0.5
    chosen, _ = choose_cells(X, plates=plate, wells=well, count=48, probability=probability)
    assert np.unique(plate[chosen], return_counts=True)[1].max() <= 24  # 1.5 × 48 / 3
    names = np.char.add(plate, well)[chosen]
    assert np.unique(names, return_counts=True)[1].max() <= 4  # 2 × 48 / 24


def test_a_first_batch_finds_rare_kinds_of_cells():
    random = np.random.default_rng(0)
    kinds = np.repeat([0, 1, 2, 3], [960, 15, 15, 10])
    X = random.normal(size=(1000, 10))
    X[np.arange(1000), kinds] += np.where(kinds > 0, 8.0, 0.0)
    wells = random.choice(["A01", "A02", "A03"], 1000)
    found = [
        set(kinds[choose_cells(X, plates=["P"] * 1000, wells=wells, count=20, random_share=0, seed=seed)[0]].tolist())
        for seed in range(5)
    ]
    assert all(one == {0, 1, 2, 3} for one in found)


def test_a_batch_is_the_same_for_the_same_seed_only():
    X, plate, well, probability = make_cells()
    settings = {"plates": plate, "wells": well, "count": 20, "probability": probability}
    one, two, other = (choose_cells(X, **settings, seed=seed)[0].tolist() for seed in (1, 1, 2))
    assert one == two != other


def test_few_or_empty_candidates_give_what_there_is():
    X, plate, well, _ = make_cells()
    X[5:] = np.nan
    chosen, _ = choose_cells(X, plates=plate, wells=well, count=40)
    assert sorted(chosen.tolist()) == [0, 1, 2, 3, 4]
    chosen, why = choose_cells(X[:0], plates=[], wells=[], count=40)
    assert not len(chosen) and why == []
    chosen, _ = choose_cells(X[:5], plates=["P"] * 5, wells=["A01"] * 5, count=5)
    assert len(chosen) == 5, "one well may have everything if there is no other"


def test_the_space_of_cells_bears_gaps_constants_and_debris():
    X = np.random.default_rng(0).normal(size=(50, 4))
    X[3, 0], X[4, 1], X[:, 2], X[7, 3] = np.nan, np.inf, 1.0, 1e9
    space = embed(X)
    assert space.shape == (50, 3) and np.isfinite(space).all()
    assert np.abs(space[7]).max() < 10, "debris does not span the space"
    assert embed(np.ones((5, 2))).shape == (5, 1)


# --- what the labels have brought ---


def fit(X, truth, groups):
    return make_pipeline(build(Params())).fit(X, truth)


def test_the_gain_is_counted_on_cells_by_chance_of_groups_that_neither_classifier_has_seen():
    random = np.random.default_rng(0)
    X = random.normal(size=(400, 3))
    y = np.where(X[:, 0] + 0.3 * random.normal(size=400) > 0, "a", "b")
    groups = np.repeat([f"W{i}" for i in range(20)], 20)
    old = np.zeros(400, bool)
    old[::40] = True
    test = random.random(400) < 0.5
    folds = []
    for i in range(4):
        held = [f"W{j}" for j in range(i, 20, 4)]
        outside = ~np.isin(groups, held)
        folds.append((held, make_pipeline(build(Params())).fit(X[outside], (y == "b")[outside].astype(int))))
    found = measure_gain(X, y, groups, old=old, test=test, folds=folds, fit=fit)
    assert found["n_cells"] == test.sum() and found["n_groups"] == 20
    for name, known in (("before", old), ("after", np.ones(400, bool))):
        guessed = np.empty(400, int)
        for held, _ in folds:
            inside = np.isin(groups, held)
            fitted = make_pipeline(build(Params())).fit(X[known & ~inside], (y == "b")[known & ~inside].astype(int))
            guessed[inside] = fitted.predict(X[inside])
        recalls = [(guessed == code)[test & (y == name)].mean() for code, name in enumerate("ab")]
        assert found[name]["value"] == pytest.approx(np.mean(recalls))
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    assert found["gain"]["value"] == pytest.approx(found["after"]["value"] - found["before"]["value"])
    assert found["gain"]["low"] < found["gain"]["value"] < found["gain"]["high"]


def test_a_handful_of_cells_leaves_doubt_even_if_all_were_right():
    X = np.array([[-1.0], [1.0]] * 10)
    y, groups = np.array(["a", "b"] * 10), np.repeat(["W1", "W2"], 10)
    folds = [
        (["W1"], make_pipeline(build(Params())).fit(X, [0, 1] * 10)),
        (["W2"], make_pipeline(build(Params())).fit(X, [0, 1] * 10)),
    ]
    options = {"folds": folds, "fit": fit, "test": np.ones(20, bool)}
    found = measure_gain(X, y, groups, old=np.ones(20, bool), **options)
    assert found["after"]["value"] == 1 and 0.7 < found["after"]["low"] < 0.95
    assert found["gain"]["low"] < 0 < found["gain"]["high"]
    found = measure_gain(X, y, groups, old=y == "a", **options)
    assert found["before"] is None and found["gain"] is None, "one class is no classifier"
    assert measure_gain(X, y, groups, old=y == "a", **options | {"test": np.zeros(20, bool)})["after"] is None


# --- the same cell in another segmentation ---


def test_cells_are_found_again_unless_they_were_split_merged_or_moved():
    centers, radii = np.array([[10.0, 10], [50, 50], [90, 90]]), np.full(3, 8.0)
    assert match_cells([[12, 11], [50, 50], [90, 95]], centers, radii).tolist() == [0, 1, -1]
    disk = lambda y, x, r: np.hypot(*(np.mgrid[:60, :60] - np.array([y, x])[:, None, None])) < r  # noqa: E731
    whole = disk(30, 30, 10)
    halves = [whole & (np.arange(60) < 30), whole & (np.arange(60) >= 30)]
    describe = lambda masks: (  # noqa: E731
        np.array([np.argwhere(mask).mean(axis=0) for mask in masks]),
        np.array([np.sqrt(mask.sum() / np.pi) for mask in masks]),
    )
    assert match_cells([[30, 30]], *describe(halves)).tolist() == [-1], "neither half is the cell"
    pair = [disk(30, 20, 10), disk(30, 40, 10)]
    assert match_cells([[30, 20], [30, 40]], *describe([pair[0] | pair[1]])).tolist() == [-1, -1]
    assert match_cells([[11, 10], [10, 10]], centers, radii).tolist() == [-1, 0], "the nearer one is the cell"
    assert match_cells([[1, 1]], np.zeros((0, 2)), np.zeros(0)).tolist() == [-1]


# --- the table ---


def row_of(**given):
    row = {"plate": "P1", "well": "A01", "field": 1, "object": 7, "class": "a", "who": "Ada", "when": "2026-01-01"}
    return (
        dict.fromkeys(COLUMNS)
        | row
        | {"round": "1", "why": "random", "y": 1.5, "x": 2.25, "segmentation": "f" * 32}
        | given
    )


def test_the_table_only_grows(tmp_path):
    path = tmp_path / "annotations.tsv"
    append_cell_labels(path, [row_of(), row_of(object=8, **{"class": ""})])
    before = path.read_bytes()
    append_cell_labels(path, [row_of(who="A\tB\nC\u2028D")])
    assert path.read_bytes().startswith(before)
    rows, problems = read_cell_labels(path)
    assert not problems and [row["object"] for row in rows] == [7, 8, 7]
    assert rows[0] == row_of() and rows[1]["class"] == "" and rows[2]["who"] == "A B C D"


def test_a_line_that_was_not_finished_spoils_no_other(tmp_path):
    path = tmp_path / "annotations.tsv"
    append_cell_labels(path, [row_of()])
    path.write_bytes(path.read_bytes() + b"P1\tA0")
    append_cell_labels(path, [row_of(object=9)])
    rows, problems = read_cell_labels(path)
    assert [row["object"] for row in rows] == [7, 9]
    assert len(problems) == 1 and f"{path}:3" in problems[0]


def test_tables_of_people_are_read_as_they_were(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("Plate,well,class,y,note\nP1,a1,normal,from the top,x\n")
    rows, problems = read_cell_labels(path)
    assert not problems and rows == [dict.fromkeys(COLUMNS, "") | row_of_a_well()]
    with pytest.raises(ConfigError, match="no column"):
        append_cell_labels(path, [row_of()])
    path.write_text("plate,well,class,segmentation\nP1,A01,normal,abc\nP1,Z99,normal,\n")
    _, problems = read_cell_labels(path)
    assert len(problems) == 2 and "needs field, object, y and x" in problems[0]


def row_of_a_well():
    return {"plate": "P1", "well": "A01", "class": "normal", "field": None, "object": None, "y": None, "x": None}


# --- a screen ---


@pytest.fixture(scope="module")
def measured(once):
    """A small screen of two plates whose cells are measured; copy it, do not change it."""

    def make(folder):
        simulate(folder, plates=("P1", "P2"), cells_per_field=14.0)
        run_stages(folder, MEASURING)

    return once("annotation", make)


@pytest.fixture
def screen(measured, tmp_path, monkeypatch):
    """A copy of it, the folder above being the current one."""
    folder = tmp_path / "mine"
    shutil.copytree(measured, folder)
    monkeypatch.chdir(tmp_path)
    return folder


def annotate(*options):
    cli.main(["annotate", *map(str, options)], standalone_mode=False)


def list_of(folder, number=1):
    return json.loads((folder / f"annotation/round-{number:02d}.json").read_text())


def true_classes(folder, cells):
    """Classes by the simulation; empty where it has no cell there."""
    truth = pd.read_parquet(folder / "truth/cells.parquet")
    found = []
    for cell in cells:
        keys = {"Metadata_Plate": cell["plate"], "Metadata_Well": cell["well"], "Metadata_Field": cell["field"]}
        near = truth[np.logical_and.reduce([truth[name] == value for name, value in keys.items()])]
        distance = np.hypot(near["Center_Y"] - cell["y"], near["Center_X"] - cell["x"]).to_numpy()
        found.append(near["Class"].iloc[distance.argmin()] if len(near) and distance.min() < 5 else "")
    return found


def export_of(folder, number=1, **changed):
    """What the page of a round would export if the simulation labeled it."""
    made = list_of(folder, number)
    labels = [
        {"cell": i, "class": name, "when": f"2026-01-01T10:00:{i:02d}Z"}
        for i, name in enumerate(true_classes(folder, made["cells"]), 1)
    ]
    data = {"format": "plateloom-annotation-1", "screen": made["screen"], "round": number, "token": made["token"]}
    path = folder.parent / f"export-{number}.json"
    path.write_text(json.dumps(data | {"who": "Ada", "labels": labels} | changed))
    return path


@pytest.mark.slow
def test_a_round_goes_out_comes_back_and_brings_the_next(screen, capsys):
    annotate(screen, "--classes", ",".join(CLASSES), "--cells", 40)
    made = list_of(screen)
    assert len(made["cells"]) == 40 and made["classes"] == CLASSES and made["learned"] is None
    assert {cell["plate"] for cell in made["cells"]} == {"P1", "P2"}
    assert len({(cell["plate"], cell["well"]) for cell in made["cells"]}) > 12
    assert sum(cell["why"] == "random" for cell in made["cells"]) == 10
    annotate(screen, "--import", export_of(screen), "--cells", 40)
    said = capsys.readouterr().out
    assert "40 new" in said and "there was no classifier before" in said and "round 2: 40 cells" in said
    assert "classification: {labels: annotations.tsv}" in said
    rows, problems = read_cell_labels(screen / "annotations.tsv")
    assert not problems and len(rows) == 40 and {row["who"] for row in rows} == {"Ada"}
    assert [row["when"] for row in rows] == sorted(row["when"] for row in rows) and {row["round"] for row in rows} == {
        "1"
    }
    again = list_of(screen, 2)
    key = lambda cell: tuple(cell[name] for name in ("plate", "well", "field", "object"))  # noqa: E731
    assert not set(map(key, made["cells"])) & set(map(key, again["cells"])), "no cell is asked for twice"
    assert {cell["why"] for cell in again["cells"]} == {"random", "uncertain"}
    annotate(screen, "--import", export_of(screen, 2), "--cells", 20)
    said = capsys.readouterr().out
    assert re.search(r"on \d+ cells drawn by chance .*before, .* now; gain [+-]", said)
    learned = list_of(screen, 3)["learned"]
    assert learned["labels"] == sum(row["class"] != "" for row in read_cell_labels(screen / "annotations.tsv")[0])
    assert learned["gain"]["after"]["value"] > 0.6
    assert "What the rounds before have brought" in (screen / "annotation/round-03.html").read_text()


@pytest.mark.slow
def test_an_export_may_come_twice_and_changed(screen, capsys):
    annotate(screen, "--classes", ",".join(CLASSES), "--cells", 12)
    path = export_of(screen)
    annotate(screen, "--import", path, "--cells", 5)
    before = (screen / "annotations.tsv").read_bytes()
    annotate(screen, "--import", path, "--cells", 5)
    assert (screen / "annotations.tsv").read_bytes() == before and "12 as before" in capsys.readouterr().out
    data = json.loads(path.read_text())
    data["labels"][3]["class"] = next(name for name in CLASSES if name != data["labels"][3]["class"])
    path.write_text(json.dumps(data))
    annotate(screen, "--import", path, "--cells", 5, "--who", "Bob")
    after = (screen / "annotations.tsv").read_bytes()
    assert after.startswith(before) and after[len(before) :].count(b"\n") == 1 and b"\tBob\t" in after
    cell = list_of(screen)["cells"][3]
    annotate(screen, "--withdraw", f"{cell['plate']}/{cell['well']}/{cell['field']}/{cell['object']}")
    assert read_cell_labels(screen / "annotations.tsv")[0][-1]["class"] == ""
    with pytest.raises(ConfigError, match="has no label"):
        annotate(screen, "--withdraw", "P1/A01/1/999")
    settings = yaml.safe_load((screen / "config.yaml").read_text()) | {"classification": {"labels": "annotations.tsv"}}
    (screen / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError) as refused:  # nothing is wrong with the table, but it is too short to learn from
        cli.main(["check", str(screen)], standalone_mode=False)
    (problem,) = refused.value.problems
    assert "do not allow an honest test" in problem


@pytest.mark.slow
def test_wrong_exports_are_refused_with_every_mistake_and_change_nothing(screen):
    annotate(screen, "--classes", ",".join(CLASSES), "--cells", 6)
    labels = [{"cell": 1, "class": "norml"}, {"cell": 99, "class": "normal"}, {"cell": "2", "class": "normal"}]
    labels += [{"cell": 3, "class": "normal"}, {"cell": 3, "class": "condensed"}, "nonsense"]
    with pytest.raises(ConfigError) as raised:
        annotate(screen, "--import", export_of(screen, labels=labels))
    told = raised.value.problems
    assert len(told) == 5 and all("export-1.json: label" in problem for problem in told)
    assert "'norml'" in told[0] and "99" in told[1] and "stands there twice, first as label 4" in told[3]
    for changed, word in (
        ({"token": "0" * 12}, "no round of this screen"),
        ({"round": 7}, "no round of this screen"),
        ({"round": [1]}, "no round of this screen"),
        ({"format": "other"}, "no export"),
        ({"labels": None}, "holds no list"),
    ):
        with pytest.raises(ConfigError, match=word):
            annotate(screen, "--import", export_of(screen, **changed))
    path = screen.parent / "half.json"
    for data in (export_of(screen).read_bytes()[:200], b"{\xff"):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="not whole"):
            annotate(screen, "--import", path)
    assert not (screen / "annotations.tsv").exists() and not (screen / "annotation/round-02.json").exists()


@pytest.mark.slow
def test_calls_that_cannot_work_say_so(screen, tmp_path):
    for options, word in (
        ((), "at least two classes"),
        (("--classes", "a"), "at least two classes"),
        (("--classes", "a,b,a"), "a stands there twice"),
        (("--classes", ",".join("abcdefghij")), "number keys for 9"),
        (("--classes", "a,b", "--plate", "P9"), "no 'P9'"),
        (("--classes", "a,b", "--channels", "DMA"), "Did you mean 'DNA'"),
        (("--classes", "a,b", "--wells", "Z99"), "Z99"),
    ):
        with pytest.raises(ConfigError, match=word):
            annotate(screen, *options)
    assert not (screen / "annotation").exists()
    (screen / "results/plates/P1/qc.parquet").unlink()
    with pytest.raises(ConfigError, match="P1 has not been measured"):
        annotate(screen, "--classes", "a,b", "--plate", "P1")
    shutil.rmtree(screen / "results")
    with pytest.raises(PlateLayoutError, match="run the screen first"):
        annotate(screen, "--classes", "a,b")


@pytest.mark.slow
def test_a_run_trains_on_the_table_and_labels_follow_their_cells_into_another_segmentation(screen, capsys):
    annotate(screen, "--classes", ",".join(CLASSES), "--cells", 90, "--chance", 0.5)
    annotate(screen, "--import", export_of(screen), "--cells", 5)
    settings = yaml.safe_load((screen / "config.yaml").read_text())
    settings["classification"] = {"labels": "annotations.tsv", "folds": 3}
    (screen / "config.yaml").write_text(yaml.safe_dump(settings))
    run_stages(screen, [*MEASURING, "profiling", "classifier"])
    rows = [row for row in read_cell_labels(screen / "annotations.tsv")[0] if row["class"]]
    assert trained_cells(screen) == len(rows) == list_of(screen, 2)["learned"]["labels"]
    settings["segmentation"]["parameters"]["nucleus_diameter_um"] = 14
    settings["segmentation"]["parameters"]["threshold_correction"] = 1.1
    (screen / "config.yaml").write_text(yaml.safe_dump(settings))
    run_stages(screen, [*MEASURING, "profiling", "classifier"])
    capsys.readouterr()
    annotate(screen, "--cells", 5)
    said = capsys.readouterr().out
    kept = list_of(screen, 3)["learned"]
    assert 0.7 * len(rows) < kept["labels"] <= len(rows) and kept["labels"] + kept["lost"] >= len(rows)
    assert said.count("not in the present segmentation") == min(kept["lost"], 11)
    assert trained_cells(screen) == kept["labels"]
    renumbered = 0
    for table in labeled_tables(screen, rows):
        for _, cell in table.iterrows():
            row = rows[cell["Row"]]
            away = np.hypot(cell["Nuclei_Location_Center_Y"] - row["y"], cell["Nuclei_Location_Center_X"] - row["x"])
            assert away < 6, "a label stays with its cell"
            renumbered += cell["Metadata_ObjectNumber"] != row["object"]
    assert renumbered > 0, "the test would pass if labels went by number"


def trained_cells(folder):
    """How many labeled cells the classifier of the last run has learned from."""
    record = json.loads((folder / "results/screen/records/classifier.json").read_text())
    assert record["status"] == "done", record
    return record["facts"]["cells"]


def labeled_tables(folder, rows):
    from contextlib import chdir

    from plateloom.stages.annotation import read_labeled

    with chdir(folder):
        table, _ = read_labeled(rows, {"P1": "", "P2": ""})
    yield table


@pytest.mark.slow
def test_wells_that_a_person_has_taken_out_and_other_plates_are_not_shown(screen):
    cli.main(["quarantine", str(screen), "P1/A01", "P1/A02", "--reason", "a leak"], standalone_mode=False)
    run_stages(screen, ("flagging",))
    annotate(screen, "--classes", "a,b", "--plate", "P1", "--cells", 100)
    shown = {(cell["plate"], cell["well"]) for cell in list_of(screen)["cells"]}
    assert shown and not shown & {("P1", "A01"), ("P1", "A02")} and {plate for plate, _ in shown} == {"P1"}
    annotate(screen, "--classes", "a,b", "--wells", "B02,b3", "--cells", 10)
    assert {cell["well"] for cell in list_of(screen, 2)["cells"]} == {"B02", "B03"}


# --- labels of other programs ---


def cells_of(folder, plate="P1", well="B02"):
    table = pd.read_parquet(folder / f"results/plates/{plate}/features/{well}.parquet")
    return table[["Metadata_ObjectNumber", "Nuclei_Location_Center_X", "Nuclei_Location_Center_Y"]].to_numpy()


@pytest.mark.slow
def test_a_training_set_of_cellprofiler_analyst_comes_in_by_place(screen, capsys):
    cells = cells_of(screen)[:4]
    trap = "# Y3Bvc2l4CnN5c3RlbQo="  # CellProfiler Analyst appends a pickle as a comment
    lines = [
        f"{name} 12 {100 + i} {int(x)} {int(y)}" for i, (name, (_, x, y)) in enumerate(zip("pqqp", cells, strict=True))
    ]
    (screen.parent / "set.txt").write_text("\n".join(["# Training set", "label p q", *lines, trap]) + "\n")
    (screen.parent / "images.csv").write_text(
        "ImageNumber,Image_Metadata_Plate,Image_Metadata_Well,Image_Metadata_Site\n11,P1,B01,1\n12,P1,B02,1\n"
    )
    annotate(screen, "--import", "set.txt", "--images", "images.csv", "--cells", 5, "--who", "Eve")
    rows, _ = read_cell_labels(screen / "annotations.tsv")
    assert [(row["object"], row["class"]) for row in rows] == list(zip(cells[:, 0], "pqqp", strict=True))
    assert {row["well"] for row in rows} == {"B02"} and {row["why"] for row in rows} == {"imported"}
    assert list_of(screen)["classes"] == ["p", "q"]
    table = "ImageNumber,ObjectNumber,Class,Nuclei_Location_Center_X,Nuclei_Location_Center_Y\n"
    table += "".join(f"12,{int(n) + 50},q,{x},{y}\n" for n, x, y in cells)
    (screen.parent / "set.csv").write_text(table)
    annotate(screen, "--import", "set.csv", "--images", "images.csv", "--cells", 5)
    assert "0 new, 2 changed, 2 as before" in capsys.readouterr().out


@pytest.mark.slow
def test_training_sets_that_cannot_be_placed_are_refused(screen):
    text, images = screen.parent / "set.txt", screen.parent / "images.csv"
    images.write_text("ImageNumber,plate,well,field\n1,P1,B02,1\n")
    text.write_text("label p q\np 1 5 10000 10000\n")
    with pytest.raises(ConfigError, match="knows images by their number"):
        annotate(screen, "--import", text)
    with pytest.raises(ConfigError, match="has no cell at row 10000"):
        annotate(screen, "--import", text, "--images", images)
    text.write_text("label p q\np 2 5 10 10\nmy class 1 5 10 10\np 1 5\n")
    with pytest.raises(ConfigError, match=r"set.txt:3.*class without blanks"):
        annotate(screen, "--import", text, "--images", images)
    text.write_text("label p q\np 2 5 10 10\np 1 5\n")
    with pytest.raises(ConfigError) as raised:
        annotate(screen, "--import", text, "--images", images)
    assert len(raised.value.problems) == 2 and "image 2 is not in" in raised.value.problems[0]
    assert "--same-objects" in raised.value.problems[1]
    number = int(cells_of(screen)[0, 0])
    text.write_text(f"label p q\np 1 {number}\nq 1 {number}\n")
    with pytest.raises(ConfigError, match="one cell of two classes"):
        annotate(screen, "--import", text, "--images", images, "--same-objects")
    images.write_text("ImageNumber,plate,field\n1,P1,1\n")
    with pytest.raises(ConfigError, match="no column for well"):
        annotate(screen, "--import", text, "--images", images)
    assert not (screen / "annotations.tsv").exists()


@pytest.mark.slow
def test_tables_of_napari_come_in_by_label(screen):
    numbers = cells_of(screen)[:3, 0].astype(int)
    path = screen.parent / "nuclei_annotation.csv"
    lines = [f"0,{numbers[0]},1.0,early", f"1,{numbers[1]},,NoClass", f"2,{numbers[2]},2.0,late"]
    path.write_text(",label,annotations,annotation_names\n" + "\n".join(lines) + "\n")
    with pytest.raises(ConfigError, match="--at PLATE/WELL/FIELD"):
        annotate(screen, "--import", path)
    one = screen.parent / "one.csv"
    one.write_text(f"index,class\n{numbers[1]},early\n")
    with pytest.raises(ConfigError, match="at least two classes"):
        annotate(screen, "--import", one, "--at", "P1/B02/1")
    assert not (screen / "annotations.tsv").exists(), "what is refused leaves no label"
    annotate(screen, "--import", path, "--at", "P1/b2/1", "--cells", 5)
    rows, _ = read_cell_labels(screen / "annotations.tsv")
    assert [(row["object"], row["class"], row["well"]) for row in rows] == [
        (numbers[0], "early", "B02"),
        (numbers[2], "late", "B02"),
    ]
    path.write_text(f"index,class\n{numbers[1]},earli\n")
    with pytest.raises(ConfigError, match="unknown class 'earli'. Did you mean 'early'"):
        annotate(screen, "--import", path, "--at", "P1/B02/1")
    path.write_text("index,class\n4711,early\n")
    with pytest.raises(ConfigError, match="no cell with the number 4711"):
        annotate(screen, "--import", path, "--at", "P1/B02/1")
    with pytest.raises(ConfigError, match="expected PLATE/WELL/FIELD"):
        annotate(screen, "--import", path, "--at", "P1/B02")


def test_numbers_of_classes_need_their_names(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("plate,well,field,label,annotations\nP1,A1,1,5,2.0\nP1,A1,1,6,-1.0\nP1,A1,1,7,\n")
    found = read_foreign_labels(path, classes=["x", "y"])
    assert [(one["object"], one["class"], one["well"]) for one in found] == [(5, "y", "A01")]
    with pytest.raises(ConfigError, match="--classes"):
        read_foreign_labels(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="neither a training set"):
        read_foreign_labels(path)


# --- the page ---

HOSTILE = "</script><img src=x onerror=alert(1)> & \"q'"


def page_of(count=6, **given):
    random = np.random.default_rng(0)
    nuclei = np.zeros((40, 40), int)
    nuclei[15:25, 15:25], nuclei[0:8, 0:8] = 3, 4
    options = {
        "screen": f"my {HOSTILE}",
        "number": 2,
        "token": "0123456789ab",
        "classes": ("a", HOSTILE),
        "channels": {"DNA": "#4080ff", f"GFP {HOSTILE}": "#40ff40"},
        "pictures": random.random((count, 2, 40, 40)).astype(np.float32),
        "labels": ((nuclei, nuclei, 3),) * count,
        "width_um": 26.0,
    }
    return AnnotationPage(**options | given)


def test_the_page_loads_nothing_escapes_names_and_is_the_same_for_the_same_cells():
    text = render_annotation(page_of())
    assert text == render_annotation(page_of())
    assert "<img" not in text and text.count("</script>") == 2
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src &#39;none&#39;" in policy and "unsafe" not in policy and "http" not in policy
    assert not re.search(r"https?://", text)


@pytest.mark.slow
def test_the_page_says_nothing_of_wells_treatments_and_predictions(screen):
    annotate(screen, "--classes", ",".join(CLASSES), "--cells", 12)
    annotate(screen, "--import", export_of(screen), "--cells", 12)
    text = re.sub(r"data:image/\w+;base64,[A-Za-z0-9+/=]+", "", (screen / "annotation/round-02.html").read_text())
    assert not re.search(r"\b[A-P]\d\d\b", text) and "nuclearin" not in text and "DMSO" not in text
    assert not re.search(r"uncertain|random|segmentation", text)


def test_outlines_tell_the_cell_from_its_neighbors():
    page = page_of()
    drawn = draw_outlines(*page.labels[0])
    assert drawn.shape[0] >= 480 and drawn.shape[2] == 4
    k = drawn.shape[0] // 40
    assert drawn[15 * k, 20 * k].tolist() == [255, 255, 255, 255] and drawn[20 * k, 20 * k, 3] == 0
    assert 0 < drawn[8 * k - 1, 4 * k, 3] < 100
    assert stretch(np.array([0.0, 0.5, 2.0, np.nan]), 0, 1).tolist() == [0, 128, 255, 0]
    assert stretch(np.ones(2), 1, 1).tolist() == [0, 0]


# --- a real browser ---

needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed here")


@pytest.mark.slow
@needs_chromium
def test_a_person_labels_by_keys_in_a_browser_and_the_file_comes_back(screen, tmp_path, capsys):
    annotate(screen, "--classes", ",".join(CLASSES), "--cells", 6)
    page = screen / "annotation/round-01.html"
    progress = "document.getElementById('progress').textContent"
    place = "document.getElementById('place').textContent"
    with Browser(tmp_path / "browser") as browser:
        browser.open(page)
        browser.wait("document.getElementById('gallery').children.length === 6")
        lit = "(() => { const v = document.getElementById('view'); const p = v.getContext('2d').getImageData(0, 0, v.width, v.height).data; let n = 0; for (let i = 0; i < p.length; i += 4) n += p[i] + p[i + 1] + p[i + 2] > 60; return n / (p.length / 4); })()"
        browser.wait(f"{lit} > 0.2")
        assert browser.run("document.getElementById('export').disabled") is True
        browser.press("1", "2", "0")
        assert browser.run(progress) == "3 of 6, 1 unsure" and browser.run(place) == "cell 4 of 6"
        browser.press("3", "u", "u")
        assert browser.run(progress) == "2 of 6" and browser.run(place) == "cell 3 of 6"
        browser.press("ArrowLeft", "ArrowLeft", "3")
        assert browser.run(place) == "cell 3 of 6", "the next cell without a label"
        browser.press("4", "9", "x")
        assert browser.run(progress) == "2 of 6", "keys of no class do nothing"
        browser.click("#classes button:nth-child(2)")
        browser.click("#who")
        browser.press("A", "d", "a", "2")
        assert browser.run("document.getElementById('who').value") == "Ada2" and browser.run(progress) == "3 of 6"
        browser.press("Enter")
        outlined = browser.run(lit)
        browser.press("o", "c")
        browser.wait(f"{lit} !== {outlined}")
        assert browser.run(
            "[...document.querySelectorAll('#channels input[type=checkbox]')].map((b) => b.checked)"
        ) == [
            True,
            False,
            False,
        ]
        browser.open(page)  # closed and opened again
        assert browser.run(progress) == "3 of 6" and browser.run("document.getElementById('who').value") == "Ada2"
        browser.press("u")
        assert browser.run(progress) == "2 of 6", "undo outlives the page"
        browser.press("2")
        browser.click("#export")
        file = browser.downloaded()
        assert file.name == "mine-round-01-Ada2.json"
        assert browser.run("document.getElementById('text').value") == file.read_text()
        assert browser.complaints() == [], "the content policy allows all that the page does"
    annotate(screen, "--import", file, "--cells", 4)
    assert "3 labels (2 translocated, 1 condensed): 3 new" in capsys.readouterr().out
    cells = list_of(screen)["cells"]
    rows = {(row["well"], row["object"]): row for row in read_cell_labels(screen / "annotations.tsv")[0]}
    told = [rows[cell["well"], cell["object"]]["class"] for cell in cells[:3]]
    assert told == ["condensed", "translocated", "translocated"]
    assert {row["who"] for row in rows.values()} == {"Ada2"}


@needs_chromium
def test_names_are_texts_and_a_browser_that_keeps_nothing_says_so(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(render_annotation(page_of()))
    with Browser(tmp_path / "browser") as browser:
        refuse = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=refuse)
        browser.open(page)
        assert browser.run("document.querySelector('#classes button:nth-child(2) span').textContent") == HOSTILE
        browser.press("2", "1")
        assert browser.run("document.getElementById('progress').textContent") == "2 of 6"
        assert "does not keep labels" in browser.run("document.getElementById('note').textContent")
        browser.click("#export")
        labels = json.loads(browser.downloaded().read_text())["labels"]
        assert [label["class"] for label in labels] == [HOSTILE, "a"] and [label["cell"] for label in labels] == [1, 2]
        assert browser.complaints() == []
