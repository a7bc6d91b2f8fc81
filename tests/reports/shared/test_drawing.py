"""Building blocks of figures."""

from reports.shared.drawing import MOST_POINTS, thinned


def test_too_many_points_are_thinned_and_it_is_said() -> None:
    rows = [{"x": number} for number in range(3 * MOST_POINTS + 1)]
    kept, notes = thinned(rows, "runs")
    assert len(kept) <= MOST_POINTS and [row["x"] for row in kept[:3]] == [0, 4, 8]
    assert notes == (f"The figure shows {len(kept)} of {len(rows)} runs, evenly spaced; means are over all",)
    assert thinned(rows[:MOST_POINTS], "runs") == (rows[:MOST_POINTS], ())
