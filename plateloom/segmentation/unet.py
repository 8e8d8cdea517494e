"""Nuclei by a small network that we trained, cells by growth from the nuclei; no GPU needed.

The network sees the nuclei's channel at a fixed size of the nuclei and predicts of every pixel whether it is in a
nucleus, how deep, and whether two nuclei meet there. Its arithmetic is exact (see `plateloom.segmentation.network`), its
grid begins at the image's first pixel, and its reach is bounded: a tile gets the labels of the whole image.
"""

import functools
import math
import threading
from functools import partial

import numpy as np
from pydantic import Field

from plateloom.segmentation import watershed
from plateloom.segmentation.holes import blur, fill, find_covered
from plateloom.segmentation.network_file import SHIPPED, hash_file, multiple_of, reach_of, read_network_file
from plateloom.segmentation.rescaling import TRUNCATE, sample_points, sample_view, support_px
from plateloom.segmentation.targets import find_nuclei

SHIPPED_SHA256 = "5f9a4dffebafbe26ee10a9f7a792350b47878f215c93fe0c8141c77503805f95"
"""Of the weights that we ship. It stands in the code, so that other weights give the stage another fingerprint."""
TOGETHER = 4  # images or tiles that a GPU's worker prepares at a time, in threads, and that the GPU is given at once


class Params(watershed.SharedParams):
    """Parameters of the network's method; for most assays the channels and the diameter are all there is to set."""

    nuclei_channel: str = Field("DNA", description="Channel that shows the nuclei, bright on dark.")
    probability: float = Field(
        0.6, gt=0, lt=1, description="Pixels at least this likely to be in a nucleus are (dimensionless)."
    )
    prominence: float = Field(
        0.4,
        ge=0,
        le=1,
        description="How far the predicted depth must fall between two peaks to part them, as a fraction of the lesser "
        "(dimensionless); higher splits less.",
    )
    min_contrast: float = Field(
        6.0,
        ge=0,
        description="Nuclei and cells must rise above the background by this many of its standard deviations "
        "(dimensionless); keeps empty fields empty.",
    )
    cells_regularization: float = Field(
        0.3,
        gt=0,
        description="Intensity difference, as a fraction of the cells' brightness, that makes a step 41 % longer: "
        "higher makes borders between cells depend less on the image (dimensionless).",
    )

    weights: str = Field(
        "",
        description="File of your own weights, made by `plateloom train-segmenter`: a path, from the screen's folder. Empty: "
        "those that we ship.",
    )
    augment: bool = Field(
        False,
        description="Show the network each image in its eight orientations and take the mean (yes/no), at eight times the work.",
    )
    mixed_precision: bool = Field(
        True,
        description="On a GPU compute in half precision (yes/no): single pixels may come out otherwise than on a CPU, which "
        "always computes exactly.",
    )

    def of_watershed(self):
        """The same settings for what the watershed does here, which is measuring the image and growing the cells."""
        both = type(self).model_fields.keys() & watershed.Params.model_fields.keys() - {"prominence"}
        return watershed.Params(**{name: getattr(self, name) for name in both})


class UNet(watershed.Watershed):
    """The method on the tiles of one image; all but the nuclei are the watershed's.

    Parameters
    ----------
    params : Params
    channels : sequence of str, length C
        Names of the image's channels.
    pixel_size_um : float
        Width of a pixel [µm/px].
    shape : tuple of int (Y, X)
        Size of the whole image [px].
    device : {'require', 'prefer', 'cpu'}
        Whether to use a GPU.
    network : Network, optional
        In place of the stored one.

    Raises
    ------
    ValueError
        If a channel named in the parameters is not among the image's.
    ModelMismatchError
        If the file of the weights is not what it must be.
    """

    def __init__(self, params, channels, *, pixel_size_um, shape, device="cpu", network=None):
        super().__init__(params.of_watershed(), channels, pixel_size_um=pixel_size_um, shape=shape)
        self.prominence, self.device, self.network = params.prominence, device, network
        self.augment, self.mixed = params.augment, params.mixed_precision
        self.log_odds = math.log(params.probability / (1 - params.probability))
        self.file = (params.weights, hash_file(params.weights)) if params.weights else (str(SHIPPED), SHIPPED_SHA256)
        config = _read_config(*self.file) if network is None else network.config
        self.scale = config["diameter_px"] / self.diameter_px
        self.multiple, self.network_reach = multiple_of(config), reach_of(config)
        self.cap_px = math.ceil(0.15 * self.diameter_px) + 1

    @property
    def halo_px(self):
        """Halo that each phase needs [px]: dict with ``measure``, ``seed`` and ``grow``."""
        network = support_px(self.scale) + math.ceil((self.network_reach + self.multiple + 1) / self.scale) + 1
        mask = network + self.hole_px + 1
        smoothing = int(TRUNCATE * self.smoothing_px + 0.5)
        # A nucleus is decided by the window around its peak, and the peak is within reach of each of its pixels.
        seed = 2 * self.reach_px + max(self.flood_px + 1 + mask + self.cap_px, self.ring_px + smoothing)
        return super().halo_px | {"seed": seed}

    def seed(self, view, origin, core, thresholds):
        """Find the nuclei of the core.

        Parameters
        ----------
        view : ndarray of float32, shape (C, H, W)
        origin : tuple of int (Y, X)
            Where the view begins in the image [px].
        core : tuple of slice
            The tile within the view.
        thresholds : dict
            What `combine` returned.

        Returns
        -------
        ndarray of int64, shape of the core
            1 + index of the nucleus' first pixel in the raster of the whole image; 0 is background.

        Raises
        ------
        TileOverlapError
            If the halo is narrower than the network and the largest nucleus need.
        """
        self._check(view, origin, core, "seed")
        known = thresholds["nuclei"]
        if known["foreground"] <= known["threshold"]:  # nothing in the whole image is above it
            return np.zeros(view[self.nuclei_index][core].shape, np.int64)
        return self._read(self.predict(view, origin, thresholds), view, origin, core, known)

    def _read(self, maps, view, origin, core, known):
        """Read the core's nuclei from the maps of a view."""
        covered = find_covered(view)
        peak_of = find_nuclei(
            maps,
            covered=covered,
            log_odds=self.log_odds,
            prominence=self.prominence,
            diameter_px=self.diameter_px,
            hole_px=self.hole_px,
            cap_px=self.cap_px,
            flood_px=self.flood_px,
            reach_px=self.reach_px,
        )
        smooth = blur(view[self.nuclei_index], self.smoothing_px, covered, truncate=TRUNCATE)
        # The network has drawn the outline: no pixel is trimmed for being dim.
        return self._finish(peak_of, smooth, known | {"background": -1.0}, 0.0, origin, core, covered)

    def predict(self, view, origin, thresholds):
        """Run the network on a view.

        Parameters
        ----------
        view : ndarray of float32, shape (C, H, W)
        origin : tuple of int (Y, X)
            Where the view begins in the image [px].
        thresholds : dict
            What `combine` returned.

        Returns
        -------
        ndarray of float32, shape (3, H, W)
            Log odds of the foreground, depth in the nucleus as a fraction of its largest, log odds of a boundary
            between nuclei. As for the whole image only where the view knows `halo_px` around a pixel.
        """
        from plateloom.segmentation.network import prepare_input, round_input, run_network

        known, size = thresholds["nuclei"], view.shape[1:]
        run = load(*self.file, self.device, self.mixed) if self.network is None else partial(run_network, self.network)
        pixels = fill(view[self.nuclei_index], find_covered(view), known["background"])
        pixels = prepare_input(pixels, known["background"], known["foreground"])
        points, first = sample_view(pixels, origin, self.shape, self.scale, self.multiple)
        if 0 in points.shape:
            return np.full((3, *size), -9.0, np.float32)
        maps = (average_orientations if self.augment else lambda run, points: run(points))(run, round_input(points))
        return sample_points(maps, first, origin, size, self.shape, self.scale, self.multiple)


Method = UNet


def average_orientations(run, points):
    """Mean of what a network says of an image turned and flipped.

    Parameters
    ----------
    run : callable(ndarray, shape (h, w)) -> ndarray, shape (C, h, w)
    points : ndarray, shape (H, W)

    Returns
    -------
    ndarray of float32, shape (C, H, W)
        Summed up in one order: the same bits for a tile as for the whole image.
    """
    total = 0.0
    for quarters in range(4):
        for step in (1, -1):
            maps = run(np.ascontiguousarray(np.rot90(points, quarters)[:, ::step]))
            total = total + np.rot90(maps[:, :, ::step], -quarters, axes=(1, 2))
    return np.ascontiguousarray(total / np.float32(8))


def estimate_diameter(image, *, weights="", device="cpu"):
    """Estimate the diameter of a typical nucleus, for an image of unknown magnification.

    Parameters
    ----------
    image : ndarray of float32, shape (Y, X)
        Nuclei, bright on dark, in [0, 1].
    weights : str
        As of `Params`.
    device : {'require', 'prefer', 'cpu'}

    Returns
    -------
    float
        Median diameter [px]; 0 if no nuclei are found.

    Notes
    -----
    The image is shown to the network as if its nuclei were 8 px wide, 11 px, and so on to 90 px. The network is surest of
    what it sees where that is nearly true; there it measures them, twice. Eight passes: for a few fields of a plate,
    not for all.
    """
    image = np.asarray(image, np.float32)
    sure, found = max(_look(image, guess, weights, device) for guess in 8 * 2 ** (np.arange(8) / 2))
    return _look(image, found, weights, device)[1] if sure else 0.0


def _look(image, diameter, weights, device):
    """How sure the network is of the foreground if nuclei have a diameter, and the median that it then finds [px]."""
    whole = tuple(slice(0, size) for size in image.shape)
    limits = {"nucleus_diameter_min_um": diameter / 4, "nucleus_diameter_max_um": 4 * diameter}
    params = Params(nuclei_channel="nuclei", nucleus_diameter_um=diameter, weights=weights, **limits)
    method = UNet(params, ["nuclei"], pixel_size_um=1.0, shape=image.shape, device=device)
    thresholds = method.combine([method.measure(image[None], (0, 0), whole)])
    maps = method.predict(image[None], (0, 0), thresholds)
    ids = method._read(maps, image[None], (0, 0), whole, thresholds["nuclei"])
    if not ids.any():
        return 0.0, 0.0
    areas = np.unique(ids[ids > 0], return_counts=True)[1]
    return float(np.clip(maps[0][maps[0] > 0], 0, 6).mean()), float(np.sqrt(np.median(areas) * 4 / np.pi))


def weights_files(params):
    """Paths of the models of the user that the result depends on."""
    return [params.weights] if params.weights else []


@functools.lru_cache(maxsize=4)
def _read_config(path, sha256):
    """A network's architecture, once per process; needs no torch."""
    return read_network_file(path, sha256).config


def describe_run(params, device):
    """Say how this process runs the network: `device`, `precision`, and `batch`, the most that it may take at once.

    Parameters
    ----------
    params : Params
    device : {'require', 'prefer', 'cpu'}
    """
    from plateloom.devices import choose_device

    if (chosen := choose_device(device)) == "cpu":
        return {"device": chosen, "precision": "float32", "batch": 1}
    file = (params.weights, hash_file(params.weights)) if params.weights else (str(SHIPPED), SHIPPED_SHA256)
    batches = load(*file, device, params.mixed_precision)
    return {"device": chosen, "precision": "float16" if params.mixed_precision else "float32", "batch": batches.size}


def load(path, sha256, device, mixed):
    """What runs a network on its device, once per process: callable(points) -> maps, see `run_network`.

    On a CPU each thread runs it for itself, exactly. On a GPU threads share it, see `Batches`.
    """
    with _LOADING:
        return _load(path, sha256, device, mixed)


_LOADING = threading.Lock()


@functools.lru_cache(maxsize=2)
def _load(path, sha256, policy, mixed):
    from plateloom.devices import choose_device
    from plateloom.segmentation.batching import Batches
    from plateloom.segmentation.network import load_network, run_network

    device = choose_device(policy)
    network = load_network(path, sha256).to(device)
    if device == "cpu":
        return partial(run_network, network)
    return Batches(partial(run_network, network, mixed=mixed), TOGETHER)
