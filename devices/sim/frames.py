"""Frames made ahead."""

from __future__ import annotations


class FrameLibrary:
    """FrameLibrary.synthetic(model="500k", phases=..., seed=0, ...), FrameLibrary.from_file(path, flip=..., ...)."""
