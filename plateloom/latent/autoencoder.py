"""A small convolutional autoencoder, if asked a variational one: its settings; the network imports torch.

Orientation-invariant training follows Burgess et al. 2024 (doi:10.1038/s41467-024-45362-4): the latent numbers are the
same however a cell is turned, and the reconstruction is compared with the cell in the pose that fits best.
"""

from pydantic import Field

from plateloom.latent.training_settings import EncoderParams


class Params(EncoderParams):
    """Settings of the autoencoder and its training."""

    augment: bool = Field(True, description="Random flips and quarter turns: a cell has no upright position")
    invariant: bool = Field(
        False,
        description="Make the latent numbers independent of how a cell is turned or mirrored; takes several times as long.",
    )
    variational: bool = Field(
        False, description="Learn a distribution per cell, kept near the standard normal one; the latent is its mean."
    )
    kl_weight: float = Field(
        0.1, ge=0, description="Of that nearness, if variational; 1 assumes a noise of one standard deviation per pixel"
    )

    def network(self, channels):
        """What builds the network for crops of so many channels: keywords, and `method`, its name."""
        own = self.model_dump(include={"latent_dim", "out_px", "width", "invariant", "variational"})
        return {"method": "autoencoder", "channels": channels, **own}
