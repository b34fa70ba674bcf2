"""What stands for the catalog at the prompt until its server answers."""

from __future__ import annotations

import pytest

from haltere.interactive import Awaited


def test_it_is_asked_for_when_it_is_used_and_not_when_the_prompt_looks_it_over() -> None:
    asked: list[str] = []

    def get() -> dict[str, int]:
        asked.append("")
        return {"run": 7}

    db = Awaited(get)
    for look in ("_repr_html_", "_ipython_display_"):
        with pytest.raises(AttributeError):
            getattr(db, look)
    assert asked == []
    assert db["run"] == 7
    assert (len(db), list(db), "run" in db, repr(db), list(db.values())) == (1, ["run"], True, "{'run': 7}", [7])
    assert asked
