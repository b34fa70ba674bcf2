"""A reducer that kills, hangs or fails by the frame's value. Run by a worker as its child, see ``test_worker.py``."""

from __future__ import annotations

import os
import signal
import sys
import threading

import numpy as np

from haltere.workers.errors import ReductionError
from haltere.workers.reducers.base import Array, Batch, Output, Partial, Reducer, Setup
from haltere.workers.wire.messages import InputSpec
from haltere.workers.worker import reducing

DEADLY, HANGING, FAILING = 666.0, 667.0, 668.0


class Perilous(Reducer):
    """Doubles what it gets, if it survives."""

    def outputs(self, inputs: tuple[InputSpec, ...]) -> dict[str, Output]:
        """Name the result."""
        return {"twice": Output("nav", (), "<f8")}

    def setup(self, run: Setup) -> dict[str, Array]:
        """Do nothing, or die."""
        if (run.assets / "deadly").exists():
            os.kill(os.getpid(), signal.SIGSEGV)
        return {}

    def map(self, batch: Batch) -> Partial:
        """Reduce, or not."""
        flux = batch.data["flux"]
        if not isinstance(flux, np.ndarray):
            flux = np.array([np.frombuffer(chunk.data, chunk.dtype)[0] for chunk in flux])
        if DEADLY in flux:
            os.kill(os.getpid(), signal.SIGSEGV)
        if HANGING in flux:
            threading.Event().wait()
        if FAILING in flux:
            raise ReductionError("a flux that can't be")
        return Partial(batch.index, {"twice": 2 * flux})


if __name__ == "__main__":
    sys.exit(reducing.main(build=lambda spec: Perilous()))
