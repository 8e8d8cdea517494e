"""ND2 files of Nikon's NIS-Elements for the `bioio` reader, by nd2.

bioio's plugin for them, which rests on nd2 too, opens the file anew for each thing that it is asked and makes the metadata of all
frames for each plane, so that a scan takes a time that grows with the square of the positions. A scene is a position of the
stage, called as in NIS-Elements.
"""

from plateloom.readers.ome_tiff import distinct_names
from plateloom.readers.scenes import Scene, check_size, finite_number, pixel_size

PACKAGE = "nd2"
UNIX_EPOCH = 2440587.5  # as a Julian day
DAY = 86400  # [s]
KEPT_BYTES = 64_000_000  # of a file's frames; a frame has all channels, and a field is read channel by channel


class _File:
    """An opened file, which frame shows what, and the frames read last; closed when nobody uses it any more."""

    def __init__(self, path):
        from nd2 import ND2File

        self.frames, self.kept = {}, {}
        self.nd2 = ND2File(path)
        for frame, at in enumerate(self.nd2.loop_indices or ({},)):
            self.frames[at.get("P", 0), at.get("T", 0), at.get("Z", 0)] = frame

    def read(self, number):
        """A frame, shape (C, Y, X), from memory if it is one of the last."""
        if number not in self.kept:
            sizes = self.nd2.sizes
            frame = self.nd2.read_frame(number).reshape(sizes.get("C", 1), sizes["Y"], sizes["X"])
            if not frame.any():  # nd2 makes zeros of a frame that the file lacks
                raise ValueError("holds no counts: the run was stopped before this frame")
            while self.kept and (len(self.kept) + 1) * frame.nbytes > KEPT_BYTES:
                del self.kept[next(iter(self.kept))]  # the oldest
            self.kept[number] = frame
        return self.kept[number]

    def __del__(self):
        if hasattr(self, "nd2"):
            self.kept.clear()  # views of the file, which would not let go of it
            self.nd2.close()


def open_file(path):
    """Open a file, for one thread at a time; ImportError without the package."""
    return _File(path)


def describe_scenes(file):
    """What a file says of its positions, a `Scene` each.

    Parameters
    ----------
    file : object
        From `open_file`.

    Returns
    -------
    list of Scene
    """
    sizes, channels = file.nd2.sizes, file.nd2.metadata.channels
    count, times, depth = (int(sizes.get(axis, 1)) for axis in "CTZ")
    said = [one.channel for one in channels]
    step = dict(zip("xyz", file.nd2.voxel_size(), strict=True))
    known = dict(zip("xyz", channels[0].volume.axesCalibrated, strict=True))
    x, y, z = (finite_number(step[axis], positive=True) if known[axis] else None for axis in "xyz")
    names = [place.name for loop in file.nd2.experiment if loop.type == "XYPosLoop" for place in loop.parameters.points]
    scenes = []
    for scene in range(int(sizes.get("P", 1))):
        place, taken = (None, None), {}
        for t in range(times):
            for plane in range(depth):
                frame = file.nd2.frame_metadata(file.frames[scene, t, plane]).channels[0]
                if (t, plane) == (0, 0):
                    place = (
                        finite_number(frame.position.stagePositionUm.y),
                        finite_number(frame.position.stagePositionUm.x),
                    )
                if (day := frame.time.absoluteJulianDayNumber) >= 1:  # else it has no date
                    taken |= {(t, c, plane): (day - UNIX_EPOCH) * DAY for c in range(count)}
        scenes.append(
            Scene(
                (names[scene : scene + 1] or [None])[0] or f"XYPos:{scene}",
                (1, times, count, depth),
                distinct_names([one.name or "" for one in said]),
                [f"{one.color.r:02X}{one.color.g:02X}{one.color.b:02X}" for one in said],
                [finite_number(one.emissionLambdaNm, positive=True) for one in said],
                set(sizes) <= set("PTCZYX"),
                pixel_size(y, x),
                z,
                [place],
                taken,
            )
        )
    return scenes


def read_plane(file, scene, index):
    """Read one plane.

    Parameters
    ----------
    file : object
        From `open_file`.
    scene, index : int
        The scene's place in the file, and the plane's among its time points, channels and planes; from 0.

    Returns
    -------
    ndarray, shape (Y, X)
    """
    sizes = file.nd2.sizes
    check_size(sizes["Y"], sizes["X"], file.nd2.dtype.itemsize * sizes.get("C", 1))
    rest, z = divmod(index, sizes.get("Z", 1))
    t, c = divmod(rest, sizes.get("C", 1))
    return file.read(file.frames[scene, t, z])[c].copy()
