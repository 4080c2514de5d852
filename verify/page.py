"""A report as a page of its own."""

import json
from collections.abc import Iterable
from html import escape
from typing import Any

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>prefold verify</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
td {{ padding: .3rem 1rem .3rem 0; vertical-align: top; border-bottom: 1px solid #ddd; }}
.passed {{ color: #067d3b; }} .FAILED {{ color: #b3001b; font-weight: bold; }}
pre {{ background: #f6f6f6; padding: 1rem; overflow-x: auto; }}
</style></head><body>
<h1>{title}</h1><p>Verification <span class="{verdict}">{verdict}</span>.</p>
<table>{rows}</table><details><summary>All figures</summary><pre>{figures}</pre></details>
</body></html>
"""


def html_page(title: str, verdict: str, rows: Iterable[tuple[str, str, list[str]]], figures: dict[str, Any]) -> str:
    """Lay out one row for each check: its name, its verdict (a CSS class too), and its lines."""
    cells = (
        f"<tr><td>{escape(name)}</td><td class='{word}'>{word}</td><td>{'<br>'.join(map(escape, lines))}</td></tr>"
        for name, word, lines in rows
    )
    shown = escape(json.dumps(figures, indent=2))
    return _PAGE.format(title=escape(title), verdict=verdict, rows="".join(cells), figures=shown)
