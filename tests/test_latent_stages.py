"""Encoders in a screen: the columns that they give, what the pages say of them, and cells that are restored badly."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import simulate
from in_process import run_stages
from safetensors.numpy import load_file, save_file

from plateloom.config import load_config
from plateloom.errors import ConfigError
from plateloom.latent.novelty import error_limit
from plateloom.planning import Screen
from plateloom.stages import latent
from plateloom.stages.novelty import ERROR
from plateloom.store.provenance import read_json
from plateloom.store.tables import read_table

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
    run_stages(screen, TO_PAGES)
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
    run_stages(screen, TO_PAGES)
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
