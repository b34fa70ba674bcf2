"""What a reducer may announce, and how one that breaks the rules is named."""

from __future__ import annotations

from typing import Any

import pytest

from haltere.workers import recipes
from haltere.workers.errors import ReductionError
from haltere.workers.reducers.base import Output
from haltere.workers.wire.messages import InputSpec, RecipeSpec

SPEC = RecipeSpec("sums", "stub", b"{}")
INPUTS = [InputSpec("flux", (), "<f8")]


class Announcing:
    """A reducer that announces what it is told to, or raises it."""

    def __init__(self, outputs: Any) -> None:
        self._outputs = outputs

    def outputs(self, inputs: tuple[InputSpec, ...]) -> Any:
        """Return it."""
        if isinstance(self._outputs, Exception):
            raise self._outputs
        return self._outputs


@pytest.mark.parametrize("dtype", ["<i8", "<u4", "|u1", "<f8", "<f4", "|b1"])
@pytest.mark.parametrize("kind", ["nav", "acc", "const"])
def test_what_adds_over_frames_is_an_integer_and_nothing_else_need_be(kind: str, dtype: str) -> None:
    announced = {"x": Output(kind, (3,), dtype)}
    if kind == "acc" and dtype[1] not in "iu":
        with pytest.raises(ReductionError, match="its last digits would depend on the order"):
            recipes.checked(announced)
    else:
        assert recipes.checked(announced) == announced


@pytest.mark.parametrize(
    ("announced", "complaint"),
    [
        ({"sum": Output("acc", (), "<f4")}, "recipe sums: output sum adds up over frames as <f4"),
        ({"sum": Output("total", (), "<i8")}, "recipe sums: output sum is of kind 'total'"),
        ({"sum": Output("nav", (), "<c16")}, "recipe sums: output sum is of type '<c16'"),
        ({"sum": Output("nav", (), "<f7")}, "recipe sums: output sum is of type '<f7'"),
        (ReductionError("no flux"), "recipe sums: no flux"),
        (KeyError("flux"), "recipe sums: KeyError: 'flux'"),
        (None, "recipe sums: AttributeError"),
    ],
)
def test_a_recipe_whose_reducer_breaks_a_rule_is_named_with_it(announced: Any, complaint: str) -> None:
    with pytest.raises(ReductionError) as caught:
        recipes.outputs(SPEC, INPUTS, lambda spec: Announcing(announced))
    assert complaint in str(caught.value)


def test_recipes_on_one_detector_have_one_policy() -> None:
    positions = {"name": "positions", "reducer": "columns", "source": "pilc", "policy": "block"}
    again, other = positions | {"name": "again"}, positions | {"name": "other", "source": "card", "policy": "spill"}
    assert [each.policy for each in recipes.parse([positions, again, other])] == ["block", "block", "spill"]
    with pytest.raises(ReductionError, match="recipe positions has policy 'block', and again on the same detector pil"):
        recipes.parse([positions, again | {"policy": "drop"}])


def test_a_policy_that_there_is_not_is_named() -> None:
    with pytest.raises(ReductionError, match=r"recipe 0: Invalid enum value 'wait' - at `\$.policy`"):
        recipes.parse([{"name": "positions", "reducer": "columns", "source": "pilc", "policy": "wait"}])


def test_no_hash_depends_on_the_policy() -> None:
    dropped, blocked = (recipes.Recipe("positions", "columns", "pilc", {}, policy) for policy in ("drop", "block"))
    assert recipes.cfg_hash([dropped.spec()]) == recipes.cfg_hash([blocked.spec()])
    assert recipes.processed_uid("run", [dropped]) == recipes.processed_uid("run", [blocked])


def test_what_the_installed_reducers_announce_keeps_the_rules() -> None:
    outputs = recipes.outputs(RecipeSpec("positions", "columns", b"{}"), INPUTS)
    assert outputs["flux"].kind == "nav"
