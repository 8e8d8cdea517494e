"""One file per step: reads what a job works on, calls the compute package of the same name, writes and records."""
