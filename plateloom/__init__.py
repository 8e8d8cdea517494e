"""Plateloom: high-content screens from the microscope's folder to the list of hits."""

__version__ = "0.1.0"
