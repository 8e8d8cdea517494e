"""Encoders in a screen: the columns that they give, what the pages say of them, and cells that are restored badly."""

import json
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from conftest import simulate
from in_process import run_stages
from safetensors.numpy import load_file, save_file
from scipy import ndimage

from plateloom.cli import check
from plateloom.config import load_config
from plateloom.errors import ConfigError, ModelMismatchError
from plateloom.latent import autoencoder, network
from plateloom.latent.crops import crop_cells, normalize_crops
from plateloom.latent.novelty import error_limit
from plateloom.planning import Screen, list_encoder_weights
from plateloom.report.charts import format_number
from plateloom.stages import latent, mosaics
from plateloom.stages.illumination import read_corrected
from plateloom.stages.mosaics import find_centers
from plateloom.stages.novelty import ERROR
from plateloom.stages.ranges import choose_range_fields, measure_range
from plateloom.store import plate as store
from plateloom.store.crops import CropShards, count_crops, read_crops, write_crops
from plateloom.store.provenance import read_json
from plateloom.store.tables import read_record, read_table

DESIGN = {"rows": 2, "columns": 3, "size_px": 256, "cells_per_field": 8.0}
TO_FEATURES = ("conversion", "assembly", "illumination", "quality", "flagging", "segmentation", "features")
TO_PAGES = (*TO_FEATURES, "profiling", "profiles", "autoencoder", "latent", "report", "screen_report")
P1 = Path("results/plates/P1")


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A small screen with its autoencoder and its pages; copy it."""
    folder = simulate(tmp_path_factory.mktemp("latent") / "screen", **DESIGN)
    latent.load_autoencoder.cache_clear()
    run_stages(folder, TO_PAGES)
    return folder


@pytest.fixture
def screen(encoded, tmp_path, monkeypatch):
    folder = shutil.copytree(encoded, tmp_path / "screen")
    monkeypatch.chdir(folder)
    latent.load_autoencoder.cache_clear()
    return folder


def edit(folder, section, **changes):
    """Change a section of the screen's config."""
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    holder = settings
    for name in section.split("."):
        holder = holder.setdefault(name, {})
    holder.update(changes)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def cells_of(folder, kind="latent"):
    return {path.stem: read_table(path) for path in sorted((folder / P1 / kind).glob("*.parquet"))}


def test_each_cell_has_its_latent_columns_and_the_error_of_its_reconstruction(screen):
    card = read_json(screen / "results/screen/models/autoencoder/model.json")
    assert len(card["held_out_errors"]) == card["cells"]["holdout"]
    assert np.mean(card["held_out_errors"]) == pytest.approx(card["history"][-1]["holdout"], rel=1e-3)
    for table in cells_of(screen).values():
        names = [name for name in table if name.startswith("Latent_")]
        assert names == [f"Latent_Autoencoder_{i:02d}" for i in range(8)] + [ERROR]
        assert (table[ERROR] > 0).all()


def test_the_pages_show_the_limit_of_the_error_and_the_share_beyond_it(screen):
    card = read_json(screen / "results/screen/models/autoencoder/model.json")
    limit = error_limit(card["held_out_errors"], 4.0)
    assert f"An error above {limit:.3g}" in (screen / P1 / "report.html").read_text()
    words = (screen / "results/screen/report.html").read_text()
    found = re.search(r"A cell with an error above ([\d.]+) counts as badly reconstructed", words)
    assert float(found[1]) == pytest.approx(limit, rel=0.01)
    assert "Learning curve" in words and "held-out wells" in words and "reconstructed worst" in words


def test_the_cells_shown_as_worst_have_the_largest_errors(screen):
    folder = screen / "results/screen/models/autoencoder"
    card, shown = read_json(folder / "model.json"), load_file(folder / "examples.safetensors")
    model, _ = latent.load_autoencoder(card["plateloom"]["fingerprint"])
    crops, restored = shown["worst"].astype(np.float32)
    scale = model.scale.numpy()
    errors = (((crops - restored) / scale) ** 2).mean(axis=(1, 2, 3))
    expected = sorted(card["held_out_errors"], reverse=True)[: latent.EXAMPLES]
    np.testing.assert_allclose(errors, expected, rtol=0.02)  # pictures are kept in half precision


def test_a_model_of_an_earlier_version_still_has_its_page(screen):
    folder = screen / "results/screen/models/autoencoder"
    card, shown = read_json(folder / "model.json"), load_file(folder / "examples.safetensors")
    card["config"] = {name: card["config"][name] for name in ("channels", "latent_dim", "out_px", "width")}
    del card["held_out_errors"]
    (folder / "model.json").write_text(json.dumps(card))
    save_file({"pairs": shown["pairs"]}, folder / "examples.safetensors")
    for page in (P1 / "records/report/part-0.json", "results/screen/records/screen_report.json"):
        (screen / page).unlink()
    for page in (P1 / "report.html", "results/screen/report.html"):
        (screen / page).unlink()
    run_stages(screen, TO_PAGES)
    words = (screen / "results/screen/report.html").read_text()
    assert "Crops not trained on" in words and "badly reconstructed" not in words
    assert "Badly reconstructed" not in (screen / P1 / "report.html").read_text()


def test_another_limit_trains_nothing_anew(screen):
    model = screen / "results/screen/models/autoencoder/model.json"
    before = model.read_bytes(), model.stat().st_mtime_ns
    edit(screen, "latent.autoencoder", error_limit=1.0)
    run_stages(screen, TO_PAGES[:-1])
    assert (model.read_bytes(), model.stat().st_mtime_ns) == before
    limit = error_limit(read_json(model)["held_out_errors"], 1.0)
    assert f"An error above {limit:.3g}" in (screen / P1 / "report.html").read_text()


def test_the_contrastive_encoder_goes_the_same_way_without_an_error(screen):
    parameters = {"epochs": 2, "out_px": 32, "latent_dim": 5, "batch_size": 32}
    edit(screen, "latent.autoencoder", method="contrastive", parameters=parameters)
    run_stages(screen, TO_PAGES)
    for table in cells_of(screen).values():
        names = [name for name in table if name.startswith("Latent_")]
        assert names == [f"Latent_Contrastive_{i:02d}" for i in range(5)]
        assert np.isfinite(table[names]).all(axis=None)
    assert "Badly reconstructed" not in (screen / P1 / "report.html").read_text()
    words = (screen / "results/screen/report.html").read_text()
    assert "Held-out loss of contrast (NT-Xent)" in words and "; guessing gives" in words
    assert "reconstruct" not in re.sub(r"<style>.*?</style>|<script>.*?</script>", "", words, flags=re.S)


def test_an_unknown_method_and_a_setting_of_another_method_are_mistakes_of_the_config():
    channels = {"DNA": {"source": "1"}}
    with pytest.raises(ConfigError, match=r"latent.autoencoder.method: .*contrastive"):
        load_config({"channels": channels, "latent": {"autoencoder": {"method": "contrastiv"}}})
    chosen = {"method": "contrastive", "parameters": {"variational": True}}
    with pytest.raises(ConfigError, match="latent.autoencoder.parameters.variational"):
        load_config({"channels": channels, "latent": {"autoencoder": chosen}})


def test_cells_that_are_restored_badly_are_left_out_of_profiles_if_asked(screen):
    everything = read_table(screen / P1 / "aggregates.parquet")
    edit(screen, "latent.autoencoder", error_limit=0.5)
    edit(screen, "profiling", exclude_badly_restored=True)
    run_stages(screen, ("profiling", "report"))
    limit = error_limit(read_json(screen / "results/screen/models/autoencoder/model.json")["held_out_errors"], 0.5)
    latents, features = cells_of(screen), cells_of(screen, "features")
    kept = {well: int((table[ERROR] <= limit).sum()) for well, table in latents.items()}
    found = read_table(screen / P1 / "aggregates.parquet").set_index("Metadata_Well")
    assert found["Metadata_CellCount"].to_dict() == kept
    left_out = int(everything["Metadata_CellCount"].sum()) - sum(kept.values())
    assert left_out > 0
    area = "Nuclei_AreaShape_Area"
    for well, table in features.items():
        keys = ["Metadata_Field", "Metadata_ObjectNumber"]
        good = table.merge(latents[well], on=keys).query(f"{ERROR} <= @limit")
        assert found.loc[well, area] == pytest.approx(good[area].median())
    record = read_json(screen / P1 / "records/profiling/part-0.json")
    assert record["facts"]["badly_restored"] == left_out
    assert "cells left out, badly reconstructed" in (screen / P1 / "report.html").read_text()


def test_a_plate_is_complete_without_profiles_while_these_wait_for_the_autoencoder(screen):
    edit(screen, "profiling", exclude_badly_restored=True)
    is_complete = lambda: Screen(yaml.safe_load((screen / "config.yaml").read_text())).is_complete("P1")  # noqa: E731
    assert is_complete()
    (screen / P1 / "records/profiling/part-0.json").unlink()
    assert not is_complete()  # encoded, and yet not profiled: that job has failed
    (screen / P1 / "records/latent/part-0.json").unlink()
    assert is_complete()


def test_leaving_badly_restored_cells_out_needs_a_method_that_restores():
    chosen = {"channels": {"DNA": {"source": "1"}}, "profiling": {"exclude_badly_restored": True}}
    assert load_config(chosen).profiling.exclude_badly_restored
    for wrong in ({"method": "contrastive"}, {"enabled": False}):
        with pytest.raises(ConfigError, match="profiling.exclude_badly_restored"):
            load_config(chosen | {"latent": {"autoencoder": wrong}})


# --------------------------------------------------------------------------------------- masks, ranges, shards, backbones

TO_LATENT = (*TO_FEATURES, "autoencoder", "latent")
MODEL = Path("results/screen/models/autoencoder")


def where_of(well="A01"):
    """What the cells of a well's first field are cut out by, and the cells."""
    made = read_json(P1 / "records/segmentation/part-0.json")["artefacts"][well]
    light = read_json(P1 / "records/illumination/part-0.json")["artefacts"]["illumination"]
    path = store.field_path(P1 / "plate.zarr", well, 1)
    values, centers = find_centers(path, made)
    return path, values, centers, {"flatfield": light, "made": made, "crop_um": 32.0, "side_px": 32}


def cut(well, values, centers, **where):
    """All crops of `cut_crops`, in the order of the cells."""
    found = list(latent.cut_crops("P1", well, 1, values, centers, **where))
    order = np.concatenate([numbers for numbers, _ in found])
    assert sorted(order) == list(range(len(values)))
    return np.concatenate([crops for _, crops in found])[np.argsort(order)]


def test_centers_are_those_of_the_whole_label_image_however_it_is_read(screen, monkeypatch):
    path, values, centers, where = where_of()
    labels = store.read_labels(path, "Nuclei")
    expected = np.unique(labels)[1:]
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(centers, ndimage.center_of_mass(labels > 0, labels, expected))
    monkeypatch.setattr(mosaics, "STRIP_PX", 50)
    again = find_centers(path, where["made"])
    np.testing.assert_array_equal(again[0], values)
    np.testing.assert_array_equal(again[1], centers)


@pytest.mark.parametrize("mask", ["none", "others", "cell"])
def test_crops_of_a_large_image_are_those_of_the_whole_with_their_masks(screen, mask):
    path, values, centers, where = where_of()
    found = cut("A01", values, centers, mask=mask, **where)
    pieces = cut("A01", values, centers, mask=mask, piece_px=90, **where)
    np.testing.assert_array_equal(pieces, found)
    image = read_corrected("P1", "A01", 1, where["flatfield"])
    cells, size = store.read_labels(path, "Cells"), round(32 / store.describe_image(path)["pixel_size_um"])
    for value, center, crop in zip(values, centers, found, strict=True):
        belongs = {"none": cells >= 0, "others": np.isin(cells, [0, value]), "cell": cells == value}[mask]
        expected = crop_cells(np.where(belongs, image, 0), [center], size_px=size, out_px=32)[0]
        np.testing.assert_array_equal(crop, expected)
    if mask != "none":
        assert (found == 0).mean() > (cut("A01", values, centers, mask="none", **where) == 0).mean()


def test_a_masked_screen_is_trained_and_encoded_with_its_masks(screen):
    before = cells_of(screen)["A01"]
    edit(screen, "latent.autoencoder", mask="cell")
    run_stages(screen, TO_LATENT)
    card = read_json(MODEL / "model.json")
    model, _ = latent.load_autoencoder(card["plateloom"]["fingerprint"])
    _, values, centers, where = where_of()
    crops = normalize_crops(cut("A01", values, centers, mask="cell", **where), card["low"], card["high"])
    table = cells_of(screen)["A01"]
    names = [name for name in table if name.startswith("Latent_Autoencoder")]
    np.testing.assert_allclose(table[names].to_numpy(), network.encode(model, crops), atol=1e-5)
    assert np.abs(before[names].to_numpy() - table[names].to_numpy()).max() > 1e-2
    shown = load_file(MODEL / "examples.safetensors")["pairs"][0]
    assert (shown == 0).mean() > 0.2 and card["mask"] == "cell"


def test_the_range_of_a_plate_is_the_median_over_fields_that_are_not_flagged(screen):
    fields, inputs = choose_range_fields("P1")
    qc = read_table(P1 / "qc.parquet")
    good = qc.groupby("Metadata_Well")["Reason"].apply(lambda said: (said == "").all())
    assert {well for well, _, _ in fields} == set(good.index[good]) and len(inputs) == len(fields)
    light = where_of()[-1]["flatfield"]
    channels = tuple(read_json(MODEL / "model.json")["channels"])
    low, high = measure_range("P1", tuple(fields), light, channels)
    planes = [read_corrected("P1", well, image, light) for well, image, _ in fields]
    for i in range(len(channels)):
        expected = np.median([np.percentile(plane[i], (1, 99.9)) for plane in planes], axis=0)
        np.testing.assert_allclose([low[i], high[i]], expected, rtol=1e-6)


@pytest.fixture(scope="module")
def two_plates(tmp_path_factory):
    """Two plates with the same cells, the second half as bright; the first is trained on."""
    folder = simulate(tmp_path_factory.mktemp("plates") / "screen", **DESIGN | {"plates": ("P1", "P2")})
    for path in sorted((folder / "raw/P1").glob("**/*.tif*")):
        target = folder / "raw/P2" / path.relative_to(folder / "raw/P1")
        assert target.exists()
        tifffile.imwrite(target, tifffile.imread(path) // 2)
    edit(folder, "illumination", method="none", parameters={})
    edit(folder, "latent.autoencoder", plates=["P1"])
    run_stages(folder, TO_FEATURES)
    return folder


def test_a_plate_that_was_not_trained_on_is_stretched_by_its_own_range(two_plates, tmp_path, monkeypatch):
    apart = {}
    for normalize in ("screen", "plate"):
        folder = shutil.copytree(two_plates, tmp_path / normalize)
        monkeypatch.chdir(folder)
        latent.load_autoencoder.cache_clear()
        measure_range.cache_clear()
        edit(folder, "latent.autoencoder", normalize=normalize)
        run_stages(folder, TO_LATENT)
        tables = [read_table(folder / f"results/plates/{plate}/latent/A01.parquet") for plate in ("P1", "P2")]
        names = [name for name in tables[0] if name.startswith("Latent_Autoencoder")]
        keys = ["Metadata_Field", "Metadata_ObjectNumber"]
        both = tables[0].merge(tables[1], on=keys, suffixes=("", "_dim"))
        assert len(both) > 0.7 * len(tables[0]), "cells are the same, but for a few pixels"
        bright, dim = both[names].to_numpy(), both[[f"{name}_dim" for name in names]].to_numpy()
        apart[normalize] = np.median(np.linalg.norm(bright - dim, axis=1)) / np.median(np.linalg.norm(bright, axis=1))
        record = read_record(folder / "results/plates/P2/latent/A01.parquet")
        ranges = {name.split("/")[0] for name in record["inputs"] if name.startswith("range")}
        assert ranges == ({"range of P2"} if normalize == "plate" else set())
    assert apart["plate"] < 0.5 * apart["screen"]


def test_the_range_of_a_plate_is_measured_by_its_job_and_not_by_every_worker(two_plates, tmp_path, monkeypatch):
    folder = shutil.copytree(two_plates, tmp_path / "screen")
    monkeypatch.chdir(folder)
    latent.load_autoencoder.cache_clear()
    edit(folder, "latent.autoencoder", normalize="plate")
    run_stages(folder, TO_LATENT[:-1])
    measured = []

    def measure(plate, *rest):
        measured.append((plate, threading.current_thread() is threading.main_thread()))
        return measure_range(plate, *rest)

    monkeypatch.setattr(latent, "measure_range", measure)
    run_stages(folder, ["latent"])
    assert set(measured) == {("P1", True), ("P2", True)}


def test_the_card_says_what_a_pca_of_the_same_size_restores(screen):
    card = read_json(MODEL / "model.json")
    record = read_json("results/screen/records/autoencoder.json")
    assert record["facts"]["pca_error"] == card["pca"] < card["baseline"]
    words = (screen / "results/screen/report.html").read_text()
    assert f"PCA with as many numbers, fitted on the same crops, gives {format_number(card['pca'])}" in words


def test_crops_in_files_are_those_in_memory_and_train_the_same_network(tmp_path):
    random = np.random.default_rng(0)
    crops = random.random((50, 2, 16, 16)).astype(np.float16)
    with CropShards(tmp_path / "shards", (2, 16, 16), per_file=12) as shards:
        for start in range(0, 50, 9):
            shards.append(crops[start : start + 9])
        assert shards.shape == crops.shape and len(list((tmp_path / "shards").iterdir())) == 5
        for index in (slice(0, 50), slice(5, 33), slice(40, 99), slice(3, 3), [49, 0, 11, 12, 13], np.arange(0, 50, 7)):
            np.testing.assert_array_equal(shards[index], crops[index])
        params = autoencoder.Params(out_px=16, latent_dim=3, width=2, epochs=2, batch_size=8)
        on_disk, in_memory = (network.train(some, params=params, holdout=some) for some in (shards, crops))
    assert on_disk.history == in_memory.history


def test_the_crops_of_a_well_are_read_back_block_by_block(tmp_path, monkeypatch):
    crops = np.random.default_rng(0).random((7, 2, 4, 4)).astype(np.float32)
    assert write_crops(tmp_path / "a.crops", [crops[:4], crops[4:]]) == 7
    monkeypatch.setattr("plateloom.store.crops.BLOCK", 3)
    blocks = list(read_crops(tmp_path / "a.crops", (2, 4, 4)))
    assert [len(block) for block in blocks] == [3, 3, 1] and count_crops(tmp_path / "a.crops", (2, 4, 4)) == 7
    np.testing.assert_array_equal(np.concatenate(blocks), crops)
    assert sum(map(len, read_crops(tmp_path / "a.crops", (2, 4, 4), 4))) == 4


def export_program(path, seed):
    """A program that gives five numbers of three planes."""
    torch.manual_seed(seed)
    layers = [torch.nn.Conv2d(3, 5, 5, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    shapes = {"input": {0: torch.export.Dim("pictures", min=1)}}
    program = torch.export.export(
        torch.nn.Sequential(*layers).eval(), (torch.rand(2, 3, 48, 48),), dynamic_shapes=shapes
    )
    torch.export.save(program, path)


def test_a_network_of_other_people_goes_the_same_way_and_its_weights_are_part_of_the_result(screen):
    export_program("own.pt2", 0)
    parameters = {"model": "own.pt2", "out_px": 48, "crop_px": 32, "latent_dim": 4}
    settings = yaml.safe_load((screen / "config.yaml").read_text())
    settings["latent"]["autoencoder"] |= {"method": "backbone", "parameters": parameters}
    (screen / "config.yaml").write_text(yaml.safe_dump(settings))
    run_stages(screen, TO_PAGES)
    card, first = read_json(MODEL / "model.json"), cells_of(screen)
    numbers = 5 * len(card["channels"])
    assert card["weights"].keys() == {"own.pt2"} and card["found"]["numbers"] == numbers
    assert not card["held_out_errors"] and card["pca"] is None
    for table in first.values():
        names = [name for name in table if name.startswith("Latent_")]
        assert names == [f"Latent_Backbone_{i:02d}" for i in range(4)]
        assert np.isfinite(table[names]).all(axis=None)
    words = (screen / "results/screen/report.html").read_text()
    assert "A network of your own, own.pt2, not trained here" in words and f"It gives {numbers} numbers" in words
    assert "Learning curve" not in words and "Badly reconstructed" not in (screen / P1 / "report.html").read_text()
    run_stages(screen, TO_LATENT)
    assert read_json(MODEL / "model.json") == card
    export_program("own.pt2", 1)
    latent.load_autoencoder.cache_clear()
    with pytest.raises(ModelMismatchError, match="own.pt2.*altered"):
        latent.load_autoencoder(card["plateloom"]["fingerprint"])
    run_stages(screen, TO_LATENT)
    assert read_json(MODEL / "model.json")["weights"] != card["weights"]
    assert not cells_of(screen)["A01"].equals(first["A01"])


def test_a_network_that_does_not_take_the_crops_is_said_and_not_tried_again(screen):
    export_program("own.pt2", 0)
    settings = yaml.safe_load((screen / "config.yaml").read_text())
    settings["latent"]["autoencoder"] |= {"method": "backbone", "parameters": {"model": "own.pt2"}}
    (screen / "config.yaml").write_text(yaml.safe_dump(settings))
    run_stages(screen, TO_LATENT)
    record = read_json("results/screen/records/autoencoder.json")
    assert record["status"] == "failed" and "set `out_px: 48`, which is 224" in record["reason"]


def test_weights_that_are_not_there_are_a_mistake_of_the_config(tmp_path):
    chosen = {"method": "backbone", "parameters": {"model": "timm:resnet18", "weights": "w.safetensors"}}
    config = load_config({"channels": {"DNA": {"source": "1"}}, "latent": {"autoencoder": chosen}})
    assert list_encoder_weights(config, tmp_path)[1] == [
        "latent.autoencoder.parameters: no weights at 'w.safetensors'; nothing is downloaded"
    ]
    (tmp_path / "w.safetensors").write_bytes(b"")
    assert list_encoder_weights(config, tmp_path) == (["w.safetensors"], [])
    with pytest.raises(ConfigError, match="weights: timm:resnet18 needs a file"):
        load_config(
            {
                "channels": {"DNA": {"source": "1"}},
                "latent": {"autoencoder": chosen | {"parameters": {"model": "timm:resnet18"}}},
            }
        )


def test_the_check_warns_of_programs_and_names_a_package_that_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "own.pt2").write_bytes(b"")
    monkeypatch.setattr(check, "_installed", lambda package: False)
    said = {}
    for name, parameters in {
        "own": {"model": "own.pt2"},
        "timm": {"model": "timm:resnet18", "weights": "own.pt2"},
    }.items():
        chosen = {"autoencoder": {"method": "backbone", "parameters": parameters}}
        config = load_config({"channels": {"DNA": {"source": "1"}}, "latent": chosen})
        said[name] = [], []
        check._check_network(tmp_path, config, *said[name])
    assert said["own"] == (
        [],
        [
            "config.yaml: warning: backbone: a .pt2 file may run any code when it is read; take it only from whom you trust"
        ],
    )
    assert said["timm"] == (
        [
            "config.yaml: latent.autoencoder.method backbone: the package 'timm' is not installed: pip install timm",
        ],
        [],
    )
