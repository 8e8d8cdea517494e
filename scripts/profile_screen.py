"""Join the profiles of all plates: selected features, readouts, dose responses, hits."""

from plateloom.engine.parts import start_job
from plateloom.stages.profiling import profile_screen

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    profile_screen(
        plates=snakemake.params.plates,
        missing=snakemake.params.missing,
        settings=snakemake.params.settings,
        code=snakemake.params.code,
        profiled=snakemake.input.profiled,
        record=snakemake.output.record,
    )
