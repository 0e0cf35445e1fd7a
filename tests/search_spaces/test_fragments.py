import optuna
import pytest

from birdnet_core import registry
from search_spaces import fragments
from search_spaces.loading import load_study

N = 300
PRETRAINED = {"audio_ast": "ast-folder", "convnext": "convnext-folder"}


def sampled(space, n=N):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=4))
    return [space(study.ask()) for _ in range(n)]


@pytest.fixture(scope="module")
def joint():
    options = {name.removeprefix("audio_"): folder for name, folder in PRETRAINED.items()}
    return sampled(load_study("joint", options=options).space)


def assert_exactly_when(choices, setting, condition):
    """Assert that `setting` is chosen where `condition` holds and nowhere else, and that both occur."""
    has = [setting in each for each in choices]
    assert has == [condition(each) for each in choices]
    assert {True, False} == set(has)


@pytest.mark.parametrize(
    ("setting", "condition"),
    [
        ("loss.gamma", lambda c: c["loss.name"] == "focal"),
        ("loss.alpha", lambda c: c["loss.name"] == "focal"),
        ("loss.tau", lambda c: c["loss.name"] == "logit_adjusted"),
        ("loss.class_weights", lambda c: c["loss.name"] == "cross_entropy"),
        ("model.width", lambda c: c["model.name"] == "audio_cnn"),
        ("model.depth", lambda c: c["model.name"] == "audio_cnn"),
        ("model.size", lambda c: c["model.name"] == "audio_vit"),  # AST has a checkpoint here
        ("model.variant", lambda c: c["model.name"] == "efficientnet"),  # and ConvNeXt
        ("model.pretrained", lambda c: not c["model.name"].startswith("audio_cnn")),
        ("optim.backbone_lr", lambda c: c["model.name"] in PRETRAINED),
        ("augment.mixup.alpha", lambda c: c["augment.mixup.p"] > 0),
        ("augment.spec_augment.max_bins", lambda c: c["augment.spec_augment.p"] > 0),
        ("augment.spec_augment.max_frames", lambda c: c["augment.spec_augment.p"] > 0),
        ("augment.noise.min_snr_db", lambda c: c["augment.noise.p"] > 0),
    ],
)
def test_a_setting_is_chosen_exactly_where_it_counts(joint, setting, condition):
    assert_exactly_when(joint, setting, condition)


def test_networks_that_can_be_pretrained_see_log_mel_and_the_cnns_both_features(joint):
    seen = {}
    for choices in joint:
        seen.setdefault(choices["model.name"], set()).add(choices["features.name"])
    both, log_mel = {"mfcc", "log_mel"}, {"log_mel"}
    assert seen == {
        "audio_cnn": both, "audio_cnn_v2": both, "audio_vit": log_mel, "audio_ast": log_mel,
        "efficientnet": log_mel, "convnext": log_mel,
    }  # fmt: skip


def test_a_checkpoint_is_taken_where_it_is_given_and_nowhere_else(joint):
    for choices in joint:
        assert choices.get("model.pretrained") == PRETRAINED.get(choices["model.name"])


def test_warmup_is_0_under_one_cycle_and_for_pretrained_networks_and_varies_elsewhere(joint):
    free = set()
    for choices in joint:
        if choices["optim.schedule"] == "one_cycle" or choices["model.name"] in PRETRAINED:
            assert choices["optim.warmup_epochs"] == 0
        else:
            free.add(choices["optim.warmup_epochs"])
    assert free == {0, 1, 2, 3, 4, 5}


def test_rare_classes_are_made_up_for_in_one_way_at_most(joint):
    ways = set()
    for choices in joint:
        weights = choices.get("loss.class_weights", "none") != "none" or choices.get("loss.alpha") is not None
        adjusted = choices["loss.name"] == "logit_adjusted"
        drawn = choices["training.sampling"] != "instance"
        assert weights + adjusted + drawn <= 1
        ways.add((weights, adjusted, drawn))
    assert len(ways) == 4


def test_no_two_pieces_choose_the_same_setting():
    pieces = [
        lambda t: fragments.model(t, registry.models.names()),
        lambda t: fragments.features(t, "audio_cnn"),
        lambda t: fragments.loss(t),
        lambda t: fragments.class_balance(t, "focal"),
        lambda t: fragments.optimiser(t, is_pretrained=True),
        lambda t: fragments.regularization(t, model="audio_cnn", loss="focal"),
        lambda t: fragments.augmentation(t),
    ]
    settings = [{key for choices in sampled(piece, 100) for key in choices} for piece in pieces]
    assert all(settings)
    assert sum(map(len, settings)) == len(set.union(*settings))


def test_what_a_plugin_has_no_option_for_is_not_chosen(monkeypatch):
    def flat(input_shape, n_classes):
        """A model without options."""

    def plain(class_counts):
        """A loss without options."""

    for registered, make in ((registry.models, flat), (registry.losses, plain)):
        assert registered.names()
        monkeypatch.setattr(registered, "_entries", dict(registered._entries))
        registered.register(make.__name__)(make)
    (model,) = sampled(lambda t: fragments.model(t, ["flat"]), 1)
    (features,) = sampled(lambda t: fragments.features(t, "flat"), 1)
    (loss,) = sampled(lambda t: fragments.loss(t, ["plain"]), 1)
    (rest,) = sampled(lambda t: fragments.regularization(t, model="flat", loss="plain"), 1)
    assert (model, loss) == ({"model.name": "flat"}, {"loss.name": "plain"})
    assert set(features) == {"features.name"} and set(rest) == {"optim.weight_decay"}
    assert sampled(lambda t: fragments.class_balance(t, "plain"), 1) == [{"training.sampling": "instance"}]


def test_usual_probabilities_are_those_that_the_augmentations_state():
    for name, p in fragments.USUAL_P.items():
        described = registry.augmentations[name].make.__doc__
        assert f"Usual p: {p}." in described
