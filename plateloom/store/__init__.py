"""What lies on disk: fingerprints and records, OME-Zarr plates, parquet tables, and where each of them is."""
