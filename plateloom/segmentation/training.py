"""Train the network of the method `unet`: images and labels in, weights and curves out.

Deterministic by seed on a given machine, and resumable: order and augmentation of a step are drawn from (seed, step)
alone and the learning rate is a function of the step, so that a checkpoint needs no random generator.
"""

import hashlib
import json
import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn import functional

from plateloom.devices import choose_device
from plateloom.errors import ModelMismatchError
from plateloom.segmentation import unet, watershed
from plateloom.segmentation.evaluation import compare_labels, pool
from plateloom.segmentation.network import Network, fold, prepare_input, unfold
from plateloom.segmentation.network_file import multiple_of
from plateloom.segmentation.rescaling import sample_view
from plateloom.segmentation.targets import make_targets

OVERSAMPLING = 1.25  # of the images kept for training, so that most patches are made smaller than these, not larger
FEW_NUCLEI = 5  # an image with fewer takes its diameter from all images
ONE_EXPERIMENT = 40  # so few images are taken for one experiment, each image for a group of its own
GROUPS = 24
HELD = 5  # one group in so many is kept out of training
PATCH_NUCLEI = 8  # width of a patch in nuclei
FLOATS_PER_POINT = 1000  # that training keeps for each point of a patch, of the network that we ship
WARM_UP = 200  # steps


class TrainingParams(BaseModel):
    """Settings of the training; those of a network that goes on from another's weights are that one's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    widths: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="Channels of each level of a new network. None: 16, doubled from level to level up to 128, as many levels as it takes "
        "for a pixel of the coarsest to span half a nucleus.",
    )
    diameter_px: float = Field(16.0, gt=0, description="Diameter of a typical nucleus on a new network's grid [px].")
    steps: int = Field(6000, ge=1, description="Steps of the optimizer at most.")
    batch_size: int = Field(8, ge=1, description="Patches per step; memory is kept by working on them in pieces.")
    learning_rate: float | None = Field(
        None, gt=0, description="At the start; falls along a cosine. None: 0.003, or 0.0005 on from other weights."
    )
    holdout: bool = Field(
        True, description="Keep every fifth group of images out of training to stop early and to choose the best."
    )
    validate_every: int = Field(1000, ge=1, description="Steps between validations, and between checkpoints.")
    patience: int = Field(5, ge=1, description="Validations without a better one after which training stops.")
    average: float = Field(
        0.998, ge=0, lt=1, description="What is validated and kept is the running mean of the weights with this decay."
    )
    mixed_precision: bool = Field(True, description="Convolutions of training in bfloat16.")
    seed: int = Field(0, ge=0, description="Every random number follows from it.")
    device: str = Field("prefer", pattern="^(require|prefer|cpu)$", description="Whether to use a GPU.")


@dataclass
class Sample:
    """An image at training scale and its targets (4, h, w), the centers of its nuclei, and its group."""

    maps: torch.Tensor
    centers: np.ndarray
    group: int


@dataclass
class Trained:
    """What training gives back.

    Attributes
    ----------
    network : Network
        Rounded, in evaluation mode, on the CPU: of the best validation, without holdout of the last step.
    history : list of dict
        Per validation ``step``, mean ``loss`` since the last, and ``f1``, ``ap`` (at an intersection over union of 0.5)
        and ``mean_ap`` (0.5 to 0.9) of the held-out images; without holdout these are None.
    facts : dict
        What was trained on, and how: JSON.
    state : dict of str to Tensor
        As given to `on_checkpoint` last; resumes training.
    """

    network: Network
    history: list
    facts: dict
    state: dict


def train(images, labels, *, params, start=None, resume=None, on_checkpoint=None):
    """Train a network on annotated images.

    Parameters
    ----------
    images : sequence of ndarray of float32, shape (Y, X)
        Nuclei, bright on dark, in [0, 1]; sizes may differ.
    labels : sequence of ndarray of int, shape (Y, X)
        Their nuclei; 0 is background.
    params : TrainingParams
    start : Network, optional
        Rounded: go on from its weights.
    resume : dict of str to Tensor, optional
        A state that `on_checkpoint` was given. The result is that of a run that was never interrupted.
    on_checkpoint : callable, optional
        Called as ``on_checkpoint(state, history)`` after each validation; `state` is flat tensors on the CPU.

    Returns
    -------
    Trained

    Raises
    ------
    ModelMismatchError
        If `resume` comes from other parameters or other images.
    ValueError
        If images and labels do not belong together, or there is no nucleus to learn from.

    Notes
    -----
    Each image is resampled so that its own median nucleus has the network's diameter: magnifications may be mixed.
    """
    diameters = measure_diameters(images, labels)
    groups = group_images(images, diameters)
    held = hold_out(groups) if params.holdout else np.zeros(len(images), bool)
    device = choose_device(params.device)
    network, average = (_make_network(params, start).to(device, memory_format=torch.channels_last) for _ in range(2))
    average.load_state_dict(network.state_dict())
    average.requires_grad_(False)
    samples = [
        Sample(*prepare_sample(images[i], labels[i], diameters[i], network.config["diameter_px"]), int(groups[i]))
        for i in np.flatnonzero(~held)
    ]
    fields = [(images[i], labels[i], diameters[i]) for i in np.flatnonzero(held) if labels[i].any()]
    run = _Run(network, average, samples, params, start, device)
    if resume is not None:
        run.restore(resume)
    elif start is not None:
        run.validate(fields)  # the weights that it goes on from may be the best
        if on_checkpoint is not None:
            on_checkpoint(run.state(), [dict(row) for row in run.history])
    for step in range(run.step, params.steps):
        if run.stale(params.patience):
            break
        run.take_step(step)
        if (step + 1) % params.validate_every == 0 or step + 1 == params.steps:
            run.validate(fields)
            if on_checkpoint is not None:
                on_checkpoint(run.state(), [dict(row) for row in run.history])
    facts = {
        "images": len(images),
        "nuclei": int(sum(len(np.unique(one[one > 0])) for one in labels)),
        "groups": int(groups.max()) + 1,
        "held_out": {
            "groups": len(np.unique(groups[held])),
            "images": int(held.sum()),
            "nuclei": int(sum(len(np.unique(one[one > 0])) for _, one, _ in fields)),
        },
        "median_diameter_px": round(float(np.median(diameters)), 2),
        "patch_px": run.patch_px,
        "steps": run.step,
        "parameters": params.model_dump(mode="json"),
        "device": device,
    }
    return Trained(run.finish(), run.history, facts, run.state())


def measure_diameters(images, labels):
    """Median diameter of the nuclei of each image [px]: list of float.

    Raises
    ------
    ValueError
        If images and labels do not belong together, or there is no nucleus at all.
    """
    if len(images) != len(labels):
        raise ValueError(f"Found {len(images)} images and {len(labels)} label images, expected one for each.")
    areas = []
    for image, truth in zip(images, labels, strict=True):
        if image.ndim != 2 or image.shape != truth.shape:
            raise ValueError(f"Found an image of {image.shape} with labels of {truth.shape}, expected (Y, X) of both.")
        counts = np.unique(truth[truth > 0], return_counts=True)[1]
        areas.append(counts)
    every = np.concatenate(areas) if areas else np.zeros(0)
    if not len(every):
        raise ValueError("No nucleus in the labels; there is nothing to learn from.")
    medians = [np.median(one if len(one) >= FEW_NUCLEI else every) for one in areas]
    return [float(np.sqrt(area * 4 / np.pi)) for area in medians]


def group_images(images, diameters):
    """Number the groups of images that look as if they came from one experiment: alike in size and intensity.

    Parameters
    ----------
    images : sequence of ndarray of float, shape (Y, X)
    diameters : sequence of float
        Typical diameter of the nuclei of each image [px].

    Returns
    -------
    ndarray of int, shape (N,)
        Few images are taken for one experiment, of which each is its own group.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(images) < ONE_EXPERIMENT:
        return np.arange(len(images))
    traits = []
    for image, diameter in zip(images, diameters, strict=True):
        low, middle, high = np.percentile(image, (5, 50, 99.5))
        high = max(float(high), 1e-9)
        sizes = [2 * math.log(size) for size in (*image.shape, diameter)]
        traits.append([*sizes, math.log(high), 5 * low / high, 5 * middle / high])
    return fcluster(linkage(np.array(traits), "ward"), GROUPS, "maxclust") - 1


def hold_out(groups):
    """Which images are kept out of training: every fifth group, beginning with the largest.

    >>> hold_out(np.array([0, 1, 1, 2])).tolist()
    [False, True, True, False]
    """
    order = np.argsort(-np.bincount(groups), kind="stable")
    if len(order) < 3:
        return np.zeros(len(groups), bool)
    return np.isin(groups, order[::HELD])


def prepare_sample(image, labels, diameter, network_diameter):
    """An image and its targets at training scale.

    Parameters
    ----------
    image : ndarray of float32, shape (Y, X)
    labels : ndarray of int, shape (Y, X)
    diameter : float
        Of a typical nucleus [px].
    network_diameter : float
        The same on the network's grid [px].

    Returns
    -------
    maps : Tensor of float16, shape (4, h, w)
        The network's input, and `make_targets`.
    centers : ndarray of float, shape (N, 2)
        Of the nuclei (y, x).
    """
    params = watershed.Params(nuclei_channel="nuclei", nucleus_diameter_um=diameter)
    method = watershed.Watershed(params, ["nuclei"], pixel_size_um=1.0, shape=image.shape)
    known = method.combine([method.measure(image[None], (0, 0), _whole(image))])["nuclei"]
    scale = OVERSAMPLING * network_diameter / diameter
    pixels = prepare_input(image, known["background"], known["foreground"])
    points, _ = sample_view(pixels, (0, 0), image.shape, scale, 1)
    rows, columns = (
        np.clip(np.rint((np.arange(count) + 0.5) / scale - 0.5).astype(int), 0, size - 1)
        for count, size in zip(points.shape, image.shape, strict=True)
    )
    small = labels[np.ix_(rows, columns)]
    values, at = np.unique(small, return_inverse=True)
    y, x = np.indices(small.shape)
    count = np.bincount(at.ravel())
    centers = np.stack([np.bincount(at.ravel(), axis.ravel()) / count for axis in (y, x)], 1)[values > 0]
    return torch.from_numpy(np.concatenate([points[None], make_targets(small)]).astype(np.float16)), centers


def draw_patch(sample, size, rng):
    """Cut a patch out of a sample at random: turned, flipped, resized, changed in intensity.

    Parameters
    ----------
    sample : Sample
    size : int
        P [px of the network's grid].
    rng : numpy.random.Generator

    Returns
    -------
    Tensor of float32, shape (4, P, P)
        Input and targets.
    """
    extent = np.array(sample.maps.shape[1:])
    # Of sample points per patch point, along both axes.
    zoom = OVERSAMPLING * math.exp(np.clip(rng.normal(0, 0.22), -0.5, 0.5))
    stretch = math.exp(rng.normal(0, 0.06))
    zooms = np.array([zoom * stretch, zoom / stretch])
    quarter, flip = int(rng.integers(0, 4)), rng.random() < 0.5
    angle = rng.uniform(0, math.pi / 2) if rng.random() < 0.5 else 0.0
    half = size * zooms / 2
    center = rng.uniform(0, 1, 2) * extent
    if len(sample.centers) and rng.random() < 0.7:
        center = sample.centers[rng.integers(len(sample.centers))] + rng.uniform(-0.6, 0.6, 2) * half
    if angle == 0:  # as far as it fits, the patch lies in the image
        center = np.where(extent > 2 * half, np.clip(center, half, np.maximum(extent - half, half)), extent / 2)
    radius = math.hypot(*half) + 2
    first = np.clip((center - radius).astype(int), 0, extent - 1)
    last = np.clip((center + radius).astype(int) + 1, first + 1, extent)
    part = sample.maps[:, first[0] : last[0], first[1] : last[1]].float()
    dy, dx = np.meshgrid(*[np.arange(size) + 0.5 - size / 2] * 2, indexing="ij")
    y = center[0] + zooms[0] * (dy * math.cos(angle) - dx * math.sin(angle)) - first[0]
    x = center[1] + zooms[1] * (dy * math.sin(angle) + dx * math.cos(angle)) - first[1]
    grid = np.stack([2 * x / (last[1] - first[1]) - 1, 2 * y / (last[0] - first[0]) - 1], -1).astype(np.float32)
    # Beyond its edge an image is seen as in a mirror, and so are its nuclei.
    patch = functional.grid_sample(
        part[None], torch.from_numpy(grid)[None], padding_mode="reflection", align_corners=False
    )
    patch = torch.rot90(patch[0], quarter, (1, 2))
    patch = (patch.flip(2) if flip else patch).contiguous()
    patch[0] = change_intensities(patch[0], rng)
    return patch


def change_intensities(pixels, rng):
    """Change gamma, sharpness, evenness of light, brightness, background and noise at random, of a network's input."""
    value = torch.where(pixels < 0, pixels / 2, pixels / (2 - pixels).clamp(min=0.04))  # back to linear intensities
    if rng.random() < 0.3:
        value = torch.where(value > 0, value.clamp(min=0) ** math.exp(rng.normal(0, 0.3)), value)
    if rng.random() < 0.25:
        value = _blur(value, rng.uniform(0.4, 1.6))
    if rng.random() < 0.25:
        y, x = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in value.shape), indexing="ij")
        value = value * (1 + rng.uniform(-0.4, 0.4) * y + rng.uniform(-0.4, 0.4) * x)
    value = value * math.exp(rng.normal(0, 0.3)) + rng.normal(0, 0.04)
    if rng.random() < 0.4:
        noise = torch.from_numpy(rng.standard_normal(tuple(value.shape), np.float32))
        if rng.random() < 0.5:
            noise = 2 * _blur(noise, rng.uniform(0.5, 1.2))
        strength = math.exp(rng.uniform(math.log(0.01), math.log(0.2)))
        value = value + strength * noise * torch.sqrt((0.3 + value).clamp(min=0.05))
    return (2 * value / (1 + value.clamp(min=0))).clamp(-0.5, 2.0)


def loss_of(maps, targets):
    """Loss of a batch: cross entropies of foreground and boundary, absolute error of the depth.

    Parameters
    ----------
    maps, targets : Tensor of float32, shape (N, 3, P, P)

    Returns
    -------
    Tensor
        Of one number. Pixels where nuclei meet weigh more: there they are split or merged.
    """
    inside, depth, boundary = targets.unbind(1)
    cross_entropy = functional.binary_cross_entropy_with_logits
    foreground = ((1 + 2 * boundary) * cross_entropy(maps[:, 0], inside, reduction="none")).mean()
    distance = ((0.3 + inside + boundary) * (maps[:, 1] - depth).abs()).mean()
    meeting = ((1 + 4 * boundary) * cross_entropy(maps[:, 2], boundary, reduction="none")).mean()
    return foreground + 2 * distance + 0.5 * meeting


def validate(network, fields, **settings):
    """Segment images with a network and compare with the truth.

    Parameters
    ----------
    network : Network
        Rounded.
    fields : iterable of (image, labels, diameter)
        As for `train`; the diameter [px] is given, as `nucleus_diameter_um` is in a screen.
    **settings
        More parameters of the method.

    Returns
    -------
    Summary
    """
    compared = []
    for image, truth, diameter in fields:
        params = unet.Params(nuclei_channel="nuclei", nucleus_diameter_um=diameter, **settings)
        method = unet.UNet(params, ["nuclei"], pixel_size_um=1.0, shape=image.shape, network=network)
        thresholds = method.combine([method.measure(image[None], (0, 0), _whole(image))])
        compared.append(compare_labels(method.seed(image[None], (0, 0), _whole(image), thresholds), truth))
    return pool(compared)


def in_pieces(work, batch, pieces):
    """Work on a batch piece by piece; pieces too large for the memory are halved.

    Parameters
    ----------
    work : callable
        Called with each piece; may be called again for all of them.
    batch : Tensor, shape (N, …)
    pieces : int
        How many to begin with.

    Returns
    -------
    results : list
        Of the calls.
    pieces : int
        How many it took.

    Raises
    ------
    torch.OutOfMemoryError
        If one of the N does not fit alone.
    """
    while True:
        try:
            return [work(piece) for piece in batch.tensor_split(pieces)], pieces
        except torch.OutOfMemoryError:
            if pieces >= len(batch):
                raise
        pieces = min(2 * pieces, len(batch))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Run:
    """A training between two steps: network, its running mean, optimizer and history."""

    def __init__(self, network, average, samples, params, start, device):
        self.network, self.average, self.samples, self.params, self.device = network, average, samples, params, device
        self.rate = params.learning_rate or (3e-3 if start is None else 5e-4)
        block = multiple_of(network.config)
        self.patch_px = block * max(1, round(PATCH_NUCLEI * network.config["diameter_px"] / block))
        chances = np.array([math.sqrt(len(one.centers) + 1) for one in samples])
        # Groups of many images still count for more than others, but not in proportion.
        of_group = np.bincount([one.group for one in samples], chances)
        chances /= np.sqrt(of_group[[one.group for one in samples]])
        self.chances = chances / chances.sum()
        matrices = [value for value in network.parameters() if value.ndim > 1]
        others = [value for value in network.parameters() if value.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 1e-2}, {"params": others, "weight_decay": 0.0}], lr=self.rate
        )
        self.step, self.loss, self.history, self.best = 0, 0.0, [], None
        self.pieces = min(
            params.batch_size, 2 ** math.ceil(math.log2(max(1.0, self._bytes_needed() / _memory(device))))
        )
        recipe = params.model_dump(mode="json", exclude={"device"}) | {
            "samples": _hash(one.maps for one in samples),
            "start": None if start is None else _hash(start.state_dict().values()),
        }
        self.recipe = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).digest()

    def _bytes_needed(self):
        """Memory that one step needs [bytes], about."""
        width = self.network.config["widths"][0] / 16
        return 4 * FLOATS_PER_POINT * width * self.params.batch_size * self.patch_px**2

    def take_step(self, step):
        """Draw a batch and follow its gradient."""
        params, rng = self.params, np.random.default_rng([self.params.seed, step])
        chosen = rng.choice(len(self.samples), params.batch_size, p=self.chances)
        batch = torch.stack([draw_patch(self.samples[i], self.patch_px, rng) for i in chosen]).to(self.device)
        falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / params.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * falling * min(1.0, (step + 1) / WARM_UP)

        def work(piece):
            if piece.data_ptr() == batch.data_ptr():  # the first, perhaps not for the first time
                self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device, torch.bfloat16, enabled=params.mixed_precision):
                maps = self.network(piece[:, :1].contiguous(memory_format=torch.channels_last))
            loss = loss_of(maps.float(), piece[:, 1:]) * len(piece) / len(batch)
            loss.backward()
            return float(loss.detach())

        self.network.train()
        losses, self.pieces = in_pieces(work, batch, self.pieces)
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        decay = min(params.average, (1 + step) / (10 + step))
        with torch.no_grad():
            new = self.network.state_dict()
            for name, kept in self.average.state_dict().items():
                if kept.dtype.is_floating_point:
                    kept.lerp_(new[name], 1 - decay)
        self.loss += sum(losses)
        self.step = step + 1

    def validate(self, fields):
        """Add a row to the history; keep the running mean if it is the best so far."""
        since = self.step - (self.history[-1]["step"] if self.history else 0)
        row = {"step": self.step, "loss": self.loss / since if since else None, "f1": None, "ap": None, "mean_ap": None}
        if fields:
            found = validate(fold(self.average).to(self.device), fields)
            row |= {"f1": found.f1[0], "ap": found.ap[0], "mean_ap": found.mean_ap}
        if self.best is None or not fields or row["mean_ap"] > max(one["mean_ap"] for one in self.history):
            self.best = {name: _copy(value) for name, value in self.average.state_dict().items()}
        self.history.append(row)
        self.loss = 0.0

    def stale(self, patience):
        """Whether the best validation lies so many validations back."""
        scores = [row["mean_ap"] for row in self.history]
        return bool(scores) and None not in scores and len(scores) - 1 - scores.index(max(scores)) >= patience

    def finish(self):
        """The best network, folded."""
        self.average.load_state_dict(self.best)
        return fold(self.average)

    def state(self):
        """Everything needed to go on, as flat tensors."""
        state = {"recipe": torch.frombuffer(bytearray(self.recipe), dtype=torch.uint8).clone()}
        state["progress"] = torch.tensor([self.step, self.pieces])
        rows = [[math.nan if value is None else value for value in row.values()] for row in self.history]
        state["history"] = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)
        for kind, model in (("network", self.network), ("average", self.average)):
            state |= {f"{kind}.{name}": _copy(value) for name, value in model.state_dict().items()}
        state |= {f"best.{name}": value for name, value in self.best.items()}
        for name, parameter in self.network.named_parameters():
            for kind, value in self.optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{kind}.{name}"] = _copy(torch.as_tensor(value))
        return state

    def restore(self, state):
        """Put a state back."""
        if bytes(state.get("recipe", torch.zeros(0, dtype=torch.uint8)).tolist()) != self.recipe:
            raise ModelMismatchError("The checkpoint comes from other parameters, images or weights. Start anew.")
        of = {kind: {} for kind in ("network", "average", "best", "optimizer")}
        for name, value in state.items():
            kind, _, rest = name.partition(".")
            if rest:
                of[kind][rest] = value
        self.network.load_state_dict(of["network"])
        self.average.load_state_dict(of["average"])
        self.best = of["best"]
        for name, parameter in self.network.named_parameters() if of["optimizer"] else ():  # none before the first step
            for kind in ("step", "exp_avg", "exp_avg_sq"):
                value = of["optimizer"][f"{kind}.{name}"].clone()
                # Moments lie as their parameter does in memory.
                value = value if kind == "step" else torch.empty_like(parameter).copy_(value)
                self.optimizer.state[parameter][kind] = value
        self.step, self.pieces = (int(value) for value in state["progress"])
        names = ("step", "loss", "f1", "ap", "mean_ap")
        self.history = [
            {name: None if math.isnan(value) else value for name, value in zip(names, row, strict=True)}
            | {"step": int(row[0])}
            for row in state["history"].tolist()
        ]


def _make_network(params, start):
    """A network to train: new, or on from another's weights."""
    if start is not None:
        return unfold(start)
    levels = max(1, 1 + round(math.log2(params.diameter_px / 2)))
    widths = params.widths or [min(16 * 2**level, 128) for level in range(levels)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        return Network(widths, params.diameter_px, form="normalized")


def _memory(device):
    """Memory that training may take [bytes]."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 2
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 4


def _blur(pixels, sigma):
    """Gaussian filter."""
    radius = max(1, int(2.5 * sigma + 0.5))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None]
    pixels = functional.pad(pixels[None, None], (radius,) * 4, mode="reflect")
    return functional.conv2d(functional.conv2d(pixels, kernel[:, :, None]), kernel[:, :, :, None])[0, 0]


def _hash(tensors):
    """SHA-256 of the values of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _copy(tensor):
    """A copy on the CPU that later training does not change."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _whole(image):
    return tuple(slice(0, size) for size in image.shape)
