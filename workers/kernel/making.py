"""Machine code, made by Numba.

Numba compiles each function to an end: it optimises it, makes it machine code, and wraps it for Python and for C; then
it does so again within each function that calls it. For functions that only compiled code calls that is most of the
work, and all in vain. So here they are only translated; they are optimised, and become machine code, once, within what
Python calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import _dynfunc, types
from numba.core import cgutils, codegen
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import register_pass
from numba.core.registry import cpu_target
from numba.core.typed_passes import NativeLowering

from .compiling import CHECKED, FAILED
from .kept import SYMBOL

OPTIONS: Final = {
    "nogil": True,
    "error_model": "numpy",
    "boundscheck": CHECKED,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "_nrt": False,  # references to arrays aren't counted: that took a tenth of the time of small calls
}

I64: Final = ir.IntType(64)

# Functions begin where a cache line does: where the loop over LZ4's sequences lies in one decides over a twentieth of
# the time, and otherwise chance would.
llvmlite.binding.set_option("haltere", "-align-all-functions=6")


class _Translated(codegen.JITCodeLibrary):  # type: ignore[misc]  # Numba has no types
    """A function and what it calls, as LLVM's language, before it is optimised as a whole."""

    def finalize(self) -> None:
        """Put what it calls beside it."""
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._final_module.verify()
        self._finalized = True

    def machine_code(self) -> bytes:
        """Return it optimised, as an object file."""
        self._ensure_finalized()
        self._optimize_final_module()
        missing = [
            each.name
            for each in self._final_module.functions
            if each.is_declaration and not each.name.startswith("llvm.")
        ]
        if missing:
            raise NotImplementedError(f"compiled code needs {', '.join(missing)}, which is Numba's own")
        return bytes(self._codegen._tm.emit_object(self._final_module))


@register_pass(mutates_CFG=True, analysis_only=False)
class _Translation(NativeLowering):  # type: ignore[misc]
    """Numba's last step, without machine code."""

    _name = "haltere_translation"

    def run_pass(self, state: Any) -> bool:
        """Translate a function."""
        state.library = _Translated(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        made = state["cr"]
        # Numba looks callees up by the callable that it makes of them; nobody calls this one.
        key = _dynfunc.make_function(
            made.fndesc.lookup_module(), state.func_id.func_name, "", 0, made.env, (state.library,)
        )
        state.targetctx.insert_user_function(key, made.fndesc, [state.library])
        state["cr"] = made._replace(cfunc=key)
        return True


class _Translator(CompilerBase):  # type: ignore[misc]
    def define_pipelines(self) -> list[Any]:
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.passes = [(_Translation if each is NativeLowering else each, told) for each, told in pipeline.passes]
        pipeline.finalize()
        return [pipeline]


@cache  # Numba's types of functions don't keep them alive
def _dispatcher(function: Callable[..., Any], merged: bool = False) -> Any:
    dispatcher = numba.njit(pipeline_class=_Translator, forceinline=merged, **OPTIONS)(function)
    # Numba would compile it anew where a caller's variable begins as a literal number (``tile = 0``), though that
    # becomes an int64 once the loop is known.
    template = dispatcher.get_call_template
    dispatcher.get_call_template = lambda args, kws: template(tuple(map(types.unliteral, args)), kws)
    return dispatcher


def type_of_function(function: Callable[..., Any], *, merged: bool) -> Any:
    """Return what Numba knows a function by that compiled code calls; ``merged`` : as a piece of its caller."""
    return types.Dispatcher(_dispatcher(function, merged))


def type_of_instruction(function: Callable[..., Any]) -> Any:
    """Return what Numba knows an intrinsic by."""
    made = numba.extending.intrinsic(function)
    cpu_target.typing_context.refresh()  # Numba looks for new ones before it begins, not on the way
    return cpu_target.typing_context.resolve_value_type(made)


@global_compiler_lock  # type: ignore[untyped-decorator]
def machine_code(function: Callable[..., Any], arguments: Sequence[Any]) -> bytes:
    """Return an object file with ``int64 haltere_entry(int64 *values)``, for arguments like these.

    ``values`` are those of :class:`.compiling.Packed`, one argument's after the other.
    """
    context = cpu_target.target_context
    cpu_target.typing_context.refresh()
    context.refresh()
    kinds = tuple(_kind(each) for each in arguments)
    dispatcher = _dispatcher(function)
    dispatcher.compile(kinds)
    made = dispatcher.overloads[kinds]
    library = _Translated(context.codegen(), function.__name__)
    library.add_linking_library(made.library)
    library.add_ir_module(_entry(context, library, made, kinds))
    return library.machine_code()


def _kind(given: Any) -> Any:
    if isinstance(given, np.ndarray):
        return types.Array(numba.from_dtype(given.dtype), given.ndim, "C")
    if isinstance(given, tuple):
        return types.NamedTuple([_kind(each) for each in given], type(given))
    return types.float64 if isinstance(given, float) else types.int64


def _entry(context: Any, library: Any, made: Any, kinds: Sequence[Any]) -> ir.Module:
    """Return the function that takes numbers from memory and calls the compiled one."""
    module = library.create_ir_module(SYMBOL)
    function = ir.Function(module, ir.FunctionType(I64, [I64.as_pointer()]), SYMBOL)
    builder = ir.IRBuilder(function.append_basic_block())
    values = _Values(context, builder, function.args[0])
    callee = context.declare_function(module, made.fndesc)
    status, result = context.call_conv.call_function(
        builder, callee, made.signature.return_type, kinds, [values.take(kind) for kind in kinds]
    )
    if made.signature.return_type in (types.none, types.void):
        result = ir.Constant(I64, 0)
    builder.ret(builder.select(status.is_error, ir.Constant(I64, FAILED), result))
    return module


class _Values:
    """Reads one value after the other."""

    def __init__(self, context: Any, builder: Any, source: Any) -> None:
        self._context, self._builder, self._source = context, builder, source
        self._at = 0

    def _next(self) -> Any:
        place = self._builder.gep(self._source, [ir.Constant(I64, self._at)], source_etype=I64)
        self._at += 1
        return self._builder.load(place, typ=I64)

    def take(self, kind: Any) -> Any:
        """Return a number, an array or a tuple."""
        context, builder = self._context, self._builder
        if isinstance(kind, types.NamedTuple):
            return context.make_tuple(builder, kind, [self.take(each) for each in kind.types])
        if isinstance(kind, types.Array):
            return self._array(kind)
        return builder.bitcast(self._next(), ir.DoubleType()) if kind == types.float64 else self._next()

    def _array(self, kind: Any) -> Any:
        context, builder = self._context, self._builder
        element = context.get_data_type(kind.dtype)
        data = builder.inttoptr(self._next(), element.as_pointer())
        shape = [self._next() for _ in range(kind.ndim)]
        step = ir.Constant(I64, context.get_abi_sizeof(element))
        strides = [step]
        for length in reversed(shape[1:]):
            strides.insert(0, builder.mul(strides[0], length))
        made = context.make_array(kind)(context, builder)
        context.populate_array(
            made,
            data=data,
            shape=cgutils.pack_array(builder, shape),
            strides=cgutils.pack_array(builder, strides),
            itemsize=step,
            meminfo=None,
        )
        return made._getvalue()
