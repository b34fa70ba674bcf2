"""Recipes of one stream that read the same frames: they share a walk, so that each frame is decoded once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..reducers.base import Batch, Made, Reducer, Walk

if TYPE_CHECKING:
    from ..kernel import Kernel

log = logging.getLogger(__name__)

Frames = tuple[str, tuple[int, int], str]
"""Data key, shape and type."""


class Walks:
    """What the kernel does for several reducers at once.

    Nothing depends on it but time: where a shared walk fails, for whatever frame and whatever reason, nobody gets
    anything of it, and each reducer reads the frames by itself; that also finds out whose fault it is.

    Parameters
    ----------
    reducers
        Those of a stream, set up; None for one that couldn't be.
    """

    def __init__(self, reducers: Sequence[Reducer | None]) -> None:
        by_frames: dict[Frames, dict[int, Walk]] = {}
        for number, reducer in enumerate(reducers):
            walk = None if reducer is None else _walk_of(reducer)
            if walk is not None:
                by_frames.setdefault((walk.key, walk.shape, walk.dtype.str), {})[number] = walk
        self._shared: list[tuple[Kernel, dict[int, Walk]]] = []
        for (_, shape, dtype), walks in by_frames.items():
            if len(walks) > 1:
                self._add(shape, dtype, walks)

    def _add(self, shape: tuple[int, int], dtype: str, walks: dict[int, Walk]) -> None:
        from ..kernel import Kernel

        parts = {f"{number}/{name}": part for number, walk in walks.items() for name, part in walk.parts.items()}
        try:
            self._shared.append((Kernel(shape, dtype, parts), walks))
        except MemoryError:
            raise
        except Exception:  # a part is anybody's code: it fails again where its own reducer uses it, with its name
            log.exception("recipes can't share their walk over %s %s frames", shape, dtype)

    def made(self, batch: Batch) -> dict[int, Made]:
        """Return what the kernel made of a batch, by the reducer's place; nothing for those who share no walk."""
        found: dict[int, Made] = {}
        for kernel, walks in self._shared:
            key = next(iter(walks.values())).key
            try:
                results = kernel.run(batch.data[key], batch.index)
            except MemoryError:
                raise  # not the frame's fault: this process ends, another tries
            except Exception as error:
                log.info("frames from %d on: each recipe by itself now: %s", batch.index[0], error)
                continue
            for number, walk in walks.items():
                found[number] = _mine(results, number, walk)
        return found


def _walk_of(reducer: Reducer) -> Walk | None:
    try:
        return reducer.walk()
    except MemoryError:
        raise
    except Exception:  # a reducer is anybody's code: this one goes by itself
        log.exception("%s can't say its walk", type(reducer).__name__)
        return None


def _mine(results: Mapping[str, Mapping[str, Any]], number: int, walk: Walk) -> Made:
    return {name: results[f"{number}/{name}"] for name in walk.parts}
