"""The paper's hypothetical Mixtral, whose blocks are parallel: its figures to the digit."""

import pytest

from benchmarks.graef2024 import census_of
from prefold.convert.savings import paper_figures


@pytest.mark.exhaustive  # its experts run at full width
def test_the_papers_hypothetical_mixtral_is_reproduced_to_the_digit():
    """Graef 2024 (arXiv 2402.13388v3), first and second table."""
    found = paper_figures(census_of("mixtral-8x7b"))
    assert found.weights_eliminated == 1_434_451_968
    assert found.embedding_memory_increase == 196_608_000
    assert found.net_memory_change == -1_237_843_968
    assert round(100 * found.relative_to_total) == -3
    assert [reads.ratio for reads in found.reads] == [140_084, 8_756, 548, 137]
    assert (found.reads[0].before, found.reads[0].after) == (1_434_456_064, 10_240)
