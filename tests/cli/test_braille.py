import pytest

from cli.braille import HEIGHT, draw, sparkline
from cli.history import Panel, Series


def lines(panels, columns=60, has_colours=True):
    return ["".join(text for text, _ in row).rstrip() for row in draw(panels, columns, has_colours)]


def panel(*curves, **more):
    series = tuple(Series(f"run {i}", tuple(points)) for i, points in enumerate(curves))
    return Panel("loss", series, **more)


def test_a_straight_line_goes_from_corner_to_corner():
    rows = lines([panel([(0, 0), (1, 1)])], columns=26)
    inside = [row[10:] for row in rows[1 : HEIGHT + 1]]
    assert len(inside[0]) == 16
    assert [row.strip() for row in inside] == ["⡠⠊"] * HEIGHT
    assert [row.find("⡠") for row in inside] == list(range(14, -1, -2))


@pytest.mark.parametrize("columns", [1, 24, 60, 99, 100, 101, 400])
@pytest.mark.parametrize("n_panels", [1, 2, 3, 4])
def test_a_picture_is_as_wide_as_the_terminal_at_most(columns, n_panels):
    rows = lines([panel([(0, 1.0), (7, 5.0), (50_000, 3.0)])] * n_panels, columns)
    assert max(map(len, rows)) <= max(columns, 24)


def test_panels_stand_in_pairs_where_there_is_room():
    panels = [panel([(0, 1.0), (9, 5.0)])] * 4
    assert len(lines(panels, 120)) < len(lines(panels, 90)) <= 2 * len(lines(panels, 120)) + 1


def test_a_single_point_is_a_dot():
    picture = "".join(lines([panel([(5, 2.0)])]))
    assert sum("\u2800" < character <= "\u28ff" for character in picture) == 1


def test_runs_are_told_apart_by_letters_where_there_are_no_colours():
    both = [panel([(0, 0), (1, 0)], [(0, 1), (1, 1)])]
    picture = lines(both, has_colours=False)
    assert picture[:2] == ["a run 0", "b run 1"]
    assert set(picture[4][10:]) == {"b"}
    assert not any("\u2800" < character <= "\u28ff" for row in picture for character in row)
    owners = {owner for row in draw(both, 60, True) for _, owner in row}
    assert owners == {None, 0, 1}


def test_names_cannot_move_the_cursor():
    evil = Panel("loss", (Series("\x1b[2J\n", ((1, 1.0),)), Series("b", ())))
    assert not any("\x1b" in row or "\n" in row for row in lines([evil]))


def test_a_sparkline_goes_from_its_lowest_to_its_highest_value():
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([]) == ""
