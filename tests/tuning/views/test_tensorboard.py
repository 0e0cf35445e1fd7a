import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

from tuning.views.tensorboard import TensorBoardLog


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return tag -> [(step, value)] of the event files in `folder`: records of length, crc, event, crc."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in folder.glob("events.*"):
        rest = file.read_bytes()
        while rest:
            (length,) = struct.unpack("<Q", rest[:8])
            event = Event.FromString(rest[12 : 12 + length])
            rest = rest[12 + length + 4 :]
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, round(value.simple_value, 6)))
    return found


def epoch(name, n, score):
    return {
        "event": "epoch",
        "trial_id": name,
        "epoch": n,
        "metrics": {"val/f1_macro": score},
        "epoch_s": 1.0,
    }


def test_every_trial_has_its_curve_and_its_choices(tmp_path):
    log = TensorBoardLog(tmp_path)
    log({"event": "sweep", "n_left": 2})
    for name, lr in (("a-r0", 0.1), ("b-r0", 0.2)):
        log({"event": "trial", "trial_id": name, "factors": {"optim.lr": lr, "loss.name": "focal"}})
    for n in (1, 2):
        log(epoch("a-r0", n, n / 10))
    log(epoch("b-r0", 1, 0.5))
    log({"event": "end", "trial_id": "a-r0", "status": "completed"})
    log({"event": "end", "trial_id": "b-r0", "status": "pruned"})
    log({"event": "end", "trial_id": "never-started", "status": "failed"})
    a, b = scalars(tmp_path / "a-r0"), scalars(tmp_path / "b-r0")
    assert a["val/f1_macro"] == [(1, 0.1), (2, 0.2)]
    assert b["val/f1_macro"] == [(1, 0.5)]
    assert scalars(tmp_path / "a-r0" / "choices")["last/val/f1_macro"][-1][1] == 0.2
    choices = b"".join(file.read_bytes() for file in (tmp_path / "b-r0" / "choices").iterdir())
    assert b"optim.lr" in choices and b"focal" in choices
