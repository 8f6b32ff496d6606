"""Scores: BLEU, chrF and ROUGE-L for translation, accuracy for isolated signs, word error rate for glosses.

All are percentages. They equal Uni-Sign's, so that they can stand beside the published ones; only chrF differs, in
the third decimal. BLEU and chrF are sacrebleu's. ROUGE-L and the word error rate are written out here: the `rouge`
package, which defines the published ROUGE-L, is no longer maintained, raises on an empty hypothesis and recurses once
per word; `jiwer` gives every error the same cost, and the published rates come from other costs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

# task -> (the score that chooses the best epoch, whether higher is better)
MAIN_METRIC: dict[str, tuple[str, bool]] = {
    "SLT": ("bleu4", True),
    "ISLR": ("top1_per_instance", True),
    "CSLR": ("wer", False),
}


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


def _bleu(scorers: Sequence[BLEU], hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    return {f"bleu{n}": bleu.corpus_score(hypotheses, [references]).score for n, bleu in enumerate(scorers, start=1)}


def score_prepared(task: str, hypotheses: Sequence[str], references: Sequence[str]) -> Scores:
    """Score texts that already have the form to be scored; arguments and result as for `score`."""
    if task == "SLT":
        bleus, chrf = bleu_scorers("13a"), CHRF()
        values = _bleu(bleus, hypotheses, references)
        values["chrf"] = chrf.corpus_score(hypotheses, [references]).score
        values["rouge_l"] = 100 * sum(map(rouge_l, hypotheses, references)) / len(references)
        signatures = {
            "bleu": str(bleus[-1].get_signature()),
            "chrf": str(chrf.get_signature()),
            "rouge_l": "mean F per clip, equal to rouge 1.0.1",
        }
        return Scores(values, signatures)
    if task == "ISLR":
        hits = defaultdict(list)
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            hits[reference].append(hypothesis == reference)
        per_class = [sum(of_class) / len(of_class) for of_class in hits.values()]
        per_instance = sum(map(sum, hits.values())) / len(references)
        values = {"top1_per_instance": 100 * per_instance, "top1_per_class": 100 * sum(per_class) / len(per_class)}
        return Scores(values, {"top1": "exact match of the whole text"})
    counts = map(sum, zip(*map(word_errors, hypotheses, references), strict=True))
    words = sum(len(reference.split()) for reference in references)
    dels, ins, subs = (100 * count / words for count in counts)
    values = {"wer": dels + ins + subs, "wer_del": dels, "wer_ins": ins, "wer_sub": subs}
    return Scores(values, {"wer": "words between blanks; costs: deletion 3, insertion 3, substitution 4"})


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
        return score_prepared(task, hypotheses, references)
    scores = score_prepared(
        task,
        [prepare_hypothesis(text, text_unit) for text in hypotheses],
        [prepare_reference(text, text_unit) for text in references],
    )
    if bleu_tokenizer == "13a":
        return scores
    scorers = bleu_scorers(bleu_tokenizer)
    whole = [_narrow(text) if text_unit == "char" else text for text in references]
    values = _bleu(scorers, [text.strip() for text in hypotheses], [text.strip() for text in whole])
    return Scores(scores.values | values, scores.signatures | {"bleu": str(scorers[-1].get_signature())})


def paired_bootstrap(
    ours: Sequence[Sequence[str]],
    theirs: Sequence[Sequence[str]],
    references: Sequence[str],
    text_unit: str,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare BLEU-4 of two systems that were trained with the same seeds, by drawing the test clips anew.

    Every draw takes the same clips of all seeds, so clips count as random and seeds as fixed.

    Args:
        ours: for each seed, the texts of all clips.
        theirs: the same of the other system.
        references: of the clips.
        text_unit: "char" or "word".
        resamples: draws.
        seed: of the draws.

    Returns:
        `difference` (ours - theirs, mean over seeds), its 95 % `interval`, and `p`, two-sided: how often draws whose
        mean is moved to zero differ by as much.

    Source: paired bootstrap of Koehn (2004), as sacrebleu counts p.
    """
    prepared = [prepare_reference(text, text_unit) for text in references]
    sums = [
        np.array([_bleu_counts([prepare_hypothesis(text, text_unit) for text in texts], prepared) for texts in system])
        for system in (ours, theirs)
    ]  # (seeds, clips, 10) each
    draws = np.random.default_rng(seed).integers(len(prepared), size=(resamples, len(prepared)))
    everything = np.arange(len(prepared))

    def difference(clips: np.ndarray) -> float:
        mine, other = (np.mean([_bleu_of(counts[clips].sum(0)) for counts in system]) for system in sums)
        return float(mine - other)

    seen = difference(everything)
    drawn = np.array([difference(clips) for clips in draws])
    p = (1 + int((np.abs(drawn - drawn.mean()) >= abs(seen)).sum())) / (1 + resamples)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"difference": seen, "interval": (float(low), float(high)), "p": p}


def _bleu_counts(hypotheses: Sequence[str], references: Sequence[str]) -> list[list[int]]:
    """For each clip: matches of 1- to 4-grams, their numbers, and both lengths."""
    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(ours, [theirs]) for ours, theirs in zip(hypotheses, references, strict=True)]
    return [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores]


def _bleu_of(counts: np.ndarray) -> float:
    correct, total, (ours, theirs) = counts[:4].tolist(), counts[4:8].tolist(), counts[8:].tolist()
    return BLEU.compute_bleu(correct, total, ours, theirs, smooth_method="exp").score


def is_better(task: str, new: float, best: float | None) -> bool:
    """Tell whether `new` beats the best main score so far (None: there is none yet); the earlier of equals stays.

    >>> is_better("SLT", 25.3, 25.2), is_better("CSLR", 28.0, 27.0), is_better("ISLR", 0.0, None)
    (True, False, True)
    """
    if best is None:
        return True
    return new > best if MAIN_METRIC[task][1] else new < best
