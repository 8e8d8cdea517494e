"""Nuclei, cells or both as star-convex polygons by StarDist; needs the package stardist and a model of your own."""

import json
from pathlib import Path

import numpy as np
from pydantic import Field

from plateloom.errors import ModelMismatchError
from plateloom.segmentation.foreign import NetworkMethod, NetworkParams, import_package, kept, stamp, weights_of

PACKAGE = "stardist"
INSTALL = "pip install stardist tensorflow"


class Params(NetworkParams):
    """Parameters of StarDist; for most assays the model, the channels and the diameter are all there is to set."""

    probability: float | None = Field(
        None, gt=0, lt=1, description="Objects at least this likely are kept (dimensionless); none: the model's own."
    )
    overlap: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Objects that share more than this with a likelier one are dropped (dimensionless); none: the model's.",
    )
    model_pixel_size_um: float | None = Field(
        None, gt=0, description="Pixel size that the model learned at [µm/px]; none: images are not rescaled."
    )

    @classmethod
    def whence(cls):
        return (
            "Set segmentation.parameters.weights (nuclei) or cells_weights to the folder of a model of StarDist 2D, with its "
            "config.json and weights_best.h5: your own, or one from https://github.com/stardist/stardist-models; nothing is "
            "downloaded"
        )


class StarDist(NetworkMethod):
    """The method on the tiles of one image."""

    PERCENTILES = (1.0, 99.8)

    def find(self, pixels, role, weights, diameter_px):
        model = _load(weights, _stamps(weights), self.device)
        channels = model.config.n_channel_in
        if channels > len(pixels):
            raise ModelMismatchError(
                f"the model {weights!r} wants {channels} channels; there are {len(pixels)} for {role}"
            )
        image = pixels[-1] if channels == 1 else np.moveaxis(pixels[:channels], 0, -1)
        scale = self.pixel_size_um / self.params.model_pixel_size_um if self.params.model_pixel_size_um else 1.0
        labels, _ = model.predict_instances(
            image,
            axes="YX" if channels == 1 else "YXC",
            normalizer=None,  # by the whole image, and done
            prob_thresh=self.params.probability,
            nms_thresh=self.params.overlap,
            scale=None if scale == 1 else scale,
            verbose=False,
        )
        return labels


Method = StarDist


def weights_files(params):
    """Files that the result depends on: all that a model's folder holds."""
    return [
        file
        for folder in weights_of(params)
        for file in (sorted(map(str, _files(folder))) or [f"{folder}/config.json"])
    ]


def describe_run(params, device):
    """What stands in a job's record: the device that TensorFlow takes."""
    tensorflow = import_package("tensorflow", INSTALL)
    return {"device": "cuda" if device != "cpu" and tensorflow.config.list_physical_devices("GPU") else "cpu"}


def notices(params):
    """What to know before using it."""
    return []


def _files(folder):
    """A model's settings and weights; HDF5 and JSON hold no code."""
    return [path for kind in ("*.json", "*.h5") for path in Path(folder).glob(kind)]


def _stamps(folder):
    return tuple((str(path), *stamp(path)) for path in sorted(_files(folder)))


@kept
def _load(folder, version, device):
    """The model of a folder, kept while the process lives; `version` tells its files from earlier ones."""
    names = {Path(name).name for name, *_ in version}
    if "config.json" not in names or not any(name.endswith(".h5") for name in names):
        raise ModelMismatchError(
            f"{folder!r} is no folder of a StarDist model: expected config.json and weights_best.h5"
        )
    import_package("tensorflow", INSTALL)
    models = import_package("stardist.models", INSTALL)
    _limit_device(device)
    place = Path(folder).resolve()
    if (found := json.loads((place / "config.json").read_text()).get("n_dim")) != 2:
        raise ModelMismatchError(f"{folder!r} is a model of {found} dimensions; expected 2")
    try:
        return models.StarDist2D(None, name=place.name, basedir=str(place.parent))
    except (ValueError, KeyError, OSError) as error:
        raise ModelMismatchError(f"{folder!r} is no model that StarDist can read: {error}") from error


def _limit_device(policy):
    """Hold TensorFlow, which takes any GPU it sees, to the screen's `engine.device`."""
    import tensorflow

    there = tensorflow.config.list_physical_devices("GPU")
    if policy == "require" and not there:
        raise RuntimeError("engine.device is `require`, but TensorFlow sees no GPU here")
    if policy == "cpu":
        tensorflow.config.set_visible_devices([], "GPU")
