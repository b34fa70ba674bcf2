"""The map fills while documents come, and nobody waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.backend_bases import TimerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from haltere.callbacks.live import LiveMap


def drawn(live: LiveMap) -> Any:
    image: Any = live.ax.images[-1].get_array()
    return image.filled(np.nan)


def feed(live: LiveMap, documents: Any) -> None:
    for name, doc in documents:
        live(name, doc)


class Window(FigureCanvasAgg):
    """A canvas with an event loop, turned by hand."""

    required_interactive_framework = "by hand"

    def new_timer(self, interval: int | None = None, callbacks: Any = None) -> TimerBase:
        """Return a timer that only the test fires."""
        self.timer = TimerBase(interval=interval, callbacks=callbacks)
        return self.timer


def test_the_map_is_whole_once_the_run_has_ended(flown: Any) -> None:
    live = LiveMap("Fe_Ka", period=0.01)
    feed(live, flown.processed())
    assert live.drawn.wait(10)
    np.testing.assert_array_equal(drawn(live), flown.expected)
    assert "238 of 240 pixels" in live.ax.get_title(loc="left")
    assert live.ax.get_xlabel() == "pilc_x (µm)"


def test_what_has_not_come_yet_shows_as_missing(flown: Any) -> None:
    live = LiveMap("Fe_Ka", period=1000)
    documents = list(flown.processed())
    feed(live, documents[: len(documents) // 2])
    live.update()
    seen = np.isfinite(drawn(live))
    assert 0 < seen.sum() < flown.fe.size
    np.testing.assert_array_equal(drawn(live)[seen], flown.expected[seen])
    feed(live, documents[len(documents) // 2 :])
    assert live.drawn.wait(10)
    np.testing.assert_array_equal(drawn(live), flown.expected)


def test_single_events_are_drawn_as_pages_are(flown: Any) -> None:
    live = LiveMap("Fe_Ka", period=0.01)
    for name, doc in flown.processed():
        if name == "event_page":
            for k in range(len(doc["seq_num"])):
                data = {key: values[k] for key, values in doc["data"].items()}
                live("event", {"descriptor": doc["descriptor"], "data": data})
        else:
            live(name, doc)
    assert live.drawn.wait(10)
    np.testing.assert_array_equal(drawn(live), flown.expected)


def test_documents_do_not_wait_for_a_drawing(flown: Any) -> None:
    """The drawing is held up until all documents are in: were they to wait for it, this would never end."""
    live = LiveMap("Fe_Ka", period=0)
    drawing, all_in = threading.Event(), threading.Event()
    canvas: Any = live.ax.figure.canvas
    draw = canvas.draw

    def slow_draw() -> None:
        drawing.set()
        assert all_in.wait(20)
        draw()

    canvas.draw = slow_draw
    documents = list(flown.processed())
    first_page = next(k for k, (name, _) in enumerate(documents) if name == "event_page" and k > 3)
    feed(live, documents[: first_page + 1])
    assert drawing.wait(20)
    feed(live, documents[first_page + 1 :])
    all_in.set()
    assert live.drawn.wait(20)
    np.testing.assert_array_equal(drawn(live), flown.expected)


def test_a_hundred_thousand_points_a_second_are_taken(flown: Any) -> None:
    scan = type(flown)(rows=250, columns=400)
    documents = list(scan.processed())
    live = LiveMap("Fe_Ka", period=0.05)
    began = time.process_time()
    feed(live, documents)
    spent = time.process_time() - began  # of all threads: the drawing is counted in
    assert live.drawn.wait(20)
    assert spent < 1.0, f"100,000 points in {len(documents)} documents took {spent:.2f} s of CPU"
    np.testing.assert_array_equal(drawn(live), scan.expected)


def test_drawing_keeps_to_its_period(flown: Any) -> None:
    live = LiveMap("Fe_Ka", period=1000)
    canvas: Any = live.ax.figure.canvas
    drawings: list[None] = []
    draw = canvas.draw
    canvas.draw = lambda: drawings.append(draw())
    feed(live, flown.processed())
    assert live.drawn.wait(10)
    assert 1 <= len(drawings) <= 2  # at the first news, and at the end


def test_a_window_is_drawn_by_its_own_event_loop(flown: Any) -> None:
    figure = Figure()
    window = Window(figure)
    live = LiveMap("Fe_Ka", figure.subplots(), period=0.25)
    before = threading.active_count()
    documents = list(flown.processed())
    feed(live, documents[:-1])
    assert threading.active_count() == before
    assert not live.ax.images
    turn: Callable[[], None] = window.timer._on_timer  # type: ignore[attr-defined]
    turn()
    assert np.isfinite(drawn(live)).sum() == 238
    feed(live, documents[-1:])
    live._free_at = 0.0  # the period has passed
    turn()
    assert live.drawn.is_set()
    assert window.timer.interval == 250


def test_a_closed_window_ends_it(flown: Any) -> None:
    figure = Figure()
    window = Window(figure)
    live = LiveMap("Fe_Ka", figure.subplots())
    documents = list(flown.processed())
    feed(live, documents[:4])
    window.callbacks.process("close_event", None)
    feed(live, documents[4:])
    assert not live.update()
    feed(live, flown.processed())
    assert not live.update()


def test_the_next_run_takes_the_map_over_and_the_last_one_is_left_aside(flown: Any) -> None:
    late = type(flown)(rows=3, columns=4, md={"scan_id": 18})
    live = LiveMap("Ca_Ka", period=0.01)
    first = list(flown.processed())
    feed(live, first[:5])
    documents = list(late.processed())
    feed(live, documents[:2])
    feed(live, first[5:])
    assert not live.drawn.is_set()
    feed(live, documents[2:])
    assert live.drawn.wait(10)
    np.testing.assert_array_equal(drawn(live), 2 * late.expected)
    assert "scan 18" in live.ax.get_title(loc="left")


def test_one_map_serves_scan_after_scan(flown: Any) -> None:
    live = LiveMap("Fe_Ka", period=0.01)
    for rows in (4, 6, 5):
        scan = type(flown)(rows=rows)
        feed(live, scan.processed())
        assert live.drawn.wait(10)
        np.testing.assert_array_equal(drawn(live), scan.expected)


def test_a_result_that_never_comes_is_said_once(flown: Any, caplog: pytest.LogCaptureFixture) -> None:
    live = LiveMap("Zn_Ka", period=0.01)
    with caplog.at_level(logging.WARNING):
        feed(live, flown.processed())
        assert live.drawn.wait(10)
    assert [record.getMessage() for record in caplog.records] == ["scan 17 has no 'Zn_Ka' to draw"]


def test_a_run_without_a_grid_is_left_to_plot_map(flown: Any, caplog: pytest.LogCaptureFixture) -> None:
    scan = type(flown)(md={"extents": None})
    live = LiveMap("Fe_Ka")
    feed(live, ((name, doc) for name, doc in scan.processed()))
    assert not live.update()
    assert "plot_map draws it afterwards" in caplog.text
