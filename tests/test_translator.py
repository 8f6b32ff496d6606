"""A checkpoint alone makes a translator that writes what the evaluation writes."""

import argparse
import json
import pickle
import shutil

import numpy as np
import pytest
import torch

import fine_tuning
import inference
import translator
import utils
from config import DATASETS
from datasets import S2T_Dataset
from pose.keypoints import read_pose
from pose.video import read_pictures
from system.disk import read_lines
from tests.helpers.models import as_in_transformers, new_model, save_model
from tools import export
from tools.demo_page import Demo, Question
from training.weight_files import save_weights
from training.weights import differing_files
from translator import Translator, load_descriptions

OPTIONS = {"dtype": "fp32", "num_beams": 2, "max_new_tokens": 24, "device": "cpu"}


@pytest.fixture(scope="module")
def described(small_mt5_folder, tmp_path_factory):
    """A checkpoint of a model with descriptions, and the model."""
    model = new_model(small_mt5_folder, use_descriptions=True)
    return save_model(model, tmp_path_factory.mktemp("weights") / "described.pth", small_mt5_folder, 64), model


@pytest.mark.parametrize("flags", [(), ("--use_descriptions",), ("--use_descriptions", "--text_encoder_freeze")])
def test_writes_what_the_evaluation_writes(flags, corpus, small_mt5_folder, tmp_path, monkeypatch):
    """Nothing but the checkpoint is given; clips are longer than --max_length, so the same frames must be sampled."""
    model = new_model(small_mt5_folder, use_descriptions=bool(flags))
    frozen = "--text_encoder_freeze" in flags
    weights = {n: w for n, w in model.state_dict().items() if not (frozen and n.startswith("text_encoder."))}
    checkpoint = tmp_path / "best_checkpoint.pth"
    common = (
        f"--root {corpus} --mt5_path {small_mt5_folder} --hidden_dim 16 --max_length 40 --dtype fp32 --num_workers 0 "
        f"--num_beams 2 --max_new_tokens 24 --eval --finetune {checkpoint} --output_dir {tmp_path}"
    )
    args = utils.parse_args([*common.split(), *flags])
    save_weights(checkpoint, weights, model.config, mt5_path=str(small_mt5_folder), max_length=40)
    fine_tuning.main(args)
    wanted = {
        line["name"]: line["hypothesis"]
        for line in map(json.loads, (tmp_path / "test_predictions.jsonl").read_text(encoding="utf-8").splitlines())
    }
    dataset = S2T_Dataset(DATASETS["CSL_Daily"].under(corpus), "test")
    assert max(len(read_pose(path)) for path in dataset.pose_paths.values()) > 40

    monkeypatch.chdir(tmp_path)
    translate = Translator.from_checkpoint(checkpoint, **OPTIONS)
    found = {}
    for name, path in dataset.pose_paths.items():
        texts = corpus / f"description/CSL-Daily/split_data/test/{name}.json"
        found[name] = translate(path, texts if flags and texts.is_file() else None)
    assert found == wanted
    assert len(set(wanted.values())) > 1  # they are not all the same


@pytest.fixture
def clip(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "clip.npz"
    np.savez(path, keypoints=rng.random((12, 2, 133, 2)), scores=np.ones((12, 2, 133)))
    return path


def test_every_weight_is_the_checkpoints(described, tmp_path, small_mt5_folder):
    """Without reading mT5's weights, and without the tie between input and output embeddings."""
    path, model = described
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "spiece.model"):
        shutil.copy(small_mt5_folder / name, bare / name)
    loaded = Translator.from_checkpoint(path, mt5_path=str(bare), **OPTIONS).model
    assert not torch.equal(loaded.mt5_model.lm_head.weight, loaded.mt5_model.shared.weight)
    wanted = model.state_dict()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_descriptions_count_and_may_be_left_out(described, clip):
    translate = Translator.from_checkpoint(described[0], **OPTIONS)
    pose = read_pose(clip)
    texts = [{}, dict.fromkeys(range(12), "右手食指伸直"), dict.fromkeys(range(12), "the left hand is at the chin")]
    scores = {translate.explain([translate.sample(pose, text)])[0].candidates[0].score for text in texts}
    assert len(scores) == 3
    assert translate(clip) == translate(pose, {})


def test_n_best_are_sorted_and_scored_as_the_search_scores(described, clip):
    translate = Translator.from_checkpoint(described[0], **{**OPTIONS, "num_beams": 4, "max_new_tokens": 20})
    samples = [translate.sample(read_pose(clip, person=person)) for person in (0, 1)]
    found = [explained.candidates for explained in translate.explain(samples, n_best=3)]
    assert [len(candidates) for candidates in found] == [3, 3]
    for sample, candidates in zip(samples, found, strict=True):
        assert [c.score for c in candidates] == sorted((c.score for c in candidates), reverse=True)
        assert len({c.score for c in candidates}) == 3
        alone = translate.explain([sample], n_best=3)[0].candidates
        assert [c.text for c in alone] == [c.text for c in candidates]
        assert [c.score for c in alone] == pytest.approx([c.score for c in candidates], abs=1e-4)
        assert translate.explain([sample])[0].candidates[0].text == candidates[0].text


@pytest.mark.parametrize("length", [3, 20])
def test_scores_are_transformers_own(described, clip, length):
    """Against the search's own scores, with sentences that end and sentences that are cut."""
    from transformers.modeling_outputs import BaseModelOutput

    from clips.batch import collate_fn

    translate = Translator.from_checkpoint(described[0], **OPTIONS)
    src_input = collate_fn([translate.sample(read_pose(clip, person=person)) for person in (0, 1)])[0]
    with torch.no_grad():
        encoded = translate.model.encode(src_input)
    found = as_in_transformers(translate.model.mt5_model).generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded.encoder_states),
        attention_mask=encoded.attention_mask,
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=length,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    ids = translate.model.generate(encoded, 4, length, n_best=4)
    assert ids.shape == found.sequences.shape  # two that are nearly equal may have changed places
    ours = translate.model.log_probs(encoded, ids)
    assert torch.allclose(ours, found.sequences_scores, atol=1e-4), (ours, found.sequences_scores)


def test_descriptions_start_where_the_clip_does(described, tmp_path):
    """Numbers in description files are those of the recording."""
    path = tmp_path / "cut.pkl"
    frames = [np.full((1, 133, 2), 0.5)] * 30
    content = {"keypoints": frames, "scores": [np.ones((1, 133))] * 30, "start": 10, "end": 20}
    path.write_bytes(pickle.dumps(content))
    translate = Translator.from_checkpoint(described[0], **OPTIONS)
    (tmp_path / "cut.json").write_text(json.dumps({"12.jpg": "twelve", "25.jpg": "beyond"}))
    pose = read_pose(path)
    sample = translate.sample(pose, load_descriptions(tmp_path / "cut.json", pose))
    assert sample.descriptions == ["twelve"] * 10
    assert sample.has_description == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]


# -- crops of the hands ------------------------------------------------------------------------------------------------


class Found:
    """An extractor that finds what a pose file holds."""

    label = "stand-in"

    def __init__(self, pose):
        self.pose = pose

    def start(self):
        self.left = zip(self.pose.keypoints[:, None], self.pose.scores[:, None], strict=True)

    def __call__(self, picture):
        return next(self.left)


def test_crops_of_the_hands_are_those_of_the_evaluation(shared_real, small_mt5_folder, write_video, tmp_path, capsys):
    """A real video, from a pose file beside it, through an extractor, on the page, and by an exported model."""
    for package in ("av", "PIL"):
        pytest.importorskip(package, reason="needs the extra rgb")
    model = new_model(small_mt5_folder, rgb_support=True)
    model.fusion_gate[2].bias.data.fill_(1)
    for module in model.rgb_support_backbone.train().modules():
        module.momentum = 1  # of batch norms: without statistics, a new backbone's features vanish
    model.rgb_support_backbone(torch.randn(4, 3, 112, 112))
    checkpoint, clips = tmp_path / "best_checkpoint.pth", tmp_path / "clips"
    save_model(model, checkpoint, small_mt5_folder, 40)
    clips.mkdir()
    rng = np.random.default_rng(0)
    for name, more in (("whole", {}), ("part", {"start": 20, "end": 50})):
        shutil.copy(shared_real / "video/test_video.mp4", clips / f"{name}.mp4")
        keypoints, scores = rng.uniform(0.2, 0.8, (58, 133, 2)), rng.uniform(0.4, 1, (58, 133))
        np.savez(clips / f"{name}.npz", keypoints=keypoints, scores=scores, **more)
    (tmp_path / "labels.csv").write_text("name,text\npart,x\nwhole,y\n")
    record = 'name = "films"\nlanguage = "Chinese"\npose_dir = "clips"\nrgb_dir = "clips"\npose_suffix = ".npz"\n'
    (tmp_path / "films.toml").write_text(record + '[labels]\ntest = "labels.csv"\n')
    same = ["--dtype", "fp32", "--num_beams", "3", "--max_new_tokens", "24"]
    line = ["--root", tmp_path, "--dataset_config", tmp_path / "films.toml", "--eval", "--finetune", checkpoint]
    fine_tuning.main(utils.parse_args([*map(str, line), *same, "--num_workers", "0"]))
    wanted = {row["name"]: row["hypothesis"] for row in read_lines(tmp_path / "test_predictions.jsonl")}

    def written(path):
        assert inference.main(inference.parse_args([str(clips), "--checkpoint", str(path), *same])) == 0
        return dict(row.split("\t") for row in capsys.readouterr().out.splitlines())

    capsys.readouterr()
    assert written(checkpoint) == {name: " ".join(text.split()) for name, text in wanted.items()}
    export.main(export.parse_args(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]))
    capsys.readouterr()
    assert written(tmp_path / "out") == written(checkpoint)
    assert "\nav==" in (tmp_path / "out/code/requirements.txt").read_text()

    translate = Translator.from_checkpoint(tmp_path / "out", **{**OPTIONS, "num_beams": 3})
    video, pose = clips / "whole.mp4", read_pose(clips / "whole.npz")
    extractor = Found(pose)
    assert translate(video, extractor=extractor) == translate(pose, video=video) == wanted["whole"]
    shown = Demo(translate, extractor).answer(Question("film.mp4"), video.read_bytes())
    assert shown["without"][0]["text"] == wanted["whole"]
    black = write_video(tmp_path / "black.mp4", [np.zeros((720, 540, 3), np.uint8)] * 58)
    sources = [video, list(read_pictures(video)), black]  # a file, and pictures as of a camera
    explained = [translate.explain([translate.sample(pose, None, "", source)])[0] for source in sources]
    scores = [clip.candidates[0].score for clip in explained]
    assert scores[0] == scores[1] != scores[2]

    video.unlink()
    with pytest.raises(ValueError, match=r"whole.npz: this checkpoint looks at crops of the hands. Give the video"):
        translate(clips / "whole.npz")
    with pytest.raises(ValueError, match="looks at crops of the hands"):
        Demo(translate, extractor).answer(Question("a.npz"), (clips / "whole.npz").read_bytes())


# -- what cannot be ----------------------------------------------------------------------------------------------------


def changed(described, tmp_path, **facts):
    content = torch.load(described[0], weights_only=True)
    torch.save({**content, **facts}, tmp_path / "changed.pth")
    return tmp_path / "changed.pth"


def test_what_does_not_fit_is_one_line(described, tmp_path, small_mt5_folder):
    content = torch.load(described[0], weights_only=True)
    model = content["model"]
    newer = changed(described, tmp_path, config={**content["config"], "colour": 1})
    with pytest.raises(ValueError, match="another version of this code.*colour"):
        Translator.from_checkpoint(newer)
    edited = changed(described, tmp_path, max_length="256")
    with pytest.raises(ValueError, match="says max_length '256'"):
        Translator.from_checkpoint(edited)
    gone = changed(described, tmp_path, mt5_path=str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"--checkpoint: .*changed.pth was trained with the mT5 in .*gone, w"):
        Translator.from_checkpoint(gone)
    fusion = changed(
        described, tmp_path, model={n: w for n, w in model.items() if n.startswith(("gating", "text_adapter"))}
    )
    with pytest.raises(ValueError, match="holds no whole model"):
        Translator.from_checkpoint(fusion)
    hole = changed(described, tmp_path, model={n: w for n, w in model.items() if n != "part_para"})
    with pytest.raises(ValueError, match=r"missing: part_para\."):
        Translator.from_checkpoint(hole)
    torch.save({"model": model}, tmp_path / "plain.pth")
    with pytest.raises(ValueError, match="does not say where its mT5 is"):
        Translator.from_checkpoint(tmp_path / "plain.pth")


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"mt5_path": 5}, "says mt5_path of the type int. Get it again, or name the right one: --mt5_path"),
        ({"mt5_path": ["x"]}, "says mt5_path of the type list"),
        ({"mt5_path": b"x"}, "says mt5_path of the type bytes"),
        ({"mt5_path": torch.zeros(3)}, "says mt5_path of the type Tensor"),
        ({"mt5_path": "a\nb"}, r"says mt5_path 'a\\nb'"),
        ({"max_length": True}, "says max_length True"),
        ({"max_length": torch.tensor(5)}, "says max_length of the type Tensor"),
        ({"config": {"label_smoothing": True}}, r"another version of this code \(label_smoothing is True"),
        ({"config": {"text_encoder": "a\nb"}}, r"another version of this code \(text_encoder is 'a\\nb'"),
        ({"config": {"language": "\ud83d"}}, r"--language '\\ud83d': must be a name"),
        ({"model": {"part_para": torch.tensor(1.0)}}, "its weights have another width"),
    ],
)
def test_facts_of_another_type_are_one_line(described, tmp_path, facts, reason):
    content = torch.load(described[0], weights_only=True)
    edited = {key: content[key] | value if isinstance(value, dict) else value for key, value in facts.items()}
    with pytest.raises(ValueError, match=reason) as error:
        Translator.from_checkpoint(changed(described, tmp_path, **edited))
    assert "\n" not in str(error.value)


def test_a_frozen_encoders_width_of_no_dimension(described, tmp_path):
    weights = torch.load(described[0], weights_only=True)["model"]
    frozen = {name: value for name, value in weights.items() if not name.startswith("text_encoder.")}
    frozen["text_adapter.mean"] = torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"text_adapter.mean \(\) for"):
        Translator.from_checkpoint(changed(described, tmp_path, model=frozen))


def test_files_of_another_type_are_other_files():
    saved = {"files": {"a": torch.zeros(3), "b": True, "c": 1, 5: 6}}
    assert "different are: a, b. " in differing_files(saved, {"a": "x", "b": 1, "c": 1, "d": 2})


def test_weights_of_other_programs(described, tmp_path, small_mt5_folder):
    """With poses alone the sizes follow from the weights; a `config` of another program means nothing here."""
    model = new_model(small_mt5_folder)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    content = {"state_dict": state, "config": argparse.Namespace(lr=0.1), "hyper_parameters": {"lr": 0.1}}
    torch.save(content, tmp_path / "last.ckpt")
    translate = Translator.from_checkpoint(tmp_path / "last.ckpt", mt5_path=str(small_mt5_folder), **OPTIONS)
    loaded = translate.model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_weights_that_are_no_numbers_are_refused(described, tmp_path):
    weights = dict(torch.load(described[0], weights_only=True)["model"])
    weights["pose_proj.bias"] = weights["pose_proj.bias"] * torch.nan
    with pytest.raises(ValueError, match=r"--checkpoint: .*changed\.pth: NaN or infinity in pose_proj\.bias: "):
        Translator.from_checkpoint(changed(described, tmp_path, model=weights))


def test_wrong_calls(described, clip, tmp_path):
    translate = Translator.from_checkpoint(described[0], **OPTIONS)
    with pytest.raises(ValueError, match=r"talk.txt: is no pose file \(.pkl, .npz, .pose\) and no video \(.mp4, ...\)"):
        translate("talk.txt")
    (tmp_path / "talk.MP4").touch()
    with pytest.raises(ValueError, match=r"talk.MP4: is a video: give an extractor as well, pose.extraction.load_ex"):
        translate(tmp_path / "talk.MP4")
    with pytest.raises(FileNotFoundError, match=r"none.pkl does not exist"):
        translate(tmp_path / "none.pkl")
    np.savez(tmp_path / "nobody.npz", keypoints=np.zeros((4, 133, 2)), scores=np.zeros((4, 133)))
    with pytest.raises(ValueError, match="no point of person 0 was found in any frame"):
        translate(tmp_path / "nobody.npz")
    with pytest.raises(ValueError, match="--n_best 3: a search with 2 beams"):
        translate.explain([translate.sample(read_pose(clip))], n_best=3)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as descriptions"):
        translate(clip, tmp_path / "bad.json")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no GPU"):
            Translator(translate.model, device="cuda")
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        Translator(translate.model, device="cpu", dtype="fp16")


def test_weights_without_a_config_take_what_is_given(small_mt5_folder, tmp_path, clip):
    """As Uni-Sign publishes them: pose-only, Chinese unless told otherwise."""
    model = new_model(small_mt5_folder, language="English")
    torch.save({"model": model.state_dict()}, tmp_path / "released.pth")
    loaded = Translator.from_checkpoint(
        tmp_path / "released.pth", mt5_path=str(small_mt5_folder), language="English", **OPTIONS
    )
    assert (loaded.model.config.hidden_dim, loaded.model.config.language) == (16, "English")
    assert loaded(clip) == Translator(model, **OPTIONS)(clip)
    with pytest.raises(ValueError, match="trained without descriptions"):
        loaded(clip, {0: "up"})


# -- the gate ----------------------------------------------------------------------------------------------------------


def test_the_gate_is_the_models_without_padding(described, clip, tmp_path):
    translate = Translator.from_checkpoint(described[0], **OPTIONS)
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "short.npz", keypoints=rng.random((5, 133, 2)), scores=np.ones((5, 133)))
    samples = [translate.sample(read_pose(tmp_path / "short.npz"), {1: "up"}), translate.sample(read_pose(clip), {})]
    both = translate.explain(samples)
    assert [len(explained.gate) for explained in both] == [5, 12]
    alone = [translate.explain([sample])[0] for sample in samples]
    for one, other in zip(both, alone, strict=True):
        assert one.gate == pytest.approx(other.gate, abs=1e-5)
        assert one.candidates[0].text == other.candidates[0].text
    assert both[0].gate != pytest.approx(
        translate.explain([translate.sample(read_pose(tmp_path / "short.npz"))])[0].gate
    )


def test_without_descriptions_there_is_no_gate(small_mt5_folder, clip):
    translate = Translator(new_model(small_mt5_folder), **OPTIONS)
    assert translate.explain([translate.sample(read_pose(clip))])[0].gate is None


def test_a_video_belongs_to_the_poses_of_its_whole_name(tmp_path):
    for name in ("a.pkl", "a.front.mp4", "a.mp4", "b.pkl", "b.front.mp4"):
        (tmp_path / name).touch()
    assert translator.video_of(tmp_path / "a.pkl") == tmp_path / "a.mp4"
    assert translator.video_of(tmp_path / "b.pkl") is None
