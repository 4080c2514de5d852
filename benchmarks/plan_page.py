"""``docs/plan-validation.md``: every script that checks the plan writes a section of its own and leaves the others."""

import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "plan-validation.md"
_HEAD = """# What `prefold plan` is checked against

Written by the scripts that its sections name; a section is replaced when its script runs again.
"""


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    """Put a section into the page, in the place of the one of that name, or at the end."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    section = f"{start}\n{text.strip()}\n\n{end}"
    before = page.read_text(encoding="utf-8") if page.exists() else _HEAD
    if start in before:
        head, rest = before.split(start, 1)
        after = head + section + rest.split(end, 1)[1]
    else:
        after = f"{before.rstrip()}\n\n{section}"
    page.write_text(after, encoding="utf-8")


def show_or_write(name: str, text: str, page: Path = PAGE, *, show: bool) -> None:
    """Print a section, or put it into the page."""
    if show:
        sys.stdout.write(text + "\n")
    else:
        write_section(name, text, page)
