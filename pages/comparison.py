"""Score the sentences of one run or compare two: scores, intervals, differences, and best and worst clips."""

from __future__ import annotations

from collections.abc import Sequence

from pages.run_folder import RunFolder
from training import metrics
from training.metrics import Tally


class Judged:
    """The scored sentences of a split, of one run or two on their common clips; ValueError if they have none."""

    def __init__(self, runs: Sequence[RunFolder], split: str) -> None:
        first = runs[0]
        rows = [run_.predictions[split] for run_ in runs]
        # In the order of references, hypotheses and scores.
        self.names = [name for name in rows[0] if all(name in of_run for of_run in rows)]
        if not self.names:
            raise ValueError(f"{split}: the runs have no clip in common.")
        if differing := [n for n in self.names if len({of_run[n]["reference"] for of_run in rows}) > 1]:
            raise ValueError(f"{split}: {len(differing)} clips have other references, the first is {differing[0]}.")
        self.runs, self.split = runs, split
        self.unshared = max(len(of_run) for of_run in rows) - len(self.names)  # clips that the other run has not
        self.references = [rows[0][name]["reference"] for name in self.names]
        self.reference = dict(zip(self.names, self.references, strict=True))
        self.hypotheses = [[of_run[name]["hypothesis"] for name in self.names] for of_run in rows]
        self.tallies: list[dict[str, Tally]] = []  # for each run, score -> tally
        self.signatures: dict[str, str] = {}  # kind of score -> how it was computed
        for texts in self.hypotheses:
            found, self.signatures = metrics.tally(
                first.task, texts, self.references, first.spec.text_unit, first.spec.bleu_tokenizer
            )
            self.tallies.append(found)
        self.weights = metrics.draw_clips(len(self.names))
        self.clip_metric = metrics.CLIP_METRIC[first.task]
        self.higher_is_better = metrics.MAIN_METRIC[first.task][1]
        self.each = [of_run[self.clip_metric].each() for of_run in self.tallies]  # for each run, every clip's score

    @property
    def main(self) -> str:
        """Return the name of the score that selects the best epoch."""
        return metrics.MAIN_METRIC[self.runs[0].task][0]

    def standing(self, metric: str) -> list[tuple[float, tuple[float, float]]]:
        """Return a score of each run, and its 95 % interval."""
        tallies = [of_run[metric] for of_run in self.tallies]
        return [(tally.total(), metrics.interval(tally.drawn(self.weights))) for tally in tallies]

    def difference(self, metric: str) -> tuple[float, tuple[float, float], float]:
        """Return the second run's score minus the first's, the interval of this difference, and p."""
        first, second = (of_run[metric] for of_run in self.tallies)
        found = metrics.compare([second], [first], self.weights)
        return found["difference"], found["interval"], found["p"]

    def order(self) -> list[int]:
        """Return clip indices from worst to best; for two runs, from the second's largest loss to its largest gain."""
        sign = 1 if self.higher_is_better else -1
        worth = [
            sign * (scores[-1] - scores[0] if len(scores) > 1 else scores[0]) for scores in zip(*self.each, strict=True)
        ]
        return sorted(range(len(self.names)), key=lambda i: worth[i])

    def spread(self, count: int, preferred: set[str]) -> list[str]:
        """Return `count` clips evenly spaced in `order`, best first; only preferred ones, if there are any."""
        names = [self.names[i] for i in reversed(self.order())]
        names = [name for name in names if name in preferred] or names
        count = min(count, len(names))
        return [names[round(i * (len(names) - 1) / max(count - 1, 1))] for i in range(count)]
