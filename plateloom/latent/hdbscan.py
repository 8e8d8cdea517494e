"""Clusters by HDBSCAN: places where cells lie dense; cells in between are in no cluster."""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

BY_CENTER = False


class Params(BaseModel):
    """Settings of clusters by HDBSCAN."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_share: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Smallest cluster [share of the cells that the map is fitted on]; never fewer than `min_samples`.",
    )
    min_samples: int = Field(
        10, ge=2, description="Cells that must be near to make a place dense, the cell itself included."
    )
    selection: Literal["eom", "leaf"] = Field(
        "eom", description="`eom` takes the clusters that last longest, `leaf` the smallest ones."
    )


def candidates(params, n):
    """The parameters themselves: the number of clusters follows from the cells."""
    return [params]


def cluster(components, params):
    """Find places where cells lie dense; what lies between is in no cluster."""
    from sklearn.cluster import HDBSCAN

    least = max(params.min_samples, round(params.min_share * len(components)))
    if len(components) <= least:
        return np.full(len(components), -1)
    model = HDBSCAN(
        min_cluster_size=least,
        min_samples=params.min_samples,
        cluster_selection_method=params.selection,
        copy=True,
    )
    return np.maximum(model.fit_predict(components), -1)
