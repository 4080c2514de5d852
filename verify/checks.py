"""The outcome of one check, and of all of them."""

import json
from dataclasses import dataclass, field
from typing import Any

NAMES = ("structure", "rows", "logits", "greedy", "reads", "speed")


@dataclass(frozen=True)
class Outcome:
    """What one check found.

    Attributes:
        passed: whether it holds.
        summary: one line for a person.
        figures: everything measured.
        problems: what is wrong, one line each.
    """

    passed: bool
    summary: str
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the figures under ``passed``, ``summary``, ``problems`` and their own names."""
        return {"passed": self.passed, "summary": self.summary, "problems": self.problems} | self.figures


def not_run(why: str) -> Outcome:
    """Return the outcome of a check that could not be made: it has not passed."""
    return Outcome(False, f"not run: {why}")


@dataclass(frozen=True)
class Verification:
    """What is known of a folded checkpoint.

    Attributes:
        source: what it was compared with.
        folded: what was checked.
        checks: by name, in the order of ``NAMES``; ``speed`` only where it was asked for.
    """

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
        """Return all figures; the names of the two folders are left out, so that they compare."""
        return {"passed": self.passed, "checks": {name: outcome.as_json() for name, outcome in self.checks.items()}}

    def as_markdown(self) -> str:
        """Return a table for a model card."""
        rows = [f"| {name} | {_word(outcome.passed)} | {outcome.summary} |" for name, outcome in self.checks.items()]
        problems = [f"- {name}: {line}" for name, outcome in self.checks.items() for line in outcome.problems]
        title = "## Verification\n\n| check | | measured |\n|---|---|---|\n"
        return title + "\n".join([*rows, *([""] if problems else []), *problems]) + "\n"

    def as_html(self) -> str:
        """Return a page of its own."""
        from html import escape

        rows = "".join(
            f"<tr><td>{name}</td><td class='{_word(outcome.passed)}'>{_word(outcome.passed)}</td>"
            f"<td>{escape(outcome.summary)}{''.join(f'<br>{escape(line)}' for line in outcome.problems)}</td></tr>"
            for name, outcome in self.checks.items()
        )
        figures = escape(json.dumps(self.as_json(), indent=2))
        return _PAGE.format(
            title=f"{escape(self.folded)} against {escape(self.source)}", verdict=_word(self.passed), rows=rows, figures=figures
        )


def _word(passed: bool) -> str:
    return "passed" if passed else "FAILED"


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
