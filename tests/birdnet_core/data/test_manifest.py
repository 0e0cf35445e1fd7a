import pytest

from birdnet_core.data.manifest import COLUMNS, index_folder, read_manifest, write_manifest
from birdnet_core.errors import DataError


def written(folder, text):
    path = folder / "clips.csv"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_csv_and_what_is_unknown_is_empty(tmp_path):
    frame = read_manifest(written(tmp_path, "path,species\na/x.wav,robin\n"))
    assert list(frame.columns) == list(COLUMNS)
    assert frame.loc[0].to_dict() == {
        "path": str(tmp_path / "a" / "x.wav"),
        "species": "robin",
        "recording_id": "a/x.wav",
        "recordist": "",
        "site": "",
        "split": "",
        "fold": "",
    }


def test_a_species_named_NA_or_null_is_a_name(tmp_path):
    frame = read_manifest(written(tmp_path, "path,species\nx.wav,NA\ny.wav,null\n"))
    assert frame["species"].tolist() == ["NA", "null"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,bird\nx.wav,robin\n", ["'path'", "'species'", "file, bird", "--species-column"]),
        ("path,specis\nx.wav,robin\n", ["'species'", "did you mean 'specis'"]),
        ("path,species\nx.wav,\n", ["line 2", "species is empty"]),
        ("path,species\nx.wav,a\nx.wav,b\n", ["line 3", "x.wav", "second time"]),
        ("path,species,split\nx.wav,a,dev\n", ["line 2", "'dev'", "train, val, test"]),
        ("path,species,split\nx.wav,a,train\ny.wav,a,\n", ["1 of 2", "no split"]),
        ("path,species,fold\nx.wav,a,1\ny.wav,a,2\nz.wav,a,\n", ["line 4", "fold is empty", "split = test"]),
        ("path,species,fold\nx.wav,a,1\ny.wav,a,1\n", ["one fold, '1'", "two or more"]),
        (
            "path,species,fold,split\nx.wav,a,1,\ny.wav,a,2,test\n",
            ["line 3", "of the test split has no fold"],
        ),
        (
            "path,species,fold,split\nx.wav,a,1,\ny.wav,a,2,val\n",
            ["line 3", "'val'", "fold '2'", "no split but test"],
        ),
        ("path,species\n", ["no recordings"]),
        ("", ["CSV"]),
    ],
)
def test_a_bad_manifest_is_refused_with_the_line_and_the_remedy(tmp_path, text, words):
    with pytest.raises(DataError) as caught:
        read_manifest(written(tmp_path, text))
    for word in words:
        assert word in str(caught.value)


def test_a_whole_number_is_one_fold_however_it_is_written(tmp_path):
    text = "path,species,fold\nx.wav,a,1\ny.wav,a,1.0\nz.wav,b,2.0\n"
    assert read_manifest(written(tmp_path, text))["fold"].tolist() == ["1", "1", "2"]


def test_folds_are_kept_when_a_manifest_is_written_and_read_again(tmp_path):
    text = "path,species,fold,split\nx.wav,a,1,\ny.wav,a,2,\nz.wav,b,,test\n"
    frame = read_manifest(written(tmp_path, text))
    assert frame["fold"].tolist() == ["1", "2", ""]
    assert frame["split"].tolist() == ["", "", "test"]
    write_manifest(frame, tmp_path / "again.csv")
    assert read_manifest(tmp_path / "again.csv").equals(frame)


def test_an_absent_manifest_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        read_manifest(tmp_path / "nowhere.csv")


def test_columns_can_be_named(tmp_path):
    path = written(tmp_path, "file,bird\nx.wav,robin\n")
    frame = read_manifest(path, path_column="file", species_column="bird")
    assert frame["species"].tolist() == ["robin"]


def test_a_folder_per_species_is_indexed_and_reads_back(tmp_path):
    for name in (
        "robin/a.wav",
        "robin/deep/b.MP3",
        "wren/a.ogg",
        "wren/a.flac",
        "wren/notes.txt",
        ".x/c.wav",
    ):
        file = tmp_path / "audio" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    frame = index_folder(tmp_path / "audio")
    assert frame["species"].value_counts().to_dict() == {"robin": 2, "wren": 2}
    assert frame["recording_id"].is_unique
    out = tmp_path / "lists" / "clips.csv"
    write_manifest(frame, out)
    assert "audio/robin/a.wav" in out.read_text()
    assert read_manifest(out)["path"].tolist() == frame["path"].tolist()


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_recordings_is_refused(tmp_path, exists):
    folder = tmp_path / "audio"
    if exists:
        (folder / "robin").mkdir(parents=True)
    with pytest.raises(DataError, match="audio"):
        index_folder(folder)
