"""Networks of other people as encoders of crops: how they are read, given crops, and reduced to a few numbers."""

import importlib
import importlib.util
import zipfile

import numpy as np
import torch
from torch import nn

from plateloom.devices import fit_memory
from plateloom.errors import ModelMismatchError
from plateloom.latent.backbone import INSTALL, PACKAGE, TIMM
from plateloom.latent.principal import principal_axes

GRAY = (0.449, 0.226)  # mean and standard deviation of ImageNet over its three colors
PLANES = 3  # of a network that does not say how many it takes
AT_ONCE = 32  # pictures
PCA_CROPS = 5000  # of the training crops
HELD_CROPS = 1000
SAME = 1e-3  # of the standard deviation of numbers: less is no difference
ROUNDING = 1e-5  # of their size


class Backbone(nn.Module):
    """A network that is read from its files when it is first used, and a PCA of what it gives.

    The network is no part of the state: its files are named, and whoever keeps the model keeps their digests.

    Parameters
    ----------
    channels : int
        C of the crops.
    latent_dim : int
        K.
    numbers : int
        That the network gives for a crop, all channels together; a PCA reduces them where K is less.
    crop_px, out_px, scaling, model, weights
        See the `Params` of the method.
    arrangement : {'each', 'stack'}
        `channels` there.
    """

    reconstructs = False

    def __init__(self, channels, latent_dim, numbers, crop_px, out_px, arrangement, scaling, model, weights):
        super().__init__()
        self.config = {
            "method": "backbone",
            "channels": channels,
            "latent_dim": latent_dim,
            "numbers": numbers,
            "crop_px": crop_px,
            "out_px": out_px,
            "arrangement": arrangement,
            "scaling": scaling,
            "model": model,
            "weights": weights,
        }
        self.side_px = crop_px
        self.register_buffer("center", torch.zeros(channels, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))
        self.reduces = latent_dim < numbers
        if self.reduces:
            self.register_buffer("mean", torch.zeros(numbers))
            self.register_buffer("axes", torch.zeros(numbers, latent_dim))
        self._opened = None, None

    def encode(self, crops):
        """Return the latent numbers, shape (N, K)."""
        found = self.describe(crops)
        return (found - self.mean) @ self.axes if self.reduces else found

    def describe(self, crops):
        """Return what the network gives, shape (N, `numbers`); of several channels one after the other."""
        network = self._network()
        seen = (crops - self.center) / self.scale
        if self.config["arrangement"] == "each":
            seen = seen.reshape(-1, 1, *seen.shape[2:])
        given = torch.cat([network(some) for some in seen.split(AT_ONCE)]) if len(seen) else seen.new_zeros(0)
        return given.reshape(len(crops), -1 if len(crops) else self.config["numbers"])

    def _network(self):
        """The network on the device that the PCA is on."""
        device = self.scale.device
        if self._opened[0] != device:
            self._opened = device, Network(self.config, device)
        return self._opened[1]


class Network:
    """A network read from its files; called with pictures of one or C planes, it gives a row for each.

    Parameters
    ----------
    config : dict
        Of a `Backbone`.
    device : torch.device

    Raises
    ------
    ModelMismatchError
        If the files are not what they must be, or crops do not fit the network.
    """

    def __init__(self, config, device):
        self.side = config["out_px"]
        stacked = config["channels"] if config["arrangement"] == "stack" else None
        if config["model"].startswith(TIMM):
            self.planes, self.batch = stacked or PLANES, None
            self.run = open_timm(config["model"].removeprefix(TIMM), config["weights"], self.planes, self.side).to(
                device
            )
            return
        self.run, (self.batch, planes, *sides) = open_program(config["model"], device)
        self.planes = stacked or planes or PLANES
        if planes not in (None, self.planes):
            raise ModelMismatchError(
                f"{config['model']!r} was exported for {planes} planes, the crops have {stacked} channels; "
                "use `channels: each`, or export it for as many"
            )
        if wrong := [side for side in sides if side not in (None, self.side)]:
            raise ModelMismatchError(
                f"{config['model']!r} was exported for {wrong[0]} px; set `out_px: {wrong[0]}`, which is {self.side}"
            )

    def __call__(self, pictures):
        shape = (self.side, self.side)
        if pictures.shape[2:] != shape:
            pictures = nn.functional.interpolate(
                pictures, shape, mode="bilinear", antialias=pictures.shape[-1] > self.side
            )
        pictures = pictures.expand(-1, self.planes, -1, -1)
        if self.batch:  # a program that takes so many and no other number
            lacking = -len(pictures) % self.batch
            filled = torch.cat([pictures, pictures[:1].expand(lacking, -1, -1, -1)])
            found = torch.cat([self._rows(some) for some in filled.split(self.batch)])
            return found[: len(pictures)]
        return fit_memory(lambda size: torch.cat([self._rows(some) for some in pictures.split(size)]), len(pictures))[0]

    def _rows(self, pictures):
        """What the network gives for some pictures: one row each, a map of numbers averaged."""
        try:
            found = self.run(pictures.contiguous())
        except (torch.OutOfMemoryError, torch.AcceleratorError):  # not the program's fault
            raise
        except (AssertionError, RuntimeError) as error:  # a guard of the program, or an operator
            raise ModelMismatchError(f"the network refuses pictures {tuple(pictures.shape)}: {error}") from error
        if not isinstance(found, torch.Tensor) or found.ndim not in (2, 4) or len(found) != len(pictures):
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise ModelMismatchError(f"The network gave {shape}. Expected (N, F) or (N, F, rows, columns).")
        return (found.mean(dim=(2, 3)) if found.ndim == 4 else found).float()


def open_program(path, device):
    """Read a program that `torch.export.save` wrote.

    Parameters
    ----------
    path : str
        Whose file is trusted: it may run any code when it is read.
    device : torch.device

    Returns
    -------
    run : callable
    sizes : list of int or None
        N, C, H, W of what it takes; None where it takes any number.

    Raises
    ------
    ModelMismatchError
        If it is no such file, or takes anything but pictures of float32.
    """
    try:
        program = torch.export.load(path)
    except (RuntimeError, ValueError, LookupError, OSError, zipfile.BadZipFile) as error:
        raise ModelMismatchError(
            f"{path!r} cannot be read as a program of torch.export.save: {' '.join(str(error).split())[:200]}"
        ) from error
    names = set(program.graph_signature.user_inputs)
    inputs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(inputs) != 1 or getattr(inputs[0], "ndim", 0) != 4:
        raise ModelMismatchError(f"{path!r} does not take one tensor (N, C, rows, columns).")
    if inputs[0].dtype != torch.float32:
        kind = str(inputs[0].dtype).removeprefix("torch.")
        raise ModelMismatchError(f"{path!r} takes pictures of {kind}; export it in float32, after .float()")
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, str(device))
    return program.module(), [size if isinstance(size, int) else None for size in inputs[0].shape]


def open_timm(name, weights, planes, side):
    """Build an architecture of timm and put weights in.

    Parameters
    ----------
    name : str
    weights : str
        Path.
    planes, side : int
        Planes of a picture, and its side [px].

    Returns
    -------
    Module
        In evaluation mode, without its classifier, on the CPU.

    Raises
    ------
    ModelMismatchError
        If timm is not installed or does not know it, or the weights are of another network.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise ModelMismatchError(f"the package {PACKAGE!r} is not installed: {INSTALL}")
    try:
        timm = importlib.import_module(PACKAGE)
    except (ImportError, RuntimeError, OSError) as error:  # e.g. a torchvision that was built for another torch
        said = " ".join(str(error).split())
        raise ModelMismatchError(
            f"the package {PACKAGE!r} cannot be imported ({said}); install torchvision from the same index as torch"
        ) from error
    try:
        known = timm.models.get_pretrained_cfg(name)
        more = {"img_size": side} if getattr(known, "fixed_input_size", False) else {}
        network = timm.create_model(name, pretrained=False, num_classes=0, in_chans=planes, **more)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelMismatchError(f"timm cannot build {name!r}: {' '.join(str(error).split())[:200]}") from error
    try:
        lacking, beyond = network.load_state_dict(read_weights(weights), strict=False)
    except RuntimeError as error:  # names that agree, of other shapes
        raise ModelMismatchError(f"{weights!r} is not of {name!r}: {' '.join(str(error).split())[:300]}") from error
    heads = (getattr(known, "classifier", None) or ()) if known else ()
    heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    beyond = [key for key in beyond if not key.startswith(heads)]
    if lacking or beyond:
        said = [
            f"{word} {', '.join(map(repr, keys[:3]))}" for word, keys in (("lacks", lacking), ("adds", beyond)) if keys
        ]
        raise ModelMismatchError(f"{weights!r} is not of {name!r}: it {' and '.join(said)}")
    return network.eval()


def read_weights(path):
    """Read a state dict, from safetensors or as torch.save writes it; of the latter tensors only, no other objects.

    Parameters
    ----------
    path : str

    Returns
    -------
    dict of str to Tensor
        One that lies in a checkpoint under `state_dict` or `model` is taken out.

    Raises
    ------
    ModelMismatchError
        If it is neither.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        RuntimeError,
        ValueError,
        EOFError,
        OSError,
        torch.serialization.pickle.UnpicklingError,
    ) as e:
        raise ModelMismatchError(f"{path!r} holds no weights: {' '.join(str(e).split())[:200]}") from e
    for name in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ModelMismatchError(f"{path!r} holds no state dict, names and tensors.")
    return found


def fit(crops, *, params, device="cpu", holdout=None):
    """Fit scaling and PCA of a network that is not trained.

    Parameters
    ----------
    crops : array-like, shape (N, C, H, W)
        Read by batches; H = W = `params.crop_px`.
    params : plateloom.latent.backbone.Params
    device : str
    holdout : array-like, shape (M, C, H, W), optional

    Returns
    -------
    plateloom.latent.network.Trained
        Without history and state; `facts` has `numbers`, those that the network gives, and the shares of their variance that
        the latent numbers hold: `variance`, and `held_out_variance` of crops that the PCA has not seen.

    Raises
    ------
    ModelMismatchError
        If the network cannot be read, does not take such crops, or says something else of a crop alone than among others.
    ValueError
        If there is no crop.
    """
    from plateloom.latent import network

    if not len(crops):
        raise ValueError("No crops to fit on.")
    channels = crops.shape[1]
    config = {
        "method": "backbone",
        "channels": channels,
        "crop_px": params.crop_px,
        "out_px": params.out_px,
        "arrangement": params.channels,
        "scaling": params.scaling,
        "model": params.model,
        "weights": params.weights,
    }
    found = network.build(config | {"latent_dim": 1, "numbers": 1}).to(device)
    center, scale = found.center, found.scale
    if params.scaling == "channel":
        _, center, scale = network.channel_moments(crops)
    elif params.scaling == "imagenet":
        center, scale = (torch.full_like(found.scale, value) for value in GRAY)
    found.center.copy_(center)
    found.scale.copy_(scale)
    _check_alone(found, crops)
    rows = _describe(found, crops, PCA_CROPS)
    numbers = rows.shape[1]
    facts = {"numbers": numbers}
    tensors = {"center": found.center.cpu(), "scale": found.scale.cpu()}
    kept = numbers
    if params.latent_dim is not None and params.latent_dim < numbers:
        mean, axes, shares = principal_axes(lambda: [rows], params.latent_dim)
        kept = axes.shape[1]
        tensors |= {"mean": torch.from_numpy(mean), "axes": torch.from_numpy(axes)}
        facts["variance"] = float(shares.sum())
        if holdout is not None and len(holdout):
            held = _describe(found, holdout, HELD_CROPS) - mean
            total = float(np.square(held, dtype=np.float64).sum())
            facts["held_out_variance"] = float(np.square(held @ axes, dtype=np.float64).sum()) / (total or 1.0)
    model = network.from_tensors(config | {"latent_dim": kept, "numbers": numbers}, tensors)
    return network.Trained(model, [], float("nan"), {}, facts)


def _check_alone(model, crops):
    """Refuse a network that was saved as it is trained: what it says of a crop then depends on the others, or on chance."""
    from plateloom.latent import network

    chosen = np.linspace(0, len(crops) - 1, min(AT_ONCE, len(crops))).round().astype(int)
    batch = network.to_batch(crops, chosen, model.scale.device)
    with network.exact(), torch.no_grad():
        among, again, alone = (model.describe(some).double() for some in (batch, batch, batch[:1]))
    # Rounding differs with the size of a batch, most of all where crops are alike.
    limit = SAME * among.std(dim=0, correction=0).square().mean().sqrt() + ROUNDING * among.square().mean().sqrt()
    for found, than in ((again, "the second time than the first"), (alone, "alone than among others")):
        if (found - among[: len(found)]).square().mean(dim=1).sqrt().max() > limit:
            raise ModelMismatchError(
                f"{model.config['model']!r} says something else of a crop {than}: it was saved as it is trained; "
                "export it after .eval()"
            )


def _describe(model, crops, most):
    """What the network gives for crops chosen evenly: float32, shape (n, F)."""
    from plateloom.latent import network

    chosen = np.linspace(0, len(crops) - 1, min(most, len(crops))).round().astype(int)
    parts = []
    with network.exact(), torch.no_grad():
        for start in range(0, len(chosen), AT_ONCE):
            batch = network.to_batch(crops, chosen[start : start + AT_ONCE], model.scale.device)
            parts.append(model.describe(batch).cpu().numpy())
    return np.concatenate(parts)
