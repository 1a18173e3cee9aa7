"""The commands ``kvmd`` and ``kvctl`` of an installed package: they become the programs that lie in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn


def _become(name: str, without: str) -> NoReturn:
    program = Path(__file__).parent / "bin" / name
    if not os.access(program, os.X_OK):
        sys.exit(f"{name}: this package has none; {without}")
    os.execv(program, [name, *sys.argv[1:]])


def kvmd() -> NoReturn:
    """Become kvmd, with the arguments of this process."""
    _become("kvmd", "install it again (pip install ./client/python builds kvmd too)")


def kvctl() -> NoReturn:
    """Become kvctl, with the arguments of this process."""
    _become("kvctl", "a wheel of scripts/wheel.sh has it, and `cmake --build --preset release` builds it")
