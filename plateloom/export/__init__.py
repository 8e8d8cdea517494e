"""A finished screen, or some of its plates, as one folder to hand on.

screen      what is taken, whether it is finished, and that the folder appears whole or not at all
copies      files and plates cloned, linked or copied, never changed
fractal     plate map, features and regions as the tables of ngio and Fractal
crate       the RO-Crate that says what everything is and how it was made
redaction   no machine, no path of it, and no formula leaves the house
"""

from plateloom.export.screen import export_screen

__all__ = ["export_screen"]
