"""Training and use of the networks in `plateloom.latent.architectures`: crops of cells to K numbers, and back if they can.

Deterministic by seed on a given machine, resumable to the bit, stored as tensors and a dict (safetensors, no pickle).
"""

import hashlib
import inspect
import json
import math
from dataclasses import dataclass, field

import numpy as np
import torch

from plateloom.errors import ModelMismatchError
from plateloom.latent.architectures import NETWORKS, CropEncoder
from plateloom.latent.principal import principal_axes
from plateloom.latent.training_state import below, copy_tensors, exact, optimizer_state, restore_optimizer

FIRST = {"method": "autoencoder", "invariant": False, "variational": False}  # what models say that do not say it
PCA_CROPS = 20_000  # of the training, for `pca_loss`


@dataclass
class Trained:
    """What training gives back.

    Attributes
    ----------
    model : CropEncoder
        In evaluation mode, on the CPU.
    history : list of dict
        Per epoch `epoch` (from 1), `train` and `holdout`: of a network that reconstructs the mean squared error in units
        of the channels' variance, of a contrastive one its loss; NaN without holdout.
    baseline : float
        What `holdout` must beat: the error of the mean training crop on the holdout crops (without: on the training
        crops), or the loss of views that tell nothing.
    state : dict of str to Tensor
        As given to `on_epoch` last; resumes training.
    facts : dict
        What else is to be said of the model.
    """

    model: CropEncoder
    history: list
    baseline: float
    state: dict
    facts: dict = field(default_factory=dict)


def train(crops, *, params, device="cpu", holdout=None, resume=None, on_epoch=None):
    """Train an encoder.

    Parameters
    ----------
    crops : array-like of uint8, uint16, float16 or float32, shape (N, C, H, W)
        Read by batches, e.g. a memory map; integers are divided by the largest of their type. H = W = `params.out_px`.
    params : Params
        Of the method.
    device : str
        "cpu" or "cuda".
    holdout : array-like, shape (M, C, H, W), optional
        Crops of *wells that are not in* `crops`; crops of the same well would look better than the model is.
    resume : dict of str to Tensor, optional
        A state that `on_epoch` was given. The result is that of a run that was never interrupted.
    on_epoch : callable, optional
        Called as ``on_epoch(state, history)`` after each epoch; `state` is flat tensors on the CPU, safe to keep.

    Returns
    -------
    Trained

    Raises
    ------
    ModelMismatchError
        If `resume` comes from other parameters or other crops.
    ValueError
        If there is no crop, or crops have another side than `params.out_px`.

    Notes
    -----
    Order, augmentation and noise of epoch e are drawn from (seed, e) alone and the learning rate is a function of the step,
    so the state needs no random generator. Bitwise equality holds for the same machine and thread count.
    """
    _check_crops(crops, params.side_px)
    if not len(crops):
        raise ValueError("No crops to train on.")
    if holdout is not None and len(holdout):
        _check_crops(holdout, params.side_px, channels=crops.shape[1])
    else:
        holdout = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        model = build(params.network(crops.shape[1]))
    mean, center, scale = channel_moments(crops, params.batch_size)
    model.center.copy_(center)
    model.scale.copy_(scale)
    recipe = params.model_dump() | {
        "method": model.config["method"],
        "crops": list(crops.shape),
        "moments": [center.flatten().tolist(), scale.flatten().tolist()],
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).digest()
    optimizer = torch.optim.Adam(model.parameters(), lr=params.learning_rate)
    model.to(device)
    history = _restore(resume, model, optimizer, digest) if resume is not None else []
    steps = math.ceil(len(crops) / params.batch_size)
    state = _state(model, optimizer, history, digest)
    with exact():
        for epoch in range(len(history), params.epochs):
            model.train()
            random = np.random.default_rng([params.seed, epoch])
            order = random.permutation(len(crops))
            total = 0.0
            for step in range(steps):
                chosen = np.sort(order[step * params.batch_size : (step + 1) * params.batch_size])
                progress = (epoch * steps + step) / (params.epochs * steps)
                for group in optimizer.param_groups:
                    group["lr"] = params.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
                optimizer.zero_grad(set_to_none=True)
                loss, shown = model.loss(to_batch(crops, chosen, device), random, params)
                loss.backward()
                optimizer.step()
                total += float(shown.detach()) * len(chosen)
            held = held_out_loss(model, holdout, params) if holdout is not None else math.nan
            history.append({"epoch": epoch + 1, "train": total / len(crops), "holdout": held})
            state = _state(model, optimizer, history, digest)
            if on_epoch is not None:
                on_epoch(state, list(history))
    model.to("cpu").eval()
    baseline = baseline_loss(model, mean, crops if holdout is None else holdout, params.batch_size)
    return Trained(model, history, baseline, state)


def encode(model, crops, batch_size=256):
    """Compute the latent numbers of crops.

    Parameters
    ----------
    model : CropEncoder
        Used on the device that it is on.
    crops : array-like, shape (N, C, H, W)
        As in training.
    batch_size : int
        Of no influence on the result beyond rounding.

    Returns
    -------
    ndarray of float32, shape (N, K)

    Raises
    ------
    ModelMismatchError
        If the crops have other channels or another side than the model.
    """
    return _by_batches(model, crops, batch_size, model.encode)


def reconstruct(model, crops, batch_size=256):
    """Send crops through the model.

    Parameters
    ----------
    model : Autoencoder
    crops : array-like, shape (N, C, H, W)
    batch_size : int

    Returns
    -------
    ndarray of float32, shape (N, C, H, W)
        In the units of the crops (integers: divided by the largest of their type). Of an orientation-invariant model 0
        outside of the largest circle.
    """
    return _by_batches(model, crops, batch_size, lambda batch: model.reconstruct(batch)[1])


def encode_with_errors(model, crops, batch_size=256):
    """Compute the latent numbers of crops, and how badly each is reconstructed, in one pass.

    Parameters
    ----------
    model : CropEncoder
    crops : array-like, shape (N, C, H, W)
    batch_size : int

    Returns
    -------
    latent : ndarray of float32, shape (N, K)
    errors : ndarray of float32, shape (N,), or None
        Mean squared error in units of the channels' variance in training; None if the model reconstructs nothing.
    """
    if not model.reconstructs:
        return encode(model, crops, batch_size), None

    def both(batch):
        latent, found = model.reconstruct(batch)
        return torch.cat([latent, model.difference(found, batch)[:, None]], dim=1)

    values = _by_batches(model, crops, batch_size, both)
    return np.ascontiguousarray(values[:, :-1]), values[:, -1].copy()


def held_out_loss(model, crops, params):
    """Return what `Trained.history` gives of crops that are not trained on.

    Parameters
    ----------
    model : CropEncoder
    crops : array-like, shape (N, C, H, W)
    params : Params

    Returns
    -------
    float
        The same whenever it is asked for; NaN without crops.
    """
    random = np.random.default_rng(params.seed)
    return _mean_by_batches(model, crops, params.batch_size, lambda batch: model.score(batch, random, params))


def baseline_loss(model, mean, crops, batch_size=256):
    """Return what `held_out_loss` would be if nothing were learned.

    Parameters
    ----------
    model : CropEncoder
        For the kind of loss and its units only.
    mean : array of float, shape (C, H, W)
        The mean crop, from `mean_crop`, which answers every crop if the model reconstructs.
    crops : array-like, shape (N, C, H, W)
    batch_size : int

    Returns
    -------
    float
        NaN without crops.
    """
    mean = torch.as_tensor(np.asarray(mean, np.float32), device=model.scale.device)
    return _mean_by_batches(model, crops, batch_size, lambda batch: model.baseline(batch, mean))


def pca_loss(model, crops, holdout):
    """Return what `held_out_loss` would be of a PCA with as many numbers, fitted on the training crops as they lie.

    Parameters
    ----------
    model : Autoencoder
        For the units of the error, and the number of components only.
    crops : array-like, shape (N, C, H, W)
        Training crops; of more than `PCA_CROPS` so many, chosen evenly. Read in batches.
    holdout : array-like, shape (M, C, H, W)

    Returns
    -------
    float
        NaN without holdout.
    """
    chosen = np.linspace(0, len(crops) - 1, min(PCA_CROPS, len(crops))).round().astype(int)
    weight = float(model.window.sum()) * len(model.scale)

    def rows_of(batch):
        return (model.standardize(batch) * model.window).flatten(1).cpu().numpy()

    def batches():
        for start in range(0, len(chosen), 256):
            yield rows_of(to_batch(crops, chosen[start : start + 256], model.scale.device))

    mean, axes, _ = principal_axes(batches, model.config["latent_dim"])

    def lost(batch):
        rows = rows_of(batch) - mean
        left = rows - (rows @ axes) @ axes.T
        return np.square(left, dtype=np.float64).sum() / len(rows) / weight

    return _mean_by_batches(model, holdout, 256, lost)


def mean_crop(crops, batch_size=256):
    """Average crops batch by batch.

    Parameters
    ----------
    crops : array-like, shape (N, C, H, W)
    batch_size : int

    Returns
    -------
    ndarray of float32, shape (C, H, W)
    """
    return channel_moments(crops, batch_size)[0].numpy()


def to_tensors(model):
    """Take a model apart for safetensors.

    Parameters
    ----------
    model : CropEncoder

    Returns
    -------
    config : dict
        `method`, `channels`, `latent_dim`, `out_px`, `width` …: JSON.
    tensors : dict of str to Tensor
        Contiguous, on the CPU.
    """
    return dict(model.config), copy_tensors(model)


def from_tensors(config, tensors):
    """Put a model together again.

    Parameters
    ----------
    config : dict
    tensors : dict of str to Tensor

    Returns
    -------
    CropEncoder
        In evaluation mode, on the CPU.

    Raises
    ------
    ModelMismatchError
        If the tensors are not those of the config.
    """
    model = build(dict(config) if "method" in config else FIRST | dict(config))
    _load(model, tensors)
    return model.eval()


def build(config):
    """Build an untrained network.

    Parameters
    ----------
    config : dict
        `method`, a name in `NETWORKS`, and the network's own keywords.

    Returns
    -------
    CropEncoder

    Raises
    ------
    ModelMismatchError
        If the keywords are not the network's.
    """
    keywords = {name: value for name, value in config.items() if name != "method"}
    network = NETWORKS.get(config.get("method"))
    expected = set(inspect.signature(network).parameters) if network else {"method"}
    if network is None or set(keywords) != expected:
        raise ModelMismatchError(f"Found the settings {sorted(config)}. Expected {sorted(expected | {'method'})}.")
    return network(**keywords)


def _check_crops(crops, side, channels=None):
    """Refuse crops of another shape."""
    if len(crops.shape) != 4 or tuple(crops.shape[2:]) != (side, side):
        raise ValueError(f"Found crops of shape {tuple(crops.shape)}. Expected (N, C, {side}, {side}).")
    if channels is not None and crops.shape[1] != channels:
        raise ValueError(f"The holdout crops have {crops.shape[1]} channels, the training crops {channels}.")


def to_batch(crops, index, device):
    """Take a slice or rows of `crops`, as float32 on the device.

    Parameters
    ----------
    crops : array-like, shape (N, C, H, W)
    index : slice or array of int
    device : torch.device or str

    Returns
    -------
    Tensor of float32, shape (n, C, H, W)
        Integers are divided by the largest of their type.
    """
    values = np.asarray(crops[index])
    if np.issubdtype(values.dtype, np.integer):
        values = values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)


def _by_batches(model, crops, batch_size, function):
    """Apply `function` to batches without gradients; one array of float32."""
    config = model.config
    expected = (config["channels"], model.side_px, model.side_px)
    if tuple(crops.shape[1:]) != expected:
        raise ModelMismatchError(
            f"Found crops of {tuple(crops.shape[1:])} (channels, rows, columns); the model was trained on {expected}."
        )
    was_training = model.training
    model.eval()
    parts = []
    with exact(), torch.no_grad():
        for start in range(0, max(len(crops), 1), batch_size):  # an empty input still gives the shape of the result
            batch = to_batch(crops, slice(start, start + batch_size), model.scale.device)
            parts.append(function(batch).cpu().numpy())
    model.train(was_training)
    return np.concatenate(parts).astype(np.float32)


def _mean_by_batches(model, crops, batch_size, function):
    """The mean over crops of a number per batch, without gradients; NaN without crops."""
    was_training = model.training
    model.eval()
    total = 0.0
    with exact(), torch.no_grad():
        for start in range(0, len(crops), batch_size):
            batch = to_batch(crops, slice(start, start + batch_size), model.scale.device)
            total += float(function(batch)) * len(batch)
    model.train(was_training)
    return total / len(crops) if len(crops) else math.nan


def channel_moments(crops, batch_size=256):
    """Compute the mean crop, and mean and standard deviation of each channel, in one pass of float64 sums.

    Parameters
    ----------
    crops : array-like, shape (N, C, H, W)
    batch_size : int

    Returns
    -------
    mean : Tensor of float32, shape (C, H, W)
    center, scale : Tensor of float32, shape (C, 1, 1)
        A channel that does not vary has the scale 1.

    Raises
    ------
    ValueError
        If some values are not finite.
    """
    channels = crops.shape[1]
    total = torch.zeros(tuple(crops.shape[1:]), dtype=torch.float64)
    squares = torch.zeros(channels, dtype=torch.float64)
    for start in range(0, len(crops), batch_size):
        batch = to_batch(crops, slice(start, start + batch_size), "cpu").double()
        if not torch.isfinite(batch).all():
            raise ValueError("Some crops hold NaN or infinity. Leave those cells out.")
        total += batch.sum(dim=0)
        squares += (batch**2).sum(dim=(0, 2, 3))
    mean = total / max(len(crops), 1)
    center = mean.mean(dim=(1, 2))
    variance = squares / max(len(crops), 1) / mean[0].numel() - center**2
    scale = torch.sqrt(variance.clamp(min=0))
    scale[scale < 1e-6] = 1.0  # an empty channel
    return mean.float(), center.float()[:, None, None], scale.float()[:, None, None]


def _state(model, optimizer, history, digest):
    """Everything needed to go on, as flat tensors."""
    state = {f"model.{name}": value for name, value in copy_tensors(model).items()}
    state |= optimizer_state(model, optimizer)
    state["history"] = torch.tensor([[h["train"], h["holdout"]] for h in history], dtype=torch.float64).reshape(-1, 2)
    state["recipe"] = torch.frombuffer(bytearray(digest), dtype=torch.uint8).clone()
    return state


def _restore(state, model, optimizer, digest):
    """Put a state back; returns the history."""
    if bytes(state.get("recipe", torch.zeros(0, dtype=torch.uint8)).tolist()) != digest:
        raise ModelMismatchError("The state to resume comes from other parameters or other crops. Start anew.")
    _load(model, below(state, "model."))
    restore_optimizer(state, model, optimizer)
    rows = state["history"].tolist()
    return [{"epoch": n + 1, "train": train, "holdout": held} for n, (train, held) in enumerate(rows)]


def _load(model, tensors):
    """Load tensors, whose names and shapes must be the model's own."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))[:4]
        raise ModelMismatchError(f"The tensors are not those of {model.config}: {wrong}.")
    model.load_state_dict({name: torch.as_tensor(value) for name, value in tensors.items()})
