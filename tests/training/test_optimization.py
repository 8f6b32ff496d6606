"""Groups of parameters and learning rates: those of Uni-Sign, and warm-up and floor by hand."""

import json

import pytest
import torch
from torch import nn

from config import OPTIMIZERS, SCHEDULES, ModelConfig
from training.optimization import OptimizerConfig, build_optimizer, build_schedule, lr_lambda, parameter_groups


def arguments(**changes):
    return OptimizerConfig(**{"lr": 3e-4, "min_lr": 0.0, **changes})


@pytest.fixture(scope="module")
def recorded(shared_reference):
    return json.loads((shared_reference / "optimizer_groups.json").read_text(encoding="utf-8"))


def rates(args, steps_per_epoch, n_steps):
    """The learning rates that the first steps really use."""
    optimizer = build_optimizer(nn.Linear(2, 2), args)
    schedule = build_schedule(optimizer, args, steps_per_epoch)
    used = []
    for _ in range(n_steps):
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return used


@pytest.mark.parity
def test_groups_are_the_official_ones(recorded, reference_model):
    model = reference_model(ModelConfig())
    optimizer = build_optimizer(model, arguments())
    names = {parameter: name for name, parameter in model.named_parameters()}
    official = recorded["pose"]["groups"]
    assert f"{type(optimizer).__module__}.{type(optimizer).__name__}" == recorded["pose"]["optimizer"]
    assert len(optimizer.param_groups) == len(official) == 2
    for group, expected in zip(optimizer.param_groups, official, strict=True):
        assert [names[parameter] for parameter in group["params"]] == expected["params"]
        for key in ("weight_decay", "lr", "eps", "amsgrad"):
            assert group[key] == expected[key], key
        assert list(group["betas"]) == expected["betas"]


@pytest.mark.parity
@pytest.mark.parametrize("name", ["no_warmup_20_steps", "warmup_5_of_30"])
@pytest.mark.parametrize("steps_per_epoch", [1, 5])
def test_rates_are_the_official_ones(recorded, name, steps_per_epoch):
    expected = recorded["cosine_schedule"][name]
    args = arguments(
        lr=expected["base_lr"],
        epochs=expected["num_training_steps"] // steps_per_epoch,
        warmup_epochs=expected["num_warmup_steps"] / steps_per_epoch,
    )
    used = rates(args, steps_per_epoch, len(expected["lr_used_at_step"]))
    assert used == pytest.approx(expected["lr_used_at_step"], rel=1e-12, abs=1e-18)


def test_what_does_not_train_is_in_no_group():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    no_decay, decay = parameter_groups(model, 0.05)
    assert no_decay["params"] == [model[1].weight, model[1].bias, model[2].bias]
    assert decay["params"] == [model[2].weight]
    assert (no_decay["weight_decay"], decay["weight_decay"]) == (0.0, 0.05)


def test_an_empty_group_is_left_out():
    model = nn.Linear(2, 3, bias=False)
    assert [group["params"] for group in parameter_groups(model, 0.05)] == [[model.weight]]


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="--trainable: no parameter is left"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), arguments())


def test_a_trained_text_encoder_learns_at_a_tenth_of_the_rate():
    model = nn.ModuleDict({"decoder": nn.Linear(2, 2), "text_encoder": nn.Linear(2, 2)})
    args = arguments(lr=0.1, epochs=2, warmup_epochs=1)
    optimizer = build_optimizer(model, args)
    schedule = build_schedule(optimizer, args, steps_per_epoch=4)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1, 1, 1]
    for _ in range(8):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([rates[0]] * 2 + [0.1 * rates[0]] * 2)
        optimizer.step()
        schedule.step()
    assert rates[0] > 0


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_every_optimizer_takes_its_flags(opt):
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, arguments(opt=opt, lr=0.1, opt_eps=1e-6, opt_betas=(0.8, 0.9)))
    assert type(optimizer) is {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[opt]
    for group in optimizer.param_groups:
        assert group["lr"] == 0.1
        if opt == "sgd":
            assert group["momentum"] == 0.9
        else:
            assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6)
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert (model.weight < before).all()


def test_warm_up_rises_in_a_line_then_falls():
    used = rates(arguments(lr=1.0, epochs=4, warmup_epochs=0.5), steps_per_epoch=8, n_steps=32)
    assert used[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert all(later < earlier for earlier, later in zip(used[4:], used[5:], strict=False))
    assert used[18] == pytest.approx(0.5)  # half way between the end of the warm-up and the end


def test_linear_and_constant():
    linear = rates(arguments(lr=2.0, epochs=2, warmup_epochs=1, sched="linear"), steps_per_epoch=4, n_steps=8)
    assert linear == pytest.approx([0, 0.5, 1, 1.5, 2, 1.5, 1, 0.5])
    assert rates(arguments(lr=2.0, epochs=1, sched="constant"), steps_per_epoch=3, n_steps=3) == [2.0] * 3


@pytest.mark.parametrize("sched", SCHEDULES)
def test_the_floor_holds_after_the_warm_up(sched):
    args = arguments(lr=1e-3, min_lr=1e-4, epochs=10, warmup_epochs=2, sched=sched)
    used = rates(args, steps_per_epoch=10, n_steps=110)
    assert used[:3] == pytest.approx([0, 5e-5, 1e-4])
    assert min(used[20:100]) >= 1e-4 * (1 - 1e-9)
    assert used[99] == pytest.approx(1e-3 if sched == "constant" else 1e-4)
    assert used[20] == pytest.approx(1e-3)


def test_a_run_of_no_steps_has_a_rate():
    assert lr_lambda("cosine", warmup_steps=0, total_steps=0)(0) == 1.0
