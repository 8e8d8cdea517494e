"""Nuclei, cells or both by Cellpose 4 (Cellpose-SAM); needs the package cellpose and weights of your own.

The published weights learned from images that may not be used commercially: `notices`.
"""

import numpy as np
from pydantic import Field

from plateloom.devices import choose_device, fit_memory
from plateloom.errors import ModelMismatchError
from plateloom.segmentation.foreign import NetworkMethod, NetworkParams, import_package, kept, stamp, weights_of

PACKAGE = "cellpose"
INSTALL = 'pip install "cellpose>=4.2"'


class Params(NetworkParams):
    """Parameters of Cellpose; for most assays the weights, the channels and the diameter are all there is to set."""

    rescale: bool = Field(
        False,
        description="Bring objects to the 30 px of the training images (yes/no); needed only where they are narrower than "
        "8 px or wider than 120 px.",
    )
    flow_threshold: float = Field(
        0.4, ge=0, description="Largest error of an object's flows (dimensionless); higher keeps more; 0: keep all."
    )
    cellprob_threshold: float = Field(
        0.0, description="Pixels above this logit are in an object (dimensionless); lower gives more and larger ones."
    )
    min_size_px: int = Field(15, ge=0, description="Objects of fewer pixels are left out [px²].")

    @classmethod
    def whence(cls):
        return (
            "Set segmentation.parameters.weights (nuclei) or cells_weights to a file of Cellpose 4: your own, or cpsam_v2 "
            "from https://huggingface.co/mouseland/cellpose-sam (non-commercial); nothing is downloaded"
        )


class Cellpose(NetworkMethod):
    """The method on the tiles of one image.

    Attributes
    ----------
    batch : int
        Pieces of 256 × 256 px that the network is given at once: cellpose's own default, halved for the rest of the process
        when memory does not hold it.
    """

    batch = 8

    def find(self, pixels, role, weights, diameter_px):
        model = _load(weights, stamp(weights), choose_device(self.device))
        image = np.zeros((*pixels.shape[1:], 3), np.float32)  # the network has three channels, in any order
        image[..., : len(pixels)] = np.moveaxis(pixels[::-1], 0, -1)
        params = self.params

        def run(batch):
            return model.eval(
                image,
                batch_size=batch,
                channel_axis=-1,
                normalize=False,  # by the whole image, and done
                diameter=diameter_px if params.rescale else None,
                flow_threshold=params.flow_threshold,
                cellprob_threshold=params.cellprob_threshold,
                min_size=params.min_size_px,
                max_size_fraction=1.0,
            )[0]

        labels, Cellpose.batch = fit_memory(run, Cellpose.batch)
        return labels


Method = Cellpose


def weights_files(params):
    """Files that the result depends on."""
    return weights_of(params)


def describe_run(params, device):
    """What stands in a job's record: device, precision and batch."""
    chosen = choose_device(device)
    precision = "float32" if chosen == "cpu" else "bfloat16"
    return {"device": chosen, "precision": precision, "batch": Cellpose.batch}


def notices(params):
    """What to know before using it."""
    return [
        "cellpose: the weights that are published as Cellpose-SAM (cpsam, cpsam_v2) learned from images under "
        "non-commercial licenses (CC BY-NC): do not use them for commercial work; weights that you trained yourself from "
        "them inherit that"
    ]


@kept
def _load(path, version, device):
    """The model of a file, kept while the process lives; `version` tells the file from an earlier one."""
    models = import_package("cellpose.models", INSTALL)
    import torch

    # From 2.6 on torch unpickles nothing but tensors unless it is told to, and cellpose does not tell it to; how that could
    # be got round was closed in 2.10 (CVE-2026-24747).
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
        raise ModelMismatchError(
            f"torch {torch.__version__} would run code from the file {path!r}; expected 2.10 or newer"
        )
    try:
        return models.CellposeModel(
            pretrained_model=str(path), device=torch.device(device), use_bfloat16=device != "cpu"
        )
    except (ValueError, KeyError, RuntimeError, EOFError, OSError) as error:
        raise ModelMismatchError(f"{path!r} is no model that Cellpose 4 can read: {error}") from error
