"""Latent spaces: cell crops -> encoder -> K numbers per cell; tables of cells or wells -> maps of two coordinates.

A method is one module with its own pydantic `Params`; nothing heavy is imported to learn its name or to check them.

METHODS learn a latent space from crops, by the functions of `plateloom.latent.network`.
MAPS lay a table out in two coordinates: `embed`, called by `plateloom.latent.maps.fit_map`.
"""

METHODS = {
    "autoencoder": "plateloom.latent.autoencoder",
    "contrastive": "plateloom.latent.contrastive",
}

MAPS = {
    "pca": "plateloom.latent.pca",
    "umap": "plateloom.latent.umap",
}
