"""The classifier as a step of a screen: tables in, model with its card, tables of classes and what the pages say of them."""

import contextlib
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from plateloom.config import Classification, load_config
from plateloom.engine import parts
from plateloom.errors import ConfigError, PlateLayoutError
from plateloom.planning import STAGES, Screen
from plateloom.report.screen import regression_section
from plateloom.stages import classification as stage
from plateloom.stages.report_classifier import describe_classifier
from plateloom.store.layout import model_folder, plate_folder, record_path, well_table
from plateloom.store.provenance import digest, recipe, write_json
from plateloom.store.tables import read_table, write_table

FEATURES = [f"Cells_Intensity_MeanIntensity_C{i}" for i in range(4)]
WELLS = [f"{row}{column:02d}" for row in "ABCDE" for column in range(1, 7)]
CELLS = 12


def write_screen():
    """Three plates of 30 wells, a third of them negative controls, a third positive ones; the features tell, with an effect of the well."""
    random = np.random.default_rng(0)
    for plate in ("P1", "P2", "P3"):
        controls = [("negative", "positive", "")[i % 3] for i in range(len(WELLS))]
        wells = pd.DataFrame({"Metadata_Well": WELLS, "Metadata_Control": controls})
        wells.insert(0, "Metadata_Plate", plate)
        wells["Metadata_Batch"] = "B2" if plate == "P3" else "B1"
        made = recipe("test", parameters={}, code="", inputs={})
        write_table(plate_folder(plate) / "profiles.parquet", wells, made)
        flags = pd.DataFrame({"Metadata_Well": WELLS, "SourceField": 1, "Reason": ""})
        write_table(plate_folder(plate) / "qc.parquet", flags, made)
        for well, control in zip(WELLS, controls, strict=True):
            center = random.normal(0, 0.4, 4) + 2.0 * (control == "positive")
            keys = {"Metadata_Plate": plate, "Metadata_Well": well, "Metadata_Field": 1}
            table = pd.DataFrame(keys | {"Metadata_ObjectNumber": np.arange(1, CELLS + 1)})
            values = random.normal(center, 0.6, (CELLS, 4))
            features = table.assign(Metadata_SourceField=1).join(pd.DataFrame(values, columns=FEATURES))
            measured = recipe("features", parameters={}, code="", inputs={"labels": "segmented"})
            write_table(well_table(plate, "features", well), features, measured)
            latents = pd.DataFrame(values @ random_turn(), columns=[f"Latent_Autoencoder_{i:02d}" for i in range(4)])
            latents["Latent_error"] = 1e6 * np.arange(CELLS)  # a column that says nothing of the cell
            encoded = recipe("latent", parameters={}, code="", inputs={"model": "encoder-1"})
            write_table(well_table(plate, "latent", well), table.join(latents), encoded)
        for name in ("features", "latent", "profiling", "flagging"):
            made = {"status": "done", "reason": "", "plate": plate, "stage": name}
            write_json(record_path(plate, name), made | {"artefacts": {well: f"{name}-{well}" for well in WELLS}})


@contextlib.contextmanager
def inside(folder):
    """In a screen's folder, with what a job runs with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(parts, "EXECUTION", parts.Execution(threads=1, cluster={"kind": "threads"}))
        yield


@pytest.fixture(scope="session")
def tables(once):
    """The screen of `write_screen`; copy it."""

    def make(folder):
        folder.mkdir()
        with inside(folder):
            write_screen()

    return once("tables", make)


@pytest.fixture
def screen(tables, tmp_path):
    """A copy of the screen of `write_screen`, and the current folder in it."""
    with inside(shutil.copytree(tables, tmp_path / "screen")):
        yield tmp_path / "screen"


@pytest.fixture
def learned(tables, once, tmp_path):
    """What `run` gives of a screen, and the current folder in a copy of it: ``learned(inputs)``."""

    def make(folder, inputs):
        with inside(shutil.copytree(tables, folder)):
            run(inputs=inputs)

    with contextlib.ExitStack() as stack:

        def get(inputs="features"):
            made = once(f"learned_{inputs}", lambda folder: make(folder, inputs))
            stack.enter_context(inside(shutil.copytree(made, tmp_path / "screen")))
            return results()

        yield get


def random_turn():
    return np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]


def learn(**settings):
    """Train; gives the record of the training, and where it lies."""
    chosen = Classification(**{"labels": "controls"} | settings)
    config = {"channels": {"DNA": {"source": "1"}}, "classification": chosen.model_dump()}
    settings = load_config(config | {"latent": {"autoencoder": {"enabled": True}}}).classification.model_dump(
        mode="json"
    )
    every = lambda name: [str(record_path(plate, name)) for plate in ("P1", "P2", "P3")]  # noqa: E731
    record = "results/screen/records/classifier.json"
    stage.train_screen(
        plates=["P1", "P2", "P3"],
        labels="",
        settings=settings,
        code="",
        measured=every("features"),
        profiled=every("profiling"),
        flagged=every("flagging"),
        encoded=every("latent") if settings["inputs"] == "latent" else [],
        record=record,
    )
    return json.loads(Path(record).read_text()), record


def run(**settings):
    """Train and classify; gives the record of the training, the model's description and the classes of P2."""
    found, record = learn(**settings)
    if found["status"] != "done":
        return found, None, None
    stage.classify_part(
        plate="P2",
        part=0,
        parts=1,
        code="",
        trained=record,
        measured=str(record_path("P2", "features")),
        encoded=[str(record_path("P2", "latent"))] if settings.get("inputs") == "latent" else [],
        record=str(record_path("P2", "classes")),
    )
    return results()


def results():
    """The record of the training, the model's description and the classes of P2."""
    found = json.loads(Path("results/screen/records/classifier.json").read_text())
    classes = pd.concat([read_table(well_table("P2", "classes", well)) for well in WELLS], ignore_index=True)
    return found, json.loads((model_folder("classifier") / "model.json").read_text()), classes


@pytest.mark.parametrize("inputs", ["features", "latent"])
def test_controls_are_told_apart_and_the_card_says_of_what_and_how(learned, inputs):
    found, model, classes = learned(inputs)
    card, metrics = model["card"], model["card"]["metrics"]
    assert found["facts"]["balanced_accuracy"] == metrics["balanced_accuracy"] > 0.9
    names = FEATURES if inputs == "features" else [f"Latent_Autoencoder_{i:02d}" for i in range(4)]
    assert card["features"] == names and card["counts"] == {"negative": 360, "positive": 360}
    assert len(model["wells"]) == len(card["groups"]) == 60 and model["batches"] == {"P1": "B1", "P2": "B1", "P3": "B2"}
    assert {"plateloom", "scikit-learn", "skops"} <= set(card["versions"])
    assert {row["by"] for row in metrics["subgroups"]} == {"plate", "batch", "position"}
    assert metrics["sets"]["covered"] > 0.85 and None not in metrics["sets"]["limits"]
    assert len(metrics["learning"]["steps"]) == 4 and metrics["calibration"]["brier"] < 0.2
    assert {"plate", "well", "field", "object", "label", "looks_like"} <= set(metrics["noise"]["suspects"][0])
    keys = ["Metadata_Plate", "Metadata_Well", "Metadata_Field", "Metadata_ObjectNumber"]
    columns = ["Class", "Probability_negative", "Probability_positive", "Set_size", "Novelty"]
    assert list(classes.columns) == keys + columns and classes["Set_size"].isin([0, 1, 2]).all()
    truth = ["positive" if WELLS.index(well) % 3 == 1 else "negative" for well in classes["Metadata_Well"]]
    assert (classes["Class"] == truth).mean() > 0.9


def test_features_in_which_the_cells_around_show_are_learned_from_only_where_that_is_asked_for(screen):
    around = ["Cells_Granularity_1_DNA", "Nuclei_Neighbors_NumberOfNeighbors_5"]
    for plate in ("P1", "P2", "P3"):
        for well in WELLS:
            path = well_table(plate, "features", well)
            table = read_table(path).assign(**dict.fromkeys(around, float(WELLS.index(well) % 3)))
            write_table(path, table, recipe("features", parameters={}, code="", inputs={"labels": "segmented"}))
    assert run()[1]["card"]["features"] == FEATURES
    assert run(surroundings=True)[1]["card"]["features"] == [*FEATURES, *around]


def test_a_batch_is_held_out_whole_and_its_cells_are_classified_by_the_other(screen):
    _, model, _ = run(scheme="batch")
    folds = model["card"]["metrics"]["folds"]
    assert [fold["groups"] for fold in folds] == [["B1"], ["B2"]]
    from plateloom.classification.model import loads

    stored = loads((model_folder("classifier") / "model.skops").read_bytes(), sha256=model["content"])
    group = stage.group_of("batch", "P2", "A01", model["batches"])
    assert stored.pipeline_for(group) is stored.folds[0]


def test_batches_without_names_are_refused(screen):
    for plate in ("P1", "P2", "P3"):
        path = plate_folder(plate) / "profiles.parquet"
        write_table(path, read_table(path).assign(Metadata_Batch=""), recipe("test", parameters={}, code="", inputs={}))
    found, _, _ = run(scheme="batch")
    assert found["status"] == "failed" and "needs the batch of every labeled plate" in found["reason"]


def test_numbers_of_a_table_are_predicted(screen):
    lines = ["plate\twell\tclass"]
    lines += [
        f"{plate}\t{well}\t{2.5 * (i % 3 == 1)}" for plate in ("P1", "P3") for i, well in enumerate(WELLS) if i % 3 < 2
    ]
    (screen / "labels.tsv").write_text("\n".join(lines) + "\n")
    found, model, classes = run(labels="labels.tsv", target="number", method="ridge")
    assert found["facts"]["r2"] > 0.7 and model["card"]["classes"] == []
    assert (classes["Class"] == "").all()
    high = classes["Metadata_Well"].isin([well for i, well in enumerate(WELLS) if i % 3 == 1])
    assert classes.loc[high, "Predicted"].mean() > 2 and classes.loc[~high, "Predicted"].mean() < 0.5
    (row,) = model["card"]["metrics"]["importance"]
    assert row["family"] == "Cells Intensity" and row["loss"] > 0.5
    page = regression_section(describe_classifier([{"status": "done"}], {}))
    assert "Loss of R² when a family is shuffled" in page and "Cells Intensity" in page
    (screen / "labels.tsv").write_text(lines[0] + "\n" + "\n".join(line + "x" for line in lines[1:]) + "\n")
    found, _, _ = run(labels="labels.tsv", target="number", method="ridge")
    assert found["status"] == "failed" and "A label is no number" in found["reason"]


def test_latents_of_another_encoder_are_refused(learned):
    learned("latent")
    path = well_table("P2", "latent", "A01")
    other = recipe("latent", parameters={}, code="", inputs={"model": "encoder-2"})
    write_table(path, read_table(path), other)
    fingerprint = json.loads((model_folder("classifier") / "model.json").read_text())["plateloom"]["fingerprint"]
    with pytest.raises(PlateLayoutError, match="encoder-1, these are of encoder-2"):
        stage.classify_cells("P2", "A01", fingerprint)


def test_latents_of_several_encoders_are_refused_before_anything_is_trained(screen, monkeypatch):
    from plateloom.classification import evaluation

    other = recipe("latent", parameters={}, code="", inputs={"model": "encoder-2"})
    path = well_table("P2", "latent", "A01")
    write_table(path, read_table(path), other)
    monkeypatch.delattr(evaluation, "evaluate")
    found, _ = learn(inputs="latent")
    assert (
        found["status"] == "failed"
        and "of different encoders (encoder-1: P1, P2, P3; encoder-2: P2)" in found["reason"]
    )


def test_a_plate_with_other_pixels_is_left_out_of_training_and_the_record_and_the_page_say_so(
    screen, monkeypatch, caplog
):
    from plateloom.report.screen import classifier_section
    from plateloom.stages import cell_crops
    from plateloom.stages.report_classifier import describe_classifier

    def cut(plate, well, cells, *, out_px, channels, crop_um):
        signal = 0.1 + 0.1 * (WELLS.index(well) % 3 == 1)
        shape = len(cells), len(channels), out_px, out_px
        noise = np.random.default_rng(WELLS.index(well)).normal(0, 0.01, shape)
        yield np.arange(len(cells)), (signal + noise).astype(np.float32)

    monkeypatch.setattr(stage, "cut_cells", cut)
    monkeypatch.setattr(cell_crops, "describe_first", lambda plate: (("DNA",), 0.53 if plate == "P1" else 0.5))
    monkeypatch.setattr(stage, "find_spec", lambda package: None)  # maps of pixels are not looked at here
    small = {"inputs": "crops", "method": "cnn", "folds": 2, "cells": 120}
    small["parameters"] = {"out_px": 16, "width": 2, "epochs": 1}
    found, _ = learn(**small)
    described = json.loads((model_folder("classifier") / "model.json").read_text())
    why = "pixels of 0.53 µm, others 0.5 µm"
    assert found["status"] == "done" and found["facts"]["left_out"] == {"P1": why}
    assert f"P1 is left out of the training: it has {why}" in caplog.text
    assert {well.partition("/")[0] for well in described["wells"]} == {"P2", "P3"}
    assert found["facts"]["cells"] == 2 * 20 * 3 and described["card"]["crops"] == {"pixel_size_um": 0.5}
    page = str(classifier_section(describe_classifier([{"status": "done"}], {})))
    assert f"P1 was left out of the training: it has {why}." in page
    monkeypatch.setattr(cell_crops, "describe_first", lambda plate: (("DNA",), 0.5))
    (model_folder("classifier") / "model.json").unlink()
    found, _ = learn(**small)
    assert "left_out" not in found["facts"] and "left_out" not in json.loads(
        (model_folder("classifier") / "model.json").read_text()
    )


def test_crops_are_read_without_being_in_memory_twice(tmp_path):
    random = np.random.default_rng(0)
    parts = [random.random((n, 2, 32, 32)).astype(np.float16) for n in (9, 0, 3, *[8] * 17)]
    files = [tmp_path / f"{i}.npy" for i in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        np.save(file, part)
    expected = np.concatenate(parts)
    tracemalloc.start()
    try:
        found = stage.read_crops(files, len(expected))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float16 and expected.nbytes <= peak < 1.2 * expected.nbytes


def test_the_training_asks_for_memory_by_its_crops(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plates.tsv").write_text("plate\tsource\nP1\traw\n")

    def crops_gb(**chosen):
        channels = {name: {"source": name} for name in ("DNA", "ER", "GFP", "RNA", "AGP")}
        return Screen({"channels": channels, "classification": chosen}).crops_gb

    crops = {"labels": "controls", "inputs": "crops", "method": "cnn", "cells": 20_000}
    assert crops_gb(**crops, parameters={"out_px": 128}) == pytest.approx(20_000 * 5 * 128**2 * 2 / 1e9)
    assert crops_gb(**crops) == pytest.approx(crops_gb(**crops | {"cells": 80_000}, parameters={"out_px": 32}))
    assert crops_gb() == crops_gb(labels="controls") == crops_gb(inputs="crops", method="cnn") == 0
    rule = (Path(stage.__file__).parents[2] / "rules/classification.smk").read_text()
    assert "mem_mb=memory_for(8 + 3 * SCREEN.crops_gb)" in rule


def test_a_plate_without_a_feature_is_a_fault_of_its_data_and_not_of_the_job(learned):
    learned()
    path = well_table("P2", "features", "A01")
    write_table(path, read_table(path).drop(columns=FEATURES[1]), recipe("test", parameters={}, code="", inputs={}))
    fingerprint = json.loads((model_folder("classifier") / "model.json").read_text())["plateloom"]["fingerprint"]
    with pytest.raises(PlateLayoutError, match="needs 1 features that are not measured here"):
        stage.classify_cells("P2", "A01", fingerprint)


def test_labels_that_do_not_allow_a_test_are_a_fault_of_the_data_and_a_bug_is_none(screen, monkeypatch):
    from plateloom.classification import evaluation

    found, _, _ = run(folds=100)
    assert found["status"] == "failed" and "do not allow an honest test: 60 wells for 100 folds" in found["reason"]

    def broken(*_, **__):
        raise ValueError("operands could not be broadcast together")

    monkeypatch.setattr(evaluation, "find_suspects", broken)
    with pytest.raises(ValueError, match="broadcast"):
        run(coverage=0.8)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels": "controls", "inputs": "latent"}, "latents are made with"),
        ({"labels": "controls", "target": "number", "method": "ridge"}, "controls are classes"),
        ({"labels": "t.tsv", "target": "number", "method": "logistic"}, "logistic learns classes: "),
        ({"labels": "t.tsv", "method": "ridge"}, "ridge learns numbers: set classification.target: number"),
        ({"labels": "t.tsv", "scheme": "cell"}, "classification.scheme"),
        ({"labels": "t.tsv", "method": "knn"}, "Registered: .*nearest_neighbors"),
    ],
)
def test_a_config_that_cannot_be_is_refused_before_anything_starts(settings, words):
    config = {"channels": {"DNA": {"source": "1"}}, "classification": settings}
    with pytest.raises(ConfigError, match=words):
        load_config(config | {"latent": {"autoencoder": {"enabled": False}}})


def test_the_page_of_a_plate_states_shares_with_intervals_and_that_of_the_screen_what_the_test_found(learned):
    from plateloom.report.screen import classifier_section
    from plateloom.stages.report_classes import estimate_class_shares
    from plateloom.stages.report_classifier import describe_classifier

    learned()
    shares = estimate_class_shares("P2", WELLS, [{"status": "done"}])
    truth = [float(WELLS.index(well) % 3 == 1) for well in WELLS]
    positive = shares[shares["class"] == "positive"]
    assert list(positive["Metadata_Well"]) == WELLS and (positive["cells"] + positive["novel"] == CELLS).all()
    inside = (positive["low"] <= truth) & (truth <= positive["high"])
    assert inside.mean() > 0.9 and (positive["high"] > positive["low"]).all()
    sums = shares.groupby("Metadata_Well")["share"].sum()
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    html = str(classifier_section(describe_classifier([{"status": "done"}], {})))
    for words in (
        "Brier score",
        "Precision and recall",
        "Would more labels help?",
        "abstains",
        "Labels to look at again",
    ):
        assert words in html
    assert "Accuracy by plate, batch, position" in html and "false negatives" in html


def test_the_classifier_waits_for_latents_only_where_it_learns_from_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"channels": {"DNA": {"source": "1"}}, "latent": {"autoencoder": {"enabled": True}}}
    Path("plates.tsv").write_text("plate\tsource\nP1\traw\n")
    for inputs, judged in (("features", False), ("latent", False), ("features", True)):
        more = {
            "classification": {"labels": "controls", "inputs": inputs},
            "profiling": {"exclude_badly_restored": judged},
        }
        asked = Screen(config | more)
        assert [("latent" in asked.after(name)) for name in ("classifier", "classes", "profiling", "features")] == [
            inputs == "latent",
            inputs == "latent",
            judged,
            False,
        ]
        order = asked.stages()
        assert sorted(order) == sorted(name for name in STAGES if name != "training")
        assert all(
            order.index(above) < order.index(name) for name in order for above in asked.after(name) if above in order
        )
        assert judged or order == [name for name in STAGES if name in order]


def test_a_classifier_of_latents_is_stale_when_they_are_made_again(tmp_path, monkeypatch):
    from plateloom import status

    monkeypatch.chdir(tmp_path)
    Path("plates.tsv").write_text("plate\tsource\nP1\traw\n")
    made = {"status": "done", "reason": "", "artefacts": {}, "log": "", "seconds": 0.0, "failures": [], "facts": {}}
    config = {"channels": {"DNA": {"source": "1"}}, "classification": {"labels": "controls", "inputs": "latent"}}
    asked = Screen(load_config(config).model_dump(mode="json"))
    for stale, expected in ((status.DONE, status.DONE), (status.MISSING, status.STALE)):
        known = {"settings": digest(asked.recorded_settings("classifier")), "code": asked.code("classifier")}
        write_json("results/screen/records/classifier.json", made | known | {"stage": "classifier"})
        above = [("P1 features", status.State(status.DONE)), ("P1 latent", status.State(stale))]
        found = status._state(asked, "classifier", None, asked.codes, above)
        assert found.state == expected
        assert found.waits_for == ("P1 latent" if stale == status.MISSING else "")


def test_what_a_classifier_goes_by_is_asked_on_plates_held_out(learned):
    learned()
    card = json.loads(Path("results/screen/models/classifier/model.json").read_text())["card"]
    assert card["metrics"]["importance_by"] == "plate" and card["metrics"]["importance"]
    assert {row["low"] for row in card["metrics"]["importance"]} == {None}, "of fewer than five plates"
    assert [row["class"] for row in card["novelty"]["held_out"]] == ["negative", "positive"]
