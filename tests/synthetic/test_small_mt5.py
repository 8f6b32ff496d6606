"""The small mT5 loads as mT5 does, untied, and its tokenizer writes everything."""

import gzip
import json
import math
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import MT5ForConditionalGeneration

from network.vocabulary import UNK, Tokenizer
from synthetic import small_mt5
from synthetic.small_mt5 import read_texts, train_tokenizer, write_small_mt5
from tools.small_mt5 import main

TEXTS = ["我今天想在学校读书。", "妈妈晚上很累。", "你喝茶吗？", "右手食指伸直，位于胸前。"] * 3
SIZES = {"d_model": 32, "heads": 2, "d_kv": 16, "d_ff": 48}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("mt5") / "small"
    write_small_mt5(out, TEXTS, **SIZES)
    return out


def load(folder):
    return MT5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)


def test_loads_as_written_and_untied(folder):
    model, info = load(folder)
    assert not any(info.values()), info
    written = load_file(folder / "model.safetensors")
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], values) for name, values in written.items())
    assert set(loaded) - set(written) == {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    model.lm_head.weight.data.zero_()
    assert torch.equal(model.shared.weight, written["shared.weight"])


def test_an_untrained_model_guesses_evenly(folder):
    model, _ = load(folder)
    ids, _ = Tokenizer(folder).encode_batch(TEXTS[:4], 30)
    labels = torch.randint(3, model.config.vocab_size, (4, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = model.eval()(input_ids=ids, labels=labels).loss.item()
    assert loss == pytest.approx(math.log(model.config.vocab_size), abs=0.1)


def test_sizes_are_those_asked_for(folder):
    model, _ = load(folder)
    pieces = len(Tokenizer(folder).pieces)
    assert model.config.d_model == 32
    assert len(model.encoder.block) == len(model.decoder.block) == 2
    assert model.config.vocab_size % 64 == 0
    assert pieces <= model.config.vocab_size < pieces + 64
    assert model.config.decoder_start_token_id == 0
    assert model.config.dropout_rate == 0.1


def test_same_seed_same_bytes(folder, tmp_path):
    write_small_mt5(tmp_path / "again", TEXTS, **SIZES)
    write_small_mt5(tmp_path / "other", TEXTS, seed=1, **SIZES)
    names = ["config.json", "model.safetensors", "spiece.model", "tokenizer_config.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)
    assert (folder / "model.safetensors").read_bytes() != (tmp_path / "other/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "text",
    ["我今天很累。", "饕餮 naïve \U0001f44b", "Hello, world! 42%", "Translate sign language video to English:"],
)
def test_text_comes_back(folder, text):
    tokenizer = Tokenizer(folder)
    ids = tokenizer.encode(text, 100)
    assert UNK not in ids
    assert ids[-1] == 1
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("texts", "vocab_size", "said"), [(["", "  "], 2000, "no text"), (TEXTS, 100, "--vocab_size 100")]
)
def test_what_gives_no_tokenizer(texts, vocab_size, said):
    with pytest.raises(ValueError, match=said):
        train_tokenizer(texts, vocab_size)


@pytest.mark.parametrize("content", ['{"model_type": "mt5"}', "{", "[]", "\udcff"])
def test_another_model_is_not_overwritten(folder, tmp_path, content):
    """Nor one whose config is damaged."""
    (tmp_path / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="holds something else"):
        write_small_mt5(tmp_path, TEXTS, **SIZES)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    write_small_mt5(folder, TEXTS, **SIZES)  # one of our own may be written again


def sources(folder):
    labels = {
        "a": {"name": "a", "text": "妈妈很累。", "gloss": ["妈妈", "累"]},
        "b": {"name": "b", "text": "你喝茶吗？"},
    }
    (folder / "labels.train").write_bytes(gzip.compress(pickle.dumps(labels)))
    (folder / "train").mkdir()
    entries = [
        {"filename": "000003.jpg", "description": "握拳"},
        {"filename": "000006.jpg", "description": "Error code: 429"},
    ]
    (folder / "train/a.json").write_text(json.dumps(entries), encoding="utf-8")
    (folder / "more.txt").write_text("one\ntwo\n", encoding="utf-8")
    (folder / "glosses.csv").write_text("name,video,gloss\na,a.mp4,喝 茶\n", encoding="utf-8")  # for CSLR, no sentences
    return folder / "labels.train", folder, folder / "more.txt", folder / "glosses.csv"


def test_texts_are_read_from_labels_descriptions_and_lines(tmp_path):
    labels, descriptions, lines, glosses = sources(tmp_path)
    assert list(read_texts(labels)) == ["妈妈很累。", "妈妈 累", "你喝茶吗？"]
    assert list(read_texts(descriptions)) == ["握拳"]
    assert list(read_texts(lines)) == ["one", "two"]
    assert list(read_texts(glosses)) == ["喝 茶"]


def test_command_line(tmp_path, capfd):
    out = tmp_path / "model"
    main(["--out", str(out), "--texts", *map(str, sources(tmp_path))])
    assert "from 7 texts" in capfd.readouterr().out
    assert UNK not in Tokenizer(out).encode("妈妈握拳 one", 30)
    assert json.loads((out / "config.json").read_text())["d_model"] == 128


@pytest.mark.parametrize("name", ["missing", "missing.txt", "list.pkl", "plain"])
def test_bad_sources_are_one_line(tmp_path, name):
    (tmp_path / "list.pkl").write_bytes(gzip.compress(pickle.dumps([1])))
    (tmp_path / "plain").write_bytes(b"no gzip")
    with pytest.raises((ValueError, FileNotFoundError), match=name) as stop:
        main(["--out", str(tmp_path / "m"), "--texts", str(tmp_path / name)])
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "m").exists()


def test_weights_have_the_scale_that_mt5_is_made_for():
    rng = np.random.default_rng(0)
    sizes = {"d_model": 256, "d_kv": 64, "d_ff": 512}
    weights = small_mt5.random_weights(rng, vocab_size=640, layers=1, heads=4, **sizes)
    expected = {
        "shared.weight": 1.0,
        "lm_head.weight": 0.02,
        "encoder.block.0.layer.0.SelfAttention.q.weight": 1 / math.sqrt(256 * 64),
        "decoder.block.0.layer.1.EncDecAttention.k.weight": 1 / 16,
        "decoder.block.0.layer.0.SelfAttention.o.weight": 0.1 / 16,
        "decoder.block.0.layer.1.EncDecAttention.o.weight": 1 / 16,
        "decoder.block.0.layer.2.DenseReluDense.wo.weight": 0.1 / math.sqrt(512),
    }
    assert {name: pytest.approx(float(weights[name].std()), rel=0.05) for name in expected} == expected
