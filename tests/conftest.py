"""What several test files share: reference data beside the checkout, and small models."""

import gzip
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

# Small tensors gain nothing from threads, and two test runs on one machine would wait for each other's.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Its assertions say what differs, as those of the test files do.
pytest.register_assert_rewrite("tests.helpers.processes")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: recordings and files of others, which this repository does not hold")
    return folder


@pytest.fixture(scope="session")
def shared_real() -> Path:
    """Poses of real people signing, messy descriptions, hostile files."""
    return _shared("real")


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """Vectors recorded from the official Uni-Sign implementation."""
    return _shared("reference")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample corpus of a few clips, with a small mT5; read only."""
    from tests.helpers.corpus import write_small_corpus

    return write_small_corpus(tmp_path_factory.mktemp("corpus") / "sample", {"train": 24, "dev": 9, "test": 7})


@pytest.fixture
def poses(corpus: Path, tmp_path: Path) -> Path:
    """A folder with five pose files."""
    (tmp_path / "poses").mkdir()
    for path in sorted(corpus.glob("dataset/*/pose_format/*.pkl"))[:5]:
        shutil.copy(path, tmp_path / "poses")
    return tmp_path / "poses"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged."""
    caplog.set_level("INFO")
    return caplog


@pytest.fixture(scope="module")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus on which a run takes a second; see `tests.helpers.processes.start`."""
    from tests.helpers.corpus import write_tiny_corpus

    return write_tiny_corpus(tmp_path_factory.mktemp("tiny") / "corpus", {"train": 12, "dev": 2, "test": 1})


@pytest.fixture(scope="session")
def world(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as users have it: a few made-up clips of each data set, where Uni-Sign keeps them, and an mT5."""
    from config import DATASETS, SPLITS

    words = {"Chinese": "今天很高兴。", "English": "How are you today?"}
    root = tmp_path_factory.mktemp("world")
    shutil.copytree(corpus / "pretrained_weight", root / "pretrained_weight")
    poses = sorted(corpus.glob("dataset/CSL_Daily/pose_format/*.pkl"))
    texts = sorted(corpus.glob("description/CSL-Daily/split_data/*/*.json"))
    for spec in (spec.under(root) for spec in DATASETS.values()):
        entries = {}  # label file -> clips
        for split in SPLITS:
            if split not in spec.labels:
                continue
            own = spec.for_split(split)
            described = Path(spec.description_dir) / spec.folder(split)
            for folder in (Path(own.pose_dir), described):
                folder.mkdir(parents=True, exist_ok=True)
            clips = entries.setdefault(spec.labels[split], {})
            for number in range(4 if split == "train" else 2):
                name = f"{spec.folder(split)}_{number}"
                text = f"{'book' if number % 2 else 'drink'}" if "ISLR" in spec.tasks else words[spec.language]
                clips[name] = {"name": name, "gloss": ["今天", "高兴"], "text": text, "video_path": f"{name}.mp4"}
                shutil.copy(poses[number], Path(own.pose_dir) / f"{name}.pkl")
                shutil.copy(texts[number], described / f"{name}.json")
        for path, clips in entries.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            if path.endswith(".json"):  # CSL-News
                news = [{"video": f"{n}.mp4", "pose": f"{n}.pkl", "text": clip["text"]} for n, clip in clips.items()]
                Path(path).write_text(json.dumps(news, ensure_ascii=False), encoding="utf-8")
            else:
                Path(path).write_bytes(gzip.compress(pickle.dumps(clips)))
    return root


@pytest.fixture(scope="session")
def filmed_world(world: Path, write_video) -> None:
    """The same, with a video beside each pose file."""
    from config import DATASETS
    from pose.keypoints import read_pose

    for spec in (spec.under(world) for spec in DATASETS.values()):
        for split in spec.labels:
            own = spec.for_split(split)
            for pose in Path(own.pose_dir).iterdir():
                frames = [np.full((48, 64, 3), 99, np.uint8)] * len(read_pose(pose))
                write_video(Path(own.rgb_dir) / f"{pose.stem}.mp4", frames)


@pytest.fixture(scope="session")
def reference_model(shared_reference):
    """Make the model that the recorded vectors come from: `reference_model(config)` is a new one, in evaluation."""
    from safetensors.torch import load_file

    from models import Uni_Sign
    from network.mt5 import load_mt5
    from network.vocabulary import Tokenizer

    weights = load_file(shared_reference / "tiny_pose.safetensors")
    with_rgb = weights | load_file(shared_reference / "tiny_rgb_extra.safetensors")
    folder = shared_reference / "tiny_mt5"

    def make(config):
        model = Uni_Sign(config, load_mt5(folder), Tokenizer(folder))
        model.load_state_dict(with_rgb if config.rgb_support else weights, strict=True)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def vectors(shared_reference):
    """Recorded arrays: `vectors("batch_pose.npz")`."""
    return lambda name: np.load(shared_reference / name)


@pytest.fixture(scope="session")
def reference_batch(vectors):
    """The recorded batch, with crops of hands, as the model takes it."""
    import torch

    from pose.keypoints import PART_JOINTS

    poses, crops = vectors("batch_pose.npz"), vectors("batch_rgb.npz")
    fields = {name: torch.from_numpy(poses[name]) for name in (*PART_JOINTS, "attention_mask")}
    fields |= {name: torch.from_numpy(crops[name]) for name in crops.files}
    return {name: value.float() if value.is_floating_point() else value for name, value in fields.items()}


@pytest.fixture(scope="session")
def reference_sentences(shared_reference) -> list[str]:
    """What is said in the clips of the recorded batch."""
    return json.loads((shared_reference / "batch_info.json").read_text(encoding="utf-8"))["sentences"]


@pytest.fixture(scope="session")
def write_video():
    """Encode pictures: `write_video(path, [(height, width, 3) uint8, ...])`."""
    av = pytest.importorskip("av", reason="needs the extra rgb")
    pytest.importorskip("PIL", reason="needs the extra rgb")

    def write(path, pictures):
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt, stream.bit_rate = "yuv420p", 20_000_000
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def small_mt5_folder(tmp_path_factory) -> Path:
    """A folder with an mT5 of width 32, random but decided: its input matters, and its logits lie far enough apart."""
    from safetensors.torch import load_file, save_file

    from synthetic.small_mt5 import write_small_mt5

    folder = tmp_path_factory.mktemp("mt5") / "small"
    texts = ["我今天想在学校读书。", "妈妈晚上很累。", "右手食指伸直，位于胸前。", "the left hand is at the chin"] * 3
    write_small_mt5(folder, texts, d_model=32, heads=2, d_kv=16, d_ff=48, vocab_size=600)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith((".o.weight", ".wo.weight")):
            weight *= 3 * weight.shape[1] ** -0.5 / weight.std()
    weights["lm_head.weight"] *= 0.6 / weights["lm_head.weight"].std()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def two_runs(corpus, small_mt5_folder, tmp_path_factory) -> tuple[Path, Path]:
    """Folders as two runs leave them, of a model with poses alone and of one with descriptions; read only.

    The models are random, their sentences made up: the second run has learnt more.
    """
    import json

    import torch

    import utils
    from config import DATASETS, ModelConfig
    from datasets import S2T_Dataset
    from models import Uni_Sign
    from network.mt5 import load_mt5
    from network.vocabulary import Tokenizer
    from text_fusion_modules import TextEncoder
    from training.tracking import Tracker
    from training.weight_files import save_weights

    folders = []
    for name in ("pose", "fusion"):
        described = name == "fusion"
        folder = tmp_path_factory.mktemp("runs") / name
        folder.mkdir()
        flags = f"--root {corpus} --hidden_dim 16 --dtype fp32 --num_beams 2 --max_new_tokens 12 --output_dir {folder}"
        args = utils.parse_args([*flags.split(), *(["--use_descriptions"] if described else [])])
        spec = DATASETS["CSL_Daily"].under(corpus)
        test = S2T_Dataset(spec, "test", use_descriptions=described)
        tracker = Tracker(folder, vars(args))
        tracker.start(spec, {"test": test.fingerprint}, 0)
        for step in range(1, 61):
            tracker.step({"step": step, "epoch": (step - 1) // 20, "loss": 6 / step**0.3, "lr": 1e-3 / step})
        for epoch, bleu in enumerate([1.0, 3.0, 2.0 + described]):
            line = {"epoch": epoch, "loss": 4 - epoch, "nll": 3 - epoch, "waited": 1.0, "lr": 1e-3, "dev_bleu4": bleu}
            line |= {"dev_loss": 4 - epoch / 2, "dev_nll": 3 - epoch / 2, "seconds": 20.0}
            tracker.epoch(20 * epoch + 20, line)
        lines = []
        for i, clip in enumerate(test.names):
            right = test.target(clip)
            lines.append(
                {"name": clip, "reference": right, "hypothesis": right if i % (3 - described) == 0 else "我很累。"}
            )
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / "test_predictions.jsonl").write_text(content, encoding="utf-8")
        torch.manual_seed(0)
        config = ModelConfig(hidden_dim=16, use_descriptions=described)
        texts = TextEncoder(small_mt5_folder) if described else None
        model = Uni_Sign(config, load_mt5(small_mt5_folder), Tokenizer(small_mt5_folder), texts)
        best = folder / "best_checkpoint.pth"
        save_weights(best, model.state_dict(), config, mt5_path=str(small_mt5_folder), max_length=256)
        folders.append(folder)
    return folders[0], folders[1]


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A real browser, for pages."""
    from tests.helpers.browser import Browser

    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()
