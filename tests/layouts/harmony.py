"""A plate as Harmony exports it: an index in XML beside the planes, as Operetta and Opera Phenix write it."""

from datetime import datetime, timedelta
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import tifffile

from plateloom.wells import parse_well

NAMESPACES = {
    4: "http://www.perkinelmer.com/PEHH/HarmonyV4",
    5: "http://www.perkinelmer.com/PEHH/HarmonyV5",
    6: "http://www.perkinelmer.com/PEHH/HarmonyV6",
    7: "43B2A954-E3C3-47E1-B392-6635266B0DD3/HarmonyV7",
}
START = datetime.fromisoformat("2022-12-19T10:18:52+01:00")
WAVELENGTHS = (456, 525, 599, 706)
FLATFIELD = (
    "{{Background: {{Character: NonFlat, Mean: {mean}, NoiseConst: 1.3, Profile: {{Coefficients: [[1.1], [-0.02, 0.03], "
    "[-0.8, -0.08, -0.3]], Dims: [{x}, {y}], Origin: [{cx}, {cy}], Scale: [{sx}, {sy}], Type: Polynomial}}, Quality: "
    "1.0}}, Channel: {number}, ChannelName: {name}, Version: Acapella:2013}}"
)


def write(
    folder,
    planes,
    *,
    pixel_size_um=0.65,
    positions=None,
    shape=(8, 12),
    channels=("DNA", "GFP"),
    version=5,
    images="Images",
    index=None,
    matrix=((1.0, 0.0), (0.0, -1.0)),
    z_step_um=2.0,
    interval_s=600.0,
    absent=(),
    states=None,
    flatfields=True,
    edit=lambda text: text,
):
    """Lay out a constructed plate: given pixels under vendor's names, with an index that describes them.

    Parameters
    ----------
    folder : path
    planes : dict of (well, field, channel, z, t) to ndarray of uint16, shape (Y, X)
        All but the well counted from 1.
    pixel_size_um : float
        [µm/px].
    positions : dict of int to (float, float), optional
        y and x of each field's center, y downwards [µm].
    shape : tuple of int
        Rows and columns of the plate.
    channels : tuple of str
    version : int
        Of Harmony: 4 and 5 describe channels in each image, 6 and 7 once; 7 names planes differently, counts times
        from 1 and has a folder for each well.
    images : str
        Folder of the index (and of the planes), below the given one; may be empty.
    index : str, optional
        The index's name.
    matrix : 2 × 2 floats
        Of the camera's axes on the stage's.
    z_step_um, interval_s : float
    absent : container of keys
        Planes that are listed and not written.
    states : dict of keys to str, optional
        Where it is not Ok.
    flatfields : bool
    edit : callable(str) -> str
        Applied to the index.

    Returns
    -------
    Path
        The index.
    """
    parent = Path(folder, images)
    parent.mkdir(parents=True, exist_ok=True)
    height, width = next(iter(planes.values())).shape
    described, references, listed = {}, {}, []
    for number, name in enumerate(channels, 1):
        described[number] = _describe_channel(name, number, pixel_size_um, (width, height), matrix)
    for key, plane in sorted(planes.items()):
        well, field, channel, z, t = key
        row, column = (count + 1 for count in parse_well(well))
        url = f"r{row:02d}c{column:02d}f{field:02d}p{z:02d}-ch{channel}sk{t}fk1fl1.tiff"
        if version == 7:
            url = f"r{row:02d}c{column:02d}\\r{row:02d}c{column:02d}f{field:02d}p{z:02d}-ch{channel:02d}t{t:02d}.tiff"
        if key not in absent:
            path = parent / url.replace("\\", "/")
            path.parent.mkdir(exist_ok=True)
            tifffile.imwrite(path, plane)
        number = f"{row:02d}{column:02d}K{t}F{field}P{z}R{channel}"
        references.setdefault((row, column), []).append(number)
        y_um, x_um = (positions or {}).get(field, (0.0, 0.0))
        listed.append(
            f"""    <Image Version="1">
      <id>{number}</id>
      <State>{(states or {}).get(key, "Ok")}</State>
      <URL>{escape(url)}</URL>
      <Row>{row}</Row>
      <Col>{column}</Col>
      <FieldID>{field}</FieldID>
      <PlaneID>{z}</PlaneID>
      <TimepointID>{t - (version < 7)}</TimepointID>
      <ChannelID>{channel}</ChannelID>
      <FlimID>1</FlimID>
{described[channel] if version < 6 else "      <SequenceID>1</SequenceID>"}
      <PositionX Unit="m">{(matrix[0][0] * x_um + matrix[0][1] * y_um) * 1e-6!r}</PositionX>
      <PositionY Unit="m">{(matrix[1][0] * x_um + matrix[1][1] * y_um) * 1e-6!r}</PositionY>
      <PositionZ Unit="m">{(z - 1) * z_step_um * 1e-6!r}</PositionZ>
      <AbsPositionZ Unit="m">{0.1375 + (z - 1) * z_step_um * 1e-6!r}</AbsPositionZ>
      <MeasurementTimeOffset Unit="s">{(t - 1) * interval_s}</MeasurementTimeOffset>
      <AbsTime>{(START + timedelta(seconds=(t - 1) * interval_s)).isoformat()}</AbsTime>
    </Image>
"""
        )
    maps = ""
    if flatfields:
        profiles = [_flatfield(name, number, (width, height)) for number, name in enumerate(channels, 1)]
        maps += "    <Map>\n" + "".join(profiles[::-1]) + "    </Map>\n"
    if version >= 6:
        entries = (
            f'      <Entry ChannelID="{number}">\n{text}\n      </Entry>\n' for number, text in described.items()
        )
        maps += "    <Map>\n" + "".join(entries) + "    </Map>\n"
    selected = "".join(f'      <Well id="{row:02d}{column:02d}" />\n' for row, column in references)
    text = f"""<?xml version="1.0" encoding="utf-8"?>
<EvaluationInputData xmlns:xsd="http://www.w3.org/2001/XMLSchema" Version="{1 + (version > 5)}" xmlns={quoteattr(NAMESPACES[version])}>
  <User>someone</User>
  <InstrumentType>Phenix</InstrumentType>
  <Plates>
    <Plate>
      <PlateID>Plate 1</PlateID>
      <MeasurementStartTime>{START.isoformat()}</MeasurementStartTime>
      <PlateRows>{shape[0]}</PlateRows>
      <PlateColumns>{shape[1]}</PlateColumns>
{selected}    </Plate>
  </Plates>
  <Wells>
{"".join(_list_well(*well, numbers) for well, numbers in references.items())}  </Wells>
  <Maps>
{maps}  </Maps>
  <Images>
{"".join(listed)}  </Images>
</EvaluationInputData>
"""
    path = parent / (index or ("Index.idx.xml" if version < 6 else "Index.xml"))
    path.write_text(edit(text), encoding="utf-8-sig")
    return path


def _describe_channel(name, number, pixel_size_um, size, matrix):
    """What is the same for all images of a channel."""
    (a, b), (c, d) = matrix
    return f"""      <ChannelName>{escape(name)}</ChannelName>
      <ImageType>Signal</ImageType>
      <ChannelType>Fluorescence</ChannelType>
      <ImageResolutionX Unit="m">{pixel_size_um * 1e-6!r}</ImageResolutionX>
      <ImageResolutionY Unit="m">{pixel_size_um * 1e-6!r}</ImageResolutionY>
      <ImageSizeX>{size[0]}</ImageSizeX>
      <ImageSizeY>{size[1]}</ImageSizeY>
      <BinningX>2</BinningX>
      <BinningY>2</BinningY>
      <MainEmissionWavelength Unit="nm">{WAVELENGTHS[(number - 1) % 4]}</MainEmissionWavelength>
      <ObjectiveMagnification Unit="">20</ObjectiveMagnification>
      <OrientationMatrix>[[{a},{b},0,-35.6],[{c},{d},0,67.3],[0,0,1.33,-15.125]]</OrientationMatrix>"""


def _flatfield(name, number, size):
    """One entry of the map of flat-fields."""
    x, y = size
    text = FLATFIELD.format(
        mean=100.5 * number, x=x, y=y, cx=(x - 1) / 2, cy=(y - 1) / 2, sx=1 / x, sy=1 / y, number=number, name=name
    )
    return f"""      <Entry ChannelID="{number}">
        <FlatfieldProfile>{escape(text)}</FlatfieldProfile>
      </Entry>
"""


def _list_well(row, column, numbers):
    """The list of a well's images, which says nothing that the images do not."""
    references = "".join(f'      <Image id="{number}" />\n' for number in numbers)
    return f"""    <Well>
      <id>{row:02d}{column:02d}</id>
      <Row>{row}</Row>
      <Col>{column}</Col>
{references}    </Well>
"""
