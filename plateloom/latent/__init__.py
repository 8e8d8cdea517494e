"""Latent spaces: cell crops -> encoder -> K numbers per cell; tables of cells or wells -> maps of two coordinates.

A method is one module with its own pydantic `Params`; nothing heavy is imported to learn its name or to check them.

METHODS learn a latent space from crops, by the functions of `plateloom.latent.network`. One that has nothing to train has
`fit` instead; one that reads models of the user names them in `weights_files`, and what must be known of it in `notices`.
MAPS lay a table out in two coordinates, for `plateloom.latent.maps.fit_map`::

    embedding, reason = module.embed(components, params)

*components* are the sample's principal components, float32 (n, K); *embedding* is float32 (n, 2), or None where the map is the
first two components; *reason* says why it is another map than asked for, and is empty if it is not.

CLUSTERINGS group its rows, for `plateloom.latent.clusters.fit_clusters`::

    module.BY_CENTER                             whether a new cell belongs to the nearest center, not to the nearest cells
    module.candidates(params, n)                 Params to choose from for a sample of n cells, those of fewer clusters first
    module.cluster(components, params)           int (n,), -1: in no cluster; of float64 (n, K)

A map or clustering that needs a package of other people names it in `PACKAGE`, the command that installs it in `INSTALL`.
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
