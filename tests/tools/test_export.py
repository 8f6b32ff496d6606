"""What is exported says the same as before, wherever it is loaded."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, MT5EncoderModel, MT5ForConditionalGeneration

import utils
from config import ModelConfig
from models import Uni_Sign
from network.mt5 import load_mt5
from network.vocabulary import KEPT_TOKENS, TOKENIZER_CONFIG, Tokenizer, choose
from pose.keypoints import read_pose
from system.faults import printable
from tests.helpers.models import read_texts
from text_fusion_modules import TextEncoder
from tools import export
from tools.export import main, parse_args
from training import build
from training.build import weights_facts
from training.weight_files import read_weights, repeated, save_weights
from training.weights import files_beside
from translator import FrozenTextEncoder, Translator

OPTIONS = {"dtype": "fp32", "num_beams": 3, "max_new_tokens": 16, "device": "cpu"}
TEXTS = {0: "右手食指伸直", 5: "the left hand is at the chin"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.npz"
    np.savez(path, keypoints=np.random.default_rng(0).random((12, 133, 2)), scores=np.ones((12, 133)))
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A text encoder that is no mT5."""
    folder = tmp_path_factory.mktemp("bert")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] 右 手 食 指 伸 直 the left hand is at chin".split()
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def save(small_mt5_folder, tmp_path_factory):
    """Save a random model: `save("described trimmed")` -> its checkpoint."""

    def saved(kind: str, encoder: str = "") -> Path:
        config = ModelConfig(hidden_dim=16, use_descriptions="described" in kind, text_encoder=encoder)
        kept = (
            choose(Tokenizer(small_mt5_folder), ["我今天想在学校读书。", config.prompt]) if "trimmed" in kind else None
        )
        torch.manual_seed(1)
        texts = None
        if config.use_descriptions:
            folder = encoder or small_mt5_folder
            width = TextEncoder(folder).width
            own = None if encoder else kept
            texts = FrozenTextEncoder(folder, 128, width) if "frozen" in kind else TextEncoder(folder, kept=own)
        mt5 = load_mt5(small_mt5_folder, kept=kept)
        model = Uni_Sign(config, mt5, Tokenizer(small_mt5_folder, kept), texts)
        with torch.no_grad():
            model.pose_proj.weight *= 10
            if config.use_descriptions:
                read_texts(model)
            for parameter in (*model.mt5_model.parameters(), *(texts.parameters() if "trained" in kind else ())):
                parameter *= 1.01  # not what lies in the folder any more
        path = tmp_path_factory.mktemp("weights") / "best_checkpoint.pth"
        files = files_beside(model) | (texts.files() if "frozen" in kind else {})
        save_weights(path, model.state_dict(), config, mt5_path=str(small_mt5_folder), max_length=8, files=files)
        return path

    return saved


def run(*arguments):
    main(parse_args([str(argument) for argument in arguments]))


def found(path, clip, texts):
    """Sentences and scores, to the last bit."""
    translate = Translator.from_checkpoint(path, **OPTIONS)
    return translate.explain([translate.sample(read_pose(clip), texts)], n_best=3)[0].candidates


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("pose", False),
        ("described trained trimmed", False),
        ("described frozen trimmed", False),
        ("described trained", True),
        pytest.param("pose trimmed", False, marks=SLOW),
        pytest.param("described frozen", True, marks=SLOW),
        pytest.param("described trained", False, marks=SLOW),
    ],
)
def test_a_folder_says_what_the_checkpoint_says(kind, other, save, bert, clip, tmp_path):
    """With mT5 or any other text encoder, and wherever the folder is moved."""
    checkpoint, texts = save(kind, str(bert) if other else ""), TEXTS if "described" in kind else None
    run("--checkpoint", checkpoint, "--out", tmp_path / "model")
    out = (tmp_path / "model").rename(tmp_path / "elsewhere")
    wanted = found(checkpoint, clip, texts)
    assert found(out, clip, texts) == wanted
    assert len({candidate.score for candidate in wanted}) == 3
    translate = Translator.from_checkpoint(out, **OPTIONS)
    assert translate.max_length == 8
    assert any(name.startswith("text_encoder.") for name in translate.model.state_dict()) == ("trained" in kind)
    if texts:
        assert wanted[0].score != found(out, clip, {})[0].score


def test_half_of_an_encoder_decoder_cannot_stand_alone(save, bert, tmp_path):
    """Only its config says so here: what is tried is that nothing is written that could not be read again."""
    other, out = shutil.copytree(bert, tmp_path / "bart"), tmp_path / "model"
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "is_encoder_decoder": True}))
    checkpoint = save("described trained", str(other))
    with pytest.raises(ValueError, match="the text encoder .*bart is half of an encoder-decoder"):
        run("--checkpoint", checkpoint, "--out", out)
    assert not out.exists()


def test_a_folder_stands_alone(save, clip, tmp_path):
    """Another process, which has neither DeepSpeed nor this repository, and neither the mT5 of training."""
    checkpoint, out = save("described trained trimmed"), tmp_path / "model"
    run("--checkpoint", checkpoint, "--out", out)
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    unused = "deepspeed fine_tuning training.checkpoint training.engine datasets training.guards sacrebleu"
    for module in unused.split():
        file = Path(*module.split(".")).with_suffix(".py")
        assert not (out / "code" / file).exists()
        if "." not in module:
            (lacking / file).write_text(f"raise SystemExit('{module} was imported')")
    copy = tmp_path / "copy.npz"
    copy.write_bytes(clip.read_bytes())
    descriptions = tmp_path / "copy.json"
    descriptions.write_text(json.dumps(TEXTS), encoding="utf-8")
    command = [sys.executable, str(out / "code/inference.py"), str(copy), "--checkpoint", str(out), "--n_best", "3"]
    command += f"--descriptions {descriptions} --dtype fp32 --num_beams 3 --max_new_tokens 16 --device cpu".split()
    environment = {**os.environ, "PYTHONPATH": str(lacking)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    wanted = [("copy", f"{c.score:.3f}", printable(" ".join(c.text.split()))) for c in found(checkpoint, clip, TEXTS)]
    assert [tuple(line.split("\t")) for line in result.stdout.splitlines()] == wanted
    pins = (out / "code/requirements.txt").read_text().split()
    assert [pin.partition("==")[0] for pin in pins] == [
        "torch", "transformers", "sentencepiece", "safetensors", "numpy", "tqdm"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["pose trimmed", "described trained trimmed", "described frozen"])
def test_training_starts_from_a_folder(kind, save, corpus, tmp_path):
    """Nothing but --finetune names it: mT5, its tokens and the text encoder come along."""
    checkpoint, out = save(kind), tmp_path / "model"
    run("--checkpoint", checkpoint, "--out", out)
    flags = f"--root {corpus} --hidden_dim 16 --finetune {out}/ --text_cache {tmp_path}".split()
    flags += ["--use_descriptions"] if "described" in kind else []
    flags += ["--text_encoder_freeze"] if "frozen" in kind else []
    args = utils.parse_args(flags)
    config = build.model_config(args, build.dataset_spec(args))
    model = build.build_model(args, config, {})
    wanted = {name: value for name, value in read_weights(checkpoint, "")[0].items() if name != KEPT_TOKENS}
    found = model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    again = tmp_path / "again.pth"
    save_weights(again, found, config, **weights_facts(args, model))
    kept = Translator.from_checkpoint(checkpoint).model.tokenizer
    assert Translator.from_checkpoint(again).model.tokenizer.model == kept.model


def test_a_folder_and_flags_that_name_something_else(save, corpus, tmp_path):
    out = tmp_path / "model"
    run("--checkpoint", save("described trained trimmed"), "--out", out)
    named = utils.parse_args(f"--finetune {out} --mt5_path a --use_descriptions --text_encoder b".split())
    assert (named.mt5_path, named.text_encoder) == ("a", "b")
    args = utils.parse_args(f"--root {corpus} --hidden_dim 16 --finetune {out}".split())
    with pytest.raises(ValueError, match="was trained with descriptions; add --use_descriptions"):
        build.build_model(args, build.model_config(args, build.dataset_spec(args)), {})
    args = utils.parse_args(f"--root {corpus} --finetune {tmp_path}".split())
    with pytest.raises(FileNotFoundError, match=rf"--finetune: {tmp_path} holds no model\. Name a file"):
        build.build_model(args, build.model_config(args, build.dataset_spec(args)), {})


@pytest.mark.parametrize("kind", ["described trained trimmed", pytest.param("described trained", marks=SLOW)])
def test_parts_load_in_plain_transformers(kind, save, tmp_path):
    checkpoint, out = save(kind), tmp_path / "model"
    run("--checkpoint", checkpoint, "--out", out)
    weights = read_weights(checkpoint, "--checkpoint")[0]
    for family, part, prefix in (
        (MT5ForConditionalGeneration, "mt5", "mt5_model."),
        (MT5EncoderModel, "text_encoder", "text_encoder.encoder."),
    ):
        model, info = family.from_pretrained(out / part, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        for name, value in model.state_dict().items():
            assert torch.equal(value, weights[prefix + name]), name
        assert len(model.get_input_embeddings().weight) == model.config.vocab_size
    assert not torch.equal(weights["mt5_model.lm_head.weight"], weights["mt5_model.shared.weight"])
    assert json.loads((out / "mt5/tokenizer_config.json").read_text()) == TOKENIZER_CONFIG


@pytest.mark.parity
def test_a_checkpoint_is_a_released_file(shared_reference, reference_model, tmp_path):
    """Names, their order, what they share; and the values, bit for bit: it loads in Uni-Sign as it is."""
    config, path = ModelConfig(), tmp_path / "best_checkpoint.pth"
    model = reference_model(config)
    save_weights(path, model.state_dict(), config, mt5_path=str(shared_reference / "tiny_mt5"))
    weights = torch.load(path, weights_only=True)["model"]
    keys = json.loads((shared_reference / "tiny_state_dict_keys.json").read_text())
    assert [[name, list(value.shape), str(value.dtype)[6:]] for name, value in weights.items()] == keys["pose"]
    for name, value in weights.items():
        assert torch.equal(value, model.state_dict()[name])
        assert repeated(name) == keys["aliases"].get(name, name)
        assert value.data_ptr() == weights[repeated(name)].data_ptr()
    assert path.stat().st_size < 1.02 * sum(v.nbytes for n, v in weights.items() if repeated(n) == n) + 1e5


def test_a_full_model_is_trimmed_to_texts(save, clip, small_mt5_folder, tmp_path):
    """What it writes is what the full one writes, held to these tokens."""
    checkpoint, out, texts = save("pose"), tmp_path / "model", tmp_path / "texts.txt"
    texts.write_text("我今天想在学校读书。\n", encoding="utf-8")
    run("--checkpoint", checkpoint, "--out", out, "--texts", texts)
    kept = torch.tensor(json.loads((out / "model.json").read_text())["kept_tokens"])
    whole = Translator.from_checkpoint(checkpoint, **OPTIONS)
    outside = torch.ones(whole.model.mt5_model.config.vocab_size, dtype=torch.bool)
    outside[kept] = False
    whole.model.mt5_model.lm_head.register_forward_hook(lambda _, __, logits: logits.masked_fill(outside, -torch.inf))
    small = Translator.from_checkpoint(out, **OPTIONS)
    assert small.model.mt5_model.lm_head.weight.shape[0] == len(kept) < len(outside)
    assert small(clip) == whole(clip)
    with pytest.raises(ValueError, match="trimmed already"):
        run("--checkpoint", save("pose trimmed"), "--out", tmp_path / "x", "--texts", texts)


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("config.json", b"1e-06", b"1e-03", "different are: mT5's layer_norm_epsilon, the frozen text encoder"),
        ("spiece.model", b"", b"\xc0\x3e\x01", "different are: mT5's spiece.model"),
        ("merges.txt", b"", b"x", "different are: the frozen text encoder"),
        ("config.json", b'"d_ff": ', b'"d_ff": 1', r"does not fit the mT5 in .*other, or .* of another shape: "),
    ],
)
def test_another_mt5_or_frozen_encoder_is_not_exported(file, old, new, words, save, small_mt5_folder, tmp_path):
    checkpoint, other = save("described frozen"), shutil.copytree(small_mt5_folder, tmp_path / "other")
    content = (other / file).read_bytes() if (other / file).is_file() else b""
    assert old in content
    (other / file).write_bytes(content.replace(old, new) if old else content + new)
    with pytest.raises(ValueError, match=f"--checkpoint: {checkpoint} .*{words}"):
        run("--checkpoint", checkpoint, "--out", tmp_path / "model", "--mt5_path", other)
    assert not (tmp_path / "model").exists()


def test_a_frozen_encoder_of_another_width_is_not_exported(save, bert, tmp_path):
    """Of a checkpoint without a record of its files, too."""
    content = torch.load(save("described frozen"), weights_only=True)
    torch.save({**content, "files": {}}, tmp_path / "old.pth")
    with pytest.raises(ValueError, match=r"text encoder: .* has the width 16; the checkpoint was trained with one of "):
        run("--checkpoint", tmp_path / "old.pth", "--out", tmp_path / "model", "--text_encoder", bert)


def test_nothing_is_overwritten(save, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=f"--out: {tmp_path} exists. Remove it, or give another name"):
        run("--checkpoint", save("pose"), "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_folder_one_is_in(save, tmp_path, monkeypatch, capsys):
    checkpoint, out = save("pose"), tmp_path / "model"
    out.mkdir()
    monkeypatch.chdir(out)
    run("--checkpoint", checkpoint, "--out", ".")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (out / "model.json").is_file()
    assert capsys.readouterr().out.startswith(f"{out}: ")


def test_a_full_disk_leaves_nothing(save, tmp_path, monkeypatch):
    checkpoint = save("pose")

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export, "write_code", fail)
    with pytest.raises(OSError, match="No space"):
        run("--checkpoint", checkpoint, "--out", tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_one_line(save, small_mt5_folder, tmp_path):
    checkpoint = save("pose trimmed")
    out = ("--out", tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="--checkpoint: .*none.pth does not exist"):
        run("--checkpoint", tmp_path / "none.pth", *out)
    with pytest.raises(FileNotFoundError, match=r"config.json does not exist\..*--mt5_path"):
        run("--checkpoint", checkpoint, *out, "--mt5_path", tmp_path)
    torch.save({"x": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds no whole model"):
        run("--checkpoint", tmp_path / "other.pth", *out, "--mt5_path", small_mt5_folder)
    run("--checkpoint", checkpoint, "--out", tmp_path / "model")
    for damaged in ("{", "[" * 200_000):
        (tmp_path / "model/model.json").write_text(damaged)
        with pytest.raises(ValueError, match="model.json is damaged"):
            Translator.from_checkpoint(tmp_path / "model")
    (tmp_path / "model/model.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no model\. Name a file"):
        Translator.from_checkpoint(tmp_path / "model")
