"""Other sources in the place of modules."""

from __future__ import annotations

import ast
import subprocess
import sys

from .loading import HOUSE, REACHED, Imported, noting, path_of
from .operators import mutants, mutated, places

SOURCE = '''
def sign(number: int) -> int:
    """Return it."""
    if number > 0:
        return 1
    elif number < 0:
        return -1
    return 0
'''


def test_a_module_says_which_of_its_places_are_reached() -> None:
    reached: set[int] = set()
    module = {REACHED: reached.add}
    exec(compile(noting(SOURCE), "", "exec"), module)
    statements = [ast.unparse(place.statement).splitlines()[0] for place in places(ast.parse(SOURCE))]
    assert module["sign"](-3) == -1
    assert {statements[number] for number in reached} == {"if number > 0:", "if number < 0:", "return -1"}


def test_functions_in_memory_become_those_of_a_mutant_wherever_they_were_imported_to() -> None:
    """In a process of its own, which is not healthy afterwards."""
    subprocess.run([sys.executable, "-m", "tests.mutants.test_loading"], check=True, cwd=HOUSE)


def become() -> None:
    """See an interval set before and after."""
    from haltere.workers.intervals import IntervalSet

    source = path_of("workers.intervals").read_text()
    (one,) = (each for each in mutants(source) if "return list(zip" in each.key and each.key.endswith("return None"))
    assert IntervalSet([(1, 3)]).ranges() == [(1, 3)]
    assert Imported(["workers.intervals"]).become("workers.intervals", mutated(source, one))
    assert IntervalSet([(1, 3)]).ranges() is None


if __name__ == "__main__":
    become()
