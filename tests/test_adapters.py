"""Networks of other people: the same on tiles, honest about what they need, and run for real where they are installed."""

import importlib.machinery
import json
import logging
import os
import re
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
import yaml
from adapters import CHANNELS, DIAMETER_PX, PIXEL_UM, draw
from conftest import ROOT, simulate
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import run_stages
from pydantic import ValidationError
from scipy import ndimage
from test_segmentation import assert_contract

from plateloom import devices
from plateloom.cli.check import find_problems
from plateloom.config import load_config
from plateloom.errors import ConfigError, ModelMismatchError, TileOverlapError
from plateloom.planning import Screen
from plateloom.registry import load_method
from plateloom.segmentation import METHODS, describe_run, make_method, segment_image
from plateloom.segmentation.blocks import Blocks
from plateloom.segmentation.foreign import _name_cells
from plateloom.status import read_screen
from plateloom.store import plate
from plateloom.store.provenance import read_json
from plateloom.tiling import cut_tiles

ADAPTERS = ("cellpose", "instanseg", "stardist")
each_adapter = pytest.mark.parametrize("name", ADAPTERS)
WANTED = {
    "nuclei_channel": "DNA",
    "cells_channel": "ER",
    "nucleus_diameter_um": DIAMETER_PX * PIXEL_UM,
    "nucleus_diameter_max_um": 15.0,
    "cell_diameter_um": 20.0,
    "cell_diameter_max_um": 25.0,
}


# --- blocks ----------------------------------------------------------------------------------------------------------


def moody(view):
    """A network that judges everything by all that it sees: labels of what is above a level that depends on it."""
    level = 0.25 + 0.3 * (float(view[0].mean()) * 37 % 1)
    return ndimage.label(view[0] > level)[0]


def scatter(shape, count, seed, radius=6.0):
    """Cones at random, many of which touch."""
    random = np.random.default_rng(seed)
    image = np.zeros(shape, np.float32)
    for _ in range(count):
        cy, cx = random.uniform(0, shape[0]), random.uniform(0, shape[1])
        y, x = np.mgrid[max(int(cy) - 8, 0) : int(cy) + 9, max(int(cx) - 8, 0) : int(cx) + 9]
        inside = (y < shape[0]) & (x < shape[1])
        y, x = y[inside], x[inside]
        image[y, x] = np.maximum(image[y, x], np.clip(1 - np.hypot(y - cy, x - cx) / radius, 0, 1))
    return image[None]


def in_tiles(blocks, find, image, tile_px):
    found = np.zeros(image.shape[1:], np.int64)
    for tile in cut_tiles(image.shape[1:], tile_px, halo_px=blocks.halo_px):
        found[tile.core] = blocks.find_objects(find, image[:, *tile.window], tile.origin, tile.inner)
    return found


@settings(max_examples=15, deadline=None)
@given(st.integers(150, 420), st.integers(150, 420), st.integers(8, 20), st.integers(50, 300), st.integers(0, 2**16))
def test_a_network_that_minds_its_surroundings_says_the_same_in_tiles(height, width, longest, tile_px, seed):
    image = scatter((height, width), height * width // 900, seed)
    blocks = Blocks((height, width), longest_px=longest, context_px=5, block_px=64)
    whole = in_tiles(blocks, moody, image, None)
    np.testing.assert_array_equal(in_tiles(blocks, moody, image, tile_px), whole)


def test_a_moody_network_does_differ_where_tiles_are_not_blocks():
    # What the test above would be worth nothing without.
    image = scatter((400, 400), 180, 0)
    naive = [moody(image[:, :200, :200]) > 0, moody(image[:, :210, :200])[:200] > 0]
    assert (naive[0] != naive[1]).any()


def test_objects_on_the_borders_of_blocks_are_neither_lost_nor_doubled_nor_cut():
    shape, side = (400, 400), 128
    image = np.zeros((1, *shape), np.float32)
    truth = np.zeros(shape, int)
    for number, (y, x) in enumerate(
        [(128, 60), (128, 128), (256, 256), (60, 256), (300, 128), (20, 20), (399, 399)], 1
    ):
        rows, columns = np.ogrid[: shape[0], : shape[1]]
        disc = (rows - y) ** 2 + (columns - x) ** 2 <= 81
        image[0][disc], truth[disc] = 1, number

    def shaky(view):
        """Places each object up to 2 px elsewhere, by where the window begins."""
        shift = [int(edge.sum() * 7) % 5 - 2 for edge in (view[0][0], view[0][:, 0] + view[0].mean())]
        return ndimage.label(np.roll(view[0], shift, (0, 1)) > 0.5)[0]

    blocks = Blocks(shape, longest_px=20, context_px=6, block_px=side)
    assert blocks.block_px == side
    for find, spared in ((lambda view: ndimage.label(view[0] > 0.5)[0], 1.0), (shaky, 0.6)):
        found = in_tiles(blocks, find, image, None)
        assert len(np.unique(found)) - 1 == truth.max()
        for number in range(1, truth.max() + 1):
            values, counts = np.unique(found[truth == number], return_counts=True)
            assert counts[values > 0].max() >= spared * counts.sum()


def test_ids_are_the_places_of_first_pixels_in_the_whole_image():
    image = np.zeros((1, 30, 40), np.float32)
    image[0, 3:6, 7:9] = image[0, 20, 30] = 1
    blocks = Blocks((30, 40), longest_px=6, context_px=2)
    found = blocks.find_objects(lambda view: ndimage.label(view[0])[0], image, (0, 0), (slice(0, 30), slice(0, 40)))
    assert np.unique(found).tolist() == [0, 3 * 40 + 7 + 1, 20 * 40 + 30 + 1]


def test_longer_objects_than_agreed_are_left_out_wherever_they_lie():
    image = np.zeros((1, 300, 300), np.float32)
    image[0, 150, 20:280] = image[0, 40:50, 40:50] = 1
    blocks = Blocks((300, 300), longest_px=12, context_px=4, block_px=64)
    found = in_tiles(blocks, lambda view: ndimage.label(view[0])[0], image, 100)
    np.testing.assert_array_equal(found > 0, image[0] * (np.arange(300)[:, None] < 100) > 0)


def test_a_narrow_halo_is_refused_and_the_one_asked_for_is_enough():
    blocks = Blocks((3000, 3000), longest_px=12, context_px=4, block_px=128)
    image, core = np.zeros((1, 700, 700), np.float32), slice(300, 400)
    with pytest.raises(TileOverlapError, match=f"need a halo of {blocks.halo_px} px"):
        blocks.find_objects(lambda view: view[0].astype(int), image, (1000, 1000), (core, slice(20, 60)))
    need = blocks.halo_px
    for start in range(900, 900 + 2 * blocks.block_px, 31):
        view = np.zeros((1, 2 * need + 40, 2 * need + 40), np.float32)
        inner = slice(need, need + 40)
        blocks.find_objects(lambda view: view[0].astype(int), view, (start, start), (inner, inner))


def test_a_cell_is_that_of_the_nucleus_that_fills_most_of_it():
    objects = np.array([[10, 10, 10, 10, 0, 20, 20, 0, 0, 0]])
    nuclei = np.array([[0, 1, 2, 2, 0, 0, 0, 0, 3, 0]])
    np.testing.assert_array_equal(_name_cells(objects, nuclei), [[2, 1, 2, 2, 0, 0, 0, 0, 3, 0]])


# --- the adapters, with stand-ins for their packages ------------------------------------------------------------------


def package(monkeypatch, name, **contents):
    """Put a stand-in for a package in its place."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__path__ = []
    module.__dict__.update(contents)
    monkeypatch.setitem(sys.modules, name, module)


def bright(image):
    return ndimage.label(image > 0.4)[0]


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """Stand-ins that label what is bright and note how they were called; returns the notes and the models' paths."""
    torch = pytest.importorskip("torch")
    notes = []

    class CellposeModel:
        def __init__(self, **options):
            notes.append(("load", options))

        def eval(self, image, **options):
            notes.append(("run", image, options))
            return bright(image[..., 0]), [], []

    class StarDist2D:
        config = types.SimpleNamespace(n_channel_in=1)

        def __init__(self, config, name, basedir):
            notes.append(("load", {"name": name, "basedir": basedir}))

        def predict_instances(self, image, **options):
            notes.append(("run", image, options))
            return bright(image), {}

    class InstanSeg:
        def __init__(self, model, **options):
            notes.append(("load", options))

        def eval_small_image(self, image, **options):
            notes.append(("run", image, options))
            return torch.from_numpy(bright(image[-1])[None, None].astype(np.float32))

    class Script(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pixel_size, self.cells_and_nuclei = 0.5, True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    package(monkeypatch, "cellpose")
    package(monkeypatch, "cellpose.models", CellposeModel=CellposeModel)
    package(monkeypatch, "stardist")
    package(monkeypatch, "stardist.models", StarDist2D=StarDist2D)
    hidden = lambda devices, kind: notes.append(("hide", devices, kind))  # noqa: E731
    config = types.SimpleNamespace(list_physical_devices=lambda kind: [], set_visible_devices=hidden)
    package(monkeypatch, "tensorflow", config=config)
    package(monkeypatch, "instanseg", InstanSeg=InstanSeg)
    paths = {name: tmp_path / name for name in ADAPTERS}
    paths["cellpose"].write_bytes(b"weights")
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(Script()).save(str(paths["instanseg"]))
    paths["stardist"].mkdir()
    (paths["stardist"] / "config.json").write_text('{"n_dim": 2}')
    (paths["stardist"] / "weights_best.h5").write_bytes(b"weights")
    return notes, {name: str(path) for name, path in paths.items()}


@pytest.mark.parametrize("name", ["cellpose", "instanseg"])
def test_memory_that_runs_out_is_met_with_smaller_batches_and_patience(name, stand_ins, monkeypatch):
    import torch

    notes, paths = stand_ins
    monkeypatch.setattr(devices, "PAUSES", (0.0,))
    module = load_method(METHODS, name, "segmentation method")
    tried = []
    if name == "cellpose":
        monkeypatch.setattr(module.Cellpose, "batch", 8)
        package_of, call = sys.modules["cellpose.models"].CellposeModel, "eval"
    else:
        package_of, call = sys.modules["instanseg"].InstanSeg, "eval_small_image"
    run = getattr(package_of, call)

    def scarce(self, image, **options):
        tried.append(options.get("batch_size", 1))
        if tried[-1] > 2 or (name == "instanseg" and len(tried) == 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, image, **options)

    monkeypatch.setattr(package_of, call, scarce)
    image, centers = draw()
    given = {"method": name, "params": WANTED | {"weights": paths[name]}, "pixel_size_um": PIXEL_UM, "device": "cpu"}
    assert segment_image(image, CHANNELS, **given)["Nuclei"].max() == len(centers)
    expected = [8, 4, 2, 2] if name == "cellpose" else [1, 1, 1]
    assert tried[: len(expected)] == expected
    said = describe_run(module, module.Params(**given["params"]), "cpu")
    assert said["device"] == "cpu" and (name != "cellpose" or said["batch"] == 2)

    def full(self, image, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(package_of, call, full)
    with pytest.raises(MemoryError, match="Lower engine.tile_px"):
        segment_image(image, CHANNELS, **given)


@each_adapter
@pytest.mark.parametrize("which", [("weights",), ("cells_weights",), ("weights", "cells_weights")], ids="+".join)
def test_labels_keep_the_contract_and_tiles_change_nothing(name, which, stand_ins):
    _, paths = stand_ins
    image, centers = draw()
    given = {"method": name, "params": WANTED | dict.fromkeys(which, paths[name]), "pixel_size_um": PIXEL_UM}
    whole = segment_image(image, CHANNELS, device="cpu", **given)
    assert_contract(whole, image.shape[1:])
    assert whole["Nuclei"].max() == len(centers)
    tiled = segment_image(image, CHANNELS, tile_px=230, device="cpu", **given)
    for compartment, labels in whole.items():
        np.testing.assert_array_equal(tiled[compartment], labels)
    nothing = segment_image(np.full_like(image, 0.02), CHANNELS, device="cpu", **given)
    assert_contract(nothing, image.shape[1:])
    assert nothing["Cells"].max() == 0


@each_adapter
def test_what_no_field_covers_counts_in_no_percentile_and_has_no_objects(name, stand_ins):
    _, paths = stand_ins
    image, centers = draw()
    params = WANTED | dict.fromkeys(("weights", "cells_weights"), paths[name])
    wide = np.pad(image, ((0, 0), (0, 0), (0, image.shape[2])), constant_values=np.nan)
    whole, tiled = (
        segment_image(wide, CHANNELS, method=name, params=params, pixel_size_um=PIXEL_UM, tile_px=tile, device="cpu")
        for tile in (None, 230)
    )
    for compartment, labels in whole.items():
        np.testing.assert_array_equal(tiled[compartment], labels)
        assert not labels[:, image.shape[2] :].any()
    assert whole["Nuclei"].max() == len(centers)
    method = load_method(METHODS, name, "segmentation method")
    known = []
    for one in (image, wide):
        work = make_method(
            method, method.Params(**params), CHANNELS, pixel_size_um=PIXEL_UM, shape=one.shape[1:], device="cpu"
        )
        tile = cut_tiles(one.shape[1:])[0]
        known.append(work.combine([work.measure(one, tile.origin, tile.inner)])["nuclei"])
    assert known[1]["low"] == known[0]["low"] and known[1]["high"] == known[0]["high"]


@pytest.mark.slow
@each_adapter
def test_what_is_normalized_by_the_whole_image_is_what_the_network_sees(name, stand_ins):
    notes, paths = stand_ins
    image, _ = draw()
    image[1, :, 400:] = 0.02 + 0.3 * (image[1, :, 400:] - 0.02)  # a dim side: its own percentiles would be others
    segment_image(
        image,
        CHANNELS,
        method=name,
        params=WANTED | {"weights": paths[name]},
        pixel_size_um=PIXEL_UM,
        tile_px=230,
        device="cpu",
    )
    method = load_method(METHODS, name, "segmentation method").Method
    low, high = np.percentile(image[1], method.PERCENTILES)
    for kind, pixels, options in (note for note in notes if note[0] == "run"):
        seen = {"cellpose": lambda p: p[..., 0], "stardist": lambda p: p, "instanseg": lambda p: p[0]}[name](pixels)
        # A block of the image somewhere: undo the scaling and look for its first row.
        back = seen * (high - low) + low
        corners = np.argwhere(np.abs(image[1] - back[0, 0]) < 2e-4)
        assert any(
            (part := image[1][y : y + seen.shape[0], x : x + seen.shape[1]]).shape == seen.shape
            and np.allclose(part, back, atol=5e-4)
            for y, x in corners
        )
        said = {"cellpose": ("normalize", False), "stardist": ("normalizer", None), "instanseg": ("normalise", False)}
        assert options[said[name][0]] is said[name][1], kind


def test_what_the_packages_are_asked(stand_ins):
    notes, paths = stand_ins
    image, _ = draw()
    for name in ADAPTERS:
        params = WANTED | {"weights": paths[name], "cells_weights": paths[name]}
        segment_image(image, CHANNELS, method=name, params=params, pixel_size_um=PIXEL_UM, device="cpu")
    loads = [note[1] for note in notes if note[0] == "load"]
    assert len(loads) == 3, "a model is read once per process"
    assert str(loads[0]["device"]) == "cpu" and loads[0]["use_bfloat16"] is False
    assert loads[0]["pretrained_model"] == paths["cellpose"]
    assert loads[1] == {"device": "cpu", "verbosity": 0, "channels_last": False}
    assert loads[2]["name"] == "stardist" and ("hide", [], "GPU") in notes
    runs = [note for note in notes if note[0] == "run"]
    cellpose = [options for _, _, options in runs if "flow_threshold" in options]
    assert {options["diameter"] for options in cellpose} == {None}
    instanseg = [options for _, _, options in runs if "target" in options]
    assert {options["target"] for options in instanseg} == {"nuclei", "cells"}
    assert {options["pixel_size"] for options in instanseg} == {PIXEL_UM}


def test_cells_are_shown_with_their_nuclei_and_objects_brought_to_size(stand_ins):
    notes, paths = stand_ins
    image, _ = draw()
    params = WANTED | {"cells_weights": paths["cellpose"], "rescale": True}
    segment_image(image, CHANNELS, method="cellpose", params=params, pixel_size_um=PIXEL_UM, device="cpu")
    _, pixels, options = next(note for note in notes if note[0] == "run")
    cells, nuclei, unused = np.moveaxis(pixels, -1, 0)
    assert (cells > 0.5).sum() > 1.5 * (nuclei > 0.5).sum() > 0 and not unused.any()
    assert options["diameter"] == 40.0
    params = WANTED | {"weights": paths["stardist"], "model_pixel_size_um": 0.25}
    segment_image(image, CHANNELS, method="stardist", params=params, pixel_size_um=PIXEL_UM, device="cpu")
    assert notes[-1][2]["scale"] == 2.0


@each_adapter
def test_required_devices_that_are_not_there_are_refused(name, stand_ins, monkeypatch):
    import torch

    _, paths = stand_ins
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    image, _ = draw()
    with pytest.raises(RuntimeError, match="`require`.* no GPU"):
        segment_image(
            image,
            CHANNELS,
            method=name,
            params=WANTED | {"weights": paths[name]},
            pixel_size_um=PIXEL_UM,
            device="require",
        )


@each_adapter
def test_absent_weights_packages_and_channels_are_named(name, tmp_path, monkeypatch):
    module = load_method(METHODS, name, "segmentation method")
    with pytest.raises(
        ValidationError, match=r"none given. Set segmentation.parameters.weights .*https://.*nothing is down"
    ):
        module.Params()
    with pytest.raises(ValidationError, match="needs a cells_channel"):
        module.Params(cells_weights="x")
    with pytest.raises(ValidationError, match="nucleus_size"):
        module.Params(weights="x", nucleus_size=3)
    assert all(field.description for field in module.Params.model_fields.values())
    image, _ = draw()
    given = {"method": name, "pixel_size_um": PIXEL_UM, "device": "cpu"}
    with pytest.raises(ValueError, match="'DNA'.*'A', 'B'"):
        segment_image(image, ["A", "B"], params={"weights": "x"}, **given)
    with pytest.raises(ModelMismatchError, match="nothing is downloaded|no folder of a StarDist model"):
        segment_image(image, CHANNELS, params=WANTED | {"weights": str(tmp_path / "none")}, **given)
    path = tmp_path / "model"
    if name == "stardist":
        path.mkdir()
        (path / "config.json").write_text("{}")
    (path / "weights_best.h5" if name == "stardist" else path).write_bytes(b"")
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelMismatchError, match=rf"is not installed: {re.escape(module.INSTALL)}"):
        segment_image(image, CHANNELS, params=WANTED | {"weights": str(path)}, **given)


def test_extras_are_those_that_messages_name():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in ADAPTERS:
        install = load_method(METHODS, name, "segmentation method").INSTALL
        assert install.replace('"', "").split()[2:] == extras[name]
        assert install in (ROOT / "docs/segmentation.md").read_text()


# --- in a screen -----------------------------------------------------------------------------------------------------


@pytest.fixture
def screen(tmp_path):
    """A screen of two wells that asks for Cellpose with a model that is not there."""
    folder = simulate(tmp_path / "screen", rows=1, columns=2)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    parameters = {"nuclei_channel": "DNA", "nucleus_diameter_um": 12.0, "weights": "models/mine"}
    config["segmentation"] = {"method": "cellpose", "parameters": parameters}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_check_names_the_weights_the_package_and_the_license(screen, monkeypatch):
    problems, notes = find_problems(screen, files=False)
    assert "config.yaml: segmentation.parameters: no weights at 'models/mine'; nothing is downloaded" in problems
    assert any("warning: cellpose: the weights" in note and "non-commercial" in note for note in notes)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    problems, _ = find_problems(screen, files=False)
    assert any('is not installed: pip install "cellpose>=4.2"' in problem for problem in problems)
    with pytest.raises(ConfigError, match="no weights at 'models/mine'"):
        Screen(yaml.safe_load((screen / "config.yaml").read_text()), screen).settings("segmentation")


def test_a_config_without_weights_says_where_they_come_from():
    with pytest.raises(ConfigError, match="segmentation.parameters.*none given. Set .*huggingface"):
        load_config({"channels": {"DNA": {"source": "1"}}, "segmentation": {"method": "cellpose"}})


def test_other_weights_under_the_same_name_segment_the_screen_anew(screen, stand_ins, caplog):
    notes, _ = stand_ins
    (screen / "models").mkdir()
    (screen / "models/mine").write_bytes(b"first")
    config = yaml.safe_load((screen / "config.yaml").read_text())
    config["engine"] = {"device": "cpu", "kind": "threads"}
    (screen / "config.yaml").write_text(yaml.safe_dump(config))
    until = ("conversion", "assembly", "illumination", "segmentation")
    with caplog.at_level(logging.WARNING):
        run_stages(screen, until)
    assert "non-commercial" in caplog.text
    record = lambda: read_json(screen / "results/plates/P1/records/segmentation/part-0.json")  # noqa: E731
    assert record()["computed"] == ["A01", "A02"]
    field = plate.field_path(screen / "results/plates/P1/plate.zarr", "A01", 1)
    assert plate.read_labels(field, "Nuclei").max() > 3
    assert record()["facts"] == {"device": "cpu", "precision": "float32", "batch": 8}
    run_stages(screen, until)
    assert record()["computed"] == []
    before = os.stat(screen / "models/mine")
    (screen / "models/mine").write_bytes(b"other")
    os.utime(screen / "models/mine", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "settings" in read_screen(screen)["plates"]["P1"]["segmentation"].reason
    run_stages(screen, until)
    assert record()["computed"] == ["A01", "A02"]


def test_the_device_reaches_methods_that_take_one():
    class Taking:
        def __init__(self, params, channels, *, pixel_size_um, shape, device="cpu"):
            self.device = device

    class Other:
        def __init__(self, params, channels, *, pixel_size_um, shape):
            pass

    given = {"pixel_size_um": 1.0, "shape": (3, 4), "device": "require"}
    assert make_method(types.SimpleNamespace(Method=Taking), None, [], **given).device == "require"
    assert isinstance(make_method(types.SimpleNamespace(Method=Other), None, [], **given), Other)


# --- the documentation, and the packages themselves -------------------------------------------------------------------


def test_the_example_of_the_documentation_runs_on_tiles(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/segmentation.md").read_text(), re.S)
    assert len(code.splitlines()) < 45
    (tmp_path / "mine_for_the_test.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, "mine", "mine_for_the_test")
    np.save(tmp_path / "kernel.npy", np.full((3, 3), 1 / 9, np.float32))
    image, centers = draw()
    params = WANTED | {"weights": str(tmp_path / "kernel.npy")}
    whole, tiled = (
        segment_image(image, CHANNELS, method="mine", params=params, pixel_size_um=PIXEL_UM, tile_px=tile_px)
        for tile_px in (None, 250)
    )
    assert_contract(whole, image.shape[1:])
    assert whole["Nuclei"].max() == len(centers)
    for compartment, labels in whole.items():
        np.testing.assert_array_equal(tiled[compartment], labels)
    with pytest.raises(ValidationError, match="a .npy of a kernel"):
        load_method(METHODS, "mine", "segmentation method").Params()


@pytest.mark.slow
@each_adapter
def test_the_package_itself_finds_every_nucleus(name, tmp_path):
    python = ROOT / f"build/{name}/bin/python"
    if not python.exists():
        pytest.skip(f"{name} is not installed; `make {name}` does it")
    command = [python, ROOT / "tests/adapters.py", name, tmp_path]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    said = json.loads(found.stdout.splitlines()[-1])
    assert set(said) >= {"nuclei"} if name == "stardist" else {"nuclei", "both", "cells"}
    for title in set(said) & {"nuclei", "both", "cells"}:
        one = said[title]
        assert one["nuclei"] == one["centers"] == one["cells"] == said["true"], title
        assert one["agree"] and not any(one["unlike_in_tiles"].values()) and one["empty"] == 0
        assert 200 < one["nucleus_px"] < 400 and one["cell_px"] > 2 * one["nucleus_px"]
    assert said["pickled"] < 10_000, "a method pickles small, without its network"
    assert said["broken"].startswith("ModelMismatchError")
