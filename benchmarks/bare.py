"""The baseline: one process that pulls a detector's stream and reduces each frame, and keeps no account."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter, process_time, thread_time
from typing import Any, Final

import numpy as np
import zmq

from ..workers.processes import sockets
from ..workers.recipes import reducer_class
from ..workers.reducers.base import Batch, Chunk, Setup
from ..workers.wire import simplon
from ..workers.wire.messages import InputSpec

SILENCE_MS: Final = 2000
"""After so long without a message the series is over."""


def run(settings: dict[str, Any]) -> dict[str, float]:
    """Pull and reduce one series; return its figures."""
    spec = InputSpec("image", tuple(settings["shape"]), settings["dtype"])
    reducer = reducer_class("azimuthal")(**settings["params"])
    reducer.outputs((spec,))
    reducer.setup(Setup((spec,), Path()))
    dtype = np.dtype(spec.dtype)
    with zmq.Context() as context, sockets.make(context, zmq.PULL, 1 << 28) as socket:
        socket.rcvhwm = 1000
        socket.connect(settings["endpoint"])
        print("ready", flush=True)
        frames, reducing, began, cpu, wall, spent = 0, 0.0, 0.0, 0.0, 0.0, 0.0
        results = []
        # A detector drops what nobody fetches in time, the end of the series too: silence is an end as well.
        while not frames or socket.poll(SILENCE_MS):
            message = simplon.decode([part.buffer for part in socket.recv_multipart(copy=False)])
            if isinstance(message, simplon.SeriesEnd):
                break
            if isinstance(message, simplon.Image):
                if not frames:
                    began, cpu = perf_counter(), process_time()
                start = thread_time()
                chunk = Chunk(message.blob, message.encoding, spec.shape, dtype)
                results.append(reducer.map(Batch(np.array([message.frame]), {spec.key: [chunk]})).nav)
                reducing += thread_time() - start
                frames += 1
                wall, spent = perf_counter() - began, process_time() - cpu
    return {
        "frames": frames,
        "wall_s": wall,
        "reducer_s": reducing,
        "outside_s": spent - reducing,
    }


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))), flush=True)
