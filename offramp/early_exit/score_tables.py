"""Scores, correctness and costs of every choice of enabled exits, as the search for thresholds reads them."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy import ndarray

from offramp.early_exit.coordinate_ascent import ExitTable, make_table
from offramp.early_exit.exit_scores import Rule, ScoredSamples, looks_back, score_samples
from offramp.early_exit.geometric import descending

Enabled = tuple[bool, ...]
Costs = Mapping[Enabled, Sequence[int | float]]
"""For every choice of enabled exits to consider, the cost of each of its segments (stages and branch)."""


class ScoreTables:
    """Scores and correctness for each choice of exits; computed once if results do not depend on earlier exits."""

    def __init__(self, logits: ndarray, labels: ndarray, costs: Costs, rule: Rule) -> None:
        self.logits, self.labels, self.costs, self.rule = logits, labels, costs, rule
        self.alone = not looks_back(rule)
        if self.alone:
            self.scored = score_samples(logits, labels, (True,) * logits.shape[0], rule)
            self.order = descending(self.scored.score)

    def score_samples(self, enabled: Enabled) -> ScoredSamples:
        """Scores and correctness of the samples at these exits."""
        if self.alone:
            return self.scored.select_exits(np.flatnonzero(enabled))
        return score_samples(self.logits, self.labels, enabled, self.rule)

    def for_choice(self, enabled: Enabled) -> Iterator[tuple[int, ExitTable]]:
        """Yields (patience, table) of a choice; more than one only if the score is patience."""
        scored = self.score_samples(enabled)
        price = np.cumsum(np.asarray(self.costs[enabled], float))
        if self.rule.score != "patience":
            order = self.order[np.flatnonzero(enabled)] if self.alone else None
            yield 1, make_table(scored, price, order)
            return
        for patience in range(1, len(price) + 1):
            yield patience, make_table(scored, price, np.zeros(scored.score.shape, np.int32))

    def drawn(self, most: int) -> "ScoreTables":
        """The same on at most `most` samples, drawn with a fixed seed."""
        n = self.logits.shape[1]
        if n <= most:
            return self
        rows = np.sort(np.random.default_rng(0).permutation(n)[:most])
        few = object.__new__(ScoreTables)
        few.__dict__.update(self.__dict__, logits=self.logits[:, rows], labels=self.labels[rows])
        if self.alone:
            few.scored = self.scored.select_samples(rows)
            few.order = descending(few.scored.score)
        return few
