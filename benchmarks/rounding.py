"""Count how many values of a linear layer round otherwise when it is given one row than when it is given many."""

import torch
from torch.nn.functional import linear

SHAPES = ((768, 3072), (3072, 768), (2048, 2048), (8192, 2048))
MANY, ROWS = 1024, 256


def unequal_share(inputs: int, outputs: int, dtype: torch.dtype, at_once: int) -> float:
    """Return the part of the values of ``[ROWS, outputs]`` that differ from those of a product of many rows."""
    weight = (torch.randn(outputs, inputs) * inputs**-0.5).to(dtype)
    rows = torch.randn(MANY, inputs).to(dtype)
    expected = linear(rows, weight)[:ROWS]
    got = torch.cat([linear(part, weight) for part in rows[:ROWS].split(at_once)])
    return float(got.ne(expected).float().mean())


def main() -> None:
    """Print a table: dtype, layer, and the share for one, two and 128 rows at once."""
    from rich.console import Console
    from rich.table import Table

    torch.manual_seed(0)
    table = Table("dtype", "inputs", "outputs", "1 row", "2 rows", "128 rows")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for inputs, outputs in SHAPES:
            shares = [f"{unequal_share(inputs, outputs, dtype, at_once):.1e}" for at_once in (1, 2, 128)]
            table.add_row(str(dtype).removeprefix("torch."), f"{inputs:,}", f"{outputs:,}", *shares)
    Console().print(table)


if __name__ == "__main__":
    main()
