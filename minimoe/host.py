"""What the command line asks of the computer it runs on: a memory allocator that keeps pages, and a compilation cache.

A library that is imported changes neither; only `minimoe` commands and the notebooks do.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

# XLA's CPU back end allocates its working memory anew for every step, 600 MB for the model of `minimoe bench train`,
# and glibc gives it back to the kernel each time, to be zeroed and mapped again page by page. Keeping it, in huge pages,
# made a training step of the nano preset about a third faster. One arena, because the others, which threads get, map
# and unmap large blocks whatever the other settings say: on a virtual machine, where freed pages may go back to the
# host, that alone made some steps of the larger model take twice as long.
GLIBC_TUNABLES = ":".join(
    (
        "glibc.malloc.arena_max=1",
        "glibc.malloc.hugetlb=1",
        "glibc.malloc.mmap_max=0",
        "glibc.malloc.trim_threshold=4294967296",
        "glibc.malloc.top_pad=268435456",
    )
)


def allocator_environment() -> dict[str, str]:
    """Environment variables that make glibc keep its pages; empty where they do not apply or the user chose already."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return {}
    return {"GLIBC_TUNABLES": GLIBC_TUNABLES}


def restart_with_allocator(module: str) -> None:
    """Replaces this process by ``python -m module`` with the same arguments and `allocator_environment`.

    glibc reads these settings when a process starts, hence the restart; it costs a few hundredths of a second and
    happens before anything heavy is imported. Does nothing where there is nothing to set.
    """
    settings = allocator_environment()
    if settings:
        os.environ.update(settings)
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


def cache_folder() -> Path:
    """Where compiled programs are kept: ``MINIMOE_CACHE_DIR``, else the platform's cache folder."""
    if "MINIMOE_CACHE_DIR" in os.environ:
        return Path(os.environ["MINIMOE_CACHE_DIR"])
    if platform.system() == "Windows":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "minimoe"
    if platform.system() == "Darwin":
        return Path.home() / "Library" / "Caches" / "minimoe"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minimoe"


def enable_compilation_cache() -> None:
    """Turns JAX's persistent compilation cache on, unless the user has set it or the folder cannot be written."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ or getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    folder = cache_folder() / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
