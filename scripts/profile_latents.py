"""Profile the latents of a plate's wells."""

from plateloom.engine.parts import start_job
from plateloom.stages.comparison import profile_latents

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    profile_latents(
        plate=snakemake.wildcards.plate,
        settings=snakemake.params.settings,
        code=snakemake.params.code,
        profiled=snakemake.input.profiled,
        encoded=snakemake.input.encoded,
        record=snakemake.output.record,
    )
