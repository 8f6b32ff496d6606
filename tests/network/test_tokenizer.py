"""The tokenizer gives the ids and the texts of the official one."""

import json

import pytest
import torch

from network.tokenizer import EOS, PAD, UNK, Tokenizer
from synthetic.small_mt5 import train_tokenizer


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


@pytest.mark.parity
def test_bytes_that_make_no_character(official):
    first = official.pieces.piece_to_id("<0xE9>")
    assert official.decode([first, EOS]) == "\ufffd"
    whole = [official.pieces.piece_to_id(f"<0x{byte:02X}>") for byte in "饕".encode()]
    assert official.decode([*whole, EOS]) == "饕"


def test_text_comes_back(small):
    for text in ("我今天很累。", "饕餮 \U0001f44b", "tea, 42%"):
        ids = small.encode(text, 100)
        assert UNK not in ids
        assert small.decode(ids) == text


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


def test_an_empty_text_is_the_closing_token(small):
    assert small.encode("", 50) == [EOS]
    ids, mask = small.encode_batch(["", "茶"], 50)
    assert ids[0].tolist() == [EOS] + [PAD] * (ids.shape[1] - 1)
    assert mask.sum(1).tolist() == [1, len(small.encode("茶", 50))]


def test_a_batch_is_as_wide_as_its_longest_text(small):
    assert small.encode_batch(["茶", "妈妈喝茶。"], 50)[0].shape == (2, len(small.encode("妈妈喝茶。", 50)))
    assert small.encode_batch(["茶", "妈妈喝茶。"], 3)[0].shape == (2, 3)


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
