"""The outcome of one check, and of all of them."""

import json
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from prefold.common.errors import UNVERIFIED, PrefoldError, UsageError

# In this order; speed follows where it is asked for.
CHECKS = ("structure", "text", "rows", "logits", "greedy", "reads")
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


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check: a summary for a person, all figures, and a line for each problem."""

    passed: bool
    summary: str
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the figures under ``passed``, ``summary``, ``problems`` and their own names."""
        return {"passed": self.passed, "summary": self.summary, "problems": self.problems} | self.figures


def not_run(why: str) -> Outcome:
    """Return the outcome of a check that cannot be made: it has not passed."""
    return Outcome(False, f"not run: {why}")


@dataclass(frozen=True)
class Verification:
    """The outcomes of all checks of a folded checkpoint, by name in the order of ``CHECKS``, then ``speed``."""

    source: str
    folded: str
    checks: dict[str, Outcome]

    @property
    def passed(self) -> bool:
        """Whether every check has passed."""
        return all(outcome.passed for outcome in self.checks.values())

    @property
    def failed(self) -> list[str]:
        """Name the checks that did not pass."""
        return [name for name, outcome in self.checks.items() if not outcome.passed]

    def as_json(self) -> dict[str, Any]:
        """Return all figures; the names of the two folders are left out, so that they compare.

        JSON has no infinity: a figure that is not finite is null.
        """
        checks = {name: outcome.as_json() for name, outcome in self.checks.items()}
        figures: dict[str, Any] = json.loads(json.dumps(checks), parse_constant=lambda _: None)
        return {"passed": self.passed, "checks": figures}

    def as_markdown(self) -> str:
        """Return a table for a model card."""
        bar = r"\|"  # in a table's cell a bare bar would begin the next cell
        rows = [
            f"| {name} | {_word(outcome.passed)} | {outcome.summary.replace('|', bar)} |"
            for name, outcome in self.checks.items()
        ]
        problems = [f"- {name}: {line}" for name, outcome in self.checks.items() for line in outcome.problems]
        title = "## Verification\n\n| check | | measured |\n|---|---|---|\n"
        return title + "\n".join([*rows, *([""] if problems else []), *problems]) + "\n"

    def as_html(self) -> str:
        """Return a page of its own."""
        rows = [(name, _word(o.passed), [o.summary, *o.problems]) for name, o in self.checks.items()]
        cells = (
            f"<tr><td>{escape(name)}</td><td class='{word}'>{word}</td><td>{'<br>'.join(map(escape, lines))}</td></tr>"
            for name, word, lines in rows
        )
        title, figures = escape(f"{self.folded} against {self.source}"), escape(json.dumps(self.as_json(), indent=2))
        return _PAGE.format(title=title, verdict=_word(self.passed), rows="".join(cells), figures=figures)


class VerificationFailed(PrefoldError):
    """A folded checkpoint is not what its source is; ``verification`` holds all outcomes."""

    exit_code = UNVERIFIED

    def __init__(self, verification: Verification) -> None:
        """Show one line for each problem."""
        checks = verification.checks.items()
        lines = [f"{name}: {line}" for name, outcome in checks for line in outcome.problems]
        super().__init__("\n".join([f"verification failed: {', '.join(verification.failed)}", *lines]))
        self.verification = verification


def write_report(verification: Verification, file: Path) -> None:
    """Write a report as a page, ``.html`` or ``.md``.

    Raises:
        UsageError: the file's name ends otherwise.
    """
    pages = {".html": verification.as_html, ".md": verification.as_markdown}
    if file.suffix not in pages:
        raise UsageError(f"{file}: a report is a page, .html or .md")
    file.write_text(pages[file.suffix](), encoding="utf-8", errors="backslashreplace")  # a name may be any bytes


def _word(passed: bool) -> str:
    return "passed" if passed else "FAILED"
