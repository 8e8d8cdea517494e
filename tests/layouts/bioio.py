"""Files for bioio, one per well with a scene per field, or one for all. Constructed: OME-TIFFs, since that plugin of bioio is
the one that tests have; what tells wells apart is the names of files or of scenes."""

from layouts import ome_tiff


def write(
    folder,
    planes,
    *,
    pixel_size_um=0.65,
    positions=None,
    shape=(8, 12),
    channels=("DNA", "GFP"),
    scenes=False,
    **options,
):
    """Write a plate.

    Parameters
    ----------
    folder : path
    planes : dict of tuple to ndarray of uint16, shape (Y, X)
        By (well, field, channel, z, t), all but the well counted from 1; every field has all of its planes.
    pixel_size_um : float
        [µm/px].
    positions : dict of int to tuple of float, optional
        Center of each field, y and x [µm].
    scenes : bool
        Whether all wells lie in one file, with their names in those of its scenes, as ``P2-B03``.
    **options
        Of `layouts.ome_tiff.write`.

    Returns
    -------
    list of str
        Names of the files.
    """
    change = options.pop("change", None)

    def rename(ome):
        for image in ome.iter("Image"):
            if scenes:
                well, _, field = image.get("Name").split()
                image.set("ID", f"Image:P{field}-{well}")
        if change:
            change(ome)

    return ome_tiff.write(
        folder,
        planes,
        pixel_size_um=pixel_size_um,
        positions=positions,
        shape=shape,
        channels=channels,
        per="plate" if scenes else "well",
        xml="own",
        plate=False,
        change=rename,
        **options,
    )
