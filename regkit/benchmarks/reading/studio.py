"""Make ready what is read: copies of the files, and what is said of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from regkit.benchmarks.reading.candidates import COPIES, Film, Task, failing
from regkit.benchmarks.reading.report import Facts
from regkit.data.cache import Store
from regkit.data.readers import PyAV
from regkit.data.timeline import VideoError, opened, read_timeline
from regkit.errors import InputError

# Frames of a whole file lie in memory twice when tutorials stack them.
MOST_BYTES = 2 << 30


def film(name: str, paths: Sequence[str], task: Task, folder: Path) -> Film:
    """Copy the files as regkit's caches do, and see how large their scaled frames are.

    A single file is given a second name, so that none profits from reading the same file again.
    Raises: InputError when a file is no video, or too long for those who read it whole.
    """
    alike = len(paths) == 1
    if alike:
        link = folder / f"again_{Path(paths[0]).name}"
        link.symlink_to(Path(paths[0]).absolute())
        paths = [*paths, str(link)]
    sides = []
    for path in paths:
        try:
            timeline = read_timeline(path)
            size = 3 * len(timeline) * timeline.width_px * timeline.height_px
            if size > MOST_BYTES:
                raise InputError(
                    f"throughput got {path}, whose frames take {size / 2**30:.1f} GiB at once, as "
                    f"the baseline reads them; give files of {MOST_BYTES >> 30} GiB at most."
                )
            frame = PyAV().frames(path, np.array([0]), task.short_px, timeline)
            sides.append(frame.shape[1:3])
            for kind in COPIES:
                Store(str(folder), kind, task.short_px).add(path, timeline)
        except VideoError as error:
            raise InputError(f"throughput cannot read {error}. Give other files.") from error
    made = Film(name, paths, sides, str(folder), alike)
    return replace(made, left_out=failing(made, task))


def describe(made: Film, task: Task) -> Facts:
    """Say what the files hold; codec and size are those of the first."""
    paths = made.paths[:1] if made.alike else made.paths
    timelines = [read_timeline(path) for path in paths]
    with opened(paths[0]) as (_, stream):
        codec = stream.codec_context.name
    gaps = [np.diff(np.append(np.flatnonzero(t.keyframe), len(t))).max() for t in timelines]
    stores = {kind: Store(made.root, kind, task.short_px) for kind in COPIES}
    copies = {
        kind: sum(store.entry(path).stat().st_size for path in paths) / 2**20
        for kind, store in stores.items()
    }
    return Facts(
        name=made.name,
        num_files=len(paths),
        codec=codec,
        width_px=timelines[0].width_px,
        height_px=timelines[0].height_px,
        frames=sum(len(timeline) for timeline in timelines),
        seconds=sum(timeline.duration_s for timeline in timelines),
        keyframes=int(max(gaps)),
        mib=sum(Path(path).stat().st_size for path in paths) / 2**20,
        copies_mib=copies,
        left_out=dict(made.left_out),
    )
