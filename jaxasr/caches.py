"""Where jaxasr keeps what it can make again: converted models, downloads and compiled programs."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """$JAXASR_CACHE, else `jaxasr` in the platform's folder for users' caches; not created here."""
    named = os.environ.get("JAXASR_CACHE")
    if named:
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "jaxasr"
