"""What every instrument whose frames lie in files has: it says which can be read, and which are new."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ..workers.errors import DetectorError
from .assets import StreamAssets, StreamedAssets

LOOK: Final = 0.005
"""s between two looks at a file: the file system tells nobody that one has grown."""


class WritesFiles:
    """Bluesky's ``WritesStreamAssets``, on top of a device's :class:`~haltere.devices.assets.StreamAssets`."""

    name: str
    data_dir: Path
    assets: StreamAssets | None = None

    @property
    def counts(self) -> bool:
        """Whether it can say how many frames it took: what keeps no file can't."""
        return not isinstance(self.assets, StreamedAssets)

    def get_index(self) -> int:
        """Return how many frames may be collected now."""
        return 0 if self.assets is None else self.assets.index()

    def frames(self) -> int:
        """Return how many frames can be read from its files."""
        return 0 if self.assets is None else self.assets.readable()

    def acquired(self) -> int:
        """Return how many frames were taken, as far as is known."""
        return self.frames()

    def collect_asset_docs(self, index: int | None = None) -> Iterator[tuple[str, Any]]:
        """Yield the documents of frames that can be read, up to ``index``."""
        if self.assets is not None:
            yield from self.assets.documents(index)

    def _await_frames(self, wanted: int, patience: float) -> None:
        """Wait until ``wanted`` frames can be read.

        Raises
        ------
        DetectorError
            They can't, after ``patience`` seconds.
        """
        deadline = time.monotonic() + patience
        pause = threading.Event()
        while (there := self.frames()) < wanted:
            if time.monotonic() > deadline:
                raise DetectorError(
                    f"{self.name}: {there} of {wanted} frames in {self.data_dir} after {patience:g} s "
                    "(does it write there?)"
                )
            pause.wait(LOOK)
