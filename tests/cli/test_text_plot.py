"""Plots of characters."""

from prefold.cli.show.text_plot import Axis, Dot, curve, draw


def spell(value: float) -> str:
    return f"{value:g}"


def test_dots_lie_where_they_belong():
    lines = draw(
        [Dot(1, 0, "a"), Dot(10, 5, "b"), Dot(100, 10, "c")],
        Axis(1, 100, spell),
        Axis(0, 10, spell, False),
        width=21,
        height=11,
    )
    body = [line.split("|")[1] for line in lines[:11]]
    assert body[0] == " " * 20 + "c"
    assert body[5] == " " * 10 + "b"
    assert body[10] == "a"


def test_axes_are_labelled_at_their_ends():
    lines = draw([], Axis(1, 10_000, spell), Axis(0, 8, spell, False), width=40, height=5)
    assert lines[0].split("|")[0].strip() == "8"
    assert lines[4].split("|")[0].strip() == "0"
    assert lines[-1].split() == ["1", "100", "10000"]
    assert {line.index(mark) for line, mark in zip(lines, "|||||+", strict=False)} == {2}


def test_later_dots_cover_earlier_ones_and_what_lies_outside_is_left_out():
    lines = draw(
        [Dot(5, 5, "a"), Dot(5, 5, "b"), Dot(500, 5, "c")], Axis(1, 10, spell), Axis(1, 10, spell), width=11, height=5
    )
    text = "\n".join(lines)
    assert "b" in text
    assert not {"a", "c"} & set(text)


def test_one_dot_alone_needs_no_range():
    lines = draw([Dot(3, 0, "@")], Axis(3, 3, spell), Axis(0, 0, spell, False), width=9, height=3)
    assert sum("@" in line for line in lines) == 1


def test_a_curve_has_a_dot_in_every_column():
    lines = draw(
        curve(lambda x: x, Axis(1, 100, spell), "-"), Axis(1, 100, spell), Axis(1, 100, spell), width=30, height=30
    )
    columns = {index for line in lines[:30] for index, mark in enumerate(line.split("|")[1]) if mark == "-"}
    assert columns == set(range(30))
