"""What trials are given of a GPU, with memory that is made up: nothing here needs one."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.training.probe import Probe
from tuning.engine.dispatch import Dispatcher
from tuning.engine.halt import Halt
from tuning.engine.journal import Journal
from tuning.engine.packing import RESERVE, Node
from tuning.engine.placement import MOST_MEASURED, Placement, place, to_measure
from tuning.engine.searcher import PlannedSearcher

GIB = 2**30
SMALL_NET = TrainConfig()
LARGE_NET = TrainConfig().override({"model.name": "audio_cnn_v2"})
MACHINE = [Node(cpus=16, gpus=2)]


def measure(config, folder):
    """A Probe in which the larger network takes ten times the memory."""
    peak = GIB if config.model.name == "audio_cnn" else 10 * GIB
    facts = {name: 0 for name in Probe.__dataclass_fields__}
    return Probe(**{**facts, "device": "fake", "gpu_peak_bytes": peak, "gpu_context_bytes": GIB // 2})


def packed(gpu_gib=24):
    return place(
        "auto",
        1,
        MACHINE,
        [SMALL_NET, LARGE_NET, replace(SMALL_NET, seed=3)],
        lambda config: None,
        measure=measure,
        gpu_bytes=gpu_gib * GIB,
    )


def cap(n, gpu_gib):
    """What torch may take in each of n trials on a GPU: its part of 95 %, less half a GiB for a context."""
    return 0.95 / n - 0.5 / gpu_gib


def test_auto_gives_each_arm_what_it_needs_and_caps_it():
    placement = packed()
    small, large = (placement.of(c.to_dict()) for c in (SMALL_NET, LARGE_NET))
    assert small["resources"] == {"cpu": 1.0, "gpu": 0.125}  # 8 on each: there are 16 CPUs
    assert large["resources"] == {"cpu": 1.0, "gpu": 0.5}
    assert placement.concurrent == 16
    for given, n in ((small, 8), (large, 2)):
        assert n * (given["memory_cap"] * 24 + 0.5) <= (1 - RESERVE) * 24 + 1e-9


def test_an_arm_that_fits_once_has_the_gpu_for_itself():
    given = packed(gpu_gib=12).of(LARGE_NET.to_dict())
    assert (given["resources"]["gpu"], given["memory_cap"]) == (1.0, None)


def test_an_arm_that_was_not_measured_is_given_what_the_largest_of_its_network_needs():
    for known in (SMALL_NET, LARGE_NET):
        late = known.override({"training.batch_size": 512})
        assert packed().of(late.to_dict()) == packed().of(known.to_dict())
    unknown = TrainConfig().override({"model.name": "audio_vit"})
    assert packed().of(unknown.to_dict()) == packed().of(LARGE_NET.to_dict())


def test_of_many_arms_the_largest_of_each_network_is_measured_for_all(small_dataset):
    few = [net.override({"training.batch_size": size}) for net in (SMALL_NET, LARGE_NET) for size in (8, 16)]
    more = [
        *(SMALL_NET.override({"training.batch_size": size}) for size in (32, 64, 128)),
        SMALL_NET.override({"training.batch_size": 512, "training.micro_batch_size": 64}),
        *(LARGE_NET.override({"model.dropout": 0.0, "training.batch_size": size}) for size in (8, 16)),
    ]
    folder = lambda config: small_dataset.folder  # noqa: E731
    assert len(few) <= MOST_MEASURED < len(few + more)
    assert list(to_measure(few, folder).values()) == few  # each for itself
    chosen = to_measure(few + more, folder)
    assert len(chosen) == 10
    assert {each.config_id for each in chosen.values()} == {more[2].config_id, few[3].config_id}
    measured = []

    def probe_of(config, folder):
        measured.append(config.model.name)
        return measure(config, folder)

    placement = place("auto", 1, MACHINE, few + more, folder, measure=probe_of, gpu_bytes=24 * GIB)
    assert measured == ["audio_cnn", "audio_cnn_v2"]
    for config in few + more:
        gpus = {"audio_cnn": 0.125, "audio_cnn_v2": 0.5}[config.model.name]
        assert placement.of(config.to_dict())["resources"]["gpu"] == gpus


def test_an_arm_larger_than_a_gpu_is_refused():
    with pytest.raises(ConfigError, match=r"model.name=audio_cnn_v2.*more than a GPU of 8.0 GiB has"):
        packed(gpu_gib=8)


@pytest.mark.parametrize(
    ("gpus", "n_gpus", "expected"),
    [
        (None, 2, {"gpu": 1.0, "cap": None, "concurrent": 2}),
        (None, 0, {"gpu": 0.0, "cap": None, "concurrent": 16}),
        ("auto", 0, {"gpu": 0.0, "cap": None, "concurrent": 16}),
        (0.25, 2, {"gpu": 0.25, "cap": cap(4, 24), "concurrent": 8}),
        (0.4, 2, {"gpu": 0.4, "cap": cap(2, 24), "concurrent": 4}),
        (2.0, 2, {"gpu": 2.0, "cap": None, "concurrent": 1}),
    ],
)
def test_a_number_of_gpus_is_the_same_for_every_arm(gpus, n_gpus, expected):
    nodes = [Node(cpus=16, gpus=n_gpus)]
    placement = place(
        gpus, 1, nodes, [SMALL_NET, LARGE_NET], lambda config: None, gpu_bytes=24 * GIB if n_gpus else None
    )
    assert placement.concurrent == expected["concurrent"]
    for config in (SMALL_NET, LARGE_NET):
        given = placement.of(config.to_dict())
        assert given["resources"]["gpu"] == expected["gpu"]
        assert given["memory_cap"] == (expected["cap"] and pytest.approx(expected["cap"]))


def test_the_contexts_of_all_trials_on_a_gpu_are_counted_also_where_the_driver_has_none():
    def given(gpus, **options):
        return place(gpus, 1, MACHINE, [SMALL_NET], lambda config: None, **options).memory_cap

    assert given(0.25, gpu_bytes=80 * GIB) == pytest.approx(cap(4, 80))
    assert given(0.25) == pytest.approx(cap(4, 16))  # a GPU that is not known is taken for a small one
    with pytest.raises(ConfigError, match="context of each takes 512.0 MiB; raise --gpus-per-trial"):
        given(0.02, gpu_bytes=16 * GIB)


def test_a_trial_is_placed_on_one_node_and_waits_for_one_where_nodes_may_join():
    ones = [Node(cpus=1, gpus=1)] * 2

    def placed(gpus, cpus=1, nodes=ones, **options):
        return place(gpus, cpus, nodes, [SMALL_NET], lambda config: None, **options)

    assert placed(0.4).concurrent == 2  # as many CPUs
    for asked in ({"gpus": None, "cpus": 2}, {"gpus": 2.0}):
        with pytest.raises(ConfigError, match="no node of the cluster has that"):
            placed(**asked)
        assert placed(**asked, is_open=True).concurrent == 0
    assert placed(None, nodes=[Node(cpus=0)], is_open=True).gpus == 0


def test_out_of_memory_on_a_share_is_retried_once_on_a_whole_gpu(tmp_path):
    line = {"study": "s", "trial_id": SMALL_NET.trial_id, "number": 0, "factors": {}}
    journal = Journal(RunFolder(tmp_path), lambda event: None, Halt())
    source = PlannedSearcher([{"config": SMALL_NET.to_dict(), "journal": line}])
    dispatcher = Dispatcher(source, journal, Placement(cpus=1, gpus=0.25, concurrent=4, memory_cap=0.2))

    def end(name, payload, **result):
        """Hand a result to the searcher and the journal in Ray's order."""
        record = {
            "trial_id": SMALL_NET.trial_id,
            "config_id": "x",
            "repeat": 0,
            "seed": 0,
            "config": {},
            **result,
        }
        result = {
            "record": json.dumps(record), "done": True, "replayed": False, "earlier": "[]", "fault": None,
            "epoch": 0, "node": "n", "training_iteration": 1, "predicted": "[]", **result,
        }  # fmt: skip
        journal.on_trial_result(1, [], SimpleNamespace(trial_id=name, config=payload), result)
        dispatcher.on_trial_complete(name, result)

    first = dispatcher.suggest("ray1")
    assert first["resources"]["gpu"] == 0.25 and first["memory_cap"] == 0.2
    assert dispatcher.suggest("ray2") is None  # the first may come back
    end("ray1", first, status="failed", out_of_memory=True)
    assert [e["event"] for e in journal.run.events()] == ["restart"]
    alone = dispatcher.suggest("ray3")
    assert alone["journal"] == line
    assert alone["resources"]["gpu"] == 1.0 and alone["memory_cap"] is None
    end("ray3", alone, status="failed", out_of_memory=True)  # nothing is left to try
    (record,) = journal.run.records().values()
    assert (record.status, record.gpus) == ("failed", 1.0)
    assert dispatcher.suggest("ray4") == Dispatcher.FINISHED
