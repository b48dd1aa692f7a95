"""The results of a sweep: a table of settings, best first."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from nl_jax._core.numerics import mean_and_error
from nl_jax.base import Array, LearnerState, Params
from nl_jax.training.outcome import Diverged
from nl_jax.training.trials import count


class Sweep(NamedTuple):
    """The results of a sweep. `str(found)` is a table, best first.

    Attributes:
      settings: values by name, each [trials].
      scores: the score of every run, [trials, seeds]; not finite where training diverged.
      best_index: the trial with the lowest mean score; a trial with a diverged run is never the best.
      best: its settings.
      states: its final states, stacked: [seeds, …].
      test: their scores by `test`, [seeds]; None without `test`.
      history: the records, [trials, seeds, num_steps, …].
    """

    settings: dict[str, np.ndarray]
    scores: np.ndarray
    best_index: int
    best: dict[str, float]
    states: LearnerState
    test: np.ndarray | None
    history: Any

    @property
    def edges(self) -> list[str]:
        """Settings whose best value is the smallest or the largest tried: a better one may lie beyond the range."""
        ends = {name: (values.min(), values.max()) for name, values in self.settings.items()}
        return [name for name, (low, high) in ends.items() if low < high and self.best[name] in (low, high)]

    def rows(self) -> list[dict[str, Any]]:
        """Returns one row per trial, best first.

        A row holds the settings; `score`, the mean over seeds, and `error`, its standard error; `behind`, the mean
        difference to the best trial at the same seed, and `behind_error`, its standard error; and `diverged`, the
        number of diverged runs. With one seed, standard errors are infinite.
        """
        behind = self.scores - self.scores[self.best_index]
        lost = ~np.isfinite(self.scores)
        rows = [
            {name: float(values[trial]) for name, values in self.settings.items()}
            | dict(zip(("score", "error"), mean_and_error(self.scores[trial]), strict=True))
            | dict(zip(("behind", "behind_error"), mean_and_error(behind[trial]), strict=True))
            | {"diverged": int(lost[trial].sum())}
            for trial in range(len(self.scores))
        ]
        order = sorted(range(len(rows)), key=lambda trial: (lost[trial].any(), rows[trial]["score"]))
        return [rows[trial] for trial in order]

    def __str__(self) -> str:
        seeds = self.scores.shape[1]
        heads = [*self.settings, "score", "behind the best", "diverged"]
        lines = [heads]
        for row in self.rows():
            told = [f"{row['score']:.4g} ± {row['error']:.1g}", f"{row['behind']:.4g} ± {row['behind_error']:.1g}"]
            told = ["", ""] if row["diverged"] else told
            lines.append([*(f"{row[name]:.3g}" for name in self.settings), *told, f"{row['diverged']} of {seeds}"])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        text.append(f"means over {seeds} seeds ± standard errors")
        if self.test is not None:
            mean, error = mean_and_error(self.test)
            text.append(f"test score of the best: {mean:.4g} ± {error:.1g}")
        if self.edges:
            text.append(f"best at the end of the range tried: {', '.join(self.edges)}")
        return "\n".join(text)


class Found:
    """What a sweep has found: scores and records of all trials, and the states of the best trial alone."""

    def __init__(self, trials: dict[str, np.ndarray], seeds: int) -> None:
        self._trials, self._seeds = trials, seeds
        self._scores: list[np.ndarray] = []
        self._histories: list[Any] = []
        self._best: LearnerState | None = None
        self._lowest = np.inf

    def add(self, states: LearnerState, scores: np.ndarray, history: Any) -> None:
        """Adds a group's states, scores and records, each [trials · seeds, …]; trials that only pad it are left out."""
        together, seeds = len(scores) // self._seeds, self._seeds
        own = min(together, count(self._trials) - sum(map(len, self._scores)))
        apart = lambda x: x.reshape(together, seeds, *x.shape[1:])[:own]
        means = _means(apart(scores))
        if (lowest := float(means.min())) < self._lowest:
            at = int(means.argmin())
            self._best, self._lowest = jax.tree.map(lambda x: x[at * seeds : (at + 1) * seeds], states), lowest
        self._scores.append(apart(scores))
        self._histories.append(jax.tree.map(apart, history))

    def result(self, last: LearnerState, test: Callable[[Params], Array] | None) -> Sweep:
        """Returns the results of all groups; raises Diverged, with the `last` states, if every trial lost a run."""
        scores, history = jax.tree.map(lambda *x: np.concatenate(x), *zip(self._scores, self._histories, strict=True))
        if self._best is None:
            message = f"every one of {len(scores)} settings lost a run: lower the learning rates"
            raise Diverged(message, last, history)
        index = int(_means(scores).argmin())
        best = {name: float(values[index]) for name, values in self._trials.items()}
        states = self._best._replace(estimator=self._best.estimator.own)
        tested = None if test is None else np.asarray(measured(test, states.params))
        return Sweep(self._trials, scores, index, best, states, tested, history)


def measured(score: Callable[[Params], Array], params: Params) -> Array:
    """Scores one run after another; all at once would hold every run's activations on all the data."""
    return jax.lax.map(score, params)


def _means(scores: np.ndarray) -> np.ndarray:
    """Returns the mean over seeds, infinite where a run diverged."""
    return np.where(np.isfinite(scores).all(axis=1), scores.mean(axis=1), np.inf)
