"""What all encoders of crops can be told: their size and how they are trained."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

SHRINK = 16  # four convolutions of stride 2


class EncoderParams(BaseModel):
    """Settings of a convolutional encoder and its training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latent_dim: int = Field(32, ge=1, description="Latent columns K.")
    out_px: int = Field(64, ge=SHRINK, description="Side of the crops [px], a multiple of 16")
    width: int = Field(16, ge=1, description="Channels of the first layer; the deepest has four times as many")
    epochs: int = Field(20, ge=1, description="Passes over the training crops.")
    batch_size: int = Field(32, ge=1, description="Crops per step.")
    learning_rate: float = Field(2e-3, gt=0, description="At the start; falls to 0 along a cosine")
    seed: int = Field(0, ge=0, description="Every random number follows from it.")

    @field_validator("out_px")
    @classmethod
    def _divides(cls, value):
        if value % SHRINK:
            raise ValueError(f"out_px is {value}; it must be a multiple of {SHRINK}")
        return value

    @property
    def side_px(self):
        """Side of the crops [px]."""
        return self.out_px
