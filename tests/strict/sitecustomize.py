"""Makes warnings errors in the jobs that tests start through Snakemake: Python imports this first, where it finds it."""

import sys
import warnings

if "snakemake" not in sys.orig_argv[1:3]:  # Snakemake's own process warns of what is its own
    warnings.simplefilter("error")
