"""The whole model on small random weights: what a clip's result may depend on, and what trains."""

import math

import pytest
import torch
from torch import nn

from clips.batch import Sample, collate_fn
from config import ModelConfig
from models import IGNORE, Uni_Sign, tokens_before
from network.mt5 import load_mt5
from network.vocabulary import Tokenizer
from pose.keypoints import PART_JOINTS
from tests.helpers.models import as_in_transformers
from text_fusion_modules import TextEncoder, alignment_loss, root_mean_square
from training.optimization import parameter_groups

WIDTH = 32  # of the small mT5
UP, DOWN, LONG = "右手食指伸直。", "the left hand", "妈妈晚上很累，我今天想在学校读书。the left hand is at the chin"
SENTENCES = ["我今天想在学校读书。", "妈妈很累。", "the hand is at the chin", "累", "学校", "我想读书。"]
LENGTHS = [7, 12, 1, 4, 9, 3]


@pytest.fixture(scope="module")
def make(small_mt5_folder):
    """Make a small model in evaluation; everything in it that starts at zero or one is moved, so that it shows."""

    def make(texts=None, **changes):
        torch.manual_seed(0)
        config = ModelConfig(**({"hidden_dim": 16, "use_descriptions": True, "description_alignment": 0.0} | changes))
        if config.use_descriptions and texts is None:
            texts = TextEncoder(small_mt5_folder)
        model = Uni_Sign(config, load_mt5(small_mt5_folder), Tokenizer(small_mt5_folder), texts)
        with torch.no_grad():
            model.part_para.normal_(std=0.1)
            model.pose_proj.weight.normal_(std=0.2)
            norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
            for norm in norms:
                norm.bias.normal_(std=0.1)
                norm.momentum = 1.0  # statistics as after long training
            model.train().encode_pose(collate_fn([clip(number) for number in range(6)])[0])
            for norm in norms:
                norm.momentum = 0.1
            if config.use_descriptions:
                model.mask_embedding.mask_embedding.normal_()
                model.text_adapter.layers[2].weight.normal_(std=0.2)
                model.text_adapter.mean.normal_(std=0.1)
                model.text_adapter.n_batches.fill_(1)
                model.gating_fusion.gate[0].weight[:, -1].mul_(5)  # the indicator's column
                model.gating_fusion.gate[4].weight.mul_(3)
                model.gating_fusion.gate[4].bias.zero_()
        return model.eval()

    return make


@pytest.fixture(scope="module")
def described(make):
    return make()


def pose_of(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        part: torch.rand(length, len(joints), 3, generator=generator) * 2 - 1 for part, joints in PART_JOINTS.items()
    }


def clip(number, with_texts=True):
    """Clip `number` of six; the third has no text, the others have some."""
    length = LENGTHS[number]
    generator = torch.Generator().manual_seed(100 + number)
    texts, own = [None] * length, [0] * length
    if number != 2:
        texts = [(UP, DOWN, LONG, None)[i] for i in torch.randint(4, (length,), generator=generator).tolist()]
        drawn = torch.randint(2, (length,), generator=generator).tolist()
        own = [int(text is not None) * i for text, i in zip(texts, drawn, strict=True)]
    descriptions = (texts, own) if with_texts else (None, None)
    return Sample(f"clip{number}", pose_of(length, number), SENTENCES[number], "", {}, *descriptions)


def batch_of(descriptions, has_description, length=None, seed=0):
    """A batch with these descriptions, for `fuse_text` and `forward`."""
    samples = [
        Sample(f"{i}", pose_of(length or len(texts), seed + i), SENTENCES[i], "", {}, texts, own)
        for i, (texts, own) in enumerate(zip(descriptions, has_description, strict=True))
    ]
    return collate_fn(samples)


def longer(src_input, frames):
    """More padding, and all of it such that whoever looks at it is found out."""
    lengths = src_input["src_length_batch"]
    total = src_input["attention_mask"].shape[1] + frames
    out = dict(src_input)
    for part in PART_JOINTS:
        x = src_input[part]
        out[part] = torch.cat([x, x.new_zeros(len(x), frames, *x.shape[2:])], dim=1)
        for row, length in zip(out[part], lengths, strict=True):
            row[length:] = float("nan")
    out["attention_mask"] = (torch.arange(total) < lengths[:, None]).long()
    if "descriptions" in src_input:
        out["descriptions"] = [row + [None] * frames for row in src_input["descriptions"]]
        out["has_description"] = [row + [0] * frames for row in src_input["has_description"]]
    return out


def spy(module, results):
    """Keep what a module is called with."""
    return module.register_forward_pre_hook(lambda _, args, kwargs: results.append((args, kwargs)), with_kwargs=True)


def encoded_ids(model, run):
    """The ids that the text encoder is given while `run` runs, one (n, L) for each call."""
    calls = []
    hook = spy(model.text_encoder.encoder.get_input_embeddings(), calls)
    run()
    hook.remove()
    return [arguments[0] for arguments, _ in calls]


def gate_inputs(model, src_input):
    """Pose, text and indicator as they come to the gate, and what comes out."""
    calls = []
    hook = spy(model.gating_fusion, calls)
    pose = torch.randn(*src_input["attention_mask"].shape, WIDTH, generator=torch.Generator().manual_seed(5))
    out = model.fuse_text(pose, src_input)
    hook.remove()
    [(args, _)] = calls
    return (*args[:3], *out[:2])


# -- a clip's result is its own ------------------------------------------------------------------------------------


def results(model, src_input, tgt_input):
    """For each clip: what mT5 reads, its loss, its sentences."""
    output = model(src_input, tgt_input)
    prompt = output.inputs_embeds.shape[1] - src_input["attention_mask"].shape[1]
    found = []
    greedy, searched = (model.sentences(model.generate(output, num_beams=n, max_new_tokens=12)) for n in (1, 3))
    for i, length in enumerate(src_input["src_length_batch"].tolist()):
        sentence = tgt_input["gt_sentence"][i]
        labels = model.labels([sentence])
        own = output.encoder_states[i : i + 1], output.attention_mask[i : i + 1], labels
        loss = model.target_loss(*own, *model.embed(tokens_before(labels)))
        found.append((output.inputs_embeds[i, : prompt + length], loss, greedy[i], searched[i]))
    n_tokens = sum(loss[2] for _, loss, *_ in found)
    for kind, seen in enumerate((output.loss, output.nll)):  # a batch's loss is the mean over its tokens
        mean = sum(float(loss[kind]) * loss[2] for _, loss, *_ in found) / n_tokens
        assert seen.item() == pytest.approx(mean, rel=1e-5)
    assert output.n_tokens == n_tokens
    return found


@torch.no_grad()
@pytest.mark.parametrize("with_texts", [True, False], ids=["descriptions", "pose alone"])
def test_neighbours_and_padding_change_nothing(make, with_texts):
    model = make(use_descriptions=with_texts)
    alone = [results(model, *collate_fn([clip(number, with_texts)]))[0] for number in range(6)]
    assert len({sentence for *_, sentence in alone}) > 3  # sentences that are all the same would prove nothing
    generator = torch.Generator().manual_seed(1)
    for trial in range(6):
        numbers = torch.randperm(6, generator=generator)[: 2 + trial % 5].tolist()
        src_input, tgt_input = collate_fn([clip(number, with_texts) for number in numbers])
        found = results(model, longer(src_input, frames=trial % 3 * 5), tgt_input)
        for number, (embeds, loss, greedy, searched) in zip(numbers, found, strict=True):
            expected = alone[number]
            torch.testing.assert_close(embeds, expected[0], rtol=1e-4, atol=1e-5)
            assert [float(value) for value in loss] == pytest.approx([float(value) for value in expected[1]], rel=3e-6)
            assert (greedy, searched) == expected[2:]


@torch.no_grad()
def test_with_uni_signs_padding_neighbours_do_count(make):
    """The property above can fail."""
    model = make(use_descriptions=False, uni_sign_padding=True)
    src_input, _ = collate_fn([clip(3, False), clip(1, False)])
    alone, _ = collate_fn([clip(3, False)])
    together = model.encode_pose(src_input)[0, : LENGTHS[3]]
    assert (together - model.encode_pose(alone)[0]).abs().max() > 0.01


@torch.no_grad()
def test_hands_are_trained_as_they_are_tested(make):
    """Uni-Sign's way, each hand by its own statistics in training and both by common ones in a test, is two models."""
    src_input, _ = collate_fn([clip(number, False) for number in range(6)])
    src_input["left"] = 0.2 * src_input["left"]  # a hand that rests
    apart, joint = (make(use_descriptions=False, uni_sign_batch_norm=value) for value in (True, False))
    joint.load_state_dict(apart.state_dict())
    torch.testing.assert_close(joint.encode_pose(src_input), apart.encode_pose(src_input))
    gaps = []
    for model in (apart, joint):
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm1d)):
            norm.momentum = 1.0
        trained = model.train().encode_pose(src_input)
        gaps.append((model.eval().encode_pose(src_input) - trained).abs().mean() / trained.abs().mean())
    assert gaps[1] < 0.02 < 0.1 < gaps[0]


@torch.no_grad()
def test_texts_and_poses_count(described):
    """Nor is the property true because nothing counts."""
    src_input, tgt_input = collate_fn([clip(0)])
    base = described(src_input, tgt_input).loss
    for change in ("descriptions", "has_description", "left", "face_all"):
        other = dict(src_input)
        if change == "descriptions":
            other[change] = [[DOWN if text == UP else text for text in row] for row in src_input[change]]
        elif change == "has_description":
            other[change] = [[1 - own for own in row] for row in src_input[change]]
        else:
            other[change] = -src_input[change]
        assert (described(other, tgt_input).loss - base).abs() > 1e-3, change


# -- texts ---------------------------------------------------------------------------------------------------------


def adapted(model, texts, pose):
    """What each frame's text adds to its pose feature, (B, T, D), computed frame by frame."""
    rows = []
    for clip_texts, frames in zip(texts, pose, strict=True):
        for text, frame in zip(clip_texts, frames, strict=True):
            if text is None:
                rows.append(model.mask_embedding()[0])
            else:
                centred = model.text_encoder([text])[0] - model.text_adapter.mean
                centred = centred / centred.square().mean().sqrt()
                rows.append(model.text_adapter.layers(centred) * frame.square().mean().sqrt())
    return torch.stack(rows).view(pose.shape)


@torch.no_grad()
def test_described_filled_and_empty_frames(described):
    texts = [[UP, UP, None], [None, DOWN, DOWN], [None] * 3]
    src_input, _ = batch_of(texts, [[1, 0, 0], [0, 0, 1], [0] * 3])
    pose, text, has_description, fused, gate = gate_inputs(described, src_input)
    # What is encoded is decided by the text; the indicator only goes to the gate.
    torch.testing.assert_close(text, adapted(described, texts, pose), rtol=1e-4, atol=1e-5)
    assert has_description.tolist() == [[1, 0, 0], [0, 0, 1], [0] * 3]
    torch.testing.assert_close(fused, pose + gate * text)
    same = [x[:1, :1].expand(1, 2, -1) for x in (pose, text)]  # once with the frame's own text and once filled in
    gate = described.gating_fusion(*same, torch.tensor([[1, 0]]), torch.ones(1, 2)).gate
    assert (gate[0, 0] - gate[0, 1]).abs() > 1e-5


@torch.no_grad()
def test_each_text_is_encoded_once(described):
    """In one call, also for a batch without texts: every process must make the same calls, whatever its clips have."""
    tokens = [described.tokenizer.encode(text, 1000) for text in (UP, DOWN, LONG)]
    for texts, wanted in (
        ([[UP, DOWN, UP, None], [DOWN, LONG], [None], [UP]], tokens),
        ([[UP, UP]], tokens[:1]),
        ([[None] * 3, [None]], [[1]]),
    ):
        batch = batch_of(texts, [[int(text is not None) for text in row] for row in texts])
        [ids] = encoded_ids(described, lambda batch=batch: described(*batch))
        width = max(map(len, wanted))  # no wider than the longest of these texts
        assert ids.tolist() == [expected + [0] * (width - len(expected)) for expected in wanted]
    _, text, *_ = gate_inputs(described, batch[0])
    assert torch.equal(text, described.mask_embedding().expand(2, 3, -1))


def test_missing_descriptions_are_an_error_with_a_cure(described):
    src_input, tgt_input = collate_fn([clip(0, with_texts=False)])
    with pytest.raises(ValueError, match="descriptions not found in src_input") as error:
        described(src_input, tgt_input)
    assert "--use_descriptions" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("p", "training"), [(0.4, True), (1.0, False)])
@torch.no_grad()
def test_text_dropout(make, p, training):
    model = make(text_dropout_p=p)
    model.freeze([model.text_encoder])  # so that its own dropout leaves the features as they are
    model.train(training)
    n_clips, length = 6, 200
    texts = [[(UP, None, DOWN, LONG)[i % 4] for i in range(length)] for _ in range(n_clips)]
    own = [[int(i % 4 in (0, 2)) for i in range(length)] for _ in range(n_clips)]  # LONG is filled in
    src_input, _ = batch_of(texts, own)
    mean = model.text_adapter.mean.clone()
    pose, text, has_description, *_ = gate_inputs(model, src_input)
    assert torch.equal(mean, model.text_adapter.mean) != training
    whole, nothing = adapted(model, texts, pose), model.mask_embedding()[0]
    given = torch.tensor([[t is not None for t in row] for row in texts])
    dropped = given & ((text - nothing).abs().amax(-1) < 1e-6)
    emptied = (dropped == given).all(1)
    # A frame keeps both its text and its indicator, or loses both.
    torch.testing.assert_close(text, torch.where(dropped[..., None], nothing, whole), rtol=1e-4, atol=1e-5)
    assert torch.equal(has_description, torch.tensor(own).masked_fill(dropped, 0))
    p = p if training else 0.0
    share, n = dropped[~emptied].sum().item(), given[~emptied].sum().item()
    assert abs(share - p * n) <= 4 * math.sqrt(p * (1 - p) * n)


class Stored:
    """Features that were computed beforehand."""

    def __init__(self, encoder, width):
        self.encoder, self.width = encoder.eval(), width

    @torch.no_grad()
    def __call__(self, texts):
        assert "" not in texts  # a batch without texts asks for none: nobody has stored a feature for it
        return self.encoder(texts)[:, : self.width] if texts else torch.empty(0, self.width)


def test_stored_features_give_what_the_encoder_gives(make, small_mt5_folder, described):
    model = make(texts=Stored(TextEncoder(small_mt5_folder), WIDTH))
    assert not [name for name in model.state_dict() if name.startswith("text_encoder")]
    model.load_state_dict({name: value for name, value in described.state_dict().items() if name in model.state_dict()})
    narrow = make(texts=Stored(TextEncoder(small_mt5_folder), 20)).train()  # they are adapted
    assert narrow.text_adapter.mean.shape == (20,)
    for numbers in ([0, 1, 2], [2]):  # with texts and without
        inputs = collate_fn([clip(number) for number in numbers])
        with torch.no_grad():
            assert model(*inputs).loss.item() == pytest.approx(described(*inputs).loss.item(), rel=1e-6)
        narrow.zero_grad()
        narrow(*inputs).loss.backward()
        assert [name for name, parameter in narrow.named_parameters() if parameter.grad is None] == []


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def both(folder):
    """A pose-only model as a run starts with it, and the same with a new text branch; both without dropout."""
    models = []
    for use_descriptions in (False, True):
        torch.manual_seed(0)
        texts = TextEncoder(folder) if use_descriptions else None
        config = ModelConfig(hidden_dim=16, use_descriptions=use_descriptions)
        models.append(without_dropout(Uni_Sign(config, load_mt5(folder), Tokenizer(folder), texts)))
    models[1].load_state_dict(models[0].state_dict(), strict=False)
    return models


@pytest.mark.parametrize("training", [False, True])
def test_training_starts_from_exactly_the_pose_only_model(small_mt5_folder, training):
    pose_only, described = (model.train(training) for model in both(small_mt5_folder))
    batch = collate_fn([clip(number) for number in range(6)])
    first, second = pose_only(*batch), described(*batch)
    assert torch.equal(first.encoder_states, second.encoder_states)
    assert torch.equal(first.nll, second.nll)
    assert (second.gate > 0.9).all()


@pytest.mark.parametrize("with_texts", [False, True])
def test_training_without_any_text_is_the_baselines(small_mt5_folder, with_texts):
    """Bit for bit, over several steps; and with texts they matter after the first one."""
    models = [model.train() for model in both(small_mt5_folder)]
    optimizers = [torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-2) for model in models]
    numbers = range(6) if with_texts else [2, 2]
    losses = []
    for _ in range(4):
        batch = collate_fn([clip(number) for number in numbers])
        outputs = [model(*batch) for model in models]
        losses.append([output.nll.item() for output in outputs])
        for optimizer, output in zip(optimizers, outputs, strict=True):
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
    assert losses[0][0] == losses[0][1]
    assert [a == b for a, b in losses[1:]] == [not with_texts] * 3
    assert models[1].text_adapter.n_batches == 4 * with_texts
    own = models[0].state_dict()
    assert all(torch.equal(own[name], models[1].state_dict()[name]) for name in own) != with_texts


# -- the mapper ------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("dropped", [False, True])
def test_the_mapper_stands_in_for_missing_texts_alone(make, dropped, monkeypatch):
    """As far as it is trusted."""
    model = make(description_alignment=0.5, text_dropout_p=1.0)
    monkeypatch.setattr(model.description_mapper, "update_trust", lambda _: None)
    model.description_mapper.trust.fill_(0.25)
    model.freeze([model.text_encoder])
    model.train(dropped)
    texts, own = [[UP, None, DOWN], [None, None, None]], [[1, 0, 0], [0, 0, 0]]
    src_input, _ = batch_of(texts, own)
    pose, text, indicator, *_ = gate_inputs(model, src_input)
    guess = 0.25 * model.text_adapter(model.description_mapper(pose)) * root_mean_square(pose)
    given = torch.tensor([[t is not None and not dropped for t in row] for row in texts])
    wanted = torch.where(given[..., None], adapted(model, texts, pose), model.mask_embedding() + guess)
    torch.testing.assert_close(text, wanted, rtol=1e-4, atol=1e-5)
    assert indicator.tolist() == ([[0] * 3] * 2 if dropped else own)


def test_the_alignment_is_part_of_the_training_loss(make):
    batch = batch_of([[UP, None, DOWN], [LONG, LONG, None]], [[1, 0, 1], [0, 1, 0]])
    losses = {}
    for weight in (1.0, 3.0):
        # That texts are dropped makes no difference to it.
        model = make(description_alignment=weight, text_dropout_p=1.0)
        model.freeze([model.text_encoder, model.mt5_model])
        model.train()
        losses[weight] = model(*batch).loss
        predicted = model.description_mapper(model.encode_pose(batch[0]))
        features = model.text_adapter.standardise(model.text_encoder([UP, DOWN, LONG]))
        rows, own = torch.tensor([[1, 0, 2], [3, 3, 0]]), torch.tensor([[1, 0, 1], [0, 1, 0]])
        by_hand, _ = alignment_loss(predicted, features, rows, own)
    torch.testing.assert_close(losses[3.0] - losses[1.0], 2 * by_hand, rtol=1e-4, atol=1e-5)


# -- what trains ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [[0, 2, 1], [2], [2, 2]], ids=["texts", "one clip without", "two clips without"])
def test_gradient_reaches_every_weight(make, numbers):
    """Also where no clip has a text: data-parallel training reduces all gradients together."""
    model = make(description_alignment=0.5).train()
    model(*collate_fn([clip(number) for number in numbers])).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    moving = ["part_para", "pose_proj.weight", "mt5_model.lm_head.weight"]
    moving += [name for name in gradients if name.endswith("gcn.A")]
    assert [name for name in moving if not gradients[name].any()] == []
    assert all(gradients[name].any() for name in gradients if name.startswith(("mask_embedding.", "gating_fusion.")))
    if 0 in numbers:
        of_texts = [name for name in gradients if name.startswith(("text_encoder.", "text_adapter."))]
        assert all(gradients[name].any() for name in of_texts)


def test_the_body_learns_nothing_from_where_hands_are(make):
    """What a hand takes from the body is a constant to it, as in Uni-Sign."""
    model = make(use_descriptions=False)
    src_input, _ = collate_fn([clip(0, False)])
    model.pose_proj.weight.data[:, :16] = 0  # the body's own way to the output
    model.encode_pose(src_input).sum().backward()
    assert not model.gcn_modules["body"]["layer0_0"].gcn.A.grad.any()
    assert model.gcn_modules["left"]["layer0_0"].gcn.A.grad.any()


def test_frozen_modules_stay_as_they_are(make):
    model = make()
    frozen = [model.gcn_modules, model.text_encoder]
    model.freeze(frozen)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):  # also after an evaluation in between
        model.eval()
        model.train()
        assert model.training
        assert model.fusion_gcn_modules.training
        assert model.mt5_model.training
        assert not any(part.training for module in frozen for part in module.modules())
        model(*collate_fn([clip(0), clip(1)])).loss.backward()
    for name, parameter in model.named_parameters():
        still = name.startswith(("gcn_modules.", "text_encoder."))
        assert parameter.requires_grad != still, name
        assert (parameter.grad is None) == still, name
    for name, value in model.state_dict().items():
        if "running_" in name:
            assert torch.equal(value, before[name]) == name.startswith("gcn_modules."), name


def test_without_descriptions_there_is_no_text_branch(make):
    model, described = make(use_descriptions=False), make()
    own = ("text_encoder.", "text_adapter.", "mask_embedding.", "gating_fusion.")
    names = set(described.state_dict())
    assert {name for name in names if not name.startswith(own)} == set(model.state_dict())
    assert {name.split(".")[0] + "." for name in names - set(model.state_dict())} == {*own}
    src_input, tgt_input = collate_fn([clip(0)])  # descriptions that nobody asked for are not in the way
    output = model(src_input, tgt_input)
    assert output.gate is None
    assert torch.equal(output.inputs_embeds[:, -LENGTHS[0] :], model.encode_pose(src_input))


# -- loss and prompt -----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 0.7])
def test_loss_is_torchs(make, smoothing):
    model = make(label_smoothing=smoothing)
    src_input, tgt_input = collate_fn([clip(number) for number in range(4)])
    output = model(src_input, tgt_input)
    labels = model.labels(tgt_input["gt_sentence"])
    logits = as_in_transformers(model.mt5_model)(
        encoder_outputs=(output.encoder_states,), attention_mask=output.attention_mask, labels=labels
    ).logits
    smoothed = nn.CrossEntropyLoss(label_smoothing=smoothing, ignore_index=IGNORE)(
        logits.flatten(0, 1), labels.flatten()
    )
    plain = nn.CrossEntropyLoss(ignore_index=IGNORE)(logits.flatten(0, 1), labels.flatten())
    assert output.loss.item() == pytest.approx(smoothed.item(), rel=1e-5)
    assert output.nll.item() == pytest.approx(plain.item(), rel=1e-5)
    assert output.n_tokens == int((labels != IGNORE).sum())
    assert (labels == IGNORE).any()


@torch.no_grad()
@pytest.mark.parametrize("language", ["Chinese", "English"])
def test_prompt(make, language):
    model = make(use_descriptions=False, language=language)
    output = model(*collate_fn([clip(0, False), clip(3, False)]))
    ids = torch.tensor(model.tokenizer.encode(f"Translate sign language video to {language}: ", 100))
    expected = model.mt5_model.shared(ids)
    assert torch.equal(output.inputs_embeds[:, : len(ids)], expected.expand(2, -1, -1))
    assert output.attention_mask.sum(1).tolist() == [len(ids) + LENGTHS[0], len(ids) + LENGTHS[3]]


def test_recomputing_activations_changes_nothing_but_memory(make):
    """The same loss and gradients, dropout included; and fewer tensors are kept for the backward pass."""
    results = []
    for recompute in (False, True):
        torch.manual_seed(1)
        model = make().train()
        if recompute:
            model.recompute_activations()
        kept = 0

        def count(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        torch.manual_seed(2)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(*collate_fn([clip(0), clip(1)])).loss
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((loss.detach(), gradients, kept))
    torch.testing.assert_close(results[0][:2], results[1][:2])
    assert results[1][2] < 0.8 * results[0][2]
