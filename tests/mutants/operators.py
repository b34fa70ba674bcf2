"""Small changes to a module's source, each of which a good suite of tests notices.

Left alone are docstrings, annotations, what is logged, texts, and constants of a module: how long something waits is
a choice, not a fact that a test should repeat. So are assertions, to which ``zip``'s ``strict`` belongs.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from typing import Final, NamedTuple

COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ARITHMETIC: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}

NOT_ITS_OWN: Final = frozenset(
    ("body", "orelse", "handlers", "finalbody", "cases", "annotation", "decorator_list", "returns", "args")
)
"""Fields of statements that are other statements, or declarations."""

LOGGING: Final = ("log.", "self._warn", "self._complain")
"""How calls begin that only tell people something."""


class Place(NamedTuple):
    """A statement that is changed, and the names of the classes and functions that it stands in."""

    statement: ast.stmt
    where: str


class Mutant(NamedTuple):
    """A changed module."""

    line: int
    key: str
    """Names the change by its place and its texts, so that it outlives other lines."""
    place: int
    """Number of the changed statement among ``places``."""
    change: int
    """Number of the change among those of this statement."""


def places(tree: ast.Module) -> list[Place]:
    """Return the statements that are changed."""
    return list(_statements(tree, ""))


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module."""
    seen: dict[str, int] = {}
    for number, (statement, where) in enumerate(places(ast.parse(source))):
        for change, changed in enumerate(_changes(statement)):
            key = f"{where}: {_first_line(statement)}  →  {_first_line(changed)}"
            seen[key] = seen.get(key, 0) + 1
            if seen[key] > 1:
                key += f"  ({seen[key]})"
            yield Mutant(statement.lineno, key, number, change)


def mutated(source: str, mutant: Mutant) -> ast.Module:
    """Return a mutant of a module."""
    tree = ast.parse(source)
    old = places(tree)[mutant.place].statement
    new = list(_changes(old))[mutant.change]

    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return ast.copy_location(new, old) if node is old else self.generic_visit(node)

    changed = Replace().visit(tree)
    assert isinstance(changed, ast.Module)
    return ast.fix_missing_locations(changed)


def _statements(node: ast.AST, where: str) -> Iterator[Place]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield from _statements(child, f"{where}.{child.name}".lstrip("."))
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            if isinstance(child, ast.stmt) and where and not _quiet(child, node):
                yield Place(child, where)
            yield from _statements(child, where)


def _quiet(statement: ast.stmt, parent: ast.AST) -> bool:
    """Say whether a statement is documentation, a declaration or a line of the log."""
    if isinstance(parent, ast.ClassDef) or isinstance(statement, ast.Pass | ast.Import | ast.ImportFrom | ast.Assert):
        return True
    if isinstance(statement, ast.Expr):
        value = statement.value
        if isinstance(value, ast.Constant):
            return True
        return isinstance(value, ast.Call) and ast.unparse(value.func).startswith(LOGGING)
    return False


def _changes(statement: ast.stmt) -> list[ast.stmt]:
    """Return changed copies of a statement, each once; of a compound one only its head is changed."""
    return list({ast.unparse(ast.fix_missing_locations(each)): each for each in _every_change(statement)}.values())


def _every_change(statement: ast.stmt) -> Iterator[ast.stmt]:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        yield ast.Pass()
    if isinstance(statement, ast.AugAssign | ast.Delete | ast.Raise):
        yield ast.Pass()
    if isinstance(statement, ast.Assign) and not isinstance(statement.targets[0], ast.Name | ast.Tuple):
        yield ast.Pass()
    if isinstance(statement, ast.Break):
        yield ast.Continue()
    if isinstance(statement, ast.Continue):
        yield ast.Break()
    if isinstance(statement, ast.Return) and statement.value is not None and not _is_false(statement.value):
        yield ast.Return(ast.Constant(None))
    if isinstance(statement, ast.AugAssign) and type(statement.op) in ARITHMETIC:
        changed = copy.deepcopy(statement)
        changed.op = ARITHMETIC[type(statement.op)]()
        yield changed
    if isinstance(statement, ast.If | ast.While) and not isinstance(statement.test, ast.Compare):
        changed_if = copy.deepcopy(statement)
        changed_if.test = ast.UnaryOp(ast.Not(), changed_if.test)
        yield changed_if
    for number in range(len(list(_expressions(statement)))):
        for kind in range(2):
            other = copy.deepcopy(statement)
            target = list(_expressions(other))[number]
            if _change(target, kind):
                yield other


def _expressions(statement: ast.stmt) -> Iterator[ast.expr]:
    """Yield the expressions of a statement's own, not those of statements in it, nor annotations and texts."""
    if isinstance(statement, ast.Raise):
        return
    for name, value in ast.iter_fields(statement):
        if name in NOT_ITS_OWN:
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.expr):
                yield from _within(each)
            elif isinstance(each, ast.withitem):
                yield from _within(each.context_expr)


def _within(expression: ast.expr) -> Iterator[ast.expr]:
    if isinstance(expression, ast.JoinedStr):
        return
    yield expression
    for child in ast.iter_child_nodes(expression):
        if isinstance(child, ast.expr):
            yield from _within(child)
        elif isinstance(child, ast.comprehension):
            yield from _within(child.iter)
            for condition in child.ifs:
                yield from _within(condition)
        elif isinstance(child, ast.keyword) and child.arg != "strict":
            yield from _within(child.value)


def _change(target: ast.expr, kind: int) -> bool:
    """Change an expression in place, in its first or second way; return whether there was one."""
    match target:
        case ast.Compare() if kind == 0 and type(target.ops[0]) in COMPARISONS:
            target.ops[0] = COMPARISONS[type(target.ops[0])]()
            return True
        case ast.Compare() if kind == 1 and len(target.ops) > 1:
            target.ops[1] = COMPARISONS[type(target.ops[1])]()
            return True
        case ast.BoolOp() if kind == 0:
            target.op = ast.Or() if isinstance(target.op, ast.And) else ast.And()
            return True
        case ast.BinOp() if kind == 0 and type(target.op) in ARITHMETIC and not _text(target):
            target.op = ARITHMETIC[type(target.op)]()
            return True
        case ast.UnaryOp(op=ast.Not()) if kind == 0:
            target.operand = ast.UnaryOp(ast.Not(), target.operand)
            return True
        case ast.IfExp() if kind == 0:
            target.test = ast.UnaryOp(ast.Not(), target.test)
            return True
        case ast.Constant() if kind == 0 and isinstance(target.value, bool):
            target.value = not target.value
            return True
        case ast.Constant() if kind == 0 and isinstance(target.value, int | float):
            target.value = target.value + 1
            return True
    return False


def _text(operation: ast.BinOp) -> bool:
    return any(
        isinstance(each, ast.JoinedStr) or (isinstance(each, ast.Constant) and isinstance(each.value, str))
        for each in (operation.left, operation.right)
    )


def _is_false(value: ast.expr) -> bool:
    """Say whether it is None, or what its callers can't tell from None."""
    return isinstance(value, ast.Constant) and (value.value is None or value.value is False)


def _first_line(statement: ast.stmt) -> str:
    return ast.unparse(ast.fix_missing_locations(statement)).splitlines()[0]
