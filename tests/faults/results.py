"""What came of a run: every array in its NeXus file, every column in its documents and in the catalog."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from event_model import DocumentNames, schema_validators
from numpy.typing import NDArray

from haltere.workers import recipes
from haltere.workers.nexus.layout import fill_value
from haltere.workers.wire.messages import STATUS_NAMES, InputSpec

from .scan import SHAPE, SOURCES, Scan

Document = dict[str, Any]
Named = tuple[str, Document]
Array = NDArray[Any]
Arrays = dict[str, Array]
"""By place, recipe and name: ``"nexus/xrd/intensity"``."""

INPUTS: Final = {
    "eiger": (InputSpec("eiger_image", SHAPE, "<u2"),),
    "pilc": (InputSpec("pilc_x", (), "<f8"), InputSpec("pilc_y", (), "<f8")),
}


def from_nexus(path: Path, recipes: Iterable[str] = SOURCES) -> Arrays:
    """Return every dataset of numbers that a recipe gave, its maps included; not how the frames came."""
    found: Arrays = {}
    with h5py.File(path) as file:
        for recipe in recipes:
            group = file["entry"][recipe]
            # By name: visititems shows what has two names under one of them only.
            maps = group.get("maps", {})
            for name, item in [*group.items(), *((f"maps/{each}", item) for each, item in maps.items())]:
                if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu" and name != "status":
                    found[f"nexus/{recipe}/{name}"] = item[()]
    return found


def from_documents(documents: Sequence[Named]) -> Arrays:
    """Return every column of the event pages but how the frames came."""
    streams = {doc["uid"]: doc["name"] for name, doc in documents if name == "descriptor"}
    columns: dict[str, list[Any]] = {}
    for name, doc in documents:
        if name == "event_page":
            for key, values in doc["data"].items():
                columns.setdefault(f"documents/{streams[doc['descriptor']]}/{key}", []).extend(values)
    return {name: np.array(values) for name, values in columns.items() if not name.endswith("/status")}


def from_catalog(run: Any) -> Arrays:
    """Return every array of a run in the catalog but times, and how the frames came."""
    found: Arrays = {}
    for recipe in SOURCES:
        for name, values in run[recipe].read().data_vars.items():
            if name not in ("status", "time") and not str(name).startswith("ts_"):
                found[f"catalog/{recipe}/{name}"] = values.values
    return found


def differing(
    reference: Mapping[str, Array], found: Mapping[str, Array], scan: Scan, gone: Mapping[str, Collection[int]]
) -> list[str]:
    """Name the arrays that aren't the reference's to the bit.

    Parameters
    ----------
    reference, found
        Of an undisturbed run, and of this one.
    scan
        What was flown.
    gone
        Frames of each detector that gave no result: theirs must be NaN (−1 where the type has none), and sums go
        without them.
    """
    kinds = {
        f"{recipe.name}/{name}": output.kind
        for recipe in scan.recipes
        for name, output in recipes.outputs(recipe.spec(), INPUTS[recipe.source]).items()
    }
    wrong = [f"{name} is missing" for name in reference.keys() - found.keys()]
    for name in sorted(reference.keys() & found.keys()):
        place, recipe, what = name.split("/", 2)
        source = "pilc" if what.startswith("pilc_") else SOURCES[recipe]
        missing = sorted(gone.get(source, ()))
        wanted, got = reference[name].copy(), found[name]
        kind = "nav" if place != "nexus" else kinds.get(f"{recipe}/{what}", "derived")
        if missing and kind == "derived":
            continue  # maps are made of what is compared itself
        if missing and kind == "acc":
            rows = np.delete(reference["nexus/chaos/bands"], missing, 0)
            wanted = rows.sum(0)
        elif missing and kind == "nav" and what != "frame":
            wanted[missing] = fill_value(wanted.dtype)
        if (wanted.dtype, wanted.shape, wanted.tobytes()) != (got.dtype, got.shape, got.tobytes()):
            wrong.append(f"{name} differs")
    return wrong


def faults_of(
    documents: Sequence[Named],
    accounting: Mapping[str, Mapping[str, Any]],
    sources: Mapping[str, str] = SOURCES,
) -> list[str]:
    """Say what is wrong with a processed run's documents: each valid, once, in the order of frames, complete.

    Parameters
    ----------
    documents
        As they came.
    accounting
        What the ledger says became of the frames.
    sources
        The recipes, each with its detector.
    """
    wrong = []
    names = [name for name, _ in documents]
    if names[:1] != ["start"] or names[-1:] != ["stop"] or names.count("start") + names.count("stop") != 2:
        wrong.append(f"documents begin {names[:2]} and end {names[-2:]}")
    for name, doc in documents:
        try:
            schema_validators[DocumentNames[name]].validate(doc)
        except Exception as error:  # jsonschema's, of which event-model says nothing
            wrong.append(f"a {name} isn't valid: {str(error).splitlines()[0]}")
    uids = [uid for _, doc in documents for uid in (doc["uid"] if isinstance(doc["uid"], list) else [doc["uid"]])]
    if len(set(uids)) < len(uids):
        wrong.append(f"{len(uids) - len(set(uids))} documents came twice")
    streams: dict[str, str] = {}
    frames: dict[str, list[int]] = {recipe: [] for recipe in sources}
    status: dict[str, list[int]] = {recipe: [] for recipe in sources}
    reach: dict[str, int] = {}
    ends: dict[str, int] = {}
    for name, doc in documents:
        if name == "descriptor":
            streams[doc["uid"]] = doc["name"]
        elif name == "stream_resource":
            reach[doc["uid"]] = 0
        elif name in ("event_page", "stream_datum") and doc["descriptor"] not in streams:
            wrong.append(f"a {name} came before its descriptor")
        elif name == "event_page":
            recipe = streams[doc["descriptor"]]
            frames[recipe] += doc["data"]["frame"]
            status[recipe] += doc["data"]["status"]
            if doc["seq_num"] != [frame + 1 for frame in doc["data"]["frame"]]:
                wrong.append(f"{recipe}: seq_num isn't the frame's")
        elif name == "stream_datum":
            if doc["indices"]["start"] != reach.get(doc["stream_resource"]):
                wrong.append(f"a stream_datum begins at {doc['indices']['start']}, not where the last one ended")
            reach[doc["stream_resource"]] = doc["indices"]["stop"]
            ends[doc["stream_resource"]] = accounting[sources[streams[doc["descriptor"]]]]["expected"]
    for recipe, source in sources.items():
        if frames[recipe] != list(range(accounting[source]["expected"])):
            wrong.append(f"{recipe}: frames don't come in order, each once, complete: {len(frames[recipe])} came")
        if status[recipe] != statuses(accounting[source]):
            wrong.append(f"{recipe}: its status column isn't the ledger's")
    if reach != ends:
        wrong.append(f"stream_datums end at {sorted(set(reach.values()))}")
    stop = documents[-1][1]
    if stop.get("frames") != dict(accounting):
        wrong.append("the stop document's frames aren't the ledger's")
    return wrong


def statuses(account: Mapping[str, Any]) -> list[int]:
    """Return each frame's status from the intervals of an account; −1 for a frame in none."""
    found = [-1] * account["expected"]
    for number, name in enumerate(STATUS_NAMES):
        for first, stop in account["intervals"][name]:
            for frame in range(first, stop):
                found[frame] = number if found[frame] == -1 else -2  # in two
    return found
