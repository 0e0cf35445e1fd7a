import torch

from birdnet_core.models.prototype import Prototype


def test_logits_are_cosines_times_the_scale():
    torch.manual_seed(0)
    model, features = Prototype((6,), 4, scale=10.0), 3 * torch.randn(5, 6)
    cosines = torch.nn.functional.cosine_similarity(features[:, None], model.prototypes[None], dim=2)
    torch.testing.assert_close(model(features), 10 * cosines)


def test_a_prototype_of_zeros_is_like_nothing():
    model = Prototype((6,), 2)
    with torch.no_grad():
        model.prototypes[0] = 0
    assert torch.equal(model(torch.randn(5, 6))[:, 0], torch.zeros(5))
