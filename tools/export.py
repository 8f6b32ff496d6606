"""Export a trained model to a self-contained folder, or to Uni-Sign's format.

The folder holds these files, which other programs can read, too:

    README.md           how to use it
    model.json          config, and origin of the model
    model.safetensors   all weights except those of mT5 and the text encoder
    mt5/                an mT5 that transformers loads: config.json, model.safetensors, spiece.model
    text_encoder/       with descriptions: a text encoder, likewise
    code/               copies of this project's modules for translation, without training

Uni-Sign's format is `{"model": state_dict}` with its names, in its order.

Shapes: V tokens of a trimmed vocabulary, D mT5's d_model.
"""

from __future__ import annotations

import argparse
import ast
import json
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import MODEL_JSON
from system.disk import new_folder, require_room, to_json, write_text, write_whole
from utils import Parser, require_paths, run

if TYPE_CHECKING:
    import torch

    from config import ModelConfig

HERE = Path(__file__).resolve().parents[1]
FORMATS = ("folder", "uni_sign")
VOCABULARIES = ("as_it_is", "full", "trimmed")
EXAMPLES = """examples:
  python -m tools.export --checkpoint output_multimodal/best_checkpoint.pth --to folder --out my_model
  python inference.py clip.pose --checkpoint my_model
  python my_model/code/inference.py clip.pose --checkpoint my_model     the same, without this repository
  python -m tools.export --checkpoint output_baseline/best_checkpoint.pth --to uni_sign --out uni_sign.pth
  python -m tools.export --checkpoint best.pth --to folder --out small --vocabulary trimmed --texts labels.train

Vocabularies: `trimmed` leaves the tokens that --texts need, and ASCII, punctuation and bytes; what a trimmed model
writes is what the full one would write if it were held to these tokens. `full` gives a model that was trained with
--trim_vocab all tokens of mT5 again: the rows that it has not trained come from --base, or else from --mt5_path.
"""


def get_args_parser() -> Parser:
    """Build the argument parser."""
    parser = Parser(
        prog="python -m tools.export",
        description="Take a trained model elsewhere.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FILE", help="best_checkpoint.pth of a run, or weights of Uni-Sign")
    add("--to", required=True, choices=FORMATS, help="a folder that stands alone, or a .pth file for Uni-Sign's code")
    add("--out", required=True, metavar="PATH", help="the folder or file to write")
    add("--overwrite", action="store_true", help="replace what an earlier export has written there")
    add("--vocabulary", default="as_it_is", choices=VOCABULARIES, help="default: as_it_is")
    add("--texts", nargs="+", default=[], metavar="FILE", help="for trimmed: label files, description folders, .txt")
    add("--base", default="", metavar="FILE", help="for full: the weights that the training started from")
    add("--drop_descriptions", action="store_true", help="for uni_sign: leave the text branch out; sentences change")
    add("--mt5_path", default="", metavar="DIR", help="default: the mT5 of training")
    add("--text_encoder", default="", metavar="DIR", help="default: that of training")
    add("--language", default="", help="of the prompt, for weights without a config; default: Chinese")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and reject invalid combinations, before any slow import."""
    parser = get_args_parser()
    args = parser.parse_args(argv)
    parser.refuse(_faults(args))
    return args


def _faults(args: argparse.Namespace) -> Iterator[str]:
    if args.to == "uni_sign" and not args.out.endswith(".pth"):
        yield f"--out {args.out}: Uni-Sign's format is a file; let it end in .pth."
    if args.vocabulary == "trimmed" and not args.texts:
        yield "--vocabulary trimmed needs --texts, what the model must still read and write."
    if args.texts and args.vocabulary != "trimmed":
        yield "--texts is for --vocabulary trimmed."
    if args.base and args.vocabulary != "full":
        yield "--base is for --vocabulary full."
    if args.drop_descriptions and args.to != "uni_sign":
        yield "--drop_descriptions is for --to uni_sign."


@dataclass
class Model:
    """A model to export.

    Attributes:
        weights: its state dict.
        config: its sizes and switches.
        facts: the checkpoint's other entries.
        kept: (V,), ids of the tokens it keeps; None for all.
        mt5_folder: folder of its mT5, with the full vocabulary.
    """

    weights: dict[str, torch.Tensor]
    config: ModelConfig
    facts: dict[str, Any]
    kept: torch.Tensor | None
    mt5_folder: Path


def read(args: argparse.Namespace) -> Model:
    """Read the model of the command line.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        ValueError: the checkpoint is not a complete model.
    """
    from training.weight_files import read_weights
    from training.weights import kept_tokens
    from translator import whole_config

    weights, facts = read_weights(args.checkpoint, "--checkpoint")
    given = {"text_encoder": args.text_encoder, "language": args.language}
    config = whole_config(args.checkpoint, facts, weights, **given)
    folder = Path(args.mt5_path or facts.get("mt5_path", ""))
    if not (folder / "config.json").is_file() or not (folder / "spiece.model").is_file():
        raise FileNotFoundError(
            f"--checkpoint: {args.checkpoint} needs the config.json and spiece.model of its mT5, and {folder} has them "
            "not. Name their folder with --mt5_path."
        )
    return Model(weights, config, facts, kept_tokens(weights, args.checkpoint, "--checkpoint"), folder)


# -- vocabulary ------------------------------------------------------------------------------------------------------


def with_vocabulary(model: Model, args: argparse.Namespace) -> Model:
    """Convert the model to the vocabulary of the command line."""
    if args.vocabulary == "trimmed":
        return trimmed(model, args.texts)
    if args.vocabulary == "full":
        return filled_up(model, args.base)
    return model


def trimmed(model: Model, sources: Sequence[str]) -> Model:
    """Trim the model to the tokens that texts need."""
    from network.vocabulary import KEPT_TOKENS, Tokenizer, choose, matrices
    from synthetic.small_mt5 import read_texts

    if model.kept is not None:
        raise ValueError("--vocabulary trimmed: this model's vocabulary is trimmed already; leave the flag out.")
    full = Tokenizer(model.mt5_folder)
    texts = [text for source in sources for text in read_texts(source, glosses=True)]
    kept = choose(full, [model.config.prompt, *texts])
    rows = {name: model.weights[name][kept] for name in matrices(model.weights, model.config)}
    return replace(model, weights={**model.weights, **rows, KEPT_TOKENS: kept}, kept=kept)


def filled_up(model: Model, base: str) -> Model:
    """Restore the full vocabulary: insert the trained rows into the matrices of a full model."""
    from network.mt5 import load_mt5
    from network.vocabulary import KEPT_TOKENS, matrices, move_rows
    from training.weight_files import ENCODER_PREFIX, read_weights, repeated

    if model.kept is None:
        return model
    if base:
        whole = read_weights(base, "--base")[0]
    else:
        whole = {f"mt5_model.{name}": value for name, value in load_mt5(model.mt5_folder).state_dict().items()}
    filled: dict[str, torch.Tensor] = {}
    for name in matrices(model.weights, model.config):
        source = repeated(name)
        of_mt5 = source.replace(ENCODER_PREFIX, "mt5_model.")  # the text encoder was also initialised from mT5
        rows = whole.get(source, whole.get(of_mt5))
        if rows is None or rows.shape[1:] != model.weights[name].shape[1:] or len(rows) <= model.kept.max():
            where = f"--base: {base}" if base else f"--mt5_path: {model.mt5_folder}"
            raise ValueError(f"{where}: has no {source} of all tokens that fits. Name other weights with --base.")
        if source not in filled:
            filled[source] = move_rows(model.weights[name], model.kept, rows, None)
        filled[name] = filled[source]
    weights = {name: value for name, value in model.weights.items() if name != KEPT_TOKENS}
    return replace(model, weights=weights | filled, kept=None)


# -- the two formats -------------------------------------------------------------------------------------------------


def write_uni_sign(model: Model, out: Path, drop_descriptions: bool) -> None:
    """Write Uni-Sign's format atomically.

    Raises:
        ValueError: the model has a text branch and `drop_descriptions` is False.
    """
    import torch

    from network.vocabulary import KEPT_TOKENS
    from training.weight_files import repeated
    from training.weights import FUSION_PREFIXES, TEXT_ENCODER_PREFIX

    branch = (*FUSION_PREFIXES, TEXT_ENCODER_PREFIX)
    if any(name.startswith(branch) for name in model.weights) and not drop_descriptions:
        raise ValueError(
            "--to uni_sign: Uni-Sign has no place for descriptions. Add --drop_descriptions to leave the text branch "
            "out (this model's sentences will be others, it was trained with it), or export --to folder."
        )
    own = {n: v for n, v in model.weights.items() if not n.startswith(branch) and n != KEPT_TOKENS}
    weights = {name: own[repeated(name)] for name in own}
    require_room(out, n_bytes(weights))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, partial(torch.save, {"model": weights}))


def n_bytes(weights: Mapping[str, torch.Tensor]) -> int:
    """Return the storage size of weights in bytes; shared weights count once."""
    from training.weight_files import repeated

    return sum(value.nbytes for name, value in weights.items() if repeated(name) == name)


def divided(weights: Mapping[str, torch.Tensor]) -> tuple[dict, dict, dict]:
    """Split weights into those of mT5, those of the text encoder (both without prefix), and the rest."""
    from network.vocabulary import KEPT_TOKENS
    from training.weight_files import ENCODER_PREFIX

    parts: dict[str, dict[str, torch.Tensor]] = {"mt5_model.": {}, ENCODER_PREFIX: {}, "": {}}
    for name, value in weights.items():
        prefix = next(prefix for prefix in parts if name.startswith(prefix))
        if name != KEPT_TOKENS:
            parts[prefix][name.removeprefix(prefix)] = value
    return parts["mt5_model."], parts[ENCODER_PREFIX], parts[""]


def write_folder(model: Model, out: Path, made_from: str) -> None:
    """Write a self-contained folder atomically."""
    from network.vocabulary import Tokenizer, folder_config
    from training.weight_files import save_safetensors

    mt5, encoder, rest = divided(model.weights)
    kind = ("trained" if encoder else "frozen") if model.config.use_descriptions else ""
    encoder_folder = Path(model.config.text_encoder or model.mt5_folder)
    if kind == "frozen":
        encoder = frozen_encoder(encoder_folder, model.config.text_max_tokens)
    described = folder_config(encoder_folder)
    if encoder and described.get("is_encoder_decoder") and described.get("model_type") != "mt5":
        raise ValueError(
            f"--to folder: the text encoder {encoder_folder} is half of an encoder-decoder that is not mT5, and cannot "
            "stand alone. Take the checkpoint and that folder to where they are needed."
        )
    require_room(out, sum(map(n_bytes, (mt5, encoder, rest))) + (1 << 22))
    facts = {
        "config": {**asdict(model.config), "text_encoder": ""},
        "text_encoder": kind,
        "max_length": model.facts.get("max_length", 256),
        "kept_tokens": None if model.kept is None else model.kept.tolist(),
        "made_from": made_from,
        "epoch": model.facts.get("epoch"),
        "score": model.facts.get("score"),
    }
    with new_folder(out) as folder:
        write_text(folder / MODEL_JSON, to_json(facts) + "\n")
        save_safetensors(folder / "model.safetensors", rest)
        write_mt5(folder / "mt5", mt5, model.mt5_folder, Tokenizer(model.mt5_folder, model.kept))
        if encoder:
            own = kind == "trained" and not model.config.text_encoder
            write_encoder(folder / "text_encoder", encoder, encoder_folder, model.kept if own else None)
        write_code(folder / "code", model.config.rgb_support)
        write_text(folder / "README.md", README)


def frozen_encoder(folder: Path, max_tokens: int) -> dict[str, torch.Tensor]:
    """Return the weights of the frozen text encoder with which a model was trained."""
    from text_fusion_modules import TextEncoder

    return TextEncoder(folder, max_tokens).encoder.state_dict()


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
    for path in sorted({source_of(module) for module in needed_modules("inference")}):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / path, folder / path)
    wanted = ("torch", "transformers", "sentencepiece", "safetensors", "numpy", "tqdm")
    lines = (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("#")[0].strip() for line in lines if line.partition("==")[0] in wanted]
    if reads_videos:
        project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        pins += project["optional-dependencies"]["rgb"]
    write_text(folder / "requirements.txt", "".join(f"{pin}\n" for pin in pins))


def source_of(module: str) -> Path:
    """Return where a module or package of this project would lie, relative to the checkout."""
    path = Path(*module.split("."))
    return path / "__init__.py" if (HERE / path / "__init__.py").is_file() else path.with_suffix(".py")


def needed_modules(module: str) -> set[str]:
    """Return the project's modules that a module imports, directly or indirectly, with their packages and itself."""
    needed: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name and name not in needed and (HERE / source_of(name)).is_file():
            needed.add(name)
            waiting += [name.rpartition(".")[0], *imported(HERE / source_of(name))]
    return needed


def imported(path: Path) -> Iterator[str]:
    """Yield the names of modules that a file imports, at the top or in functions; some may be names in a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


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


def check_target(out: Path, to: str, overwrite: bool) -> None:
    """Refuse to replace anything except an earlier export with --overwrite.

    Raises:
        ValueError: the path exists and must not be replaced.
    """
    if not out.exists() or (out.is_dir() and to == "folder" and not any(out.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"--out: {out} exists. Give another name, or --overwrite to replace it.")
    if to == "folder" and not (out / MODEL_JSON).is_file():
        raise ValueError(
            f"--out: {out} is no folder that tools/export.py wrote; it is not replaced. Give another name."
        )
    if to == "uni_sign" and out.is_dir():
        raise ValueError(f"--out: {out} is a folder. Give the name of a file.")


def main(args: argparse.Namespace) -> None:
    """Export the model."""
    require_paths(**{flag: getattr(args, flag) for flag in ("checkpoint", "base", "mt5_path", "text_encoder")})
    require_paths(texts=next((path for path in args.texts if not Path(path).exists()), ""))
    out = Path(args.out)
    check_target(out, args.to, args.overwrite)
    model = with_vocabulary(read(args), args)
    if args.to == "folder":
        write_folder(model, out, Path(args.checkpoint).name)
    else:
        write_uni_sign(model, out, args.drop_descriptions)
    files = [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else [out]
    size = sum(path.stat().st_size for path in files)
    tokens = len(model.weights["mt5_model.shared.weight"])
    sys.stdout.write(f"{out}: {size / 1e6:.1f} MB, {tokens} tokens.\n")
    if args.to == "folder":
        sys.stdout.write(f"try: python inference.py CLIP --checkpoint {out}\n")
    elif model.kept is not None:
        sys.stdout.write(
            "its mT5 in Uni-Sign must be the one that --to folder writes into mt5/: it has these tokens.\n"
        )


if __name__ == "__main__":
    run(lambda: main(parse_args()))
