"""Write a film again with the class of each moment below the picture."""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import cache, lru_cache
from pathlib import Path

import av
import matplotlib
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from regkit.data.decode import pictures
from regkit.data.timeline import LostError, VideoError
from regkit.files import replacing
from regkit.inference.predict.film import Film
from regkit.inference.predict.result import Result
from regkit.inference.predict.windows import Picture, edges_of

_TICKS = 90_000  # a second; the clock of MPEG, which all rates divide well
_LEAST_PX = 180  # short side; smaller films are enlarged, or nobody could read the text
_UNKNOWN_PX = 360  # short side of a film whose header tells none
_LEAST_BAND_PX = 34
_PAPER, _INK, _FAINT, _BAR = (250, 250, 250), (25, 25, 25), (215, 215, 215), (213, 94, 0)
_OPTIONS = {"crf": "21", "preset": "veryfast", "x264-params": "colormatrix=smpte170m"}


Drawn = UInt8[np.ndarray, "rows columns 3"]


def write(film: Film, path: Path, threads: int = 1) -> None:
    """Write an H.264 film: upright, each frame when it was shown, without sound.

    It is read again, at its own size, one frame after the other. Films of which the packets do not
    tell the truth are counted, as they were when they were classified. What cannot be read any
    further ends the film there.
    """
    for exact in (film.timeline.exact, False):
        try:
            with replacing(path) as draft:
                _write(film, draft, exact, threads)
        except LostError:
            continue
        return


def _write(film: Film, path: Path, exact: bool, threads: int) -> None:
    edges = edges_of(film.timeline)
    times = np.round(edges * _TICKS).astype(np.int64)
    frames = _frames(film, exact, threads)
    with av.open(str(path), "w", format="mp4") as container:
        stream: VideoStream | None = None
        for number, picture in enumerate(frames):
            drawn = _with_band(picture, film.result, float(edges[number]))
            stream = stream or _stream(container, drawn, len(times) - 1, float(edges[-1]))
            frame = VideoFrame.from_ndarray(drawn, format="rgb24")
            frame.pts = int(times[number])
            frame.duration = int(times[number + 1] - times[number])
            frame.time_base = Fraction(1, _TICKS)
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode())


def _frames(film: Film, exact: bool, threads: int) -> Iterator[Picture]:
    timeline = replace(film.timeline, exact=exact)
    sides = min(timeline.width_px, timeline.height_px) or _UNKNOWN_PX
    count = len(timeline) if film.broken is None else film.result.windows[-1].last
    try:
        yield from pictures(film.source, np.arange(count), max(sides, _LEAST_PX), timeline, threads)
    except VideoError:
        if film.broken is None:
            raise


def _stream(
    container: OutputContainer, picture: Drawn, num_frames: int, end_s: float
) -> VideoStream:
    rate = Fraction(num_frames / end_s if end_s > 0 else 25).limit_denominator(1001)
    stream = container.add_stream("libx264", rate=rate or 1, options=_OPTIONS)
    assert isinstance(stream, VideoStream)
    stream.height, stream.width = picture.shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.time_base = stream.codec_context.time_base = Fraction(1, _TICKS)
    return stream


def _with_band(picture: Picture, result: Result, moment_s: float) -> Drawn:
    """Put a band below the picture; sides become even, by a row or column of the band's paper."""
    height, width = picture.shape[:2]
    band_px = max(_LEAST_BAND_PX, height // 14)
    size = (height + band_px + 1) // 2 * 2, (width + 1) // 2 * 2
    label, probability = result.at(moment_s)
    drawn = np.empty((*size, 3), dtype=np.uint8)
    drawn[:] = _PAPER
    drawn[:height, :width] = picture
    drawn[height:] = _band(
        (size[1], size[0] - height), result.name(label), round(probability, 2), clock(moment_s)
    )
    return drawn


@lru_cache(maxsize=8)
def _band(
    size: tuple[int, int], name: str, probability: float, now: str
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the class, the bar of its probability, and the time."""
    width, height = size
    image = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(image)
    bar = max(4, height // 7)
    font = _font(int((height - bar) * 0.58))
    pen.rectangle((0, 0, width - 1, bar - 1), fill=_FAINT)
    if probability > 0:
        pen.rectangle((0, 0, round(probability * width) - 1, bar - 1), fill=_BAR)
    middle, edge = bar + (height - bar) // 2, height // 5
    right = f"{probability:.0%}  {now}"
    room = width - 3 * edge - pen.textlength(right, font=font)
    pen.text((width - edge, middle), right, fill=_INK, font=font, anchor="rm")
    pen.text((edge, middle), _fitting(pen, name, font, room), fill=_INK, font=font, anchor="lm")
    return np.asarray(image)


def _fitting(pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    if pen.textlength(text, font=font) <= room:
        return text
    while text and pen.textlength(text + "…", font=font) > room:
        text = text[:-1]
    return text + "…"


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """Load the font that matplotlib brings: it has the letters of Europe."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), size_px)


def clock(moment_s: float) -> str:
    """Write a moment as 1:02:03.4."""
    tenths = int(moment_s * 10 + 1e-3)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{start}:{rest / 10:04.1f}"
