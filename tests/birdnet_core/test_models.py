"""Every registered model, by one contract; then what is special about those with a backbone."""

import ast
import json
import logging
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import birdnet_core.models
from birdnet_core.build import build_model, count_parameters
from birdnet_core.config import component
from birdnet_core.errors import ConfigError
from birdnet_core.models.audio_cnn import AudioCNN
from birdnet_core.models.backbone import fit_channels, fit_positions
from birdnet_core.registry import models
from tests.checkpoints import TOKENS, tiny_networks

# Torchvision's own counts for its networks of these names, at 224 x 224 and 1,000 classes. DeiT's paper says
# 5 M and 22 M for tiny and small; the AST checkpoint of AudioSet (527 classes) has 86.6 M.
PUBLISHED = [
    ("audio_vit", {}, (3, 224, 224), 1000, 86_567_656),
    ("audio_vit", {"size": "small"}, (3, 224, 224), 1000, 22_050_664),
    ("audio_vit", {"size": "tiny"}, (3, 224, 224), 1000, 5_717_416),
    ("audio_ast", {}, (1, 128, 1024), 527, 86_600_000),
    ("efficientnet", {}, (3, 224, 224), 1000, 5_288_548),
    ("efficientnet", {"variant": "b2"}, (3, 224, 224), 1000, 9_109_994),
    ("convnext", {}, (3, 224, 224), 1000, 28_589_128),
    ("convnext", {"variant": "small"}, (3, 224, 224), 1000, 50_223_688),
    ("convnext", {"variant": "base"}, (3, 224, 224), 1000, 88_591_464),
]
# Options with which a large model is quick on a CPU.
SMALL = {"audio_vit": {"size": "tiny"}, "audio_ast": {"size": "tiny"}}

CHECKPOINTS = tiny_networks()
PRETRAINABLE = [name for name in models.names() if "pretrained" in models[name].options]
CHECKPOINTABLE = [name for name in models.names() if "gradient_checkpointing" in models[name].options]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    # Networks this small only wait for a second thread, long so where other processes share the cores.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Return the folder of a tiny checkpoint for every name, its values far from those of a fresh network."""
    folders = {}
    torch.manual_seed(7)
    for name, (network, config, _, _) in CHECKPOINTS.items():
        model = network(config)
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                low, high = (0.5, 1.5) if key.endswith("running_var") else (-0.5, 0.5)
                value.uniform_(low, high)
        folders[name] = str(tmp_path_factory.mktemp(name))
        model.save_pretrained(folders[name])
    return folders


@pytest.fixture
def small(checkpoints):
    """Return the options with which a model of every name is quick on a CPU."""
    return {**SMALL, "convnext": {"pretrained": checkpoints["convnext"]}}


@pytest.fixture
def hub_log(caplog):
    """Return what transformers and the hub log; their own handlers hold the stderr of their first import."""
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    yield caplog
    for logger in loggers:
        logger.removeHandler(caplog.handler)


@pytest.fixture
def copied(checkpoints, tmp_path):
    """Return a function that copies the checkpoint of a name, to be spoilt."""

    def copy(name):
        shutil.copytree(checkpoints[name], tmp_path / name)
        return tmp_path / name

    return copy


def fitting(name, shape):
    """Return `shape`, or that of embeddings for a model that takes them."""
    return (48,) if getattr(models[name].make, "input_ndim", 3) == 1 else shape


def made(name, shape=(3, 40, 130), n_classes=89, **options):
    shape = fitting(name, shape)
    torch.manual_seed(0)
    return build_model(component(models, name, options), shape, n_classes)


def made_on_meta(name, shape, n_classes, **options):
    with torch.device("meta"):
        return made(name, shape, n_classes, **options)


@pytest.mark.parametrize(("name", "expected"), [("audio_cnn", 343_801), ("audio_cnn_v2", 4_222_041)])
def test_parameters_at_3_channels_and_89_classes(name, expected):
    assert count_parameters(made(name)) == expected


@pytest.mark.parametrize(("name", "options", "shape", "n_classes", "expected"), PUBLISHED)
def test_parameters_are_those_published(name, options, shape, n_classes, expected):
    n = count_parameters(made_on_meta(name, shape, n_classes, **options))
    assert n == pytest.approx(expected, rel=1e-3 if name == "audio_ast" else 0)


# The contract.


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("shape", [(3, 40, 130), (1, 128, 173), (3, 16, 24)])
def test_features_become_logits_and_every_weight_gets_a_finite_gradient(name, shape, small):
    model = made(name, shape, 5, **small.get(name, {}))
    logits = model(torch.randn(2, *fitting(name, shape)))
    assert logits.shape == (2, 5)
    logits.square().mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("name", models.names())
def test_same_seed_same_weights(name):
    options = SMALL.get(name, {})
    first, second = made(name, n_classes=5, **options), made(name, n_classes=5, **options)
    second = second.state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize("name", models.names())
def test_overfits_32_clips(name, small):
    torch.manual_seed(1)
    clips, classes = torch.randn(32, *fitting(name, (3, 16, 24))), torch.arange(32) % 4
    model = made(name, (3, 16, 24), 4, dropout=0.0, **small.get(name, {})).train()
    # A single layer has to move further than the many of a network.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 if clips.ndim == 4 else 0.05)
    for _ in range(60):
        logits = model(clips)
        if (logits.argmax(1) == classes).all():
            return
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, classes).backward()
        optimizer.step()
    pytest.fail("60 steps did not teach it 32 clips")


@pytest.mark.parametrize("name", models.names())
def test_dropout_is_an_option(name):
    model = made_on_meta(name, (3, 40, 130), 5, dropout=0.25)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0} == {0.25}
    assert models[name].options["dropout"].annotation is float


@pytest.mark.parametrize("name", models.names())
def test_weights_survive_safetensors(name, tmp_path, small):
    model = made(name, (3, 16, 24), 5, **small.get(name, {})).to(memory_format=torch.channels_last).eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    torch.manual_seed(99)
    again = build_model(component(models, name, small.get(name, {})), fitting(name, (3, 16, 24)), 5).eval()
    clips = torch.randn(2, *fitting(name, (3, 16, 24)))
    assert not torch.allclose(again(clips), model(clips))
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(again(clips), model(clips))


@pytest.mark.parametrize("name", models.names())
def test_bf16_and_channels_last_give_nearly_the_logits_of_fp32(name, small):
    model = made(name, (3, 40, 130), 5, **small.get(name, {})).eval()
    clips = torch.randn(4, *fitting(name, (3, 40, 130)))
    expected = model(clips).detach()
    model = model.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(clips.contiguous(memory_format=torch.channels_last) if clips.ndim == 4 else clips)
    assert (logits.float() - expected).abs().max() < 0.05 * expected.std() + 0.02
    logits.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", models.names())
def test_nothing_is_allocated_under_the_meta_device(name):
    model = made_on_meta(name, (3, 40, 130), 5)
    assert {p.device.type for p in [*model.parameters(), *model.buffers()]} == {"meta"}


def test_no_model_imports_transformers_before_it_is_built():
    # It takes seconds, and every command looks names up.
    for file in Path(birdnet_core.models.__file__).parent.glob("*.py"):
        for statement in ast.parse(file.read_text()).body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                assert "transformers" not in ast.unparse(statement), file


# Pretrained weights.


def test_every_model_with_pretrained_weights_is_tested_with_a_checkpoint():
    assert set(PRETRAINABLE) == set(CHECKPOINTS)


def features_of_transformers(name, folder, features):
    """Return what the network of transformers itself makes of features of its own size."""
    network = CHECKPOINTS[name][2].from_pretrained(folder).eval()
    if name == "audio_ast":
        return network(features[:, 0].transpose(1, 2)).pooler_output
    if name == "audio_vit":
        return network(features).last_hidden_state[:, 0]
    return network(features).pooler_output


@pytest.mark.parametrize("name", PRETRAINABLE)
def test_pretrained_features_are_those_of_transformers(name, checkpoints):
    shape = CHECKPOINTS[name][3]
    model = made(name, shape, 5, pretrained=checkpoints[name]).eval()
    model.head = nn.Identity()
    features = torch.randn(3, *shape)
    expected = features_of_transformers(name, checkpoints[name], features)
    torch.testing.assert_close(model(features), expected)


@pytest.mark.parametrize("name", PRETRAINABLE)
def test_pretrained_weights_arrive_whatever_the_features(name, checkpoints):
    model = made(name, (2, 40, 130), 5, pretrained=checkpoints[name])
    expected = CHECKPOINTS[name][2].from_pretrained(checkpoints[name]).state_dict()
    found = model.backbone.state_dict()
    different = {k for k in found if not torch.equal(found[k], expected[k])}
    first = {
        "efficientnet": "embeddings.convolution.weight",
        "convnext": "embeddings.patch_embeddings.weight",
    }
    assert different <= {
        first.get(name, "embeddings.patch_embeddings.projection.weight"),
        "embeddings.position_embeddings",
    }
    assert any(p.requires_grad for p in model.backbone.parameters())


@pytest.mark.parametrize("name", PRETRAINABLE)
@pytest.mark.parametrize("shape", [(3, 40, 130), (1, 128, 173), (3, 16, 24)])
def test_pretrained_models_take_features_of_any_shape(name, shape, checkpoints):
    model = made(name, shape, 5, pretrained=checkpoints[name])
    logits = model(torch.randn(2, *shape))
    logits.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", PRETRAINABLE)
def test_a_spectrogram_repeated_over_other_channels_gives_the_same(name, checkpoints):
    channels, bins, frames = CHECKPOINTS[name][3]
    other = 1 if channels == 3 else 3
    native = made(name, (channels, bins, frames), 5, pretrained=checkpoints[name]).eval()
    adapted = made(name, (other, bins, frames), 5, pretrained=checkpoints[name]).eval()
    spectrogram = torch.randn(2, 1, bins, frames)
    expected = native(spectrogram.expand(-1, channels, -1, -1))
    torch.testing.assert_close(adapted(spectrogram.expand(-1, other, -1, -1)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (3, 2), (3, 3)])
def test_channels_of_a_convolution(old, new):
    torch.manual_seed(0)
    convolution = nn.Conv2d(old, 4, 3).double()
    spectrogram = torch.randn(2, 1, 8, 8).double()
    expected = convolution(spectrogram.expand(-1, old, -1, -1))
    fit_channels(convolution, new)
    torch.testing.assert_close(convolution(spectrogram.expand(-1, new, -1, -1)), expected)


@pytest.mark.parametrize("name", PRETRAINABLE)
def test_meta_device_needs_only_the_config_of_a_checkpoint(name, copied):
    folder = copied(name)
    (folder / "model.safetensors").unlink()
    model = made_on_meta(name, (2, 40, 130), 5, pretrained=str(folder))
    assert {p.device.type for p in [*model.parameters(), *model.buffers()]} == {"meta"}
    assert model(torch.randn(2, 2, 40, 130, device="meta")).shape == (2, 5)


@pytest.mark.parametrize("name", PRETRAINABLE)
def test_loading_leaves_the_terminal_and_its_settings_alone(name, checkpoints, capfd, hub_log):
    settings = transformers.utils.logging
    before = settings.get_verbosity(), settings.is_progress_bar_enabled()
    made(name, pretrained=checkpoints[name])
    assert capfd.readouterr() == ("", "")
    assert not hub_log.records
    assert (settings.get_verbosity(), settings.is_progress_bar_enabled()) == before


def without_weights(folder):
    (folder / "model.safetensors").unlink()
    return "safetensors"


def with_a_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    return without_weights(folder)


def without_one_weight(folder):
    weights = load_file(folder / "model.safetensors")
    dropped = next(k for k in weights if k.endswith(("norm.bias", "_bn.bias")))
    del weights[dropped]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return "lacks 1 weights"


def with_another_width(folder):
    config = json.loads((folder / "config.json").read_text())
    width = "hidden_sizes" if "hidden_sizes" in config else "hidden_size"
    if width not in config:
        config["hidden_dim"] = 400
    else:
        config[width] = [8, 16, 24, 40] if width == "hidden_sizes" else 32
    (folder / "config.json").write_text(json.dumps(config))
    return "mismatched"


def with_half_a_file(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    return "header"


def without_config(folder):
    (folder / "config.json").unlink()
    return "config.json"


def of_another_architecture(folder):
    network = transformers.BertModel(
        transformers.BertConfig(**TOKENS, vocab_size=10, max_position_embeddings=8)
    )
    network.save_pretrained(folder)
    return "model_type = 'bert'"


@pytest.mark.parametrize("name", PRETRAINABLE)
@pytest.mark.parametrize(
    "spoil",
    [
        without_weights,
        with_a_pickle,
        without_one_weight,
        with_another_width,
        with_half_a_file,
        without_config,
        of_another_architecture,
    ],
)
def test_a_checkpoint_that_does_not_fit_is_an_error(name, spoil, copied, capfd, hub_log):
    folder = copied(name)
    reason = spoil(folder)
    capfd.readouterr()
    hub_log.clear()
    with pytest.raises(ConfigError) as caught:
        made(name, pretrained=str(folder))
    assert reason in str(caught.value)
    assert f"model {name!r} cannot start from pretrained = {str(folder)!r}" in str(caught.value)
    assert f"checkpoint of {CHECKPOINTS[name][1].model_type}" in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not hub_log.records


@pytest.mark.parametrize("name", PRETRAINABLE)
@pytest.mark.parametrize("given", ["./no/such/folder", "somebody/no-such-model"])
def test_a_checkpoint_that_is_not_there_is_an_error(name, given, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=f"pretrained = '{given}'.*hub id or the folder"):
        made(name, pretrained=given)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("audio_vit", "size", "tiny"),
        ("audio_ast", "size", "small"),
        ("efficientnet", "variant", "b2"),
        ("convnext", "variant", "small"),
    ],
)
def test_the_checkpoint_decides_the_architecture(name, option, value, checkpoints):
    with pytest.raises(ConfigError, match=f"{name}.*{option} = '{value}' only without pretrained"):
        made(name, pretrained=checkpoints[name], **{option: value})


# Width and depth of AudioCNN.


def test_audio_cnn_by_default_is_the_network_of_the_first_experiments():
    torch.manual_seed(0)
    model = AudioCNN((3, 40, 130), 89)
    torch.manual_seed(0)
    widths = [3, 32, 32, 64, 64, 128, 128]
    convolutions = []
    for n_in, n_out in pairwise(widths):
        convolutions += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out)]
    expected = nn.ModuleList([*convolutions, nn.Linear(128, 256), nn.Linear(256, 89)])
    given = list(model.parameters())
    assert sum(p.numel() for p in given) == 343_801
    for found, wanted in zip(given, expected.parameters(), strict=True):
        assert torch.equal(found, wanted)
    pools = [i for i, m in enumerate(m for m in model.features if not isinstance(m, nn.LeakyReLU))
             if isinstance(m, nn.MaxPool2d)]  # fmt: skip
    assert pools == [4, 9]  # after the second and the fourth convolution with its batch norm


def parameters_of_audio_cnn(channels, n_classes, width, depth):
    """Count by hand: 3x3 kernels with bias, two values a channel of batch norm, two linear layers."""
    total, before = 0, channels
    for block in range(depth):
        after = width * 2**block
        total += 9 * before * after + 3 * after + 9 * after * after + 3 * after
        before = after
    return total + before * 2 * before + 2 * before + 2 * before * n_classes + n_classes


@pytest.mark.parametrize(("width", "depth"), [(1, 1), (16, 3), (32, 4), (48, 2), (64, 5)])
def test_audio_cnn_of_any_width_and_depth(width, depth):
    model = made("audio_cnn", (3, 40, 130), 89, width=width, depth=depth)
    assert count_parameters(model) == parameters_of_audio_cnn(3, 89, width, depth)
    maps = []
    model.features[-1].register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0].shape[1:]))
    assert model(torch.randn(2, 3, 40, 130)).shape == (2, 89)
    assert maps == [(width * 2 ** (depth - 1), 40 // 2 ** (depth - 1), 130 // 2 ** (depth - 1))]


@pytest.mark.parametrize(("depth", "n_bins"), [(1, 1), (3, 4), (4, 8), (6, 32)])
def test_the_deepest_audio_cnn_for_a_spectrogram_still_sees_it(depth, n_bins):
    shape = (1, n_bins, n_bins + 3)
    assert made("audio_cnn", shape, 5, width=2, depth=depth)(torch.randn(2, *shape)).shape == (2, 5)
    with pytest.raises(
        ConfigError, match=rf"model.depth = {depth + 1} .* takes 1 to {depth}, .* {n_bins} bins"
    ):
        made("audio_cnn", shape, 5, width=2, depth=depth + 1)
    with pytest.raises(ConfigError, match=rf"{n_bins} bins and {n_bins - 1} frames"):
        made("audio_cnn", (1, n_bins, n_bins - 1), 5, width=2, depth=depth)


@pytest.mark.parametrize(("option", "value"), [("width", 0), ("width", -32), ("depth", 0)])
def test_width_and_depth_of_audio_cnn_are_positive(option, value):
    with pytest.raises(ConfigError, match=rf"model.{option} = {value} is out of range; it takes 1"):
        made("audio_cnn", **{option: value})


# The backbone in training.


@pytest.mark.parametrize("name", PRETRAINABLE)
def test_a_frozen_backbone_stays_as_it_was(name, checkpoints):
    model = made(name, pretrained=checkpoints[name], freeze_backbone=True, n_classes=5)
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    model.eval()
    model.train()
    assert model.head.training
    assert not any(module.training for module in model.backbone.modules())
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert all(p.requires_grad for p in model.head.parameters())
    model(torch.randn(4, 3, 40, 130)).square().mean().backward()
    assert all(p.grad is not None for p in model.head.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())


@pytest.mark.parametrize("name", PRETRAINABLE)
def test_a_free_backbone_is_in_the_mode_of_the_model(name, checkpoints):
    model = made(name, pretrained=checkpoints[name])
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize("name", CHECKPOINTABLE)
def test_gradient_checkpointing_computes_layers_twice_and_gives_the_same_gradients(name, checkpoints):
    features = torch.randn(2, 3, 40, 130)
    gradients, calls = [], []
    for is_on in (False, True):
        model = made(name, n_classes=5, pretrained=checkpoints[name], gradient_checkpointing=is_on)
        n_calls = []
        model.backbone.layers[0].attention.register_forward_hook(lambda *_, n=n_calls: n.append(1))
        model(features).square().mean().backward()
        gradients.append({k: p.grad for k, p in model.named_parameters()})
        calls.append(len(n_calls))
    assert calls == [1, 2]
    for key, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], expected)


@pytest.mark.parametrize("pretrained", [True, False])
def test_batch_norm_of_efficientnet_remembers_more_than_the_last_batch(pretrained, checkpoints):
    options = {"pretrained": checkpoints["efficientnet"]} if pretrained else {}
    model = made("efficientnet", (3, 48, 64), 5, **options)
    batchnorm = model.backbone.embeddings.batchnorm
    before = batchnorm.running_mean.clone()
    seen = []
    batchnorm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((0, 2, 3))))
    model(torch.randn(4, 3, 48, 64))
    torch.testing.assert_close(batchnorm.running_mean, 0.9 * before + 0.1 * seen[0])
    momenta = {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {0.1}


def test_efficientnet_from_scratch_lets_the_spectrogram_through():
    # With transformers' own draw the features of different spectrograms differ by 1e-31.
    model = made("efficientnet", (3, 64, 64), 5)
    model.head = nn.Identity()
    assert model(torch.randn(8, 3, 64, 64)).std(0).mean() > 0.05


# Patches and position embeddings.


@pytest.mark.parametrize(
    ("name", "shape", "options", "tokens"),
    [
        ("audio_ast", (1, 128, 173), {}, 12 * 16 + 2),
        ("audio_ast", (1, 128, 1024), {}, 12 * 101 + 2),
        ("audio_ast", (1, 128, 173), {"patch_stride": 16}, 8 * 10 + 2),
        ("audio_ast", (3, 16, 24), {}, 1 + 2),
        ("audio_ast", (3, 8, 8), {}, 1 + 2),
        ("audio_vit", (1, 128, 173), {}, 8 * 11 + 1),
        ("audio_vit", (3, 40, 130), {}, 3 * 9 + 1),
        ("audio_vit", (3, 8, 8), {}, 1 + 1),
    ],
)
@pytest.mark.parametrize("is_pretrained", [False, True])
def test_tokens(name, shape, options, tokens, is_pretrained, checkpoints):
    if is_pretrained:
        options = {**options, "pretrained": checkpoints[name]}
    model = made_on_meta(name, shape, 5, **options)
    seen = []
    model.backbone.register_forward_hook(lambda *hooked: seen.append(hooked[2].last_hidden_state.shape[1]))
    model(torch.randn(2, *shape, device="meta"))
    assert seen == [tokens]
    assert model.backbone.embeddings.position_embeddings.shape[1] == tokens


def test_positions_of_an_equal_grid_are_exactly_the_same():
    positions = torch.randn(1, 2 + 12 * 101, 8)
    assert torch.equal(fit_positions(positions, (12, 101), (12, 101)), positions)


@pytest.mark.parametrize(("old", "new"), [((12, 101), (12, 16)), ((8, 10), (12, 16)), ((3, 4), (1, 1))])
def test_positions_of_a_ramp_are_those_of_the_centres_of_the_new_patches(old, new):
    # What every old patch holds: its row and its column.
    ramp = torch.cartesian_prod(torch.arange(old[0]), torch.arange(old[1])).double()
    prefix = torch.tensor([[-5.0, 7.0], [3.0, 1.0]]).double()
    fitted = fit_positions(torch.cat([prefix, ramp])[None], old, new)[0]
    assert torch.equal(fitted[:2], prefix)
    # The centre of new patch i lies at (i + 1/2) old / new of the old grid, whose centres are at n + 1/2;
    # outside the outermost centres nothing is known but the last value.
    centres = [
        ((torch.arange(n).double() + 0.5) * o / n - 0.5).clamp(0, o - 1)
        for o, n in zip(old, new, strict=True)
    ]
    torch.testing.assert_close(fitted[2:], torch.cartesian_prod(*centres))


@pytest.mark.parametrize("stride", [0, 17])
def test_patch_stride_beyond_the_patch_is_an_error(stride):
    with pytest.raises(ConfigError, match=f"patch_stride = {stride} .* 1 to 16"):
        made("audio_ast", patch_stride=stride)


def test_vit_sees_the_last_frame_and_bin():
    model = made("audio_vit", (1, 40, 130), 5, size="tiny").eval()
    features = torch.zeros(3, 1, 40, 130)
    features[1, :, :, -1] = 9.0
    features[2, :, -1, :] = 9.0
    nothing, frame, row = model(features)
    assert not torch.allclose(nothing, frame)
    assert not torch.allclose(nothing, row)


def test_the_two_tokens_of_ast_differ_from_scratch():
    embeddings = made("audio_ast", size="tiny").backbone.embeddings
    assert not torch.equal(embeddings.cls_token, embeddings.distillation_token)
    assert embeddings.position_embeddings.std().item() == pytest.approx(0.02, rel=0.05)
