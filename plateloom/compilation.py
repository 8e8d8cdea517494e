"""Kernels that are compiled when they are first called, so that listing columns does not import numba.

A kernel calls kernels of its own module only: the cache on disk notices a change in the file of the kernel that was
called, not in the files of those that it calls.
"""

import contextlib
import functools
import os
import threading

_compiling = threading.Lock()


def kernel(function=None, *, inline="never"):
    """Compile a function with numba at the first call of any kernel of its module.

    Compiled code releases the GIL, is cached on disk, divides as numpy does (by zero: infinity or NaN) and computes
    every operation as it is written (no fastmath). With ``@kernel(inline="always")`` numba copies it into the kernels that
    call it.
    """
    if function is None:
        return functools.partial(kernel, inline=inline)

    @functools.wraps(function)
    def compile_and_call(*arguments):
        return _compile_module(function)(*arguments)

    # Of the source as it was read: an edit while this process runs must not pass the old code for the new.
    source = os.stat(function.__code__.co_filename)
    compile_and_call.uncompiled_kernel = function, (source.st_mtime_ns, source.st_size), inline
    return compile_and_call


def _compile_module(function):
    """Replace the kernels in the function's module by compiled ones; return the function's own."""
    namespace = function.__globals__
    with _compiling:
        compiled = {
            name: _compile(*value.uncompiled_kernel)
            for name, value in namespace.items()
            if hasattr(value, "uncompiled_kernel")
        }
        # All at once: another thread may compile one of them before this one has found the next.
        namespace.update(compiled)
        return namespace[function.__name__]


def _compile(function, stamp, inline="never"):
    import numba

    from plateloom.kernel_cache import KernelCache

    compiled = numba.njit(nogil=True, error_model="numpy", inline=inline)(function)
    # Where no folder can be written to, every job compiles.
    with contextlib.suppress(RuntimeError):
        # What `cache=True` does, with another cache.
        compiled._cache = KernelCache(function, stamp)
    return compiled
