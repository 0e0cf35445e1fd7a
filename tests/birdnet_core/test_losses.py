"""Every registered loss, by one contract; then each against its formula in float64."""

import csv
import json

import numpy as np
import pytest
import torch

from birdnet_core.build import build_loss
from birdnet_core.config import component
from birdnet_core.errors import ConfigError
from birdnet_core.losses.class_weights import class_weights
from birdnet_core.losses.focal import Focal
from birdnet_core.registry import losses

COUNTS = torch.tensor([50, 20, 5, 1])
SCHEMES = ("inverse", "balanced", "sqrt", "effective")

# Of every loss its defaults, and each option away from them.
CASES = [(name, {}) for name in losses.names()] + [
    *(("cross_entropy", {"class_weights": scheme, "label_smoothing": 0.1}) for scheme in SCHEMES),
    ("cross_entropy", {"label_smoothing": 0.2}),
    ("cross_entropy", {"class_weights": "effective", "beta": 0.9}),
    *(("focal", {"alpha": scheme, "label_smoothing": 0.1}) for scheme in SCHEMES),
    ("focal", {"gamma": 0.5, "alpha": 0.25}),
    ("focal", {"gamma": 0.0}),
    ("focal", {"alpha": "effective", "beta": 0.9}),
    ("logit_adjusted", {"tau": 2.5, "label_smoothing": 0.1}),
]
every_case = pytest.mark.parametrize(("name", "options"), CASES)


def made(name, counts=COUNTS, **options):
    return build_loss(component(losses, name, options), counts)


def batch(scale=3.0, n=64, seed=0):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(scale * rng.standard_normal((n, 4))).float()
    return logits, torch.from_numpy(rng.integers(0, 4, n))


def soft_targets(n=64, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.full(4, 0.3), n)).float()


def one_hot(targets):
    return torch.nn.functional.one_hot(targets, 4).float()


def numpy_weights(scheme, beta):
    n = COUNTS.numpy().astype(np.float64)
    effective = np.array([1 / sum(beta**j for j in range(int(count))) for count in n])
    return {
        "none": np.ones(4),
        "inverse": n.sum() / (4 * n),
        "balanced": 4 / (2 * n),
        "sqrt": np.sqrt(n.sum() / (4 * n)),
        "effective": effective * 4 / effective.sum(),
    }[scheme]


def numpy_loss(name, logits, targets, options):
    """Return the loss in float64, clip by clip and class by class, as the papers write it."""
    o = {
        "beta": 0.999,
        "label_smoothing": 0.0,
        "class_weights": "none",
        "alpha": None,
        "gamma": 2.0,
        "tau": 1,
    }
    o |= options
    z = logits.double().numpy()
    if name == "logit_adjusted":
        z = z + o["tau"] * np.log(COUNTS.numpy() / COUNTS.numpy().sum())
    scheme = o["alpha"] if isinstance(o["alpha"], str) else o["class_weights"]
    weights = numpy_weights(scheme, o["beta"]) * (o["alpha"] if isinstance(o["alpha"], float) else 1.0)
    total = divisor = 0.0
    for i in range(len(z)):
        p = np.exp(z[i] - z[i].max()) / np.exp(z[i] - z[i].max()).sum()
        for c in range(4):
            t = float(targets[i, c]) if targets.ndim == 2 else float(targets[i] == c)
            cost = -weights[c] * np.log(p[c]) * ((1 - p[c]) ** o["gamma"] if name == "focal" else 1.0)
            total += ((1 - o["label_smoothing"]) * t + o["label_smoothing"] / 4) * cost
            divisor += weights[c] * t if name == "cross_entropy" else t
    return total / divisor


@every_case
def test_loss_is_its_formula_in_float64(name, options):
    logits, targets = batch()
    for given in (targets, soft_targets()):
        expected = numpy_loss(name, logits, given, options)
        assert float(made(name, **options)(logits, given)) == pytest.approx(expected, rel=2e-6)


@every_case
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_with_finite_gradients_at_extreme_logits(name, options, scale, dtype):
    logits, targets = batch(scale)
    for given in (targets, soft_targets()):
        leaf = logits.to(dtype).requires_grad_()
        loss = made(name, **options)(leaf, given)
        loss.backward()
        assert loss.ndim == 0
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(leaf.grad).all()


@every_case
def test_half_precision_logits_are_computed_with_in_float32(name, options):
    logits, targets = batch()[0].bfloat16(), batch()[1]
    loss = made(name, **options)
    assert torch.equal(loss(logits, targets), loss(logits.float(), targets))
    assert loss(logits.double(), targets).dtype == torch.float32


@every_case
def test_certain_and_right_or_wrong_is_finite(name, options):
    targets = torch.arange(4)
    for sign in (1e4, -1e4):
        logits = (sign * one_hot(targets)).bfloat16().requires_grad_()
        loss = made(name, **options)(logits, targets)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()


@every_case
def test_probabilities_of_one_class_cost_what_the_class_costs(name, options):
    logits, targets = batch()
    loss = made(name, **options)
    torch.testing.assert_close(loss(logits, one_hot(targets)), loss(logits, targets), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(loss.normaliser(one_hot(targets)), loss.normaliser(targets))


@every_case
@pytest.mark.parametrize("is_soft", [False, True])
def test_parts_of_a_batch_add_up_to_the_whole(name, options, is_soft):
    logits, targets = batch()
    targets = soft_targets() if is_soft else targets
    loss = made(name, **options)
    leaf, parted = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    whole = loss(leaf, targets)
    whole.backward()
    parts = [(parted[a:b], targets[a:b]) for a, b in ((0, 10), (10, 11), (11, 64))]
    total = sum(loss(z, t) * loss.normaliser(t) for z, t in parts) / loss.normaliser(targets)
    total.backward()
    torch.testing.assert_close(total, whole, atol=0, rtol=1e-5)
    torch.testing.assert_close(parted.grad, leaf.grad, atol=1e-7, rtol=1e-5)


@every_case
def test_right_answers_cost_less_than_wrong_ones(name, options):
    targets = torch.arange(4)
    right = 5 * one_hot(targets)
    for given in (targets, one_hot(targets)):
        assert made(name, **options)(right, given) < made(name, **options)(-right, given)


@every_case
def test_a_class_without_training_clips_leaves_the_loss_finite(name, options):
    logits, targets = batch()
    loss = made(name, torch.tensor([50, 20, 5, 0]), **options)(logits, targets.clamp(max=2))
    assert torch.isfinite(loss)


@every_case
def test_a_loss_has_no_parameters_and_no_state(name, options):
    loss = made(name, **options)
    assert list(loss.parameters()) == []
    assert loss.state_dict() == {}


OUT_OF_RANGE = [
    ("label_smoothing", -0.1, "0 to below 1"),
    ("label_smoothing", 1.0, "0 to below 1"),
    ("beta", 1.0, "0 to below 1"),
    ("beta", -0.1, "0 to below 1"),
    ("gamma", -1.0, "0 to 20"),
    ("gamma", 30.0, "0 to 20"),
    ("alpha", 0.0, "none, more than 0"),
    ("alpha", -1.0, "none, more than 0"),
    ("tau", -1.0, "0 to 10"),
    ("tau", 11.0, "0 to 10"),
]


@pytest.mark.parametrize(
    ("name", "option", "value", "accepted"),
    [(name, *row) for name in losses.names() for row in OUT_OF_RANGE if row[0] in losses[name].options],
)
def test_an_option_out_of_range_is_a_config_error(name, option, value, accepted):
    with pytest.raises(ConfigError, match=rf"loss\.{option} = {value} is out of range; it takes {accepted}"):
        made(name, **{option: value})


def test_a_whole_number_is_an_alpha_too():
    logits, targets = batch()
    whole = Focal(COUNTS, alpha=2)(logits, targets)
    assert float(whole) == pytest.approx(2 * float(Focal(COUNTS)(logits, targets)))


def test_cross_entropy_is_torchs_own():
    logits, targets = batch()
    for scheme in ("none", *SCHEMES):
        for smoothing in (0.0, 0.1):
            expected = torch.nn.functional.cross_entropy(
                logits.double(),
                targets,
                weight=torch.from_numpy(numpy_weights(scheme, 0.999)),
                label_smoothing=smoothing,
            )
            ours = made("cross_entropy", class_weights=scheme, label_smoothing=smoothing)(logits, targets)
            assert float(ours) == pytest.approx(float(expected), rel=1e-6)


def test_cross_entropy_of_mixed_clips_is_torchs_own():
    logits, targets = batch()[0], soft_targets()
    expected = torch.nn.functional.cross_entropy(logits.double(), targets.double(), label_smoothing=0.1)
    assert float(made("cross_entropy", label_smoothing=0.1)(logits, targets)) == pytest.approx(
        float(expected)
    )


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
    torch.testing.assert_close(gradients[1], gradients[2], atol=1e-6, rtol=0)


def test_focal_by_hand():
    # p = (3/4, 1/4): -2 * (1 - 3/4)^2 * log(3/4)
    logits = torch.tensor([[np.log(3.0), 0.0]], dtype=torch.float32)
    loss = made("focal", torch.tensor([1, 1]), gamma=2.0, alpha=2.0)
    assert float(loss(logits, torch.tensor([0]))) == pytest.approx(-2 / 16 * np.log(0.75))


def test_logit_adjusted_leaves_nothing_of_the_prior_in_the_logits():
    # One input, seen 50, 20, 5 and 1 times with each label: the logits that cost least are flat, because
    # all that the shares of the labels say is in the prior.
    logits = torch.zeros(1, 4, requires_grad=True)
    targets = torch.repeat_interleave(torch.arange(4), COUNTS)
    made("logit_adjusted")(logits.expand(len(targets), 4), targets).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 4), atol=1e-6, rtol=0)
    plain = torch.zeros(1, 4, requires_grad=True)
    made("logit_adjusted", tau=0.0)(plain.expand(len(targets), 4), targets).backward()
    assert plain.grad.abs().max() > 0.1


def test_the_prior_of_a_class_without_clips_is_that_of_one_clip():
    logits, targets = batch()
    with_none = made("logit_adjusted", torch.tensor([50, 20, 5, 0]))(logits, targets)
    assert float(with_none) == pytest.approx(float(made("logit_adjusted")(logits, targets)))


@pytest.mark.parametrize("scheme", ["none", *SCHEMES])
def test_class_weights_are_their_formula(scheme):
    for beta in (0.0, 0.9, 0.999):
        np.testing.assert_allclose(
            class_weights(scheme, COUNTS, beta), numpy_weights(scheme, beta), rtol=1e-6
        )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_class_without_clips_has_weight_0(scheme):
    weights = class_weights(scheme, torch.tensor([50, 0, 5, 1]))
    assert weights[1] == 0
    assert (weights[[0, 2, 3]] > 0).all()
    assert torch.isfinite(weights).all()


def test_effective_weights_sum_to_the_number_of_classes():
    assert float(class_weights("effective", torch.tensor([50, 0, 5, 1])).sum()) == pytest.approx(4)


def test_inverse_and_balanced_weights_make_one_cross_entropy():
    logits, targets = batch()
    inverse, balanced = (made("cross_entropy", class_weights=w) for w in ("inverse", "balanced"))
    torch.testing.assert_close(inverse(logits, targets), balanced(logits, targets))
    torch.testing.assert_close(inverse(logits, soft_targets()), balanced(logits, soft_targets()))
    assert abs(inverse(logits, targets) - made("cross_entropy")(logits, targets)) > 0.01


@pytest.mark.parametrize(
    ("scheme", "key"),
    [("inverse", "inverse_frequency"), ("balanced", "balanced"), ("sqrt", "sqrt_reweighting")],
)
def test_class_weights_are_those_of_the_first_experiments(shared, scheme, key):
    folder = shared / "seed_results"
    if not folder.is_dir():
        pytest.skip("the results of the first experiments are not among the shared files")
    # 11,076 recordings of 90 species.
    with (folder / "class_counts.csv").open() as file:
        counts = {row["species"]: int(row["n_recordings"]) for row in csv.DictReader(file)}
    expected = json.loads((folder / "class_weights.json").read_text())[key]
    weights = class_weights(scheme, torch.tensor(list(counts.values())))
    np.testing.assert_allclose(weights, [expected[species] for species in counts], rtol=1e-6)
