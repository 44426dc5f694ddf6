"""Facts about the set-up, without judgement: versions, devices, cores, memory, disk, cache folder, environment.

Nothing here raises because something is missing or broken: that is what `minimoe.doctor.findings` speaks about.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from minimoe import __version__, process

SHOWN = ("jax", "jaxlib", "flax", "optax", "numpy")
# Variables that change how fast JAX computes here, or whether it does.
VARIABLES = (
    "JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_DISABLE_JIT", "JAX_DEBUG_NANS", "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "JAX_COMPILATION_CACHE_DIR", "MINIMOE_CACHE_DIR", "XLA_FLAGS", "NPROC", "PJRT_NPROC", "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
)  # fmt: skip
ACCELERATORS = {"NVIDIA": "/dev/nvidia0", "AMD": "/dev/kfd", "Google TPU": "/dev/accel0"}


def gather() -> dict[str, Any]:
    """Everything, as plain values: JSON can hold it.

    Example:
      >>> from minimoe.doctor import gather
      >>> sorted(gather())[:4]
      ['accelerators', 'cache', 'cores', 'devices']
    """
    return {
        "versions": {"python": platform.python_version(), "minimoe": __version__} | {n: version(n) for n in SHOWN},
        "requirements": requirements(),
        "devices": devices(),
        "accelerators": [name for name, path in ACCELERATORS.items() if Path(path).exists()],
        "cores": {"usable": usable_cores(), "machine": os.cpu_count() or 1, "load": _load()},
        "memory": {"total_bytes": _memory("MemTotal"), "available_bytes": _memory("MemAvailable")},
        "cache": cache(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def version(name: str) -> str | None:
    """Of an installed package, None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements() -> list[dict[str, Any]]:
    """What minimoe asks for: name, lowest version, the extra it belongs to ("" for the core), and what is installed.

    Empty where minimoe itself is not installed but only lies on the path.
    """
    try:
        lines = metadata.requires("minimoe") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:>=\s*([0-9][\w.]*))?", line)
        extra = re.search(r"extra\s*==\s*['\"](\w+)['\"]", line)
        if match:
            name, least = match[1], match[2] or "0"
            found.append({"name": name, "least": least, "extra": extra[1] if extra else "", "has": version(name)})
    return found


def devices() -> dict[str, Any]:
    """What JAX computes on: its platform and devices, or the error that it gives instead."""
    try:
        import jax

        found = jax.devices()
        names = [f"{device.platform}:{device.id} {device.device_kind}" for device in found]
        return {
            "platform": found[0].platform,
            "names": names,
            "x64": bool(jax.config.values["jax_enable_x64"]),
            "error": None,
        }
    except Exception as error:  # whatever a broken installation raises
        words = " ".join(f"{type(error).__name__}: {error}".split())
        return {"platform": None, "names": [], "x64": False, "error": words[:300]}


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine has under ``taskset`` or in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _load() -> float | None:
    """Processes that wanted a core during the last minute, on average; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _memory(name: str) -> int | None:
    """Bytes from Linux's table of memory; elsewhere the total alone, or None."""
    try:
        table = Path("/proc/meminfo").read_text(encoding="ascii")
        return 1024 * int(re.search(rf"^{name}:\s*(\d+) kB", table, re.MULTILINE)[1])  # type: ignore[index]
    except (OSError, TypeError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if name == "MemTotal" else None
    except (AttributeError, ValueError, OSError):
        return None


def cache() -> dict[str, Any]:
    """The folder of compiled programs: where, whether it can be written, how much is in it, how much room is left."""
    folder = process.cache_folder()
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = Path(chosen) if chosen else folder
    if folder is None:
        return {"folder": None, "writable": False, "bytes": 0, "files": 0, "free_bytes": None}
    sizes = _sizes(folder)
    return {
        "folder": str(folder),
        "writable": _writable(folder),
        "bytes": sum(sizes),
        "files": len(sizes),
        "free_bytes": _free(folder),
    }


def _sizes(folder: Path) -> list[int]:
    """Bytes of each file below. `os.walk` passes over what may not be read, and files may go while others are counted."""
    sizes = []
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                sizes.append(os.stat(os.path.join(place, name)).st_size)
    return sizes


def _existing(folder: Path) -> Path:
    """The folder, or the first one above it that is there. (`Path.is_dir` raises below a folder that may not be read.)"""
    return next((path for path in (folder, *folder.absolute().parents) if os.path.isdir(path)), Path.cwd())


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return not os.path.lexists(folder) or os.path.isdir(folder)
    except OSError:
        return False


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(_existing(folder)).free
    except OSError:
        return None
