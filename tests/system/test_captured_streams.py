"""Streams that were captured at beamlines, replayed into a real pool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haltere.workers import basis, recipes
from haltere.workers.payload import unpack
from haltere.workers.recipes import Recipe
from haltere.workers.reducers import azimuthal, fluorescence
from haltere.workers.reducers.base import Batch, Chunk, Setup
from haltere.workers.wire import xspress3
from haltere.workers.wire.messages import InputSpec, LiveLane, StreamOpen

from .conftest import ToldPool

LINES = {"Si_K": 1.74, "P_K": 2.01, "Au_M": 2.12, "S_K": 2.31, "Cl_K": 2.62, "Ag_L": 2.98, "Ca_K": 3.69}
"""keV"""

WIDTH = 0.045
"""Standard deviation of a line, keV: it fits this detector's."""

ZERO, GAIN = -0.019, 0.01005
"""keV; of element 1, from its Si, Cl, Cr and Cu lines."""


def messages(path: Path) -> Iterator[list[bytes]]:
    """Yield each captured message, as its parts."""
    cbor2 = pytest.importorskip("cbor2", reason="reads the captured streams")
    with path.open("rb") as file:
        while file.peek(1):
            yield cbor2.load(file)


def test_cut_frames_of_a_captured_eiger_series_end_quarantined_and_nothing_dies(
    told: ToldPool, measurements: Path
) -> None:
    params = azimuthal.recipe_params(
        {"dist": 0.2, "poni1": 0.12, "poni2": 0.12, "pixel1": 75e-6, "pixel2": 75e-6}, bins=10, method="no"
    )
    spec = Recipe("xrd", "azimuthal", "eiger", params).spec()
    image = InputSpec("eiger_image", (3262, 3108), "<u4")
    with told.detector() as (detector, endpoint):
        lane = LiveLane(endpoint, "simplon-1", 6, "eiger_image")
        stream = StreamOpen(0, "captured-eiger", "eiger", recipes.cfg_hash([spec]), 20, [image], [spec], lane)
        told.open(stream, 3)
        for parts in messages(measurements / "streams" / "eiger-small.cbors"):
            detector.send_multipart(parts)
        account = told.close_run(stream, 3)
    assert account["quarantined"] == account["expected"] == 3
    assert account["intervals"]["quarantined"] == [[0, 3]]
    assert account["reasons"].keys() == {"0", "1", "2"}
    for reason in account["reasons"].values():
        assert "no file was announced" in reason
        assert "bslz4 chunk of 20000 bytes is damaged or cut" in reason
        assert "\n" not in reason
    assert set(told.restarts().values()) == {0}
    assert "died" not in (told.pool.directory / "logs" / "worker-1.log").read_text()


def gold_basis() -> basis.Basis:
    """Return lines of one width and a straight background, from 1.5 to 4 keV; fitted with equal weights."""
    channels = np.arange(150, 400)
    energy = ZERO + GAIN * channels
    templates = np.zeros((len(LINES) + 2, 4096))
    for template, line in zip(templates, LINES.values(), strict=False):
        template[channels] = np.exp(-0.5 * ((energy - line) / WIDTH) ** 2) * GAIN / (np.sqrt(2 * np.pi) * WIDTH)
    templates[-2, channels] = 1
    templates[-1, channels] = energy - 2.7
    operator = np.zeros_like(templates)
    operator[:, channels] = basis.operator(templates[:, channels])
    kinds = (*("line" for _ in LINES), "background", "background")
    return basis.Basis((*LINES, "constant", "slope"), kinds, templates, operator, (ZERO, GAIN))


def test_a_captured_xspress3_stream_is_reduced_live_and_shows_gold(told: ToldPool, measurements: Path) -> None:
    captured = list(messages(measurements / "streams" / "xspress3mini-dump20.cbors"))
    decoder = xspress3.Decoder()
    frames: dict[int, xspress3.Image] = {}
    for parts in captured:
        message = decoder.decode(parts)
        if isinstance(message, xspress3.Image):  # each number was captured twice: the first counts
            frames.setdefault(message.frame, message)
    assert sorted(frames) == list(range(11))

    params = fluorescence.recipe_params(gold_basis(), told.assets, elements=[1])
    spec = Recipe("xrf", "fluorescence", "mini", params).spec()
    spectra = InputSpec("mini_spectra", (2, 4096), "<u4")
    with told.detector() as (detector, endpoint):
        # The stream doesn't number its series: it is the first since the ingest connected.
        lane = LiveLane(endpoint, "xspress3-1", 1, "mini_spectra")
        stream = StreamOpen(0, "captured-mini", "mini", recipes.cfg_hash([spec]), 4, [spectra], [spec], lane)
        told.open(stream, 11)
        for parts in captured:
            detector.send_multipart(parts)
        account = told.close_run(stream, 11)
    assert account["live"] == account["expected"] == 11
    assert account["reasons"] == {}
    assert set(told.restarts().values()) == {0}

    live: dict[str, Any] = {}
    for row in told.rows(stream):
        for piece in unpack(row.arrays, row.payload):
            if piece.kind == "nav":
                live.setdefault(piece.name, []).append(piece.array)
    live = {name: np.concatenate(parts) for name, parts in live.items()}
    reducer = recipes.build(spec)
    reducer.setup(Setup((spectra,), told.pool.assets))
    chunks = [Chunk(each.blob, each.encoding, each.shape, np.dtype(each.dtype)) for each in frames.values()]
    direct = reducer.map(Batch(np.arange(11), {"mini_spectra": chunks})).nav
    assert live.keys() == direct.keys() == {name + end for name in LINES for end in ("", "_sigma")}
    for name, values in direct.items():
        assert live[name].tobytes() == values.tobytes(), name

    area = {name: live[name].sum() for name in LINES}
    sigma = float(np.sqrt((live["Au_M_sigma"] ** 2).sum()))
    assert area["Au_M"] > 8 * sigma
    for neighbour in ("P_K", "S_K", "Ag_L"):
        assert area["Au_M"] > 5 * area[neighbour], neighbour
