"""The method `unet`: exact arithmetic, targets that decode to what they were made of, training, files, and tiles."""

import functools
import json
import pickle
import shutil
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from click.testing import CliRunner
from conftest import simulate
from in_process import run_stages
from scipy import ndimage

from plateloom import devices
from plateloom.cli import cli
from plateloom.errors import ConfigError, ModelMismatchError
from plateloom.planning import Screen
from plateloom.segmentation import count_together, describe_run, network_file, segment_image, unet
from plateloom.segmentation import network as network_module
from plateloom.segmentation.batching import Batches
from plateloom.segmentation.declumping import NOT_IN_MASK
from plateloom.segmentation.matching import match_objects
from plateloom.segmentation.network import (
    CEILING,
    INPUT_STEPS,
    STRIP,
    Network,
    check_exact,
    fold,
    load_network,
    prepare_input,
    round_input,
    run_network,
    save_network,
    unfold,
)
from plateloom.segmentation.network_file import multiple_of, reach_of, read_network_file, write_network_file
from plateloom.segmentation.rescaling import sample_points, sample_view
from plateloom.segmentation.targets import find_nuclei, make_targets
from plateloom.segmentation.training import (
    Sample,
    TrainingParams,
    draw_patch,
    group_images,
    hold_out,
    in_pieces,
    measure_diameters,
    prepare_sample,
    train,
    validate,
)
from plateloom.simulation import ScreenDesign, render_field
from plateloom.stages.segmentation import work_together
from plateloom.store import plate as store
from plateloom.store.provenance import read_json
from plateloom.store.tables import read_table

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = {"widths": (4, 8), "diameter_px": 8.0}
QUICK = TrainingParams(**TINY, steps=6, batch_size=2, validate_every=2, holdout=True, device="cpu")


def simulate_fields(count, size_px=160):
    """Simulated nuclei with their truth: images (Y, X) in [0, 1] and labels."""
    design = ScreenDesign(size_px=size_px, cells_per_field=size_px**2 / 1500, seed=3)
    images, labels = [], []
    for well in design.wells:
        field = render_field(design, design.plates[0], well, 1)
        if field.nuclei.max() > 5:
            images.append((field.image[0] / 65535).astype(np.float32))
            labels.append(field.nuclei.astype(np.int64))
        if len(images) == count:
            return images, labels
    raise AssertionError("the design has too few fields")


@pytest.fixture(scope="module")
def fields():
    return simulate_fields(4)


def touching_discs():
    """Rows of touching discs of several sizes, some cut by the edge."""
    labels, y, x = np.zeros((120, 130), np.int32), *np.mgrid[:120, :130]
    centers = [
        (20, 20, 12),
        (20, 44, 12),
        (41, 31, 11),
        (70, 20, 8),
        (70, 36, 8),
        (70, 52, 8),
        (95, 70, 14),
        (95, 97, 13),
    ]
    centers += [(0, 90, 11), (60, 129, 12), (30, 90, 16)]
    for number, (cy, cx, radius) in enumerate(centers, start=1):
        inside = (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
        labels[inside & (labels == 0)] = number
    return labels


def decode(maps, diameter_px):
    """Nuclei of perfect maps, labeled by their peaks."""
    odds = np.stack([8 * maps[0] - 4, maps[1], 8 * maps[2] - 4])
    peak_of = find_nuclei(
        odds, log_odds=0.0, prominence=0.3, diameter_px=diameter_px, hole_px=0, cap_px=30, flood_px=30, reach_px=40
    )
    return np.where(peak_of == NOT_IN_MASK, 0, peak_of + 1)


# --- targets ---------------------------------------------------------------------------------------------------------


def test_targets_of_touching_discs_decode_to_the_discs():
    labels = touching_discs()
    touching = ndimage.label(labels > 0)[1]
    assert touching < labels.max(), "the discs do not touch"
    found = decode(make_targets(labels), 24.0)
    assert match_objects(found, labels, min_iou=0.9) == (labels.max(), 0, 0)


def test_targets_say_where_two_nuclei_meet_and_nowhere_else():
    labels = np.zeros((20, 40), int)
    labels[5:15, 5:15], labels[5:15, 15:25], labels[5:15, 32:38] = 1, 2, 3
    inside, depth, boundary = make_targets(labels)
    np.testing.assert_array_equal(inside, labels > 0)
    assert boundary[10, 13:17].all()
    assert not boundary[:, :12].any() and not boundary[:, 26:].any()
    for number in (1, 2, 3):
        assert depth[labels == number].max() == 1
    assert depth[labels == 0].max() == 0
    assert depth[10, 14] < 0.2 and depth[10, 15] < 0.2
    np.testing.assert_array_equal(make_targets(np.zeros((9, 9), int)), 0)
    assert make_targets(np.ones((9, 9), int))[1].min() == 1, "a nucleus does not end at the edge of the image"


# --- exact arithmetic ------------------------------------------------------------------------------------------------


def shaken(form="normalized", seed=0, widths=(4, 8, 8)):
    """A network whose normalization has seen something."""
    torch.manual_seed(seed)
    network = Network(widths, 8.0, form=form)
    network.train()
    with torch.no_grad():
        for _ in range(5):
            network(torch.rand(4, 1, 32, 32) * 2)
    return network.eval()


def test_folding_changes_little_and_makes_all_sums_exact(monkeypatch):
    network = shaken()
    folded = fold(network)
    check_exact(folded)
    pixels = round_input(np.random.default_rng(0).uniform(-0.5, 2, (3 * STRIP + 8, 64)).astype(np.float32))
    with torch.no_grad():
        wanted = network(torch.from_numpy(pixels)[None, None])[0].numpy()
        again = unfold(folded)(torch.from_numpy(pixels)[None, None])[0].numpy()
    found = run_network(folded, pixels)
    spread = wanted.std()
    assert np.abs(found - wanted).mean() < 0.05 * spread
    assert np.abs(again - wanted).mean() < 0.05 * spread
    # The same sums in double precision, which is exact far beyond, and in one strip: not one bit differs.
    monkeypatch.setattr(network_module, "STRIP", 1000)
    with torch.no_grad():
        double = folded.double()(torch.from_numpy(pixels).double()[None, None])[0].numpy()
    np.testing.assert_array_equal(found, double)


def test_a_network_that_is_not_rounded_is_refused():
    folded = fold(shaken())
    with torch.no_grad():
        folded.up[0][0].weight[0, 0, 0, 0] = 1 / 3
    with pytest.raises(ModelMismatchError, match="up.0.0"):
        check_exact(folded)
    with torch.no_grad():
        folded.down[0][0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelMismatchError, match="down.0.0"):
        check_exact(folded)


def test_nothing_beyond_the_reach_changes_an_output():
    folded = fold(shaken())
    reach = reach_of(folded.config)
    pixels = round_input(np.random.default_rng(1).uniform(0, 2, (160, 160)).astype(np.float32))
    other = pixels.copy()
    other[80, 80] = 2.0 if pixels[80, 80] < 1 else 0.0
    changed = np.abs(run_network(folded, other) - run_network(folded, pixels)).max(0) > 0
    y, x = np.nonzero(changed)
    assert changed.any()
    assert max(80 - y.min(), y.max() - 80, 80 - x.min(), x.max() - 80) <= reach


def test_a_part_of_the_input_gives_the_same_bits():
    folded = fold(shaken())
    step, reach = multiple_of(folded.config), reach_of(folded.config)
    pixels = round_input(np.random.default_rng(2).uniform(0, 2, (240, 200)).astype(np.float32))
    whole = run_network(folded, pixels)
    top, left = 5 * step, 7 * step
    part = run_network(folded, pixels[top:, left : left + 120])
    np.testing.assert_array_equal(
        part[:, reach:, reach : 120 - reach], whole[:, top + reach :, left + reach : left + 120 - reach]
    )


def test_the_input_is_in_whole_steps_and_keeps_its_order():
    values = np.linspace(-0.2, 3, 50).astype(np.float32)
    scaled = prepare_input(values, 0.1, 0.6)
    assert np.all(np.diff(scaled) >= 0)
    assert scaled[np.searchsorted(values, 0.6)] == pytest.approx(1, abs=0.1)
    steps = round_input(scaled) * INPUT_STEPS
    np.testing.assert_array_equal(steps, np.rint(steps))
    assert CEILING * 64 < 2**24


# --- the grid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.37, 0.8, 1.0, 1.9])
def test_a_view_is_resampled_as_the_whole_image(scale):
    image = np.random.default_rng(0).normal(size=(150, 170)).astype(np.float32)
    whole, first = sample_view(image, (0, 0), image.shape, scale, 4)
    assert first == (0, 0) and whole.shape[0] % 4 == 0
    for origin, size in (((31, 40), (90, 101)), ((60, 0), (90, 80)), ((0, 100), (70, 70))):
        view = image[origin[0] : origin[0] + size[0], origin[1] : origin[1] + size[1]]
        part, (top, left) = sample_view(view, origin, image.shape, scale, 4)
        assert part.size > 0 and top % 4 == 0 and left % 4 == 0
        np.testing.assert_array_equal(part, whole[top : top + part.shape[0], left : left + part.shape[1]])
        back = sample_points(part[None], (top, left), origin, view.shape, image.shape, scale, 4)[0]
        there = sample_points(whole[None], (0, 0), (0, 0), image.shape, image.shape, scale, 4)[0]
        margin = [int(12 / scale) + 6 if start else 0 for start in origin]
        inner = tuple(
            slice(before, length - (0 if start + length == full else int(12 / scale) + 6))
            for before, start, length, full in zip(margin, origin, size, image.shape, strict=True)
        )
        moved = tuple(slice(i.start + o, i.stop + o) for i, o in zip(inner, origin, strict=True))
        assert back[inner].size > 0
        np.testing.assert_array_equal(back[inner], there[moved])


def test_resampling_there_and_back_keeps_a_smooth_image():
    y, x = np.mgrid[:90, :100]
    image = np.sin(y / 15 + x / 20).astype(np.float32)
    for scale in (0.5, 1.0, 2.3):
        points, first = sample_view(image, (0, 0), image.shape, scale, 8)
        back = sample_points(points[None], first, (0, 0), image.shape, image.shape, scale, 8)[0]
        assert np.abs(back - image)[5:-5, 5:-5].max() < 0.03


# --- tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tiles_of_a_simulated_field_give_the_labels_of_the_whole_field():
    """Nine tiles; the halo is a quarter of a tile at most, and over fifty nuclei lie on seams."""
    size, tile_px = 1720, 830
    design = ScreenDesign(size_px=size, cells_per_field=size**2 / 2500, seed=8)
    field = render_field(design, design.plates[0], design.wells[5], 1)
    image = (field.image[:1] / 65535).astype(np.float32)
    params = unet.Params(nucleus_diameter_um=15.0)
    method = unet.UNet(params, ["DNA"], pixel_size_um=design.pixel_size_um, shape=image.shape[1:])
    assert method.halo_px["seed"] <= tile_px / 4
    more = {"method": "unet", "params": params, "pixel_size_um": design.pixel_size_um}
    whole = segment_image(image, ["DNA"], **more)["Nuclei"]
    tiled = segment_image(image, ["DNA"], tile_px=tile_px, **more)["Nuclei"]
    seams = np.arange(tile_px, size, tile_px)
    crossing = np.union1d(
        np.intersect1d(whole[seams - 1], whole[seams]), np.intersect1d(whole[:, seams - 1], whole[:, seams])
    )
    assert len(crossing) - 1 >= 50
    np.testing.assert_array_equal(tiled, whole)
    tp, fp, fn = match_objects(whole, field.nuclei)
    assert 2 * tp / (2 * tp + fp + fn) > 0.9


def test_what_no_field_covers_has_no_nuclei_and_tiles_change_nothing(fields):
    image = fields[0][0]
    covered = np.ones(image.shape, bool)
    covered[60:, 70:] = covered[:, 30:33] = False
    whole, *found = (
        segment_image(
            one[None],
            ["DNA"],
            method="unet",
            params={"nucleus_diameter_um": 16.0},
            pixel_size_um=1.0,
            tile_px=tile_px,
        )["Nuclei"]
        for one, tile_px in (
            (image, None),
            (np.where(covered, image, np.float32(np.nan)), None),
            (np.where(covered, image, np.float32(np.nan)), 70),
        )
    )
    np.testing.assert_array_equal(*found)
    assert not found[0][~covered].any()
    away = ndimage.binary_erosion(covered, iterations=12, border_value=1)
    assert ((found[0] > 0) != (whole > 0))[away].mean() < 0.01 < (whole > 0)[away].mean()


def test_orientations_are_averaged_and_tiles_change_nothing(fields):
    """At 16 px per nucleus the image is its own grid: turned and flipped images then have turned and flipped maps."""
    image = fields[0][0][:, :152]
    given = {"nucleus_diameter_um": 16.0, "augment": True}
    whole = segment_image(image[None], ["DNA"], method="unet", params=given, pixel_size_um=1.0)["Nuclei"]
    tiled = segment_image(image[None], ["DNA"], method="unet", params=given, pixel_size_um=1.0, tile_px=90)["Nuclei"]
    np.testing.assert_array_equal(tiled, whole)
    assert whole.max() > 5

    def predict(image, augment):
        params = unet.Params(nucleus_diameter_um=16.0, augment=augment)
        method = unet.UNet(params, ["DNA"], pixel_size_um=1.0, shape=image.shape)
        core = tuple(slice(0, size) for size in image.shape)
        return method.predict(image[None], (0, 0), method.combine([method.measure(image[None], (0, 0), core)]))

    plain, mean = predict(image, False), predict(image, True)
    for turn in (lambda one: np.rot90(one, axes=(-2, -1)), lambda one: one[..., ::-1], lambda one: one[..., ::-1, :]):
        turned = np.ascontiguousarray(turn(image))
        np.testing.assert_allclose(predict(turned, True), turn(mean), atol=1e-4)
        assert np.abs(predict(turned, False) - turn(plain)).max() > 0.1, "there is nothing to average"
    assert 0.01 < np.abs(mean - plain).mean() < 0.3 * plain.std()


# --- batches and memory ----------------------------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch):
    """No waiting for memory."""
    monkeypatch.setattr(devices, "PAUSES", (0.0, 0.0))


def rounded_inputs(count, shape=(64, 48)):
    rng = np.random.default_rng(4)
    return [round_input(rng.uniform(0, 2, shape).astype(np.float32)) for _ in range(count)]


def ask_together(batches, inputs):
    """Ask from as many threads, as if the network were at work until all of them wait."""
    with ThreadPoolExecutor(len(inputs)) as pool:
        with batches._busy:
            asked = [pool.submit(batches, one) for one in inputs]
            while len(batches._waiting) < len(inputs):
                time.sleep(0.001)
        return [one.result() for one in asked]


def test_what_waits_while_the_network_computes_is_its_next_batch_and_each_gets_its_own_answer():
    network, inputs, sizes = fold(shaken()), rounded_inputs(9), []

    def run(points):
        sizes.append(len(points))
        return run_network(network, points)

    batches = Batches(run, 4)
    found = ask_together(batches, inputs)
    assert sizes == [4, 4, 1] and batches.largest == 4
    for points, maps in zip(inputs, found, strict=True):
        np.testing.assert_array_equal(maps, run_network(network, points))


def test_inputs_of_several_shapes_share_no_batch():
    shapes = []

    def run(points):
        shapes.append(points.shape)
        return points.sum((1, 2))

    inputs = [np.full((3 + i % 2, 5), i, np.float32) for i in range(8)]
    assert ask_together(Batches(run, 8), inputs) == [one.sum() for one in inputs]
    assert sorted(shapes) == [(4, 3, 5), (4, 4, 5)]


def test_a_batch_that_memory_does_not_hold_is_halved_for_good(patient):
    network, inputs, sizes = fold(shaken()), rounded_inputs(8), []

    def run(points):
        sizes.append(len(points))
        if len(points) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return run_network(network, points)

    batches = Batches(run, 8)
    for expected in ([8, 4, 2, 2, 2, 2], [2, 2, 2, 2]):
        for points, maps in zip(inputs, ask_together(batches, inputs), strict=True):
            np.testing.assert_array_equal(maps, run_network(network, points))
        assert sizes == expected and batches.size == 2
        sizes.clear()


def test_what_does_not_fit_alone_is_tried_again_and_then_says_what_to_do(patient):
    tries = []

    def run(points):
        tries.append(len(points))
        if len(tries) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return points

    np.testing.assert_array_equal(Batches(run, 8)(np.ones((2, 2))), np.ones((2, 2)))
    assert tries == [1, 1, 1], "another job has let go of its memory meanwhile"

    def never(points):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    batches = Batches(never, 8)
    for ask in (batches, lambda points: ask_together(batches, [points] * 3)):
        with pytest.raises(MemoryError, match=r"20 MiB\). Lower engine.tile_px.*engine.device: cpu"):
            ask(np.ones((2, 2)))

    def broken(points):
        raise RuntimeError("CUDA error: device-side assert")

    with pytest.raises(RuntimeError, match="assert"):
        Batches(broken, 8)(np.ones((2, 2)))


def test_half_precision_changes_single_pixels_only(fields):
    """Here on a CPU, whose half precision adds up in float32 as a GPU's does."""
    image = fields[0][0]
    method = unet.UNet(unet.Params(nucleus_diameter_um=16.0), ["DNA"], pixel_size_um=1.0, shape=image.shape)
    whole = tuple(slice(0, size) for size in image.shape)
    known = method.combine([method.measure(image[None], (0, 0), whole)])["nuclei"]
    points = round_input(prepare_input(image, known["background"], known["foreground"]))
    network = load_network(network_file.SHIPPED)
    exact, mixed = run_network(network, points), run_network(network, points, mixed=True)
    assert exact.dtype == mixed.dtype == np.float32 and not np.array_equal(exact, mixed)
    assert ((exact[0] > 0) != (mixed[0] > 0)).mean() < 1e-3
    assert np.abs(exact[1] - mixed[1]).max() < 0.05


def test_only_a_gpu_works_on_several_images_at_once_and_in_half_precision(monkeypatch):
    params = unet.Params()
    assert describe_run(unet, params, "cpu") == {"device": "cpu", "precision": "float32", "batch": 1}
    from plateloom.segmentation import watershed

    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert count_together(unet, "cpu") == 1 == count_together(watershed, "require")
        assert count_together(unet, "prefer") == (unet.TOGETHER if there else 1)
    assert describe_run(watershed, watershed.Params(), "prefer") == {}


def test_work_done_together_comes_back_in_order_and_side_by_side():
    meeting = threading.Barrier(3, timeout=300)

    def work(number, factor):
        meeting.wait()
        return number * factor

    assert work_together([(work, i, 10) for i in range(3)]) == [0, 10, 20]


def test_a_gpu_s_batches_give_a_screen_the_same_labels(tmp_path, monkeypatch):
    """All of a GPU's way but the GPU: fields and tiles in threads, shared network, batches, and what the record says."""
    folder = simulate(tmp_path / "screen", rows=1, columns=2, fields=3, size_px=200, cells_per_field=20.0)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["segmentation"] = {"method": "unet", "parameters": {"nuclei_channel": "DNA", "nucleus_diameter_um": 15.0}}
    until = ["conversion", "assembly", "illumination", "segmentation"]
    found, records = [], []

    @functools.cache
    def shared(path, sha256, policy, mixed):
        network = load_network(path, sha256)
        return Batches(lambda points: run_network(network, points), 2)

    for tile_px, there in ((2048, False), (2048, True), (150, True)):
        (folder / "config.yaml").write_text(yaml.safe_dump(settings | {"engine": {"tile_px": tile_px}}))
        shutil.rmtree(folder / "results/plates/P1/segmentation", ignore_errors=True)
        with monkeypatch.context() as patched:
            if there:
                patched.setattr(unet, "_load", shared)
                patched.setattr(devices, "has_gpu", lambda policy: True)
                patched.setattr(devices, "choose_device", lambda policy: "cuda")
            run_stages(folder, until)
        images = folder / "results/plates/P1/plate.zarr"
        fields = [store.field_path(images, well, field) for well in ("A01", "A02") for field in (1, 2, 3)]
        found.append([store.read_labels(path, "Cells") for path in fields])
        records.append(read_json(folder / "results/plates/P1/records/segmentation/part-0.json"))
    for labels in found[1:]:
        for one, wanted in zip(labels, found[0], strict=True):
            np.testing.assert_array_equal(one, wanted)
    assert [record["facts"]["device"] for record in records] == ["cpu", "cuda", "cuda"]
    assert records[1]["facts"] == {"device": "cuda", "precision": "float16", "batch": 2}
    assert records[1]["cluster"]["tasks"] < records[0]["cluster"]["tasks"]


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_shipped_weights_are_those_that_code_and_card_name():
    folder = network_file.SHIPPED.parent
    stored = read_network_file(network_file.SHIPPED, unet.SHIPPED_SHA256)
    assert network_file.SHIPPED.stat().st_size <= 5_000_000
    assert sum(value.size for value in stored.tensors.values()) <= 1_200_000
    about = json.loads((folder / "nuclei.json").read_text())
    assert about["sha256"] == unet.SHIPPED_SHA256 == network_file.hash_file(network_file.SHIPPED)
    assert about["config"] == stored.config
    card = (folder / "nuclei.md").read_text()
    assert unet.SHIPPED_SHA256 in card and "CC0" in card
    check_exact(load_network(network_file.SHIPPED))


def test_a_network_comes_back_from_its_file(tmp_path):
    folded = fold(shaken())
    sha256 = save_network(tmp_path / "a.safetensors", folded)
    again = load_network(tmp_path / "a.safetensors", sha256)
    for name, value in folded.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert save_network(tmp_path / "b.safetensors", again) == sha256


class _Unpickled:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def test_files_that_are_no_network_of_ours_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    folded = fold(shaken())
    tensors = {name: value.numpy() for name, value in folded.state_dict().items()}

    def refused(match, **more):
        with pytest.raises(ModelMismatchError, match=match):
            load_network(path, **more)

    path.write_bytes(pickle.dumps(_Unpickled()))
    refused("pickle")
    with zipfile.ZipFile(path, "w") as archive:  # what torch.save writes
        archive.writestr("archive/data.pkl", pickle.dumps(_Unpickled()))
    refused("pickle")
    path.write_bytes(b"\x10" + b"\0" * 40)
    refused("no safetensors file")
    from safetensors.numpy import save_file

    save_file(tensors, path)
    refused("other tensors")
    write_network_file(path, {"widths": [4, 8, 8], "diameter_px": 8.0, "attention": True}, tensors)
    refused("architecture")
    write_network_file(path, {"widths": [4, 8, 16], "diameter_px": 8.0}, tensors)
    refused("not those of")
    write_network_file(path, folded.config, tensors)
    load_network(path)
    refused("SHA-256", sha256="0" * 64)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refused("not whole")
    header = whole.replace(b'\\"format\\": 1', b'\\"format\\": 2')
    assert header != whole
    path.write_bytes(header)
    refused("format 2")


def test_own_weights_are_used_and_named_for_the_fingerprint(tmp_path, fields):
    image = fields[0][0]
    path = tmp_path / "own.safetensors"
    save_network(path, fold(shaken()))
    params = unet.Params(nucleus_diameter_um=15.0, weights=str(path))
    assert unet.weights_files(params) == [str(path)]
    assert unet.weights_files(unet.Params()) == []
    own, shipped = (
        segment_image(image[None], ["DNA"], method="unet", params=chosen, pixel_size_um=0.65)["Nuclei"]
        for chosen in (params, {"nucleus_diameter_um": 15.0})
    )
    assert shipped.max() > 5
    assert not np.array_equal(own, shipped)
    method = unet.UNet(params, ["DNA"], pixel_size_um=0.65, shape=image.shape)
    copy = pickle.loads(pickle.dumps(method))
    whole = tuple(slice(0, size) for size in image.shape)
    known = method.combine([method.measure(image[None], (0, 0), whole)])
    # A file that changes between the tiles of an image is noticed.
    save_network(path, fold(shaken(seed=1)))
    unet._load.cache_clear()
    with pytest.raises(ModelMismatchError, match="SHA-256"):
        copy.seed(image[None], (0, 0), whole, known)


def test_weights_that_are_not_there_are_named():
    with pytest.raises(ModelMismatchError, match="no weights at 'none.safetensors'"):
        unet.UNet(unet.Params(weights="none.safetensors"), ["DNA"], pixel_size_um=1.0, shape=(9, 9))


def test_a_screen_is_segmented_and_notices_that_its_weights_changed(tmp_path):
    folder = simulate(tmp_path / "screen", rows=1, columns=3, size_px=200, cells_per_field=20.0)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    parameters = {"nuclei_channel": "DNA", "cells_channel": "ER", "nucleus_diameter_um": 15.0}
    settings["segmentation"] = {"method": "unet", "parameters": parameters | {"weights": "own.safetensors"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match="no weights at 'own.safetensors'"):
        Screen(settings, folder).settings("segmentation")
    shutil.copyfile(network_file.SHIPPED, folder / "own.safetensors")
    run_stages(folder, ["conversion", "assembly", "illumination", "segmentation"])
    (plate,) = Screen(settings, folder).plates
    found = 0
    for path in (folder / f"results/plates/{plate}/segmentation").glob("*.parquet"):
        table = read_table(path)
        assert list(table["Status"]) == ["done"]
        found += int(table["Count_Nuclei"].sum())
    truth = sum(tifffile.imread(path).max() for path in (folder / "truth").glob("*/*_nuclei.tif"))
    assert abs(found - truth) <= 0.15 * truth
    before = Screen(settings, folder).settings("segmentation")
    save_network(folder / "own.safetensors", fold(shaken()))
    assert Screen(settings, folder).settings("segmentation") != before


def test_the_diameter_is_estimated_whatever_the_magnification():
    image, truth = (some[0] for some in simulate_fields(1, size_px=240))
    true = measure_diameters([image], [truth])[0]
    assert unet.estimate_diameter(image) == pytest.approx(true, rel=0.15)
    large = np.repeat(np.repeat(image, 2, 0), 2, 1)
    assert unet.estimate_diameter(large) == pytest.approx(2 * true, rel=0.15)
    assert unet.estimate_diameter(np.full((64, 64), 0.1)) == 0


def test_the_code_digest_depends_on_the_shipped_weights():
    """The hash stands in the code, and every module of the method counts."""
    from plateloom.store.provenance import _read_module

    waiting, seen = ["plateloom.segmentation.unet"], set()
    while waiting:
        if (name := waiting.pop()) not in seen:
            seen.add(name)
            waiting += _read_module(name)[1]
    for module in ("network", "network_file", "rescaling", "targets", "watershed", "declumping", "thresholds"):
        assert f"plateloom.segmentation.{module}" in seen
    assert "plateloom.segmentation.training" not in seen
    assert f'"{unet.SHIPPED_SHA256}"' in Path(unet.__file__).read_text()


def test_a_wrong_order_of_diameters_is_refused():
    with pytest.raises(ValueError, match="nucleus_diameter_um is 5"):
        unet.Params(nucleus_diameter_um=5.0, nucleus_diameter_min_um=9.0)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_learns_to_find_simulated_nuclei(fields):
    images, labels = fields
    params = TrainingParams(
        widths=(8, 16, 16), diameter_px=10.0, steps=240, batch_size=4, validate_every=120, learning_rate=0.01,
        average=0.95, device="cpu", mixed_precision=False,
    )  # fmt: skip
    trained = train(images, labels, params=params)
    assert [row["step"] for row in trained.history] == [120, 240]
    assert trained.history[-1]["loss"] < 0.8 * trained.history[0]["loss"]
    assert max(row["f1"] for row in trained.history) > 0.8
    assert trained.facts["held_out"]["images"] == 1
    check_exact(trained.network)


def test_training_that_was_interrupted_ends_as_one_that_was_not(fields):
    images, labels = fields
    states = []
    whole = train(images, labels, params=QUICK, on_checkpoint=lambda state, history: states.append(state))
    assert len(states) == 3
    again = train(images, labels, params=QUICK, resume=states[0])
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(again.network.state_dict()[name], value, rtol=0, atol=1e-6)
    assert [row["step"] for row in again.history] == [2, 4, 6]
    assert again.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"], rel=1e-6)
    other = QUICK.model_copy(update={"seed": 1})
    with pytest.raises(ModelMismatchError, match="other parameters"):
        train(images, labels, params=other, resume=states[0])
    with pytest.raises(ModelMismatchError, match="other parameters, images"):
        train(images[:3], labels[:3], params=QUICK, resume=states[0])


def test_the_same_seed_gives_the_same_network(fields):
    images, labels = fields
    first, second, third = (
        train(images, labels, params=QUICK.model_copy(update={"seed": seed})).network.state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_training_goes_on_from_other_weights_and_never_ends_worse_than_they_were(fields):
    images, labels = fields
    start = load_network(network_file.SHIPPED)
    params = TrainingParams(steps=2, batch_size=1, validate_every=1, learning_rate=0.5, device="cpu")
    trained = train(images, labels, params=params, start=start)
    assert [row["step"] for row in trained.history] == [0, 1, 2]
    held = hold_out(np.arange(4))
    diameters = measure_diameters(images, labels)
    score = validate(trained.network, [(images[i], labels[i], diameters[i]) for i in np.flatnonzero(held)])
    assert score.mean_ap >= trained.history[0]["mean_ap"]


@pytest.mark.parametrize(
    ("grid", "widths"), [(8.0, [16, 32, 64]), (16.0, [16, 32, 64, 128]), (32.0, [16, 32, 64, 128, 128])]
)
def test_a_new_network_is_as_deep_as_its_nuclei_are_wide(fields, grid, widths):
    params = TrainingParams(steps=1, batch_size=1, diameter_px=grid, device="cpu")
    trained = train(*fields, params=params)
    assert trained.network.config == {"widths": widths, "diameter_px": grid}
    assert trained.facts["patch_px"] == 8 * grid


@pytest.mark.slow
def test_ten_annotated_fields_teach_the_shipped_network_another_stain():
    """Nuclei whose rim is stained, as by lamin: it draws them too small, and learns to draw them from ten fields."""
    _, labels = simulate_fields(14, 256)
    random, images = np.random.default_rng(5), []
    for one in labels:
        rim = (one > 0) & (ndimage.minimum_filter(one, 3) != ndimage.maximum_filter(one, 3))
        stain = [ndimage.gaussian_filter(part.astype(np.float32), 1.0) for part in (rim, one > 0)]
        image = 0.05 + 0.5 * stain[0] + 0.04 * stain[1] + random.normal(0, 0.015, one.shape)
        images.append(image.clip(0, 1).astype(np.float32))
    start = load_network(network_file.SHIPPED)
    params = TrainingParams(steps=150, batch_size=4, validate_every=50, device="cpu")
    trained = train(images[:10], labels[:10], params=params, start=start)
    unseen = list(zip(images[10:], labels[10:], measure_diameters(images[10:], labels[10:]), strict=True))
    before, after = validate(start, unseen), validate(trained.network, unseen)
    assert before.mean_ap < 0.6 and after.mean_ap > 0.9 and after.f1[0] > 0.97, (before.mean_ap, after.mean_ap)


def test_training_stops_when_it_gets_no_better(fields):
    images, labels = fields
    params = QUICK.model_copy(update={"learning_rate": 1e-9, "steps": 40, "patience": 2, "validate_every": 1})
    trained = train(images, labels, params=params)
    assert len(trained.history) < 40


def test_no_group_is_both_learned_from_and_validated_on():
    rng = np.random.default_rng(0)
    kinds = [((64, 64), 0.2, 8.0), ((64, 64), 0.9, 20.0), ((96, 80), 0.4, 9.0), ((128, 128), 0.3, 30.0)]
    images, diameters, truth = [], [], []
    for kind, (shape, level, diameter) in enumerate(kinds * 15):
        images.append(rng.uniform(0, level, shape).astype(np.float32))
        diameters.append(diameter * rng.uniform(0.98, 1.02))
        truth.append(kind % 4)
    groups = group_images(images, diameters)
    for group in np.unique(groups):
        assert len({truth[i] for i in np.flatnonzero(groups == group)}) == 1
    held = hold_out(groups)
    assert 0 < held.sum() < len(images) / 2
    assert not set(groups[held]) & set(groups[~held])


def test_a_batch_that_does_not_fit_is_worked_on_in_pieces():
    seen = []

    def work(piece):
        if len(piece) > 2:
            raise torch.OutOfMemoryError("too much")
        seen.append(len(piece))
        return float(piece.sum())

    results, pieces = in_pieces(work, torch.arange(7.0), 1)
    assert (sum(results), pieces) == (21.0, 4)
    assert max(seen) == 2

    def never(piece):
        raise torch.OutOfMemoryError("too much")

    with pytest.raises(torch.OutOfMemoryError):
        in_pieces(never, torch.arange(4.0), 1)


def test_gradients_of_pieces_add_up_to_those_of_the_batch(fields):
    images, labels = fields
    maps, centers = prepare_sample(images[0], labels[0], measure_diameters(images, labels)[0], 8.0)
    rng = np.random.default_rng(0)
    batch = torch.stack([draw_patch(Sample(maps, centers, 0), 32, rng) for _ in range(4)])
    network = shaken(form="plain")
    gradients = []
    from plateloom.segmentation.training import loss_of

    for pieces in (1, 4):
        network.zero_grad()
        for piece in batch.tensor_split(pieces):
            (loss_of(network(piece[:, :1]), piece[:, 1:]) * len(piece) / 4).backward()
        gradients.append(torch.cat([value.grad.flatten() for value in network.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_patches_keep_images_and_targets_in_step(fields):
    images, labels = fields
    maps, centers = prepare_sample(images[0], labels[0], measure_diameters(images, labels)[0], 16.0)
    sample, rng = Sample(maps, centers, 0), np.random.default_rng(0)
    assert len(centers) == len(np.unique(labels[0])) - 1
    bright, dark = [], []
    for _ in range(20):
        patch = draw_patch(sample, 64, rng)
        assert patch.shape == (4, 64, 64)
        assert patch[0].min() >= -0.5 and patch[0].max() <= 2
        assert patch[1:].min() >= 0 and patch[1:].max() <= 1
        if 20 < (patch[1] > 0.9).sum() < 4000:
            bright.append(float(patch[0][patch[1] > 0.9].mean()))
            dark.append(float(patch[0][patch[1] < 0.1].mean()))
    assert len(bright) > 10
    assert np.mean(bright) > np.mean(dark) + 0.3


# --- the command -----------------------------------------------------------------------------------------------------


def write_fields(folder, images, labels):
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for i, (image, truth) in enumerate(zip(images, labels, strict=True)):
        tifffile.imwrite(folder / "images" / f"f{i}.tif", np.round(image * 65535).astype(np.uint16))
        tifffile.imwrite(folder / "labels" / f"f{i}.tif", truth.astype(np.uint16))


def call(folder, *more):
    options = ["--images", folder / "images", "--labels", folder / "labels", "--output", folder / "own.safetensors"]
    return CliRunner().invoke(
        cli, ["train-segmenter", *map(str, options), "--device", "cpu", "--threads", "1", *map(str, more)]
    )


def test_four_fields_fit_the_shipped_network_to_a_lab(tmp_path, fields):
    write_fields(tmp_path, *fields)
    done = call(tmp_path, "--from", "shipped", "--steps", 2, "--batch-size", 1, "--validations", 2)
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "own.json").read_text())
    assert about["sha256"] == network_file.hash_file(tmp_path / "own.safetensors")
    assert [row["step"] for row in about["curves"]] == [0, 1, 2]
    assert about["training"]["images"] == 4
    assert not (tmp_path / "own.checkpoint").exists()
    assert str(tmp_path) not in (tmp_path / "own.json").read_text()
    image, truth = fields[0][0], fields[1][0]
    params = {"nucleus_diameter_um": 15.0, "weights": str(tmp_path / "own.safetensors")}
    found = segment_image(image[None], ["DNA"], method="unet", params=params, pixel_size_um=0.65)["Nuclei"]
    tp, fp, fn = match_objects(found, truth)
    assert 2 * tp / (2 * tp + fp + fn) > 0.8


def test_wrong_folders_are_named_before_anything_is_trained(tmp_path, fields):
    images, labels = fields
    write_fields(tmp_path, images, labels)
    (tmp_path / "labels" / "f3.tif").rename(tmp_path / "labels" / "g3.tif")
    wrong = call(tmp_path)
    assert wrong.exit_code != 0
    assert "'f3'" in str(wrong.exception) and "'g3'" in str(wrong.exception)
    (tmp_path / "labels" / "g3.tif").rename(tmp_path / "labels" / "f3.tif")
    tifffile.imwrite(tmp_path / "labels" / "f3.tif", np.zeros((9, 9), np.uint8))
    assert "one pixel grid" in str(call(tmp_path).exception)
    tifffile.imwrite(tmp_path / "labels" / "f3.tif", labels[3].astype(np.float32))
    assert "float32" in str(call(tmp_path).exception)
    tifffile.imwrite(tmp_path / "labels" / "f3.tif", labels[3].astype(np.uint16))
    tifffile.imwrite(tmp_path / "images" / "f3.tif", np.zeros((160, 160, 3), np.uint8), photometric="rgb")
    assert "one channel" in str(call(tmp_path).exception)
    (tmp_path / "pickled.safetensors").write_bytes(pickle.dumps({"a": 1}))
    tifffile.imwrite(tmp_path / "images" / "f3.tif", np.round(images[3] * 255).astype(np.uint8))
    assert "pickle" in str(call(tmp_path, "--from", tmp_path / "pickled.safetensors").exception)
    assert not (tmp_path / "own.safetensors").exists()


def test_a_command_that_was_killed_goes_on_from_its_checkpoint(tmp_path, fields):
    from safetensors.torch import save

    images, labels = fields
    write_fields(tmp_path, images, labels)
    read = [np.round(image * 65535).astype(np.float32) / np.float32(65535) for image in images]
    states = []
    start = load_network(network_file.SHIPPED)
    params = TrainingParams(steps=2, batch_size=1, validate_every=1, patience=3, device="cpu")
    whole = train(read, labels, params=params, start=start, on_checkpoint=lambda state, history: states.append(state))
    assert len(states) == 3, "of the weights that it goes on from, and after each step"
    (tmp_path / "own.checkpoint").write_bytes(save(states[1]))
    done = call(tmp_path, "--from", "shipped", "--steps", 2, "--batch-size", 1, "--validations", 2)
    assert done.exit_code == 0, done.output
    assert "step      1" not in done.output, "the first step was taken again"
    about = json.loads((tmp_path / "own.json").read_text())
    assert [row["step"] for row in about["curves"]] == [row["step"] for row in whole.history]
    (tmp_path / "own.checkpoint").write_bytes(save(states[0]))
    assert (
        "step      1" in call(tmp_path, "--from", "shipped", "--steps", 2, "--batch-size", 1, "--validations", 2).output
    )
    (tmp_path / "own.checkpoint").write_bytes(save(states[0]))
    other = call(tmp_path, "--from", "shipped", "--steps", 3, "--batch-size", 1, "--validations", 3)
    assert "Remove that file" in str(other.exception)
