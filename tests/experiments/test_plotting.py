"""Two points are not joined: they would look like a law."""

import numpy as np
import pytest

from experiments.harness import plotting


def drawn(axes):
    """Whether something joins points, and how many points have a marker."""
    lines = [line for line in axes.lines if line.get_linestyle() not in ("None", "none", "")]
    marks = [line for line in axes.lines if line.get_marker() not in ("None", None, "")]
    return bool(lines or len(axes.collections) > len(axes.containers)), sum(len(line.get_xdata()) for line in marks)


@pytest.mark.parametrize(("points", "seeds"), [(1, 3), (2, 3), (2, 1)])
def test_fewer_than_three_points_are_markers(points, seeds):
    _, axes = plotting.figure(1, 1, size=(3, 3))
    values = np.arange(1.0, points * seeds + 1).reshape(points, seeds)
    plotting.band(axes, np.arange(points), values, plotting.style(3), "measured")  # whose markers are staggered
    assert drawn(axes) == (False, points)
    assert axes.lines[0].get_markevery() is None
    (entry,) = axes.get_legend_handles_labels()[1]
    assert entry == "measured"


def test_three_points_are_a_line():
    _, axes = plotting.figure(1, 1, size=(3, 3))
    plotting.band(axes, np.arange(3), np.ones((3, 2)), plotting.style(3), "measured")
    assert drawn(axes)[0]
    look = plotting.style(1)
    assert plotting.joined(range(3), look) == look
    assert plotting.joined(range(2), {"color": "grey"})["marker"] == "_"
    assert plotting.joined(range(2), look)["marker"] == look["marker"]
