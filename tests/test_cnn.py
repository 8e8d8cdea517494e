"""A network on crops of cells: the same guards as of every classifier, resumed to the bit, stored without pickle."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TO_PROFILES, WITHOUT_GFP
from in_process import run_stages
from pydantic import ValidationError
from safetensors import safe_open

from plateloom.classification import CROP_METHODS
from plateloom.classification.calibration import apply_temperature
from plateloom.classification.cnn import Params
from plateloom.classification.crop_network import BLOCK, CropClassifier, CropNetwork, running
from plateloom.classification.evaluation import evaluate
from plateloom.classification.fitting import fit_method
from plateloom.classification.model import Classifier, dumps, loads, predict_crops, train
from plateloom.config import load_config
from plateloom.errors import ConfigError, DataFault, ModelMismatchError, PlateLayoutError
from plateloom.latent.crops import crop_cells
from plateloom.schema import schema_hash
from plateloom.stages import cell_crops, mosaics
from plateloom.stages import classification as stage
from plateloom.stages.cell_crops import States
from plateloom.stages.cell_labels import find_nuclei
from plateloom.store import plate as store
from plateloom.store.layout import plate_store
from plateloom.store.provenance import read_json, write_json
from plateloom.store.tables import read_record, read_table

FAST = Params(out_px=16, width=4, epochs=6, batch_size=16, learning_rate=5e-3)
CHANNELS = ["DNA", "GFP"]


def make_crops(seed=0, *, signal=1.0, wells=16, cells=10, side=16, plates=2):
    """Cells whose spot lies in the middle or, of class b, off it at any angle; each plate and well has its own brightness."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    nucleus = np.exp(-(rows**2 + columns**2) / 2 / (side / 8) ** 2)
    X, y, groups = [], [], []
    for plate in range(plates):
        effect = random.normal(0, 0.2, 2)
        for well, kind in enumerate(random.permutation(np.arange(wells) % 2)):
            gain = np.exp(effect + random.normal(0, 0.2, 2))
            for angle in random.uniform(0, 2 * np.pi, cells):
                away = side / 4 * signal * kind
                at = rows - away * np.sin(angle), columns - away * np.cos(angle)
                spot = np.exp(-(at[0] ** 2 + at[1] ** 2) / 2 / (side / 12) ** 2)
                image = 0.1 * np.stack([nucleus, spot]) * gain[:, None, None]
                X.append(image + 0.02 + random.normal(0, 0.005, image.shape))
                y.append("ab"[kind])
                groups.append(f"P{plate}/A{well + 1:02d}")
    return np.array(X, np.float16), np.array(y), np.array(groups)


@pytest.fixture(scope="module")
def trained():
    X, y, groups = make_crops()
    folds = []
    metrics = evaluate(X, y, groups, method="cnn", params=FAST, folds=3, kept=folds, n_bootstrap=50)
    options = {"method": "cnn", "params": FAST, "features": CHANNELS, "pixel_size_um": 0.5}
    return train(X, y, groups, metrics=metrics, folds=folds, **options), metrics


def test_it_tells_classes_that_differ_in_where_something_lies(trained):
    model, metrics = trained
    assert metrics["balanced_accuracy"] > 0.95 and metrics["n_groups"] == 32 and len(metrics["folds"]) == 3
    assert json.loads(json.dumps(model.card, allow_nan=False)) == model.card
    assert model.card["features"] == CHANNELS and model.card["crops"] == {"pixel_size_um": 0.5}
    X, y, _ = make_crops(seed=1)
    found = predict_crops(model, X, channels=CHANNELS, pixel_size_um=0.5)
    assert list(found.columns) == ["Class", "Probability_a", "Probability_b", "Set_size", "Novelty"]
    assert (found["Class"] == y).mean() > 0.95
    np.testing.assert_allclose(found.filter(like="Probability_").sum(axis=1), 1, atol=1e-5)
    assert (found["Novelty"] > 1).mean() < 0.15


def test_labeled_cells_are_judged_by_the_fold_that_has_not_seen_them(trained):
    model, metrics = trained
    X, y, groups = make_crops()
    wrong = 0
    for group in np.unique(groups):
        own = groups == group
        found = predict_crops(model, X[own], channels=CHANNELS, pixel_size_um=0.5, group=group)
        wrong += (found["Class"].to_numpy() != y[own]).sum()
    assert wrong / len(y) == pytest.approx(metrics["error"])


def test_cells_unlike_any_labeled_one_are_novel(trained):
    model, _ = trained
    X, _, _ = make_crops(seed=2)
    checkers = 0.12 * (np.indices(X.shape[2:]).sum(axis=0) % 4 < 2)
    strange = (X + checkers).astype(np.float16)
    assert (predict_crops(model, strange, channels=CHANNELS, pixel_size_um=0.5)["Novelty"] > 1).mean() > 0.9


def test_a_crop_is_judged_the_same_whatever_else_is_in_the_call_and_one_with_gaps_not_at_all(trained):
    model, _ = trained
    X = make_crops(seed=3)[0].astype(np.float32)
    X[7, 1, 3] = np.nan
    options = {"channels": CHANNELS, "pixel_size_um": 0.5}
    whole = predict_crops(model, X, **options)
    for rows in (slice(0, 1), slice(5, 9), slice(60, 200)):
        part = predict_crops(model, X[rows], **options)
        np.testing.assert_allclose(part["Probability_b"], whole["Probability_b"][rows], atol=1e-6)
    assert whole["Class"][7] is None and np.isnan(whole["Novelty"][7]) and whole["Class"].notna().sum() == len(X) - 1
    assert len(predict_crops(model, X[:0], **options)) == 0


def test_convolutions_run_once_per_crop_and_give_the_same(trained, monkeypatch):
    model, _ = trained
    X, _, groups = make_crops(seed=6)
    estimator, rows = model.pipeline["estimator"], []
    expected = estimator.predict_proba(X)
    np.testing.assert_array_equal(estimator.predict_proba(X, hidden=estimator.embed(X)), expected)
    convolved = CropClassifier.embed
    monkeypatch.setattr(CropClassifier, "embed", lambda self, crops: rows.append(len(crops)) or convolved(self, crops))
    options = {"channels": CHANNELS, "pixel_size_um": 0.5}
    found = predict_crops(model, X, **options)
    assert rows == [BLOCK] * (len(X) // BLOCK)
    calibrated = apply_temperature(expected, model.card["metrics"]["calibration"]["temperature"])
    np.testing.assert_array_equal(found.filter(like="Probability_"), calibrated.astype(np.float32))
    rows.clear()
    predict_crops(model, X, **options, group=groups[0])
    assert len(rows) == 2 * len(X) // BLOCK, (
        "novelty is of the model, the class of the fold that has not seen the group"
    )


def test_no_product_is_rounded_to_tf32_in_training_or_use(monkeypatch):
    X, y, groups = make_crops(wells=4, plates=1)
    seen, convolved = [], CropClassifier.embed

    def embed(self, crops):
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, self.training))
        return convolved(self, crops)

    monkeypatch.setattr(CropClassifier, "embed", embed)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        CropNetwork(width=2, epochs=1).fit(X, y, groups).predict(X)
        assert torch.backends.cuda.matmul.allow_tf32, "as it was"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert set(seen) == {(False, False, True), (False, False, False)}


def test_other_channels_pixels_crops_and_tables_are_refused(trained):
    model, _ = trained
    X = make_crops(seed=4)[0][:3]
    with pytest.raises(ModelMismatchError, match="channels DNA, GFP, the crops have GFP, DNA"):
        predict_crops(model, X, channels=CHANNELS[::-1], pixel_size_um=0.5)
    with pytest.raises(ModelMismatchError, match="0.5 µm/px, these have 0.65 µm/px"):
        predict_crops(model, X, channels=CHANNELS, pixel_size_um=0.65)
    with pytest.raises(ModelMismatchError, match=r"\(2, 16, 16\).*these have \(2, 32, 32\)"):
        predict_crops(model, np.zeros((1, 2, 32, 32), np.float32), channels=CHANNELS, pixel_size_um=0.5)


def test_it_is_stored_as_tensors_and_json_and_comes_back_the_same(trained):
    model, _ = trained
    data = dumps(model)
    again = loads(data, sha256=hashlib.sha256(data).hexdigest())
    assert again.card == model.card and dumps(again) == data
    X, _, groups = make_crops(seed=5)
    options = {"channels": CHANNELS, "pixel_size_um": 0.5, "group": groups[0]}
    np.testing.assert_array_equal(predict_crops(again, X, **options), predict_crops(model, X, **options))
    with pytest.raises(ModelMismatchError, match="SHA-256"):
        loads(data, sha256="0" * 64)
    for broken in (
        data[: len(data) // 2],
        data[:40],
        data.replace(b"plateloom-crop", b"plateloom-crap"),
        pickle.dumps(1),
    ):
        with pytest.raises(ModelMismatchError):
            loads(broken)
    forged = Classifier(model.pipeline, model.card | {"schema": "0" * 12}, model.novelty)
    with pytest.raises(ModelMismatchError, match="schema"):
        loads(dumps(forged))


class Dies(dict):
    """States of which the last is kept when the power goes."""

    def __init__(self, number):
        self.left = number

    def __setitem__(self, name, state):
        super().__setitem__(name, {key: value.clone() for key, value in state.items()})
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 5, 8])
def test_a_training_that_was_killed_goes_on_to_the_same_result(after):
    X, y, groups = make_crops(cells=5)
    options = {"method": "cnn", "params": FAST, "folds": 2, "n_bootstrap": 0}
    whole, broken, again = [], [], []
    expected = evaluate(X, y, groups, kept=whole, **options)
    states = Dies(after)
    with pytest.raises(KeyboardInterrupt), running(states=states):
        evaluate(X, y, groups, kept=broken, **options)
    assert len(broken) == (after > FAST.epochs), "one fold is whole"
    kept = dict(states)
    with running(states=kept):
        assert evaluate(X, y, groups, kept=again, **options) == expected
    assert len(kept) == 2, "one state per fold"
    for one, other in zip(whole, again, strict=True):
        pair = one["estimator"].network_.state_dict(), other["estimator"].network_.state_dict()
        assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])
        assert one["estimator"].history_ == other["estimator"].history_


def test_states_lie_in_files_and_belong_to_one_training_only(tmp_path):
    X, y, groups = make_crops(cells=3)
    states = States(tmp_path)
    assert states.get("unknown") is None
    with running(states=states):
        first, _ = fit_method(X, np.unique(y, return_inverse=True)[1], groups, method="cnn", params=FAST)
        (name,) = states
        other = X.copy()
        other[0] += 0.1
        fit_method(other, np.unique(y, return_inverse=True)[1], groups, method="cnn", params=FAST)
    assert len(states) == 2 and name in states
    assert len(states[name]["losses"]) == len(first["estimator"].history_)


def test_whole_groups_are_kept_for_tuning_and_the_best_epoch_is_kept():
    X, y, groups = make_crops()
    network = CropNetwork(width=4, epochs=8, seed=1)
    network.classes_ = np.array(["a", "b"])
    truth = np.unique(y, return_inverse=True)[1]
    learn, tuning = network._split(truth, groups)
    assert len(tuning) and not set(groups[learn]) & set(groups[tuning]) and len(learn) + len(tuning) == len(y)
    assert set(truth[tuning]) == {0, 1}
    found = CropNetwork(width=4, epochs=8).fit(X, y, groups)
    losses = [row["tuning"] for row in found.history_]
    assert losses[found.epoch_ - 1] == min(losses)
    few = CropNetwork(width=4, epochs=2).fit(X, y, np.array([name.partition("/")[0] for name in groups]))
    assert few.epoch_ == 2 and few.history_[0]["tuning"] is None and "Too few groups" in few.notes_[0]


def test_it_stops_when_the_groups_kept_for_tuning_gain_nothing():
    X, y, groups = make_crops(signal=0.0, cells=6)
    found = CropNetwork(width=8, epochs=40, patience=3, learning_rate=1e-2).fit(X, y, groups)
    assert len(found.history_) < 40 and found.epoch_ == len(found.history_) - 3


def diverge_in(monkeypatch, epoch, where):
    """Let the loss on the groups kept for tuning be NaN from an epoch on, or also the weights."""
    truly, seen = CropNetwork._tuning_loss, []

    def held(self, network, X, truth, tuning):
        seen.append(1)
        if len(seen) >= epoch:
            if where == "weights":
                network.head.bias.data[0] = np.nan
            return float("nan")
        return truly(self, network, X, truth, tuning)

    monkeypatch.setattr(CropNetwork, "_tuning_loss", held)


@pytest.mark.parametrize("grouped", [True, False])
def test_a_network_that_diverges_stops_with_the_best_epoch_before(monkeypatch, grouped):
    X, y, groups = make_crops(cells=4)
    groups = groups if grouped else None
    diverge_in(monkeypatch, 4, "loss" if grouped else "weights")
    found = CropNetwork(width=4, epochs=20, seed=1, patience=20).fit(X, y, groups)
    assert len(found.history_) == 3 and found.epoch_ <= 3 and "diverged in epoch 4" in found.notes_[-1]
    assert np.isfinite(found.predict_proba(X)).all()
    if grouped:
        losses = [row["tuning"] for row in found.history_]
        assert losses[found.epoch_ - 1] == min(losses)


@pytest.mark.parametrize("grouped", [True, False])
def test_a_network_that_diverges_at_once_is_a_fault_that_names_the_setting(grouped):
    X, y, groups = make_crops(cells=4)
    with pytest.raises(DataFault, match="diverged; lower its learning_rate"):
        CropNetwork(width=4, epochs=3, learning_rate=1e30).fit(X, y, groups if grouped else None)


def test_a_header_that_claims_another_network_is_refused_before_anything_is_built(trained):
    model, _ = trained
    config, tensors = model.pipeline["estimator"].to_tensors()
    again = CropNetwork.from_tensors(config, tensors)
    assert not any(value.is_meta for value in again.network_.state_dict().values())
    huge = config | {"params": config["params"] | {"width": 100_000}}  # 10 TB
    with pytest.raises(ModelMismatchError, match="not those of the network"):
        CropNetwork.from_tensors(huge, tensors)
    with pytest.raises(ModelMismatchError, match="not those of the network"):
        CropNetwork.from_tensors(config, {name: value.double() for name, value in tensors.items()})
    names = [*CHANNELS, "ER"]
    for claimed in ({"features": names, "schema": schema_hash(names)}, {"classes": ["a", "b", "c"]}):
        with pytest.raises(ModelMismatchError, match="other channels or classes than its card"):
            loads(dumps(Classifier(model.pipeline, model.card | claimed, model.novelty)))


def test_turning_or_mirroring_the_cells_changes_little(trained):
    model, _ = trained
    X, y, _ = make_crops(seed=6)
    turned = np.ascontiguousarray(np.rot90(X, 1, axes=(2, 3))[..., ::-1])
    found = predict_crops(model, turned, channels=CHANNELS, pixel_size_um=0.5)
    assert (found["Class"] == y).mean() > 0.95


def test_unequal_classes_are_weighed_or_drawn_from():
    X, y, groups = make_crops(cells=8)
    rare = (y == "a") | (np.arange(len(y)) % 8 == 0)
    X, y, groups = X[rare], y[rare], groups[rare]
    for balance in ("weights", "subsample"):
        found = evaluate(X, y, groups, method="cnn", params=FAST, folds=2, balance=balance, n_bootstrap=0)
        assert {row["class"]: row["recall"] for row in found["per_class"]}["b"] > 0.8


@pytest.mark.slow
def test_a_screen_without_signal_is_at_chance_though_wells_differ():
    scores = []
    for seed in range(12):
        X, y, groups = make_crops(seed, signal=0.0, cells=6, wells=12)
        found = evaluate(X, y, groups, method="cnn", params=FAST, folds=4, n_bootstrap=0)
        scores.append(found["balanced_accuracy"])
    assert abs(np.mean(scores) - 0.5) < 0.04


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValidationError, match="multiple of 16"):
        Params(out_px=40)
    with pytest.raises(ValidationError):
        Params(split_by_cell=True)
    config = {"channels": {"DNA": {"source": "1"}}}
    for chosen, words in (
        ({"labels": "controls", "inputs": "crops", "method": "logistic"}, "inputs: crops needs method: cnn"),
        ({"labels": "controls", "inputs": "features", "method": "cnn"}, "cnn learns from crops: set"),
        ({"labels": "t.tsv", "inputs": "crops", "method": "cnn", "target": "number"}, "is for classes"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(config | {"classification": chosen})
    assert set(CROP_METHODS) == {"cnn"}


@pytest.fixture(scope="module")
def made_screen(profiled_screen, once):
    """A small screen whose cells are classified by their crops, and its page; copy it."""

    def make(folder):
        shutil.copytree(profiled_screen, folder)
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        parameters = {"out_px": 16, "width": 4, "epochs": 6, "crop_um": 24.0, "learning_rate": 5e-3}
        settings["classification"] = {"labels": "controls", "inputs": "crops", "method": "cnn", "folds": 2}
        settings["classification"]["parameters"] = parameters
        settings["latent"]["autoencoder"]["enabled"] = False
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        more = ("profiles", "map", "maps", "classifier", "classes", "report", "screen_report")
        run_stages(folder, (*TO_PROFILES, *more))

    return once("classified_by_crops", make)


@pytest.fixture
def classified(made_screen, tmp_path, monkeypatch):
    folder = shutil.copytree(made_screen, tmp_path / "screen")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
def test_cells_of_a_screen_are_classified_by_their_crops(classified):
    record = read_json("results/screen/records/classifier.json")
    folder = Path("results/screen/models/classifier")
    described = read_json(folder / "model.json")
    card = described["card"]
    assert record["status"] == "done" and record["facts"]["balanced_accuracy"] == card["metrics"]["balanced_accuracy"]
    assert sorted(card["features"]) == ["DNA", "ER", "GFP"]
    assert {path.name for path in folder.iterdir()} == {"model.json", "model.safetensors", "examples.safetensors"}
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert len(json.loads(file.metadata()["plateloom"])["networks"]) == 3, "of the screen, and of two folds"
    assert {"torch", "safetensors"} <= set(card["versions"])
    assert {row["family"] for row in card["metrics"]["importance"]} == set(card["features"])
    assert [row["tested_on"] for row in card["metrics"]["graded"]][:2] == ["same well", "other well"]
    for path in Path("results/plates/P1/features").glob("*.parquet"):
        cells, classes = read_table(path), read_table(Path(f"results/plates/P1/classes/{path.name}"))
        assert list(classes["Metadata_ObjectNumber"]) == list(cells["Metadata_ObjectNumber"])
        seen = path.stem != WITHOUT_GFP
        assert (classes["Class"].isin(["negative", "positive"]) == seen).all()
        assert (classes["Novelty"].notna() == seen).all()
    page = Path("results/screen/report.html").read_text()
    for words in ("Training of the network", "What it goes by: channels", "Nearly alike, and of two classes"):
        assert words in page


def cut_cells(plate, well, table, **options):
    """All crops of `cell_crops.cut_cells`, in the order of the cells."""
    rows, crops = zip(*cell_crops.cut_cells(plate, well, table, **options), strict=True)
    assert sorted(np.concatenate(rows)) == list(range(len(table)))
    return np.concatenate(crops)[np.argsort(np.concatenate(rows))]


@pytest.mark.slow
def test_a_crop_shows_the_cell_that_it_is_named_after(classified):
    table = read_table(next(Path("results/plates/P1/features").glob("*.parquet")))
    plate, well = table["Metadata_Plate"][0], table["Metadata_Well"][0]
    options = {"crop_um": 20.0, "out_px": 16, "channels": ["DNA"]}
    crops = cut_cells(plate, well, table, **options)
    bright = crops[:, 0, 6:10, 6:10].mean(axis=(1, 2))
    column = "Nuclei_Intensity_MeanIntensity_DNA"
    assert np.corrcoef(bright, table[column])[0, 1] > 0.8
    shuffled = table.sample(frac=1, random_state=0)
    np.testing.assert_array_equal(cut_cells(plate, well, shuffled, **options), crops[shuffled.index])
    gone = table.assign(Metadata_ObjectNumber=table["Metadata_ObjectNumber"] + 10_000)
    assert np.isnan(cut_cells(plate, well, gone, **options)).all()
    with pytest.raises(PlateLayoutError, match="needed are also Actin"):
        cut_cells(plate, well, table, **options | {"channels": ["DNA", "Actin"]})


@pytest.mark.slow
def test_nuclei_are_found_strip_by_strip(classified, monkeypatch):
    (path, *_) = sorted(Path("results/plates/P1/features").glob("*.parquet"))
    made = read_record(path)["inputs"]["labels"]
    labels = store.read_labels(store.field_path(plate_store("P1"), path.stem, 1), "Nuclei", made=made)
    truly, heights = store.read_labels, []

    def read(*given, **options):
        found = truly(*given, **options)
        heights.append(len(found))
        return found

    monkeypatch.setattr(store, "read_labels", read)
    monkeypatch.setattr(mosaics, "STRIP_PX", 50)
    values, centers, radii = find_nuclei("P1", path.stem, 1, made)
    assert max(heights) == 50 and sum(heights) == len(labels) > 100
    expected = {value: np.argwhere(labels == value) for value in np.unique(labels[labels > 0])}
    assert values.dtype == np.int64 and values.tolist() == sorted(expected)
    np.testing.assert_allclose(centers, [pixels.mean(axis=0) for pixels in expected.values()], rtol=1e-12)
    np.testing.assert_allclose(radii, [np.sqrt(len(pixels) / np.pi) for pixels in expected.values()], rtol=1e-12)


@pytest.mark.slow
def test_training_again_gives_the_same_file_and_features_in_its_place_leave_nothing_behind(classified):
    folder = classified / "results/screen/models/classifier"
    before = (folder / "model.safetensors").read_bytes()
    (folder / "model.json").unlink()
    run_stages(classified, (*TO_PROFILES, "classifier"))
    assert (folder / "model.safetensors").read_bytes() == before
    settings = yaml.safe_load((classified / "config.yaml").read_text())
    settings["classification"] = {"labels": "controls", "folds": 2}
    (classified / "config.yaml").write_text(yaml.safe_dump(settings))
    run_stages(classified, (*TO_PROFILES, "classifier", "classes"))
    assert read_json(classified / "results/plates/P1/records/classes/part-0.json")["status"] == "done"
    assert sorted(path.name for path in folder.iterdir()) == ["examples.safetensors", "model.json", "model.skops"]


@pytest.mark.slow
def test_cells_to_label_are_chosen_by_features_where_a_network_learns_from_the_labels(classified):
    from plateloom.cli.annotate import _read_settings

    chosen = _read_settings()["classification"]
    assert (chosen["inputs"], chosen["method"], chosen["folds"]) == ("features", "logistic", 2)


@pytest.mark.slow
def test_the_cells_of_a_well_are_classified_block_by_block(classified, monkeypatch):
    (path, *_) = sorted(Path("results/plates/P1/classes").glob("*.parquet"))
    made = read_json("results/screen/models/classifier/model.json")["plateloom"]["fingerprint"]
    monkeypatch.setattr(cell_crops, "BLOCK", 3)
    seen = []
    monkeypatch.setattr(
        cell_crops,
        "crop_cells",
        lambda *given, **more: seen.append(len(given[1])) or crop_cells(*given, **more),
    )
    found = stage.classify_cells("P1", path.stem, made)
    assert max(seen) == 3 and sum(seen) == len(found) > 3
    pd.testing.assert_frame_equal(found, read_table(path), rtol=1e-5)


@pytest.mark.slow
def test_a_plate_with_other_channels_or_pixels_is_a_fault_of_its_data(classified, monkeypatch):
    (path, *_) = sorted(Path("results/plates/P1/classes").glob("*.parquet"))
    made = read_json("results/screen/models/classifier/model.json")["plateloom"]["fingerprint"]
    truly = store.describe_image
    monkeypatch.setattr(store, "describe_image", lambda image: truly(image) | {"pixel_size_um": 7.0})
    with pytest.raises(PlateLayoutError, match="P1: The model was trained on images with .* these have 7 µm/px"):
        stage.classify_cells("P1", path.stem, made)
    monkeypatch.setattr(store, "describe_image", lambda image: truly(image) | {"channels": ["DNA"]})
    with pytest.raises(PlateLayoutError, match="needed are also ER, GFP"):
        stage.classify_cells("P1", path.stem, made)


def test_plates_that_differ_from_most_are_not_learned_from(monkeypatch):
    plates = {
        "P1": (("DNA", "ER"), 0.5),
        "P2": (("DNA", "ER"), 0.51),
        "P3": (("DNA", "ER"), 0.6),
        "P4": (("DNA",), 0.5),
    }
    monkeypatch.setattr(cell_crops, "describe_first", plates.get)
    both = ["DNA", "ER"]
    assert cell_crops.alike_plates({"P1": 3, "P2": 3}) == (both, 0.5, {})
    pixels, channels = "pixels of 0.6 µm, others 0.5 µm", "the channels DNA, others DNA, ER"
    assert cell_crops.alike_plates({"P1": 2, "P3": 3, "P2": 2}) == (both, 0.5, {"P3": pixels})
    assert cell_crops.alike_plates(dict.fromkeys(plates, 1)) == (both, 0.5, {"P3": pixels, "P4": channels})
    odd = "the channels DNA, ER, others DNA"
    assert cell_crops.alike_plates({"P1": 2, "P4": 3}) == (["DNA"], 0.5, {"P1": odd})
    with pytest.raises(PlateLayoutError, match="different channels"):
        cell_crops.same_channels(["P1", "P4"])


@pytest.mark.slow
def test_a_picture_that_cannot_be_cut_does_not_lose_the_model(classified, monkeypatch, caplog):
    truly = cell_crops.cut_cells

    def cut(plate, well, cells, **options):
        if options["out_px"] == stage.PICTURE_PX:
            raise OSError("bad sector")
        return truly(plate, well, cells, **options)

    monkeypatch.setattr(cell_crops, "cut_cells", cut)
    folder = classified / "results/screen/models/classifier"
    (folder / "model.json").unlink()
    run_stages(classified, (*TO_PROFILES, "classifier"))
    described = read_json(folder / "model.json")
    assert described["card"]["metrics"]["pairs"] and "pictures" not in described
    assert "bad sector" in caplog.text


@pytest.mark.slow
def test_pictures_that_cannot_be_read_are_found_and_only_they_are_missing_on_the_page(classified):
    from plateloom.repair import find_damage
    from plateloom.report.screen import classifier_section
    from plateloom.stages.report_classifier import describe_classifier

    path = classified / "results/screen/models/classifier/examples.safetensors"
    for data in (path.read_bytes()[:-9], b""):
        path.write_bytes(data)
        assert "examples.safetensors cannot be read" in str(
            classifier_section(describe_classifier([{"status": "done"}], {}))
        )
        (found,) = find_damage(classified, "", deep=False)
        assert (found.file, found.reason) == ("models/classifier/examples.safetensors", "cannot be read")
    path.unlink()
    (found,) = find_damage(classified, "", deep=False)
    assert found.reason == "is missing"


@pytest.mark.slow
def test_another_model_of_the_same_recipe_is_read_again(classified):
    folder = Path("results/screen/models/classifier")
    described = read_json(folder / "model.json")
    made, kept = described["plateloom"]["fingerprint"], (folder / "model.safetensors").read_bytes()
    first = stage.load_classifier(made)
    assert stage.load_classifier(made) is first
    other = Classifier(first.pipeline, first.card | {"warnings": ["trained elsewhere"]}, first.novelty, first.folds)
    (folder / "model.safetensors").write_bytes(dumps(other))
    content = hashlib.sha256(dumps(other)).hexdigest()
    write_json(folder / "model.json", described | {"content": content})
    assert stage.load_classifier(made).card["warnings"] == ["trained elsewhere"]
    (folder / "model.safetensors").write_bytes(kept)


@pytest.mark.slow
def test_a_damaged_network_is_found_and_made_again(classified):
    from plateloom.repair import find_damage

    assert not [one for one in find_damage(classified, "", deep=True) if one.stage == "classifier"]
    path = classified / "results/screen/models/classifier/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (found,) = [one for one in find_damage(classified, "", deep=True) if one.stage == "classifier"]
    assert found.file == "models/classifier/model.safetensors"
