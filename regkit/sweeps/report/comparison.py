"""Pictures of all runs together, where TensorBoard finds them beside the runs."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from time import time
from typing import Any

from PIL import Image
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

# Protocol buffers are made when they are imported: no checker of types sees them.
Event: Any = vars(event_pb2)["Event"]
Summary: Any = vars(summary_pb2)["Summary"]
FOLDER, WIDTH_PX = "comparison", 900


def write_comparison(folder: Path, pictures: Mapping[str, bytes]) -> None:
    """Write PNG pictures by name, in the size of a screen; those of an earlier report go."""
    target = folder / FOLDER
    if target.is_dir():
        for path in target.glob("events.out.tfevents.*"):
            path.unlink()
    if not pictures:
        return
    writer = EventFileWriter(str(target))
    for name, png in pictures.items():
        value = Summary.Value(tag=f"{FOLDER}/{name}", image=_smaller(png))
        writer.add_event(Event(wall_time=time(), step=0, summary=Summary(value=[value])))
    writer.close()


def _smaller(png: bytes) -> Any:
    with Image.open(BytesIO(png)) as image:
        size = WIDTH_PX, round(image.height * WIDTH_PX / image.width)
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    file = BytesIO()
    small.save(file, format="png")
    width, height = size
    return Summary.Image(
        height=height, width=width, colorspace=3, encoded_image_string=file.getvalue()
    )
