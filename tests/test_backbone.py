"""Networks of other people as encoders: programs of torch.export, timm, and the PCA of what they give."""

import importlib.util
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from safetensors.torch import save_file
from sklearn.decomposition import PCA

from plateloom.errors import ModelMismatchError
from plateloom.latent import backbone, network, pretrained
from plateloom.latent.principal import principal_axes
from plateloom.stages import latent


class Tiny(torch.nn.Module):
    """A convolution and what it gives on average, or as a map."""

    def __init__(self, planes, numbers=6, mapped=False):
        super().__init__()
        self.convolution, self.normal = torch.nn.Conv2d(planes, numbers, 3, 2, 1), torch.nn.BatchNorm2d(numbers)
        self.mapped = mapped

    def forward(self, pictures):
        found = self.normal(self.convolution(pictures)).relu()
        return found if self.mapped else found.mean(dim=(2, 3))


def export(path, *, planes=3, side=16, batch=None, change=torch.nn.Module.eval, dtype=torch.float32, **options):
    """Save a program, of any number of pictures or of `batch`; returns the module."""
    torch.manual_seed(planes)
    module = change(Tiny(planes, **options)).to(dtype)
    example = (torch.rand(batch or 2, planes, side, side).to(dtype),)
    shapes = None if batch else ({0: torch.export.Dim("pictures", min=1)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its own code
        torch.export.save(torch.export.export(module, example, dynamic_shapes=shapes), path)
    return module


@pytest.fixture(scope="module")
def crops():
    random = np.random.default_rng(0)
    scale = np.array([0.1, 0.4])[:, None, None]
    return (random.random((60, 2, 16, 16)) ** 2 * scale).astype(np.float32)


def make_params(path, **more):
    return backbone.Params(**{"model": str(path), "out_px": 16, "crop_px": 16, "latent_dim": None} | more)


@pytest.mark.parametrize("mapped", [False, True])
def test_each_channel_goes_through_the_network_alone_and_the_outputs_are_joined(tmp_path, crops, mapped):
    module = export(tmp_path / "a.pt2", mapped=mapped)
    fitted = backbone.fit(crops, params=make_params(tmp_path / "a.pt2", scaling="none"))
    found = network.encode(fitted.model, crops)
    with torch.no_grad():
        alone = [module(torch.from_numpy(crops[:, [c] * 3])) for c in range(2)]
    expected = torch.cat([one.mean(dim=(2, 3)) if mapped else one for one in alone], dim=1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    assert fitted.facts == {"numbers": 12} and fitted.history == [] and not fitted.model.reconstructs


def test_stacked_channels_are_the_planes_of_one_picture(tmp_path, crops):
    module = export(tmp_path / "a.pt2", planes=2)
    params = make_params(tmp_path / "a.pt2", channels="stack", scaling="none")
    found = network.encode(backbone.fit(crops, params=params).model, crops)
    with torch.no_grad():
        np.testing.assert_allclose(found, module(torch.from_numpy(crops)).numpy(), atol=1e-6)


def test_a_program_of_a_fixed_number_of_pictures_says_the_same_of_any_number(tmp_path, crops):
    export(tmp_path / "any.pt2")
    export(tmp_path / "four.pt2", batch=4)
    found = [
        network.encode(backbone.fit(crops, params=make_params(tmp_path / name)).model, crops[:7])
        for name in ("any.pt2", "four.pt2")
    ]
    np.testing.assert_allclose(*found, atol=1e-6)


def test_crops_are_scaled_by_channel_and_enlarged(tmp_path, crops):
    module = export(tmp_path / "a.pt2", side=32)
    by_channel = backbone.fit(crops, params=make_params(tmp_path / "a.pt2", out_px=32)).model
    center = crops.mean(axis=(0, 2, 3), dtype=float)
    scale = crops.std(axis=(0, 2, 3), dtype=float)
    for model, middle, width in (
        (by_channel, center, scale),
        (
            backbone.fit(crops, params=make_params(tmp_path / "a.pt2", out_px=32, scaling="imagenet")).model,
            0.449,
            0.226,
        ),
    ):
        scaled = (crops - np.reshape(middle, (-1, 1, 1))) / np.reshape(width, (-1, 1, 1))
        larger = torch.nn.functional.interpolate(torch.from_numpy(scaled.astype(np.float32)), (32, 32), mode="bilinear")
        with torch.no_grad():
            expected = torch.cat([module(larger[:, [c] * 3]) for c in range(2)], dim=1).numpy()
        np.testing.assert_allclose(network.encode(model, crops), expected, atol=1e-4)


def test_the_latent_numbers_are_the_pca_of_what_the_network_gives(tmp_path, crops):
    export(tmp_path / "a.pt2")
    whole = network.encode(backbone.fit(crops, params=make_params(tmp_path / "a.pt2")).model, crops)
    params = make_params(tmp_path / "a.pt2", latent_dim=3)
    fitted = backbone.fit(crops[:40], params=params, holdout=crops[40:])
    latent = network.encode(fitted.model, crops)
    scaled = network.encode(backbone.fit(crops[:40], params=make_params(tmp_path / "a.pt2")).model, crops)
    oracle = PCA(3).fit(scaled[:40])
    expected = oracle.transform(scaled)
    np.testing.assert_allclose(np.abs(latent), np.abs(expected), atol=1e-4)
    assert fitted.facts["variance"] == pytest.approx(oracle.explained_variance_ratio_.sum(), rel=1e-4)
    held = scaled[40:] - oracle.mean_
    share = (oracle.transform(scaled[40:]) ** 2).sum() / (held**2).sum()
    assert fitted.facts["held_out_variance"] == pytest.approx(share, rel=1e-3)
    assert whole.shape == (60, 12) and latent.shape == (60, 3)


def test_fitting_again_gives_the_same_and_a_model_goes_through_safetensors_without_its_network(tmp_path, crops):
    export(tmp_path / "a.pt2")
    params = make_params(tmp_path / "a.pt2", latent_dim=4)
    first, second = (backbone.fit(crops, params=params).model for _ in range(2))
    config, tensors = network.to_tensors(first)
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        "center": (2, 1, 1),
        "scale": (2, 1, 1),
        "mean": (12,),
        "axes": (12, 4),
    }
    again = network.from_tensors(config, load_safetensors(save_safetensors(tensors)))
    expected = network.encode(first, crops)
    for model in (second, again):
        np.testing.assert_array_equal(network.encode(model, crops), expected)
    assert network.encode(again, crops[:0]).shape == (0, 4)
    np.testing.assert_allclose(network.encode(again, crops[:3]), expected[:3], atol=1e-5)
    assert network.encode_with_errors(again, crops[:2])[1] is None
    with pytest.raises(ModelMismatchError, match="channels"):
        network.encode(again, crops[:, :1])


@pytest.mark.parametrize(
    "options, more, message",
    [
        (
            {"planes": 3},
            {"channels": "stack"},
            "exported for 3 planes, the crops have 2 channels; use `channels: each`",
        ),
        ({"side": 32}, {}, "exported for 32 px; set `out_px: 32`, which is 16"),
    ],
)
def test_crops_that_a_program_does_not_take_are_refused_with_what_to_do(tmp_path, crops, options, more, message):
    export(tmp_path / "a.pt2", **options)
    with pytest.raises(ModelMismatchError, match=message):
        backbone.fit(crops, params=make_params(tmp_path / "a.pt2", **more))


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize(
    "change, message",
    [
        (torch.nn.Module.train, "something else of a crop alone than among others"),
        (lambda module: torch.nn.Sequential(module.eval(), torch.nn.Dropout(0.5).train()), "the second time than the"),
    ],
)
def test_a_program_that_was_saved_as_it_is_trained_is_refused(tmp_path, crops, batch, change, message):
    export(tmp_path / "a.pt2", batch=batch, change=change)
    with pytest.raises(ModelMismatchError, match=f"{message}.*export it after .eval"):
        backbone.fit(crops, params=make_params(tmp_path / "a.pt2"))


@pytest.mark.parametrize("crops_there", [1, 60])
def test_crops_that_are_all_alike_are_no_reason_to_refuse_a_program(tmp_path, crops, crops_there):
    export(tmp_path / "a.pt2")
    same = np.repeat(crops[:1], crops_there, axis=0)
    assert backbone.fit(same, params=make_params(tmp_path / "a.pt2")).facts == {"numbers": 12}


def test_a_program_of_half_precision_is_refused_with_what_to_do(tmp_path, crops):
    export(tmp_path / "a.pt2", dtype=torch.float16)
    with pytest.raises(ModelMismatchError, match="takes pictures of float16; export it in float32"):
        backbone.fit(crops, params=make_params(tmp_path / "a.pt2"))


@pytest.mark.parametrize(
    "error, expected",
    [
        (AssertionError("Guard failed"), ModelMismatchError),
        (RuntimeError("Input type (float) and bias type (c10::Half)"), ModelMismatchError),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (torch.AcceleratorError("CUDA error: device-side assert", 1), torch.AcceleratorError),
    ],
)
def test_what_an_operator_refuses_is_the_programs_fault_and_what_the_device_lacks_is_not(
    tmp_path, crops, monkeypatch, error, expected
):
    def run(pictures):
        raise error

    monkeypatch.setattr(pretrained, "open_program", lambda path, device: (run, [None] * 4))
    config = {"channels": 2, "out_px": 16, "arrangement": "each", "model": "a.pt2", "weights": ""}
    with pytest.raises(expected, match=re.escape(str(error)[:20])):
        pretrained.Network(config, torch.device("cpu"))._rows(torch.from_numpy(crops[:2]))


def test_a_file_that_is_no_program_and_one_that_gives_no_rows_are_refused(tmp_path, crops):
    (tmp_path / "a.pt2").write_text("no program")
    with pytest.raises(ModelMismatchError, match="cannot be read as a program of torch.export.save"):
        backbone.fit(crops, params=make_params(tmp_path / "a.pt2"))

    class Flat(torch.nn.Module):
        def forward(self, pictures):
            return pictures.mean(dim=(1, 2))

    program = torch.export.export(Flat(), (torch.rand(2, 3, 16, 16),))
    torch.export.save(program, tmp_path / "b.pt2")
    fitted = backbone.fit(crops, params=make_params(tmp_path / "b.pt2"))  # (N, columns): rows, if odd ones
    assert fitted.facts == {"numbers": 32}

    class Pixels(torch.nn.Module):
        def forward(self, pictures):
            return pictures[:, 0]

    torch.export.save(torch.export.export(Pixels(), (torch.rand(2, 3, 16, 16),)), tmp_path / "c.pt2")
    with pytest.raises(ModelMismatchError, match=r"gave \(2, 16, 16\). Expected \(N, F\)"):
        backbone.fit(crops, params=make_params(tmp_path / "c.pt2"))
    with pytest.raises(ValueError, match="No crops"):
        backbone.fit(crops[:0], params=make_params(tmp_path / "b.pt2"))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({}, "model: none given"),
        ({"model": "timm:resnet18"}, "weights: timm:resnet18 needs a file"),
        ({"model": "timm:hf-hub:someone/net", "weights": "w.safetensors"}, "is a place"),
        ({"model": "timm:someone/net", "weights": "w.safetensors"}, "is a place"),
        ({"model": "a.pt2", "weights": "b.pt"}, "a program has its own"),
        ({"model": "a.pt2", "epochs": 3}, "epochs"),
    ],
)
def test_settings_that_name_no_network_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        backbone.Params(**wrong)


def test_only_programs_are_warned_of_and_only_timm_is_needed_for_timm():
    program, named = backbone.Params(model="a.pt2"), backbone.Params(model="timm:resnet18", weights="w.safetensors")
    assert "may run any code" in backbone.notices(program)[0] and not backbone.needs_package(program)
    assert backbone.notices(named) == [] and backbone.needs_package(named)
    assert backbone.weights_files(program) == ["a.pt2"] and backbone.weights_files(named) == ["w.safetensors"]


def test_a_job_that_reads_a_program_logs_that_it_may_run_any_code(tmp_path, caplog):
    settings = {"method": "backbone", "parameters": {"model": "a.pt2"}, "cells": 9, "crop_um": 20.0, "mask": "none"}
    well = {"plate": "P1", "well": "A01", "fingerprint": "f", "excluded": ()}
    job = latent._train(tmp_path, [well], {"P1": "light"}, {}, settings, {"fingerprint": "f"})
    next(job)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "may run any code" in caplog.text


# ----------------------------------------------------------------------------------------------------------------- timm

FAKE = """
import torch

class models:
    @staticmethod
    def get_pretrained_cfg(name):
        return type("Known", (), {"fixed_input_size": False, "classifier": "fc"})

def create_model(name, pretrained, num_classes, in_chans):
    if name != "tiny" or pretrained:
        raise RuntimeError(f"Unknown model ({name})")
    layers = torch.nn.Sequential()
    layers.stem = torch.nn.Conv2d(in_chans, 5, 3)
    layers.pool = torch.nn.AdaptiveAvgPool2d(1)
    layers.flat = torch.nn.Flatten()
    layers.fc = torch.nn.Linear(5, num_classes) if num_classes else torch.nn.Identity()
    return layers
"""


@pytest.fixture
def fake_timm(tmp_path, monkeypatch):
    """A package of that name with one tiny network."""
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm/__init__.py").write_text(FAKE)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("timm", None)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "checkpoint.pth"])
def test_weights_of_timm_are_read_from_safetensors_and_state_dicts_without_their_classifier(fake_timm, crops, name):
    torch.manual_seed(1)
    state = {"stem.weight": torch.rand(5, 3, 3, 3), "stem.bias": torch.rand(5), "fc.weight": torch.rand(9, 5)}
    path = fake_timm / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if path.suffix == ".pth" else state, path)
    params = make_params("timm:tiny", weights=str(path), scaling="none")
    found = network.encode(backbone.fit(crops, params=params).model, crops)
    pictures = torch.from_numpy(crops[:, [1] * 3])
    expected = torch.nn.functional.conv2d(pictures, state["stem.weight"], state["stem.bias"]).mean(dim=(2, 3))
    np.testing.assert_allclose(found[:, 5:], expected.numpy(), atol=1e-5)


def test_weights_of_another_network_and_pickled_objects_are_refused(fake_timm, crops):
    path = fake_timm / "w.pt"
    good = {"stem.weight": torch.rand(5, 3, 3, 3), "stem.bias": torch.rand(5)}
    params = make_params("timm:tiny", weights=str(path))
    for state, message in (
        ({"stem.weight": good["stem.weight"]}, "is not of 'tiny': it lacks 'stem.bias'"),
        (good | {"other.weight": torch.rand(2)}, "it adds 'other.weight'"),
        (good | {"stem.weight": torch.rand(5, 4, 3, 3)}, "size mismatch"),
        ({"stem.weight": print}, "holds no weights"),
        (torch.rand(2), "no state dict"),
    ):
        torch.save(state, path)
        with pytest.raises(ModelMismatchError, match=message):
            backbone.fit(crops, params=params)
    torch.save(good, path)
    with pytest.raises(ModelMismatchError, match="timm cannot build 'huge'"):
        backbone.fit(crops, params=make_params("timm:huge", weights=str(path)))


def test_without_timm_the_message_is_the_command_that_installs_it(tmp_path, crops, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, find=importlib.util.find_spec: None)
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(ModelMismatchError, match="'timm' is not installed: pip install timm"):
        backbone.fit(crops, params=make_params("timm:resnet18", weights=str(tmp_path / "w.pt")))


@pytest.mark.parametrize("name, side", [("test_resnet", 64), ("test_vit", 96)])
@pytest.mark.filterwarnings("ignore")
def test_networks_of_timm_itself_give_what_timm_gives(tmp_path, crops, name, side):
    """With timm installed only; the names are of small networks that timm has for its own tests."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    if not torch.version.cuda:  # torchvision's operators for a GPU, which a CPU build of torch does not know
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    torch.manual_seed(2)
    sized = {"img_size": side} if name == "test_vit" else {}
    whole = timm.create_model(name, pretrained=False, **sized).eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    params = make_params(f"timm:{name}", weights=str(tmp_path / "w.safetensors"), out_px=side, scaling="none")
    found = network.encode(backbone.fit(crops[:9], params=params).model, crops[:9])
    larger = torch.nn.functional.interpolate(torch.from_numpy(crops[:9, [1] * 3]), (side, side), mode="bilinear")
    with torch.no_grad():
        expected = whole.forward_head(whole.forward_features(larger), pre_logits=True).numpy()
    np.testing.assert_allclose(found[:, expected.shape[1] :], expected, atol=1e-4)


# ------------------------------------------------------------------------------------------------------- principal axes


def test_principal_axes_of_batches_are_those_of_the_whole():
    random = np.random.default_rng(3)
    rows = (random.normal(size=(400, 5)) * [9, 6, 4, 2, 1] @ random.normal(size=(5, 70))).astype(np.float32)
    rows += 0.05 * random.normal(size=rows.shape).astype(np.float32) + 3
    mean, axes, shares = principal_axes(lambda: np.array_split(rows, 7), 4)
    oracle = PCA(4, svd_solver="full").fit(rows.astype(float))
    np.testing.assert_allclose(mean, oracle.mean_, rtol=1e-5)
    np.testing.assert_allclose(np.abs((axes * oracle.components_.T).sum(axis=0)), 1, atol=1e-5)
    np.testing.assert_allclose(shares, oracle.explained_variance_ratio_, rtol=1e-4)
    assert (axes[np.abs(axes).argmax(axis=0), range(4)] > 0).all()
    assert principal_axes(lambda: [rows[:3]], 9)[1].shape == (70, 2), "three rows span two axes"
    with pytest.raises(ValueError, match="No rows"):
        principal_axes(lambda: [], 2)


def test_principal_axes_are_the_same_whatever_the_number_of_cores():
    code = (
        "import numpy as np; from plateloom.latent.principal import principal_axes;"
        "rows = np.random.default_rng(0).normal(size=(1500, 700)).astype(np.float32);"
        "print(*[value.tobytes().hex() for value in principal_axes(lambda: [rows], 8)])"
    )
    found = set()
    for threads in ("1", "2"):
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        found.add(run.stdout)
    assert len(found) == 1


def test_nothing_of_a_network_is_kept_that_is_not_used_before_its_first_crop(tmp_path):
    config = {"method": "backbone", "channels": 2, "crop_px": 16, "out_px": 16, "arrangement": "each"}
    config |= {"scaling": "none", "model": str(tmp_path / "absent.pt2"), "weights": "", "latent_dim": 6, "numbers": 6}
    model = network.build(config)
    assert isinstance(model, pretrained.Backbone)
    with pytest.raises(ModelMismatchError, match="absent.pt2"):
        network.encode(model, np.zeros((1, 2, 16, 16), np.float32))
