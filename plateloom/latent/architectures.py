"""The networks of the registered methods; each knows how it encodes, and what it is trained to make small."""

import math

import torch
from torch import nn

from plateloom.latent.poses import best_poses, circle, rotate_crops, turn_alike, turn_crops
from plateloom.latent.pretrained import Backbone
from plateloom.latent.training_settings import SHRINK

SYMMETRIES = 8  # of the square
LOG_VARIANCE = 10.0  # of the variational encoder, at most and, negative, at least


class CropEncoder(nn.Module):
    """Four strided convolutions and a linear layer; normalization of the channels is part of it.

    Parameters
    ----------
    channels : int
        C of the crops.
    out_px, width : int
        See `EncoderParams`.
    numbers : int
        That the linear layer gives.
    invariant : bool
        The encoding is the mean over the eight symmetries of the square, and of a crop the largest circle counts.
    """

    reconstructs = False

    def __init__(self, channels, out_px, width, numbers, invariant):
        super().__init__()
        w, side = width, out_px // SHRINK
        self.side_px = out_px  # of the crops
        self.invariant = invariant
        self.register_buffer("center", torch.zeros(channels, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))
        window = circle(out_px) if invariant else torch.ones(out_px, out_px)
        self.register_buffer("window", window, persistent=False)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, w, 4, 2, 1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(w, 2 * w, 4, 2, 1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(2 * w, 4 * w, 4, 2, 1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(4 * w, 4 * w, 4, 2, 1),
            nn.LeakyReLU(0.1),
            nn.Flatten(),
            nn.Linear(4 * w * side * side, numbers),
        )

    def _initialize(self):
        """He initialization."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, a=0.1, nonlinearity="leaky_relu")
            elif isinstance(layer, nn.ConvTranspose2d):
                taps = 4  # a kernel of 4 with stride 2 feeds each pixel from 2 x 2
                nn.init.normal_(layer.weight, std=(2 / (taps * layer.in_channels)) ** 0.5)
            else:
                continue
            nn.init.zeros_(layer.bias)

    def standardize(self, crops):
        """Return the crops in units of each channel's standard deviation, in which every error is measured."""
        return (crops - self.center) / self.scale

    def _encoded(self, crops):
        """What the linear layer gives."""
        seen = self.standardize(crops) * self.window
        if not self.invariant:
            return self.encoder(seen)
        return sum(self.encoder(turn_alike(seen, turn)) for turn in range(SYMMETRIES)) / SYMMETRIES

    def encode(self, crops):
        """Return the latent numbers, shape (N, K)."""
        return self._encoded(crops)

    def difference(self, found, crops):
        """Return the mean squared error of each crop in units of the channels' variance, shape (N,)."""
        squared = (((found - crops) / self.scale) ** 2) * self.window
        return squared.sum(dim=(1, 2, 3)) / (self.window.sum() * len(self.scale))


class Autoencoder(CropEncoder):
    """An encoder and four transposed convolutions that restore the crop.

    Parameters
    ----------
    channels : int
        C of the crops.
    latent_dim, out_px, width, invariant, variational
        See the `Params` of the method.
    """

    reconstructs = True

    def __init__(self, channels, latent_dim, out_px, width, invariant=False, variational=False):
        super().__init__(channels, out_px, width, latent_dim * (2 if variational else 1), invariant)
        self.config = {
            "method": "autoencoder",
            "channels": channels,
            "latent_dim": latent_dim,
            "out_px": out_px,
            "width": width,
            "invariant": invariant,
            "variational": variational,
        }
        w, side = width, out_px // SHRINK
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 4 * w * side * side),
            nn.Unflatten(1, (4 * w, side, side)),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(4 * w, 4 * w, 4, 2, 1),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(4 * w, 2 * w, 4, 2, 1),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(2 * w, w, 4, 2, 1),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(w, channels, 4, 2, 1),
        )
        self._initialize()
        with torch.no_grad():
            self.decoder[-1].weight.mul_(0.1)  # starts near the mean of the channels, not far from it

    def encode(self, crops):
        return self._encoded(crops)[:, : self.config["latent_dim"]]

    def decode(self, latent):
        """Return crops in their own units; of an invariant model in a pose of its choice."""
        return self.decoder(latent) * self.scale + self.center

    def reconstruct(self, crops):
        """Return the latent numbers and the crops restored, in the pose of the crops."""
        latent = self.encode(crops)
        found = self.decode(latent)
        if self.invariant:
            found = rotate_crops(found, *best_poses(found, crops)) * self.window
        return latent, found

    def loss(self, crops, random, params):
        """Return what training makes small, and the reconstruction error in it; see `train`."""
        number = len(crops)
        if self.invariant:
            seen = rotate_crops(crops, random.uniform(0, 2 * math.pi, number), random.random(number) < 0.5)
        elif params.augment:
            seen = crops = turn_crops(crops, random.integers(0, SYMMETRIES, number))
        else:
            seen = crops
        latent, divergence = self._encoded(seen), 0.0
        if self.config["variational"]:
            mean, spread = latent.chunk(2, dim=1)
            spread = spread.clamp(-LOG_VARIANCE, LOG_VARIANCE)
            noise = torch.from_numpy(random.standard_normal(tuple(mean.shape)).astype("float32")).to(mean.device)
            latent = mean + noise * torch.exp(spread / 2)
            divergence = 0.5 * (mean**2 + spread.exp() - 1 - spread).sum(dim=1).mean()
        found = self.decode(latent)
        if self.invariant:  # the crop is turned, not the reconstruction: no gradient goes through the rotation
            crops = rotate_crops(crops, *best_poses(crops, found.detach()))
        error = self.difference(found, crops).mean()
        pixels = self.window.sum() * len(self.scale)
        return error + params.kl_weight * 2 / pixels * divergence, error

    def score(self, crops, random, params):
        """Return the reconstruction error of crops that nothing is done to."""
        return self.difference(self.reconstruct(crops)[1], crops).mean()

    def baseline(self, crops, mean):
        """Return the error of answering every crop with the mean crop."""
        return self.difference(mean, crops).mean()


class ContrastiveEncoder(CropEncoder):
    """An encoder, and a small network on top that only training uses.

    Parameters
    ----------
    channels : int
        C of the crops.
    latent_dim, out_px, width, projection
        See the `Params` of the method.
    """

    def __init__(self, channels, latent_dim, out_px, width, projection):
        super().__init__(channels, out_px, width, latent_dim, invariant=True)
        self.config = {
            "method": "contrastive",
            "channels": channels,
            "latent_dim": latent_dim,
            "out_px": out_px,
            "width": width,
            "projection": projection,
        }
        hidden = 4 * width
        self.head = nn.Sequential(
            nn.LeakyReLU(0.1), nn.Linear(latent_dim, hidden), nn.LeakyReLU(0.1), nn.Linear(hidden, projection)
        )
        self._initialize()

    def loss(self, crops, random, params):
        """Return the loss twice; see `train`."""
        views = [self.head(self.encoder(self._view(crops, random, params))) for _ in range(2)]
        loss = contrast(*views, params.temperature)
        return loss, loss

    def score(self, crops, random, params):
        """Return the loss of views that are the same whenever they are asked for."""
        return self.loss(crops, random, params)[0]

    def baseline(self, crops, mean):
        """Return the loss of views that tell nothing."""
        return math.log(2 * len(crops) - 1)

    def _view(self, crops, random, params):
        """The crops turned, mirrored, and each channel brighter or darker."""
        number, channels = crops.shape[:2]
        turned = rotate_crops(crops, random.uniform(0, 2 * math.pi, number), random.random(number) < 0.5)
        gain = torch.from_numpy(random.normal(0, params.jitter, (number, channels, 1, 1)).astype("float32")).exp()
        return self.standardize(turned * gain.to(crops.device)) * self.window


def contrast(first, second, temperature):
    """Compute how hard it is to find each crop's other view among all views of the batch (NT-Xent).

    Parameters
    ----------
    first, second : Tensor of float, shape (N, P)
        Two views of N crops.
    temperature : float
        The cosines are divided by it.

    Returns
    -------
    Tensor of float, shape ()
        log(2 N - 1) if the views tell nothing, near 0 if each is found.
    """
    views = nn.functional.normalize(torch.cat([first, second]), dim=1)
    similar = views @ views.T / temperature
    similar = similar.masked_fill(torch.eye(len(views), dtype=torch.bool, device=views.device), -1e9)
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return nn.functional.cross_entropy(similar, partner)


NETWORKS = {"autoencoder": Autoencoder, "contrastive": ContrastiveEncoder, "backbone": Backbone}
