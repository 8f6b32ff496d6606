"""Synthetic sample corpus, so that all training code runs offline: an invented sign language and a small mT5.

    python -m tools.sample_data --out sample          # seconds; it prints the command of a small training

The rules of the generator, in full:

- Language. 60 signs (`LEXICON`). A visible form is a handshape, a place on the signer's body, a movement, a direction
  of the fingers, and what the left hand does (rests, mirrors the right one, lies flat as a base). The forms were drawn
  at random; two forms differ in at least two of handshape, place and movement. They are not from any real sign
  language.
- Minimal pairs. Six pairs (12 of the 60 signs, see `minimal_pairs`) have the same visible form and differ only in a
  detail that 2-D keypoints cannot show: the palm of a flat hand seen edge-on turned up or down, the finger pointing at
  the viewer or back at the signer, touching the body or not, where the eyes look, whether the cheeks are puffed. Every
  sign has such a detail. It never affects the keypoints; only the descriptions mention it. Both signs of a pair have
  the same role in the sentence, so that the other signs do not give them away.
- Sentences. 3 to 7 signs in the order time, place, subject, object, verb, modal, question. The text has Chinese order:
  subject, time, modal, place, verb, object (`sentence_text`). Drawn at random; only food is eaten, drinks are drunk,
  books and letters are read and written.
- Splits. No sentence occurs in two splits. Every dev and test sentence is thus an unseen combination of signs, which at
  the default size all occur in train. In train each sentence is signed by two signers, in dev and test by one.
- Signers. Ten, who differ in proportions, position, tempo, size of movements and laxness of the hands. Train has 0-5,
  dev 4-7, test 4, 5, 8, 9: half of the signers of dev and of test do not occur in train.
- Poses. 20 to 60 frames. The hands go from rest through the signs and back; each change is smooth, and the handshape
  changes before the hand arrives (coarticulation). Fingers are articulated in 3-D and projected, elbows follow from the
  lengths of the arms. Then noise is added, body wrists that differ slightly from hand wrists, scores that fall with
  speed and at rest, and in a quarter of the clips a stretch with one hand lost (low scores, scattered points).
- Descriptions. Chinese; every third to sixth frame, starting anywhere. They mention handshape, fingers, place,
  movement, left hand and detail, never the meaning. One part in ten is omitted, but never the handshape. Between signs
  only the movement to the next place is described. One clip in ten has no file; in one of twenty, half of the entries
  are API errors or blank. So about seven in ten occurrences of a paired sign can be distinguished from their twin.

The tokenizer of the small mT5 is trained on the train split only. Nothing here was tuned for high scores. Scores on
this corpus show whether the code works, not how good a method is on a real sign language.
"""

from __future__ import annotations

import gzip
import itertools
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import config
from synthetic.signer import FINGERS, HANDSHAPES, MOVEMENTS, PLACES, Form, Recording, Signer, record
from synthetic.small_mt5 import refuse_other_models, write_small_mt5
from system.disk import to_json, write_bytes, write_text

MARKER = "sample_corpus.json"  # lies in a sample corpus, and says that the folder may be written anew

# gloss role handshape place movement fingers hands detail. The text of a sign is its gloss.
LEXICON = """
我 subject point chest tap forward one to_self
你 subject point chest tap forward one to_viewer
妈妈 subject thumb cheek hold up one touch
爸爸 subject thumb cheek hold up one near
他 subject three shoulder wave side one puffed
老师 subject flat cheek out up mirror slack
学生 subject five side up up one eyes_low
医生 subject ring cheek arc back mirror eyes_low
朋友 subject little belly twist side base eyes_ahead
邻居 subject little temple open side one palm_up
今天 time flat belly down side mirror eyes_low
明天 time flat belly down side mirror eyes_ahead
昨天 time little side tap back one eyes_low
早上 time point belly hold up mirror slack
晚上 time fist chest in up mirror eyes_ahead
中午 time fist neck down forward one slack
周末 time hook chest wave side one palm_up
学校 place flat side circle side one palm_up
医院 place flat side circle side one palm_down
商店 place horns chest circle forward one near
公园 place horns brow hold up one near
饭店 place horns belly up back one touch
车站 place flat chest hold forward mirror to_viewer
图书馆 place claw belly tap up one puffed
苹果 food horns neck twist up mirror eyes_ahead
米饭 food flat brow wave up one eyes_low
面包 food ell chin open up mirror near
鸡蛋 food ell side out back mirror puffed
牛奶 drink fist chin twist up one puffed
咖啡 drink fist chin twist up one slack
茶 drink claw side twist up mirror eyes_low
水 drink fist temple arc up one eyes_low
书 paper vee belly open up one eyes_ahead
信 paper thumb belly circle forward mirror touch
衣服 thing horns side in forward one eyes_low
手机 thing ring side open up base puffed
花 thing point cheek wave up mirror near
药 thing point brow out up mirror eyes_ahead
吃 verb:food five brow circle forward one to_viewer
喝 verb:drink claw cheek open forward one to_self
读 verb:paper claw temple down side one near
写 verb:paper horns temple out back one eyes_low
买 verb:any five chest out side base palm_up
卖 verb:any five chest out side base palm_down
带 verb:any five shoulder hold forward one puffed
找 verb:any flat chin up up mirror slack
送 verb:any point neck arc up one puffed
喜欢 verb:any three brow twist up mirror near
工作 verb: three neck hold up mirror puffed
休息 verb: little shoulder arc side one palm_up
跑步 verb: fist cheek circle up one eyes_low
高兴 state vee neck wave back one slack
难过 state five cheek down forward one eyes_low
累 state little chin circle forward one eyes_ahead
忙 state vee chin tap up one slack
不 modal three chest open side mirror eyes_low
想 modal three cheek up forward mirror to_viewer
可以 modal claw chest arc back mirror puffed
会 modal claw chin wave up one eyes_ahead
吗 question thumb side down up one puffed
"""


@dataclass(frozen=True)
class Sign:
    """A row of the lexicon: `takes` is the kind of object a verb allows, `detail` is what keypoints cannot show."""

    gloss: str
    role: str
    takes: str
    form: Form
    detail: str


def _parse_lexicon() -> dict[str, Sign]:
    signs = {}
    for row in LEXICON.strip().splitlines():
        gloss, role, *form, detail = row.split()
        role, _, takes = role.partition(":")
        signs[gloss] = Sign(gloss, role, takes, Form(*form), detail)
    return signs


SIGNS = _parse_lexicon()
OBJECTS = ("food", "drink", "paper", "thing")


def minimal_pairs() -> list[tuple[str, str]]:
    """Return the pairs of signs that only descriptions can distinguish.

    >>> minimal_pairs()[0], len(minimal_pairs())
    (('我', '你'), 6)
    """
    signs = list(SIGNS.values())
    return [(a.gloss, b.gloss) for i, a in enumerate(signs) for b in signs[i + 1 :] if a.form == b.form]


def sentence_text(glosses: Sequence[str]) -> str:
    """Translate a sentence: the same words in Chinese order, with 在 before a place and 很 before a state.

    >>> sentence_text(["今天", "学校", "我", "书", "读", "想"])
    '我今天想在学校读书。'
    >>> sentence_text(["妈妈", "累", "吗"]), sentence_text(["昨天", "你", "累", "不"])
    ('妈妈累吗？', '你昨天不累。')
    """
    word = {"object" if SIGNS[gloss].role in OBJECTS else SIGNS[gloss].role: gloss for gloss in glosses}
    if "place" in word:
        word["place"] = "在" + word["place"]
    if "state" in word and "modal" not in word and "question" not in word:
        word["state"] = "很" + word["state"]
    order = ("subject", "time", "modal", "place", "verb", "object", "state", "question")
    return "".join(word.get(role, "") for role in order) + ("？" if "question" in word else "。")


def draw_sentence(rng: np.random.Generator) -> tuple[str, ...]:
    """Draw 3 to 7 glosses in sign order."""

    def pick(*roles: str, chance: float = 1.0) -> list[str]:
        choice = str(rng.choice([sign.gloss for sign in SIGNS.values() if sign.role in roles]))
        return [choice] if rng.random() < chance else []

    while True:
        subject, time, question = pick("subject"), pick("time", chance=0.6), pick("question", chance=0.25)
        if rng.random() < 0.15:
            glosses = [*time, *subject, *pick("state"), *(["不"] if rng.random() < 0.4 else []), *question]
        else:
            verb, place, modal = pick("verb"), pick("place", chance=0.5), pick("modal", chance=0.4)
            takes = SIGNS[verb[0]].takes
            thing = pick(*(OBJECTS if takes == "any" else (takes,))) if takes else []
            glosses = [*time, *place, *subject, *thing, *verb, *modal, *question]
        if len(glosses) >= 3:
            return tuple(glosses)


@dataclass(frozen=True)
class Clip:
    """A sentence and its signer; `name` is Sentence_Person_Take, as in CSL-Daily."""

    name: str
    glosses: tuple[str, ...]
    signer: int


N_SIGNERS = 10
SPLIT_SIGNERS = {"train": range(6), "dev": range(4, 8), "test": (4, 5, 8, 9)}


def plan_clips(counts: Mapping[str, int], seed: int) -> dict[str, list[Clip]]:
    """Draw the sentences and signers of all clips, so many of each split."""
    rng = np.random.default_rng([seed, 0])
    used: set[tuple[str, ...]] = set()
    clips: dict[str, list[Clip]] = {}
    for split, count in counts.items():
        clips[split] = []
        while len(clips[split]) < count:
            glosses = draw_sentence(rng)
            if glosses in used:
                continue
            used.add(glosses)
            for signer in rng.permutation(SPLIT_SIGNERS[split])[: 2 if split == "train" else 1].tolist():
                clips[split].append(Clip(f"S{len(used):06d}_P{signer:04d}_T00", glosses, signer))
        del clips[split][count:]
    return clips


LEFT_WORDS = {"one": "左手自然垂放", "mirror": "左手动作对称", "base": "左手平放在下方"}
DETAIL_WORDS = {
    "to_self": "指尖指向自身",
    "to_viewer": "指尖指向镜头",
    "touch": "手与身体接触",
    "near": "手与身体保持距离",
    "palm_up": "掌心朝上",
    "palm_down": "掌心朝下",
    "eyes_low": "目光低垂",
    "eyes_ahead": "目光平视",
    "puffed": "脸颊鼓起",
    "slack": "脸颊放松",
}
FAULTS = (  # what a vision-language model's run leaves in place of a description
    "出错: Error code: 429 - {'error': {'message': 'Rate limit reached', 'type': 'requests'}}",
    "出错: Error code: 503 - {'error': {'message': 'Service unavailable'}}",
    "出错: Request timed out.",
    "",
)


def describe_frame(sign: Sign, settled: bool, rng: np.random.Generator) -> str:
    """Describe in Chinese what a signer does in one frame: the action, never the meaning.

    `sign` is the current or next one; it is `settled` while it is performed, not approached.
    """
    form = sign.form
    right = "双手" if form.hands == "mirror" else "右手"
    if not settled:
        return f"{right}正移向{PLACES[form.place][0]}，手形变化中。"
    parts = [
        f"位于{PLACES[form.place][0]}",
        FINGERS[form.fingers][0],
        MOVEMENTS[form.movement][0],
        LEFT_WORDS[form.hands],
        DETAIL_WORDS[sign.detail],
    ]
    told = [part for part in parts if rng.random() >= 0.1]
    beginning = str(rng.choice(["", "图中人物", "手语者"]))
    return "，".join([beginning + right + HANDSHAPES[form.handshape][0], *told]) + "。"


def describe_clip(glosses: Sequence[str], recording: Recording, rng: np.random.Generator) -> list[dict[str, str]]:
    """Describe every third to sixth frame of a clip; return the entries of a description file."""
    step = int(rng.integers(3, 7))
    faulty = rng.random() < 0.05
    entries = []
    for frame in range(int(rng.integers(step)), len(recording.sign), step):
        sign, settled = int(recording.sign[frame]), bool(recording.settled[frame])
        if faulty and rng.random() < 0.5:
            text = str(rng.choice(FAULTS))
        elif 0 <= sign < len(glosses):
            text = describe_frame(SIGNS[glosses[sign]], settled, rng)
        else:
            text = "双手自然垂放在身前。"
        entries.append({"filename": f"{frame:06d}.jpg", "description": text})
    return entries


def write_corpus(out: str | Path, counts: Mapping[str, int], seed: int = 0) -> None:
    """Write labels, poses, descriptions and the small mT5 under `out`, where `--root` looks for CSL_Daily.

    An older sample corpus there is replaced. `counts` are the clips of each split; equal seeds give identical files.
    ValueError if the folder holds something else, a split would be empty, or the seed is negative.
    """
    out = Path(out)
    if empty := [split for split, count in counts.items() if count < 1]:
        raise ValueError(f"--clips: {', '.join(empty)} would be empty. Give at least one clip for each split.")
    if seed < 0:
        raise ValueError(f"--seed {seed}: must be 0 or more.")
    if out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: not empty, and no sample corpus. Name a new folder; nothing was written.")
    refuse_other_models(out / config.mt5_path)
    spec = config.DATASETS["CSL_Daily"].under(out)
    for place in (*spec.labels.values(), spec.pose_dir, spec.description_dir, str(out / config.mt5_path)):
        # An absolute path in config.py may be real data, and old clips are deleted below.
        if not Path(place).resolve().is_relative_to(out.resolve()):
            raise ValueError(f"--out {out}: config.py puts {place} outside of it; make the paths there relative.")
    pose_dir = Path(spec.pose_dir)
    _empty_folder(pose_dir)
    write_text(out / MARKER, to_json({"seed": seed, "clips": dict(counts)}) + "\n", sync=False)

    signers = [Signer.draw(np.random.default_rng([seed, 1, i])) for i in range(N_SIGNERS)]
    numbers = itertools.count()
    train_texts: list[str] = []
    for split, clips in plan_clips(counts, seed).items():
        description_dir = Path(spec.description_dir) / split
        _empty_folder(description_dir)
        labels = {}
        texts = []
        for clip in clips:
            number = next(numbers)
            # Two random streams, so that descriptions cannot influence poses.
            pose_rng, text_rng = (np.random.default_rng([seed, stream, number]) for stream in (2, 3))
            recording = record([SIGNS[gloss].form for gloss in clip.glosses], signers[clip.signer], pose_rng)
            pose = {"keypoints": list(recording.keypoints[:, None]), "scores": list(recording.scores[:, None])}
            write_bytes(pose_dir / f"{clip.name}.pkl", pickle.dumps(pose, protocol=4), sync=False)
            labels[clip.name] = {
                "name": clip.name,
                "gloss": list(clip.glosses),
                "text": sentence_text(clip.glosses),
                "video_path": f"{clip.name}.mp4",
            }
            texts.append(sentence_text(clip.glosses))
            if text_rng.random() < 0.1:
                continue
            entries = describe_clip(clip.glosses, recording, text_rng)
            document = to_json(entries, indent=1)
            write_text(description_dir / f"{clip.name}.json", document, sync=False)
            texts += [entry["description"] for entry in entries if entry["description"] not in FAULTS]
        write_bytes(spec.labels[split], gzip.compress(pickle.dumps(labels, protocol=4), mtime=0), sync=False)
        if split == "train":
            train_texts = texts
    write_small_mt5(out / config.mt5_path, train_texts, seed=seed)


def _empty_folder(folder: Path) -> None:
    """Create a folder, and delete an older corpus' clips in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob("S*_P*_T*.pkl"), *folder.glob("S*_P*_T*.json")):
        stale.unlink()
