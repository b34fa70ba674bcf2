"""Loads other sources in the place of modules: before they are imported, or into what was imported already."""

from __future__ import annotations

import ast
import gc
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Final

from .operators import places

HOUSE: Final = Path(__file__).parents[2]
REACHED: Final = "__reached__"


def path_of(module: str) -> Path:
    """Return where a module is, e.g. ``workers.intervals``."""
    return HOUSE / f"{module.replace('.', '/')}.py"


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds some modules, and runs other trees in their place."""

    def __init__(self, trees: Mapping[str, ast.Module], reached: Callable[[str], Callable[[int], None]]) -> None:
        self._trees, self._reached = trees, reached

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find it."""
        module = fullname.removeprefix("haltere.")
        if module == fullname or module not in self._trees:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=str(path_of(module)))

    def exec_module(self, module: ModuleType) -> None:
        """Run it."""
        name = module.__name__.removeprefix("haltere.")
        module.__dict__[REACHED] = self._reached(name)
        exec(compile(self._trees[name], str(path_of(name)), "exec", dont_inherit=True), module.__dict__)


def noting(source: str) -> ast.Module:
    """Return a module that says of each of its places that it was reached, by calling ``REACHED`` with its number."""
    tree = ast.parse(source)
    numbers = {id(place.statement): number for number, place in enumerate(places(tree))}

    class Note(ast.NodeTransformer):
        def generic_visit(self, node: ast.AST) -> ast.AST:
            super().generic_visit(node)
            for field in ("body", "orelse", "finalbody"):
                statements = getattr(node, field, None)
                if isinstance(statements, list):
                    setattr(node, field, [each for statement in statements for each in self._noted(statement)])
            return node

        def _noted(self, statement: ast.stmt) -> Iterator[ast.stmt]:
            if (number := numbers.get(id(statement))) is not None:
                call = ast.Call(ast.Name(REACHED, ast.Load()), [ast.Constant(number)], [])
                yield ast.copy_location(ast.Expr(call), statement)
            yield statement

    noted = Note().visit(tree)
    assert isinstance(noted, ast.Module)
    return ast.fix_missing_locations(noted)


class Imported:
    """The functions of modules, as they are in memory, whose code can be exchanged for that of a mutant."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._codes: dict[str, list[CodeType]] = {}
        self._living: dict[str, dict[CodeType, list[FunctionType]]] = {}
        names = {}
        for module in modules:
            imported = sys.modules[f"haltere.{module}"]
            names[imported.__file__] = module
            self._codes[module] = _functions(_compiled(path_of(module).read_text()))
            self._living[module] = {}
        for each in gc.get_objects():
            if isinstance(each, FunctionType) and (known := names.get(each.__code__.co_filename)):
                self._living[known].setdefault(each.__code__, []).append(each)

    def become(self, module: str, tree: ast.Module) -> bool:
        """Change the functions whose code is another in this tree; return whether all could be changed."""
        found = False
        for old, new in zip(self._codes[module], _functions(_compiled(tree)), strict=True):
            if _same(old, new):
                continue
            for function in self._living[module].get(old, ()):
                if old.co_freevars != new.co_freevars:
                    return False
                function.__code__ = new
                found = True
        return found


def _compiled(source: str | ast.Module) -> CodeType:
    return compile(source, "mutated", "exec", dont_inherit=True)


def _functions(code: CodeType) -> list[CodeType]:
    """Return the code of a module's functions and methods, in their order, without functions inside functions."""
    found: list[CodeType] = []
    for each in code.co_consts:
        if isinstance(each, CodeType):
            is_class_body = not each.co_flags & 0x2  # CO_NEWLOCALS
            found += _functions(each) if is_class_body else [each]
    return found


def _same(old: CodeType, new: CodeType) -> bool:
    """Say whether two do the same; lines don't matter."""
    for part in ("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_exceptiontable"):
        if getattr(old, part) != getattr(new, part):
            return False
    if len(old.co_consts) != len(new.co_consts):
        return False
    return all(
        _same(a, b) if isinstance(a, CodeType) and isinstance(b, CodeType) else type(a) is type(b) and a == b
        for a, b in zip(old.co_consts, new.co_consts, strict=True)
    )
