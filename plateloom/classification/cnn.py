"""A small convolutional network on crops of cells, for what no feature measures: its settings; the network imports torch."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

GRID = {"width": (8, 16, 32)}  # that `tune` searches; the smoothest first
SHRINK = 16  # four convolutions of stride 2
SAME_PIXEL = 0.05  # relative difference of pixel sizes at which cells are still resolved alike


class Params(BaseModel):
    """Settings of the network, of its training, and of the crops that it sees."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop_um: float = Field(32.0, gt=0, description="Side of the square cut out round a cell [µm].")
    out_px: int = Field(64, ge=SHRINK, description="Side of the crops [px], a multiple of 16")
    width: int = Field(16, ge=1, description="Channels of the first layer; the deepest has four times as many")
    epochs: int = Field(30, ge=1, description="Passes over the training crops at most.")
    patience: int = Field(
        6, ge=1, description="Epochs without progress on the wells, plates or batches kept for tuning until it stops."
    )
    tuning_share: float = Field(
        0.2,
        gt=0,
        le=0.5,
        description="Share of the training groups that only decide when to stop; with fewer than 4 none.",
    )
    batch_size: int = Field(32, ge=1, description="Crops per step.")
    learning_rate: float = Field(2e-3, gt=0, description="At the start; falls to 0 along a cosine")
    weight_decay: float = Field(0.01, ge=0, description="How strongly weights are drawn to 0.")
    jitter: float = Field(
        0.2, ge=0, description="Spread of each channel's random gain; brightness counts for less, the larger it is"
    )
    seed: int = Field(0, ge=0, description="Every random number follows from it.")

    @field_validator("out_px")
    @classmethod
    def _divides(cls, value):
        if value % SHRINK:
            raise ValueError(f"out_px is {value}; it must be a multiple of {SHRINK}")
        return value


def build(params, *, weights=True):
    """Build the estimator: an untrained network."""
    from plateloom.classification.crop_network import CropNetwork

    return CropNetwork(**params.model_dump(exclude={"crop_um", "out_px"}), balanced=weights)
