"""Videos in shards: few large files, made to be read from an object store."""

import gzip
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from regkit.data.video import SPLITS, Splits, Video
from regkit.errors import InputError
from regkit.files import replacing

_INDEX = "index"  # the folder beside those of the splits; it holds one item, the lists of videos
_FORMATS = ("bytes", "int")  # what shards hold, as litdata calls it
_AHEAD = 2  # files read ahead by each thread
_LARGEST = 2**32 - 2**20  # bytes; litdata points into a shard by 32 bits


def litdata(who: str) -> Any:
    """Return the package litdata.

    Raises: InputError when it is not installed.
    """
    try:
        import litdata
    except ImportError as error:
        raise InputError(
            f'{who} needs the package litdata; install it with pip install "regkit[stream]".'
        ) from error
    return litdata


def write_shards(
    splits: Splits, folder: str | Path, num_workers: int = 4, chunk_mib: int | float = 64
) -> None:
    """Copy the files of all videos into shards in `folder`, which `ShardedData` reads.

    In each split in an order of its own, because shards are shuffled as wholes: a shard of one
    class would make batches of one class. Files are stored as they are, bad ones too; one of which
    several parts are videos is stored with each of them. The folder appears when all is written.

    chunk_mib: of one shard; a larger file makes a larger shard.
    Raises: InputError when a file cannot be read, or the folder is not empty.
    """
    package, target = litdata("write_shards"), Path(folder).absolute()
    if not 0 < chunk_mib < 4096 or num_workers < 1:
        raise InputError(
            f"write_shards got chunk_mib={chunk_mib}, num_workers={num_workers}; "
            "give a size from 1 to 4095, and 1 or more workers."
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(
            f"write_shards got folder={str(folder)!r}, which is not empty; give another."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    mixed = {}
    for name in SPLITS:
        videos = getattr(splits, name)
        mixed[name] = [videos[i] for i in np.random.default_rng(0).permutation(len(videos))]
    try:
        with replacing(target) as draft:
            with tqdm(total=sum(map(len, mixed.values())), unit="video", file=sys.stderr) as bar:
                for name, videos in mixed.items():
                    bar.set_description(f"shards ({name})")
                    if videos:
                        _write(package, _items(videos, num_workers, bar), draft / name, chunk_mib)
            _write(package, [{"splits": _packed(mixed, splits.classes)}], draft / _INDEX, chunk_mib)
    except OSError as error:
        raise InputError(f"write_shards got folder={str(folder)!r}: {error}.") from error


def read_splits(root: str, options: Mapping[str, Any]) -> Splits:
    """Return what `write_shards` was given, in the order of the shards.

    options: further arguments of litdata.StreamingDataset.
    Raises: InputError when there are no such shards.
    """
    try:
        packed = opened(part(root, _INDEX), **options)[0]["splits"]
    except InputError:
        raise
    except Exception as error:  # each store has errors of its own
        raise InputError(
            f"ShardedData got root={root!r}, where no shards can be read ({type(error).__name__}: "
            f"{error}). Write them with regkit prepare --shards."
        ) from error
    lists = json.loads(gzip.decompress(packed))
    rows = {name: [Video(*row) for row in lists[name]] for name in SPLITS}
    return Splits(**rows, classes=lists["classes"])


def opened(place: str, **options: Any) -> Any:
    """Open the shards of a split, if they hold data alone; litdata would unpickle others.

    options: further arguments of litdata.StreamingDataset.
    Raises: InputError when the index names anything that `write_shards` does not write.
    """
    stream = litdata("ShardedData").StreamingDataset(place, **options)  # reads no shard yet
    index = json.loads(Path(stream.input_dir.path, "index.json").read_text())
    config, names = index["config"], [chunk["filename"] for chunk in index["chunks"]]
    wrong = [form for form in config["data_format"] if form not in _FORMATS]
    wrong += [kind for kind in _containers(config["data_spec"]) if kind != "builtins.dict"]
    wrong += [config[key] for key in ("compression", "encryption") if config.get(key)]
    wrong += [name for name in names if Path(name).name != name]  # a place of its own choice
    if wrong:
        raise InputError(
            f"ShardedData got {place}, whose index.json names {wrong[0]!r}; shards are read that "
            f"hold {' and '.join(_FORMATS)} alone, as regkit prepare --shards writes them."
        )
    return stream


def _containers(spec: str) -> list[Any]:
    """List what an item is made of; what litdata makes of it may be a class of anybody's."""
    nodes, found = [json.loads(spec)[1]], []
    while nodes:
        node = nodes.pop()
        if node["type"] is not None:
            found.append(node["type"])
        nodes += node["children_spec"]
    return found


def part(root: str, name: str) -> str:
    """Return the folder or URL of a split."""
    return f"{root.rstrip('/')}/{name}"


def video_of(item: Mapping[str, Any]) -> Video:
    """Return what a stored item says of its video."""
    return Video(*json.loads(bytes(item["about"])))


def _items(videos: Sequence[Video], num_workers: int, bar: tqdm) -> Iterator[dict[str, Any]]:
    size = num_workers * _AHEAD
    with ThreadPoolExecutor(num_workers) as pool:
        for start in range(0, len(videos), size):
            some = videos[start : start + size]
            for number, (video, data) in enumerate(
                zip(some, pool.map(_bytes_of, some), strict=True), start
            ):
                # Bytes, because litdata opens a text that is the path of a file.
                about = json.dumps(_row(video)).encode()
                yield {"number": number, "video": data, "about": about}
                bar.update()


def _row(video: Video) -> list[Any]:
    return [video.path, video.label, video.group, float(video.start_s), video.end_s]


def _bytes_of(video: Video) -> bytes:
    try:
        data = Path(video.path).read_bytes()
    except OSError as error:
        raise InputError(
            f"write_shards cannot read {video.path} ({error.strerror}). Mend or remove it."
        ) from error
    if len(data) > _LARGEST:
        raise InputError(f"write_shards got {video.path} of 4 GiB or more. Cut it into pieces.")
    return data


def _write(package: Any, items: Any, folder: Path, chunk_mib: int | float) -> None:
    writer = package.streaming.writer.BinaryWriter(
        str(folder), chunk_bytes=max(1, int(chunk_mib * 2**20))
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "An item was larger than the target chunk size")
        for number, item in enumerate(items):
            writer[number] = item
        writer.done()
    writer.merge()


def _packed(mixed: Mapping[str, Sequence[Video]], classes: Sequence[str]) -> bytes:
    lists: dict[str, Any] = {"classes": list(classes)}
    for name, videos in mixed.items():
        lists[name] = [_row(video) for video in videos]
    return gzip.compress(json.dumps(lists).encode())
