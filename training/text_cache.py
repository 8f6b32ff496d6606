"""On-disk cache of description features from a frozen text encoder.

A cache is a folder named after the encoder's fingerprint (see `encoder_fingerprint`), so features of different
encoders are never mixed. It holds shards: folders with sorted text keys, memory-mapped features and checksums. A
shard is renamed into place once complete, so several processes and runs can write at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from system.disk import UNFINISHED, explain, sha256, sync_folder, to_json, write_text, write_whole
from system.distributed import barrier, broadcast_object, is_main, rank, world_size
from text_fusion_modules import TextEncoder, encoder_fingerprint
from utils import progress

logger = logging.getLogger(__name__)

BATCH = 256  # texts per call of the encoder
FILES = ("keys.npy", "features.npy")  # of a shard
SUMS = "sums.json"  # their SHA-256
DAY = 24 * 3600


def text_key(text: str) -> int:
    """Return a 64-bit hash of a text; among a million texts, a collision has probability 1 in 37 million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class TextFeatureCache:
    """Looks up features, in place of a `TextEncoder`; removes damaged shards, by their checksums only with `verify`."""

    def __init__(self, folder: str | Path, *, verify: bool = False) -> None:
        self.folder = Path(folder)
        self.fingerprint = self.folder.name  # of the encoder
        self.shards: list[tuple[np.ndarray, np.ndarray]] = []
        for path in sorted(self.folder.glob("shard-*")):
            shard = _open_shard(path, verify)
            if shard is None:
                logger.warning("text cache: %s is damaged, or has no checksums; its texts are encoded again.", path)
                shutil.rmtree(path, ignore_errors=True)
                if path.exists():
                    raise PermissionError(f"text cache: {path} is damaged and cannot be removed. Remove it.")
            else:
                self.shards.append(shard)
        self.width = self.shards[0][1].shape[1] if self.shards else 0

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Return the texts that are not in the cache."""
        shards, _ = self._find(texts)
        return [text for text, shard in zip(texts, shards, strict=True) if shard < 0]

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the features of n texts, (n, W) float32 on the CPU.

        Raises:
            ValueError: a text is not in the cache.
        """
        shards, rows = self._find(texts)
        if lost := [text for text, shard in zip(texts, shards, strict=True) if shard < 0]:
            raise ValueError(
                f"text cache {self.folder}: does not hold {lost[0][:60]!r}. The description files changed during the "
                "run; start again, and the cache is brought up to date."
            )
        features = np.empty((len(texts), self.width), np.float32)
        for number, (_, kept) in enumerate(self.shards):
            hit = shards == number
            features[hit] = kept[rows[hit]]
        return torch.from_numpy(features)

    def _find(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the shard (-1 if missing) and row of each text."""
        wanted = np.array([text_key(text) for text in texts], np.uint64)
        shards, rows = np.full(len(texts), -1), np.zeros(len(texts), np.int64)
        for number, (keys, _) in enumerate(self.shards):
            places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            hit = keys[places] == wanted
            shards[hit], rows[hit] = number, places[hit]
        return shards, rows


def _open_shard(path: Path, verify: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Return keys and features, or None if the shard is damaged."""
    try:
        keys, features = (np.load(path / name, mmap_mode="r", allow_pickle=False) for name in FILES)
        if verify and json.loads((path / SUMS).read_bytes()) != {name: sha256(path / name) for name in FILES}:
            return None
    except PermissionError:
        raise  # may be intact and belong to another user: do not remove it
    except (OSError, ValueError, EOFError):
        return None
    whole = len(keys) > 0 and keys.dtype == np.uint64 and features.dtype == np.float32 and features.ndim == 2
    return (keys, features) if whole and len(keys) == len(features) else None


def build_text_cache(
    cache_root: str | Path,
    encoder_folder: str | Path,
    max_tokens: int,
    texts: Sequence[str],
    device: torch.device,
) -> TextFeatureCache:
    """Open an encoder's cache under `cache_root` and add missing texts; every process of a run must call this.

    The processes share the work, one shard each. The encoder is loaded only if a text is missing, and freed before
    training starts.
    """
    folder = Path(cache_root) / encoder_fingerprint(encoder_folder, max_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    if is_main():
        _remove_unfinished(folder)
        TextFeatureCache(folder, verify=True)  # removes damaged shards before any process uses them
    barrier()
    texts = sorted(set(texts)) or [""]
    # Rank 0 deals: what a process sees on the disk depends on how far the others are.
    missing = broadcast_object(TextFeatureCache(folder).missing(texts) if is_main() else None)
    if missing:
        logger.info("text cache %s: encoding %d of %d texts.", folder, len(missing), len(texts))
        _add(folder, missing[rank() :: world_size()], encoder_folder, max_tokens, device)
        barrier()
    cache = TextFeatureCache(folder)
    if left := cache.missing(texts):  # in a folder of this machine alone
        _add(folder, left, encoder_folder, max_tokens, device)
        cache = TextFeatureCache(folder)
    return cache


def _add(folder: Path, texts: list[str], encoder_folder: str | Path, max_tokens: int, device: torch.device) -> None:
    if texts:
        encoder = TextEncoder(encoder_folder, max_tokens).to(device).eval()
        _write_shard(folder, texts, _encode(encoder, texts))


@torch.inference_mode()
def _encode(encoder: TextEncoder, texts: list[str]) -> np.ndarray:
    """Encode texts, (n, W) float32, in order of length to reduce padding."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    features = np.empty((len(texts), encoder.width), np.float32)
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    for batch in progress(batches, "encoding descriptions"):
        features[batch] = encoder([texts[i] for i in batch]).float().cpu().numpy()
    return features


def _write_shard(folder: Path, texts: list[str], features: np.ndarray) -> None:
    keys = np.array([text_key(text) for text in texts], np.uint64)
    order = np.argsort(keys)
    name = f"shard-{hashlib.blake2b(keys[order].tobytes(), digest_size=8).hexdigest()}"
    work = folder / f"{UNFINISHED}-{secrets.token_hex(8)}"
    try:
        work.mkdir()  # mkdir without a mode keeps the cache's access rights
        arrays = zip(FILES, (keys, features), strict=True)
        sums = {file: write_whole(work / file, partial(np.save, arr=array[order])) for file, array in arrays}
        write_text(work / SUMS, to_json(sums, indent=1) + "\n")
        try:
            os.rename(work, folder / name)
            sync_folder(folder)
        except OSError:
            if not (folder / name).is_dir():  # otherwise another process has written the same texts
                raise
    except OSError as error:
        raise OSError(explain(error, folder)) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)  # still exists after a failure


def _remove_unfinished(folder: Path) -> None:
    """Remove unfinished shards of killed runs; those younger than a day may still be in use."""
    for work in folder.glob(f"{UNFINISHED}-*"):
        with contextlib.suppress(FileNotFoundError):  # already renamed to a shard
            if time.time() - work.stat().st_mtime > DAY:
                shutil.rmtree(work, ignore_errors=True)
