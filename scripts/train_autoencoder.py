"""Train the autoencoder on crops of cells from all plates."""

from plateloom.engine.parts import start_job
from plateloom.stages.latent import train_screen

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    train_screen(
        plates=snakemake.params.plates,
        missing=snakemake.params.missing,
        settings=snakemake.params.settings,
        code=snakemake.params.code,
        segmented=snakemake.input.segmented,
        illuminated=snakemake.input.illuminated,
        flagged=snakemake.input.flagged,
        record=snakemake.output.record,
    )
