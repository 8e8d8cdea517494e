"""The network of the method `unet`: a small U-Net whose arithmetic is exact.

A network that is stored has weights that are whole multiples of a power of two, and rounds its activations to whole
steps. All sums of products are then whole numbers below 2**24, which float32 holds exactly: the result does not depend
on the order of the sums, and so not on the size of the tile, the number of threads or the processor.
"""

from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from plateloom.errors import ModelMismatchError
from plateloom.segmentation.network_file import read_network_file, write_network_file

OUTPUTS = ("foreground", "distance", "boundary")
STEPS = 64  # of an activation, per unit
CEILING = 255  # of an activation, in steps
INPUT_STEPS = 256  # of the input, per unit
INPUT_RANGE = (-0.5, 2.0)
STRIP = 64  # rows that inference works on at a time, so that they stay in a processor's cache
STRIP_OF_GPU = 2048  # which works on much at once; bounds its memory
_EXACT = 2**24  # whole numbers up to this are exact in float32
_LARGEST_WEIGHT = 2**10  # in steps; float16, which stores them, holds 2**11
_FINEST = 24  # float16's least number is 2**-24


class Network(nn.Module):
    """An encoder and a decoder of 3 × 3 convolutions; what the encoder saw at a level is added to the decoder there.

    Parameters
    ----------
    widths : sequence of int, length L
        Channels of each level; each level has half the rows and columns of the one above it.
    diameter_px : float
        Diameter of a typical nucleus on the network's grid [px].
    form : {"rounded", "plain", "normalized"}
        As it is stored and used: activations in whole steps. Or for training: not rounded, and with or without batch
        normalization; `fold` makes the first of these two, `unfold` the plain one of the rounded.
    """

    def __init__(self, widths=(16, 32, 64, 128), diameter_px=16.0, *, form="rounded"):
        super().__init__()
        widths = [int(width) for width in widths]
        self.config, self.form = {"widths": widths, "diameter_px": float(diameter_px)}, form
        normalized = form == "normalized"
        self.down = nn.ModuleList(
            nn.ModuleList([_convolution(before, width, normalized), _convolution(width, width, normalized)])
            for before, width in zip([1, *widths[:-1]], widths, strict=True)
        )
        self.across = nn.ModuleList(
            _convolution(below, width, normalized, kernel=1)
            for width, below in zip(widths[:-1], widths[1:], strict=True)
        )
        self.up = nn.ModuleList(
            nn.ModuleList([_convolution(width, width, normalized), _convolution(width, width, normalized)])
            for width in widths[:-1]
        )
        self.head = nn.Conv2d(widths[0], len(OUTPUTS), 1)

    def forward(self, pixels):
        """Compute the maps.

        Parameters
        ----------
        pixels : Tensor of float32, shape (N, 1, H, W)
            What `prepare_input` returned, for the rounded form rounded by `round_input`. H and W are multiples of
            `network_file.multiple_of`.

        Returns
        -------
        Tensor of float32, shape (N, 3, H, W)
            `OUTPUTS`: log odds of the foreground, distance to the nucleus' edge in units of its largest, log odds of a
            boundary between two nuclei.
        """
        seen = []
        for level in range(len(self.down)):
            seen.append(self._by_strips(partial(self._descend, level), [(pixels, 2 if level else 1)]))
            pixels = seen[-1]
        for level in reversed(range(len(self.up))):
            pixels = self._by_strips(partial(self._ascend, level), [(seen[level], 1), (pixels, 0.5)], last=level == 0)
        return pixels

    def _descend(self, level, pixels):
        """One level of the encoder, from what came out of the one above."""
        if level:
            pixels = functional.max_pool2d(pixels, 2)
        return self._convolve(self.down[level], pixels)

    def _ascend(self, level, seen, pixels):
        """One level of the decoder, from what the encoder saw there and what came out of the level below."""
        pixels = self._activate(self.across[level](pixels), signed=True)
        pixels = functional.interpolate(pixels, scale_factor=2, mode="nearest").add_(seen)
        pixels = self._convolve(self.up[level], pixels)
        return pixels if level else self.head(pixels)

    def _convolve(self, layers, pixels):
        """Two convolutions, each with its activation."""
        for layer in layers:
            pixels = self._activate(layer(pixels))
        return pixels

    def _by_strips(self, work, sources, last=False):
        """Work on one level strip by strip, so that what lies between its layers stays in the processor's cache.

        The rows that a strip shares with its neighbors are computed for both, so the strips change nothing, to the bit.
        Activations are whole numbers from 0 to 255, and kept as such. Each source comes with its rows per row here.
        """
        if self.form != "rounded":
            return work(*(source for source, _ in sources))
        (first, rows), *_ = sources
        height, whole = int(first.shape[2] / rows), None
        strip = STRIP if first.device.type == "cpu" else STRIP_OF_GPU
        for start in range(0, height, strip):
            stop = min(start + strip, height)
            top, bottom = max(start - 2, 0), min(stop + 2, height)
            parts = [
                source[:, :, int(top * rows) : int(bottom * rows)].to(self.head.weight.dtype)
                for source, rows in sources
            ]
            found = work(*parts)[:, :, start - top : stop - top]
            if whole is None:
                shape, dtype = (*found.shape[:2], height, found.shape[3]), found.dtype if last else torch.uint8
                whole = torch.empty(shape, dtype=dtype, device=found.device, memory_format=torch.channels_last)
            whole[:, :, start:stop] = found
        return whole

    def _activate(self, pixels, signed=False):
        """Cut to a range, in whole steps in the rounded form."""
        if self.form == "rounded":
            return pixels.round_().clamp_(-CEILING if signed else 0, CEILING)
        return pixels.clamp(-CEILING / STEPS if signed else 0.0, CEILING / STEPS)


def _convolution(channels, width, normalized, kernel=3):
    """A convolution, which in training may be normalized by the statistics of the batches seen."""
    layer = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=not normalized)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return nn.Sequential(layer, nn.BatchNorm2d(width)) if normalized else layer


def prepare_input(intensities, background, foreground):
    """Scale intensities for the network.

    Parameters
    ----------
    intensities : ndarray of float32
    background : float
        Intensity of the background.
    foreground : float
        Mean intensity of what is brighter; becomes 1.

    Returns
    -------
    ndarray of float32
        0 for the background, 1 for the foreground, less than 2 for anything brighter.

    Examples
    --------
    >>> prepare_input(np.array([0.0, 1.0, 3.0, -9.0]), 0.0, 1.0).tolist()
    [0.0, 1.0, 1.5, -0.5]
    """
    value = (np.asarray(intensities, np.float32) - np.float32(background)) / np.float32(
        max(foreground - background, 1e-9)
    )
    # Division, unlike a logarithm, is rounded alike by every processor.
    value = 2 * value / (1 + np.maximum(value, 0))
    return np.clip(value, *INPUT_RANGE)


def round_input(points):
    """Round an input to whole steps of 1/256, so that the network's sums are exact; ndarray of float32."""
    return np.rint(points * np.float32(INPUT_STEPS)) / np.float32(INPUT_STEPS)


def fold(network):
    """Fold the normalization into the convolutions, and round the weights so that all sums are exact.

    Parameters
    ----------
    network : Network
        Normalized or plain.

    Returns
    -------
    Network
        Rounded, in evaluation mode, on the CPU.
    """
    folded = Network(**network.config)
    with torch.no_grad():
        for name, layer in _convolutions(folded):
            source = network.get_submodule(name)
            if isinstance(source, nn.Sequential):
                source, norm = source
                factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
                weight, bias = source.weight * factor[:, None, None, None], norm.bias - norm.running_mean * factor
            else:
                weight, bias = source.weight, source.bias
            before, after = _units(name)
            weight, bias = _round_weights(weight.double().cpu() * after / before, bias.double().cpu() * after, name)
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return folded.to(memory_format=torch.channels_last).eval()


def unfold(network):
    """Make a rounded network trainable again: plain, so that it begins where the rounded one is."""
    plain = Network(**network.config, form="plain")
    with torch.no_grad():
        for name, layer in _convolutions(plain):
            before, after = _units(name)
            layer.weight.copy_(network.get_submodule(name).weight * before / after)
            layer.bias.copy_(network.get_submodule(name).bias / after)
    return plain


def _convolutions(network):
    """Names and layers of a network without normalization."""
    return [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]


def _units(name):
    """Steps per unit of what goes into a layer of the rounded form, and of what comes out."""
    return 1 if name == "down.0.0" else STEPS, 1 if name == "head" else STEPS


def _input_range(name):
    """Largest input of a layer of the rounded form, and the step in which its inputs come."""
    if name == "down.0.0":
        return max(map(abs, INPUT_RANGE)), 1 / INPUT_STEPS
    # Into the decoder's first convolutions goes the sum of two activations.
    return (2 if name.startswith("up.") and name.endswith(".0") else 1) * CEILING, 1


def _round_weights(weight, bias, name):
    """Round each channel to multiples of the least power of two for which no sum can exceed what is exact."""
    largest, step = _input_range(name)
    flat = weight.flatten(1)
    total = flat.abs().sum(1) * largest / step + bias.abs() / step
    slack = flat.shape[1] * largest / step / 2 + 1  # rounding adds at most half a step to every weight
    room = torch.minimum((_EXACT - slack) / total, _LARGEST_WEIGHT / flat.abs().amax(1))
    scale = 2.0 ** torch.floor(torch.log2(room)).clamp(max=_FINEST)
    shape = (-1, 1, 1, 1)
    return torch.round(weight * scale.view(shape)) / scale.view(shape), torch.round(bias / step * scale) * step / scale


def check_exact(network):
    """Refuse a network whose sums float32 might round.

    Parameters
    ----------
    network : Network
        Rounded.

    Raises
    ------
    ModelMismatchError
        If weights are no multiples of a power of two, or sums may exceed what is exact.
    """
    for name, layer in _convolutions(network):
        largest, step = _input_range(name)
        weight, bias = layer.weight.detach().double().flatten(1), layer.bias.detach().double() / step
        values = torch.cat([weight, bias[:, None]], 1)
        total = weight.abs().sum(1) * largest / step + bias.abs()
        exact = torch.zeros(len(values), dtype=torch.bool)
        for exponent in range(-_FINEST, _FINEST + 1):
            scaled = values * 2.0**exponent
            exact |= (scaled == scaled.round()).all(1) & (total * 2.0**exponent < _EXACT)
        if not exact.all():
            raise ModelMismatchError(f"The weights of the layer {name!r} are not rounded as `fold` rounds them.")


def run_network(network, points, *, mixed=False):
    """Run a rounded network on one image, or on several of one size.

    Parameters
    ----------
    network : Network
        Used on the device that it is on.
    points : ndarray of float32, shape (H, W) or (N, H, W)
        What `round_input` returned.
    mixed : bool
        Convolutions in half precision, for GPUs. Activations, of 8 bits, and weights, of 11, are exact in it; what a sum
        is rounded to before it is rounded to whole steps is not, so that some activations are a step off.

    Returns
    -------
    ndarray of float32, shape (3, H, W) or (N, 3, H, W)
        See `Network.forward`.
    """
    device, size = network.head.weight.device, points.shape[-2:]
    batch = torch.from_numpy(np.ascontiguousarray(points).reshape(-1, 1, *size)).to(device)
    with torch.inference_mode(), torch.autocast(device.type, torch.float16, enabled=mixed):
        maps = network(batch.contiguous(memory_format=torch.channels_last))
    maps = np.ascontiguousarray(maps.float().cpu().numpy())
    return maps.reshape(*points.shape[:-2], *maps.shape[1:])


def save_network(path, network):
    """Write a rounded network; weights in half precision, which holds them exactly. Returns the file's SHA-256."""
    check_exact(network)
    tensors = {}
    for name, value in network.state_dict().items():
        full = np.ascontiguousarray(value.cpu().numpy())
        half = full.astype(np.float16)
        tensors[name] = half if np.array_equal(half.astype(np.float32), full) else full
    return write_network_file(path, network.config, tensors)


def load_network(path, sha256=None):
    """Read a network.

    Parameters
    ----------
    path : path
    sha256 : str, optional
        What the file's hash must be.

    Returns
    -------
    Network
        Rounded, in evaluation mode, on the CPU.

    Raises
    ------
    ModelMismatchError
        See `read_network_file`; or if the tensors are not those of the architecture, or sums might not be exact.
    """
    stored = read_network_file(path, sha256)
    network = Network(**stored.config)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in stored.tensors.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))[:4]
        raise ModelMismatchError(f"{str(path)!r}: the tensors are not those of {stored.config}: {wrong}.")
    network.load_state_dict(
        {name: torch.from_numpy(value.astype(np.float32)) for name, value in stored.tensors.items()}
    )
    check_exact(network)
    return network.to(memory_format=torch.channels_last).eval()
