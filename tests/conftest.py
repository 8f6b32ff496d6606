"""What several test files share: reference data beside the checkout, and small models."""

import os
from pathlib import Path

import pytest

# Small tensors gain nothing from threads, and two test runs on one machine would wait for each other's.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
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
    """A sample corpus of a few clips, with its small mT5; read only."""
    from sample_data import write_corpus

    folder = tmp_path_factory.mktemp("corpus") / "sample"
    write_corpus(folder, {"train": 24, "dev": 9, "test": 7})
    return folder


@pytest.fixture(scope="session")
def reference_model(shared_reference):
    """Make the model that the recorded vectors come from: `reference_model(config)` is a new one, in evaluation."""
    from safetensors.torch import load_file

    from models import Uni_Sign, load_mt5
    from tokenizer import Tokenizer

    weights = load_file(shared_reference / "tiny_pose.safetensors")
    with_rgb = weights | load_file(shared_reference / "tiny_rgb_extra.safetensors")
    folder = shared_reference / "tiny_mt5"

    def make(config):
        model = Uni_Sign(config, load_mt5(folder), Tokenizer(folder))
        model.load_state_dict(with_rgb if config.rgb_support else weights, strict=True)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def write_video():
    """Encode pictures: `write_video(path, [(height, width, 3) uint8, ...])`."""
    av = pytest.importorskip("av", reason="pip install -r requirements-rgb.txt")
    pytest.importorskip("PIL", reason="pip install -r requirements-rgb.txt")

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

    from small_mt5 import write_small_mt5

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
