"""Every registered model, by one contract."""

import pytest
import torch

from birdnet_core.build import build_model, count_parameters
from birdnet_core.config import component
from birdnet_core.registry import models

PARAMETERS = {"audio_cnn": 343_801, "audio_cnn_v2": 4_222_041}


def made(name, shape=(3, 40, 130), n_classes=89, **options):
    torch.manual_seed(0)
    return build_model(component(models, name, options), shape, n_classes)


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_parameters_at_3_channels_and_89_classes(name, expected):
    assert count_parameters(made(name)) == expected


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("shape", [(3, 40, 130), (1, 128, 173), (3, 16, 24)])
def test_pictures_become_logits_and_every_weight_gets_a_finite_gradient(name, shape):
    model = made(name, shape, 5)
    logits = model(torch.randn(4, *shape))
    assert logits.shape == (4, 5)
    logits.square().mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("name", models.names())
def test_same_seed_same_weights(name):
    first, second = made(name, n_classes=5).state_dict(), made(name, n_classes=5).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("name", models.names())
def test_overfits_32_clips(name):
    torch.manual_seed(1)
    clips, classes = torch.randn(32, 3, 16, 24), torch.arange(32) % 4
    model = made(name, (3, 16, 24), 4, dropout=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(clips), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(clips).argmax(1) == classes).all()


@pytest.mark.parametrize("name", models.names())
def test_dropout_is_an_option(name):
    model = made(name, dropout=0.25, n_classes=5)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
