"""`birdtune doctor`: what is found, and what to do about each fault."""

import json
import stat

import pandas as pd
import pytest

from tuning import doctor
from tuning.doctor import Finding, available_memory


@pytest.mark.parametrize(
    ("version", "state"), [((3, 10), "fault"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "warning")]
)
def test_python_is_checked_by_its_version(version, state):
    found = doctor.python(version)
    assert found.state == state
    assert ("3.11 to 3.13" in found.remedy) == (state != "ok")


@pytest.mark.parametrize(
    ("gb", "n_cpus", "state", "words"),
    [
        (16, 8, "ok", ""),
        (5, 2, "warning", "--concurrent 4"),
        (12, 64, "warning", "--concurrent 11"),
        (1, 2, "fault", "2 GB"),
    ],
)
def test_memory_is_checked_for_a_trial_a_cpu(gb, n_cpus, state, words):
    found = doctor.memory(int(gb * 1e9), n_cpus)
    assert found.state == state and words in found.remedy


def test_the_limit_of_a_container_counts():
    meminfo = "MemTotal: 32000000 kB\nMemAvailable: 16000000 kB\n"
    assert available_memory(meminfo) == 16_000_000 * 1024
    assert available_memory(meminfo, "max\n", "1") == 16_000_000 * 1024
    assert available_memory(meminfo, "4000000000\n", "1500000000\n") == 2_500_000_000


@pytest.mark.parametrize(("gb", "state"), [(1, "fault"), (10, "warning"), (100, "ok")])
def test_disk_is_checked_by_its_room(tmp_path, gb, state):
    found = doctor.disk("cache", tmp_path, int(gb * 1e9))
    assert found.state == state
    assert f"{gb}.0 GB free" in found.found and bool(found.remedy) == (state != "ok")


def test_a_folder_that_is_to_be_made_is_checked_where_it_would_be(tmp_path):
    assert doctor.writable("cache", tmp_path / "a" / "b").state == "ok"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path, monkeypatch):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)

    def refused(*_, **__):  # the tests may run as root, whom no mode stops
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "mkstemp", refused)
    found = doctor.writable("cache", tmp_path)
    assert found == Finding(
        "cache folder", "fault", f"{tmp_path}: Permission denied", doctor._REMEDY_OF_FOLDER["cache"]
    )
    assert "BIRDTUNE_CACHE" in found.remedy


def test_files_that_are_not_there_are_counted_and_named(tmp_path):
    here = tmp_path / "a.wav"
    here.touch()
    assert doctor.files([str(here)]).state == "ok"
    found = doctor.files([str(here), *(f"/gone/{i}.wav" for i in range(5))])
    assert found.state == "fault"
    assert found.found.startswith(
        "5 of 6 recordings are not there: /gone/0.wav, /gone/1.wav, /gone/2.wav, ..."
    )


def test_a_library_that_does_not_load_is_a_fault_with_its_reason(monkeypatch):
    real = doctor.importlib.import_module

    def broken(name):
        if name == "torchaudio":
            raise OSError("libcudart.so.13: cannot open shared object file\nmore")
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    found = {each.name: each for each in doctor.libraries()}
    assert found["torchaudio"].state == "fault"
    assert found["torchaudio"].found == (
        "cannot be imported: OSError: libcudart.so.13: cannot open shared object file"
    )
    assert "same CUDA" in found["torchaudio"].remedy
    assert found["torch"].state == found["ray"].state == "ok"


def test_audio_formats_are_written_and_read():
    found = doctor.audio()
    assert found.state == "ok" and "MP3" in found.found


def test_a_format_that_cannot_be_read_is_a_fault(monkeypatch):
    monkeypatch.setitem(doctor.FORMATS, "NOPE", "PCM_16")
    found = doctor.audio()
    assert found.state == "fault" and "NOPE: " in found.found and "soundfile" in found.remedy


@pytest.mark.ray
def test_the_verb_lists_all_checks_and_its_exit_code_tells(cluster, birdtune, birds, tmp_path):
    code, out, err = birdtune(f"doctor --data {birds}")
    assert code == 0, out + err
    for word in ("Python", "torchaudio", "GPU", "precision", "audio", "Ray", "memory", "cache disk", "data"):
        assert word in out
    assert out.strip().endswith("no fault; try `birdtune demo`")
    manifest = tmp_path / "clips.csv"
    pd.DataFrame({"path": ["gone.wav"], "species": ["wren"]}).to_csv(manifest, index=False)
    code, out, _ = birdtune(f"doctor --data {manifest} --json")
    result = json.loads(out)
    assert code == 1 and result["n_faults"] == 1
    (fault,) = [each for each in result["findings"] if each["state"] == "fault"]
    assert fault["name"] == "data" and "gone.wav" in fault["found"] and fault["remedy"]


def test_data_that_is_no_manifest_is_refused_before_any_check(birdtune, tmp_path):
    code, _, err = birdtune(f"doctor --data {tmp_path / 'none.csv'}")
    assert code == 1 and "none.csv" in err
