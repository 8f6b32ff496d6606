"""The tokenizer gives the official ids; a model with a part of mT5's tokens does what the whole one does within it."""

import json
import logging
import shutil
from types import SimpleNamespace

import pytest
import torch

import fine_tuning
import utils
from clips.batch import collate_fn
from config import DATASETS
from datasets import S2T_Dataset
from network.mt5 import load_mt5
from network.vocabulary import EOS, PAD, UNK, Tokenizer, choose, log_coverage, move_rows
from synthetic.small_mt5 import train_tokenizer
from tests.helpers.models import new_model
from training import build
from training.weight_files import read_weights, save_weights
from training.weights import Checkpoint, load_finetune
from translator import Translator

TEXTS = ["我今天想在学校读书。", "Translate sign language video to Chinese: "]


# -- the tokenizer ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases(shared_reference):
    return json.loads((shared_reference / "tokenizer_cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def official(shared_reference):
    return Tokenizer(shared_reference / "tiny_mt5")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spiece")
    (folder / "spiece.model").write_bytes(train_tokenizer(["我今天很累。", "妈妈喝茶。", "a cup of tea"] * 3))
    return Tokenizer(folder)


@pytest.mark.parity
def test_special_ids(cases, official):
    assert (cases["pad"], cases["eos"], cases["unk"]) == (PAD, EOS, UNK)
    assert len(official.pieces) == cases["vocab_len"]


@pytest.mark.parity
def test_encode(cases, official):
    encoded = {case["text"]: case for case in cases["encode"]}
    # The official tokenizer takes "</s>" written out in a text for the token; here it is text like any other.
    written_out = encoded.pop("Hello </s> world")
    assert len(encoded) == 23
    for text, case in encoded.items():
        assert official.encode(text, 10**6) == case["ids"], text
        assert official.encode(text, 50) == case["ids_truncated_50"], text
        assert official.decode(case["ids"]) == case["decoded_full"], text
        assert official.decode(case["ids_truncated_50"]) == case["decoded_truncated"], text
    assert any(len(case["ids"]) > 50 for case in encoded.values())
    ids = official.encode("Hello </s> world", 50)
    assert ids.count(EOS) == written_out["ids"].count(EOS) - 1 == 1
    assert official.decode(ids) == "Hello </s> world"


@pytest.mark.parity
def test_batch(cases, official):
    expected = cases["batch"]
    ids, mask = official.encode_batch(expected["texts"], 50)
    assert ids.dtype == mask.dtype == torch.int64
    assert ids.tolist() == expected["input_ids"]
    assert mask.tolist() == expected["attention_mask"]


@pytest.mark.parity
def test_decode(cases, official):
    assert len(cases["decode"]) == 18
    for case in cases["decode"]:
        ids = case["ids"][1:] if case["ids"][0] == PAD else case["ids"]
        assert official.decode(ids) == case["text"]
        assert official.decode(torch.tensor(ids)) == case["text"]


def test_decode_leaves_out_what_is_no_text(small):
    ids = small.encode("我今天很累。", 100)[:-1]
    beyond = len(small.pieces)  # the model has a few rows more than the tokenizer has pieces
    assert small.decode([PAD, UNK, *ids[:2], UNK, beyond, beyond + 5, *ids[2:], PAD]) == "我今天很累。"
    assert small.decode([*ids, EOS, *ids, EOS]) == "我今天很累。"
    assert small.decode([]) == small.decode([PAD, EOS]) == ""
    assert small.decode([beyond - 1]) == small.pieces.decode([beyond - 1]) != ""


@pytest.mark.parametrize("most", [2, 3, 5, 100])
def test_the_closing_token_is_never_cut_off(small, most):
    whole = small.encode("妈妈喝茶。我今天很累。", 1000)
    ids = small.encode("妈妈喝茶。我今天很累。", most)
    assert ids == [*whole[:-1][: most - 1], EOS]
    assert len(ids) == min(most, len(whole))


def test_missing_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"spiece\.model does not exist.*--mt5_path") as error:
        Tokenizer(tmp_path / "nowhere")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\n\x0e\n"])
def test_damaged_model(tmp_path, content):
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"spiece\.model: is damaged, or no sentencepiece model") as error:
        Tokenizer(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("more_rows", "fits"), [(-1, False), (0, True), (12, True), (128, True), (129, False)])
def test_a_tokenizer_of_another_model(small_mt5_folder, tmp_path, more_rows, fits):
    """mT5 has 12 rows more than pieces, T5 has 128."""
    shutil.copy(small_mt5_folder / "spiece.model", tmp_path)
    pieces = len(Tokenizer(tmp_path).pieces)  # the model may come later
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": pieces + more_rows}))
    if fits:
        assert len(Tokenizer(tmp_path).pieces) == pieces
        return
    said = rf"spiece\.model has {pieces} pieces, and the model beside it {pieces + more_rows} tokens .*Get both again"
    with pytest.raises(ValueError, match=said):
        Tokenizer(tmp_path)
    with pytest.raises(ValueError, match=said):
        Tokenizer(tmp_path, torch.arange(8))


# -- which tokens ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(small_mt5_folder):
    return Tokenizer(small_mt5_folder)


@pytest.fixture(scope="module")
def kept(full):
    return choose(full, TEXTS)


@pytest.fixture(scope="module")
def batch(corpus):
    dataset = S2T_Dataset(DATASETS["CSL_Daily"].under(corpus), "test", use_descriptions=True)
    return collate_fn([dataset[i] for i in range(4)])


def test_what_is_kept(full, kept, small_mt5_folder):
    pieces = full.pieces
    ids = set(kept.tolist())
    assert kept.tolist() == sorted(ids)
    assert len(kept) % 8 == 0
    assert {PAD, EOS, UNK, *(token for text in TEXTS for token in pieces.encode(text))} <= ids
    assert all(pieces.piece_to_id(f"<0x{byte:02X}>") in ids for byte in range(256))
    single = [pieces.piece_to_id(character) for character in "abzAZ09,.!?。、"]
    assert UNK not in single
    assert ids >= set(single)
    outside = pieces.piece_to_id("晚")
    assert outside != UNK
    assert outside not in ids
    assert len(kept) < len(pieces)
    trimmed = Tokenizer(small_mt5_folder, kept).pieces
    # What an unknown character costs follows from the worst score.
    assert min(map(trimmed.get_score, range(len(trimmed)))) == min(map(pieces.get_score, range(len(pieces))))
    again = choose(full, [], also=kept)
    assert again.tolist() == kept.tolist()


def test_the_piece_of_the_worst_score_is_kept():
    """What an unknown character costs follows from it. Here no other rule would keep it."""

    class Pieces(list):
        def id_to_piece(self, token):
            return self[token]

        def get_score(self, token):
            return -float(token)

        def is_unknown(self, token):
            return token == 0

        def never(self, token):
            return False

        is_control = is_byte = is_unused = never

        def encode(self, text):
            return [self.index(text)]

    pieces = Pieces(["<unk>", "a", *(f"piece {n}" for n in range(2, 24))])
    kept = choose(SimpleNamespace(pieces=pieces), ["piece 9"])
    assert kept.tolist() == [0, 1, 2, 3, 4, 5, 9, 23]  # 2 to 5 fill it up to a multiple of 8


def test_texts_are_divided_as_before(full, kept, small_mt5_folder):
    trimmed = Tokenizer(small_mt5_folder, kept)
    assert len(trimmed.pieces) == len(kept)
    for text in [*TEXTS, "学校今天", "a b, c."]:
        ids = full.encode(text, 99)
        own = trimmed.encode(text, 99)
        if set(ids) <= set(kept.tolist()):
            assert kept[own].tolist() == ids
        assert trimmed.decode(own) == full.decode(ids)
    for text in ("妈妈晚上很累。", "😀 zebra"):  # in smaller pieces and bytes, and never <unk>
        own = trimmed.encode(text, 99)
        assert UNK not in own
        assert trimmed.decode(own) == text
        assert len(own) > len(full.encode(text, 99)) or "😀" in text


def test_everything_kept_is_the_same_file(full, small_mt5_folder):
    everything = Tokenizer(small_mt5_folder, torch.arange(len(full.pieces)))
    assert everything.model == full.model == (small_mt5_folder / "spiece.model").read_bytes()


def test_coverage_is_counted_by_hand(full, kept, caplog):
    texts = ["我今天", "晚上"]
    tokens = [token for text in texts for token in full.pieces.encode(text)]
    lost = sum(token not in kept.tolist() for token in tokens)
    assert lost > 0
    caplog.set_level(logging.INFO)
    log_coverage(full, kept, texts)
    share = 100 * (1 - lost / len(tokens))
    assert f"{len(kept)} of {len(full.pieces)} tokens are kept, and {share:.2f} % of those of" in caplog.text


# -- what the model does ---------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_trimmed_model_is_the_whole_one_held_to_its_tokens(batch, kept, small_mt5_folder, num_beams):
    """Logits, sentences and scores; the texts it reads have no other tokens."""
    src_input = {**batch[0], "descriptions": [["我今天想在学校"] * len(texts) for texts in batch[0]["descriptions"]]}
    whole = new_model(small_mt5_folder, use_descriptions=True)
    trimmed = new_model(small_mt5_folder, kept, use_descriptions=True)
    before, after = whole.encode(src_input), trimmed.encode(src_input)
    assert torch.equal(before.encoder_states, after.encoder_states)
    outside = torch.ones(whole.mt5_model.config.vocab_size, dtype=torch.bool)
    outside[kept] = False
    free = whole.generate(before, num_beams, 20)
    hook = whole.mt5_model.lm_head.register_forward_hook(lambda _, __, out: out.masked_fill(outside, -torch.inf))
    held, own = whole.generate(before, num_beams, 20), trimmed.generate(after, num_beams, 20)
    assert not torch.equal(free, held)  # left alone, it uses others
    assert torch.equal(held, kept[own])
    assert torch.allclose(whole.log_probs(before, held), trimmed.log_probs(after, own), atol=1e-5)
    hook.remove()
    assert len({tuple(row) for row in own.tolist()}) > 1


# -- weights ---------------------------------------------------------------------------------------------------------


def test_rows_of_whole_weights_are_picked(kept, small_mt5_folder, tmp_path):
    """Weights of Uni-Sign, with every token, start a trimmed model."""
    source = new_model(small_mt5_folder)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter += 0.25
    torch.save({"model": source.state_dict()}, tmp_path / "released.pth")
    model = new_model(small_mt5_folder, kept)
    assert load_finetune(model, tmp_path / "released.pth") == []
    own, whole = model.state_dict(), source.state_dict()
    for name in own.keys() - {"kept_tokens"}:
        wanted = whole[name][kept] if len(own[name].shape) and len(own[name]) == len(kept) else whole[name]
        assert torch.equal(own[name], wanted), name


def test_a_larger_vocabulary_starts_from_mt5s_rows(full, kept, small_mt5_folder, tmp_path):
    source = new_model(small_mt5_folder, kept)
    with torch.no_grad():
        source.mt5_model.shared.weight += 0.25
    save_weights(tmp_path / "trimmed.pth", source.state_dict(), source.config)
    larger = choose(full, ["妈妈晚上很累。"], also=kept)
    model = new_model(small_mt5_folder, larger)
    load_finetune(model, tmp_path / "trimmed.pth")
    assert model.kept_tokens.tolist() == larger.tolist()
    pretrained = load_mt5(small_mt5_folder).shared.weight
    for row, token in zip(model.mt5_model.shared.weight, larger.tolist(), strict=True):
        assert torch.equal(row, pretrained[token] + 0.25 if token in kept.tolist() else pretrained[token])


def test_rows_move_by_hand():
    rows, into = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[-1.0], [-2.0]])
    assert move_rows(rows, torch.tensor([0, 4, 9]), into, torch.tensor([4, 5])).tolist() == [[2.0], [-2.0]]
    assert move_rows(rows, None, into, torch.tensor([0, 2])).tolist() == [[1.0], [3.0]]
    assert move_rows(into, torch.tensor([1, 2]), rows, None).tolist() == [[1.0], [-1.0], [-2.0]]


def test_what_cannot_be_is_one_line(kept, small_mt5_folder, tmp_path, capsys):
    for wrong in (torch.ones(3), torch.tensor([3, 2]), torch.tensor([-1, 2]), torch.tensor([], dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"--finetune: w.pth: its kept_tokens are no sorted token numbers"):
            _ = Checkpoint("--finetune: w.pth", {"kept_tokens": wrong}, {}).kept
    with pytest.raises(ValueError, match="keep token 99999 of a larger one. Name the mT5 of training"):
        load_mt5(small_mt5_folder, kept=torch.tensor([0, 1, 2, 99999]))
    model = new_model(small_mt5_folder, kept)
    weights = new_model(small_mt5_folder).state_dict()
    torch.save({**weights, "mt5_model.shared.weight": torch.zeros(7, 32)}, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"does not fit.*mt5_model.shared.weight \(7, 32\)"):
        load_finetune(model, tmp_path / "short.pth")
    with pytest.raises(SystemExit):
        utils.parse_args(["--eval", "--finetune", "x", "--trim_vocab"])
    assert "--eval takes the vocabulary that the weights of --finetune have" in capsys.readouterr().err


def test_train_evaluate_resume_translate(corpus, tmp_path, caplog):
    """The flag is given once: whatever reads the weights knows their vocabulary."""
    flags = (
        f"--root {corpus} --use_descriptions --hidden_dim 16 --batch-size 8 --gradient-accumulation-steps 1 "
        "--dtype fp32 --num_workers 0 --num_beams 2 --max_new_tokens 12 --max_length 32"
    ).split()
    out = tmp_path / "out"
    fine_tuning.main(utils.parse_args([*flags, "--trim_vocab", "--epochs", "1", "--output_dir", str(out)]))
    assert "% of those of dev and test" in caplog.text
    weights, _ = read_weights(out / "best_checkpoint.pth", "--finetune")
    kept = weights["kept_tokens"]
    tokens = len(Tokenizer(corpus / "pretrained_weight/mt5-base").pieces)
    assert len(kept) < tokens
    assert len(weights["mt5_model.lm_head.weight"]) == len(weights["text_encoder.encoder.shared.weight"]) == len(kept)

    evaluation = ["--eval", "--finetune", str(out / "best_checkpoint.pth"), "--output_dir", str(tmp_path / "eval")]
    fine_tuning.main(utils.parse_args([*flags, *evaluation]))
    lines = (tmp_path / "eval/test_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    wanted = {line["name"]: line["hypothesis"] for line in map(json.loads, lines)}
    spec = DATASETS["CSL_Daily"].under(corpus)
    translate = Translator.from_checkpoint(
        out / "best_checkpoint.pth", dtype="fp32", num_beams=2, max_new_tokens=12, device="cpu"
    )
    for name, path in S2T_Dataset(spec, "test").pose_paths.items():
        texts = corpus / f"description/CSL-Daily/split_data/test/{name}.json"
        assert translate(path, texts if texts.is_file() else None) == wanted[name]

    # The texts on disk may change; the vocabulary of a run that goes on does not.
    caplog.clear()
    state = next((out / "resume").glob("step_*"))
    arguments = json.loads((state / "state.json").read_text())["arguments"]
    assert arguments["trim_vocab"]
    args = utils.parse_args([*flags, "--trim_vocab", "--epochs", "1", "--output_dir", str(out), "--resume", "auto"])
    full = Tokenizer(corpus / "pretrained_weight/mt5-base").pieces
    outside = [full.id_to_piece(n) for n in range(len(full)) if n not in kept.tolist() and not full.is_unused(n)]
    train = SimpleNamespace(targets=lambda: outside, description_texts=set)
    loaders = {"train": SimpleNamespace(dataset=train)}
    assert set(full.encode(outside[0])) - set(kept.tolist())
    model = build.build_model(args, build.model_config(args, spec), loaders, state)
    assert torch.equal(model.kept_tokens, kept)
    assert torch.equal(model.state_dict()["mt5_model.lm_head.weight"], weights["mt5_model.lm_head.weight"])
