"""Write the page of a plate."""

from plateloom.engine.parts import start_job
from plateloom.stages.report import report_plate

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    report_plate(
        plate=snakemake.wildcards.plate,
        batch=snakemake.params.batch,
        source=snakemake.params.source,
        settings=snakemake.params.settings,
        code=snakemake.params.code,
        profiled=snakemake.input.profiled,
        flagged=snakemake.input.flagged,
        screened=snakemake.input.screened,
        mapped=snakemake.input.mapped,
        classified=snakemake.input.classified,
        encoded=snakemake.input.encoded,
        record=snakemake.output.record,
    )
