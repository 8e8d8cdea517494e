"""Train the classifier on labeled wells or cells."""

from plateloom.engine.parts import start_job
from plateloom.stages.classification import train_screen

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    train_screen(
        plates=snakemake.params.plates,
        missing=snakemake.params.missing,
        labels=snakemake.params.labels,
        settings=snakemake.params.settings,
        code=snakemake.params.code,
        measured=snakemake.input.measured,
        profiled=snakemake.input.profiled,
        flagged=snakemake.input.flagged,
        encoded=snakemake.input.encoded,
        record=snakemake.output.record,
    )
