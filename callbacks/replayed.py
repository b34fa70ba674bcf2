"""A raw run as the catalog has it, told once more: the documents that a dispatcher needs, in their order.

The catalog joins a data key's files to one array and forgets how many frames each has. Where the ledger had been told,
it is asked; else the files themselves are, and files that are missing are as long as their neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid5

from ..workers.errors import FileError, SettingsError
from ..workers.files.references import STREAMED
from ..workers.intervals import IntervalSet
from ..workers.nexus.layout import joined, local_path
from ..workers.wire.messages import FileSpan
from .access import streams_of

Document = dict[str, Any]
Length = Callable[[str, str], int | None]
"""Given a file's URI and a dataset in it, how many frames it has; None, or a FileError, if it can't be read."""

NAMESPACE: Final = UUID("c0f7d3b2-5f0e-5d7e-8d0a-0f6d0c1b8e55")
"""Of the uids that the catalog doesn't keep."""

HDF5: Final = "application/x-hdf5"


@dataclass(frozen=True, slots=True)
class RawRun:
    """A raw run.

    ``stop`` is None if the run never ended in the catalog. ``spans`` says for each data key where its frames are;
    ``mimetypes`` of what kind its files are. ``streamed`` : of each data key that the detector kept in no
    file, how many frames were promised; of these ``spans`` has what was spilled.
    """

    start: Document
    stop: Document | None
    descriptors: Sequence[Document]
    spans: Mapping[str, Sequence[FileSpan]]
    mimetypes: Mapping[str, str]
    streamed: Mapping[str, int] = field(default_factory=dict)

    @property
    def uid(self) -> str:
        """Its uid."""
        return str(self.start["uid"])

    @property
    def files(self) -> list[Path]:
        """Every file that has frames of it."""
        return sorted({local_path(span.uri) for spans in self.spans.values() for span in spans})

    def devices(self) -> dict[str, list[str]]:
        """Return the data keys of each device that wrote frames."""
        found: dict[str, list[str]] = {}
        for descriptor in self.descriptors:
            for device, keys in descriptor.get("object_keys", {}).items():
                mine = [key for key in keys if key in self._keys and key not in found.get(device, ())]
                if mine:
                    found.setdefault(device, []).extend(mine)
        return found

    def promised(self) -> dict[str, int]:
        """Return how many frames of each device were promised: those that all of its data keys have."""
        return {device: min(self._promised(key) for key in keys) for device, keys in self.devices().items()}

    def unkept(self) -> list[str]:
        """Return the devices of whose frames none lies in any file, though some were promised."""
        return [
            device
            for device, keys in self.devices().items()
            if any(self.streamed.get(key) and not self.spans.get(key) for key in keys)
        ]

    def without_files(self) -> list[str]:
        """Return the devices that kept no file: of their frames those lie in one that were spilled."""
        return [device for device, keys in self.devices().items() if any(key in self.streamed for key in keys)]

    @property
    def _keys(self) -> list[str]:
        return [*self.spans, *(key for key in self.streamed if key not in self.spans)]

    def _promised(self, key: str) -> int:
        return max(_end(self.spans.get(key, ())), self.streamed.get(key, 0))

    def head(self) -> Iterator[tuple[str, Document]]:
        """Give the documents that say what there is: start and descriptors."""
        yield "start", self.start
        for descriptor in self.descriptors:
            yield "descriptor", descriptor

    def tail(self) -> Iterator[tuple[str, Document]]:
        """Give the documents that say which frames there are, and the stop document."""
        descriptor_of = {key: each["uid"] for each in reversed(self.descriptors) for key in each["data_keys"]}
        for key in self._keys:
            spans = self.spans.get(key, ())
            resources: dict[tuple[str, str], str] = {}
            for span in spans:
                place = span.uri, span.dataset
                if place not in resources:
                    uid = resources[place] = str(uuid5(NAMESPACE, "\n".join((self.uid, key, *place))))
                    yield (
                        "stream_resource",
                        {
                            "uid": uid,
                            "run_start": self.uid,
                            "data_key": key,
                            "mimetype": self.mimetypes[key],
                            "uri": span.uri,
                            "parameters": {"dataset": span.dataset, "swmr": True, "chunk_shape": [1]},
                        },
                    )
                yield (
                    "stream_datum",
                    {
                        "uid": str(uuid5(NAMESPACE, "\n".join((resources[place], str(span.first))))),
                        "stream_resource": resources[place],
                        "descriptor": descriptor_of[key],
                        "indices": {"start": span.offset, "stop": span.offset + span.n},
                        "seq_nums": {"start": span.first + 1, "stop": span.first + span.n + 1},
                    },
                )
            yield from self._unkept(key, descriptor_of[key])
        yield "stop", self.stop or self._end_that_never_came()

    def _unkept(self, key: str, descriptor: str) -> Iterator[tuple[str, Document]]:
        """Give the documents of frames that lie in no file."""
        known = IntervalSet((span.first, span.first + span.n) for span in self.spans.get(key, ()))
        gaps = known.gaps(0, self.streamed.get(key, 0))
        resource = str(uuid5(NAMESPACE, "\n".join((self.uid, key, STREAMED))))
        if gaps:
            named = {"uid": resource, "run_start": self.uid, "data_key": key, "mimetype": STREAMED}
            yield "stream_resource", {**named, "uri": "", "parameters": {}}
        for first, stop in gaps:
            yield (
                "stream_datum",
                {
                    "uid": str(uuid5(NAMESPACE, "\n".join((resource, str(first))))),
                    "stream_resource": resource,
                    "descriptor": descriptor,
                    "indices": {"start": first, "stop": stop},
                    "seq_nums": {"start": first + 1, "stop": stop + 1},
                },
            )

    def _end_that_never_came(self) -> Document:
        """Return a stop document for a run whose session died: the pool has to know that it is over."""
        return {
            "uid": str(uuid5(NAMESPACE, f"{self.uid}\nstop")),
            "run_start": self.uid,
            "exit_status": "fail",
            "reason": "the session ended before the run did",
        }


def read_run(
    run: Any,
    *,
    known: Sequence[FileSpan] = (),
    promised: Mapping[str, int] | None = None,
    length: Length | None = None,
) -> RawRun:
    """Read a raw run from the catalog.

    Parameters
    ----------
    run
        The catalog's client of the run.
    known
        Where frames are, as the ledger was told when the run was measured. It may know of more than the catalog, which
        is written seconds later.
    promised
        How many frames of each device the ledger was told of: of a detector without files nobody else knows.
    length
        Says how many frames a file has; asked only for data keys with several files that the ledger knows nothing of.

    Raises
    ------
    SettingsError
        The run has been reduced from another: it isn't raw.
    FileError
        How the frames are spread over a data key's files can't be told.
    """
    start = dict(run.start)
    if "raw_uid" in start:
        raise SettingsError(f"run {start['uid']} is a processed run, of raw run {start['raw_uid']}: name that one")
    mine: dict[str, list[FileSpan]] = {}
    for span in joined(known):
        mine.setdefault(span.key, []).append(span)
    descriptors: list[Document] = []
    spans: dict[str, list[FileSpan]] = {}
    mimetypes: dict[str, str] = {}
    streamed: dict[str, int] = {}
    for client in streams_of(run).values():
        first = dict(client.descriptors[0])
        descriptors += [dict(each) for each in client.descriptors]
        there = set(client.base)
        for key, described in first["data_keys"].items():
            if not str(described.get("external", "")).startswith("STREAM:"):
                continue
            if key in mine:
                mimetypes[key] = HDF5
                spans[key] = mine[key]
            if key not in there:
                n = (promised or {}).get(_device(first, key), 0)
                if n > _end(mine.get(key, ())):
                    streamed[key] = n
                continue
            (source, *_), n = client.base[key].data_sources(), int(client.base[key].shape[0])
            if n <= _end(mine.get(key, ())):
                continue
            mimetypes[key] = source.mimetype
            dataset = str(source.parameters.get("dataset") or "")
            assets = sorted((each for each in source.assets if each.num is not None), key=lambda each: each.num)
            uris = [str(each.data_uri) for each in assets or source.assets]
            found = spread(key, uris, dataset, n, length)
            spans[key] = joined([*mine.get(key, ()), *found])
    return RawRun(start, run.metadata.get("stop") or None, descriptors, spans, mimetypes, streamed)


def _device(descriptor: Document, key: str) -> str:
    """Return the device that a data key is of."""
    for device, keys in (descriptor.get("object_keys") or {}).items():
        if key in keys:
            return str(device)
    return str(descriptor["data_keys"][key].get("object_name") or key)


def spread(key: str, uris: Sequence[str], dataset: str, total: int, length: Length | None) -> list[FileSpan]:
    """Return where a data key's frames are, of which the catalog knows the files, in their order, and the number.

    Parameters
    ----------
    length
        Asked for the frames of each file, if there are several.

    Raises
    ------
    FileError
        Files are missing, and what is there doesn't tell how many frames they had.

    >>> frames = {"a": 6}
    >>> spans = spread("k", ["a", "b"], "/d", 10, lambda uri, dataset: frames.get(uri))
    >>> [(span.uri, span.first, span.n) for span in spans]
    [('a', 0, 6), ('b', 6, 4)]
    """
    lengths = [total] if len(uris) == 1 else _lengths(key, uris, dataset, total, length or (lambda _, __: None))
    found, first = [], 0
    for uri, n in zip(uris, lengths, strict=True):
        n = min(n, total - first)
        if n > 0:
            found.append(FileSpan(key, uri, dataset, first, n, 0))
        first += n
    return found


def _lengths(key: str, uris: Sequence[str], dataset: str, total: int, length: Length) -> list[int]:
    counted = [_counted(length, uri, dataset) for uri in uris]
    known = [n for n in counted[:-1] if n is not None]
    if len(known) == len(uris) - 1 and total - sum(known) <= (counted[-1] or total):
        return [*known, total - sum(known)]
    # One is missing or cut. Detectors fill their files: all but the last are as long as the longest.
    longest = max(known, default=0)
    if longest * (len(uris) - 1) < total <= longest * len(uris):
        return [longest] * len(uris)
    there = [n for n in counted if n is not None]
    if len(there) == len(uris) - 1 and sum(there) < total:
        return [total - sum(there) if n is None else n for n in counted]
    missing = [local_path(uri).name for uri, n in zip(uris, counted, strict=True) if n is None]
    raise FileError(
        f"{key}: {total} frames lie in {len(uris)} files, of which {', '.join(missing[:3]) or 'none'} can't be read: "
        "which frames the others hold can't be told"
    )


def _counted(length: Length, uri: str, dataset: str) -> int | None:
    try:
        return length(uri, dataset)
    except FileError:
        return None


def _end(spans: Sequence[FileSpan]) -> int:
    """Return where the frames end that are there without a gap from 0 on."""
    gaps = IntervalSet((span.first, span.first + span.n) for span in spans).gaps(0, 2**40)
    return gaps[0][0] if gaps else 2**40
