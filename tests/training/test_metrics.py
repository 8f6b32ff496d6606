"""Scores against values recorded from the official functions, and by hand."""

import json
import sys
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import sacrebleu

from config import BLEU_TOKENIZERS, TEXT_UNITS
from network.vocabulary import Tokenizer
from synthetic.small_mt5 import write_small_mt5
from training import metrics

BLEUS = ("bleu1", "bleu2", "bleu3", "bleu4")
WER_KEYS = {"wer": "wer", "wer_del": "del_rate", "wer_ins": "ins_rate", "wer_sub": "sub_rate"}
SETS = ("csl_daily_dev", "csl_daily_test", "openasl_dev", "openasl_test", "how2sign_test")


@pytest.fixture(scope="module")
def recorded(shared_reference: Path) -> dict:
    return json.loads((shared_reference / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(params=SETS)
def released(request: pytest.FixtureRequest, shared_reference: Path, recorded: dict) -> tuple[list, list, dict]:
    """Hypotheses and references of a released prediction file, and the official scores."""
    lines = (shared_reference / "predictions" / f"{request.param}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == recorded["sets"][request.param]["num"]
    official = recorded["sets"][request.param]["official"]
    return [row["prediction"] for row in rows], [row["reference"] for row in rows], official


@pytest.mark.parity
def test_released_predictions_score_as_published(released: tuple[list, list, dict]) -> None:
    """As translations, as signs and as glosses; and they are written as the tokenizer writes."""
    hypotheses, references, official = released
    for text in (*hypotheses, *references):
        assert metrics.as_tokenized(text) == text
    scores = {task: metrics.score(task, hypotheses, references, "word").values for task in metrics.MAIN_METRIC}
    assert list(scores["SLT"]) == [*BLEUS, "chrf", "rouge_l"]
    for key in BLEUS:
        assert scores["SLT"][key] == pytest.approx(official[key], abs=1e-9)
    rouge_l = 100 * np.mean(list(map(metrics.rouge_l, hypotheses, references)))  # of texts as written: a blank counts
    assert rouge_l == pytest.approx(official["rouge_l_f"], abs=1e-9)
    # The recorded chrF is that of sacrebleu 1.4.2: it differs in the third decimal.
    assert scores["SLT"]["chrf"] == pytest.approx(official["chrf"], abs=2e-3)
    assert scores["SLT"]["chrf"] == sacrebleu.corpus_chrf(hypotheses, [references]).score
    for key in ("top1_per_instance", "top1_per_class"):
        assert scores["ISLR"][key] == pytest.approx(official[f"islr_{key}"], abs=1e-9)
    for key, name in WER_KEYS.items():
        expected = official["wer_whitespace_tokens_int64_distance_table"][name]
        assert scores["CSLR"][key] == pytest.approx(expected, abs=1e-9)


OTHER_FORMS = {
    "decomposed Korean": [
        unicodedata.normalize("NFD", text) for text in ("나는 오늘 집에 간다", "또 차를 한 잔 마셨다")
    ],
    "Thai's sara am": ["ทำงาน ที่ บ้าน ทุก วัน", "น้ำ ดื่ม อยู่ บน โต๊ะ"],
    "Persian joiners": ["من می\u200cخواهم به خانه بروم", "آن\u200cها کتاب\u200cهای خوبی دارند"],
    "half-width kana": ["ｶﾞｯｺｳ ﾍ ｲｷﾏｽ ｱｼﾀ ｱｻ｡", "ﾏｲﾆﾁ ｺｰﾋｰ ｦ ﾉﾐﾏｽ ｱｻ｡"],
    "full-width digits and letters": ["我 有 １２ 个 ＡＢ 朋友", "今天 ３７℃ 很 热 吗"],
}


@pytest.mark.parametrize("texts", OTHER_FORMS.values(), ids=OTHER_FORMS)
def test_what_the_tokenizer_rewrites_can_be_generated(texts: list[str], tmp_path: Path) -> None:
    """A model that generates each text as the tokenizer has it is perfect, in every task."""
    write_small_mt5(tmp_path, texts * 20, d_model=16, layers=1, heads=2, d_kv=8, d_ff=16)
    tokenizer = Tokenizer(tmp_path)
    generated = [tokenizer.decode(tokenizer.encode(text, 500)) for text in texts]
    assert generated != texts
    for unit in TEXT_UNITS:
        for name in ("13a", "intl"):
            values = metrics.score("SLT", generated, texts, unit, name).values
            assert {key: round(value, 6) for key, value in values.items()} == dict.fromkeys(values, 100)
    assert metrics.score("ISLR", generated, texts, "word").values["top1_per_instance"] == 100
    assert metrics.score("CSLR", generated, texts, "word").values["wer"] == 0
    assert metrics.score("ISLR", texts, texts, "word").values["top1_per_instance"] == 100


def test_published_punctuation_and_invalid_bytes_stay() -> None:
    """CSL-Daily's exclamation marks, OpenASL's ellipses, and what a model writes of a character's bytes."""
    for text in ("好！", "well… yes", "（一）：“二”", "\ufffd \x18\n", " book "):
        assert metrics.as_tokenized(text) == text


@pytest.mark.parity
@pytest.mark.parametrize("tokenizer", ["zh", "char"])
def test_other_tokenizers_see_the_text_as_written(shared_reference: Path, recorded: dict, tokenizer: str) -> None:
    lines = (shared_reference / "predictions" / "csl_daily_dev.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    texts = [[row[key].replace(" ", "") for row in rows] for key in ("prediction", "reference")]
    official = recorded["sets"]["csl_daily_dev"]
    expected = official["sacrebleu_2.6.0"][f"{tokenizer}_on_joined_text"]
    scores = metrics.score("SLT", *texts, "char", tokenizer)
    for key in BLEUS:
        assert scores.values[key] == pytest.approx(expected[key], abs=1e-9)
    assert f"tok:{tokenizer}" in scores.signatures["bleu"]
    assert scores.values["rouge_l"] == pytest.approx(
        recorded["sets"]["csl_daily_dev"]["official"]["rouge_l_f"], abs=1e-9
    )


@pytest.mark.parity
def test_recorded_cases(recorded: dict) -> None:
    cases = recorded["cases"]
    wanted = [("CSLR", case, case["out_int64_distance_table"], WER_KEYS) for case in cases["wer_list"].values()]
    accuracies = {"top1_per_instance": "top1_acc_pi", "top1_per_class": "top1_acc_pc"}
    wanted += [("ISLR", case, case, accuracies) for case in cases["islr_performance"].values()]
    keys = {**dict(zip(BLEUS, BLEUS, strict=True)), "rouge_l": "rouge_l_f"}
    wanted += [("SLT", case, case, keys) for case in cases["translation_performance"].values()]
    for task, case, official, names in wanted:
        # Glosses are words in Chinese, too.
        unit = "char" if task == "CSLR" else "word"
        got = metrics.score(task, case["hypotheses"], case["references"], unit).values
        for key, name in names.items():
            assert got[key] == pytest.approx(official[name], abs=1e-9), case
    for case in cases["translation_performance_empty"].values():
        assert case["error"] == "ValueError: Hypothesis is empty."
        got = metrics.score("SLT", case["hypotheses"], case["references"], "word").values
        assert got["rouge_l"] == pytest.approx(50, abs=1e-6)  # the other clip of the two is right


@pytest.mark.parity
def test_preparation_is_uni_signs(shared_reference: Path) -> None:
    texts = json.loads((shared_reference / "generate_pose_text.json").read_text(encoding="utf-8"))
    raw_references = json.loads((shared_reference / "batch_info.json").read_text(encoding="utf-8"))["sentences"]
    for beams in ("beam1", "beam4"):
        prepared = [metrics.prepare_hypothesis(text, "char") for text in texts[beams]["decoded"]]
        assert prepared == texts[beams]["csl_daily_slt_post"]
    prepared = [metrics.prepare_reference(text, "char") for text in raw_references]
    assert prepared == texts["refs_csl_daily_slt_post"]


def test_preparation_of_punctuation_and_blanks() -> None:
    assert metrics.prepare_reference("好 吗？是，好！", "char") == "好 吗 ? 是 , 好 ！"
    # Only references are narrowed: mT5's tokenizer never writes the wide forms.
    assert metrics.prepare_hypothesis("好 吗？\n是，", "char") == "好 吗 ？ 是 ，"
    for prepare in (metrics.prepare_hypothesis, metrics.prepare_reference):
        assert prepare("\n A  lot，really？ ", "word") == "A  lot，really？"
        assert prepare("", "char") == ""


def test_translations_are_prepared_before_they_are_scored() -> None:
    hypotheses, references = ["今天天气好。\n", "你 好。"], ["今天天气很好。", "你好？"]
    # 8 of 9 characters are right, the brevity penalty is exp(1 - 10/9).
    right = 100 * 8 / 9 * 2.718281828459045 ** (1 - 10 / 9)
    assert metrics.score("SLT", hypotheses, references, "char").values["bleu1"] == pytest.approx(right)
    assert metrics.score("SLT", hypotheses, references, "word").values["bleu1"] == 0


@pytest.mark.parametrize(
    ("hypothesis", "reference", "expected"),
    [
        ("a b c d", "a b c", 6 / 7),  # precision 3/4, recall 1
        ("a a b", "a b", 1.0),  # a word counts once
        ("a b. c d", "d c. b a", 1 / 2),  # one word of each pair of sentences, the later one
        ("a a b", "a b a", 1 / 2),  # of "a a" and "a b", both longest, the package finds "a a"
        ("a b a", "a a b", 1.0),
        ("a . . b", "a . c", 2 / 5),  # a blank between two full stops is a word: 1 of 3 and of 2
        ("one. two", "one two", 1.0),
        ("a", "b", 0.0),
    ],
)
def test_rouge_l_counts_as_the_package(hypothesis: str, reference: str, expected: float) -> None:
    assert metrics.rouge_l(hypothesis, reference) == pytest.approx(expected, abs=1e-7)  # the package adds 1e-8


@pytest.mark.parametrize("nothing", ["", ".", "...", " . . ", "\n"])
def test_rouge_l_of_a_text_without_words_is_zero(nothing: str) -> None:
    assert metrics.rouge_l(nothing, "a . . b") == 0
    assert metrics.rouge_l("a . . b", nothing) == 0
    assert metrics.rouge_l(nothing, nothing) == 0


def test_long_texts_neither_recurse_nor_overflow() -> None:
    long = " ".join(f"w{i}" for i in range(3000))
    assert metrics.rouge_l(long, "w7 w9 w8") == pytest.approx(2 * 2 / 3003, abs=1e-7)
    assert metrics.word_errors(long, "w7 w9 x") == (0, 2997, 1)
    assert metrics.word_errors("", long) == (3000, 0, 0)
    rng = np.random.default_rng(0)
    ours, theirs = (" ".join(rng.choice(list("abcdefgh"), 6_000)) for _ in range(2))
    tracemalloc.start()
    assert metrics.rouge_l(ours, theirs) == pytest.approx(1)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("task", "hypotheses", "references", "unit", "message"),
    [
        ("SLT", ["a"], ["a", "b"], "word", r"1 hypotheses for 2 references"),
        ("SLT", [], [], "word", r"no clips to score"),
        ("SLT", ["a", "b", "c"], ["a", " ", "\n"], "char", r"2 of 3 references are empty \(the first is number 2\)"),
        ("ISLR", ["a"], [""], "word", r"1 of 1 references are empty"),
        ("CSLR", ["a"], [" "], "word", r"1 of 1 references are empty"),
        ("CSLR", ["a"], ["\u200b"], "word", r"1 of 1 references are empty"),  # which the tokenizer drops
    ],
)
def test_what_cannot_be_scored_is_one_clear_line(
    task: str, hypotheses: list, references: list, unit: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        metrics.score(task, hypotheses, references, unit)
    assert "\n" not in str(caught.value)


def test_tokenizers_of_other_languages() -> None:
    hypotheses, references = ["هل أنت بخير؟"], ["هل أنت بخير"]
    plain, intl = (metrics.score("SLT", hypotheses, references, "word", name).values for name in ("13a", "intl"))
    assert (plain["bleu1"], intl["bleu1"]) == pytest.approx((200 / 3, 75))  # the question mark is a token of its own
    assert set(BLEU_TOKENIZERS) <= set(sacrebleu.BLEU.TOKENIZERS)
    with pytest.raises(ValueError, match=r"bleu_tokenizer 'mecab': sacrebleu has none of this name\. Mend") as error:
        metrics.bleu_scorers("mecab")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tokenizer", "package", "extra"), [("ja-mecab", "MeCab", "ja"), ("ko-mecab", "mecab_ko", "ko")]
)
def test_a_tokenizer_without_its_package_names_it(monkeypatch, tokenizer: str, package: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    module = f"sacrebleu.tokenizers.tokenizer_{tokenizer.replace('-', '_')}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ValueError, match=rf"bleu_tokenizer '{tokenizer}': it needs pip install 'sacrebleu\[{extra}\]'"):
        metrics.bleu_scorers(tokenizer)


def test_no_warning_about_split_texts(caplog: pytest.LogCaptureFixture) -> None:
    metrics.score("SLT", ["好的."] * 200, ["好的."] * 200, "char")
    assert not caplog.records


def test_table_and_signatures() -> None:
    scores = metrics.score("SLT", ["a b c d"], ["a b c d"], "word")
    assert scores.table().splitlines() == [
        " bleu1   bleu2   bleu3   bleu4    chrf  rouge_l",
        "100.00  100.00  100.00  100.00  100.00   100.00",
    ]
    assert scores.signatures["bleu"] == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    assert scores.signatures["chrf"].endswith(f"|version:{sacrebleu.__version__}")


def test_better_means_higher_except_for_errors() -> None:
    for task, (key, higher) in metrics.MAIN_METRIC.items():
        assert key in metrics.score(task, ["a"], ["a"], "word").values
        assert metrics.is_better(task, (2.0, 9.0), (1.0, 1.0)) is higher
        assert metrics.is_better(task, (1.0, 1.0), (2.0, 9.0)) is not higher
        assert metrics.is_better(task, (0.0, 5.0), (0.0, 6.0))  # of equal scores the lower loss
        assert not metrics.is_better(task, (0.0, 6.0), (0.0, 5.0))
        assert not metrics.is_better(task, (1.0, 1.0), (1.0, 1.0))  # the earlier epoch stays
        assert metrics.is_better(task, (0.0, 1.0), None)


# -- paired bootstrap ------------------------------------------------------------------------------------------------

SENTENCES = [
    "the cat sat on the mat today",
    "a dog runs in the green park",
    "we read a long book at home",
    "it rains",
] * 5
OTHERS = ["the cat sat on a mat", "a dog ran in the park", "we read a book at home now", "it rains today"] * 5


def paired(ours, theirs, references, text_unit, draws):
    """BLEU-4 of two systems compared; each has a list of texts for each seed."""
    mine, other = (
        [metrics.tally("SLT", texts, references, text_unit)[0]["bleu4"] for texts in system]
        for system in (ours, theirs)
    )
    return metrics.compare(mine, other, metrics.draw_clips(len(references), draws))


def test_bootstrap_sees_the_difference_of_the_scores():
    references = SENTENCES
    ours, theirs = [[*SENTENCES[:15], *OTHERS[15:]], OTHERS], [OTHERS, [*OTHERS[:10], *SENTENCES[10:]]]
    result = paired(ours, theirs, references, "word", 200)
    scores = [
        [metrics.score("SLT", texts, references, "word").values["bleu4"] for texts in system]
        for system in (ours, theirs)
    ]
    assert result["difference"] == pytest.approx(sum(scores[0]) / 2 - sum(scores[1]) / 2)
    low, high = result["interval"]
    assert low < result["difference"] < high
    mirrored = paired(theirs, ours, references, "word", 200)
    assert mirrored["difference"] == pytest.approx(-result["difference"])
    assert mirrored["p"] == result["p"]


def test_bootstrap_agrees_with_sacrebleu():
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    ours = [*SENTENCES[:6], *OTHERS[6:]]
    result = paired([ours], [OTHERS], SENTENCES, "word", 1000)
    _, scores = PairedTest([("theirs", OTHERS), ("ours", ours)], {"BLEU": BLEU()}, [SENTENCES], "bs", 1000)()
    theirs = scores["BLEU"]
    assert result["difference"] == pytest.approx(theirs[1].score - theirs[0].score)
    assert result["p"] == pytest.approx(theirs[1].p_value, abs=0.03)


def test_a_clip_alone_scores_as_sacrebleu_scores_a_sentence():
    from sacrebleu.metrics import CHRF

    tallies, _ = metrics.tally("SLT", OTHERS[:4], SENTENCES[:4], "word")
    wanted = [CHRF().sentence_score(ours, [right]).score for ours, right in zip(OTHERS[:4], SENTENCES[:4], strict=True)]
    assert tallies["chrf"].each() == pytest.approx(wanted)
    tallies, _ = metrics.tally("CSLR", ["A B", "A X", "A B C D"], ["A B", "A B", "A B"], "char")
    assert tallies["wer"].each() == pytest.approx([0, 50, 100])


@pytest.mark.parametrize("name", ["bleu4", "chrf"])
def test_intervals_are_as_wide_as_sacrebleus(name):
    from sacrebleu.metrics import BLEU, CHRF

    ours = [*SENTENCES[:6], *OTHERS[6:]]
    tallies, _ = metrics.tally("SLT", ours, SENTENCES, "word")
    low, high = metrics.interval(tallies[name].drawn(metrics.draw_clips(len(ours))))
    theirs = {"bleu4": BLEU(), "chrf": CHRF()}[name].corpus_score(ours, [SENTENCES], n_bootstrap=1000)
    assert (high - low) / 2 == pytest.approx(theirs._ci, rel=0.15)
    assert low < theirs.score < high


def test_draws_of_accuracies_by_hand():
    """Classes that a draw leaves out do not count in it."""
    tallies, _ = metrics.tally("ISLR", ["a", "b", "x"], ["a", "a", "c"], "word")
    weights = np.array([[1.0, 1, 1], [2, 1, 0], [0, 0, 3]])
    assert tallies["top1_per_instance"].drawn(weights) == pytest.approx([100 / 3, 200 / 3, 0])
    assert tallies["top1_per_class"].drawn(weights) == pytest.approx([25, 200 / 3, 0])
