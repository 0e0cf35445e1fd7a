"""The command line as a user types it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from birdnet_core import registry
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord
from search_spaces.designs import FractionalFactorial
from search_spaces.study import Ablation
from tests.settings import SMALL
from tuning.cli.inputs import read_config
from tuning.cli.options import parse_options, parse_settings
from tuning.cli.studies import KINDS

ROOT = Path(__file__).parents[3]
SET = shlex.join(word for key, value in SMALL.items() for word in ("--set", f"{key}={value}"))


# list


def test_list_models_gives_name_summary_options_and_parameters(birdtune):
    code, out, _ = birdtune("list models --json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)["models"]}
    assert rows["audio_cnn"]["n_params"] == 343_801
    assert rows["audio_cnn_v2"]["n_params"] == 4_222_041
    assert rows["audio_cnn"]["options"] == {"width": 32, "depth": 3, "dropout": 0.5}
    assert rows["audio_cnn"]["summary"]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_can_be_named_is_listed_with_a_summary(birdtune, kind):
    code, out, _ = birdtune(f"list {kind} --json")
    rows = json.loads(out)[kind]
    assert code == 0 and rows
    assert all(row.get("summary") or row.get("question") for row in rows)
    code, out, _ = birdtune(f"list {kind}")
    assert code == 0 and rows[0]["name"] in out


# bad input


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("list modles", ["'modles'", "did you mean 'models'"]),
        ("sweep capacty --out {tmp}/r", ["'capacty'", "did you mean 'capacity'"]),
        ("sweep capacity --set model.widht=3 --out {tmp}/r", ["'widht'", "audio_cnn", "dropout"]),
        ("sweep capacity --set optim.lr --out {tmp}/r", ["'optim.lr'", "KEY=VALUE"]),
        ("sweep capacity --set optim.lr=fast --out {tmp}/r", ["optim.lr", "'fast'", "float"]),
        ("sweep capacity --set loss.name=focal --out {tmp}/r", ["loss.name cannot be set"]),
        (
            "sweep learning-rate --constraint n_parms<=5 --out {tmp}/r",
            ["'n_parms'", "did you mean 'n_params'"],
        ),
        ("sweep learning-rate --enqueue {tmp}/none.json --out {tmp}/r", ["no config at", "none.json"]),
        ("sweep capacity --option ast=x --out {tmp}/r", ["study 'capacity' has no option 'ast'"]),
        ("sweep transfer --option bert=x --out {tmp}/r", ["'bert'", "ast, vit, efficientnet, convnext"]),
        ("sweep transfer --option ast --out {tmp}/r", ["--option 'ast'", "KEY=VALUE"]),
        ("sweep warmup --option ast={tmp} --out {tmp}/r", ["'audio_ast'", "{tmp}", "safetensors"]),
        ("plan warmup --option ast=3 --out {tmp}/r", ["'ast' of study 'warmup' = 3", "str"]),
        (
            "sweep warmup --set model.pretrained={tmp} --out {tmp}/r",
            ["model.pretrained cannot be set", "--option"],
        ),
        ("sweep capacity --trials 3 --out {tmp}/r", ["--repeats, not --trials"]),
        ("sweep capacity --folds --out {tmp}/r", ["an ablation", "--folds is for searches"]),
        ("sweep learning-rate --repeats 3 --out {tmp}/r", ["--trials, not --repeats"]),
        ("sweep capacity --data {tmp}/nowhere.csv --out {tmp}/r", ["nowhere.csv", "synthetic"]),
        ("sweep capacity --base {tmp}/none.json --out {tmp}/r", ["none.json"]),
        ("plan capacty --out {tmp}/r", ["'capacty'", "did you mean 'capacity'"]),
        ("plan capacity --trials 3 --out {tmp}/r", ["--repeats, not --trials"]),
        ("plan learning-rate --repeats 3 --out {tmp}/r", ["--trials, not --repeats"]),
        ("plan capacity --set model.widht=3 --out {tmp}/r", ["'widht'", "audio_cnn", "dropout"]),
        ("plan capacity --cpus-per-trial 4096 --out {tmp}/r", ["4096 CPUs", "lower --cpus-per-trial"]),
        ("plan capacity --gpus-per-trial all --out {tmp}/r", ["'all'", "a number from 0, or 'auto'"]),
        ("plan capacity --gpus-per-trial 64 --out {tmp}/r", ["64 GPUs", "lower --gpus-per-trial"]),
        ("plan capacity --gpus-per-trial -1 --out {tmp}/r", ["'-1'", "a number from 0, or 'auto'"]),
        ("plan capacity --data {tmp}/nowhere.csv --out {tmp}/r", ["nowhere.csv", "synthetic"]),
        ("data describe {tmp}/nowhere.csv", ["nowhere.csv"]),
        ("data describe {tmp}/wrong.csv", ["'path'", "'species'", "file, bird"]),
        ("data index {tmp}/wrong.csv --species-column brid --path-column file", ["'brid'", "'bird'"]),
        ("data index {tmp}", ["no recordings in folders per species"]),
        ("report {tmp}/nowhere", ["nowhere"]),
        ("report", ["give a run folder", "--import"]),
        ("report --import {tmp}", ["--out DIR"]),
        (
            "report --import {tmp}/nowhere --out {tmp}/r",
            ["nowhere", "train_loss, train_acc, val_loss, val_acc"],
        ),
        ("best {tmp}", ["not a run folder"]),
        ("resume {tmp}/nowhere", ["nowhere"]),
        ("extend {tmp}/nowhere --repeats 5", ["nowhere"]),
        ("rerun {tmp}/nowhere --failed", ["nowhere"]),
        ("rerun {tmp}/nowhere", ["birdtune rerun RUN --failed"]),
        ("sweep learning-rate --sampler tpo --out {tmp}/r", ["'tpo'", "did you mean 'tpe'"]),
        ("sweep learning-rate --scheduler ahsa --out {tmp}/r", ["'ahsa'", "did you mean 'asha'"]),
        ("sweep capacity --scheduler asha --out {tmp}/r", ["'capacity' is an ablation", "--scheduler"]),
        ("sweep capacity --until f1>0.5 --out {tmp}/r", ["'f1>0.5'", "val/f1_macro>=0.5"]),
        ("sweep capacity --until val/f1_mcro>=0.5 --out {tmp}/r", ["did you mean 'val/f1_macro'"]),
        ("sweep capacity --budget-hours 0 --out {tmp}/r", ["0 hours", "more than 0"]),
        ("train {tmp}/wrong.csv", ["wrong.csv", "not JSON"]),
        ("train --set training.epochs=0", ["training.epochs", "1 to 1000000"]),
        ("train --data {birds} {small} --set model.dropout=7.0", ["dropout=7.0", "between 0 and 1"]),
        ("train --data {birds} {small} --set loss.name=focal --set loss.gamma=-1.0", ["loss.gamma"]),
        ("train --preset phase2c", ["'phase2c'", "phase2b"]),
        ("train {tmp}/wrong.csv --preset phase0", ["not both", "wrong.csv", "phase0"]),
        ("train --data {birds} {small} --set augment.mixup.p=2.0", ["augment.mixup.p = 2.0", "0 to 1"]),
        ("train --data {birds} {small} --set optim.backbone_lr=1e-4", ["optim.backbone_lr", "AudioCNN"]),
        (
            "train --data {birds} --preset phase3-full --set model.pretrained={tmp}",
            ["pretrained", "{tmp}", "safetensors"],
        ),
        ("sweep capacity {small} --base phase9 --out {tmp}/r", ["'phase9'", "phase2b"]),
    ],
)
def test_bad_input_names_what_was_wrong_and_what_would_do(
    no_early_ray, birdtune, birds, tmp_path, line, words
):
    (tmp_path / "wrong.csv").write_text("file,bird\nx.wav,robin\n")
    line = line.format(tmp=tmp_path, birds=birds, small=SET)
    if line.startswith(("sweep", "plan")) and "--data" not in line:
        line += f" --data {birds}"
    code, out, err = birdtune(line)
    assert code == 1
    assert err.startswith("error: ")
    for word in words:
        assert word.format(tmp=tmp_path) in " ".join(err.split()), err
    assert "Traceback" not in out + err
    assert not (tmp_path / "r").exists()


@pytest.mark.ray
def test_a_setting_that_is_refused_once_ray_has_started_leaves_no_folder(birds, tmp_path):
    """In its own process, since the tests' Ray would be the sweep's."""
    line = f"sweep capacity --set model.widht=3 --data {birds} --out {tmp_path / 'r'}"
    command = [Path(sys.executable).with_name("birdtune"), *shlex.split(line)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "'widht'" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("line", ["--verbose list modles", "list modles --verbose"])
def test_verbose_adds_the_traceback_wherever_it_stands(birdtune, line):
    code, _, err = birdtune(line)
    assert code == 1
    assert "Traceback (most recent call last)" in err and "error: " in err.splitlines()[-1]


def test_verbose_after_two_dashes_is_an_argument(birdtune):
    code, _, err = birdtune("list -- --verbose")
    assert code == 1 and "'--verbose'" in err and "Traceback" not in err


def test_a_fault_of_birdtune_leaves_its_traceback_in_a_file(birdtune, monkeypatch, tmp_path):
    def broken(paths):
        raise KeyError("val/f1")

    monkeypatch.setattr("reports.load", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = birdtune(f"best {tmp_path}")
    assert code == 1 and err.startswith("error: KeyError: 'val/f1'")
    assert "Traceback" not in out + err
    (log,) = tmp_path.glob("birdtune-*.log")
    assert str(log) in err and f"birdtune best {tmp_path}" in log.read_text()
    assert 'raise KeyError("val/f1")' in log.read_text()
    code, _, err = birdtune(f"best {tmp_path} --verbose")
    assert code == 1 and 'raise KeyError("val/f1")' in err


def test_settings_are_typed():
    given = ["optim.lr=3e-4", "loss.name=focal", "loss.alpha=none", "training.ema_decay=0.9"]
    assert parse_settings(given) == {
        "optim.lr": 3e-4,
        "loss.name": "focal",
        "loss.alpha": None,
        "training.ema_decay": 0.9,
    }


def test_folders_in_settings_do_not_depend_on_where_a_trial_runs(tmp_path, monkeypatch):
    (tmp_path / "ast").mkdir()
    monkeypatch.chdir(tmp_path)
    given = ["model.pretrained=ast", "augment.noise.folder=nowhere"]
    assert parse_settings(given) == {
        "model.pretrained": str(tmp_path / "ast"),
        "augment.noise.folder": "nowhere",
    }
    assert parse_settings(["model.pretrained=org/name"]) == {"model.pretrained": "org/name"}


def test_options_of_a_study_are_typed_and_folders_made_absolute(tmp_path, monkeypatch):
    (tmp_path / "ast").mkdir()
    monkeypatch.chdir(tmp_path)
    given = ["ast=ast", "vit=org/name", "convnext=none", "backbone=true"]
    assert parse_options(given) == {
        "ast": str(tmp_path / "ast"), "vit": "org/name", "convnext": None, "backbone": True
    }  # fmt: skip


def test_list_studies_tells_size_and_options(birdtune):
    code, out, _ = birdtune("list studies --json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)["studies"]}
    assert rows["learning-rate"] == {
        "name": "learning-rate",
        "question": "Which learning rate, with which schedule, weight decay and loss?",
        "kind": "search",
        "trials": "40 trials",
        "epochs": 50,
        "metric": "val/f1_macro",
        "options": {"backbone": False},
    }
    assert rows["phases"]["metric"] == "val/accuracy"
    assert rows["transfer"]["trials"] == "4 cells x 5 repeats"
    code, out, _ = birdtune("list studies")
    assert "search, 40 trials, 50 epochs, val/f1_macro; options backbone" in out


def test_a_preset_is_trained_and_is_a_base_for_sweeps(birdtune, birds, tmp_path):
    line = f"train --preset phase2b --data {birds} --set training.epochs=1 --out {tmp_path / 'm'} --json"
    code, out, err = birdtune(line)
    assert code == 0, err
    assert json.loads(out)["epochs"] == 1
    record = json.loads((tmp_path / "m" / "record.json").read_text())
    assert record["config"]["model"]["name"] == "audio_cnn_v2"
    assert record["config"]["loss"] == {
        "name": "focal", "gamma": 2.0, "alpha": None, "beta": 0.999, "label_smoothing": 0.0
    }  # fmt: skip
    assert read_config("phase2b").loss.kwargs["gamma"] == 2.0


# data


def test_index_prepare_and_describe_a_folder_with_bad_files(birdtune, birds, tmp_path):
    manifest = pd.read_csv(birds)
    for path, species in zip(manifest["path"], manifest["species"], strict=True):
        file = tmp_path / "audio" / species / Path(path).name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(birds.parent / path)
    broken = file.parent / "broken.mp3"
    broken.write_bytes(next(birds.parent.rglob("*.mp3")).read_bytes()[:4000])
    (file.parent / "page.wav").write_text("<html>not found</html>")

    code, out, _ = birdtune(f"data index {tmp_path / 'audio'} --out {tmp_path / 'clips.csv'} --json")
    assert code == 0
    assert json.loads(out)["n_recordings"] == 42

    code, out, err = birdtune(f"data prepare {tmp_path / 'clips.csv'} --workers 1 {SET}")
    assert code == 0
    assert "40 recordings" in out
    assert "2 recordings left out" in err
    lines = [line.strip() for line in err.splitlines() if line.startswith("  ")]
    assert len(lines) == 2  # no decoder's complaints between them
    assert any("broken.mp3" in line and "truncated" in line for line in lines)
    assert any("page.wav" in line and "web page" in line for line in lines)

    code, out, err = birdtune(f"data describe {tmp_path / 'clips.csv'} {SET}")
    assert code == 0
    assert "none in two folds or splits" in out
    assert "imbalance" in out and "median" in out

    code, out, _ = birdtune(f"data describe {birds} {SET} --json")
    facts = json.loads(out)
    assert facts["proof"]["recordist"]["crossing"] == []
    assert sum(facts["counts"].values()) == 40


def test_describe_counts_what_a_backbone_may_have_seen(birdtune, birds, tmp_path):
    assert "seen before?" not in birdtune(f"data describe {birds} {SET}")[1]
    assert birdtune(f"train --data {birds} {SET} --set training.epochs=1 --out {tmp_path / 'model'}")[0] == 0
    own = "--set features.name=embedding --set features.backbone=birdtune --set model.name=linear"
    line = f"data describe {birds} {own} --set features.weights={tmp_path / 'model'}"
    code, out, err = birdtune(line)
    assert code == 0, err
    assert "seen before?   the backbone 'birdtune' was trained on the recordings of its training" in out
    facts = json.loads(birdtune(f"{line} --json")[1])
    for split, status in (("train", "possibly seen"), ("val", "not seen"), ("test", "not seen")):
        n = facts[f"n_{split}"]
        assert facts["seen"]["counts"][split][status] == n
        assert f"{split}: " in out and f"{n} {status}" in out


def test_describe_tells_what_a_random_split_of_clips_leaves_on_two_splits(birdtune, birds, tmp_path):
    line = f"data describe {birds} {SET} --set data.split=random-windows --set data.windows_per_recording=3"
    code, out, err = birdtune(f"{line} --plot {tmp_path / 'plots'}")
    assert code == 0, err
    assert "note           LEAKAGE: clips were split at random, on purpose" in out
    assert out.count("NOT separated: ") == 4 and "none in two" not in out
    facts = json.loads(birdtune(f"{line} --json")[1])
    for column in ("recording_id", "recordist", "site"):
        crossing = facts["proof"][column]["crossing"]
        assert len(crossing) > 5
        assert (
            f"NOT separated: {len(crossing)} in several folds or splits: {', '.join(crossing[:5])}, ..."
            in out
        )
    splits = ", ".join(f"{facts[f'n_{split}']} {split}" for split in ("train", "val", "test"))
    assert f"split          {splits} clips" in out


def test_training_with_leakage_is_warned_of(birdtune, birds, tmp_path, caplog):
    line = f"train --data {birds} {SET} --set training.epochs=1 --out {tmp_path / 'model'}"
    assert birdtune(line)[0] == 0
    assert "data.split" not in caplog.text
    assert birdtune(f"{line}2 --set data.split=random-windows")[0] == 0
    assert "data.split = 'random-windows'" in caplog.text


def test_describe_draws_counts_and_spectrograms_and_tells_rates_and_copies(birdtune, birds, tmp_path):
    manifest = pd.read_csv(birds)
    manifest["path"] = [str(birds.parent / path) for path in manifest["path"]]
    copy = tmp_path / f"copy{Path(manifest['path'][0]).suffix}"
    copy.write_bytes(Path(manifest["path"][0]).read_bytes())
    manifest.loc[len(manifest)] = {**manifest.iloc[0], "path": str(copy), "recording_id": "copy"}
    manifest.to_csv(tmp_path / "clips.csv", index=False)
    line = f"data describe {tmp_path / 'clips.csv'} {SET} --plot {tmp_path / 'plots'}"
    code, out, err = birdtune(line)
    assert code == 0, err
    assert "1 recordings in several files of the same content" in out
    assert manifest["path"][0] in out and str(copy) in out
    assert " Hz" in out
    for name in ("species", "species_spectrograms"):
        assert (tmp_path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "plots" / f"{name}.svg").exists()
    code, out, _ = birdtune(f"{line.replace('plots', 'birds.png')} --json")
    facts = json.loads(out)
    assert facts["plots"] == [str(tmp_path / "birds.png"), str(tmp_path / "birds_spectrograms.png")]
    assert all(Path(file).is_file() for file in facts["plots"])
    assert sum(facts["sample_rates"].values()) == 41
    assert facts["duplicates"][0]["paths"] == [manifest["path"][0], str(copy)]


def test_index_says_which_kind_it_read_and_what_is_not_on_disk(birdtune, birds, tmp_path):
    (tmp_path / "train_metadata.csv").write_text(
        "primary_label,author,filename\nrobin,Ann,robin/XC1.ogg\nrobin,Bo,robin/XC2.ogg\n"
    )
    (tmp_path / "train_audio" / "robin").mkdir(parents=True)
    (tmp_path / "train_audio" / "robin" / "XC2.ogg").touch()
    line = f"data index {tmp_path / 'train_metadata.csv'} --out {tmp_path / 'clips.csv'}"
    code, out, err = birdtune(line)
    assert code == 0, err
    assert "as BirdCLEF train_metadata.csv" in out and "1 recordings of 1 species" in out
    assert "1 of 2 recordings" in err and "robin/XC1.ogg" in err
    code, out, err = birdtune(f"{line} --json")
    assert json.loads(out)["absent"] == ["robin/XC1.ogg"]
    assert err == ""


def test_prepare_tells_what_it_did_and_that_a_second_call_did_nothing(birdtune, birds, monkeypatch, tmp_path):
    monkeypatch.setenv("BIRDTUNE_CACHE", str(tmp_path / "cache"))
    line = f"data prepare {birds} --workers 1 {SET}"
    assert "decoding recordings 40 (" in birdtune(line)[1]
    assert "done now: nothing" in birdtune(line)[1]


def test_a_species_named_like_markup_stays_text(birdtune, birds, tmp_path):
    manifest = pd.read_csv(birds)
    manifest["path"] = [str(birds.parent / path) for path in manifest["path"]]
    commonest = manifest["species"].value_counts().index[0]
    manifest["species"] = manifest["species"].replace(commonest, "[bold]parus[/nothing]")
    manifest.to_csv(tmp_path / "clips.csv", index=False)
    code, out, err = birdtune(f"data describe {tmp_path / 'clips.csv'} {SET}")
    assert code == 0, err
    assert out.count("[bold]parus[/nothing]") == 2  # in the imbalance and in the table


# plan


def test_plan_prints_resolution_and_aliases_of_a_fraction(birdtune, birds, tmp_path, monkeypatch):
    def thirds():
        """Which of three?"""
        factors = {"optim.lr": (1e-3, 1e-2), "optim.weight_decay": (0.0, 0.1), "optim.warmup_epochs": (0, 1)}
        return Ablation(factors=factors, design=FractionalFactorial("III"), n_repeats=1)

    registry.studies.names()
    monkeypatch.setitem(registry.studies._entries, "thirds", registry.Entry("thirds", thirds, "Which?", {}))
    settings = SET.replace("--set optim.warmup_epochs=1", "")  # which the study varies
    code, out, err = birdtune(f"plan thirds --data {birds} --out {tmp_path / 'r'} {settings}")
    assert code == 0, err
    assert "design         fractional factorial, 4 cells\n" in out
    assert "2^(3-1), 4 of 8 combinations, resolution III" in out
    assert "A = -BC; B = -AC; C = -AB" in out
    assert "trials         4; 4 to train" in out


def test_plan_tells_what_a_sweep_will_take_and_writes_no_run_folder(birdtune, birds, tmp_path):
    run = tmp_path / "my run"
    line = f"plan capacity --data {birds} --out '{run}' --repeats 2 --budget-hours 1e-6 {SET}"
    code, out, err = birdtune(line)
    assert code == 0, err
    assert "8; 8 to train" in out and "16, 2 a trial" in out
    assert "--budget-hours ends it after about 0 of 8 trials" in out
    assert "model=audio_cnn_v2" in out and "loss=focal" in out
    assert not run.exists()
    # The last line is the command that does it, ready to paste.
    words = shlex.split(out.splitlines()[-1])
    assert words[:4] == ["next:", "birdtune", "sweep", "capacity"]
    assert words[words.index("--out") + 1] == str(run)
    assert words.count("--set") == len(SMALL)

    code, out, err = birdtune(f"{line} --json")
    plan = json.loads(out)
    assert plan["n_left"] == 8 and plan["worst"]["epochs"] == 16
    assert {arm["n_trials"] for arm in plan["arms"]} == {2} and len(plan["arms"]) == 4
    assert plan["worst"]["hours"] > 0 and plan["expected"] == plan["worst"]
    assert {store["is_new"] for store in plan["stores"]} == {False}  # the call before has made them
    assert shlex.split(plan["command"]) == words[1:]


def test_plan_does_without_ray(birds, tmp_path):
    code = (
        "import sys\nfrom tuning import cli\n"
        "sys.argv[0] = 'birdtune'\ncli.app(standalone_mode=False)\n"
        "assert 'ray' not in sys.modules, 'Ray was imported'\n"
    )
    words = ["plan", "learning-rate", "--data", str(birds), "--out", str(tmp_path / "r"), "--trials", "4"]
    for key, value in SMALL.items():
        if key != "optim.warmup_epochs":  # which the study varies
            words += ["--set", f"{key}={value}"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 to train" in done.stdout and "under ASHA" in done.stdout


# what all verbs share


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sweep learning-rate --data synthetic --repeats x", "'--repeats': .* integer.*; 'x' was given"),
        (
            "sweep learning-rate --data synthetic --repeats -3",
            "'--repeats': .* than or equal to 1; '-3' was given",
        ),
        ("report runs --port 3", "No such option: --port"),
        ("sweep", "Missing argument 'STUDY'"),
        ("sweeps", "No such command 'sweeps'"),
    ],
)
def test_what_the_command_line_does_not_accept_is_named_as_it_was_given(birdtune, line, words):
    code, out, err = birdtune(line)
    assert (code, out) == (2, "") and re.search(words, " ".join(err.replace("│", "").split()))
    assert "Try 'birdtune" in err and "Traceback" not in err


def test_ctrl_c_says_that_what_is_finished_is_kept(birdtune, begun, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("reports.page.report.load", interrupted)
    code, _, err = birdtune(f"report {begun}")
    assert code == 130 and err == (
        "interrupted; what is finished is kept; run the same command again to continue\n"
    )


def test_input_that_ends_too_early_is_no_ctrl_c(birdtune, begun, monkeypatch):
    def ended(*_):
        raise EOFError("Ran out of input")

    monkeypatch.setattr("reports.page.report.load", ended)
    code, _, err = birdtune(f"report {begun}")
    assert code == 1 and "This is a bug in birdtune" in err
    log = Path(re.search(r"\S+\.log", err)[0])
    assert "EOFError: Ran out of input" in log.read_text()
    log.unlink()


# report --import


def test_report_imports_earlier_work_and_prints_what_is_wrong_with_it(birdtune, tmp_path):
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    content = {"train_loss": [1.0], "train_acc": [50.0], "val_loss": [1.0], "val_acc": [40.0]}
    (earlier / "a_history.json").write_text(json.dumps(content))
    (earlier / "a_test_results.json").write_text(json.dumps({"val_acc": 40.0, "test_acc": 2.0}))
    (earlier / "b_history.json").write_text("{")
    code, out, err = birdtune(f"report --import {earlier} --out {tmp_path / 'r'} --json")
    assert code == 0, err
    printed = json.loads(out)
    assert (printed["imported"], printed["studies"]) == (1, [])
    assert [fault["file"] for fault in printed["faults"]] == ["b_history.json"]
    assert "a contradicts itself" in err and "b_history.json: is no JSON" in err
    assert "40.00 %" in (tmp_path / "r" / "report.html").read_text()


# sweep -> report -> best -> train


@pytest.mark.ray
def test_options_of_a_study_are_kept_for_resume(cluster, birdtune, birds, checkpoints, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.chdir(Path(checkpoints["convnext"]).parent)
    options = (
        "--option ast=none --option vit=none --option efficientnet=efficientnet --option convnext=convnext"
    )
    line = f"transfer --data {birds} --repeats 1 --out {run} --set training.epochs=1 {options}"
    code, out, err = birdtune(f"plan {line}")
    assert code == 0, err
    assert options in out.splitlines()[-1] and "2; 2 to train" in out
    code, out, err = birdtune(f"sweep {line}")
    assert code == 0, err
    started_from = {r.config["model"]["pretrained"] for r in RunFolder(run).records().values()}
    assert started_from == {checkpoints["efficientnet"], checkpoints["convnext"]}
    monkeypatch.chdir(tmp_path)
    code, out, err = birdtune(f"resume {run}")
    assert code == 0, err
    assert "2 completed (2 were there already)" in out


@pytest.mark.ray
def test_the_main_job_from_recordings_to_a_trained_model(capacity_run, birdtune, birds, tmp_path):
    run = capacity_run
    line = f"sweep capacity --data {birds} --repeats 1 --out {run} {SET} --set model.dropout=0.4"
    code, out, _ = birdtune(line)
    assert "4 were there already" in out

    code, out, err = birdtune(f"report {run} --out {tmp_path / 'report'} --json")
    assert code == 0, err
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    (study,) = report["studies"]
    assert len(study["cells"]) == 4
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000

    code, out, err = birdtune(f"best {run} --out {tmp_path / 'best.json'} --json")
    assert code == 0, err
    best = json.loads(out)
    assert best["config"]["model"]["dropout"] == 0.4
    scores = {c["trial_ids"][0]: c["metrics"]["val/f1_macro"]["mean"] for c in study["cells"]}
    assert best["mean"] == max(scores.values())

    code, out, err = birdtune(
        f"train {tmp_path / 'best.json'} --data {birds} --out {tmp_path / 'model'} --json"
    )
    assert code == 0, err
    trained = json.loads(out)
    assert trained["trial_id"] == best["trial_ids"][0]
    assert trained["metrics"]["val/f1_macro"] == best["mean"]  # to the last digit
    assert (tmp_path / "model" / "member-0.safetensors").exists()

    record = run / "trials" / f"{trained['trial_id']}.json"
    code, out, _ = birdtune(f"train {record} --data {birds} --out {tmp_path / 'again'} --json")
    assert json.loads(out)["metrics"] == trained["metrics"]

    # As a killed driver leaves it: one trial without a record.
    record.unlink()
    code, out, err = birdtune(f"resume {run} --json")
    assert json.loads(out)["n_reused"] == 3, err
    again = json.loads(record.read_text())
    assert again["metrics"]["val/f1_macro"] == best["mean"]

    # The best config as the base of another sweep: its dropout is AudioCNN's, not the other network's; the
    # epochs are the study's own.
    based = f"sweep capacity --data {birds} --repeats 1 --base {tmp_path / 'best.json'} --out {run} --json"
    code, out, err = birdtune(based)
    assert code == 1
    assert "other settings" in err
    code, out, err = birdtune(f"{based} --set model.dropout=0.4 --set training.epochs=2")
    assert code == 0, err
    assert json.loads(out)["n_reused"] == 4, err

    n_epochs = (run / "journal.jsonl").read_text().count('"event": "epoch"')
    code, out, err = birdtune(f"extend {run} --repeats +1 --json")
    assert json.loads(out)["n_reused"] == 4, err
    assert json.loads(out)["counts"] == {"completed": 8}
    added = (run / "journal.jsonl").read_text().count('"event": "epoch"') - n_epochs
    assert added == 4 * SMALL["training.epochs"]
    code, _, err = birdtune(f"extend {run} --repeats 2")
    assert code == 1 and "adds nothing: the study has 2" in err
    assert "'phony'" in birdtune(f"extend {run} --study phony --repeats 3")[2]


@pytest.mark.ray
def test_the_best_of_a_shortlist_is_confirmed_on_fresh_repeats(capacity_run, birdtune, birds):
    run = capacity_run
    # So near that nobody leaves, and all three have their three repeats.
    line = f"best {run} --confirm 3 --shortlist 3 --json"
    code, out, err = birdtune(line)
    assert code == 0, err
    best = json.loads(out)
    records = RunFolder(run / "confirm").records()
    assert sorted(r.repeat for r in records.values()) == sorted([10_000, 10_001, 10_002] * 3)
    assert all(r.seed == r.repeat for r in records.values())
    assert best["repeats"] == [10_000, 10_001, 10_002] and best["n"] == 3
    scores = [records[name].metrics["val/f1_macro"] for name in best["trial_ids"]]
    assert best["values"] == scores
    assert best["mean"] == max(each["mean"] for each in best["shortlist"])
    assert best["config_id"] in best["not_worse"] and best["regret"] >= 0
    assert {each["config_id"] for each in best["shortlist"]} == {r.config_id for r in records.values()}
    assert len(best["shortlist"]) == 3
    assert json.loads((run / "best.json").read_text()) == best
    assert json.loads((run / "confirm" / "best.json").read_text()) == best

    journal = (run / "confirm" / "journal.jsonl").read_text()
    code, out, err = birdtune(line)
    assert code == 0 and json.loads(out) == best
    assert (run / "confirm" / "journal.jsonl").read_text().count('"epoch"') == journal.count('"epoch"')
    code, out, err = birdtune(f"best {run} --study capacity")
    assert out.splitlines()[-1].startswith(f"next: birdtune train {run / 'best.json'} --data {birds} ")
    code, _, err = birdtune(f"resume {run / 'confirm'}")
    assert code == 1 and "was not started by `birdtune sweep`; repeat `birdtune best" in err
    code, _, err = birdtune(f"best {run} --confirm 2")
    assert code == 1 and "--confirm 2 is out of range; it takes 3 or more" in err
    for option in ("--shortlist 4", "--tolerance 0.01"):
        code, _, err = birdtune(f"best {run} {option}")
        assert code == 1 and "give both, or neither" in err


@pytest.mark.ray
def test_fractions_of_a_declared_gpu_are_scheduled_where_torch_has_none(birds, cache, tmp_path):
    """In its own process, because Ray learns of the GPU when it starts."""
    code = (
        "import json, sys, ray\n"
        "from birdnet_core.data.manifest import read_manifest\n"
        "from search_spaces.study import Ablation\n"
        "from tuning.engine.launch import Data, Resources, sweep\n"
        "ray.init(address='local', num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)\n"
        "study = Ablation(name='x', question='?', factors={'optim.lr': (1e-3, 1e-4)})\n"
        "birds, out, settings = sys.argv[1:]\n"
        "seen = []\n"
        "sweep(study, Data(name='few', manifest=read_manifest(birds), workers=1), out,\n"
        "      settings=json.loads(settings), n_repeats=1, resources=Resources(gpus=0.5),\n"
        "      observer=seen.append)\n"
        "print(json.dumps(seen[0]))\n"
    )
    arguments = [str(birds), str(tmp_path / "run"), json.dumps({**SMALL, "training.epochs": 1})]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1])["concurrent"] == 2
    records = [json.loads(p.read_text()) for p in (tmp_path / "run" / "trials").glob("*.json")]
    assert [(r["status"], r["gpus"]) for r in records] == [("completed", 0.5)] * 2


@pytest.mark.slow
@pytest.mark.ray
def test_demo_tells_the_whole_story(tmp_path):
    done = subprocess.run(
        [Path(sys.executable).parent / "birdtune", "demo", "--out", tmp_path / "demo"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "demo" / "report" / "report.json").read_text())
    study, search = report["studies"]
    assert (study["name"], [cell["n"] for cell in study["cells"]]) == ("backbones", [3, 3])
    assert search["name"] == "probe" and len(search["cells"]) == 8
    assert "best config" in done.stdout and "report.html" in done.stdout
    species = pd.read_csv(tmp_path / "demo" / "species.csv")
    assert species["file"].nunique() == 4 and set(species["rank"]) == {1}
    tested = json.loads((tmp_path / "demo" / "model" / "evaluation.json").read_text())
    assert tested["opening"]["number"] == 1
    for made in ("best.json", "report/report.html", "model/member-1.safetensors", "model/MODEL_CARD.md"):
        assert (tmp_path / "demo" / made).exists()
    scores = [value for cell in study["cells"] for value in cell["metrics"]["val/accuracy"]["values"]]
    assert 0.2 < max(scores) < 1.0  # better than chance, and not perfect: 12 species, the commonest a third


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_run(example, tmp_path):
    done = subprocess.run(
        [sys.executable, example, "2"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "best epoch" in done.stdout


# gate


@pytest.mark.parametrize(
    ("targets", "code", "decision"),
    [((0.2,), 0, "GO"), ((0.31,), 1, "INVESTIGATE"), ((0.2, 0.9), 2, "NO-GO")],
)
def test_gate_tells_scripts_by_its_exit_code(birdtune, tmp_path, targets, code, decision):
    run = RunFolder(tmp_path / "run")
    gates = [{"metric": "val/f1_macro", "target": target, "stretch": None} for target in targets]
    run.write_study(
        {"name": "one", "kind": "ablation", "metric": "val/f1_macro", "direction": "maximize", "epochs": 1,
         "question": "?", "n_trials": None, "repeats": [0, 1, 2], "seed": 0, "factors": {}, "baseline": {},
         "gates": gates, "cells": [{"factors": {}, "config_id": "a"}], "data": {}}
    )  # fmt: skip
    for repeat, value in enumerate((0.3, 0.31, 0.29)):
        trial_id = f"a-r{repeat}"
        run.append(
            {"event": "trial", "study": "one", "trial_id": trial_id, "number": repeat, "factors": {},
             "reused": False}
        )  # fmt: skip
        run.write_record(
            TrialRecord(
                trial_id=trial_id, config_id="a", repeat=repeat, seed=repeat, status="completed", config={},
                epochs=1, best_epoch=1, metrics={"val/f1_macro": value},
            )
        )  # fmt: skip
    exit_code, out, err = birdtune(f"gate {run.path}")
    assert (exit_code, err) == (code, "")
    assert out.splitlines()[0] == f"one: {decision}"
    assert f"val/f1_macro >= {targets[0]}: 0.3000 [0.2752, 0.3248], n = 3" in out
    statuses = [line.split()[0] for line in out.splitlines()[1:]]
    assert statuses == {"GO": ["PASS"], "INVESTIGATE": ["OPEN"], "NO-GO": ["PASS", "FAIL"]}[decision]
    exit_code, out, _ = birdtune(f"gate {run.path} --json")
    assert (exit_code, json.loads(out)["studies"][0]["decision"]) == (code, decision)


def test_gate_of_what_has_none_is_neither_yes_nor_no(birdtune, begun, tmp_path):
    code, _, err = birdtune(f"gate {begun}")
    assert code == 3 and "rates has no gates" in err
    code, _, err = birdtune(f"gate {tmp_path}/nowhere")
    assert code == 3 and "no run folder" in err


# status and dashboard


@pytest.fixture
def begun(tmp_path):
    """A run of one search, whose driver died in the first trial."""
    run = RunFolder(tmp_path / "run")
    run.write_study(
        {"name": "rates", "kind": "search", "metric": "val/loss", "direction": "minimize", "epochs": 4,
         "n_trials": 2, "cells": None, "repeats": [0], "seed": 0}
    )  # fmt: skip
    trial = {
        "study": "rates",
        "trial_id": "a-r0",
        "number": 0,
        "factors": {"optim.lr": 0.01},
        "reused": False,
    }
    run.append({"event": "trial", **trial, "cpus": 1, "gpus": 0.5})
    run.append(
        {"event": "epoch", "trial_id": "a-r0", "epoch": 1, "metrics": {"val/loss": 0.5}, "epoch_s": 7.2}
    )
    return run.path


def test_status_tells_how_a_run_stands(birdtune, begun):
    code, out, _ = birdtune(f"status {begun}")
    assert code == 0
    assert "rates (search): 2 trials, 1 interrupted, 1 left" in out
    assert "best val/loss 0.5000 at epoch 1: optim.lr=0.01" in out
    assert "0.00 GPU-hours and 0.00 CPU-hours used" in out


def test_status_as_json_gives_the_same_numbers(birdtune, begun):
    code, out, _ = birdtune(f"status {begun} --json")
    status = json.loads(out)
    assert (code, status["driver"], status["gpu_hours"]) == (0, None, 0.001)
    (study,) = status["studies"]
    assert (study["counts"], study["n_left"], study["best"]["value"]) == ({"interrupted": 1}, 1, 0.5)


def test_status_watches_until_interrupted(birdtune, begun, monkeypatch):
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    code, out, err = birdtune(f"status {begun} --watch 0.5")
    assert (code, err, slept) == (0, "", [0.5, 0.5, 0.5])
    assert "1 interrupted" in out


def test_status_refuses_what_is_no_run_and_json_that_never_ends(birdtune, begun, tmp_path):
    code, _, err = birdtune(f"status {tmp_path}/nowhere")
    assert code == 1 and "no run folder at" in err
    code, _, err = birdtune(f"status {begun} --watch 1 --json")
    assert code == 1 and "leave one of them out" in err


def test_the_dashboard_refuses_what_is_no_run_and_one_of_another_version(birdtune, begun, tmp_path):
    code, _, err = birdtune(f"dashboard {tmp_path}/nowhere")
    assert code == 1 and "no run folder at" in err and err.count("\n") == 1
    study = json.loads((begun / "studies" / "rates.json").read_text())
    (begun / "studies" / "rates.json").write_text(json.dumps({**study, "schema": 1}))
    code, _, err = birdtune(f"dashboard {begun}")
    assert code == 1 and "schema = 1; this version reads" in err
