import io
import random

import numpy as np
import pytest

from birdnet_core.errors import RunFolderError
from birdnet_core.records.predictions import Predictions
from birdnet_core.records.run_folder import RunFolder

NAMES = ("classes", "top", "probability")
NAME = "ab-r0"


def made(n_epochs=5, n_val=40, k=3):
    rng = np.random.default_rng(0)
    probability = np.sort(rng.random((n_val, k)))[:, ::-1]
    classes, top = (rng.integers(90, size=shape) for shape in ((n_epochs, n_val), (n_val, k)))
    return Predictions(
        classes.astype(np.uint16), top.astype(np.uint16), np.ascontiguousarray(probability, dtype=np.float16)
    )


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path)
    run.write_predictions(NAME, made())
    return run


def file_of(run):
    (file,) = (run.path / "predictions").iterdir()
    assert file.name == f"{NAME}.npz"
    return file


def is_equal(one, other):
    return all(
        getattr(one, name).dtype == getattr(other, name).dtype
        and np.array_equal(getattr(one, name), getattr(other, name))
        for name in NAMES
    )


def test_predictions_are_read_as_they_were_written(run):
    assert is_equal(run.predictions(NAME), made())
    assert all(np.array_equal(run.predicted_classes(NAME, e + 1), made().classes[e]) for e in range(5))
    assert run.predictions("cd-r0") is run.predicted_classes("cd-r0", 1) is None
    assert run.strays() == []


def test_a_trial_hands_over_the_content_of_the_file(run):
    content = file_of(run).read_bytes()
    run.write_predictions(NAME, made(n_epochs=1).to_bytes())
    assert run.predictions(NAME).classes.shape == (1, 40)
    assert made().to_bytes() == content


def test_the_classes_of_an_epoch_are_read_without_the_rest(run):
    """A reader of many trials passes over the other epochs and the probabilities."""
    altered = bytearray(file_of(run).read_bytes())
    altered[altered.index(b"probability.npy") + 60] ^= 1  # in its content
    file_of(run).write_bytes(altered)
    assert np.array_equal(run.predicted_classes(NAME, 3), made().classes[2])
    with pytest.raises(RunFolderError, match=r"ab-r0\.npz' holds no predictions"):
        run.predictions(NAME)


def test_a_trial_of_fifty_epochs_and_a_hundred_recordings_takes_14_kilobytes_at_most():
    assert len(made(50, 100, 10).to_bytes()) < 2 * 50 * 100 + 4 * 100 * 10 + 1000


def archive(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def compressed(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def plain(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


WHOLE = {name: getattr(made(), name) for name in NAMES}


def archive_with(**changes):
    return archive(**WHOLE | changes)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "holds no predictions"),
        (b'{"predicted": [0]}', "holds no predictions"),
        (made().to_bytes()[:-30], "holds no predictions"),
        (plain(WHOLE["classes"]), "holds no predictions"),
        (archive(classes=WHOLE["classes"]), "holds no predictions: .*top"),
        (archive_with(classes=np.array([{}])), "holds no predictions: Object arrays cannot"),
        (
            archive_with(classes=WHOLE["classes"].astype(int)),
            r"classes is int64 \[5, 40\]; it takes uint16",
        ),
        (
            archive_with(classes=WHOLE["classes"][0]),
            r"classes is uint16 \[40\]; it takes .* two dim",
        ),
        (archive_with(classes=WHOLE["classes"][:, :7]), r"classes \[5, 7\], top \[40, 3\]"),
        (archive_with(top=WHOLE["top"][:, :2]), r"top \[40, 2\] and probability \[40, 3\]"),
    ],
)
def test_a_file_that_is_cut_or_foreign_is_refused_by_name(run, content, expected):
    file_of(run).write_bytes(content)
    with pytest.raises(RunFolderError, match=rf"predictions/ab-r0\.npz' .*{expected}"):
        run.predictions(NAME)


@pytest.mark.parametrize("epoch", [0, 6])
def test_an_epoch_that_was_not_trained_is_refused_by_name(run, epoch):
    with pytest.raises(RunFolderError, match=rf"ab-r0\.npz' holds no predictions: of epoch {epoch}; .*5, 40"):
        run.predicted_classes(NAME, epoch)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        made().to_bytes()[:-30],
        plain(WHOLE["classes"]),
        archive(top=WHOLE["top"]),
        archive_with(classes=WHOLE["classes"].astype(int)),
        archive_with(classes=WHOLE["classes"][0]),
        made().to_bytes().replace(b"(5, 40)", b"(3, 40)"),
        compressed(**WHOLE),
    ],
)
def test_an_epoch_of_a_file_that_is_cut_or_foreign_is_refused_by_name(run, content):
    file_of(run).write_bytes(content)
    with pytest.raises(RunFolderError, match=r"predictions/ab-r0\.npz' holds no predictions"):
        run.predicted_classes(NAME, 1)


def test_no_object_is_unpickled(run):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("it was unpickled",)

    array = np.array([[Trap()]], dtype=object)
    for content in (plain(array), archive(classes=array, top=array, probability=array)):
        file_of(run).write_bytes(content)
        for reads in (run.predictions, lambda name: run.predicted_classes(name, 1)):
            with pytest.raises(RunFolderError, match="holds no predictions"):
                reads(NAME)


def test_altered_bytes_are_noticed_or_change_nothing(run):
    whole, file, rng = made().to_bytes(), file_of(run), random.Random(0)
    for _ in range(1000):
        altered = bytearray(whole)
        altered[rng.randrange(len(whole))] = rng.randrange(256)
        file.write_bytes(altered)
        try:
            found = run.predictions(NAME)
        except RunFolderError:
            continue
        assert is_equal(found, made())


def test_a_full_disk_leaves_the_file_before(run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("birdnet_core.records.files.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        run.write_predictions(NAME, made(n_epochs=1))
    assert run.predictions(NAME).classes.shape == (5, 40)
    assert file_of(run).exists()
