"""One reduction of a run that has ended, as the pool knows it: its name there, its recipes, its frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..workers import recipes as recipe_rules
from ..workers.recipes import Recipe


@dataclass(frozen=True, slots=True)
class Reduction:
    """What a dispatcher makes of a raw run's documents when the run is over.

    A run that is reduced as it is measured has its raw uid for a name in the pool. Every other reduction of it has the
    processed run's uid, so the ledger keeps them apart, whatever is reduced at the same time.

    Parameters
    ----------
    raw
        The raw run's uid.
    name
        What the messages call this reduction.
    processed
        The processed run's uid.
    recipes
        What is made of the frames.
    totals
        Frames of each detector.
    batches
        Frames that go together, of the detectors whose former results are taken over.
    supersedes
        The processed run in whose place this one comes.
    mode
        What of that one is done again: see :data:`haltere.backfill.MODES`.
    """

    raw: str
    name: str
    processed: str
    recipes: tuple[Recipe, ...]
    totals: Mapping[str, int]
    batches: Mapping[str, int] = field(default_factory=dict)
    supersedes: str | None = None
    mode: str = ""

    def marks(self) -> dict[str, str]:
        """Return what its start document says beside the raw run's."""
        if self.name == self.raw:
            return {}  # it carries on, or does what wasn't done when the run was measured
        return {"backfill": self.mode} | ({} if self.supersedes is None else {"supersedes": self.supersedes})


def attempt_uid(raw: str, recipes: Sequence[Recipe], attempt: int) -> str:
    """Return the processed run's uid of the ``attempt``-th time that these recipes are applied: 0 is the first.

    >>> attempt_uid("a", [], 0) == recipe_rules.processed_uid("a", []) != attempt_uid("a", [], 1)
    True
    """
    base = recipe_rules.processed_uid(raw, recipes)
    return base if attempt == 0 else recipe_rules.processed_uid(f"{base} {attempt}", ())
