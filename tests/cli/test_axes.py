from hypothesis import given
from hypothesis import strategies as st

from cli.axes import axis_of, label, thinned

VALUES = st.floats(-1e15, 1e15, allow_subnormal=False)


@given(st.lists(VALUES, min_size=1), st.integers(2, 8))
def test_an_axis_holds_its_values_and_its_few_ticks(values, most):
    axis = axis_of(values)
    assert all(-1e-9 <= axis.place(v) <= 1 + 1e-9 for v in values)
    ticks = axis.ticks(most)
    assert len(ticks) <= most
    assert all(-1e-6 <= axis.place(t) <= 1 + 1e-6 for t in ticks)


@given(st.lists(st.floats(1e-300, 1e9), min_size=1), st.integers(2, 8))
def test_a_logarithmic_axis_does_so_too(values, most):
    axis = axis_of(values, is_log=True)
    assert all(-1e-9 <= axis.place(v) <= 1 + 1e-9 for v in values)
    assert len(axis.ticks(most)) <= most
    assert all(-1e-6 <= axis.place(t) <= 1 + 1e-6 for t in axis.ticks(most))


def test_equal_ratios_are_equally_far_apart_on_a_logarithmic_axis():
    axis = axis_of([1, 100], is_log=True)
    assert axis.place(10) == 0.5


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=300), st.integers(1, 9))
def test_thinning_keeps_the_ends_and_the_extremes(points, columns):
    points.sort()
    kept = thinned(points, columns)
    assert len(kept) <= 4 * columns
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    for choose in (min, max):
        assert choose(y for _, y in kept) == choose(y for _, y in points)
    assert kept == sorted(kept)
    assert set(kept) <= set(points)


@given(VALUES)
def test_labels_are_short(value):
    assert len(label(value)) <= 9
