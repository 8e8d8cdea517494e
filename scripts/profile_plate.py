"""Profile the wells of a plate."""

from plateloom.engine.parts import start_job
from plateloom.stages.profiling import profile_plate

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    profile_plate(
        plate=snakemake.wildcards.plate,
        batch=snakemake.params.batch,
        plate_map=snakemake.params.plate_map,
        max_failed_fields=snakemake.params.max_failed_fields,
        settings=snakemake.params.settings,
        code=snakemake.params.code,
        measured=snakemake.input.measured,
        flagged=snakemake.input.flagged,
        encoded=snakemake.input.encoded,
        record=snakemake.output.record,
    )
