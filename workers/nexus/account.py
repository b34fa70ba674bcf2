"""The account in a NeXus file: what became of every frame that was promised, as a person reads it.

::

    /entry/ledger               NXcollection
        duplicates              results that came again and were discarded, −1 until the run is complete
        <stream>                NXcollection, one per detector
            expected, live, backfilled, quarantined, lost       frames, −1 until the run is complete
            status              (n,) u1: the recipes' own, not a copy
            intervals           table of (first, stop, status): frames first to stop − 1 ended so
            reasons             table of (frame, status, reason) of those quarantined or lost
            drops               table of (cause, frames): frames that were seen to be dropped on their way. They were
                                reduced later, if a file has them; what was dropped unseen isn't among them
            recipes, cfg        what was made of the frames, and the hash that stands for it
            policy              what becomes of frames that find no room on their way

Like everything in the file it is made before the first frame comes and filled at the end: SWMR allows nothing new.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import h5py
import numpy as np

from ..wire.messages import STATUS_NAMES, StreamOpen

COUNTS: Final = ("expected", *STATUS_NAMES)
UNKNOWN: Final = -1
MAX_REASON: Final = 500

INTERVAL: Final = np.dtype([("first", "i8"), ("stop", "i8"), ("status", "S12")])
DROP: Final = np.dtype([("cause", "S100"), ("frames", "i8")])
REASON: Final = np.dtype([("frame", "i8"), ("status", "S12"), ("reason", f"S{MAX_REASON}")])

_MEANING: Final = {
    "expected": "frames that the documents promised",
    "live": "frames that were reduced as they came",
    "backfilled": "frames that were dropped on the way and reduced from the detector's files",
    "quarantined": "frames that are there and can't be reduced; their values are NaN",
    "lost": "frames that neither came nor are in the files; their values are NaN",
}


class LedgerGroup:
    """The group ``/entry/ledger``.

    Parameters
    ----------
    entry
        Where it is made. No recipe's group may be there before it.
    """

    def __init__(self, entry: h5py.Group) -> None:
        self._group = _collection(entry, "ledger", "what became of every frame that was promised")
        self._duplicates = _count(self._group, "duplicates", "results that came again and were discarded")
        self._streams: dict[str, h5py.Group] = {}

    def add(self, stream: StreamOpen, status: h5py.Dataset) -> None:
        """Make a detector's part; ``status`` : (n,) u1, of any of its recipes."""
        group = self._streams[stream.stream] = _collection(
            self._group, stream.stream, f"the frames of {stream.stream}, numbered from 0 as they were triggered"
        )
        for name in COUNTS:
            _count(group, name, _MEANING[name])
        group["status"] = status
        for name, kind, meaning in (
            ("intervals", INTERVAL, "frames [first, stop) ended with this status"),
            ("reasons", REASON, "why a frame has no result"),
            ("drops", DROP, "frames that were seen to be dropped on their way, by cause"),
        ):
            table = group.create_dataset(name, shape=(0,), maxshape=(None,), chunks=(64,), dtype=kind)
            table.attrs["long_name"] = meaning
        group["cfg"] = stream.cfg
        group["cfg"].attrs["long_name"] = "hash of the recipes, their parameters and their reducers' versions"
        group["policy"] = stream.policy
        group["policy"].attrs["long_name"] = "what becomes of frames that find no room on their way"
        recipes = {each.name: {"reducer": each.reducer, "params": json.loads(each.params)} for each in stream.recipes}
        group["recipes"] = json.dumps(recipes)
        group["recipes"].attrs["long_name"] = "what was made of each frame"

    def finish(self, account: Mapping[str, Mapping[str, Any]], duplicates: int) -> None:
        """Write what became of the frames; ``account`` : :meth:`~..ledger.reader.LedgerReader.accounting`."""
        self._duplicates[()] = duplicates
        for name, group in self._streams.items():
            mine = account.get(name)
            if mine is None:
                continue
            for count in COUNTS:
                group[count][()] = mine[count]
            ranges = [(first, stop, status) for status in STATUS_NAMES for first, stop in mine["intervals"][status]]
            _fill(group["intervals"], [(first, stop, status.encode()) for first, stop, status in sorted(ranges)])
            ends = {
                frame: status
                for first, stop, status in ranges
                if status in ("quarantined", "lost")
                for frame in range(first, stop)
            }
            reasons = mine.get("reasons", {})
            _fill(
                group["reasons"],
                [
                    (frame, status.encode(), cut(reasons.get(str(frame), "")).encode())
                    for frame, status in sorted(ends.items())
                ],
            )
            drops = sorted(mine.get("drops", {}).items())
            _fill(group["drops"], [(cause.encode()[:100], frames) for cause, frames in drops])


def cut(reason: str) -> str:
    """Return as much of a reason as a table's row holds.

    >>> len(cut("ä" * 500).encode()), cut("bad chunk")
    (500, 'bad chunk')
    """
    return reason.encode()[:MAX_REASON].decode(errors="ignore")


def _collection(parent: h5py.Group, name: str, meaning: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs.update({"NX_class": "NXcollection", "long_name": meaning})
    return group


def _count(group: h5py.Group, name: str, meaning: str) -> h5py.Dataset:
    dataset = group.create_dataset(name, data=np.int64(UNKNOWN))
    dataset.attrs.update({"units": "counts", "long_name": meaning})
    return dataset


def _fill(table: h5py.Dataset, rows: list[tuple[Any, ...]]) -> None:
    table.resize((len(rows),))
    if rows:
        table[:] = np.array(rows, table.dtype)
