"""Fit the map of cells."""

from plateloom.engine.parts import start_job
from plateloom.stages.maps import fit_screen

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    fit_screen(
        plates=snakemake.params.plates,
        missing=snakemake.params.missing,
        settings=snakemake.params.settings,
        code=snakemake.params.code,
        measured=snakemake.input.measured,
        flagged=snakemake.input.flagged,
        encoded=snakemake.input.encoded,
        record=snakemake.output.record,
    )
