"""Scores: BLEU, chrF and ROUGE-L for translation, accuracy for isolated signs, word error rate for glosses.

All are percentages. They equal Uni-Sign's and are comparable with published scores, except that chrF differs in the
third decimal. BLEU and chrF come from sacrebleu; docs/EXTENDING.md says why the others are implemented here.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric

from config import UNSPACED, guess_language
from network.vocabulary import normalise

# task -> (the score that chooses the best epoch, whether higher is better)
MAIN_METRIC: dict[str, tuple[str, bool]] = {
    "SLT": ("bleu4", True),
    "ISLR": ("top1_per_instance", True),
    "CSLR": ("wer", False),
}
# task -> the score for single clips: BLEU-4 of one short sentence is mostly zero
CLIP_METRIC = {"SLT": "chrf", "ISLR": "top1_per_instance", "CSLR": "wer"}


@dataclass(frozen=True)
class Scores:
    """The scores of an evaluation."""

    values: dict[str, float]  # score -> percentage, in the order of the table
    signatures: dict[str, str]  # kind of score -> how it was computed, needed to compare numbers

    def table(self) -> str:
        """Format the scores with two decimals under their names.

        >>> print(Scores({"wer": 26.0, "wer_del": 6.1}, {"wer": "costs 3, 3, 4"}).table())
          wer  wer_del
        26.00     6.10
        """
        numbers = {key: f"{value:.2f}" for key, value in self.values.items()}
        widths = [max(len(key), len(number)) for key, number in numbers.items()]
        return "\n".join("  ".join(map(str.rjust, row, widths)) for row in (numbers.keys(), numbers.values()))


def prepare_hypothesis(text: str, text_unit: str) -> str:
    r"""Normalise a generated text for scoring by `text_unit`: "char" (characters separated by spaces) or "word".

    Source: Uni-Sign's evaluation on CSL-Daily ("char").

    >>> prepare_hypothesis("你 好\n吗?", "char")
    '你 好 吗 ?'
    >>> prepare_hypothesis("How are you?\n", "word")
    'How are you?'
    """
    text = as_tokenized(text)
    return text.strip() if text_unit == "word" else " ".join(text.replace(" ", "").replace("\n", ""))


def prepare_reference(text: str, text_unit: str) -> str:
    """Normalise a label's text for scoring.

    With "char", full-width commas and question marks become half-width, as in mT5's tokenizer. Exclamation marks stay
    full-width although the tokenizer narrows them, too, since the published scores were computed so.

    Source: Uni-Sign's evaluation on CSL-Daily ("char").

    >>> prepare_reference("好，你 呢？！", "char")
    '好 , 你 呢 ? ！'
    """
    text = as_tokenized(text)
    return text.strip() if text_unit == "word" else " ".join(_narrow(text).replace(" ", ""))


def as_tokenized(text: str) -> str:
    """Write a text's letters and digits as mT5's tokenizer does, so that the sentence can be generated.

    The tokenizer composes decomposed letters (Korean as macOS writes it), decomposes Thai's sara am, and replaces
    half-width kana, full-width digits and Persian's joiners. It changes punctuation too, "！" and "…" for example; that
    is kept, since published references have it and were scored so. So are the invalid bytes that a model may write.

    >>> as_tokenized("ｶﾞｷﾞ１２！")
    'ガギ12！'
    """
    runs = itertools.groupby(text, _may_change)
    return "".join(normalise("".join(run)) if may_change else "".join(run) for may_change, run in runs)


def _may_change(character: str) -> bool:
    kind = unicodedata.category(character)
    half_width = "\uff61" <= character <= "\uff65"  # Japanese punctuation
    return half_width or (kind[0] in "LMNSZ" or kind == "Cf") and character != "\ufffd"


def _narrow(text: str) -> str:
    return text.replace("，", ",").replace("？", "?")


def rouge_l(hypothesis: str, reference: str) -> float:
    """Return one clip's ROUGE-L F score in [0, 1], equal to the `rouge` package 1.0.1.

    Sentences end at "."; the score counts the distinct words in the longest common subsequences of all sentence pairs.
    A text without any word scores 0.

    Source: summary-level ROUGE-L (Lin, 2004), with each word counted once.

    >>> round(rouge_l("the cat is on the mat", "the cat sat on the mat"), 6)  # 4 common words of 5 and of 5
    0.8
    """
    # White space between two full stops counts as one empty word, as in the package.
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
    """Return the distinct words of one longest common subsequence; ties are resolved as in the package."""
    number = {word: i for i, word in enumerate(reference)}
    others = np.array([number.get(word, -1) for word in hypothesis])
    row = np.zeros(len(hypothesis) + 1, np.int64)  # [j]: the longest for the words so far and the first j
    drops = []  # for each word of the reference and each j: whether leaving out this word loses nothing
    for word in reference:
        above = row
        row = np.append(0, np.maximum.accumulate(np.where(others == number[word], above[:-1] + 1, above[1:])))
        drops.append(above[1:] > row[:-1])
    words, i, j = set(), len(reference), len(hypothesis)
    while i and j:
        if reference[i - 1] == hypothesis[j - 1]:
            i, j = i - 1, j - 1
            words.add(reference[i])
        elif drops[i - 1][j - 1]:
            i -= 1
        else:
            j -= 1
    return words


def word_errors(hypothesis: str, reference: str) -> tuple[int, int, int]:
    """Count (deletions, insertions, substitutions) of the cheapest alignment of two lists of words.

    A deletion or insertion costs 3 and a substitution 4, as in NIST's sclite and thus in the published rates. Equal
    costs give a lower rate: by 0.3 points on Uni-Sign's predictions for CSL-Daily.

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
            # On equal cost prefer the substitution, then the insertion: the counts depend on this order.
            cost, dels, ins, subs = row[j]
            if cost + 3 < best[0]:
                best = (cost + 3, dels, ins + 1, subs)
            cost, dels, ins, subs = above[j + 1]
            if cost + 3 < best[0]:
                best = (cost + 3, dels + 1, ins, subs)
            row.append(best)
    return row[-1][1:]


def bleu_scorers(tokenizer: str) -> list[BLEU]:
    """Return sacrebleu's scorers for BLEU-1 to BLEU-4; ValueError for a tokenizer that is unknown or not installed."""
    try:
        # force: character-split texts may end in " .", which sacrebleu would warn about.
        return [BLEU(max_ngram_order=n, tokenize=tokenizer, force=True) for n in (1, 2, 3, 4)]
    except (RuntimeError, ImportError, KeyError, ValueError):
        extra = {"ja-mecab": "it needs pip install 'sacrebleu[ja]'", "ko-mecab": "it needs pip install 'sacrebleu[ko]'"}
        why = extra.get(tokenizer, "sacrebleu has none of this name")
        raise ValueError(f"bleu_tokenizer {tokenizer!r}: {why}. Mend the data set's record.") from None


def why_zero(references: Sequence[str], text_unit: str, bleu_tokenizer: str = "13a") -> str:
    """Return why even a perfect model has a BLEU-4 of 0, as a name in `findings.TEXTS`; "" if it has more.

    >>> why_zero(["Thank you very", "much"], "word"), why_zero(["谢谢你。"], "word"), why_zero(["谢谢你。"], "char")
    ('few_words', 'unspaced', '')
    """
    texts = [prepare_reference(text, text_unit if bleu_tokenizer == "13a" else "word") for text in references]
    if bleu_scorers(bleu_tokenizer)[-1].corpus_score(texts, [texts]).score > 0:
        return ""
    return "unspaced" if text_unit == "word" and guess_language(references) in UNSPACED else f"few_{text_unit}s"


@dataclass(frozen=True)
class Tally:
    """A score as a function of sums over clips, so that it can be computed for all clips, single ones and resamples."""

    counts: np.ndarray  # (clips, k), each clip's contribution to the k sums
    of: Callable[[np.ndarray], float]  # from k sums to a percentage

    def total(self) -> float:
        """Return the score of all clips."""
        return self.of(self.counts.sum(0))

    def each(self) -> list[float]:
        """Return the score of each clip alone."""
        return [self.of(row) for row in self.counts]

    def drawn(self, weights: np.ndarray) -> np.ndarray:
        """Return the score of each draw, (draws,); `weights`, (draws, clips), counts each clip in each draw."""
        return np.array([self.of(sums) for sums in weights @ self.counts])


def _tally_of(scorer: Metric, hypotheses: Sequence[str], references: Sequence[str]) -> Tally:
    """Return the tally of a sacrebleu score, using the two functions that its own bootstrap uses."""
    counts = np.array(scorer._extract_corpus_statistics(hypotheses, [references]), np.float64)
    return Tally(counts, lambda sums: float(scorer._compute_score_from_stats(sums.tolist()).score))


def _ratio(sums: np.ndarray) -> float:
    return 100 * float(sums[0]) / float(sums[1])


def _mean_of_classes(sums: np.ndarray) -> float:
    """Return the mean accuracy over the classes that occur; sums: hits per class, then clips per class."""
    hits, clips = sums.reshape(2, -1)
    return 100 * float((hits[clips > 0] / clips[clips > 0]).mean())


def score(
    task: str, hypotheses: Sequence[str], references: Sequence[str], text_unit: str, bleu_tokenizer: str = "13a"
) -> Scores:
    """Score the generated texts of a whole split.

    Args:
        task: SLT, ISLR or CSLR.
        hypotheses, references: the generated texts and the labels' (CSLR: glosses separated by spaces), one per clip.
        text_unit: "char" or "word"; see `DatasetSpec`. It applies to translations only: isolated signs must match
            exactly, and glosses are separated by spaces.
        bleu_tokenizer: sacrebleu's tokenizer; see `DatasetSpec`.

    Raises:
        ValueError: unknown tokenizer, no clips, unequal numbers of texts, or an empty reference.
    """
    tallies, signatures = tally(task, hypotheses, references, text_unit, bleu_tokenizer)
    return Scores({name: tally.total() for name, tally in tallies.items()}, signatures)


def tally(
    task: str, hypotheses: Sequence[str], references: Sequence[str], text_unit: str, bleu_tokenizer: str = "13a"
) -> tuple[dict[str, Tally], dict[str, str]]:
    """Tally each clip's contribution to the scores; arguments and errors as for `score`.

    Returns:
        score -> tally, in the order of the table, and kind of score -> signature.
    """
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references: each clip needs one of each.")
    if not references:
        raise ValueError("There are no clips to score. Check that the split's label file is not empty.")
    if empty := [i for i, reference in enumerate(references) if not as_tokenized(reference).strip()]:
        raise ValueError(
            f"{len(empty)} of {len(references)} references are empty (the first is number {empty[0] + 1}). "
            "Give these clips a text in the label file, or take them out."
        )
    if task == "SLT":
        return _tally_translations(hypotheses, references, text_unit, bleu_tokenizer)
    of_task = _tally_signs if task == "ISLR" else _tally_glosses
    return of_task(list(map(as_tokenized, hypotheses)), list(map(as_tokenized, references)))


def _tally_translations(
    hypotheses: Sequence[str], references: Sequence[str], text_unit: str, bleu_tokenizer: str
) -> tuple[dict[str, Tally], dict[str, str]]:
    ours = [prepare_hypothesis(text, text_unit) for text in hypotheses]
    theirs = [prepare_reference(text, text_unit) for text in references]
    for_bleu = ours, theirs
    if bleu_tokenizer != "13a":  # it splits the text as written
        whole = [prepare_reference(_narrow(text) if text_unit == "char" else text, "word") for text in references]
        for_bleu = [prepare_hypothesis(text, "word") for text in hypotheses], whole
    bleus, chrf = bleu_scorers(bleu_tokenizer), CHRF()
    tallies = {f"bleu{n}": _tally_of(bleu, *for_bleu) for n, bleu in enumerate(bleus, start=1)}
    tallies["chrf"] = _tally_of(chrf, ours, theirs)
    tallies["rouge_l"] = Tally(np.stack([list(map(rouge_l, ours, theirs)), np.ones(len(theirs))], 1), _ratio)
    return tallies, {
        "bleu": str(bleus[-1].get_signature()),
        "chrf": str(chrf.get_signature()),
        "rouge_l": "mean F per clip, equal to rouge 1.0.1",
    }


def _tally_signs(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[dict[str, Tally], dict[str, str]]:
    hits = np.array([h == r for h, r in zip(hypotheses, references, strict=True)], np.float64)
    classes, number = np.unique(np.array(references), return_inverse=True)
    of_class = np.zeros((len(references), 2, len(classes)))
    clips = np.arange(len(references))
    of_class[clips, 0, number], of_class[clips, 1, number] = hits, 1
    tallies = {
        "top1_per_instance": Tally(np.stack([hits, np.ones(len(references))], 1), _ratio),
        "top1_per_class": Tally(of_class.reshape(len(references), -1), _mean_of_classes),
    }
    return tallies, {"top1": "exact match of the whole text"}


def _tally_glosses(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[dict[str, Tally], dict[str, str]]:
    counts = np.array(list(map(word_errors, hypotheses, references)), np.float64)  # (clips, 3)
    words = [len(reference.split()) for reference in references]
    errors = {"wer": counts.sum(1), "wer_del": counts[:, 0], "wer_ins": counts[:, 1], "wer_sub": counts[:, 2]}
    tallies = {name: Tally(np.stack([of, words], 1), _ratio) for name, of in errors.items()}
    return tallies, {"wer": "words between blanks; costs: deletion 3, insertion 3, substitution 4"}


# -- confidence intervals --------------------------------------------------------------------------------------------


def draw_clips(n_clips: int, draws: int = 1000) -> np.ndarray:
    """Draw bootstrap resamples of the clips; return how often each draw has each clip, (draws, clips)."""
    drawn = np.random.default_rng(0).integers(n_clips, size=(draws, n_clips))
    return np.stack([np.bincount(clips, minlength=n_clips) for clips in drawn]).astype(np.float64)


def interval(scores: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the draws' scores."""
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def compare(ours: Sequence[Tally], theirs: Sequence[Tally], weights: np.ndarray) -> dict[str, Any]:
    """Compare a score of two systems trained with the same seeds, by paired bootstrap over the test clips.

    Every draw uses the same clips for all seeds: clips count as random, seeds as fixed. `ours` and `theirs` are one
    tally of all clips per seed, `weights` the result of `draw_clips`.

    Returns:
        `difference` (ours - theirs, mean over seeds), its 95 % `interval`, and the two-sided `p`: how often draws,
        shifted to a mean of zero, differ by at least as much.

    Source: paired bootstrap of Koehn (2004), with p as in sacrebleu.
    """
    seen = float(np.mean([tally.total() for tally in ours]) - np.mean([tally.total() for tally in theirs]))
    mine, other = (np.mean([tally.drawn(weights) for tally in system], axis=0) for system in (ours, theirs))
    drawn = mine - other  # (draws,)
    p = (1 + int((np.abs(drawn - drawn.mean()) >= abs(seen)).sum())) / (1 + len(drawn))
    return {"difference": seen, "interval": interval(drawn), "p": p}


def is_better(task: str, new: Sequence[float], best: Sequence[float] | None) -> bool:
    """Return whether an epoch's main score and loss are strictly better than the best so far (None: no epoch yet).

    Of equal scores the lower loss is better, as of the zeros of the first epochs.

    >>> is_better("SLT", (25.3, 2.0), (25.2, 1.9)), is_better("CSLR", (28.0, 1.0), (27.0, 1.0))
    (True, False)
    >>> is_better("SLT", (0.0, 2.0), (0.0, 3.0))
    True
    """
    if best is None or new[0] == best[0]:
        return best is None or new[1] < best[1]
    return (new[0] > best[0]) == MAIN_METRIC[task][1]
