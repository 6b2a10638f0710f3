"""Takes models that nothing uses any more out of the cache: each change of their source builds another one."""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

# A stack that has just been given a folder does not run on it yet.
KEPT_AFTER_USE_S = 3600.0


def drop_unused_models(current: Path) -> list[Path]:
    """Notes the use of `current` and drops its neighbours that no process names and none was given lately.

    Returns what was dropped.
    """
    # A folder's time is that of its last use. A cache of another user's is left alone.
    with suppress(PermissionError):
        os.utime(current)
    cache = current.parent
    used_before_s = time.time() - KEPT_AFTER_USE_S
    old = [
        folder for folder in cache.glob("models-*") if folder != current and _used_s(folder) < used_before_s
    ]
    running = _command_lines() if old else b""
    # A supervisor's command line names the folder, too: its Triton may be dead for a moment.
    dropped = [folder for folder in old if os.fsencode(folder.name) not in running]
    for folder in dropped:
        aside = folder.with_name(f".unused-{folder.name}")
        # At once, so that nobody finds half of it; another process may have been faster.
        with suppress(OSError):
            folder.rename(aside)
    for aside in cache.glob(".unused-*"):
        shutil.rmtree(aside, ignore_errors=True)
    for lock in cache.glob(".models-*-build.lock"):
        if not list(cache.glob(lock.name.removeprefix(".").removesuffix("-build.lock"))):
            lock.unlink(missing_ok=True)
    return dropped


def _used_s(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _command_lines() -> bytes:
    lines = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                lines.append((process / "cmdline").read_bytes())
    return b"\0".join(lines)
