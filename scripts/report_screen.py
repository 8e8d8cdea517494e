"""Write the page of the screen."""

from plateloom.engine.parts import start_job
from plateloom.stages.screen_report import report_screen

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    report_screen(
        plates=snakemake.params.plates,
        missing=snakemake.params.missing,
        settings=snakemake.params.settings,
        code=snakemake.params.code,
        screened=snakemake.input.screened,
        reported=snakemake.input.reported,
        mapped=snakemake.input.mapped,
        encoded=snakemake.input.encoded,
        compared=snakemake.input.compared,
        classified=snakemake.input.classified,
        record=snakemake.output.record,
    )
