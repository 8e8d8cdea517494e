"""Illumination: one flat-field per plate and channel, estimated from the plate's own fields.

A method is a module with `Params`, and one of two things. Either it looks at fields: ``shrink(plane, params)`` gives a
small float32 thumbnail of one field, made where the field is read, and ``estimate(thumbnails, shape, params)`` the
flat-field. Or it looks at none: ``evaluate(said, shape, params)`` gives the flat-field by what the source says of the
channel, and ``offset_of(said, params)`` what the camera reads in the dark. Both return the flat-field and a reason, empty
unless they fell back to 1.
"""

METHODS = {
    "median": "plateloom.illumination.median",
    "lowrank": "plateloom.illumination.lowrank",
    "vendor": "plateloom.illumination.vendor",
    "none": "plateloom.illumination.none",
}
