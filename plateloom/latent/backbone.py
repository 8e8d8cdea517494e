"""A network of your own as encoder, with its weights as they are: its settings; the network imports torch.

It is a program saved by `torch.export.save`, or an architecture of timm with a file of weights.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

TIMM = "timm:"
PACKAGE = "timm"
INSTALL = "pip install timm"


class Params(BaseModel):
    """Settings of the network and of what is made of its numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        "",
        description="The network: path of a program of torch.export.save (.pt2), from the screen's folder, or `timm:` and an "
        "architecture, e.g. `timm:resnet18`.",
    )
    weights: str = Field(
        "", description="Path of the weights of a timm network: safetensors, or a state dict of torch.save."
    )
    channels: Literal["each", "stack"] = Field(
        "each",
        description="`each`: every channel alone, repeated where the network takes three planes, and the outputs joined; `stack`: "
        "the channels as the planes.",
    )
    out_px: int = Field(224, ge=1, description="Side of what the network is given [px]; crops are enlarged to it.")
    crop_px: int = Field(64, ge=1, description="Side of the crops that are kept for training [px].")
    scaling: Literal["channel", "imagenet", "none"] = Field(
        "channel",
        description="Of crops from 0 to 1: each channel by mean and standard deviation of the training crops, by those of gray "
        "photographs (0.449, 0.226), or none.",
    )
    latent_dim: int | None = Field(
        32, ge=1, description="Latent columns K, by a PCA fitted on training crops; null: all that the network gives."
    )

    @model_validator(mode="after")
    def _some_network(self):
        if not self.model:
            raise ValueError("model: none given. Set a program's path (.pt2), or `timm:` and an architecture")
        if self.model.startswith(TIMM) and set(self.model.removeprefix(TIMM)) & set(":/"):
            raise ValueError(f"model: {self.model} is a place; give the name of an architecture, nothing is downloaded")
        if self.model.startswith(TIMM) and not self.weights:
            raise ValueError(f"weights: {self.model} needs a file of weights; nothing is downloaded")
        if self.weights and not self.model.startswith(TIMM):
            raise ValueError("weights: a program has its own; leave them out")
        return self

    @property
    def side_px(self):
        """Side of the crops [px]."""
        return self.crop_px


def weights_files(params):
    """Files that the result depends on."""
    return [params.weights or params.model]


def needs_package(params):
    """Whether these settings need `PACKAGE`."""
    return params.model.startswith(TIMM)


def notices(params):
    """What to know before using it."""
    if needs_package(params):
        return []
    return ["backbone: a .pt2 file may run any code when it is read; take it only from whom you trust"]


def fit(crops, *, params, device="cpu", holdout=None):
    """Fit what there is to fit; see `plateloom.latent.pretrained.fit`."""
    from plateloom.latent import pretrained

    return pretrained.fit(crops, params=params, device=device, holdout=holdout)
