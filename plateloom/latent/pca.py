"""A map by principal components: the first two."""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class Params(BaseModel):
    """Settings of a map by PCA."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_components: int = Field(2, ge=1, description="Components kept; the map shows the first two")
    clip: float = Field(10.0, gt=0, description="Scaled features are clipped here [robust standard deviations]")


def embed(components, params):
    """Leave the sample where its first two components are."""
    return None, ""


def first_two(components):
    """Return the first two components as the map, 0 where there is only one.

    Parameters
    ----------
    components : array of float, shape (N, K)

    Returns
    -------
    ndarray of float32, shape (N, 2)
    """
    shown = np.zeros((len(components), 2), dtype=np.float32)
    shown[:, : min(2, components.shape[1])] = components[:, :2]
    return shown
