"""Latent spaces: cell crops -> encoder -> K numbers per cell; tables of cells or wells -> maps of two coordinates.

A method is one module with its own pydantic `Params`; nothing heavy is imported to learn its name or to check them.

METHODS learn a latent space from crops, by the functions of `plateloom.latent.network`. One that has nothing to train has
`fit` instead; one that reads models of the user names them in `weights_files`, and what must be known of it in `notices`.
MAPS lay a table out in two coordinates: `embed`, called by `plateloom.latent.maps.fit_map`.
CLUSTERINGS group its rows: `candidates`, `cluster` and `BY_CENTER`, called by `plateloom.latent.clusters.fit_clusters`.
"""

METHODS = {
    "autoencoder": "plateloom.latent.autoencoder",
    "contrastive": "plateloom.latent.contrastive",
    "backbone": "plateloom.latent.backbone",
}

MAPS = {
    "pca": "plateloom.latent.pca",
    "umap": "plateloom.latent.umap",
    "densmap": "plateloom.latent.densmap",
    "pacmap": "plateloom.latent.pacmap",
}

CLUSTERINGS = {
    "kmeans": "plateloom.latent.kmeans",
    "hdbscan": "plateloom.latent.hdbscan",
    "leiden": "plateloom.latent.leiden",
}
