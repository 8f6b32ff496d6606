"""Export a trained model to a self-contained folder, with these files, which other programs can read, too:

    README.md           how to use it
    model.json          config, and origin of the model
    model.safetensors   all weights except those of mT5 and the text encoder
    mt5/                an mT5 that transformers loads: config.json, model.safetensors, spiece.model
    text_encoder/       with descriptions: a text encoder, likewise
    code/               copies of this project's modules for translation, without training

Shapes: V tokens of a trimmed vocabulary, D mT5's d_model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from modulefinder import ModuleFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import MODEL_JSON
from system.disk import new_folder, to_json, write_text, write_whole
from utils import Parser, require_paths, run

if TYPE_CHECKING:
    import torch

    from config import ModelConfig
    from text_fusion_modules import TextEncoder

HERE = Path(__file__).resolve().parents[1]
EXAMPLES = """examples:
  python -m tools.export --checkpoint output_multimodal/best_checkpoint.pth --out my_model
  python inference.py clip.pose --checkpoint my_model
  python my_model/code/inference.py clip.pose --checkpoint my_model     the same, without this repository
  python -m tools.export --checkpoint best.pth --out small --texts labels.train

With --texts the model keeps the tokens that these texts need, and ASCII, punctuation and bytes; what it writes is what
the full one would write if it were held to these tokens.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, before any slow import."""
    parser = Parser(prog="python -m tools.export", description="Take a trained model elsewhere.", epilog=EXAMPLES)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FILE", help="best_checkpoint.pth of a run, or weights of Uni-Sign")
    add("--out", required=True, metavar="DIR", help="the folder to write, a new one")
    texts = "trim the vocabulary to these: label files, description folders, .txt; default: no trimming"
    add("--texts", nargs="+", default=[], metavar="FILE", help=texts)
    add("--mt5_path", default="", metavar="DIR", help="default: the mT5 of training")
    add("--text_encoder", default="", metavar="DIR", help="default: that of training")
    add("--language", default="", help="of the prompt, for weights without a config; default: Chinese")
    return parser.parse_args(argv)


@dataclass
class Model:
    """A model to export."""

    weights: dict[str, torch.Tensor]
    config: ModelConfig
    facts: dict[str, Any]  # what else model.json says of it
    kept: torch.Tensor | None  # (V,), ids of the tokens it keeps; None for all
    mt5_folder: Path  # folder of its mT5, with the full vocabulary
    frozen: TextEncoder | None  # the text encoder, if it is not among the weights


def read(args: argparse.Namespace) -> Model:
    """Read the model of the command line; ValueError or FileNotFoundError if it is not that of its training."""
    from training.weights import Checkpoint, differing_files, files_beside
    from translator import frozen_encoder

    checkpoint = Checkpoint.read(args.checkpoint, "--checkpoint")
    config = checkpoint.whole_config(text_encoder=args.text_encoder, language=args.language)
    folder = Path(args.mt5_path or checkpoint.mt5_folder())
    texts = frozen_encoder(checkpoint, config, folder)
    files, frozen = files_beside(checkpoint.shell(config, folder, texts)), None
    if texts:
        frozen = texts.load()
        files |= texts.files()
    if others := differing_files(checkpoint.facts, files):  # refused: the folder keeps no record of them
        raise ValueError(f"{checkpoint.named} {others}")
    facts = {"made_from": Path(args.checkpoint).name, "max_length": checkpoint.fact("max_length", 256)}
    for name in ("epoch", "score"):
        value = checkpoint.facts.get(name)
        facts[name] = value if isinstance(value, int | float) else None
    return Model(checkpoint.weights, config, facts, checkpoint.kept, folder, frozen)


def trim(model: Model, sources: Sequence[str]) -> None:
    """Trim the model to the tokens that texts need."""
    from network.vocabulary import Tokenizer, choose, matrices
    from synthetic.small_mt5 import read_texts

    if model.kept is not None:
        raise ValueError("--texts: this model's vocabulary is trimmed already; leave the flag out.")
    texts = [text for source in sources for text in read_texts(source)]
    model.kept = choose(Tokenizer(model.mt5_folder), [model.config.prompt, *texts])
    model.weights |= {name: model.weights[name][model.kept] for name in matrices(model.weights, model.config)}


def write_folder(model: Model, out: Path) -> None:
    """Write a self-contained folder atomically."""
    from network.vocabulary import KEPT_TOKENS, Tokenizer, folder_config
    from training.weight_files import ENCODER_PREFIX, save_safetensors

    mt5, encoder = (
        {name.removeprefix(prefix): value for name, value in model.weights.items() if name.startswith(prefix)}
        for prefix in ("mt5_model.", ENCODER_PREFIX)
    )
    apart = ("mt5_model.", ENCODER_PREFIX, KEPT_TOKENS)
    rest = {name: value for name, value in model.weights.items() if not name.startswith(apart)}
    kind = ("frozen" if model.frozen else "trained") if model.config.use_descriptions else ""
    encoder_folder = Path(model.config.text_encoder or model.mt5_folder)
    if model.frozen:
        encoder = model.frozen.encoder.state_dict()
    described = folder_config(encoder_folder)
    if encoder and described.get("is_encoder_decoder") and described.get("model_type") != "mt5":
        raise ValueError(
            f"--checkpoint: the text encoder {encoder_folder} is half of an encoder-decoder that is not mT5, and "
            "cannot stand alone. Take the checkpoint and that folder to where they are needed."
        )
    facts = {
        "config": {**asdict(model.config), "text_encoder": ""},
        "text_encoder": kind,
        "kept_tokens": None if model.kept is None else model.kept.tolist(),
        **model.facts,
    }
    with new_folder(out) as folder:
        write_text(folder / MODEL_JSON, to_json(facts) + "\n")
        save_safetensors(folder / "model.safetensors", rest)
        write_mt5(folder / "mt5", mt5, model.mt5_folder, Tokenizer(model.mt5_folder, model.kept))
        if encoder:
            is_mt5s = kind == "trained" and not model.config.text_encoder
            write_encoder(folder / "text_encoder", encoder, encoder_folder, model.kept if is_mt5s else None)
        write_code(folder / "code", model.config.rgb_support)
        write_text(folder / "README.md", README)


def write_mt5(folder: Path, weights: dict[str, torch.Tensor], source: Path, tokenizer: Any) -> None:
    """Write an mT5 folder that transformers can load."""
    from network.vocabulary import TOKENIZER_CONFIG
    from training.weight_files import save_safetensors

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    # mT5's input embeddings and output layer are not tied; weights are stored in fp32.
    config |= {"vocab_size": len(weights["shared.weight"]), "tie_word_embeddings": False, "dtype": "float32"}
    config.pop("torch_dtype", None)
    folder.mkdir()
    write_text(folder / "config.json", to_json(config, indent=2) + "\n")
    write_text(folder / "tokenizer_config.json", to_json(TOKENIZER_CONFIG, indent=2) + "\n")
    write_whole(folder / "spiece.model", lambda file: file.write(tokenizer.model))
    save_safetensors(folder / "model.safetensors", weights)


def write_encoder(folder: Path, weights: dict[str, torch.Tensor], source: Path, kept: torch.Tensor | None) -> None:
    """Write a text encoder: mT5's, or another one with its configuration and tokenizer files."""
    from network.vocabulary import Tokenizer, folder_config
    from training.weight_files import save_safetensors

    if folder_config(source).get("model_type") == "mt5":
        write_mt5(folder, weights, source, Tokenizer(source, kept))
        return
    folder.mkdir()
    for path in sorted(source.iterdir()):
        if path.suffix in (".json", ".txt", ".model") and not path.name.endswith(".index.json"):
            shutil.copy(path, folder / path.name)
    save_safetensors(folder / "model.safetensors", weights)


def write_code(folder: Path, reads_videos: bool) -> None:
    """Copy the modules that `inference.py` needs, in their folders, and list its packages in requirements.txt."""
    finder = ModuleFinder([str(HERE)])  # it finds what is imported at the top and in functions
    finder.run_script(str(HERE / "inference.py"))
    for file in filter(None, (getattr(module, "__file__", None) for module in finder.modules.values())):
        copy = folder / Path(file).relative_to(HERE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    wanted = ("torch", "transformers", "sentencepiece", "safetensors", "numpy", "tqdm")
    lines = (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("#")[0].strip() for line in lines if line.partition("==")[0] in wanted]
    if reads_videos:
        project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        pins += project["optional-dependencies"]["rgb"]
    write_text(folder / "requirements.txt", "".join(f"{pin}\n" for pin in pins))


README = """# A sign language translation model

It was exported by `tools/export.py` of uni-sign-stage3. It stands alone: the modules that translate lie in `code`.

    pip install -r code/requirements.txt
    python code/inference.py CLIPS --checkpoint .

CLIPS is a `.pkl`, `.npz` or `.pose` file of 133 COCO-WholeBody keypoints per frame, or a folder of them (where
`model.json` has `"rgb_support": true`, with the video beside each file, under the same name);
`python code/inference.py --help` has more. From Python, with `code` on the path:

    from translator import Translator
    print(Translator.from_checkpoint(".")("clip.npz"))

`mt5` is a plain mT5: `transformers.MT5ForConditionalGeneration.from_pretrained("mt5")`. It expects the embeddings that
the rest of the model makes of poses. `model.json` says how the model was made; where `kept_tokens` is a list, it has
these tokens of mT5's vocabulary alone, numbered anew, and `spiece.model` is its tokenizer.

The weights derive from those they were started from and from the data they were trained on: their terms hold here too.
"""


def main(args: argparse.Namespace) -> None:
    """Export the model."""
    require_paths(**{flag: getattr(args, flag) for flag in ("checkpoint", "mt5_path", "text_encoder")})
    require_paths(texts=next((path for path in args.texts if not Path(path).exists()), ""))
    out = Path(args.out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"--out: {out} exists. Remove it, or give another name.")
    if not out.name:  # as that of "."; the new folder takes the place of this one
        out = out.absolute()
    model = read(args)
    if args.texts:
        trim(model, args.texts)
    write_folder(model, out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    tokens = len(model.weights["mt5_model.shared.weight"])
    sys.stdout.write(f"{out}: {size / 1e6:.1f} MB, {tokens} tokens.\n")
    sys.stdout.write(f"try: python inference.py CLIP --checkpoint {out}\n")


if __name__ == "__main__":
    run(lambda: main(parse_args()))
