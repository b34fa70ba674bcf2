"""A recorded frame for the simulated Eiger to replay, and the geometry it was taken in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .workers.errors import ReductionError, SettingsError


@dataclass(frozen=True, slots=True)
class Recording:
    """What the simulated Eiger replays; nothing: frames of its own.

    ``flip`` is ``"ud"``, ``"lr"`` or None.
    """

    frames: Path | None = None
    flip: str | None = None
    poni: Path | None = None

    def check(self) -> None:
        """See that its parts fit together: before anything is started, because later the recipe is left out.

        Raises
        ------
        SettingsError
            A file isn't there or can't be read, one is missing, or the geometry is of a frame of another shape.
        """
        for path, option in ((self.frames, "--frames"), (self.poni, "--poni")):
            if path is not None and not path.is_file():
                raise SettingsError(f"{option} {path}: there is no such file")
        if self.frames is None:
            if self.flip is not None or self.poni is not None:
                raise SettingsError("--flip and --poni describe a recorded frame: name it with --frames")
            return
        if self.poni is None:
            raise SettingsError("--frames needs the geometry it was recorded in: name its .poni with --poni")
        # Imported here: most sessions replay nothing.
        from .devices.sim.frames import read_frame
        from .workers.reducers import geometry

        frame = read_frame(self.frames)
        try:
            geometry.load(self.poni).fits(frame.shape, str(self.frames))
        except ReductionError as error:
            raise SettingsError(f"--poni {self.poni}: {str(error).removeprefix(f'poni {self.poni}: ')}") from None
