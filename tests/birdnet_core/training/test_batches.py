import json
import math
import threading

import numpy as np
import pytest
import torch

from birdnet_core.training import batches as batches_module
from birdnet_core.training.batches import ClipBatches, epoch_order, fits_on, train_and_val_clips
from birdnet_core.training.session import Session
from tests.spellings import OUT_OF_MEMORY

CPU = torch.device("cpu")


def clips(config, dataset, **options):
    return ClipBatches(
        config, dataset, ("train",), CPU, **{"is_computed": False, "is_resident": False, **options}
    )


@pytest.mark.parametrize("is_computed", [False, True])
def test_resident_batches_equal_mapped_ones(small_config, small_dataset, is_computed):
    """The GPU path keeps the values on the device; its logic is the same on the CPU."""
    mapped, resident = (
        clips(small_config, small_dataset, is_computed=is_computed, is_resident=r) for r in (False, True)
    )
    index = torch.tensor([5, 0, 3])
    for a, b in zip(mapped.features(mapped.raw(index)), resident.features(resident.raw(index)), strict=True):
        assert torch.equal(a, b)


def test_batches_are_standardised_by_the_training_split(small_config, small_dataset):
    whole = torch.cat([batch for batch, _ in clips(small_config, small_dataset).in_order(8)])
    torch.testing.assert_close(whole.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(whole.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_features_are_the_stores_features_standardised(small_config, small_dataset):
    batches = clips(small_config, small_dataset)
    features, classes = batches.features(batches.raw(torch.tensor([2, 4])))
    rows = small_dataset.rows("train")[[2, 4]]
    mean, std = (x[:, None, None] for x in (small_dataset.mean, small_dataset.std))
    np.testing.assert_allclose(
        features.numpy(), (small_dataset.stored_features(rows) - mean) / std, atol=1e-4
    )
    assert classes.tolist() == small_dataset.labels[rows].tolist()


@pytest.mark.parametrize("n_batches", [1, 2, 3, 7])
@pytest.mark.parametrize("is_prefetched", [True, False])
def test_batches_come_in_the_given_order(small_config, small_dataset, n_batches, is_prefetched, monkeypatch):
    batches = clips(small_config, small_dataset)
    monkeypatch.setattr("birdnet_core.training.batches.memory_size", lambda: 1 if is_prefetched else 10**12)
    threads = set()
    raw = batches.raw
    batches.raw = lambda index: threads.add(threading.current_thread()) or raw(index)
    indices = list(torch.randperm(len(batches)).split(math.ceil(len(batches) / n_batches)))
    found = list(batches.batches(indices))
    assert len(found) == len(indices)
    for found_raw, index in zip(found, indices, strict=True):
        assert torch.equal(found_raw.values, raw(index).values)
        assert torch.equal(found_raw.classes, batches.labels[index])
    assert (threading.main_thread() in threads) != is_prefetched


def test_an_error_while_reading_ahead_is_raised(small_config, small_dataset, monkeypatch):
    monkeypatch.setattr("birdnet_core.training.batches.memory_size", lambda: 1)
    batches = clips(small_config, small_dataset)
    with pytest.raises(IndexError):
        list(batches.batches([torch.tensor([0]), torch.tensor([10_000])]))


LABELS = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)


@pytest.mark.parametrize(
    ("sampling", "weights"),
    [("class_balanced", [1, 1, 1]), ("square_root", [math.sqrt(900), math.sqrt(90), math.sqrt(10)])],
)
def test_sampling_draws_classes_by_its_rule(sampling, weights):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([epoch_order(LABELS, sampling, generator) for _ in range(60)])
    shares = torch.bincount(LABELS[drawn]).double() / len(drawn)
    expected = torch.tensor(weights, dtype=torch.double) / sum(weights)
    std = (expected * (1 - expected) / len(drawn)).sqrt()
    assert ((shares - expected).abs() < 4 * std).all()
    # Within a class every clip is as likely as any other.
    of_rarest = torch.bincount(drawn[LABELS[drawn] == 2] - 990, minlength=10)
    assert of_rarest.min() > 0.7 * of_rarest.double().mean()


def test_instance_sampling_has_every_clip_once():
    drawn = epoch_order(LABELS, "instance", torch.Generator().manual_seed(0))
    assert sorted(drawn.tolist()) == list(range(len(LABELS)))
    assert drawn.tolist() != sorted(drawn.tolist())


@pytest.mark.parametrize(("cap", "room"), [(1.0, 1000), (0.5, 900), (0.25, 400)])
def test_values_live_on_a_gpu_only_where_they_fit_into_what_is_free_and_the_cap(monkeypatch, cap, room):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: cap)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert fits_on(torch.device("cuda"), room // 2)
    assert not fits_on(torch.device("cuda"), room // 2 + 1)
    assert not fits_on(CPU, 1)


@pytest.mark.parametrize(("kind", "text"), OUT_OF_MEMORY[:2])
def test_values_that_do_not_fit_after_all_stay_on_disk(
    small_config, small_dataset, monkeypatch, caplog, kind, text
):
    real = ClipBatches.__init__

    def full(self, *arguments, is_resident, **options):
        if is_resident:
            raise kind(text)
        real(self, *arguments, is_resident=is_resident, **options)

    monkeypatch.setattr(batches_module, "fits_on", lambda device, n_bytes: True)
    monkeypatch.setattr(ClipBatches, "__init__", full)
    train, val = train_and_val_clips(small_config, small_dataset, CPU, ())
    assert train.resident is None and val.resident is None
    assert "no room for the clips" in caplog.text


def test_held_embeddings_equal_mapped_ones_to_the_last_bit(small_config, embeddings, monkeypatch):
    held = clips(small_config, embeddings)
    monkeypatch.setattr(batches_module, "HELD_BYTES", 0)
    mapped = clips(small_config, embeddings)
    assert held.held is not None and mapped.held is None
    order = torch.randperm(len(held)).split(3)
    for a, b in zip(held.batches(order), mapped.batches(order), strict=True):
        for one, other in zip(held.features(a), mapped.features(b), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("model", ["linear", "prototype", "mlp"])
def test_a_head_trains_alike_on_held_and_on_mapped_embeddings(small_config, embeddings, monkeypatch, model):
    config = small_config.override({"model.name": model, "augment.mixup.p": 0.5})

    def history():
        session = Session(config, embeddings)
        while not session.finished:
            session.step()
        return json.dumps(
            [{k: v for k, v in row.items() if k != "epoch_s"} for row in session.progress.history]
        )

    held = history()
    monkeypatch.setattr(batches_module, "HELD_BYTES", 0)
    assert history() == held


def test_sessions_on_one_dataset_share_its_held_embeddings(small_config, embeddings):
    first, second = (clips(small_config, embeddings) for _ in range(2))
    assert first.held.data_ptr() == second.held.data_ptr()


def test_a_batch_that_is_changed_in_place_leaves_what_is_held(small_config, embeddings):
    batches = clips(small_config, embeddings)
    before = batches.held.clone()
    batches.features(batches.raw(torch.tensor([0, 1])))[0].zero_()
    assert torch.equal(batches.held, before)
