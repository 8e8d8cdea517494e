"""Nuclei, cells or both by InstanSeg; needs the package instanseg-torch and a model of your own as TorchScript."""

import warnings

import numpy as np

from plateloom.devices import choose_device, fit_memory
from plateloom.errors import ModelMismatchError
from plateloom.segmentation.foreign import NetworkMethod, NetworkParams, import_package, kept, stamp, weights_of

PACKAGE = "instanseg"
INSTALL = "pip install instanseg-torch"


class Params(NetworkParams):
    """Parameters of InstanSeg: the weights and the channels; a model knows the pixel size that it learned at."""

    @classmethod
    def whence(cls):
        return (
            "Set segmentation.parameters.weights (nuclei) or cells_weights to the instanseg.pt of a model, the same file for "
            "both where it finds both: your own, or fluorescence_nuclei_and_cells from "
            "https://github.com/instanseg/instanseg/releases; nothing is downloaded"
        )


class InstanSeg(NetworkMethod):
    """The method on the tiles of one image."""

    PERCENTILES = (0.1, 99.9)

    def find(self, pixels, role, weights, diameter_px):
        model = _load(weights, stamp(weights), choose_device(self.device))

        def run(_):
            return model.eval_small_image(
                np.ascontiguousarray(pixels),
                pixel_size=self.pixel_size_um,
                normalise=False,  # by the whole image, and done
                return_image_tensor=False,
                target=role,
            )

        found, _ = fit_memory(run, 1)  # one block at a time: there is nothing to halve, but to wait for
        labels = found.detach().cpu().numpy()
        if labels.ndim != 4 or labels.shape[2:] != pixels.shape[1:]:
            raise ModelMismatchError(f"{weights!r} gave {labels.shape} for an image of {pixels.shape[1:]}")
        return labels[0, 0]


Method = InstanSeg


def weights_files(params):
    """Files that the result depends on."""
    return weights_of(params)


def notices(params):
    """What to know before using it."""
    return ["instanseg: a TorchScript file may run any code when it is read; take it only from whom you trust"]


@kept
def _load(path, version, device):
    """The model of a file, kept while the process lives; `version` tells the file from an earlier one."""
    package = import_package("instanseg", INSTALL)
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's, of the format that these models have
            script = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ModelMismatchError(f"{path!r} is no TorchScript file: {' '.join(str(error).split())[:200]}") from error
    lacking = [name for name in ("pixel_size", "cells_and_nuclei") if not hasattr(script, name)]
    if lacking:
        raise ModelMismatchError(f"{path!r} is no model of InstanSeg: it has no {' and no '.join(lacking)}")
    # In the other memory layout sums are rounded otherwise than on a CPU.
    return package.InstanSeg(script, device=device, verbosity=0, channels_last=False)
