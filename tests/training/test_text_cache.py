"""The cache of a frozen encoder's features."""

import errno

import numpy as np
import pytest
import torch

from config import mt5_path
from text_fusion_modules import TextEncoder
from training import text_cache
from training.text_cache import build_text_cache

TEXTS = ["右手在下巴", "the left hand rises", "双手分开", "", "a" * 400]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder_folder(corpus):
    return corpus / mt5_path


def build(root, folder, texts=TEXTS, max_tokens=128):
    return build_text_cache(root, folder, max_tokens, texts, CPU)


def test_features_are_those_of_the_encoder(encoder_folder, tmp_path):
    cache = build(tmp_path, encoder_folder, TEXTS)
    with torch.no_grad():
        direct = TextEncoder(encoder_folder, 128).eval()(TEXTS)
    wanted = [3, 0, 4, 0]
    assert torch.allclose(cache([TEXTS[i] for i in wanted]), direct[wanted], atol=1e-5)
    assert cache.width == direct.shape[1]


def test_encoder_runs_once_for_each_text(encoder_folder, tmp_path, monkeypatch):
    """And is not loaded for a complete cache."""
    seen = []
    forward = TextEncoder.forward
    monkeypatch.setattr(TextEncoder, "forward", lambda self, texts: seen.extend(texts) or forward(self, texts))
    build(tmp_path, encoder_folder, ["a", "b"])
    build(tmp_path, encoder_folder, ["b", "c"])
    assert sorted(seen) == ["a", "b", "c"]
    monkeypatch.setattr("training.text_cache.TextEncoder", lambda *_: pytest.fail("the encoder was loaded"))
    build(tmp_path, encoder_folder, ["a", "b", "b", "c"])


def test_another_cut_is_another_cache(encoder_folder, tmp_path):
    long = build(tmp_path, encoder_folder, ["a" * 400], max_tokens=128)
    short = build(tmp_path, encoder_folder, ["a" * 400], max_tokens=4)
    assert long.folder != short.folder
    assert not torch.allclose(long(["a" * 400]), short(["a" * 400]))


DAMAGE = {
    "dropped": lambda features: features.unlink(),
    "garbage": lambda features: features.write_bytes(b"nothing"),
    "cut": lambda features: features.write_bytes(features.read_bytes()[:200]),
    "rows": lambda features: np.save(features, np.load(features)[:-1]),
    "keys": lambda features: np.save(keys_of(features), np.uint64(5)),
    "header": lambda features: features.write_bytes(features.read_bytes()[:10] + b"{(" + features.read_bytes()[12:]),
    "no texts": lambda features: (np.save(keys_of(features), KEYS[:0]), np.save(features, np.load(features)[:0])),
    "one number": lambda features: np.save(features, np.load(features)[:, 0]),
    "no axis": lambda features: np.save(features, np.float32(1)),
    "doubles": lambda features: np.save(features, np.load(features).astype(float)),
    "two widths": lambda features: another_shard(features.with_name("shard-x.features.npy"), width=3),
}
KEYS = np.array([7], np.uint64)


def keys_of(features):
    return features.with_name(features.name.replace("features", "keys"))


def another_shard(features, width):
    np.save(keys_of(features), KEYS)
    np.save(features, np.zeros((1, width), np.float32))


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_named(encoder_folder, tmp_path, kind):
    folder = build(tmp_path, encoder_folder).folder
    DAMAGE[kind](next(folder.glob("shard-*.features.npy")))
    with pytest.raises(ValueError, match=rf"text cache: .*shard-.* cannot be read .*\. Remove {folder}, and") as error:
        build(tmp_path, encoder_folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_nothing(encoder_folder, tmp_path, monkeypatch, error):
    """Features are GBs: on a full disk they would stay for ever, and be in the way of the next attempt."""

    def half(file, arr):
        if arr.ndim == 2:
            raise error
        save(file, arr)

    save = np.save
    monkeypatch.setattr(np, "save", half)
    with pytest.raises(type(error)) as raised:
        build(tmp_path, encoder_folder)
    (folder,) = tmp_path.iterdir()
    assert not list(folder.iterdir())
    if isinstance(error, OSError):
        assert str(raised.value).startswith(f"{folder} cannot be written: No space left on device; ")
        assert str(raised.value).endswith(" MB are free there.")


def test_another_process_may_be_faster(encoder_folder, tmp_path, monkeypatch):
    """While one run encodes, another one encodes and writes the same texts."""
    encode, slow = text_cache._encode, []

    def overtaken(encoder, texts):
        if not slow:
            slow.append(texts)
            build(tmp_path, encoder_folder)
        return encode(encoder, texts)

    monkeypatch.setattr(text_cache, "_encode", overtaken)
    cache = build(tmp_path, encoder_folder)
    assert slow == [sorted(TEXTS)]
    assert [path.name[:5] for path in cache.folder.iterdir()] == ["shard"] * 2
    assert cache.missing(TEXTS) == []


def test_processes_meet_whatever_the_others_have_written(encoder_folder, tmp_path, monkeypatch):
    """Rank 0 has already written all when rank 1 looks: both must still meet at the same barriers."""
    ranks = []
    monkeypatch.setattr(text_cache, "barrier", lambda: ranks.append(text_cache.rank()))
    monkeypatch.setattr(text_cache, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(text_cache, "rank", lambda rank=rank: rank)
        cache = build(tmp_path, encoder_folder, ["a", "b", "c", "d"])
        assert cache.missing(["a", "b", "c", "d"]) == []
    assert ranks == [0, 0, 1, 1]


def test_texts_of_several_shards(encoder_folder, tmp_path):
    """In any order, some of them twice: the same numbers as text by text."""
    build(tmp_path, encoder_folder, TEXTS[:2])
    cache = build(tmp_path, encoder_folder)
    assert len(cache.shards) == 2
    wanted = [3, 0, 4, 0, 1, 2]
    one_by_one = torch.cat([cache([text]) for text in TEXTS])
    assert torch.equal(cache([TEXTS[i] for i in wanted]), one_by_one[wanted])
    with pytest.raises(ValueError, match="'b'.*start again"):
        cache(["b"])


def test_no_text_at_all(encoder_folder, tmp_path):
    cache = build(tmp_path, encoder_folder, [])
    assert cache.width > 0
    assert cache([]).shape == (0, cache.width)
