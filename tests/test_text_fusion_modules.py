"""The text branch by itself: encoders of two kinds, numbering and dropping of texts, the gate."""

import contextlib
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, MT5EncoderModel
from transformers.models.bert.modeling_bert import BertEmbeddings

from config import ModelConfig
from network.vocabulary import Tokenizer
from text_fusion_modules import (
    NO_TEXT,
    DescriptionMapper,
    GatingFusion,
    LearnableMaskEmbedding,
    TextAdapter,
    TextEncoder,
    alignment_loss,
    distinct_texts,
    drop_texts,
    encoder_fingerprint,
    text_of_frames,
)
from training.weights import assemble, differing_files, files_beside

TEXTS = ["右手食指伸直，位于胸前。", "the left hand", "累", ""]
BERT_WIDTH = 20
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A random BERT, as its makers would publish it: with a pooler, and a list of words."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "left", "right", "hand", "##s", "up", "手", "."]
    sizes = {"hidden_size": BERT_WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(words), initializer_range=0.5, **sizes))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(params=["mt5", "bert"])
def folder(request, bert_folder, small_mt5_folder):
    """The folder of an encoder of each kind."""
    return {"mt5": small_mt5_folder, "bert": bert_folder}[request.param]


def copy_of(folder, to, **config):
    """A copy of a folder, with other values in its config.json."""
    copy = shutil.copytree(folder, to / folder.name)
    if config:
        content = json.loads((copy / "config.json").read_text(encoding="utf-8")) | config
        (copy / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return copy


def edit_weights(folder, edit):
    """Write the weights that `edit` makes of a folder's."""
    weights = edit(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# -- encoders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding_idx", "room"), [(None, 512), (1, 510)])
def test_a_text_longer_than_its_positions_is_refused(bert_folder, monkeypatch, padding_idx, room):
    monkeypatch.setattr(BertEmbeddings, "__init__", _with_padding(BertEmbeddings.__init__, padding_idx))
    assert TextEncoder(bert_folder, room).max_tokens == room
    with pytest.raises(ValueError, match=f"--text_max_tokens {room + 1}: .*bert.* takes texts of up to {room} tokens"):
        TextEncoder(bert_folder, room + 1)


def _with_padding(make, padding_idx):
    """As RoBERTa has it: positions are counted from behind the padding's number."""

    def init(self, *arguments):
        make(self, *arguments)
        self.position_embeddings.padding_idx = padding_idx

    return init


@torch.no_grad()
def test_mt5_is_averaged_over_a_texts_own_tokens(small_mt5_folder):
    encoder = TextEncoder(small_mt5_folder).eval()
    plain, tokenizer = MT5EncoderModel.from_pretrained(small_mt5_folder).eval(), Tokenizer(small_mt5_folder)
    features = encoder(TEXTS)
    assert features.shape == (len(TEXTS), encoder.width) == (4, 32)
    assert len({len(tokenizer.encode(text, 100)) for text in TEXTS}) == 4
    for text, feature in zip(TEXTS, features, strict=True):
        states = plain(input_ids=torch.tensor([tokenizer.encode(text, 100)])).last_hidden_state[0]  # (L, W)
        by_hand = sum(states) / len(states)
        torch.testing.assert_close(feature, by_hand, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bert_is_averaged_over_a_texts_own_tokens(bert_folder):
    encoder = TextEncoder(bert_folder).eval()
    plain = BertModel.from_pretrained(bert_folder).eval()
    features = encoder(["the left hands.", "手", ""])
    assert features.shape == (3, encoder.width) == (3, BERT_WIDTH)
    for ids, feature in zip([[2, 5, 6, 8, 9, 12, 3], [2, 11, 3], [2, 3]], features, strict=True):
        states = plain(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(feature, sum(states) / len(states), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_tokenizer_that_pads_at_the_left_loses_nothing(bert_folder, tmp_path):
    """Some published encoders say so in tokenizer_config.json; where padding is cut off, it must be at the right."""
    folder = copy_of(bert_folder, tmp_path)
    texts = ["the left hands.", "手"]
    wanted = TextEncoder(folder).eval()(texts)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "padding_side": "left"}')
    torch.testing.assert_close(TextEncoder(folder).eval()(texts), wanted)


@torch.no_grad()
def test_a_text_is_cut(folder):
    short, whole = TextEncoder(folder, max_tokens=5).eval(), TextEncoder(folder).eval()
    seen = []
    short.encoder.get_input_embeddings().register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    texts = ["the left hand the left hand", "the"]
    features = short(texts)
    assert seen[0].shape == (2, 5)
    assert not torch.allclose(features[0], whole(texts)[0])
    torch.testing.assert_close(features[1], whole(texts)[1])


def test_every_weight_of_an_encoder_gets_a_gradient(folder):
    encoder = TextEncoder(folder)
    encoder(["the left hand"]).pow(2).sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


def test_a_text_looks_the_same_in_every_step_of_training(folder):
    encoder = TextEncoder(folder).train()
    assert torch.equal(encoder(TEXTS), encoder(TEXTS))
    assert torch.equal(encoder(TEXTS), encoder.eval()(TEXTS))


def test_a_tokenizer_that_is_a_sentencepiece_model_alone(small_mt5_folder, tmp_path):
    folder = copy_of(small_mt5_folder, tmp_path)
    for path in folder.glob("*token*.json"):
        path.unlink()
    assert (folder / "spiece.model").is_file()
    assert torch.equal(TextEncoder(folder)(TEXTS), TextEncoder(small_mt5_folder)(TEXTS))


def test_weights_are_float32_whatever_the_file_has(small_mt5_folder, tmp_path):
    folder = copy_of(small_mt5_folder, tmp_path, dtype="bfloat16")
    edit_weights(folder, lambda weights: {name: value.bfloat16() for name, value in weights.items()})
    assert {parameter.dtype for parameter in TextEncoder(folder).parameters()} == {torch.float32}


def refused(folder, kind, words):
    with pytest.raises(kind, match=words) as error:
        TextEncoder(folder)
    assert "\n" not in str(error.value)
    assert re.search("text.encoder", str(error.value))


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.json", "bert.*/config.json does not exist"),
        ("model.safetensors", r"model\.safetensors"),
        ("vocab.txt", "has no vocabulary"),  # transformers would make one up in which every word is unknown
    ],
)
def test_a_file_is_missing(bert_folder, tmp_path, missing, words):
    folder = copy_of(bert_folder, tmp_path)
    (folder / missing).unlink()
    refused(folder, FileNotFoundError, words)


@pytest.mark.parametrize("kind", ["mt5", "bert", "masked"])
def test_layers_are_not_dropped_in_silence(request, tmp_path, kind):
    """A config.json with fewer layers than the weights. Heads, and a decoder, are not needed."""
    folder = copy_of(request.getfixturevalue("small_mt5_folder" if kind == "mt5" else "bert_folder"), tmp_path)
    if kind == "masked":  # as BERT is published: with a head, and a prefix before the encoder's names
        head = {"cls.predictions.bias": torch.zeros(9)}
        edit_weights(folder, lambda weights: {f"bert.{name}": value for name, value in weights.items()} | head)
    assert TextEncoder(folder).width
    key, layer = ("num_layers", "encoder.block.1") if kind == "mt5" else ("num_hidden_layers", "encoder.layer.1")
    folder = copy_of(folder, tmp_path / "fewer", **{key: 1})
    refused(folder, ValueError, rf"no pair; unknown: {layer}\..*\. Get its files again")


def test_a_pooler_may_be_missing(bert_folder, tmp_path):
    folder = copy_of(bert_folder, tmp_path)
    edit_weights(folder, lambda weights: {name: value for name, value in weights.items() if "pooler." not in name})
    assert TextEncoder(folder).width == BERT_WIDTH


CODE = {"AutoModel": "code.Bert", "AutoConfig": "code.Bert", "AutoTokenizer": ["code.Bert", None]}


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("config.json", {"auto_map": CODE}, ""),
        ("config.json", {"auto_map": CODE, "model_type": "mine"}, "model_type is 'mine', none of transformers"),
        ("config.json", {"attn_implementation": "owner/kernel"}, ""),
        ("config.json", {"_attn_implementation": "owner/kernel"}, ""),
        ("tokenizer_config.json", {"auto_map": CODE, "tokenizer_class": "Mine"}, "the tokenizer in .* cannot be read"),
        ("tokenizer_config.json", {"chat_template": "{{ raise_exception('rendered') }}"}, ""),
    ],
)
def test_a_folders_code_is_not_run(bert_folder, tmp_path, monkeypatch, file, changes, said):
    """Transformers would ask whether to run it, and `yes |` answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = copy_of(bert_folder, tmp_path)
    (folder / "code.py").write_text("open('PWNED', 'w')\nclass Bert: pass\n", encoding="utf-8")
    path = folder / file
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(content | changes), encoding="utf-8")
    with pytest.raises(ValueError, match=said) if said else contextlib.nullcontext():
        encoder = TextEncoder(folder)
        assert encoder.encoder.config._attn_implementation == "sdpa"
        assert encoder(["a hand"]).shape == (1, BERT_WIDTH)
    assert not (tmp_path / "PWNED").exists()


def test_a_config_that_asks_for_more_than_the_files_hold(bert_folder, small_mt5_folder, tmp_path):
    for folder, changes in ((bert_folder, {"hidden_size": 40_000}), (small_mt5_folder, {"num_layers": 10**9})):
        copy = copy_of(folder, tmp_path, **changes)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ValueError, match="MB of weights are asked for|1000000000"):
            TextEncoder(copy)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


# -- fingerprint ---------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_what_features_depend_on(small_mt5_folder, tmp_path):
    folder = copy_of(small_mt5_folder, tmp_path)
    names = [encoder_fingerprint(folder, 128), encoder_fingerprint(folder, 127)]
    assert encoder_fingerprint(str(small_mt5_folder), 128) == names[0]
    for file in ("model.safetensors", "spiece.model", "config.json"):
        data = bytearray((folder / file).read_bytes())
        data[-1] ^= 1
        (folder / file).write_bytes(data)
        names.append(encoder_fingerprint(folder, 128))
    for name in ("README.md", "pytorch_model.bin", "tf_model.h5"):  # the same download by another hand
        (folder / name).write_text("not read")
    assert encoder_fingerprint(folder, 128) == names[-1]
    (folder / "config.json").rename(folder / "config.old")
    names.append(encoder_fingerprint(folder, 128))
    assert len(set(names)) == len(names)


def test_of_an_encoder_that_is_trained_the_tokenizer_is_on_record(bert_folder, small_mt5_folder, tmp_path):
    folder = copy_of(bert_folder, tmp_path)
    config = ModelConfig(hidden_dim=8, use_descriptions=True, text_encoder=str(folder))
    model = assemble(config, small_mt5_folder)
    saved = {"files": files_beside(model)}
    (folder / "model.safetensors").write_bytes(b"trained since")
    assert not differing_files(saved, files_beside(model))
    (folder / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes() + b"more\n")
    assert "different are: the text encoder's tokenizer." in differing_files(saved, files_beside(model))


# -- texts ---------------------------------------------------------------------------------------------------------


def test_distinct_texts():
    texts, rows = distinct_texts([["up", "up", None, "", "down"], [None, "down", "up", None, "left"]])
    assert texts == ["up", "", "down", "left"]  # an empty text is a text; only None is none
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[1, 1, 0, 2, 3], [0, 3, 1, 0, 4]]
    texts, rows = distinct_texts([[None, None], [None, None]])
    assert (texts, rows.tolist()) == ([], [[NO_TEXT, NO_TEXT]] * 2)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_clips_and_frames_are_dropped(probability):
    torch.manual_seed(0)
    rows = torch.arange(600_000).view(3000, 200) % 5  # a fifth has no text
    has_description = (torch.arange(600_000).view(3000, 200) % 2) * (rows != NO_TEXT)
    kept = rows.clone(), has_description.clone()
    new_rows, new_has = drop_texts(rows, has_description, probability)
    dropped = new_rows != rows
    whole = (new_rows == NO_TEXT).all(1)
    assert abs(whole.float().mean() - probability) < 0.03
    # A filled frame, whose indicator is 0, loses its text as often as a described one.
    for has in (0, 1) if probability < 1 else ():
        frames = (rows != NO_TEXT) & (has_description == has) & ~whole[:, None]
        assert abs(dropped[frames].float().mean() - probability) < 0.01
    assert torch.equal(new_rows, rows.masked_fill(dropped, NO_TEXT))
    assert torch.equal(new_has, has_description.masked_fill(dropped, 0))
    assert torch.equal(rows, kept[0])
    assert torch.equal(has_description, kept[1])


# -- fusion --------------------------------------------------------------------------------------------------------


def test_mask_embedding():
    embedding = LearnableMaskEmbedding(40)
    assert torch.equal(embedding(), torch.zeros(1, 40))
    assert [name for name, _ in embedding.named_parameters()] == ["mask_embedding"]


def test_numbers_of_parameters():
    # (2 x 768 + 1) x 512 + 512, 512 x 256 + 256, 256 + 1
    assert sum(parameter.numel() for parameter in GatingFusion(768).parameters()) == 919_041
    # 768 x 1536 + 1536, 1536 x 768 + 768
    assert sum(parameter.numel() for parameter in TextAdapter(768, 768).parameters()) == 2_361_600


def test_gate_by_hand():
    fusion = GatingFusion(2, hidden=(2, 1))
    first, second, third = fusion.gate[0], fusion.gate[2], fusion.gate[4]
    with torch.no_grad():
        for layer in (first, second, third):
            layer.bias.zero_()
        first.weight.copy_(torch.tensor([[1.0, 0, 0, 2, 3], [0, 1, 0, 0, 0]]))  # pose 1 + 2 text 2 + 3 own; pose 2
        second.weight.copy_(torch.tensor([[1.0, 1]]))
        third.weight.copy_(torch.tensor([[0.5]]))
        third.bias.fill_(-1)
    pose, text = torch.tensor([[[1.0, -5], [1, -5], [-9, 0]]]), torch.tensor([[[4.0, 0.5], [4, 0.5], [0, 0.5]]])
    fused, gate = fusion(pose, text, torch.tensor([[1, 0, 0]]), torch.ones(1, 3))
    assert gate.shape == (1, 3, 1)
    expected = torch.sigmoid(torch.tensor([0.5 * 5 - 1, 0.5 * 2 - 1, -1]))[None, :, None]
    torch.testing.assert_close(gate, expected)
    torch.testing.assert_close(fused, pose + expected * text)


FUSIONS = [GatingFusion]  # every kind of fusion that a model can have


@pytest.fixture(params=FUSIONS, ids=lambda kind: kind.__name__)
def fusion(request):
    torch.manual_seed(0)
    return request.param(8).eval()


def inputs(lengths=(5, 3), seed=1):
    """pose, text, has_description, mask of clips of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    pose, text = torch.randn(2, len(lengths), max(lengths), 8, generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return pose, text, torch.randint(2, mask.shape, generator=generator) * mask, mask


def test_a_fusion_leaves_poses_without_texts_alone(fusion):
    pose, text, has_description, mask = inputs()
    fused, gate = fusion(pose, torch.zeros_like(text), has_description, mask)
    assert torch.equal(fused, pose)
    assert gate.shape == (2, 5, 1)
    assert ((gate >= 0) & (gate <= 1)).all()


def test_a_fusion_sees_its_own_clip_alone(fusion):
    """Neither padding nor other clips."""
    pose, text, has_description, mask = inputs()
    together = fusion(pose, text, has_description, mask)
    alone = fusion(pose[1:, :3], text[1:, :3], has_description[1:, :3], mask[1:, :3])
    torch.testing.assert_close(together.fused[1:, :3], alone.fused)
    torch.testing.assert_close(together.gate[1:, :3], alone.gate)
    text = text.masked_fill(mask[..., None] == 0, 99.0)
    torch.testing.assert_close(fusion(pose, text, has_description, mask).fused[1, :3], alone.fused[0])


def test_a_gradient_reaches_every_weight_of_a_fusion(fusion):
    pose, text, has_description, mask = inputs()
    fusion(pose, text, has_description, mask).fused.square().sum().backward()
    assert [name for name, parameter in fusion.named_parameters() if not parameter.grad.any()] == []


def test_a_fusion_that_is_saved_and_loaded_is_the_same(fusion, tmp_path):
    torch.save(fusion.state_dict(), tmp_path / "fusion.pth")
    torch.manual_seed(1)
    other = type(fusion)(8).eval()
    assert not torch.equal(other(*inputs()).fused, fusion(*inputs()).fused)
    other.load_state_dict(torch.load(tmp_path / "fusion.pth", weights_only=True))
    assert torch.equal(other(*inputs()).fused, fusion(*inputs()).fused)


def test_an_adapter_starts_with_zeros_and_then_learns():
    torch.manual_seed(0)
    adapter = TextAdapter(6, 4)
    features = torch.randn(5, 6)
    assert torch.equal(adapter(adapter.standardise(features)), torch.zeros(5, 4))
    optimizer = torch.optim.SGD(adapter.parameters(), 0.1)
    for n_moving in (2, 4):  # the last layer, then both
        optimizer.zero_grad()
        (adapter(adapter.standardise(features)) - 1).square().sum().backward()
        assert sum(bool(parameter.grad.any()) for parameter in adapter.parameters()) == n_moving
        optimizer.step()


def test_features_are_centred_and_of_size_one():
    adapter = TextAdapter(3, 4)
    adapter.update_mean(torch.tensor([[1.0, 2, 3], [3, 2, 1]]))
    torch.testing.assert_close(adapter.mean, torch.tensor([2.0, 2, 2]))
    standardised = adapter.standardise(torch.tensor([[3.0, 2, 1], [2, 2, 2 + 1e-3], [2, 2, 2]]))
    root = 1.5**0.5
    torch.testing.assert_close(
        standardised, torch.tensor([[root, 0, -root], [0, 0, 3**0.5], [0, 0, 0]]), atol=1e-3, rtol=0
    )


def test_a_text_that_is_the_mean_has_a_finite_gradient():
    """The first batch of a run, if it has one text alone."""
    adapter, features = TextAdapter(3, 2), torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    adapter.update_mean(features.detach())
    standardised = adapter.standardise(features)
    standardised.sum().backward()
    assert standardised.abs().sum() == 0
    assert features.grad.isfinite().all()


def test_the_running_mean_is_plain_first_and_exponential_later():
    adapter = TextAdapter(1, 1)
    for value in range(100):
        adapter.update_mean(torch.full((3, 1), float(value)))
        adapter.update_mean(torch.empty(0, 1))  # a batch without texts changes nothing
    assert adapter.n_batches == 100
    torch.testing.assert_close(adapter.mean, torch.tensor([49.5]))
    adapter.update_mean(torch.full((3, 1), 149.5))
    torch.testing.assert_close(adapter.mean, torch.tensor([50.5]))


TWO_PROCESSES = """
import multiprocessing, sys
import torch, torch.distributed as dist
from text_fusion_modules import DescriptionMapper, TextAdapter

def learn(rank):
    dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
    adapter = TextAdapter(2, 2)
    adapter.update_mean(torch.full((1 + 2 * rank, 2), float(rank)))  # one text of 0, three of 1
    adapter.update_mean(torch.full((rank, 2), 2.75))  # only the second process has a text
    mapper = DescriptionMapper(2, 2)
    mapper.update_trust(torch.tensor(float(rank)))
    learnt = f"{adapter.mean.tolist()} {int(adapter.n_batches)} {mapper.trust:.3f}"
    open(f"{sys.argv[1]}{rank}", "w").write(learnt)

processes = [multiprocessing.get_context("fork").Process(target=learn, args=(rank,)) for rank in (0, 1)]
for process in processes: process.start()
for process in processes: process.join()
"""


def test_several_processes_learn_the_same_mean(tmp_path):
    run = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path / "store")]
    subprocess.run(run, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    learnt = [(tmp_path / f"store{rank}").read_text() for rank in (0, 1)]
    assert learnt == ["[1.75, 1.75] 2 0.010"] * 2  # (0.75 + 2.75) / 2; a fiftieth of (0 + 1) / 2


def test_the_text_of_a_frame():
    """At the size of its frame's pose, which it does not drive; without a text, the mask embedding and a guess."""
    table = torch.tensor([[9.0, 9.0], [2.0, 0.0], [0.0, -1.0]])
    pose = torch.tensor([[[3.0, 4.0], [6.0, 8.0], [1.0, 1.0]]]).requires_grad_()
    small, large = 12.5**0.5, 50**0.5
    text = text_of_frames(table, torch.tensor([[1, 2, 0]]), pose)
    torch.testing.assert_close(text[0], torch.tensor([[2 * small, 0.0], [0.0, -large], [9.0, 9.0]]))
    assert not text.requires_grad
    guess = torch.tensor([[[7.0, 7.0], [0.5, 0.25], [0.5, 0.25]]])
    text = text_of_frames(table, torch.tensor([[1, 0, 0]]), pose, guess)
    wanted = [[2 * small, 0.0], [9 + 0.5 * large, 9 + 0.25 * large], [9.5, 9.25]]
    torch.testing.assert_close(text[0], torch.tensor(wanted))


# -- the mapper ------------------------------------------------------------------------------------------------------


def test_alignment_by_hand():
    """Two described frames of three; the first is predicted as it is, the second at a right angle.

    A second clip without texts halves the loss, and what counts as explained.
    """
    features = torch.tensor([[1.2, 0.0], [0.0, 1.2]])
    predicted = torch.tensor([[[1.2, 0.0], [0.6, 0.0], [5.0, 5.0]]])
    rows, own = torch.tensor([[1, 2, 1]]), torch.tensor([[1, 1, 0]])
    error = (0 + 0 + 0.36 + 1.44) / 4
    right = math.log(1 + math.exp(-1 / 0.5))
    wrong = math.log(1 + math.exp(1 / 0.5))
    wanted = torch.tensor([error + (right + wrong) / 2, 1 - error])
    seen = alignment_loss(predicted, features, rows, own, temperature=0.5)
    torch.testing.assert_close(torch.stack(seen), wanted)
    doubled = (torch.cat([value, torch.zeros_like(value)]) for value in (predicted, rows, own))
    seen = alignment_loss(next(doubled), features, *doubled, temperature=0.5)
    torch.testing.assert_close(torch.stack(seen), wanted / 2)
    assert alignment_loss(-predicted, features, rows, own)[1] == 0  # worse than the mean text


def test_alignment_leaves_the_texts_as_they_are():
    features = torch.randn(3, 8, requires_grad=True)
    predicted = torch.randn(2, 3, 8, requires_grad=True)
    alignment_loss(predicted, features, torch.tensor([[1, 0, 2], [3, 3, 0]]), torch.ones(2, 3))[0].backward()
    assert features.grad is None
    assert predicted.grad[0, 1].abs().sum() == 0  # no text
    assert (predicted.grad[0, [0, 2]].abs().sum(-1) > 0).all()


def test_alignment_without_descriptions():
    predicted = torch.randn(1, 3, 8, requires_grad=True)
    rows, own = torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3)
    loss, explained = alignment_loss(predicted, torch.empty(0, 8), rows, own)
    loss.backward()
    assert loss.item() == explained.item() == 0
    assert predicted.grad.abs().sum() == 0


def test_a_mapper_learns_its_aim():
    torch.manual_seed(0)
    mapper = DescriptionMapper(16, 12)
    pose, features = torch.randn(4, 6, 16), torch.randn(6, 12)
    rows = torch.arange(24).reshape(4, 6) % 6 + 1
    pose = pose * 0.1 + F.pad(features[rows - 1], (4, 0)).flip(-1)  # the texts can be read from the poses
    optimizer = torch.optim.Adam(mapper.parameters(), 1e-2)
    features = features / features.square().mean(1, keepdim=True).sqrt()
    losses = []
    for _ in range(60):
        loss, explained = alignment_loss(mapper(pose), features, rows, torch.ones(4, 6))
        mapper.update_trust(explained)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert 0.3 < mapper.trust < explained < 1


@torch.no_grad()
def test_texts_of_a_batch_do_not_change_each_other(small_mt5_folder, monkeypatch):
    """In calls of few tokens or in one, alone or together, in any order: a text's feature is its own."""
    encoder = TextEncoder(small_mt5_folder).eval()
    texts = [
        "the left hand is at the chin",
        "右手",
        "右手食指伸直，位于胸前。",
        "up",
        "the left hand is at the chin " * 3,
    ]
    calls = []
    embeddings = encoder.encoder.get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda _module, _inputs, out: calls.append(out.shape[:2]))
    together = encoder(texts)
    assert len(calls) == 1
    monkeypatch.setattr("text_fusion_modules.CALL_TOKENS", 24)
    calls.clear()
    divided = encoder(texts)
    hook.remove()
    assert len(calls) > 2
    assert all(n == 1 or n * length <= 24 for n, length in calls)
    torch.testing.assert_close(divided, together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([encoder([text]) for text in texts]), together, rtol=1e-5, atol=1e-5)
