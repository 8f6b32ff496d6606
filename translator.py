"""Translate with a checkpoint: `Translator.from_checkpoint("best_checkpoint.pth")("clip.pose")`.

Shapes: B clips in a batch, T sampled frames, N sentences per clip.
"""

from __future__ import annotations

import glob
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from clips.batch import Sample, collate_fn, to_device
from clips.segments import Segmenter
from config import POSE_SUFFIXES, VIDEO_SUFFIXES, ModelConfig, description_language
from describing import sentences
from models import Uni_Sign
from network.attention import Word, attention_to_frames, words
from pose.extraction import Extractor, extract_pose
from pose.hand_crops import HandCrops
from pose.keypoints import SCORE_THRESHOLD, Pose, part_keypoints, read_pose
from pose.live import Frame, as_pose
from pose.video import read_pictures
from system.distributed import autocast, check_dtype
from temporal_alignment import TemporalAligner, read_descriptions, sample_frames
from text_fusion_modules import TextEncoder, encoder_fingerprint
from training.weights import (
    FROZEN_ENCODER,
    TEXT_ENCODER_PREFIX,
    Checkpoint,
    assemble,
    differing_files,
    files_beside,
)

logger = logging.getLogger(__name__)

DRAFT_EVERY = 1  # seconds of signing from one live draft to the next


class Candidate(NamedTuple):
    """A sentence, and the mean log-probability of its tokens: closer to 0 is more confident."""

    text: str
    score: float


class Explained(NamedTuple):
    """A clip's sentences and what they rest on."""

    candidates: list[Candidate]  # the sentences, best first
    gate: list[float] | None  # (T,), the weight of each frame's text, 0 to 1; None if the model has no descriptions
    words: list[Word]  # the words of the best sentence, each with the share of each frame in its attention, (T,)


class Translator:
    """Translates clips to sentences.

    Args:
        model: the model with its weights.
        max_length: maximum number of frames; longer clips are sampled evenly, as in evaluation.
        device: "cpu" or "cuda"; default: a GPU if there is one.
        dtype: precision of matrix products: "bf16", "fp16" (GPU only) or "fp32".
        num_beams: beam size.
        max_new_tokens: maximum length of a generated sentence, in tokens.

    Raises:
        ValueError: the device is not available, or does not support the dtype; or the model looks at crops of the
            hands, and a package for videos is missing.
    """

    def __init__(
        self,
        model: Uni_Sign,
        *,
        max_length: int = 256,
        device: str = "",
        dtype: str = "bf16",
        num_beams: int = 4,
        max_new_tokens: int = 100,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device {device}: torch finds no GPU here; use cpu.")
        check_dtype(dtype, self.device)
        self.model = model.to(self.device).eval()
        self.max_length, self.dtype = max_length, dtype
        self.num_beams, self.max_new_tokens = num_beams, max_new_tokens
        self.hand_crops = HandCrops(model.config.uni_sign_padding) if model.config.rgb_support else None

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        mt5_path: str = "",
        text_encoder: str = "",
        language: str = "",
        **options: Any,
    ) -> Translator:
        """Load a checkpoint of `fine_tuning.py`, a folder of `tools/export.py`, or weights of Uni-Sign.

        Omitted arguments default to the checkpoint's values, as in training. Of mT5 only config.json and spiece.model
        are read, plus, at the first text, its encoder if that was frozen in training.

        Args:
            path: a checkpoint such as `best_checkpoint.pth`, or an exported folder.
            mt5_path: mT5's folder; default: as in training.
            text_encoder: the text encoder's folder; default: as in training.
            language: the language of the prompt; needed for weights without config, unless it is Chinese.
            options: further arguments of `Translator`, except `max_length`, which is that of training, or 256.

        Raises:
            FileNotFoundError: the checkpoint, or a folder it needs, does not exist.
            ValueError: the model is incomplete, or does not match its files.
        """
        checkpoint = Checkpoint.read(path, "--checkpoint")
        config = checkpoint.whole_config(text_encoder=text_encoder, language=language)
        mt5_folder = mt5_path or checkpoint.mt5_folder()
        texts = frozen_encoder(checkpoint, config, mt5_folder, options.get("device", ""))
        checkpoint.shell(config, mt5_folder, texts)  # raises what does not fit
        model = assemble(config, mt5_folder, checkpoint.kept, texts, with_weights=False)
        model.load_state_dict(checkpoint.weights)
        _warn(path, differing_files(checkpoint.facts, files_beside(model)))
        if language and (trained := checkpoint.stated.get("language", language)) != language:
            _warn(path, f"was trained with --language {trained}; {language} is taken. Drop it for training's.")
        length = checkpoint.fact("max_length", 256)
        if length < 1:
            raise ValueError(f"--checkpoint: {path} says max_length {length}. Get it again.")
        return cls(model, max_length=length, **options)

    def __call__(
        self,
        clip: str | Path | Pose,
        descriptions: Mapping[int, str] | str | Path | None = None,
        extractor: Extractor | None = None,
        video: str | Path | None = None,
    ) -> str:
        """Translate one clip.

        Args:
            clip: a pose file, a video, or a result of `pose.keypoints.read_pose`.
            descriptions: {frame number in the recording: text}, or a JSON file of them; optional for all models.
            extractor: needed for a video: a result of `pose.extraction.load_extractor`.
            video: for a model that looks at crops of the hands, the video of a pose file; default: the one beside it.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: a file is unusable, or descriptions were given for a model without descriptions.
        """
        pose = clip if isinstance(clip, Pose) else load_pose(clip, extractor=extractor)
        if isinstance(descriptions, str | Path):
            descriptions = load_descriptions(descriptions, pose)
        name = "the clip" if isinstance(clip, Pose) else str(clip)
        if video is None and self.hand_crops and not isinstance(clip, Pose):
            video = video_of(clip)
        return self.explain([self.sample(pose, descriptions, name, video)])[0].candidates[0].text

    def sample(
        self,
        pose: Pose,
        descriptions: Mapping[int, str] | None = None,
        name: str = "",
        video: str | Path | Sequence[np.ndarray] | None = None,
    ) -> Sample:
        """Convert a clip to the model's input, like `S2T_Dataset` in evaluation.

        Args:
            pose: the clip.
            descriptions: {frame number in the recording: text}.
            name: for messages.
            video: its video, or all images of it; read only for a model that looks at crops of the hands.

        Raises:
            ValueError: descriptions were given for a model without descriptions, or the video is missing or unusable.
        """
        frames = sample_frames(len(pose), self.max_length)  # (T,)
        texts = own = None
        if self.model.config.use_descriptions:
            texts, own = TemporalAligner().align(descriptions or {}, frames + pose.start)
        elif descriptions is not None:
            raise ValueError("--descriptions, --describe: this checkpoint was trained without descriptions; drop them.")
        crops: dict[str, torch.Tensor] = {}
        if self.hand_crops:
            if video is None:
                raise ValueError(
                    f"{name}: this checkpoint looks at crops of the hands. Give the video itself, or put it beside the "
                    "pose file, under the same name."
                )
            crops = self.hand_crops.load(video, pose, frames)
        return Sample(name, part_keypoints(pose, frames), "", "", crops, texts, own)

    def describe(self, pose: Pose, aspect: float) -> dict[int, str]:
        """Describe a clip by the rules, in the language of the model; `aspect` is width / height of its pictures."""
        return sentences.describe_pose(pose, description_language(self.model.config.language), aspect)

    @torch.no_grad()
    def explain(self, samples: Sequence[Sample], n_best: int = 1) -> list[Explained]:
        """Generate N sentences, at most `num_beams`, for each of B results of `sample`, and say what they rest on.

        Raises:
            ValueError: more sentences than beams, or out of GPU memory.
            FileNotFoundError: the model's frozen text encoder does not exist any more.
        """
        if n_best > self.num_beams:
            raise ValueError(f"--n_best {n_best}: a search with {self.num_beams} beams has no more; raise --num_beams.")
        try:
            with autocast(self.dtype, self.device):
                encoded = self.model.encode(to_device(collate_fn(samples)[0], self.device))
                ids = self.model.generate(encoded, self.num_beams, self.max_new_tokens, n_best=n_best)
                scores = self.model.log_probs(encoded, ids).view(-1, n_best)
                # The search's scores may differ by rounding, and thus its order for nearly equal ones: sort again.
                order = scores.argsort(dim=1, descending=True, stable=True)  # (B, N)
                best = ids.view(*scores.shape, -1).gather(1, order[..., None].expand(-1, -1, ids.shape[1]))[:, 0, 1:]
                attention = attention_to_frames(self.model, encoded, best)  # (B, L, T)
        except torch.OutOfMemoryError as error:
            raise ValueError(f"out of GPU memory ({str(error)[:80]}). Lower --batch-size or --num_beams.") from None
        texts, explained = self.model.sentences(ids), []
        for i, sample in enumerate(samples):
            length = len(sample.pose_sample["body"])
            found = [Candidate(texts[i * n_best + j], float(scores[i, j])) for j in order[i].tolist()]
            gate = None if encoded.gate is None else encoded.gate[i, :length, 0].tolist()
            over = words(self.model.tokenizer, best[i].tolist(), attention[i, :, :length])
            explained.append(Explained(found, gate, over))
        return explained


class LiveSentence(NamedTuple):
    """A segment of live signing, translated."""

    frames: Sequence[Frame]
    explained: Explained
    is_draft: bool  # it has not ended


class Live:
    """Translates segments of signing while they come, described by the rules or not; takes no crops of the hands."""

    def __init__(self, translator: Translator, describe: bool = False) -> None:
        self.translator, self.describe = translator, describe
        self.n_frames = self.n_dropped = 0  # frames taken, and dropped between them
        self._segmenter, self._drafted = Segmenter(), 0.0  # time of the last draft's last frame
        self._ended: deque[list[Frame]] = deque()  # segments that wait for their sentences

    def take(self, frames: Sequence[Frame]) -> None:
        """Take the frames that have come since the last time."""
        self._ended.extend(filter(None, map(self._segmenter.add, frames)))
        self.n_frames += len(frames)
        self.n_dropped = frames[-1].dropped if frames else self.n_dropped

    def end(self) -> None:
        """End the segment that lasts, as the end of a recording does."""
        self._ended.extend(filter(None, [self._segmenter.end()]))

    def finals(self) -> Iterator[LiveSentence]:
        """Yield the sentences of segments that have ended; one that is interrupted comes the next time."""
        while self._ended:
            final = self._translate(self._ended[0])
            self._ended.popleft()
            yield final

    def drafts(self) -> Iterator[LiveSentence]:
        """Yield a draft of the segment that lasts, if it has grown enough."""
        lasts = self._segmenter.frames
        if lasts and lasts[-1].time - max(lasts[0].time, self._drafted) >= DRAFT_EVERY:
            self._drafted = lasts[-1].time
            yield self._translate(lasts, is_draft=True)

    def _translate(self, frames: Sequence[Frame], is_draft: bool = False) -> LiveSentence:
        pose = as_pose(frames)
        texts = self.translator.describe(pose, frames[0].aspect) if self.describe else None
        (explained,) = self.translator.explain([self.translator.sample(pose, texts, "live")])
        return LiveSentence(frames, explained, is_draft)


class FrozenTextEncoder:
    """A text encoder that was frozen in training: it is not in the checkpoint, and is loaded at the first text.

    In training its features had the width W, and the checkpoint's facts tell whether it was this one.
    """

    def __init__(
        self, folder: str | Path, max_tokens: int, width: int, device: str = "", facts: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.max_tokens, self.width, self.facts = folder, max_tokens, width, facts or {}
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.encoder: TextEncoder | None = None

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the features of n texts, (n, W), in fp32; ValueError or FileNotFoundError if it is another encoder."""
        if not texts:
            return torch.empty(0, self.width)
        if self.encoder is None:
            self.encoder = self.load().to(self.device).eval()
            _warn("the checkpoint", differing_files(self.facts, self.files()))
        with torch.autocast(self.device.type, enabled=False):
            return self.encoder(texts)

    def load(self) -> TextEncoder:
        """Read it; ValueError or FileNotFoundError if it is not there, or has another width."""
        encoder = TextEncoder(self.folder, self.max_tokens)
        if encoder.width != self.width:
            raise ValueError(
                f"text encoder: {self.folder} has the width {encoder.width}; the checkpoint was trained "
                f"with one of {self.width}. Name that one with --text_encoder."
            )
        return encoder

    def files(self) -> dict[str, Any]:
        """Return what it adds to `files_beside`."""
        return {FROZEN_ENCODER: encoder_fingerprint(self.folder, self.max_tokens)}


def frozen_encoder(
    checkpoint: Checkpoint, config: ModelConfig, mt5_folder: str | Path, device: str = ""
) -> FrozenTextEncoder | None:
    """Return a model's text encoder if it is not in the checkpoint, else None."""
    if not config.use_descriptions or checkpoint.holds(TEXT_ENCODER_PREFIX):
        return None
    width = checkpoint.weights.get("text_adapter.mean", torch.empty(0)).numel()  # `Checkpoint.shell` says if it lacks
    folder = config.text_encoder or mt5_folder
    return FrozenTextEncoder(folder, config.text_max_tokens, width, device, checkpoint.facts)


def _warn(path: str | Path, difference: str) -> None:
    if difference:
        logger.warning("--checkpoint: %s %s", path, difference)


def video_of(clip: str | Path) -> Path | None:
    """Return a clip's video: the file itself, or the video of the same name beside a pose file, if there is one."""
    path = Path(clip)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return path
    beside = sorted(path.parent.glob(f"{glob.escape(path.stem)}.*"))
    alike = (video for video in beside if video.stem == path.stem and video.suffix.lower() in VIDEO_SUFFIXES)
    return next(alike, None)


def load_pose(path: str | Path, person: int = 0, extractor: Extractor | None = None) -> Pose:
    """Read a pose file or, with an extractor, a video's poses; ValueError or FileNotFoundError if nobody is there."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*POSE_SUFFIXES, *VIDEO_SUFFIXES):
        kinds = f"no pose file ({', '.join(POSE_SUFFIXES)}) and no video ({VIDEO_SUFFIXES[0]}, ...)"
        raise ValueError(f"{path}: is {kinds}.")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    if suffix in VIDEO_SUFFIXES:
        if extractor is None:
            raise ValueError(
                f"{path}: is a video: give an extractor as well, pose.extraction.load_extractor('rtmlib') for example."
            )
        return extract_pose(read_pictures(path), extractor, person, path).pose
    pose = read_pose(path, person=person)
    if not (pose.scores > SCORE_THRESHOLD).any():
        raise ValueError(f"{path}: no point of person {person} was found in any frame; there is nothing to translate.")
    return pose


def load_descriptions(path: str | Path, pose: Pose) -> dict[int, str]:
    """Read one description file, in any format of training; ValueError or FileNotFoundError if it cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--descriptions: {path} does not exist.")
    texts, _, counts, _ = read_descriptions(path, pose.frames)
    if path.suffix != ".json" or not counts.files_found:
        raise ValueError(f"--descriptions: {path} cannot be read as descriptions; wanted a .json file of them.")
    return texts
