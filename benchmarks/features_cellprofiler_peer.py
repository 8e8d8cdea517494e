"""CellProfiler's side of `benchmarks/features_cellprofiler.py`: runs in an environment of its own, with Python 3.8.

Reads fields (image.npy, Nuclei.npy, Cells.npy), one request per line, and measures them with CellProfiler's own modules, unchanged.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from cellprofiler_core.preferences import set_headless

set_headless()  # before anything else of it is imported

from cellprofiler.modules import (  # noqa: E402
    measurecolocalization,
    measuregranularity,
    measureobjectintensity,
    measureobjectintensitydistribution,
    measureobjectneighbors,
    measureobjectsizeshape,
    measuretexture,
)
from cellprofiler_core.image import Image, ImageSetList  # noqa: E402
from cellprofiler_core.measurement import Measurements  # noqa: E402
from cellprofiler_core.object import Objects, ObjectSet  # noqa: E402
from cellprofiler_core.pipeline import Pipeline  # noqa: E402
from cellprofiler_core.workspace import Workspace  # noqa: E402

COMPARTMENTS = ("Nuclei", "Cells")


def make_modules(channels):
    """CellProfiler's modules by family, with the settings that its tables of reference were made with."""
    images, objects = ", ".join(channels), ", ".join(COMPARTMENTS)
    shape = measureobjectsizeshape.MeasureObjectSizeShape()
    shape.calculate_zernikes.value = shape.calculate_advanced.value = True
    intensity = measureobjectintensity.MeasureObjectIntensity()
    texture = measuretexture.MeasureTexture()
    texture.images_or_objects.value = measuretexture.IO_OBJECTS
    texture.scale_groups[0].scale.value = 3
    granularity = measuregranularity.MeasureGranularity()
    granularity.wants_objects.value = True
    radial = measureobjectintensitydistribution.MeasureObjectIntensityDistribution()
    radial.wants_zernikes.value = measureobjectintensitydistribution.Z_MAGNITUDES_AND_PHASE
    radial.add_object()
    for group, name in zip(radial.objects, COMPARTMENTS):  # noqa: B905 - Python 3.8 has no strict
        group.object_name.value = name
    pairs = measurecolocalization.MeasureColocalization()
    pairs.images_or_objects.value = measurecolocalization.M_OBJECTS
    for module in (shape, intensity, texture, granularity, pairs):
        module.objects_list.value = objects
    for module in (intensity, texture, granularity, radial, pairs):
        module.images_list.value = images
    neighbors = []
    for name in COMPARTMENTS:
        for method in (measureobjectneighbors.D_ADJACENT, measureobjectneighbors.D_WITHIN):
            module = measureobjectneighbors.MeasureObjectNeighbors()
            module.object_name.value = module.neighbors_name.value = name
            module.distance_method.value, module.distance.value = method, 5
            neighbors.append(module)
    return {
        "AreaShape": [shape],
        "Intensity": [intensity],
        "Texture": [texture],
        "Granularity": [granularity],
        "RadialDistribution": [radial],
        "Correlation": [pairs],
        "Neighbors": neighbors,
    }


def measure(field, channels, save=None):
    """CPU seconds of each family of modules; with `save`, all columns and values of both compartments."""
    image = np.load(Path(field) / "image.npy") / 65535.0
    image_set_list, object_set, measurements = ImageSetList(), ObjectSet(), Measurements()
    image_set = image_set_list.get_image_set(0)
    for name, plane in zip(channels, image):  # noqa: B905
        image_set.add(name, Image(plane, convert=False, scale=65535))
    for name in COMPARTMENTS:
        objects = Objects()
        objects.segmented = np.load(Path(field) / f"{name}.npy").astype(np.int32)
        object_set.add_objects(objects, name)
    seconds, pipeline = {}, Pipeline()
    for family, modules in make_modules(channels).items():
        for module in modules:
            module.set_module_num(len(pipeline.modules()) + 1)
            pipeline.add_module(module)
            workspace = Workspace(pipeline, module, image_set, object_set, measurements, image_set_list)
            workspace.show_frame = False
            started, wall = time.process_time(), time.perf_counter()
            module.run(workspace)
            spent, wall = time.process_time() - started, time.perf_counter() - wall
            if spent > 1.1 * wall + 0.05:
                raise SystemExit(f"{family}: more than one thread has worked")
            seconds[family] = seconds.get(family, 0.0) + spent
    if save:
        for compartment in COMPARTMENTS:
            names = [name for name in measurements.get_feature_names(compartment) if name != "Number_Object_Number"]
            columns = [np.asarray(measurements.get_current_measurement(compartment, name), float) for name in names]
            np.savez(f"{save}-CellProfiler-{compartment}.npz", columns=names, values=np.column_stack(columns))
    return seconds


def main():
    """Answer requests, one JSON per line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            found = measure(**json.loads(line))
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
