"""From a run in the catalog to what was made of it: the processed run, and both in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cached_property, partial
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import xarray
from bluesky_tiled_plugins.clients.bluesky_event_stream import BlueskyEventStreamV3
from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun, BlueskyRunV2, BlueskyRunV3
from tiled.client.constructors import from_context
from tiled.client.utils import ClientError
from tiled.queries import Eq
from tiled.utils import OneShotCachedMap

from ..workers.wire.messages import STATUS_NAMES
from .gridding import position_names

PROCESSED = "processed"
"""The catalog of processed runs, beside that of the raw ones."""

BOOKKEEPING = ("seq_num", "frame", "status", "time")
"""Columns that every stream has beside its results."""


class ReducedStream(BlueskyEventStreamV3):  # type: ignore[misc]  # Tiled's clients carry no types
    """One recipe's results, read along ``frame``."""

    def read(self, variables: Iterable[str] | None = None) -> xarray.Dataset:
        """Return what there is so far, one row per frame, in frame order.

        Positions, ``status`` and ``time`` are coordinates (where a recipe's results are positions, they are data), and
        so are the axes of patterns (``radial``) where the run holds them; units and long names stand in ``attrs``.
        Values of quarantined and lost frames are NaN.

        Parameters
        ----------
        variables :
            Only these; by default all. ``frame`` is always there.

        Raises
        ------
        KeyError
            There is no such variable, or no frame yet.
        """
        there = set(self._var_keys)
        if "frame" not in there:
            raise KeyError(f"{self._name}: no frame has been reduced yet; read it again in a moment")
        wanted = there if variables is None else {"frame", *variables}
        if unknown := sorted(wanted - there):
            raise KeyError(f"{self._name} has no {', '.join(unknown)}; it has {', '.join(sorted(there))}")
        keys: Mapping[str, Any] = self.metadata["data_keys"]
        arrays = {name for name in wanted if keys.get(name, {}).get("external")}
        data: xarray.Dataset = super().read(variables=sorted(wanted - arrays), dim0="frame").set_coords("frame")
        for name in sorted(arrays):
            values = np.asarray(self[name].read())
            n = min(len(values), data.sizes["frame"])  # while a run grows, one may be ahead of the other
            dims = keys[name].get("dims") or [f"{name}_{axis}" for axis in range(1, values.ndim)]
            data = data.isel(frame=slice(n)).assign({name: (("frame", *dims), values[:n])})
        data = data.assign_coords({name: values for name, values in self._axes.items() if name in data.dims})
        for variable in data.variables:
            key = keys.get(str(variable), {})
            data[variable].attrs.update({word: key[word] for word in ("units", "long_name") if key.get(word)})
        positions = [name for name in position_names(self._start) or () if not self._is_result(keys.get(name, {}))]
        data = data.set_coords([name for name in ("status", "time", *positions) if name in data])
        results = {name: data[name] for name in keys if name in data.data_vars}  # in the recipe's order
        return xarray.Dataset(results, data.coords)

    @staticmethod
    def _is_result(key: Mapping[str, Any]) -> bool:
        """Return whether a data key is what the stream's recipe gave, not joined to it from another stream."""
        return str(key.get("source", "")).startswith("recipe:")

    @property
    def _name(self) -> str:
        return f"stream {self.item['id']}"

    @cached_property
    def _start(self) -> dict[str, Any]:
        return dict(self.parent.start)

    @cached_property
    def _axes(self) -> dict[str, Any]:
        """The numbers along a pattern's axes, from the descriptor's configuration."""
        found: dict[str, Any] = {}
        for each in self.metadata.get("configuration", {}).values():
            found.update({name: value for name, value in each["data"].items() if isinstance(value, list)})
        return found


def processed(run: Any, catalog: str = PROCESSED) -> BlueskyRun:
    """Return the processed run of a raw ``run``: the latest, if it has been reduced more than once.

    Parameters
    ----------
    run :
        A run from the catalog, ``db[-1]``; a processed run is returned with its streams readable along ``frame``.
    catalog :
        The name of the catalog of processed runs, beside the one that ``run`` is in.

    Returns
    -------
    A run whose streams are the recipes: ``processed(db[-1])["xrf"].read()`` is an :class:`xarray.Dataset`.

    Raises
    ------
    KeyError
        It has not been reduced, or there is no such catalog.
    """
    run = _client(run)
    # Not copy.copy, whose copy shares its entries: that would change every other client of the catalog.
    clients = OneShotCachedMap(
        {spec: partial(run.structure_clients.__getitem__, spec) for spec in run.structure_clients}
    )
    clients.set("BlueskyEventStream", lambda: ReducedStream)
    if "raw_uid" in run.start:
        return from_context(run.context, clients, run.path_parts)
    where = [*run.path_parts[:-2], catalog]
    try:
        runs = from_context(run.context, clients, where)
    except (ClientError, KeyError):
        raise KeyError(
            f"there is no catalog {'/'.join(where)!r} beside that of {_short(run)}; name the one to look in: "
            f"processed(run, catalog=…)"
        ) from None
    try:
        return runs.search(Eq("raw_uid", run.start["uid"])).values().last()
    except IndexError:
        running = "" if run.metadata.get("stop") else " yet (it is still running)"
        raise KeyError(
            f"{_short(run)} has not been reduced{running or ' yet'}; the pool reduces runs whose start document has "
            f"recipes, while it runs: see `haltere status`"
        ) from None


def columns(run: Any) -> dict[str, str]:
    """Return the scalar results of a processed run, each with the stream that has it."""
    positions = position_names(run.start) or ()
    there: dict[str, str] = {}
    for stream, client in streams_of(run).items():
        for name, key in client.metadata["data_keys"].items():
            scalar = not key.get("external") and key["dtype"] in ("number", "integer")
            if scalar and name not in (*BOOKKEEPING, *positions):
                there.setdefault(name, stream)
    return there


def nexus_file(run: Any) -> str | None:
    """Return the path of the processed run's NeXus file; None if it has none."""
    if nexus := (run.metadata.get("stop") or {}).get("nexus"):
        return str(nexus)
    for client in streams_of(run).values():
        for name, key in client.metadata["data_keys"].items():
            if key.get("external"):
                for source in client.base[name].data_sources() or ():
                    return unquote(urlsplit(source.assets[0].data_uri).path)
    return None


def describe_run(run: Any) -> str:
    """Return what a person wants to know of a run: plan, shape, streams, completeness, file."""
    run = _client(run)
    start = run.start
    lines = [_headline(run)]
    if start.get("shape"):
        lines.append(("shape", " × ".join(str(n) for n in start["shape"]) + _how(start)))
    lines += [(name, _keys(stream)) for name, stream in streams_of(run).items()]
    if "raw_uid" in start:
        reduced = run
    else:
        try:
            reduced = processed(run)
        except KeyError as error:
            return _table([*lines, ("reduced", str(error.args[0]))])
        lines.append(("reduced", reduced.start["uid"]))
        lines += [(f"  {name}", _keys(stream)) for name, stream in streams_of(reduced).items()]
    frames = (reduced.metadata.get("stop") or {}).get("frames")
    if frames is None:
        lines.append(("frames", "still being reduced"))
    else:
        lines += [(f"  {stream}", completeness(counts)) for stream, counts in sorted(frames.items())]
    if path := nexus_file(reduced):
        lines.append(("file", path))
    return _table(lines)


def completeness(counts: Mapping[str, Any]) -> str:
    """Return one stream's entry in the stop document's ``frames`` in words.

    >>> completeness({"expected": 2400, "live": 2311, "backfilled": 89, "quarantined": 0, "lost": 0})
    '2400 = 2311 live + 89 backfilled · complete'
    >>> completeness({"expected": 40, "live": 38, "backfilled": 0, "quarantined": 1, "lost": 1})
    '40 = 38 live + 1 quarantined + 1 lost'
    """
    parts = [f"{counts[status]} {status}" for status in STATUS_NAMES if counts.get(status)]
    missing = counts.get("quarantined", 0) + counts.get("lost", 0)
    done = " · complete" if not missing and sum(counts.get(s, 0) for s in STATUS_NAMES) == counts["expected"] else ""
    return f"{counts['expected']} = {' + '.join(parts) or '0'}{done}"


def register_formatters(ip: Any) -> None:
    """Make IPython shell ``ip`` print a run as :func:`describe_run` does."""
    text = ip.display_formatter.formatters["text/plain"]
    # Each by name, because IPython prefers a subclass's own __repr__ to what is registered for its base.
    for kind in (BlueskyRun, BlueskyRunV2, BlueskyRunV3):
        text.for_type(kind, _pretty)
    text.for_type_by_name("databroker.v1", "Header", _pretty)


def _pretty(run: Any, printer: Any, cycle: bool) -> None:
    printer.text(describe_run(run))


def streams_of(run: Any) -> dict[str, Any]:
    """Return the clients of a run's streams: asked for all at once, or one by one in a catalog of an older kind."""
    found = dict(run.base.items()) if isinstance(run, BlueskyRunV3) else {"streams": None}
    return {name: run[name] for name in run} if "streams" in found else found


def _client(run: Any) -> Any:
    """Return the catalog's client of a run, also for databroker's old Header."""
    return run.v2 if not isinstance(run, BlueskyRun) and hasattr(run, "v2") else run


def _short(run: Any) -> str:
    short = run.start["uid"][:8]
    return f"scan {run.start['scan_id']} ({short})" if "scan_id" in run.start else f"run {short}"


def _headline(run: Any) -> tuple[str, str]:
    start, stop = run.start, run.metadata.get("stop") or {}
    when = datetime.fromtimestamp(start["time"]).isoformat(" ", "minutes")
    ended = stop.get("exit_status", "running")
    words = [start["uid"], start.get("plan_name", "no plan"), when, ended]
    return f"scan {start['scan_id']}" if "scan_id" in start else "run", " · ".join(words)


def _how(start: Mapping[str, Any]) -> str:
    snake = ", snake" if any(start.get("snaking") or ()) else ""
    return snake + (f", {1e3 * start['dwell']:g} ms" if start.get("dwell") else "")


def _keys(stream: Any) -> str:
    """Return a stream's data keys, patterns and images with their shape per frame."""
    words = []
    keys = stream.metadata["data_keys"]
    for name, key in keys.items():
        if any(name.startswith(f"{other}_") for other in keys):
            continue  # a detail of another: Fe_Ka_sigma, a channel's scaler
        shape = "×".join(str(n) for n in key.get("shape", ()))
        words.append(f"{name} ({shape})" if shape else name)
    shown = [word for word in words if word not in BOOKKEEPING]
    more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
    return ", ".join(shown[:12]) + more


def _table(lines: Iterable[tuple[str, str]]) -> str:
    lines = list(lines)
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{width}}  {words}" for label, words in lines)
