"""What cells of an ablation share: with the same seed, the same weights and the same order of clips."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from birdnet_core import registry
from birdnet_core.build import build, build_model
from birdnet_core.config import TrainConfig
from birdnet_core.training.session import Session

SMALL = {"audio_vit": {"model.size": "tiny"}, "audio_ast": {"model.size": "tiny"}}
# Heads, which have one layer or two, are left out: these are claims about networks of many.
MODELS = [n for n in registry.models.names() if getattr(registry.models[n].make, "input_ndim", 3) == 3]
# Of the rest of a config, all that an ablation may vary without another network.
CHANGES = {
    "dropout": {"model.dropout": 0.1},
    "loss": {"loss.name": "focal", "loss.gamma": 2.0, "loss.alpha": "inverse"},
    "learning-rate": {"optim.lr": 1e-4, "optim.warmup_epochs": 0},
    "batch": {"training.batch_size": 64, "training.ema_decay": 0.9},
    **{f"augment-{name}": {f"augment.{name}.p": 0.9} for name in registry.augmentations.names()},
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(model, **more):
    return TrainConfig().override({"model.name": model, **SMALL.get(model, {}), **more})


def weights(config, shape=(3, 40, 130), n_classes=5):
    torch.rand(3)  # whatever else the process has drawn
    return build(config, shape, torch.arange(1, n_classes + 1), torch.device("cpu")).model.state_dict()


def is_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("model", MODELS)
def test_what_is_no_part_of_the_network_leaves_initial_weights_alone(model):
    base = config_of(model, **{"model.dropout": 0.5})
    expected = weights(base)
    for name, change in CHANGES.items():
        assert is_equal(weights(base.override(change)), expected), name
    assert not is_equal(weights(base.override({"seed": 1})), expected)


# With one channel, EfficientNet's first convolution has the shape of its first depthwise one, and its draw.
COINCIDENCE = {"efficientnet": {"backbone.encoder.blocks.0.depthwise_conv.depthwise_conv.weight"}}


@pytest.mark.parametrize("model", MODELS)
def test_a_first_layer_of_another_shape_leaves_the_weights_after_it_alone(model):
    mfcc, log_mel = weights(config_of(model)), weights(config_of(model), (1, 128, 173))
    layers = {name.rpartition(".")[0] for name in mfcc if mfcc[name].shape != log_mel[name].shape}
    assert 1 <= len(layers) <= 2, "the first layer, and positions where there are some"
    # The bounds of a bias follow from the shape of its layer's weight.
    later = {name for name in mfcc if name.rpartition(".")[0] not in layers}
    assert len(later) > 10
    differ = {name for name in later if not torch.equal(mfcc[name], log_mel[name])}
    assert differ == COINCIDENCE.get(model, set())


def test_networks_of_other_depth_share_the_blocks_that_both_have():
    three, four = (weights(config_of("audio_cnn", **{"model.depth": depth})) for depth in (3, 4))
    shared = [k for k in three if k.startswith("features.") and torch.equal(three[k], four[k])]
    assert len([k for k in three if k.startswith("features.")]) == len(shared) == 6 * 7


def test_a_head_on_pretrained_weights_is_that_on_fresh_ones(tiny_ast):
    base = config_of("audio_ast", **{"model.size": "base", "model.pretrained": str(tiny_ast)})
    heads = [
        {k: v for k, v in weights(base.override(change), (1, 128, 64)).items() if k.startswith("head")}
        for change in ({}, {"model.patch_stride": 16}, {"model.freeze_backbone": True})
    ]
    assert len(heads[0]) == 4
    assert is_equal(heads[0], heads[1]) and is_equal(heads[0], heads[2])
    plain = build_model(base.model, (1, 128, 64), 5).state_dict()
    drawn = weights(base, (1, 128, 64))
    assert all(torch.equal(drawn[k], plain[k]) for k in plain if k.startswith("backbone"))


@pytest.mark.parametrize("model", MODELS)
def test_weights_have_the_distribution_of_an_unpaired_draw(model):
    config = config_of(model)
    torch.manual_seed(0)
    plain = build_model(config.model, (3, 40, 130), 5).state_dict()
    paired = weights(config)
    assert paired.keys() == plain.keys()
    n_drawn = 0
    for name, expected in plain.items():
        value, n = paired[name], expected.numel()
        if not expected.is_floating_point() or n < 2 or expected.std() == 0:
            assert torch.equal(value, expected), name
            continue
        n_drawn += 1
        std = float(expected.std())
        # Six standard errors of a difference; that of a std is at most as for a normal distribution.
        error = std * math.sqrt(2 / n)
        assert float(value.mean()) == pytest.approx(float(expected.mean()), abs=6 * error), name
        if n > 20:
            assert float(value.std()) == pytest.approx(std, abs=6 * error / math.sqrt(2)), name
            ends = [float(v.abs().max()) for v in (value, expected)]
            assert ends[0] == pytest.approx(ends[1], rel=0.5), name
    assert n_drawn > 5


@pytest.mark.parametrize("model", MODELS)
def test_no_two_weights_of_a_network_are_the_same_draw(model):
    drawn = [v.flatten() for v in weights(config_of(model)).values() if v.ndim > 1 and v.std() > 0]
    for one, other in combinations(drawn, 2):
        if len(one) == len(other) > 100:
            assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 6 / math.sqrt(len(one))


class WithItsOwnDraws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(64, 64) * 7)
        self.linear = nn.Linear(64, 64)
        nn.init.orthogonal_(self.linear.weight)


def test_a_networks_own_way_to_draw_is_kept(monkeypatch):
    monkeypatch.setattr("birdnet_core.build.build_model", lambda *_: WithItsOwnDraws())
    one, again = weights(TrainConfig()), weights(TrainConfig())
    assert is_equal(one, again)
    assert float(one["scale"].std()) == pytest.approx(7, rel=0.1)
    square = one["linear.weight"]
    torch.testing.assert_close(square @ square.T, torch.eye(64), rtol=0, atol=1e-5)


# The order of clips.


def order_of_two_epochs(config, dataset):
    """Return the clips of two epochs in the order in which they are trained on."""
    session = Session(config, dataset)
    read, seen = session.train_clips.batches, []

    def batches(indices):
        seen.extend(torch.cat(list(indices)).tolist())
        return read(indices)

    session.train_clips.batches = batches
    session.step(), session.step()
    return np.array(seen).reshape(2, -1)


@pytest.mark.parametrize("change", [*CHANGES, "model"])
def test_nothing_but_the_seed_changes_the_order_of_clips(small_config, small_dataset, change):
    changes = {**CHANGES, "model": {"model.name": "audio_cnn_v2"}}
    expected = order_of_two_epochs(small_config, small_dataset)
    assert (np.sort(expected, axis=1) == np.arange(expected.shape[1])).all()
    assert (expected[0] != expected[1]).any()
    given = order_of_two_epochs(small_config.override(changes[change]), small_dataset)
    np.testing.assert_array_equal(given, expected)
    other = order_of_two_epochs(small_config.override({"seed": 1}), small_dataset)
    assert (other != expected).any()
