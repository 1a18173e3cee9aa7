"""The tables of docs/ENGINE_FIELDS.md."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs" / "ENGINE_FIELDS.md"


def read_page() -> dict[str, dict[str, str]]:
    """Heading -> field -> whether it changes bytes."""
    found: dict[str, dict[str, str]] = {}
    heading = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line[3:].strip()
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            for name in re.findall(r"`([^`]+)`", cells[0]):
                assert name not in found.setdefault(heading, {}), f"{heading}.{name} is there twice"
                found[heading][name] = cells[1]
    return found
