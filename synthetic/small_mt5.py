"""Make a small mT5 with random weights and its own tokenizer, in a folder like google/mt5-base's.

It is for trying the training code when the real weights (2.3 GB) are not available. Nothing is pre-trained: everything
such a model generates was learnt in fine-tuning.

    python -m tools.small_mt5 --out DIR --texts FILE [FILE ...]

FILE is a label file (its sentences and glosses are used), a folder of description files, or a .txt file with one text
per line.
"""

from __future__ import annotations

import io
import json
import math
import string
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import sentencepiece
from safetensors.numpy import save

from clips.labels import read_labels, target
from network.vocabulary import TOKENIZER_CONFIG
from system.disk import to_json, write_bytes, write_text
from temporal_alignment import read_descriptions

MADE_BY = "small_mt5.py"  # marker in config.json, so that a real mT5 is never overwritten

# Characters that always get a piece, so that English text needs no byte pieces. The tokenizer converts full-width
# punctuation to these, except the full stop and the enumeration comma.
_REQUIRED = string.ascii_letters + string.digits + ",.!?:;'\"()-/%&+" + "。、“”"
# Words of the prompt, one piece each, so that it has about as many tokens as with mT5's own tokenizer.
_PROMPT_WORDS = ["▁Translate", "▁sign", "▁language", "▁video", "▁to", "▁Chinese", "▁English"]
_BUCKETS = 32  # relative position buckets


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2000) -> bytes:
    """Train a unigram sentencepiece model with mT5's special ids (pad 0, </s> 1, <unk> 2) and byte pieces.

    Returns the content of `spiece.model`, the same for the same texts; few of them give fewer pieces. ValueError if
    there is no text, or the texts have more characters than `vocab_size` allows.
    """
    lines = [text for text in texts if text.strip()]
    if not lines:
        raise ValueError(
            "there is no text to make a tokenizer from. Give label files, description folders or .txt files."
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            normalization_rule_name="nmt_nfkc",
            byte_fallback=True,
            character_coverage=1.0,
            required_chars=_REQUIRED,
            user_defined_symbols=_PROMPT_WORDS,
            # Chinese has no spaces, and a small corpus is repetitive: without a limit half a sentence becomes one
            # piece, and new sentences need pieces never seen in training. Most Chinese words are that short.
            max_sentencepiece_length=2,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"--vocab_size {vocab_size}: sentencepiece refuses: {error}. Try a larger one.") from None
    return model.getvalue()


def random_weights(
    rng: np.random.Generator, *, vocab_size: int, d_model: int, layers: int, heads: int, d_kv: int, d_ff: int
) -> dict[str, np.ndarray]:
    """Draw random parameters of an `MT5ForConditionalGeneration`, with their names in a checkpoint.

    Scales are those of transformers' initialisation, with two exceptions. There an untied `lm_head` has standard
    deviation 1, which gives logits of size sqrt(d_model) and an initial loss of about 50; with 0.02 the initial loss is
    about ln(vocab_size). And the residual branches of self-attention and feed-forward start at a tenth, since untrained
    attention averages all frames and would drown each frame's content. Cross-attention starts at full scale; otherwise
    the decoder memorises sentences before it has learnt to attend to the frames.

    Returns:
        name -> float32 array; `shared.weight` and `lm_head.weight` are different tensors.
    """
    inner = heads * d_kv
    branch = 0.1

    def normal(rows: int, columns: int, std: float) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * std).astype(np.float32)

    def attention(prefix: str, share: float) -> dict[str, np.ndarray]:
        return {
            # mT5 does not divide attention scores by sqrt(d_kv), so the query weights are smaller instead.
            f"{prefix}.q.weight": normal(inner, d_model, (d_model * d_kv) ** -0.5),
            f"{prefix}.k.weight": normal(inner, d_model, d_model**-0.5),
            f"{prefix}.v.weight": normal(inner, d_model, d_model**-0.5),
            f"{prefix}.o.weight": normal(d_model, inner, share * inner**-0.5),
        }

    weights = {"shared.weight": normal(vocab_size, d_model, 1.0), "lm_head.weight": normal(vocab_size, d_model, 0.02)}
    for stack, attentions in (("encoder", ("SelfAttention",)), ("decoder", ("SelfAttention", "EncDecAttention"))):
        for block in range(layers):
            layer = f"{stack}.block.{block}.layer"
            for i, kind in enumerate(attentions):
                weights |= attention(f"{layer}.{i}.{kind}", branch if kind == "SelfAttention" else 1.0)
            feed_forward = f"{layer}.{len(attentions)}.DenseReluDense"
            weights[f"{feed_forward}.wi_0.weight"] = normal(d_ff, d_model, d_model**-0.5)
            weights[f"{feed_forward}.wi_1.weight"] = normal(d_ff, d_model, d_model**-0.5)
            weights[f"{feed_forward}.wo.weight"] = normal(d_model, d_ff, branch * d_ff**-0.5)
            for i in range(len(attentions) + 1):
                weights[f"{layer}.{i}.layer_norm.weight"] = np.ones(d_model, np.float32)
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        weights[bias] = normal(_BUCKETS, heads, d_model**-0.5)
        weights[f"{stack}.final_layer_norm.weight"] = np.ones(d_model, np.float32)
    return weights


def write_small_mt5(
    folder: str | Path,
    texts: Iterable[str],
    *,
    d_model: int = 128,
    layers: int = 2,
    heads: int = 4,
    d_kv: int = 32,
    d_ff: int = 256,
    vocab_size: int = 2000,
    seed: int = 0,
) -> int:
    """Write `spiece.model`, `tokenizer_config.json`, `config.json` and `model.safetensors`.

    The encoder has as many layers as the decoder; the tokenizer is trained on the texts. Returns the number of pieces.
    The model's vocabulary is rounded up to a multiple of 64; mt5-base's is larger than its tokenizer's, too. ValueError
    if the folder holds another model, or no tokenizer can be trained on the texts.
    """
    folder = Path(folder)
    refuse_other_models(folder)
    spiece = train_tokenizer(texts, vocab_size)
    pieces = len(sentencepiece.SentencePieceProcessor(model_proto=spiece))
    sizes = {"d_model": d_model, "d_kv": d_kv, "d_ff": d_ff}
    rows = math.ceil(pieces / 64) * 64
    config = {
        "architectures": ["MT5ForConditionalGeneration"],
        "model_type": "mt5",
        "made_by": MADE_BY,
        **sizes,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "vocab_size": rows,
        "relative_attention_num_buckets": _BUCKETS,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "tokenizer_class": "T5Tokenizer",
        "dtype": "float32",
    }
    weights = random_weights(np.random.default_rng(seed), vocab_size=rows, layers=layers, heads=heads, **sizes)
    write_bytes(folder / "spiece.model", spiece)
    write_text(folder / "tokenizer_config.json", to_json(TOKENIZER_CONFIG, indent=2) + "\n")
    write_text(folder / "config.json", to_json(config, indent=2) + "\n")
    write_bytes(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    return pieces


def refuse_other_models(folder: str | Path) -> None:
    """Raise ValueError unless a folder is missing, empty, or holds a small mT5, so that it may be written."""
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or config.get("made_by") != MADE_BY:
        raise ValueError(f"{folder} holds something else than a small mT5. Name an empty folder; nothing was written.")


def read_texts(source: str | Path) -> Iterator[str]:
    """Yield sentences and glosses of a label file, texts of a folder of descriptions, or lines of a .txt file."""
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"--texts: {path} does not exist. Name a label file, a description folder or a .txt file."
        )
    if path.is_dir():
        for file in sorted(path.rglob("*.json")):
            yield from read_descriptions(file).texts.values()
    elif path.suffix == ".txt":
        yield from path.read_text(encoding="utf-8").splitlines()
    else:
        for label in read_labels(path).values():
            yield from filter(None, (target(label, "SLT"), target(label, "CSLR")))
