"""Train the network that the screen is segmented with."""

from plateloom.engine.parts import start_job
from plateloom.stages.training import train_segmenter

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    train_segmenter(
        settings=snakemake.params.settings,
        code=snakemake.params.code,
        record=snakemake.output.record,
    )
