import numpy as np
import pytest
import torch
from torch import nn

from birdnet_core.build import build_model
from birdnet_core.config import OptimConfig, TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.training.optim import Plateau, build_optimizer, lr_share, parameter_groups


def shares(config, steps_per_epoch=10, epochs=10):
    return [lr_share(config, step, steps_per_epoch, epochs) for step in range(steps_per_epoch * epochs)]


def torch_rates(make_scheduler, n_steps=100, lr=1.0):
    """The learning rates that one of torch's own schedulers gives."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_warms_up_from_a_tenth_and_falls_to_zero():
    rates = shares(OptimConfig(warmup_epochs=2))
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0.55)
    assert rates[20] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
    assert max(rates) == pytest.approx(1.0)
    assert np.all(np.diff(rates[:20]) > 0) and np.all(np.diff(rates[20:]) < 0)


def test_no_warm_up_starts_at_the_peak_and_constant_stays_there():
    assert set(shares(OptimConfig(warmup_epochs=0, schedule="constant"))) == {1.0}


@pytest.mark.parametrize(
    ("schedule", "of_torch"),
    [
        ("cosine", lambda o, n: torch.optim.lr_scheduler.CosineAnnealingLR(o, n)),
        ("step", lambda o, n: torch.optim.lr_scheduler.StepLR(o, 30, gamma=0.2)),
        ("one_cycle", lambda o, n: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, n, cycle_momentum=False)),
    ],
)
@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_schedules_are_torchs_own_after_the_warm_up(schedule, of_torch, warmup_epochs):
    config = OptimConfig(schedule=schedule, warmup_epochs=warmup_epochs, decay_epochs=3, decay_factor=0.2)
    n = 100 - 10 * warmup_epochs
    expected = torch_rates(lambda optimizer: of_torch(optimizer, n), n)
    np.testing.assert_allclose(shares(config)[100 - n :], expected, atol=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "step", "one_cycle", "plateau", "constant", "wsd"])
@pytest.mark.parametrize(("steps_per_epoch", "epochs"), [(1, 1), (1, 3), (7, 2)])
@pytest.mark.parametrize("warmup_epochs", [0, 2, 9])
def test_every_schedule_is_sane_in_the_shortest_runs(schedule, steps_per_epoch, epochs, warmup_epochs):
    rates = shares(OptimConfig(schedule=schedule, warmup_epochs=warmup_epochs), steps_per_epoch, epochs)
    assert all(0 <= rate <= 1 for rate in rates)


def test_wsd_decays_over_a_fifth_of_the_epochs_up_to_each_end_and_begins_at_the_peak_again():
    rates = shares(OptimConfig(schedule="wsd", warmup_epochs=1, decay_before=(5, 40)))
    np.testing.assert_allclose(rates[:10], np.linspace(0.1, 1, 10, endpoint=False))
    first, last = (1 - np.sqrt(np.arange(n) / n) for n in (10, 20))
    np.testing.assert_allclose(rates[10:], [1] * 30 + [*first] + [1] * 30 + [*last], atol=1e-9)


def test_decays_of_wsd_do_not_overlap():
    rates = shares(OptimConfig(schedule="wsd", warmup_epochs=0, decay_before=(8, 9)))
    for decay in (rates[80:90], rates[90:]):
        np.testing.assert_allclose(decay, 1 - np.sqrt(np.arange(10) / 10), atol=1e-9)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_plateau_is_torchs_reduce_lr_on_plateau(direction):
    values = [0.1, 0.3, 0.2, 0.3, 0.1, 0.9, 0.9, 0.8, 0.7, 0.6, 0.5, 0.1, 0.2]
    plateau = Plateau(OptimConfig(schedule="plateau", decay_epochs=2, decay_factor=0.5), direction)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, direction[:3], factor=0.5, patience=1, threshold=0.0
    )
    for value in values:
        plateau.after_epoch(value)
        scheduler.step(value)
        assert plateau.share == pytest.approx(optimizer.param_groups[0]["lr"])
    assert plateau.share < 0.5


def test_plateau_does_nothing_under_another_schedule():
    plateau = Plateau(OptimConfig(decay_epochs=1), "maximize")
    for _ in range(5):
        plateau.after_epoch(0.0)
    assert plateau.share == 1.0


def test_weight_decay_spares_norms_and_biases():
    model = build_model(TrainConfig().model, (3, 16, 24), 4)
    spared, decayed = build_optimizer(model, OptimConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


class WithBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)


def test_the_backbone_has_a_learning_rate_of_its_own():
    model = WithBackbone()
    groups = parameter_groups(model, OptimConfig(lr=1e-3, backbone_lr=5e-5))
    peak = {id(p): group["peak_lr"] for group in groups for p in group["params"]}
    assert {peak[id(p)] for p in model.backbone.parameters()} == {5e-5}
    assert {peak[id(p)] for p in model.head.parameters()} == {1e-3}
    one_rate = parameter_groups(model, OptimConfig(lr=1e-3))
    assert {group["peak_lr"] for group in one_rate} == {1e-3}


def test_a_frozen_backbone_is_not_given_to_the_optimizer():
    model = WithBackbone()
    model.backbone.requires_grad_(False)
    groups = parameter_groups(model, OptimConfig(backbone_lr=5e-5))
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.head.parameters()}


def test_a_backbones_rate_without_a_backbone_is_a_config_error():
    model = build_model(TrainConfig().model, (3, 16, 24), 4)
    with pytest.raises(ConfigError, match=r"optim.backbone_lr = 5e-05 .*AudioCNN has none"):
        parameter_groups(model, OptimConfig(backbone_lr=5e-5))
