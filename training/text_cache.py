"""On-disk cache of description features from a frozen text encoder.

A cache is a folder named after the encoder's fingerprint (see `encoder_fingerprint`), so features of different
encoders are never mixed. It holds shards: sorted text keys and memory-mapped features, each a file that is written
whole, so several processes and runs can write at the same time.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from system.disk import explain, remove_unfinished, write_whole
from system.distributed import barrier, is_main, rank, world_size
from system.faults import in_one_line
from text_fusion_modules import TextEncoder, encoder_fingerprint
from utils import progress

logger = logging.getLogger(__name__)

BATCH = 256  # texts per call of the encoder
KEYS, FEATURES = ".keys.npy", ".features.npy"  # ends of the names of a shard's two files


def text_key(text: str) -> int:
    """Return a 64-bit hash of a text; among a million texts, a collision has probability 1 in 37 million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class TextFeatureCache:
    """Looks up features, in place of a `TextEncoder`; ValueError if a shard cannot be read."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.fingerprint = self.folder.name  # of the encoder
        self.shards: list[tuple[np.ndarray, np.ndarray]] = []
        self.width = 0
        for path in sorted(self.folder.glob(f"shard-*{KEYS}")):
            try:
                files = path, path.with_name(path.name.replace(KEYS, FEATURES))
                keys, features = (np.load(file, mmap_mode="r") for file in files)
                if keys.ndim != 1 or not keys.size or features.ndim != 2 or len(features) != len(keys):
                    raise ValueError(f"features of shape {features.shape} for texts of shape {keys.shape}")
                if features.shape[1] != (width := self.width or features.shape[1]):
                    raise ValueError(f"{features.shape[1]} numbers for a text, {width} in other files")
                if (keys.dtype, features.dtype) != (np.uint64, np.float32):
                    raise ValueError(f"features of {features.dtype} for keys of {keys.dtype}")
            except Exception as error:  # noqa: BLE001 -- a damaged header raises nearly anything; each becomes one line
                raise ValueError(
                    f"text cache: {path} cannot be read ({in_one_line(error)}). Remove {self.folder}, and it is made "
                    "again."
                ) from None
            self.shards.append((keys, features))
            self.width = width

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
    remove_unfinished(folder, hours=24)  # what is newer another run may be writing
    texts = sorted(set(texts)) or [""]
    for n in (world_size(), 1):  # first a share of the work, then what the others have put on their own machines
        missing = TextFeatureCache(folder).missing(texts)
        if own := [text for text in missing if text_key(text) % n == rank() % n]:
            logger.info("text cache %s: encoding %d of %d texts.", folder, len(missing), len(texts))
            encoder = TextEncoder(encoder_folder, max_tokens).to(device).eval()
            _write_shard(folder, own, _encode(encoder, own))
        barrier()
    return TextFeatureCache(folder)


@torch.inference_mode()
def _encode(encoder: TextEncoder, texts: list[str]) -> np.ndarray:
    """Encode texts, (n, W) float32, in order of length to reduce padding."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    features = np.empty((len(texts), encoder.width), np.float32)
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    for batch in progress(batches, "encoding descriptions", shown=is_main()):
        features[batch] = encoder([texts[i] for i in batch]).float().cpu().numpy()
    return features


def _write_shard(folder: Path, texts: list[str], features: np.ndarray) -> None:
    keys = np.array([text_key(text) for text in texts], np.uint64)
    order = np.argsort(keys)
    name = f"shard-{hashlib.blake2b(keys[order].tobytes(), digest_size=8).hexdigest()}"
    try:
        for end, array in ((FEATURES, features), (KEYS, keys)):  # the keys last: where they are, a shard is
            write_whole(folder / f"{name}{end}", partial(np.save, arr=array[order]))
    except OSError as error:
        raise OSError(explain(error, folder)) from None
