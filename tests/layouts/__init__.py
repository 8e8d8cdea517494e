"""Constructed plates: given pixels, laid out as each microscope's software does it. What is real lies in the data folder.

A layout is a module with ``write(folder, planes, **options)``; `planes` maps (well, field, channel, z, t), all but the
well counted from 1, to a uint16 plane.
"""
