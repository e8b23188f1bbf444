"""Stream the user's videos from shards, out of a folder or an object store."""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from regkit.data.clips import ClipDataset, loader_options
from regkit.data.decode import Frames, Indices
from regkit.data.readers import READERS, Reader
from regkit.data.shards import litdata, opened, part, read_splits, video_of
from regkit.data.timeline import Source, Timeline
from regkit.data.video import Splits, Video
from regkit.data.video_data import VideoData
from regkit.errors import InputError

_MOVED = ("input_dir_path", "input_dir_url", "cache_dir_path")  # litdata's names of places


@dataclass(kw_only=True, eq=False, repr=False)
class ShardedData(VideoData):
    """Read shards that `shards.write_shards` has written, by the package litdata.

    Training takes the shards in an order drawn for each epoch, mixed within; several ranks leave
    out the rest of an epoch that does not divide among them. Evaluation takes every video once, in
    an order that depends on `num_workers` alone. A checkpoint in the middle of an epoch goes on
    with the next batch.

    root: the folder, or a URL: s3://bucket/folder, gs://bucket/folder. Shards of a URL are kept in
        `cache_root` up to `cache_gib`.
    storage_options: of the store, as litdata.StreamingDataset takes them.

    Raises: InputError when there are no such shards.
    """

    root: str
    storage_options: Mapping[str, Any] | None = None

    def __post_init__(self):
        super().__post_init__()
        self._check("cache", self.cache == "none", '"none"; shards are copied as they are')
        self._check("seed", self.seed < 2**32, "less than 2^32")
        for name in ("cv_folds", "bootstrap"):
            reason = "null; shards hold one split each and are read whole. Use the files themselves"
            self._check(name, getattr(self, name) is None, reason)

    def videos(self) -> Splits:
        """Read the lists that lie beside the shards."""
        return read_splits(self.root, self._options())

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if ":" in self.root and not Path(self.root).exists():
            options["cache_dir"] = str(Path(self._root(), "shards"))
            options["max_cache_size"] = int(self.cache_gib * 2**30)
        if self.storage_options is not None:
            options["storage_options"] = dict(self.storage_options)
        return options

    def _loader(self, split: str, training: bool, views: int = 1, crops: int = 1) -> "StreamLoader":
        package, videos = litdata("ShardedData"), getattr(self.known_splits(), split)
        if not videos:
            raise InputError(f"ShardedData got root={self.root!r}, which has no {split} videos.")
        stream_of = partial(opened, part(self.root, split), **self._options())
        shelf = _Shelf(stream_of, len(videos), READERS[self.reader](1 if self.num_workers else 0))
        # Workers live for one epoch, in which they see no video twice: memory would not pay.
        cut = self.cut(views, crops)
        dataset = ClipDataset(shelf, cut, shelf, training, self.seed, 0, self.on_error)
        dataset.watch(self.num_workers)
        clips = _Clips(dataset, shelf)
        # Training on several ranks drops what does not divide (None); evaluation drops nothing.
        drop = None if training else False
        stream = stream_of(shuffle=training, seed=self.seed, drop_last=drop, transform=clips)
        clips.stream = stream
        options = loader_options(self.num_workers, float(self.timeout_s), self.seed)
        size = math.ceil(self.batch_size / (views * crops))
        loader = package.StreamingDataLoader(stream, batch_size=size, **options)
        return StreamLoader(loader, self._epoch_ended)

    def _epoch_ended(self) -> bool:
        if self.trainer is None:
            return False
        return self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


class StreamLoader:
    """Load batches from shards; its state, which checkpoints keep, goes on within an epoch.

    ended: whether the epoch is over, which may be before the shards are (limit_train_batches).
    """

    def __init__(self, loader: Any, ended: Callable[[], bool]):
        self.loader = loader
        self._ended = ended
        self._resumes = False

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self._resumes:
            # litdata forgets that it has resumed where its batches run out; Lightning, which
            # counts them, never gets there.
            self.loader.restore = False
        self._resumes = False
        yield from self.loader

    def state_dict(self) -> dict[str, Any]:
        """Say how far the epoch is."""
        return {**self.loader.state_dict(), "ended": self._ended()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch that was handed out.

        Raises: InputError when another seed has drawn the order.
        """
        here, saved = self.loader.state_dict()["dataset"], state["dataset"]
        if here["seed"] != saved["seed"]:
            raise InputError(
                f"ShardedData got seed={here['seed']}, but the checkpoint is from the middle of an "
                f"epoch that seed={saved['seed']} has drawn. Give that seed."
            )
        if state["ended"]:
            self.loader.current_epoch = state["current_epoch"]
            return
        moved = {name: here[name] for name in _MOVED}
        self._resumes = True
        self.loader.load_state_dict({**state, "dataset": {**saved, **moved}})


class _Shelf(Sequence[Video], Reader):
    """Hold the video that is read just now: a list of videos, and a reader of their files."""

    def __init__(self, opened: Callable[[], Any], size: int, reader: Reader):
        self._opened = opened
        self._size = size
        self._reader = reader
        self._items: Any = None  # opened for the first substitute, in the worker
        self._item: dict[str, Any] | None = None

    def put(self, item: dict[str, Any]) -> None:
        self._item = item

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, number: int) -> Video:  # pyright: ignore[reportIncompatibleMethodOverride]  # no slices
        if self._item is None or self._item["number"] != number:
            self._items = self._opened() if self._items is None else self._items
            self.put(self._items[number])
        assert self._item is not None
        return video_of(self._item)

    def timeline(self, source: Source) -> Timeline:
        return self._reader.timeline(self._file(source))

    def frames(self, source: Source, indices: Indices, short_px: int, timeline: Timeline) -> Frames:
        return self._reader.frames(self._file(source), indices, short_px, timeline)

    def _file(self, source: Source) -> io.BytesIO:
        assert self._item is not None
        file = io.BytesIO(self._item["video"])
        file.name = str(source)
        return file


class _Clips:
    """Turn stored items into samples; litdata calls it where the item is read."""

    def __init__(self, dataset: ClipDataset, shelf: _Shelf):
        self.dataset = dataset
        self.shelf = shelf
        self.stream: Any = None  # knows the epoch

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        self.shelf.put(item)
        return self.dataset[self.stream.current_epoch, item["number"]]
