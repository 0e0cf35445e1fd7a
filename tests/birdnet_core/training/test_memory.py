import gc

import pytest
import torch

from birdnet_core.training import memory
from birdnet_core.training.memory import forget_peak_rss, give_back_memory, is_out_of_memory, peak_rss
from tests.spellings import OTHER_FAULTS, OUT_OF_MEMORY


@pytest.mark.parametrize(("kind", "text"), OUT_OF_MEMORY)
def test_every_spelling_of_out_of_memory_is_known(kind, text):
    assert is_out_of_memory(kind(text))


@pytest.mark.parametrize(("kind", "text"), OTHER_FAULTS)
def test_other_faults_of_the_gpu_are_not_out_of_memory(kind, text):
    assert not is_out_of_memory(kind(text))


def test_the_peak_starts_anew_and_counts_what_came_and_went():
    before = forget_peak_rss()
    if before is None:
        pytest.skip("this system does not measure a process's peak")
    size = 300 * 2**20
    bytearray(b"1") * size
    assert peak_rss() >= before + 0.95 * size
    give_back_memory()
    assert forget_peak_rss() <= peak_rss() < before + size / 2


def test_a_system_without_a_peak_to_reset_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path / "none" / "here")
    assert forget_peak_rss() is None


def test_what_cublas_keeps_is_given_back_before_the_cache_is_emptied(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("cache"))
    monkeypatch.setattr(gc, "collect", lambda: calls.append("garbage"))
    monkeypatch.setattr(
        torch._C, "_cuda_clearCublasWorkspaces", lambda: calls.append("workspaces"), raising=False
    )
    give_back_memory()
    assert calls == ["garbage", "workspaces", "cache"]
    monkeypatch.delattr(torch._C, "_cuda_clearCublasWorkspaces")  # a torch without it
    give_back_memory()
    assert calls[3:] == ["garbage", "cache"]
