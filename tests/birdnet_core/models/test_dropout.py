import pytest
import torch

from birdnet_core.models.dropout import LEVELS, Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.99])
def test_a_share_p_of_the_values_is_dropped_and_the_mean_is_kept(p):
    torch.manual_seed(0)
    values = Dropout(p)(torch.ones(1000, 999))
    assert float((values == 0).float().mean()) == pytest.approx(p, abs=0.002)
    assert values.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-3)


def test_every_value_is_dropped_alone():
    torch.manual_seed(0)
    kept = (Dropout(0.3)(torch.ones(20_000, 8)) > 0).float()
    correlations = torch.corrcoef(kept.T) - torch.eye(8)
    assert float(correlations.abs().max()) < 5 / 20_000**0.5
    assert float(kept.mean(0).sub(0.7).abs().max()) < 5 * (0.21 / 20_000) ** 0.5


def test_gradients_go_through_the_values_that_are_kept():
    torch.manual_seed(0)
    features = torch.randn(7, 5, requires_grad=True)
    values = Dropout(0.4)(features)
    values.sum().backward()
    kept = values != 0
    assert torch.equal(features.grad, torch.where(kept, LEVELS / (LEVELS - round(0.4 * LEVELS)), 0.0))


def test_draws_follow_the_seed():
    torch.manual_seed(3)
    first = Dropout(0.5)(torch.ones(9, 9))
    second = Dropout(0.5)(torch.ones(9, 9))
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(torch.ones(9, 9)), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [0.0, 0.6])
def test_features_are_returned_unchanged_in_evaluation(p):
    features = torch.randn(3, 4)
    assert torch.equal(Dropout(p).eval()(features), features)
    assert torch.equal(Dropout(0.0)(features), features)
