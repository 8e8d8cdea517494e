"""Latent spaces: crops and encoders."""

import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from plateloom.errors import ModelMismatchError
from plateloom.latent import METHODS, autoencoder, contrastive, network, poses
from plateloom.latent.architectures import contrast
from plateloom.latent.crops import crop_cells, intensity_range, normalize_crops
from plateloom.latent.novelty import error_limit
from plateloom.registry import load_method


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_learning_the_names_of_the_methods_imports_nothing_heavy():
    code = (
        "import sys, plateloom.latent, plateloom.classification, plateloom.profiling;"
        "heavy = {'torch', 'sklearn', 'umap', 'scipy', 'numba', 'skops', 'pycytominer'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------------------------------------------- crops


def test_a_crop_of_the_same_size_is_the_window_itself():
    image = np.random.default_rng(0).random((2, 40, 50)).astype(np.float32)
    crops = crop_cells(image, [[20.0, 25.0], [11.4, 30.6]], size_px=9, out_px=9)
    np.testing.assert_array_equal(crops[0], image[:, 16:25, 21:30])
    np.testing.assert_array_equal(crops[1], image[:, 7:16, 27:36])
    assert crops.dtype == np.float32


def test_what_lies_outside_the_image_is_zero():
    image = np.ones((1, 10, 10), np.float32)
    crops = crop_cells(image, [[0.0, 0.0], [9.0, 9.0], [100.0, 5.0]], size_px=5, out_px=5)
    expected = np.zeros((5, 5))
    expected[2:, 2:] = 1
    np.testing.assert_array_equal(crops[0, 0], expected)
    np.testing.assert_array_equal(crops[1, 0], expected[::-1, ::-1])
    assert crops[2].sum() == 0


def test_shrinking_averages_and_enlarging_interpolates():
    image = np.random.default_rng(1).random((1, 12, 12)).astype(np.float32)
    half = crop_cells(image, [[5.5, 5.5]], size_px=12, out_px=6)
    np.testing.assert_allclose(half[0, 0], image[0].reshape(6, 2, 6, 2).mean(axis=(1, 3)), rtol=1e-6)
    ramp = np.broadcast_to(np.arange(6, dtype=np.float32), (1, 6, 6))
    double = crop_cells(ramp, [[2.5, 2.5]], size_px=6, out_px=12)[0, 0, 0]
    np.testing.assert_allclose(double, np.clip(np.arange(12) / 2 - 0.25, 0, 5), atol=1e-6)
    odd = crop_cells(np.full((1, 30, 30), 0.7), [[14.0, 14.0]], size_px=23, out_px=16)
    np.testing.assert_allclose(odd, 0.7, rtol=1e-6)


def test_a_mask_leaves_the_own_cell_and_if_asked_the_background():
    image = np.ones((1, 5, 5), np.float32)
    labels = np.zeros((5, 5), int)
    labels[2, 2], labels[2, 3] = 7, 8
    own = crop_cells(image, [[2, 2]], size_px=5, out_px=5, labels=labels, label_values=[7])
    assert own.sum() == 1 and own[0, 0, 2, 2] == 1
    kept = crop_cells(image, [[2, 2]], size_px=5, out_px=5, labels=labels, label_values=[7], keep_background=True)
    assert kept.sum() == 24 and kept[0, 0, 2, 3] == 0


def test_no_cells_give_no_crops_with_all_dimensions():
    assert crop_cells(np.ones((3, 8, 8)), np.empty((0, 2)), size_px=4, out_px=2).shape == (0, 3, 2, 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"centers": [[np.nan, 1]]}, "not finite"),
        ({"size_px": 0}, "at least 1"),
        ({"labels": np.ones((8, 8), int)}, "one label value"),
        ({"labels": np.ones((4, 8), int), "label_values": [1]}, "shape"),
        ({"image": np.ones((8, 8))}, "(C, Y, X)"),
    ],
)
def test_impossible_crops_are_refused(arguments, message):
    settings = {"image": np.ones((1, 8, 8)), "centers": [[1, 1]], "size_px": 4, "out_px": 4} | arguments
    with pytest.raises(ValueError) as raised:
        crop_cells(settings.pop("image"), settings.pop("centers"), **settings)
    assert message in str(raised.value)


def test_normalization_stretches_each_channel_and_leaves_one_without_range_empty():
    crops = np.stack([np.linspace(1, 3, 16).reshape(4, 4), np.full((4, 4), 5.0)])[None]
    low, high = intensity_range(crops, (0, 100))
    np.testing.assert_allclose(low, [1, 5])
    np.testing.assert_allclose(high, [3, 5])
    stretched = normalize_crops(crops, low, high)
    np.testing.assert_allclose(stretched[0, 0], np.linspace(0, 1, 16).reshape(4, 4), atol=1e-6)
    assert stretched[0, 1].sum() == 0 and stretched.dtype == np.float32
    assert normalize_crops(crops, [2, 0], [2.5, 5]).max() == 1 and normalize_crops(crops, [2, 0], [2.5, 5]).min() == 0
    assert intensity_range(np.zeros((2, 3, 4, 4)))[1].tolist() == [0, 0, 0]


# ---------------------------------------------------------------------------------------------------------- autoencoder


def make_crops(count, seed, side=64, dtype=np.float32):
    """Tilted nuclei in cell bodies; a marker that sits in one or the other. Returns crops and where the marker is."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side].astype(np.float32) / side * 64 - 31.5
    crops = np.zeros((count, 3, side, side), np.float32)
    marker = random.uniform(0, 1, count)
    for n in range(count):
        angle, a, b = random.uniform(0, np.pi), random.uniform(7, 12), random.uniform(5, 9)
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        radius = np.hypot(u / a, v / b)
        nucleus = 1 / (1 + np.exp((radius - 1) * 8))
        cell = 1 / (1 + np.exp((radius - random.uniform(1.8, 2.5)) * 5))
        crops[n, 0] = nucleus * random.uniform(0.5, 1)
        crops[n, 1] = cell * (1 - 0.6 * nucleus) * random.uniform(0.3, 0.8)
        crops[n, 2] = (marker[n] * nucleus + (1 - marker[n]) * (cell - nucleus).clip(0)) * 0.8
    crops += random.normal(0, 0.03, crops.shape).astype(np.float32)
    crops = crops.clip(0, 1)
    return (crops if dtype == np.float32 else (crops * 255).astype(dtype)), marker


SMALL = {"out_px": 32, "latent_dim": 6, "width": 4, "epochs": 4, "batch_size": 16}


@pytest.fixture(scope="module")
def trained():
    crops, _ = make_crops(400, 0, side=32)
    holdout, _ = make_crops(150, 1, side=32)
    params = autoencoder.Params(out_px=32, latent_dim=16, width=12, epochs=12, batch_size=16)
    return network.train(crops, params=params, holdout=holdout), holdout


def test_unseen_crops_are_reconstructed_far_better_than_by_the_mean_crop(trained):
    result, holdout = trained
    assert result.history[-1]["holdout"] <= 0.3 * result.baseline
    assert [row["epoch"] for row in result.history] == list(range(1, 13))
    standardized = (holdout - network.reconstruct(result.model, holdout)) / result.model.scale.numpy()
    assert np.mean(standardized.astype(float) ** 2) == pytest.approx(result.history[-1]["holdout"], rel=1e-4)


def test_the_baseline_is_the_plain_error_of_the_mean_training_crop(trained):
    result, holdout = trained
    mean = make_crops(400, 0, side=32)[0].astype(float).mean(axis=0)
    expected = (((holdout - mean) / result.model.scale.numpy()) ** 2).mean()
    assert result.baseline == pytest.approx(expected, rel=1e-4)


def test_the_latent_numbers_hold_the_phenotype(trained):
    result, _ = trained
    crops, marker = make_crops(300, 2, side=32)
    latent = network.encode(result.model, crops)
    assert latent.shape == (300, 16) and latent.dtype == np.float32
    design = np.column_stack([latent, np.ones(300)])
    weights = np.linalg.lstsq(design[:200], marker[:200], rcond=None)[0]
    assert np.corrcoef(design[200:] @ weights, marker[200:])[0, 1] > 0.9


def test_encoding_does_not_depend_on_the_batches(trained):
    result, holdout = trained
    whole = network.encode(result.model, holdout, batch_size=150)
    for size in (1, 7, 64):
        np.testing.assert_allclose(network.encode(result.model, holdout, batch_size=size), whole, atol=1e-5)


KINDS = {
    "autoencoder": ("autoencoder", {}),
    "invariant": ("autoencoder", {"invariant": True}),
    "variational": ("autoencoder", {"variational": True}),
    "variational invariant": ("autoencoder", {"variational": True, "invariant": True}),
    "contrastive": ("contrastive", {}),
}


def test_every_method_is_under_the_contract():
    trained_elsewhere = {"backbone"}  # tests/test_backbone.py
    assert {method for method, _ in KINDS.values()} | trained_elsewhere == set(METHODS)


def params_of(kind, **other):
    method, own = KINDS[kind]
    return load_method(METHODS, method, "latent method").Params(**SMALL | own | other)


@pytest.fixture(params=KINDS)
def small_params(request):
    """Makes parameters of each kind of encoder, small ones."""
    return functools.partial(params_of, request.param)


@functools.cache
def train_through(kind):
    """A training that nothing stops, and its crops."""
    crops, _ = make_crops(60, 3, side=32)
    return network.train(crops, params=params_of(kind), holdout=crops[:20]), crops


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_killed_training_resumes_as_if_it_had_never_stopped(killed_after, kind):
    whole, crops = train_through(kind)
    params, saved = params_of(kind), {}

    class Killed(Exception):
        pass

    def checkpoint(state, history):
        saved["bytes"] = save_safetensors(state)
        if len(history) == killed_after:
            raise Killed

    with pytest.raises(Killed):
        network.train(crops, params=params, holdout=crops[:20], on_epoch=checkpoint)
    resumed = network.train(crops, params=params, holdout=crops[:20], resume=load_safetensors(saved["bytes"]))
    assert resumed.history == whole.history
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=1e-6)
    finished = network.train(crops, params=params, holdout=crops[:20], resume=whole.state)
    assert finished.history == whole.history


def test_the_same_seed_gives_the_same_model_and_another_seed_another(small_params):
    crops, _ = make_crops(40, 4, side=32)
    runs = [network.train(crops, params=small_params(epochs=1, seed=seed)) for seed in (0, 0, 1)]
    codes = [network.encode(run.model, crops) for run in runs]
    np.testing.assert_array_equal(codes[0], codes[1])
    assert np.abs(codes[0] - codes[2]).max() > 1e-3


def test_training_leaves_the_random_numbers_of_the_caller_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    network.train(make_crops(20, 4, side=32)[0], params=autoencoder.Params(**SMALL | {"epochs": 1}))
    torch.testing.assert_close(torch.rand(3), expected)


def test_a_state_of_other_parameters_or_crops_is_not_resumed():
    crops, _ = make_crops(40, 4, side=32)
    params = autoencoder.Params(**SMALL | {"epochs": 2})
    state = network.train(crops, params=params).state
    with pytest.raises(ModelMismatchError, match="other parameters or other crops"):
        network.train(crops, params=params.model_copy(update={"learning_rate": 0.1}), resume=state)
    with pytest.raises(ModelMismatchError):
        network.train(crops[:30], params=params, resume=state)


def test_a_memory_map_of_bytes_is_trained_on_batch_by_batch(tmp_path):
    crops, _ = make_crops(64, 5, side=32, dtype=np.uint8)
    np.save(tmp_path / "crops.npy", crops)
    mapped = np.load(tmp_path / "crops.npy", mmap_mode="r")
    largest = []

    class Watched:
        shape, dtype = mapped.shape, mapped.dtype

        def __len__(self):
            return len(mapped)

        def __getitem__(self, index):
            rows = mapped[index]
            largest.append(len(rows))
            return rows

    params = autoencoder.Params(**SMALL | {"epochs": 1})
    result = network.train(Watched(), params=params)
    assert max(largest) <= params.batch_size
    codes = network.encode(result.model, mapped)
    np.testing.assert_allclose(codes, network.encode(result.model, crops.astype(np.float32) / 255), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels_is_trained_and_encoded(channels, small_params):
    crops = np.random.default_rng(0).random((10, channels, 16, 16), dtype=np.float32)
    crops[:, 0] = 0  # an empty channel is no reason to fail
    result = network.train(crops, params=small_params(out_px=16, latent_dim=3, width=2, epochs=1), holdout=crops[:3])
    codes, errors = network.encode_with_errors(result.model, crops)
    assert codes.shape == (10, 3) and np.isfinite(codes).all() and np.isfinite(result.history[0]["holdout"])
    np.testing.assert_allclose(network.encode(result.model, crops), codes, atol=1e-6)
    if result.model.reconstructs:
        assert network.reconstruct(result.model, crops).shape == crops.shape and errors.shape == (10,)
    else:
        assert errors is None
    assert network.encode(result.model, crops[:0]).shape == (0, 3)
    with pytest.raises(ModelMismatchError, match="channels"):
        network.encode(result.model, np.zeros((2, channels + 1, 16, 16), np.float32))


def test_every_kind_of_model_goes_through_safetensors_unchanged(small_params):
    crops, _ = make_crops(20, 6, side=32)
    model = network.train(crops, params=small_params(epochs=1)).model
    config, tensors = network.to_tensors(model)
    again = network.from_tensors(json.loads(json.dumps(config)), load_safetensors(save_safetensors(tensors)))
    np.testing.assert_array_equal(network.encode(again, crops), network.encode(model, crops))


@pytest.mark.slow
def test_the_autoencoder_beats_pca_of_the_same_size_on_wells_that_it_has_not_seen():
    """Each seed is a well; PCA is fitted on the same crops in the same units, as they are and turned in all eight ways."""
    from sklearn.decomposition import PCA

    crops = np.concatenate([make_crops(150, seed, side=32)[0] for seed in range(20, 26)])
    unseen = np.concatenate([make_crops(60, seed, side=32)[0] for seed in (30, 31)])
    params = autoencoder.Params(out_px=32, latent_dim=8, width=12, epochs=12, batch_size=16)
    result = network.train(crops, params=params, holdout=unseen)
    scale = result.model.scale.numpy()
    turned = np.concatenate([poses.turn_alike(torch.from_numpy(crops), turn).numpy() for turn in range(8)]) / scale
    rows = (unseen / scale).reshape(len(unseen), -1)
    errors = []
    for learned in (crops / scale, turned):
        fitted = PCA(params.latent_dim, svd_solver="randomized", random_state=0).fit(learned.reshape(len(learned), -1))
        errors.append(np.mean((rows - fitted.inverse_transform(fitted.transform(rows))) ** 2))
    pca = min(errors)
    assert pca < result.baseline
    assert network.pca_loss(result.model, crops, unseen) == pytest.approx(errors[0], rel=0.002)
    assert result.history[-1]["holdout"] < 0.9 * pca


def turned_and_others(model, crops):
    """How far a crop's latent moves when the crop is turned, in units of the distance to the other crops' latents."""
    random = np.random.default_rng(7)
    codes = network.encode(model, crops)
    apart = np.median(np.linalg.norm(codes[:, None] - codes[None], axis=2)[~np.eye(len(codes), dtype=bool)])
    tensor = torch.from_numpy(crops)
    square = [network.encode(model, poses.turn_alike(tensor, turn).numpy()) for turn in range(8)]
    angles, mirrored = random.uniform(0, 2 * np.pi, len(crops)), random.random(len(crops)) < 0.5
    free = network.encode(model, poses.rotate_crops(tensor, angles, mirrored).numpy())
    moved = [np.linalg.norm(codes - other, axis=1) / apart for other in square]
    return np.max(moved), np.median(np.linalg.norm(codes - free, axis=1)) / apart


INVARIANT = {
    "autoencoder": autoencoder.Params(out_px=32, latent_dim=8, width=8, epochs=8, batch_size=16, invariant=True),
    "variational": autoencoder.Params(
        out_px=32, latent_dim=8, width=8, epochs=5, batch_size=16, invariant=True, variational=True
    ),
    "contrastive": contrastive.Params(out_px=32, latent_dim=8, width=8, epochs=5, batch_size=32),
}


@functools.cache
def train_invariant(kind):
    return network.train(make_crops(300, 8, side=32)[0], params=INVARIANT[kind], holdout=make_crops(100, 9, side=32)[0])


@pytest.mark.parametrize("kind", INVARIANT)
def test_a_turned_cell_has_its_latent_and_not_that_of_another_cell(kind):
    crops, marker = make_crops(300, 8, side=32)
    unseen, unseen_marker = make_crops(100, 9, side=32)
    result = train_invariant(kind)
    by_quarters, by_any_angle = turned_and_others(result.model, unseen)
    assert by_quarters < 1e-4
    assert by_any_angle < 0.15
    assert result.history[-1]["holdout"] < 0.7 * result.baseline
    design, new = (np.column_stack([network.encode(result.model, c), np.ones(len(c))]) for c in (crops, unseen))
    weights = np.linalg.lstsq(design, marker, rcond=None)[0]
    assert np.corrcoef(new @ weights, unseen_marker)[0, 1] > 0.8


def test_the_plain_autoencoder_knows_a_turned_cell_less_well(trained):
    result, holdout = trained
    by_quarters, by_any_angle = turned_and_others(result.model, holdout[:60])
    assert by_quarters > 0.5 and by_any_angle > 0.3


def test_an_invariant_model_reconstructs_a_cell_as_it_lies():
    model = train_invariant("autoencoder").model
    unseen = torch.from_numpy(make_crops(40, 9, side=32)[0]) * poses.circle(32)
    restored = network.reconstruct(model, unseen.numpy())
    own = ((restored - unseen.numpy()) ** 2).mean(axis=(1, 2, 3))
    lying = ((restored - poses.turn_alike(unseen, 1).numpy()) ** 2).mean(axis=(1, 2, 3))
    assert np.mean(own < lying) > 0.9 and own.mean() < 0.6 * lying.mean()
    outside = poses.circle(32).numpy() == 0
    assert (restored[:, :, outside] == 0).all()


def test_rotation_by_quarters_is_that_of_the_square_and_poses_are_found_again():
    crops = torch.from_numpy(make_crops(12, 0, side=32)[0]) * poses.circle(32)
    for quarter in range(4):
        turned = poses.rotate_crops(crops, np.full(12, quarter * np.pi / 2), np.zeros(12, bool))
        torch.testing.assert_close(turned, poses.turn_alike(crops, quarter), atol=1e-4, rtol=0)
    numbers = np.random.default_rng(0).integers(0, 2 * poses.ANGLES, 12)
    crops[:, 0, 8:16, 14:18] += 1  # no cell that looks alike in two poses
    crops[:, 1, 14:18, 20:24] += 1
    angles = 2 * np.pi * (numbers % poses.ANGLES) / poses.ANGLES
    turned = poses.rotate_crops(crops, angles, numbers >= poses.ANGLES)
    found, mirrored = poses.best_poses(crops, turned)
    np.testing.assert_allclose(found.numpy(), angles, atol=1e-5)
    np.testing.assert_array_equal(mirrored.numpy(), numbers >= poses.ANGLES)


def test_the_contrast_is_the_plain_sum_over_pairs():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 5, 4))
    views = np.concatenate([first, second])
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    terms = []
    for i in range(10):
        similar = {j: np.exp(views[i] @ views[j] / 0.5) for j in range(10) if j != i}
        terms.append(-np.log(similar[(i + 5) % 10] / sum(similar.values())))
    assert float(contrast(torch.from_numpy(first), torch.from_numpy(second), 0.5)) == pytest.approx(np.mean(terms))
    alike = torch.ones(5, 4)
    assert float(contrast(alike, alike, 0.5)) == pytest.approx(np.log(9))


def test_a_heavier_weight_pulls_the_latent_to_the_standard_normal_and_restores_less():
    crops, _ = make_crops(200, 3, side=32)
    spread, error = [], []
    for weight in (0.01, 100.0):
        params = autoencoder.Params(**SMALL | {"variational": True, "kl_weight": weight})
        result = network.train(crops, params=params, holdout=crops)
        spread.append(network.encode(result.model, crops).std(axis=0).mean())
        error.append(result.history[-1]["holdout"])
    assert spread[1] < 0.3 * spread[0] and error[1] > 1.1 * error[0]


def test_what_the_model_has_never_seen_lies_beyond_the_limit_of_the_error(trained):
    result, holdout = trained
    _, errors = network.encode_with_errors(result.model, holdout)
    assert errors.astype(float).mean() == pytest.approx(result.history[-1]["holdout"], rel=1e-4)
    limit = error_limit(errors)
    assert np.mean(errors > limit) < 0.03
    debris = holdout[:50].copy()
    debris[:, :, ::4] = 1.0  # stripes
    assert (network.encode_with_errors(result.model, debris)[1] > limit).all()
    assert np.isnan(error_limit([])) and np.isnan(error_limit([np.nan]))


def test_a_model_goes_through_safetensors_unchanged(trained):
    result, holdout = trained
    config, tensors = network.to_tensors(result.model)
    again = network.from_tensors(config, load_safetensors(save_safetensors(tensors)))
    np.testing.assert_array_equal(network.encode(again, holdout), network.encode(result.model, holdout))
    before_there_were_methods = {name: config[name] for name in ("channels", "latent_dim", "out_px", "width")}
    again = network.from_tensors(before_there_were_methods, tensors)
    np.testing.assert_array_equal(network.encode(again, holdout), network.encode(result.model, holdout))
    with pytest.raises(ModelMismatchError):
        network.from_tensors(config | {"latent_dim": 5}, tensors)
    with pytest.raises(ModelMismatchError):
        network.from_tensors({"channels": 3}, tensors)


def test_turning_is_the_symmetry_of_the_square():
    crops = torch.arange(9.0).reshape(1, 1, 3, 3).repeat(8, 1, 1, 1)
    turned = poses.turn_crops(crops, np.arange(8))
    assert len({tuple(crop.flatten().tolist()) for crop in turned}) == 8
    torch.testing.assert_close(turned[0], crops[0])
    torch.testing.assert_close(turned[2], crops[2].flip((1, 2)))


def test_unusable_crops_and_settings_are_refused():
    params = autoencoder.Params(**SMALL)
    with pytest.raises(ValueError, match="No crops"):
        network.train(np.zeros((0, 3, 32, 32)), params=params)
    with pytest.raises(ValueError, match="Expected"):
        network.train(np.zeros((5, 3, 64, 64)), params=params)
    with pytest.raises(ValueError, match="NaN"):
        network.train(np.full((5, 3, 32, 32), np.nan), params=params)
    with pytest.raises(ValidationError, match="multiple of 16"):
        autoencoder.Params(out_px=50)
    with pytest.raises(ValidationError):
        autoencoder.Params(dropout=0.5)
