"""Compare the spaces of profiles of the screen: how plates mix, which serves better."""

from plateloom.engine.parts import start_job
from plateloom.stages.comparison import compare_screen

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    compare_screen(
        missing=snakemake.params.missing,
        settings=snakemake.params.settings,
        code=snakemake.params.code,
        screened=snakemake.input.screened,
        profiled=snakemake.input.profiled,
        encoded=snakemake.input.encoded,
        record=snakemake.output.record,
    )
