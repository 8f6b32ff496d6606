"""From a checkpoint to sentences: `Translator.from_checkpoint("best_checkpoint.pth")("clip.pose")`.

Letters: B clips of a batch, T sampled frames, N sentences of a clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from batch import Sample, collate_fn, to_device
from config import POSE_SUFFIXES, VIDEO_SUFFIXES, ModelConfig
from distributed import autocast, check_dtype
from models import Uni_Sign
from mt5 import load_mt5
from pose import PART_JOINTS, SCORE_THRESHOLD, Pose, part_keypoints, read_pose
from pose_extraction import Extractor, extract_pose
from rgb_fusion import PREFIXES as RGB_PREFIXES
from temporal_alignment import DescriptionLoader, TemporalAligner, sample_frames
from text_fusion_modules import EncodesTexts, TextEncoder
from tokenizer import Tokenizer
from video import read_pictures
from weights import TEXT_ENCODER_PREFIX, kept_tokens, read_model


class Candidate(NamedTuple):
    """A sentence, and the mean log-probability of its tokens: closer to 0 is surer."""

    text: str
    score: float


class Explained(NamedTuple):
    """A clip's sentences, the best first, and its gate (T,): how much of each frame's text was added, 0 to 1.

    Without descriptions in the model the gate is None.
    """

    candidates: list[Candidate]
    gate: list[float] | None


class Translator:
    """Writes sentences for clips.

    Args:
        model: with its weights.
        max_length: a longer clip is sampled down to this many frames, evenly, as in evaluation.
        device: where to compute, "cpu" or "cuda"; by default a GPU if there is one.
        dtype: of matrix products: "bf16", "fp16" (GPU only) or "fp32".
        num_beams: of the search for a sentence.
        max_new_tokens: of a sentence.

    Raises:
        ValueError: a device that is not there, or that cannot compute in this dtype.
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

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        mt5_path: str = "",
        text_encoder: str = "",
        language: str = "",
        max_length: int = 0,
        **options: Any,
    ) -> Translator:
        """Load a checkpoint of `fine_tuning.py`, a folder of `export.py`, or pose-only weights of Uni-Sign.

        What is left out is as in training, as far as the checkpoint says it. Of mT5 only config.json and spiece.model
        are read, and with the first text its encoder, where that was frozen in training.

        Args:
            path: `best_checkpoint.pth` for example, or an exported folder.
            mt5_path: mT5's folder; by default the one of training.
            text_encoder: the folder of the text encoder, likewise.
            language: the language of the prompt; to be given for weights that have no config, if it is not Chinese.
            max_length: by default that of training, or 256.
            options: of `Translator`.

        Raises:
            FileNotFoundError: the checkpoint, or a folder that belongs to it, is not there.
            ValueError: no whole model without crops of the hands, or files that do not fit.
        """
        weights, facts = read_model(path, "--checkpoint")
        config = read_config(path, facts, weights, text_encoder=text_encoder, language=language)
        refuse_rgb(path, config)
        mt5_folder = mt5_path or facts.get("mt5_path")
        if not mt5_folder:
            raise ValueError(
                f"--checkpoint: {path} does not say where its mT5 is; name the folder with its config.json and "
                "spiece.model with --mt5_path."
            )
        kept = kept_tokens(weights, path, "--checkpoint")
        mt5 = load_mt5(mt5_folder, with_weights=False, kept=kept)
        texts: EncodesTexts | None = None
        if config.use_descriptions:
            folder = config.text_encoder or mt5_folder
            if any(name.startswith(TEXT_ENCODER_PREFIX) for name in weights):
                own = None if config.text_encoder else kept
                texts = TextEncoder(folder, config.text_max_tokens, with_weights=False, kept=own)
            else:
                projection = weights.get("text_projection.weight")  # (D, W)
                width = mt5.config.d_model if projection is None else projection.shape[1]
                texts = FrozenTextEncoder(folder, config.text_max_tokens, width, options.get("device", ""))
        model = Uni_Sign(config, mt5, Tokenizer(mt5_folder, kept), texts)
        wanted = {name: value.shape for name, value in model.state_dict().items()}
        given = {name: value.shape for name, value in weights.items()}
        if differing := sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)):
            raise ValueError(
                f"--checkpoint: {path} does not fit the mT5 in {mt5_folder}, or is no whole model of this code: "
                f"{len(differing)} weights differ, the first is {differing[0]}. Name the mT5 of training: --mt5_path."
            )
        model.load_state_dict(weights)
        return cls(model, max_length=max_length or facts.get("max_length", 256), **options)

    def __call__(
        self,
        clip: str | Path | Pose,
        descriptions: Mapping[int, str] | str | Path | None = None,
        extractor: Extractor | None = None,
    ) -> str:
        """Translate one clip.

        Args:
            clip: a pose file, a video, or what `pose.read_pose` made of a file.
            descriptions: {frame number in the recording: text}, or a JSON file of them; None for none, which a model
                with descriptions takes as well.
            extractor: for a video: of `pose_extraction.load_extractor`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file that cannot be used, or descriptions for a model without.
        """
        pose = clip if isinstance(clip, Pose) else load_pose(clip, extractor=extractor)
        if isinstance(descriptions, str | Path):
            descriptions = load_descriptions(descriptions, pose)
        return self.candidates([self.sample(pose, descriptions)])[0][0].text

    def sample(self, pose: Pose, descriptions: Mapping[int, str] | None = None, name: str = "") -> Sample:
        """Bring a clip to the model's input, as `S2T_Dataset` does in evaluation.

        Raises:
            ValueError: descriptions for a model without.
        """
        frames = sample_frames(len(pose), self.max_length)  # (T,)
        texts = own = None
        if self.model.config.use_descriptions:
            texts, own = TemporalAligner().align(descriptions or {}, frames + pose.start)
        elif descriptions is not None:
            raise ValueError("--descriptions, --describe: this checkpoint was trained without descriptions; drop them.")
        return Sample(name, part_keypoints(pose, frames), "", "", {}, texts, own)

    def candidates(self, samples: Sequence[Sample], n_best: int = 1) -> list[list[Candidate]]:
        """Search the sentences of a batch of clips; arguments and errors are those of `explain`."""
        return [explained.candidates for explained in self.explain(samples, n_best)]

    @torch.no_grad()
    def explain(self, samples: Sequence[Sample], n_best: int = 1) -> list[Explained]:
        """Search the sentences of a batch of clips, and keep what the gate did.

        Args:
            samples: B clips of `sample`.
            n_best: N; at most `num_beams`.

        Returns:
            For each clip N sentences, the best first, and its gate.

        Raises:
            ValueError: more sentences than beams, or too many clips for the GPU's memory.
            FileNotFoundError: the frozen text encoder of the model has moved away.
        """
        if n_best > self.num_beams:
            raise ValueError(f"--n_best {n_best}: a search with {self.num_beams} beams has no more; raise --num_beams.")
        try:
            with autocast(self.dtype, self.device):
                encoded = self.model.encode(to_device(collate_fn(samples)[0], self.device))
                ids = self.model.generate(encoded, self.num_beams, self.max_new_tokens, n_best=n_best)
                scores = self.model.log_probs(encoded, ids).tolist()
        except torch.OutOfMemoryError as error:
            raise ValueError(f"out of GPU memory ({str(error)[:80]}). Lower --batch-size or --num_beams.") from None
        found = [Candidate(*pair) for pair in zip(self.model.sentences(ids), scores, strict=True)]
        gates: list[list[float] | None] = [None] * len(samples)
        if encoded.gate is not None:  # (B, T, 1)
            lengths = [len(sample.pose_sample["body"]) for sample in samples]
            gates = [gate[:n].tolist() for gate, n in zip(encoded.gate.squeeze(-1).float(), lengths, strict=True)]
        # The search's own scores may differ in the last digit, and so may its order where two are nearly equal.
        best = [sorted(found[i : i + n_best], key=lambda c: -c.score) for i in range(0, len(found), n_best)]
        return [Explained(candidates, gate) for candidates, gate in zip(best, gates, strict=True)]


class FrozenTextEncoder:
    """The text encoder of a model that was trained with it frozen: not in the checkpoint, read with the first text.

    Args:
        folder: of the encoder.
        max_tokens: a text is cut to this many tokens.
        width: W, of the encoder that the model was trained with.
        device: where to compute.
    """

    def __init__(self, folder: str | Path, max_tokens: int, width: int, device: str = "") -> None:
        self.folder, self.max_tokens, self.width = folder, max_tokens, width
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.encoder: TextEncoder | None = None

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """n texts -> (n, W), in fp32 as in the cache of training.

        Raises:
            FileNotFoundError: the encoder is not there.
            ValueError: it is another one.
        """
        if not texts:
            return torch.empty(0, self.width)
        if self.encoder is None:
            encoder = TextEncoder(self.folder, self.max_tokens)
            if encoder.width != self.width:
                raise ValueError(
                    f"text encoder: {self.folder} has the width {encoder.width}; the checkpoint was trained "
                    f"with one of {self.width}. Name that one with --text_encoder."
                )
            self.encoder = encoder.to(self.device).eval()
        with torch.autocast(self.device.type, enabled=False):
            return self.encoder(texts)


def read_config(path: str | Path, facts: Mapping[str, Any], weights: Mapping[str, Any], **given: str) -> ModelConfig:
    """The config in a checkpoint, with what was given in its place.

    Raises:
        ValueError: it has keys that are not known here, or its weights are no whole model.
    """
    # What Uni-Sign publishes has no config; the width shows in its weights.
    plain: dict[str, Any] = {"rgb_support": any(name.startswith(RGB_PREFIXES) for name in weights)}
    if "part_para" in weights:
        plain["hidden_dim"] = len(weights["part_para"]) // len(PART_JOINTS)
    saved = facts.get("config", plain)
    try:
        config = ModelConfig(**{**saved, **{key: value for key, value in given.items() if value}})
    except TypeError as error:
        raise ValueError(f"--checkpoint: {path} is of another version of this code ({error}).") from None
    if not any(name.startswith("mt5_model.") for name in weights):
        raise ValueError(f"--checkpoint: {path} holds no whole model; give best_checkpoint.pth or a checkpoint_*.pth.")
    return config


def refuse_rgb(path: str | Path, config: ModelConfig) -> None:
    """Refuse a model that poses are not enough for.

    Raises:
        ValueError: it is one.
    """
    if config.rgb_support:
        raise ValueError(
            f"--checkpoint: {path} looks at crops of the hands: it needs videos beside the poses, which is not "
            "supported here yet. Give a checkpoint that was trained without --rgb_support."
        )


def load_pose(path: str | Path, person: int = 0, extractor: Extractor | None = None) -> Pose:
    """Read a pose file, or a video with an extractor; anything else gets a line that says what to do.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither of them, or nobody in it.
    """
    path = Path(path)
    if path.suffix.lower() not in POSE_SUFFIXES and path.suffix.lower() not in VIDEO_SUFFIXES:
        raise ValueError(
            f"{path}: is no pose file ({', '.join(POSE_SUFFIXES)}) and no video ({VIDEO_SUFFIXES[0]}, ...)."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    if path.suffix.lower() not in POSE_SUFFIXES:
        if extractor is None:
            raise ValueError(
                f"{path}: is a video: give an extractor as well, pose_extraction.load_extractor('rtmlib') for example."
            )
        return extract_pose(read_pictures(path), extractor, person, path).pose
    pose = read_pose(path, person=person)
    if not (pose.scores > SCORE_THRESHOLD).any():
        raise ValueError(f"{path}: no point of person {person} was found in any frame; there is nothing to translate.")
    return pose


def load_descriptions(path: str | Path, pose: Pose) -> dict[int, str]:
    """Read one description file, in any form that training takes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--descriptions: {path} does not exist.")
    loader = DescriptionLoader(path.parent)
    texts = loader.load(path.stem, pose.frames) if path.suffix == ".json" else {}
    if not loader.counts.files_found:
        raise ValueError(f"--descriptions: {path} cannot be read as descriptions; wanted a .json file of them.")
    return texts
