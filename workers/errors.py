"""What can go wrong, as a tree.

::

    HaltereError
    ├── SettingsError (ValueError)      a setting, an argument or a folder can't be used
    ├── DetectorError (RuntimeError)    an instrument refused, failed or is off
    ├── WireError (ValueError)          bytes that are not the message they should be
    ├── FileError (OSError)             a detector's file is missing, unsafe, short or of another shape
    │   └── FileLate                    it isn't there yet, or not these frames: trying again may help
    ├── PoolError (RuntimeError)        a process of the pool can't start, or died too often
    └── ReductionError (ValueError)     a recipe can't be set up, or a frame can't be reduced
        ├── ShapeMismatch               the frame isn't the shape that the geometry or the stream describes
        └── ChunkError                  a compressed chunk doesn't decode to what was declared

Each message names the culprit, the place and the remedy, in one line.
"""

__all__ = [
    "ChunkError",
    "DetectorError",
    "FileError",
    "FileLate",
    "HaltereError",
    "PoolError",
    "ReductionError",
    "SettingsError",
    "ShapeMismatch",
    "WireError",
]


class HaltereError(Exception):
    """Everything that haltere raises on purpose."""


class SettingsError(HaltereError, ValueError):
    """A setting, an argument or a folder can't be used."""


class DetectorError(HaltereError, RuntimeError):
    """An instrument refused, failed or is off."""


class WireError(HaltereError, ValueError):
    """Bytes that are not the message they should be."""


class FileError(HaltereError, OSError):
    """A detector's file is missing, unsafe, short or of another shape."""


class FileLate(FileError):
    """A file, or a frame in it, isn't there yet: trying again may help."""


class PoolError(HaltereError, RuntimeError):
    """A process of the pool can't start, or died too often."""


class ReductionError(HaltereError, ValueError):
    """A recipe can't be set up, or a frame can't be reduced."""


class ShapeMismatch(ReductionError):
    """The frame isn't the shape that the geometry or the stream describes."""


class ChunkError(ReductionError):
    """A compressed chunk doesn't decode to what was declared."""
