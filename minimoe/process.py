"""Two settings of the running process: memory that is kept between steps, and compiled programs that are kept on disk.

Importing minimoe changes neither. The `minimoe` command and the lessons call both functions; so may your program.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import platform
from pathlib import Path

# mallopt's parameters, from malloc.h, and what they are set to.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
MALLOC_OPTIONS = (
    (M_ARENA_MAX, 1),  # other arenas, which threads get, map and unmap large blocks whatever else is set
    (M_MMAP_MAX, 0),  # large blocks come from the heap, not from mappings that end with the block
    (M_TRIM_THRESHOLD, -1),  # the heap never shrinks
    (M_TOP_PAD, 2**28),  # and grows by 256 MB at a time
)
# Environment variables by which a user has chosen already; the first counts if it speaks of malloc.
TUNABLES = "GLIBC_TUNABLES"
CHOICES = (TUNABLES, "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
HUGE_PAGES = 2**31  # bytes of heap for which huge pages are asked; addresses only, memory is taken when it is used
HUGE_PAGE, MADV_HUGEPAGE = 2**21, 14


@dataclasses.dataclass(frozen=True)
class MemoryKept:
    """What `keep_memory` did: whether freed memory stays with the process, and why, in words."""

    kept: bool
    why: str


_done: MemoryKept | None = None


def keep_memory() -> MemoryKept:
    """Makes glibc keep freed memory, so that the next training step does not have to ask for it again.

    XLA's CPU back end allocates its working memory anew for every step: 600 MB for the model of `minimoe bench train`.
    By default glibc returns it to the kernel each time, and the kernel maps and zeroes it again page by page. After
    this call the process keeps its largest size until it ends, in huge pages where the kernel gives them on request.

    Call it once, early: threads that have begun to allocate keep the arenas that they have, and those arenas still
    return large blocks. It does not reach memory that another allocator manages (jemalloc, tcmalloc), nor child
    processes. Further calls do nothing.

    Returns:
      ``kept`` False, and nothing changed, on systems without glibc (macOS, Windows, musl) and where the user has
      configured malloc by environment variables (``GLIBC_TUNABLES``, ``MALLOC_ARENA_MAX``, ...).

    Example:
      >>> from minimoe.process import keep_memory
      >>> first = keep_memory()
      >>> keep_memory() == first
      True

    References:
      ``man 3 mallopt``.
    """
    global _done
    if _done is None:
        _done = _keep_memory()
    return _done


def memory_in_words() -> str:
    """How this process treats freed memory: what `keep_memory` did, or why it was not needed."""
    if _done is not None and _done.kept:
        return f"kept: {_done.why}"
    return os.environ.get(TUNABLES, "returned to the system")


def _keep_memory() -> MemoryKept:
    if not _has_glibc():
        return MemoryKept(False, "this system's C library is not glibc")
    if chosen := _chosen_by_user():
        return MemoryKept(False, f"the environment variable {chosen} configures malloc already")
    try:
        libc = ctypes.CDLL(None)
        accepted = [bool(libc.mallopt(option, value)) for option, value in MALLOC_OPTIONS]
    except (OSError, AttributeError) as error:
        return MemoryKept(False, f"mallopt cannot be called: {error}")
    if not all(accepted):
        return MemoryKept(False, "mallopt refused")
    return MemoryKept(True, "glibc keeps it, " + ("in huge pages" if _ask_for_huge_pages(libc) else "in small pages"))


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # Windows; macOS; musl
        return False


def _chosen_by_user() -> str | None:
    if "malloc" in os.environ.get(TUNABLES, ""):
        return TUNABLES
    return next((name for name in CHOICES[1:] if name in os.environ), None)


def _ask_for_huge_pages(libc: ctypes.CDLL) -> bool:
    """Lets the heap grow by `HUGE_PAGES` addresses and asks for huge pages behind them: mallopt has no such option."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(HUGE_PAGES)
    if not block:  # a limit on addresses, `ulimit -v`
        return False
    start = -(-block // HUGE_PAGE) * HUGE_PAGE
    size = (block + HUGE_PAGES - start) // HUGE_PAGE * HUGE_PAGE
    advised = libc.madvise(start, size, MADV_HUGEPAGE) == 0
    libc.free(block)
    return advised


def cache_folder() -> Path | None:
    """Where compiled programs are kept: ``MINIMOE_CACHE_DIR``, else the platform's cache folder.

    None if there is no place: the variable is empty, or the user has no home directory, or it is not there.
    """
    if "MINIMOE_CACHE_DIR" in os.environ:
        chosen = os.environ["MINIMOE_CACHE_DIR"]
        return Path(chosen) if chosen.strip() else None
    variable = {"Windows": "LOCALAPPDATA", "Darwin": ""}.get(platform.system(), "XDG_CACHE_HOME")
    if given := os.environ.get(variable):
        return Path(given) / "minimoe"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if not os.path.isdir(home):  # not ours to make
        return None
    parts = {"Windows": ("AppData", "Local"), "Darwin": ("Library", "Caches")}.get(platform.system(), (".cache",))
    return home.joinpath(*parts, "minimoe")


def keep_compiled_programs() -> Path | None:
    """Keeps compiled programs on disk (JAX's compilation cache), so that the next process need not compile them again.

    It never fails: without a folder that can be written nothing is kept. A folder that the user chose
    (``JAX_COMPILATION_CACHE_DIR``, or the option of that name) is left as it is. To keep nothing, set
    ``MINIMOE_CACHE_DIR`` to nothing.

    Returns:
      The folder, or None where nothing was set.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.values.get("jax_compilation_cache_dir"):
        return None
    folder = cache_folder()
    if folder is None or (not folder.is_absolute() and "MINIMOE_CACHE_DIR" not in os.environ):
        return None
    folder = folder.absolute() / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f".{os.getpid()}").touch()
        (folder / f".{os.getpid()}").unlink()
    except (OSError, ValueError):  # ValueError: a name with a null byte
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return folder
