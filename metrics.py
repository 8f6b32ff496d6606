"""Scores: BLEU, chrF and ROUGE-L for translation, accuracy for isolated signs, word error rate for glosses.

All are percentages. They equal Uni-Sign's, so that they can stand beside the published ones; only chrF differs, in
the third decimal. BLEU and chrF are sacrebleu's. ROUGE-L and the word error rate are written out here: the `rouge`
package, which defines the published ROUGE-L, is no longer maintained, raises on an empty hypothesis and recurses once
per word; `jiwer` gives every error the same cost, and the published rates come from other costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric

# task -> (the score that chooses the best epoch, whether higher is better)
MAIN_METRIC: dict[str, tuple[str, bool]] = {
    "SLT": ("bleu4", True),
    "ISLR": ("top1_per_instance", True),
    "CSLR": ("wer", False),
}
# task -> the score by which single clips are told apart: BLEU-4 of one short sentence is mostly zero
CLIP_METRIC = {"SLT": "chrf", "ISLR": "top1_per_instance", "CSLR": "wer"}


@dataclass(frozen=True)
class Scores:
    """What one evaluation gave.

    Attributes:
        values: score -> percentage, in the order of the table.
        signatures: kind of score -> how it was computed; a reader needs it to compare numbers.
    """

    values: dict[str, float]
    signatures: dict[str, str]

    def table(self) -> str:
        """Return the scores to two decimals under their names.

        >>> print(Scores({"wer": 26.0, "wer_del": 6.1}, {"wer": "costs 3, 3, 4"}).table())
          wer  wer_del
        26.00     6.10
        """
        numbers = {key: f"{value:.2f}" for key, value in self.values.items()}
        widths = [max(len(key), len(number)) for key, number in numbers.items()]
        return "\n".join("  ".join(map(str.rjust, row, widths)) for row in (numbers.keys(), numbers.values()))


def prepare_hypothesis(text: str, text_unit: str) -> str:
    r"""Bring a generated text into the form that is scored.

    Args:
        text: what the model wrote.
        text_unit: "char" for Chinese, "word" for the rest.

    Source: Uni-Sign's evaluation on CSL-Daily ("char").

    >>> prepare_hypothesis("你 好\n吗?", "char")
    '你 好 吗 ?'
    >>> prepare_hypothesis("How are you?\n", "word")
    'How are you?'
    """
    if text_unit == "word":
        return text.strip()
    return " ".join(text.replace(" ", "").replace("\n", ""))


def prepare_reference(text: str, text_unit: str) -> str:
    """Bring a label's text into the form that is scored.

    The wide comma and question mark become what mT5's tokenizer makes of them. The exclamation mark stays wide, though
    the tokenizer narrows it too: the published scores were counted so.

    Args:
        text: the label's text.
        text_unit: "char" for Chinese, "word" for the rest.

    Source: Uni-Sign's evaluation on CSL-Daily ("char").

    >>> prepare_reference("好，你 呢？！", "char")
    '好 , 你 呢 ? ！'
    """
    if text_unit == "word":
        return text.strip()
    return " ".join(_narrow(text).replace(" ", ""))


def _narrow(text: str) -> str:
    return text.replace("，", ",").replace("？", "?")


def rouge_l(hypothesis: str, reference: str) -> float:
    """Return one clip's ROUGE-L F score in [0, 1], as the `rouge` package 1.0.1 counts it.

    Sentences end at "."; the distinct words of the longest common subsequences of all pairs of sentences are counted.
    A text without any word scores 0.

    Source: ROUGE-L at the level of summaries (Lin, 2004), with each word counted once.

    >>> round(rouge_l("the cat is on the mat", "the cat sat on the mat"), 6)  # 4 common words of 5 and of 5
    0.8
    >>> rouge_l("...", "the cat")
    0.0
    """
    # A blank stretch between two full stops counts as one empty word, as in the package.
    ours, theirs = ([s.split() or [""] for s in text.split(".") if s] for text in (hypothesis, reference))
    if not any(map(any, ours)) or not any(map(any, theirs)):
        return 0.0
    common: set[str] = set()
    for sentence in theirs:
        for other in ours:
            common |= _common_words(sentence, other)
    recall = len(common) / len(set().union(*theirs))
    precision = len(common) / len(set().union(*ours))
    return 2 * precision * recall / (precision + recall + 1e-8)


def _common_words(reference: list[str], hypothesis: list[str]) -> set[str]:
    """Return the distinct words of one longest common subsequence; of several, the one the package finds."""
    lengths = [[0] * (len(hypothesis) + 1)]  # [i][j]: of the first i and the first j words
    for word in reference:
        above, row = lengths[-1], [0]
        for j, other in enumerate(hypothesis):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        lengths.append(row)
    words, i, j = set(), len(reference), len(hypothesis)
    while i and j:
        if reference[i - 1] == hypothesis[j - 1]:
            i, j = i - 1, j - 1
            words.add(reference[i])
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words


def word_errors(hypothesis: str, reference: str) -> tuple[int, int, int]:
    """Count (deletions, insertions, substitutions) of the cheapest alignment of two lists of words.

    A deletion or insertion costs 3 and a substitution 4, as in NIST's sclite and so in the published rates. With equal
    costs the total is smaller: by 0.3 points on Uni-Sign's predictions for CSL-Daily.

    >>> word_errors("b c a", "a b c")
    (1, 1, 0)
    """
    words = hypothesis.split()
    # One row of the table: the cheapest (cost, deletions, insertions, substitutions) for the first j words.
    row = [(3 * j, 0, j, 0) for j in range(len(words) + 1)]
    for expected in reference.split():
        above, (cost, dels, ins, subs) = row, row[0]
        row = [(cost + 3, dels + 1, ins, subs)]
        for j, word in enumerate(words):
            best = above[j]
            if word != expected:
                cost, dels, ins, subs = above[j]
                best = (cost + 4, dels, ins, subs + 1)
            # Of equal costs the substitution wins, then the insertion: the counts depend on it.
            cost, dels, ins, subs = row[j]
            if cost + 3 < best[0]:
                best = (cost + 3, dels, ins + 1, subs)
            cost, dels, ins, subs = above[j + 1]
            if cost + 3 < best[0]:
                best = (cost + 3, dels + 1, ins, subs)
            row.append(best)
    return row[-1][1:]


def bleu_scorers(tokenizer: str) -> list[BLEU]:
    """Make sacrebleu's scorers of BLEU-1 to BLEU-4.

    Raises:
        ValueError: the tokenizer is unknown, or needs a package that is not there.
    """
    try:
        # force: texts split into characters end in " ." now and then, which sacrebleu takes for a mistake.
        return [BLEU(max_ngram_order=n, tokenize=tokenizer, force=True) for n in (1, 2, 3, 4)]
    except (RuntimeError, ImportError, KeyError, ValueError):
        extra = {"ja-mecab": "it needs pip install 'sacrebleu[ja]'", "ko-mecab": "it needs pip install 'sacrebleu[ko]'"}
        why = extra.get(tokenizer, "sacrebleu has none of this name")
        raise ValueError(f"bleu_tokenizer {tokenizer!r}: {why}. Mend the data set's record.") from None


@dataclass(frozen=True)
class Tally:
    """One score, as a function of sums over clips: so it can be had of all clips, of each, and of any draw of them.

    Attributes:
        counts: (clips, k) what a clip adds to the k sums.
        of: k sums -> percentage.
    """

    counts: np.ndarray
    of: Callable[[np.ndarray], float]

    def total(self) -> float:
        """The score of all clips."""
        return self.of(self.counts.sum(0))

    def each(self) -> list[float]:
        """The score of each clip alone."""
        return [self.of(row) for row in self.counts]

    def drawn(self, weights: np.ndarray) -> np.ndarray:
        """The score of each draw, (draws,); `weights` (draws, clips) says how often it holds a clip."""
        return np.array([self.of(sums) for sums in weights @ self.counts])


def _tally_of(scorer: Metric, hypotheses: Sequence[str], references: Sequence[str]) -> Tally:
    """A score of sacrebleu, by the two functions that its own bootstrap stands on."""
    counts = np.array(scorer._extract_corpus_statistics(hypotheses, [references]), np.float64)
    return Tally(counts, lambda sums: float(scorer._compute_score_from_stats(sums.tolist()).score))


def _ratio(sums: np.ndarray) -> float:
    return 100 * float(sums[0]) / float(sums[1])


def _mean_of_classes(sums: np.ndarray) -> float:
    """Mean accuracy of the classes that occur; sums: hits of each class, then clips of each."""
    hits, clips = sums.reshape(2, -1)
    return 100 * float((hits[clips > 0] / clips[clips > 0]).mean())


def tally_prepared(
    task: str, hypotheses: Sequence[str], references: Sequence[str]
) -> tuple[dict[str, Tally], dict[str, str]]:
    """Count what the scores of a task need in texts that already have the form to be scored.

    Returns:
        score -> tally, and kind of score -> signature.
    """
    one = np.ones(len(references))
    if task == "SLT":
        bleus, chrf = bleu_scorers("13a"), CHRF()
        tallies = {f"bleu{n}": _tally_of(bleu, hypotheses, references) for n, bleu in enumerate(bleus, start=1)}
        tallies["chrf"] = _tally_of(chrf, hypotheses, references)
        tallies["rouge_l"] = Tally(np.stack([list(map(rouge_l, hypotheses, references)), one], 1), _ratio)
        signatures = {
            "bleu": str(bleus[-1].get_signature()),
            "chrf": str(chrf.get_signature()),
            "rouge_l": "mean F per clip, equal to rouge 1.0.1",
        }
        return tallies, signatures
    if task == "ISLR":
        hits = np.array([h == r for h, r in zip(hypotheses, references, strict=True)], np.float64)
        classes, number = np.unique(np.array(references), return_inverse=True)
        of_class = np.zeros((len(references), 2, len(classes)))
        clips = np.arange(len(references))
        of_class[clips, 0, number], of_class[clips, 1, number] = hits, 1
        tallies = {
            "top1_per_instance": Tally(np.stack([hits, one], 1), _ratio),
            "top1_per_class": Tally(of_class.reshape(len(references), -1), _mean_of_classes),
        }
        return tallies, {"top1": "exact match of the whole text"}
    counts = np.array(list(map(word_errors, hypotheses, references)), np.float64)  # (clips, 3)
    words = [len(reference.split()) for reference in references]
    errors = {"wer": counts.sum(1), "wer_del": counts[:, 0], "wer_ins": counts[:, 1], "wer_sub": counts[:, 2]}
    tallies = {name: Tally(np.stack([of, words], 1), _ratio) for name, of in errors.items()}
    return tallies, {"wer": "words between blanks; costs: deletion 3, insertion 3, substitution 4"}


def score_prepared(task: str, hypotheses: Sequence[str], references: Sequence[str]) -> Scores:
    """Score texts that already have the form to be scored; arguments and result as for `score`."""
    return _scores(*tally_prepared(task, hypotheses, references))


def _scores(tallies: Mapping[str, Tally], signatures: dict[str, str]) -> Scores:
    return Scores({name: tally.total() for name, tally in tallies.items()}, signatures)


def score(
    task: str, hypotheses: Sequence[str], references: Sequence[str], text_unit: str, bleu_tokenizer: str = "13a"
) -> Scores:
    """Score what the model wrote for a whole split.

    Args:
        task: SLT, ISLR or CSLR.
        hypotheses: the generated texts, one per clip.
        references: the labels' texts (CSLR: glosses with blanks between), in the same order.
        text_unit: "char" or "word", as in the data set's record. Only translations are split by it: signs are compared
            letter by letter, blanks included, and glosses are the words between blanks.
        bleu_tokenizer: of sacrebleu. 13a sees translations split by text_unit, any other sees them as they are written.

    Raises:
        ValueError: unknown task, text unit or tokenizer, no clips, unequal numbers of texts, or an empty reference.
    """
    return _scores(*tally(task, hypotheses, references, text_unit, bleu_tokenizer))


def tally(
    task: str, hypotheses: Sequence[str], references: Sequence[str], text_unit: str, bleu_tokenizer: str = "13a"
) -> tuple[dict[str, Tally], dict[str, str]]:
    """Count what the scores need, clip by clip; arguments and errors are those of `score`.

    Returns:
        score -> tally, in the order of the table, and kind of score -> signature.
    """
    if task not in MAIN_METRIC:
        raise ValueError(f"--task {task}: cannot be scored; known are {', '.join(MAIN_METRIC)}.")
    if text_unit not in ("char", "word"):
        raise ValueError(f"text_unit {text_unit!r}: it is 'char' or 'word'. Mend the data set's record.")
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references: each clip needs one of each.")
    if not references:
        raise ValueError("There are no clips to score. Check that the split's label file is not empty.")
    if empty := [i for i, reference in enumerate(references) if not reference.strip()]:
        raise ValueError(
            f"{len(empty)} of {len(references)} references are empty (the first is number {empty[0] + 1}). "
            "Give these clips a text in the label file, or take them out."
        )
    if task != "SLT":
        return tally_prepared(task, hypotheses, references)
    tallies, signatures = tally_prepared(
        task,
        [prepare_hypothesis(text, text_unit) for text in hypotheses],
        [prepare_reference(text, text_unit) for text in references],
    )
    if bleu_tokenizer == "13a":
        return tallies, signatures
    scorers = bleu_scorers(bleu_tokenizer)
    whole = [_narrow(text).strip() if text_unit == "char" else text.strip() for text in references]
    ours = [text.strip() for text in hypotheses]
    tallies |= {f"bleu{n}": _tally_of(bleu, ours, whole) for n, bleu in enumerate(scorers, start=1)}
    return tallies, signatures | {"bleu": str(scorers[-1].get_signature())}


# -- how sure a score is ---------------------------------------------------------------------------------------------


def draw_clips(n_clips: int, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """How often each draw holds each clip, (draws, clips); a draw is as many clips as there are, with repetition."""
    drawn = np.random.default_rng(seed).integers(n_clips, size=(draws, n_clips))
    return np.stack([np.bincount(clips, minlength=n_clips) for clips in drawn]).astype(np.float64)


def interval(scores: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the scores of draws."""
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def compare(ours: Sequence[Tally], theirs: Sequence[Tally], weights: np.ndarray) -> dict[str, Any]:
    """Compare a score of two systems that were trained with the same seeds, by drawing the test clips anew.

    Every draw takes the same clips of all seeds, so clips count as random and seeds as fixed.

    Args:
        ours: for each seed, a tally of all clips.
        theirs: the same of the other system.
        weights: of `draw_clips`.

    Returns:
        `difference` (ours - theirs, mean over seeds), its 95 % `interval`, and `p`, two-sided: how often draws whose
        mean is moved to zero differ by as much.

    Source: paired bootstrap of Koehn (2004), as sacrebleu counts p.
    """
    seen = float(np.mean([tally.total() for tally in ours]) - np.mean([tally.total() for tally in theirs]))
    mine, other = (np.mean([tally.drawn(weights) for tally in system], axis=0) for system in (ours, theirs))
    drawn = mine - other  # (draws,)
    p = (1 + int((np.abs(drawn - drawn.mean()) >= abs(seen)).sum())) / (1 + len(drawn))
    return {"difference": seen, "interval": interval(drawn), "p": p}


def is_better(task: str, new: float, best: float | None) -> bool:
    """Tell whether `new` beats the best main score so far (None: there is none yet); the earlier of equals stays.

    >>> is_better("SLT", 25.3, 25.2), is_better("CSLR", 28.0, 27.0), is_better("ISLR", 0.0, None)
    (True, False, True)
    """
    if best is None:
        return True
    return new > best if MAIN_METRIC[task][1] else new < best
