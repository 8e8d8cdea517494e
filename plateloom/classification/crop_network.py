"""The network of the method `cnn`, with the face of a scikit-learn estimator: crops of cells to probabilities of classes.

Deterministic by seed on a given machine with a given number of threads (of which the last digits depend), resumable to the bit, stored as tensors and a dict (safetensors, no pickle).
"""

import contextlib
import contextvars
import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import nn

from plateloom.classification.splits import split_groups
from plateloom.errors import DataFault, LabelError, ModelMismatchError
from plateloom.latent.crops import intensity_range, normalize_crops
from plateloom.latent.poses import turn_crops
from plateloom.latent.training_state import below, copy_tensors, exact, optimizer_state, restore_optimizer

SYMMETRIES = 8  # of the square
BLOCK = 64  # crops per forward pass; always full, so that no crop's rounding depends on how many others came with it
RANGE_CROPS = 1000  # that the intensity range is taken from
FEWEST_GROUPS = 4  # of which one can be spared for tuning
SLOPE = 0.1


@dataclass(frozen=True)
class Running:
    """How networks are trained and applied here, without influence on what they are but for rounding.

    Attributes
    ----------
    device : str
        "cpu" or "cuda".
    states : mapping of str to dict of str to Tensor, optional
        Where a training leaves its state after each epoch, and finds that of a run that was interrupted.
    """

    device: str = "cpu"
    states: object = None


_RUNNING = contextvars.ContextVar("running", default=Running())  # noqa: B039 (it is frozen)


@contextlib.contextmanager
def running(**chosen):
    """Train and apply networks within as `Running` says."""
    before = _RUNNING.set(Running(**chosen))
    try:
        yield
    finally:
        _RUNNING.reset(before)


class CropClassifier(nn.Module):
    """Four strided convolutions; mean and maximum of each channel; a hidden layer; one number per class.

    Parameters
    ----------
    channels, classes, width : int

    Notes
    -----
    What is averaged over the crop does not depend on where in it something lies, and needs few weights: labeled cells are few.
    """

    def __init__(self, channels, classes, width):
        super().__init__()
        w = width
        self.register_buffer("center", torch.zeros(channels, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, w, 4, 2, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(w, 2 * w, 4, 2, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(2 * w, 4 * w, 4, 2, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(4 * w, 4 * w, 4, 2, 1),
            nn.LeakyReLU(SLOPE),
        )
        self.hidden = nn.Linear(8 * w, 4 * w)
        self.head = nn.Linear(4 * w, classes)
        for layer in self.layers():
            self.initialize(layer)

    def layers(self):
        """Layers that have weights, from the last to the first."""
        found = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        return found[::-1]

    @staticmethod
    def initialize(layer, generator=None):
        """He initialization."""
        nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu", generator=generator)
        nn.init.zeros_(layer.bias)

    def embed(self, crops):
        """Return the hidden layer, shape (N, 4 width), of crops between 0 and 1."""
        maps = self.convolutions((crops - self.center) / self.scale)
        pooled = torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)
        return nn.functional.leaky_relu(self.hidden(pooled), SLOPE)

    def forward(self, crops):
        return self.head(self.embed(crops))


class CropNetwork(ClassifierMixin, BaseEstimator):
    """A `CropClassifier` that learns from crops (N, C, H, W) as they are cut out; ranges of intensity are learned with it.

    Parameters
    ----------
    width, epochs, patience, tuning_share, batch_size, learning_rate, weight_decay, jitter, seed
        See `plateloom.classification.cnn.Params`.
    balanced : bool
        All classes together weigh the same.

    Attributes
    ----------
    classes_ : ndarray, shape (K,)
    network_ : CropClassifier
        On the CPU, in evaluation mode; of the epoch with the least loss on the groups kept for tuning.
    low_, high_ : ndarray of float64, shape (C,)
        What is black and white of each channel.
    history_ : list of dict
        Per epoch `epoch` (from 1), `train` and `tuning`: cross-entropy with classes weighed [nats]; NaN without tuning.
    epoch_ : int
        The one that was kept.
    notes_ : list of str
    """

    def __init__(
        self,
        *,
        width=16,
        epochs=30,
        patience=6,
        tuning_share=0.2,
        batch_size=32,
        learning_rate=2e-3,
        weight_decay=0.01,
        jitter=0.2,
        seed=0,
        balanced=True,
    ):
        self.width = width
        self.epochs = epochs
        self.patience = patience
        self.tuning_share = tuning_share
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.jitter = jitter
        self.seed = seed
        self.balanced = balanced

    def fit(self, X, y, groups=None):
        """Train.

        Parameters
        ----------
        X : ndarray of float, shape (N, C, H, W)
            Finite; H and W multiples of 16.
        y : ndarray, shape (N,)
        groups : ndarray, shape (N,), optional
            Wells, plates or batches. Some are kept for tuning, whole; without groups, or with fewer than 4, all epochs are run.

        Returns
        -------
        CropNetwork

        Raises
        ------
        DataFault
            If the training diverges in its first epoch; if later, it stops, and `notes_` says so.

        Notes
        -----
        Order, turns and gains of an epoch are drawn from (seed, epoch) alone and the learning rate is a function of the step,
        so a state needs no random generator.
        """
        _check(X)
        self.classes_, truth = np.unique(y, return_inverse=True)
        learn, tuning = self._split(truth, groups)
        chosen = np.unique(np.linspace(0, len(learn) - 1, min(RANGE_CROPS, len(learn))).astype(int))
        self.low_, self.high_ = intensity_range(X[learn[chosen]].astype(np.float32))
        self.shape_ = tuple(int(size) for size in X.shape[1:])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = CropClassifier(X.shape[1], len(self.classes_), self.width)
        seen = normalize_crops(X[learn[chosen]], self.low_, self.high_)
        scale = seen.std(axis=(0, 2, 3))
        network.center.copy_(torch.from_numpy(seen.mean(axis=(0, 2, 3)))[:, None, None])
        network.scale.copy_(torch.from_numpy(np.where(scale > 1e-6, scale, 1))[:, None, None])
        running, key = _RUNNING.get(), self._digest(X, truth, learn, tuning)
        network.to(running.device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        state = running.states.get(key) if running.states is not None else None
        losses, best = [], None
        if state is not None:
            losses, best = _restore(state, network, optimizer)
        counts = np.bincount(truth[learn], minlength=len(self.classes_))
        weights = len(learn) / (len(counts) * np.maximum(counts, 1)) if self.balanced else np.ones(len(counts))
        loss_of = nn.CrossEntropyLoss(torch.tensor(weights, dtype=torch.float32, device=running.device))
        steps = math.ceil(len(learn) / self.batch_size)
        with exact():
            while len(losses) < self.epochs and not self._is_over(losses):
                epoch = len(losses)
                network.train()
                random = np.random.default_rng([self.seed, epoch])
                order, total = random.permutation(len(learn)), 0.0
                for step in range(steps):
                    rows = learn[np.sort(order[step * self.batch_size : (step + 1) * self.batch_size])]
                    progress = (epoch * steps + step) / (self.epochs * steps)
                    for group in optimizer.param_groups:
                        group["lr"] = self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
                    optimizer.zero_grad(set_to_none=True)
                    crops = self._augment(self.prepare(X[rows]), random)
                    loss = loss_of(network(crops), torch.from_numpy(truth[rows]).to(running.device))
                    loss.backward()
                    optimizer.step()
                    total += float(loss.detach()) * len(rows)
                held = self._tuning_loss(network, X, truth, tuning)
                if not (math.isfinite(total) and (math.isfinite(held) or not len(tuning)) and _is_finite(network)):
                    if best is None:
                        raise DataFault("the training of the network diverged; lower its learning_rate")
                    self.notes_.append(
                        f"The training diverged in epoch {epoch + 1}, and an earlier one was kept: lower learning_rate."
                    )
                    break
                losses.append((total / len(learn), held))
                if best is None or not len(tuning) or held <= min(loss for _, loss in losses):
                    best = copy_tensors(network)
                if running.states is not None:
                    running.states[key] = _state(network, optimizer, best, losses)
        network.load_state_dict(best)
        self.network_ = network.to("cpu").eval()
        self.history_ = [
            {"epoch": i + 1, "train": train, "tuning": held if len(tuning) else None}
            for i, (train, held) in enumerate(losses)
        ]
        held = np.array([held for _, held in losses])
        self.epoch_ = int(np.flatnonzero(held == held.min())[-1]) + 1 if len(tuning) else len(losses)
        return self

    def predict_proba(self, X, hidden=None):
        """Probability of each class, shape (N, K); at once where `hidden`, what `embed` has given of X, is known."""
        network, width = self.network_, len(self.classes_)
        if hidden is None:
            logits = self._by_blocks(X, network, width).astype(float)
        else:
            logits = self._full_blocks(hidden, lambda block: network.head(to_device(block)), network, width).astype(
                float
            )
        raised = np.exp(logits - logits.max(axis=1, keepdims=True)) if len(logits) else logits
        return raised / raised.sum(axis=1, keepdims=True)

    def predict(self, X):
        """The class with the largest probability, shape (N,)."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def embed(self, X):
        """The hidden layer, shape (N, 4 width): where distances between cells mean something."""
        return self._by_blocks(X, self.network_.embed, 4 * self.width).astype(float)

    def prepare(self, X):
        """Crops as the network sees them: a float32 tensor between 0 (black) and 1 (white), on the device in use."""
        return to_device(normalize_crops(X, self.low_, self.high_))

    def to_tensors(self):
        """Take a trained estimator apart for safetensors.

        Returns
        -------
        config : dict
            JSON.
        tensors : dict of str to Tensor
        """
        own = {name: getattr(self, f"{name}_") for name in ("shape", "history", "epoch", "notes")}
        own |= {name: getattr(self, f"{name}_").tolist() for name in ("classes", "low", "high")}
        return own | {"params": self.get_params()}, copy_tensors(self.network_)

    @classmethod
    def from_tensors(cls, config, tensors):
        """Put a trained estimator together again.

        Raises
        ------
        ModelMismatchError
            If the tensors are not those of the config.
        """
        made = cls(**config["params"])
        made.classes_, made.low_, made.high_ = (np.array(config[name]) for name in ("classes", "low", "high"))
        made.shape_, made.history_ = tuple(config["shape"]), config["history"]
        made.epoch_, made.notes_ = config["epoch"], config["notes"]
        with torch.device("meta"):  # nothing is reserved for what a header merely claims
            network = CropClassifier(made.shape_[0], len(made.classes_), made.width)
        expected, found = (
            {name: (str(value.dtype), *value.shape) for name, value in every.items()}
            for every in (network.state_dict(), tensors)
        )
        if expected != found:
            wrong = sorted(set(expected.items()) ^ set(found.items()))[:4]
            raise ModelMismatchError(f"The tensors are not those of the network that the card describes: {wrong}.")
        network.load_state_dict(tensors, assign=True)
        made.network_ = network.eval()
        return made

    def _split(self, truth, groups):
        """Rows to learn from and rows of whole groups to tune by; the latter may be none, and `notes_` says so."""
        everything, self.notes_ = np.arange(len(truth)), []
        n_groups = 0 if groups is None else len(np.unique(groups))
        if n_groups >= FEWEST_GROUPS:
            try:
                folds = min(round(1 / self.tuning_share), n_groups)
                splits = split_groups(truth, np.asarray(groups).astype(str), folds=folds, seed=self.seed)
                n_classes = len(self.classes_)
                return next((one for one in splits if len(np.unique(truth[one[1]])) == n_classes), splits[0])
            except LabelError:
                pass
        self.notes_ = ["Too few groups to keep some for tuning: the network was trained for all epochs."]
        return everything, everything[:0]

    def _digest(self, X, truth, learn, tuning):
        """What a state belongs to: settings and everything that is learned from."""
        found = hashlib.blake2b(json.dumps([self.get_params(), list(X.shape)], sort_keys=True).encode(), digest_size=16)
        for values in (truth, learn, tuning):
            found.update(np.ascontiguousarray(values, np.int64).tobytes())
        for start in range(0, len(X), 1024):
            found.update(np.ascontiguousarray(X[start : start + 1024]).tobytes())
        return found.hexdigest()

    def _is_over(self, losses):
        """Whether the last epochs have brought nothing on the groups kept for tuning."""
        held = [loss for _, loss in losses if np.isfinite(loss)]
        return len(held) > self.patience and min(held[-self.patience :]) > min(held)

    def _augment(self, crops, random):
        """Crops turned, mirrored, and each channel brighter or darker."""
        turned = turn_crops(crops, random.integers(0, SYMMETRIES, len(crops)))
        gain = random.normal(0, self.jitter, (len(crops), crops.shape[1], 1, 1)).astype(np.float32)
        return turned * torch.from_numpy(np.exp(gain)).to(crops.device)

    def _tuning_loss(self, network, X, truth, tuning):
        """Cross-entropy on the groups kept for tuning, classes weighed as in training; NaN without any."""
        if not len(tuning):
            return math.nan
        logits = torch.from_numpy(self._by_blocks(X[tuning], network, len(self.classes_))).double()
        known = truth[tuning]
        each = nn.functional.cross_entropy(logits, torch.from_numpy(known), reduction="none").numpy()
        counts = np.bincount(known, minlength=len(self.classes_))
        return float(np.average(each, weights=1 / counts[known] if self.balanced else None))

    def _by_blocks(self, X, function, width):
        """Apply the network, or a part of it, to full blocks of crops without gradients; shape (N, width) of float32."""
        if tuple(X.shape[1:]) != self.shape_:
            raise ModelMismatchError(
                f"Found crops of {tuple(X.shape[1:])} (channels, rows, columns); the network was trained on {self.shape_}."
            )
        network = function if isinstance(function, nn.Module) else function.__self__
        return self._full_blocks(X, lambda block: function(self.prepare(block)), network, width)

    @staticmethod
    def _full_blocks(values, function, network, width):
        """Apply a function of the network to full blocks of rows, the rest of the last being 0; shape (N, width) of float32."""
        network.to(_RUNNING.get().device).eval()
        found = np.empty((len(values), width), np.float32)
        with exact(), torch.no_grad():
            for start in range(0, len(values), BLOCK):
                rows = values[start : start + BLOCK]
                block = np.zeros((BLOCK, *values.shape[1:]), np.float32)
                block[: len(rows)] = rows
                found[start : start + BLOCK] = function(block).cpu().numpy()[: len(rows)]
        return found


def to_device(values):
    """An array as a tensor on the device in use."""
    return torch.from_numpy(values).to(_RUNNING.get().device)


def _check(X):
    """Refuse what is no stack of crops."""
    if X.ndim != 4 or X.shape[2] % 16 or X.shape[3] % 16:
        raise ValueError(f"Found crops of shape {X.shape}. Expected (N, C, H, W), H and W multiples of 16.")
    if not all(np.isfinite(X[start : start + 1024]).all() for start in range(0, len(X), 1024)):
        raise ValueError("Some crops hold NaN or infinity. Leave those cells out.")


def _is_finite(network):
    """Whether no weight is NaN or infinite."""
    return all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())


def _state(network, optimizer, best, losses):
    """Everything needed to go on, as flat tensors."""
    state = {f"network.{name}": value for name, value in copy_tensors(network).items()}
    state |= {f"best.{name}": value.clone() for name, value in best.items()}
    state |= optimizer_state(network, optimizer)
    return state | {"losses": torch.tensor(losses, dtype=torch.float64).reshape(-1, 2)}


def _restore(state, network, optimizer):
    """Put a state back; returns the losses and the best weights."""
    network.load_state_dict(below(state, "network."))
    restore_optimizer(state, network, optimizer)
    return [tuple(row) for row in state["losses"].tolist()], below(state, "best.")
