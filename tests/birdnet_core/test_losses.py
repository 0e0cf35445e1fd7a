"""Every registered loss, by one contract; then each against its formula in float64."""

import numpy as np
import pytest
import torch

from birdnet_core.build import build_loss
from birdnet_core.config import component
from birdnet_core.errors import ConfigError
from birdnet_core.registry import losses

COUNTS = torch.tensor([50, 20, 5, 1])


def made(name, **options):
    return build_loss(component(losses, name, options), COUNTS)


def batch(scale=3.0, n=64, seed=0):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(scale * rng.standard_normal((n, 4))).float()
    return logits, torch.from_numpy(rng.integers(0, 4, n))


def reference_focal(logits, targets, gamma, alpha=1.0):
    z = logits.double().numpy()
    log_p = z - z.max(1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))
    log_p = log_p[np.arange(len(z)), targets.numpy()]
    return float((-alpha * (1 - np.exp(log_p)) ** gamma * log_p).mean())


@pytest.mark.parametrize("name", losses.names())
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_with_finite_gradients_at_extreme_logits(name, scale, dtype):
    logits, targets = batch(scale)
    logits = logits.to(dtype).requires_grad_()
    loss = made(name)(logits, targets)
    loss.backward()
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", losses.names())
def test_right_answers_cost_less_than_wrong_ones(name):
    targets = torch.arange(4)
    right = 5 * torch.nn.functional.one_hot(targets, 4).float()
    assert made(name)(right, targets) < made(name)(-right, targets)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_is_its_formula(gamma):
    logits, targets = batch()
    expected = reference_focal(logits, targets, gamma)
    assert float(made("focal", gamma=gamma)(logits, targets)) == pytest.approx(expected, rel=1e-5)
    doubled = float(made("focal", gamma=gamma, alpha=2.0)(logits, targets))
    assert doubled == pytest.approx(2 * expected, rel=1e-5)


def test_focal_with_gamma_0_is_cross_entropy_with_its_gradient():
    logits, targets = batch()
    gradients = []
    values = []
    for loss in (made("focal", gamma=0.0), made("cross_entropy"), torch.nn.CrossEntropyLoss()):
        leaf = logits.clone().requires_grad_()
        values.append(loss(leaf, targets))
        values[-1].backward()
        gradients.append(leaf.grad)
    assert abs(values[0] - values[2]) < 1e-6
    assert abs(values[1] - values[2]) < 1e-6
    torch.testing.assert_close(gradients[0], gradients[2], atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{"gamma": -1.0}, {"gamma": 30.0}, {"alpha": 0.0}])
def test_focal_refuses_what_makes_no_sense(options):
    (name,) = options
    with pytest.raises(ConfigError, match=f"loss.{name}"):
        made("focal", **options)
