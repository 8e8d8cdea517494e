"""A map by PaCMAP of the principal components of a sample; needs the package pacmap."""

import importlib.util

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from plateloom.errors import ModelMismatchError
from plateloom.latent.pca import first_two

PACKAGE = "pacmap"
INSTALL = "pip install pacmap"


class Params(BaseModel):
    """Settings of a map by PaCMAP."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_components: int = Field(20, ge=1, description="Principal components that PaCMAP starts from")
    clip: float = Field(10.0, gt=0, description="Scaled features are clipped here [robust standard deviations]")
    n_neighbors: int = Field(10, ge=2, description="Neighbors that pull a row [rows].")
    mid_ratio: float = Field(0.5, ge=0, description="Rows at middle distance that pull a row, per neighbor.")
    far_ratio: float = Field(2.0, gt=0, description="Rows farther away that push a row, per neighbor.")
    seed: int = Field(0, ge=0, lt=2**31, description="Every random number follows from it.")


def embed(components, params):
    """Lay the sample out by PaCMAP.

    Raises
    ------
    ModelMismatchError
        If pacmap is not installed; says what to type.

    Notes
    -----
    PaCMAP (Wang et al. 2021, JMLR 22:201): besides neighbors, rows at middle distance pull, so that the large distances
    are kept better.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise ModelMismatchError(f"latent.maps.method pacmap: the package {PACKAGE!r} is not installed: {INSTALL}")
    drawn = params.n_neighbors * (1 + params.mid_ratio + params.far_ratio)
    if len(components) <= drawn:
        return None, (
            f"{len(components)} rows, PaCMAP needs more than the {drawn:.0f} that it draws for each: the map shows the first two "
            "principal components"
        )
    import pacmap

    model = pacmap.PaCMAP(
        n_neighbors=params.n_neighbors,
        MN_ratio=params.mid_ratio,
        FP_ratio=params.far_ratio,
        apply_pca=False,
        random_state=params.seed,
    )
    embedding = model.fit_transform(components, init=first_two(components))
    return np.ascontiguousarray(embedding, dtype=np.float32), ""
