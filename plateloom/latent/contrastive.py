"""A small encoder that learns by contrast (SimCLR, Chen et al. 2020, arXiv:2002.05709): its settings.

Two pictures of the same cell, turned, mirrored, and brighter or darker by channel, shall be nearer to each other than to
any other cell of the batch. It reconstructs nothing.
"""

from pydantic import Field

from plateloom.latent.training_settings import EncoderParams


class Params(EncoderParams):
    """Settings of the contrastive encoder and its training."""

    batch_size: int = Field(128, ge=2, description="Crops per step, among which each must find its own other view.")
    temperature: float = Field(0.2, gt=0, description="Of the similarities; lower makes near cells matter more.")
    projection: int = Field(64, ge=1, description="Numbers that views are compared by; only training uses them.")
    jitter: float = Field(
        0.2, ge=0, description="Spread of each channel's random gain; brightness counts for less, the larger it is"
    )

    def network(self, channels):
        """What builds the network for crops of so many channels: keywords, and `method`, its name."""
        own = self.model_dump(include={"latent_dim", "out_px", "width", "projection"})
        return {"method": "contrastive", "channels": channels, **own}
