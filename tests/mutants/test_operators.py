"""What is mutated, and what is left alone."""

from __future__ import annotations

import ast

from .operators import mutants, mutated

SOURCE = '''
"""Documentation."""
LIMIT = 5

def room(taken: int, log, items) -> int:
    """Return it."""
    log.warning("taken %d", taken)
    if taken >= LIMIT and not items:
        raise ValueError(f"{taken} + 1")
    items.append(taken + 1)
    return LIMIT - taken
'''


def test_each_mutant_is_one_change_that_can_be_compiled() -> None:
    found = list(mutants(SOURCE))
    plain = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in found:
        changed = ast.unparse(mutated(SOURCE, mutant)).splitlines()
        assert sum(a != b for a, b in zip(plain, changed, strict=True)) == 1
    assert len({mutant.key for mutant in found}) == len(found)


def test_boundaries_conditions_arithmetic_statements_and_returns_are_changed_and_words_are_not() -> None:
    changes = {mutant.key.partition("  →  ")[2] for mutant in mutants(SOURCE)}
    assert changes == {
        "if taken > LIMIT and (not items):",
        "if taken >= LIMIT or not items:",
        "if taken >= LIMIT and (not not items):",
        "if not (taken >= LIMIT and (not items)):",
        "pass",
        "items.append(taken - 1)",
        "items.append(taken + 2)",
        "return None",
        "return LIMIT + taken",
    }
