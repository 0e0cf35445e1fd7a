"""Made-up metadata with the columns of the real ones; the audio need only exist."""

import json

import pytest

from birdnet_core.data.manifest import COLUMNS, read_manifest
from birdnet_core.data.readers import read_collection
from birdnet_core.errors import DataError

BIRDCLEF_2024 = (
    "primary_label,secondary_labels,type,latitude,longitude,scientific_name,common_name,author,license,"
    "rating,url,filename\n"
    "asbfly,[],['call'],39.2297,118.1987,Muscicapa dauurica,Asian Brown Flycatcher,Matt Slaymaker,CC,5.0,"
    "https://www.xeno-canto.org/134896,asbfly/XC134896.ogg\n"
    "asbfly,[],['song'],,,Muscicapa dauurica,Asian Brown Flycatcher,Magnus Hellström,CC,2.5,"
    "https://www.xeno-canto.org/164848,asbfly/XC164848.ogg\n"
    "zitcis1,[],[''],-0.001,9.1,Cisticola juncidis,Zitting Cisticola,iNat user,CC,0.0,"
    "https://www.inaturalist.org/1,zitcis1/iNat1100.ogg\n"
)
# In 2021 the file name came without the species' folder.
BIRDCLEF_2021 = (
    "primary_label,secondary_labels,type,latitude,longitude,scientific_name,common_name,author,date,filename,"
    "license,rating,time,url\n"
    "acafly,['amegfi'],['call'],35.3,-79.9,Empidonax virescens,Acadian Flycatcher,Mike Nelson,2012-08-12,"
    "XC109605.ogg,CC,2.5,09:30,https://www.xeno-canto.org/109605\n"
)
XENO_CANTO = [
    {
        "id": "694038", "gen": "Troglodytes", "sp": "troglodytes", "ssp": "", "grp": "birds",
        "en": "Eurasian Wren", "rec": "Jacobo Ramil", "cnt": "Spain", "loc": "Sisalde, Ames",
        "lat": "42.8373", "lon": "-8.652", "file": "https://xeno-canto.org/694038/download",
        "file-name": "XC694038-zarrizo.mp3", "also": ["Turdus merula"],
    },
    {
        "id": "11", "gen": "Turdus", "sp": "merula", "ssp": "", "grp": "birds", "en": "Common Blackbird",
        "rec": "A. Other", "cnt": "Spain", "loc": "somewhere", "lat": None, "lon": None, "file": "",
        "file-name": "LS110124.mp3", "also": [],
    },
]  # fmt: skip


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_birdclef_metadata_name_species_recordist_site_and_recording(tmp_path):
    (tmp_path / "train_metadata.csv").write_text(BIRDCLEF_2024)
    names = ("asbfly/XC134896.ogg", "asbfly/XC164848.ogg", "zitcis1/iNat1100.ogg")
    touch(tmp_path / "train_audio", *names)
    found = read_collection(tmp_path / "train_metadata.csv")
    assert found.kind == "BirdCLEF train_metadata.csv"
    assert found.absent == ()
    frame = found.manifest
    assert list(frame.columns) == list(COLUMNS)
    assert frame["path"].tolist() == [str(tmp_path / "train_audio" / n) for n in names]
    assert frame["species"].tolist() == ["asbfly", "asbfly", "zitcis1"]
    assert frame["recording_id"].tolist() == ["XC134896", "XC164848", "iNat1100"]
    assert frame["recordist"].tolist() == ["Matt Slaymaker", "Magnus Hellström", "iNat user"]
    assert frame["site"].tolist() == ["39.23 118.20", "", "0.00 9.10"]
    assert read_collection(tmp_path).manifest.equals(frame)


@pytest.mark.parametrize("folder", ["train_short_audio/acafly", "train_audio/acafly", "train_audio"])
def test_birdclef_file_names_without_the_species_folder_are_found(tmp_path, folder):
    (tmp_path / "meta.csv").write_text(BIRDCLEF_2021)
    touch(tmp_path, f"{folder}/XC109605.ogg")
    assert read_collection(tmp_path / "meta.csv").manifest["path"].tolist() == [
        str(tmp_path / folder / "XC109605.ogg")
    ]


def test_recordings_without_audio_are_listed_and_none_at_all_is_an_error(tmp_path):
    (tmp_path / "train_metadata.csv").write_text(BIRDCLEF_2024)
    with pytest.raises(DataError, match=r"(?s)BirdCLEF.*3 recordings.*none.*XC134896\.ogg.*--audio"):
        read_collection(tmp_path)
    touch(tmp_path / "elsewhere", "asbfly/XC164848.ogg")
    found = read_collection(tmp_path, audio=tmp_path / "elsewhere")
    assert found.absent == ("asbfly/XC134896.ogg", "zitcis1/iNat1100.ogg")
    assert found.manifest["recording_id"].tolist() == ["XC164848"]


def test_xeno_canto_json_names_species_recordist_and_site(tmp_path):
    page = {"numRecordings": "2", "numSpecies": "2", "page": 1, "numPages": 1, "recordings": XENO_CANTO}
    (tmp_path / "page.json").write_text(json.dumps(page))
    touch(tmp_path, "audio/XC694038 - Eurasian Wren.mp3", "audio/LS110124.mp3", "audio/XC6940381.mp3")
    found = read_collection(tmp_path / "page.json")
    assert found.kind == "xeno-canto JSON"
    assert found.manifest.drop(columns=["split", "fold"]).to_numpy().tolist() == [
        [
            str(tmp_path / "audio" / "XC694038 - Eurasian Wren.mp3"),
            "Troglodytes troglodytes", "XC694038", "Jacobo Ramil", "42.84 -8.65",
        ],
        [str(tmp_path / "audio" / "LS110124.mp3"), "Turdus merula", "XC11", "A. Other", "somewhere, Spain"],
    ]  # fmt: skip


def test_pages_of_xeno_canto_in_a_list_or_a_folder_are_one_collection(tmp_path):
    touch(tmp_path, "694038.mp3", "xc11.ogg")
    pages = [{"recordings": XENO_CANTO[:1]}, {"recordings": XENO_CANTO}]
    (tmp_path / "all.json").write_text(json.dumps(pages))
    listed = read_collection(tmp_path / "all.json")
    assert listed.manifest["recording_id"].tolist() == ["XC694038", "XC11"]
    assert any("1 recordings are listed more than once" in note for note in listed.notes)
    (tmp_path / "all.json").unlink()
    for i, page in enumerate(pages):
        (tmp_path / f"page{i}.json").write_text(json.dumps(page))
    folder = read_collection(tmp_path)
    assert folder.kind == "xeno-canto JSON (2 pages)"
    assert folder.manifest.equals(listed.manifest)


@pytest.mark.parametrize("longitude", ["lon", "lng"])
def test_xeno_canto_csv_of_either_version_of_the_api(tmp_path, longitude):
    (tmp_path / "xc.csv").write_text(
        f"id,gen,sp,rec,lat,{longitude},file-name\n7,Parus,major,Ann,50.001,8.5,x.wav\n8,Parus,ater,Bo,,,y.wav\n"
    )
    touch(tmp_path, "songs/XC7.ogg")
    found = read_collection(tmp_path / "xc.csv")
    assert found.kind == "xeno-canto CSV"
    assert found.absent == ("XC8",)
    assert found.manifest.loc[0].to_dict() == {
        "path": str(tmp_path / "songs" / "XC7.ogg"),
        "species": "Parus major",
        "recording_id": "XC7",
        "recordist": "Ann",
        "site": "50.00 8.50",
        "split": "",
        "fold": "",
    }


def test_own_manifests_and_folders_are_recognised(tmp_path):
    touch(tmp_path, "audio/robin/a.wav")
    assert read_collection(tmp_path / "audio").kind == "folder per species"
    (tmp_path / "own.csv").write_text("path,species\naudio/robin/a.wav,robin\n")
    found = read_collection(tmp_path / "own.csv")
    assert found.kind == "manifest CSV"
    assert found.manifest.equals(read_manifest(tmp_path / "own.csv"))


def test_a_folder_per_species_names_the_metadata_that_it_does_not_read(tmp_path):
    touch(tmp_path, "robin/a.wav")
    assert read_collection(tmp_path).notes == ()
    (tmp_path / "counts.csv").write_text("species,n\nrobin,1\n")
    (tmp_path / "broken.csv").write_bytes(b"path,species\n\xff\xfe\n")
    assert not any("counts.csv" in note for note in read_collection(tmp_path).notes)
    (tmp_path / "own.csv").write_text("path,species,recordist\nrobin/a.wav,robin,Ann\n")
    found = read_collection(tmp_path)
    assert found.kind == "folder per species" and len(found.manifest) == 1
    assert len(found.notes) == 1 and "own.csv" in found.notes[0] and "counts.csv" not in found.notes[0]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.csv", "file,bird\na.wav,robin\n", ["file, bird"]),
        ("x.json", '{"birds": []}', ["x.json"]),
        ("x.json", '{"recordings": [{"id": "1"}]}', ["x.json"]),
        ("x.json", "[1, 2]", ["x.json"]),
        ("nothing", None, ["nothing"]),
    ],
)
def test_another_kind_is_refused_with_what_is_accepted(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_collection(tmp_path / name)
    for word in (
        *words,
        "path and species",
        "one folder of recordings per species",
        "train_metadata.csv",
        "gen, sp",
    ):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.json", "{", ["cannot be read as JSON"]),
        ("x.json", '[{"id": "1", "gen": "", "sp": "major"}]', ["gen is empty", "recording 1 of 1"]),
        ("x.csv", "primary_label,filename\n,a.ogg\n", ["primary_label is empty"]),
    ],
)
def test_metadata_that_cannot_be_used_say_where(tmp_path, name, text, words):
    touch(tmp_path, "a.ogg", "1.ogg")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_collection(tmp_path / name)
    for word in words:
        assert word in str(caught.value)


def test_one_xeno_canto_number_under_two_species_is_refused(tmp_path):
    touch(tmp_path, "XC1.mp3")
    (tmp_path / "x.csv").write_text("id,gen,sp\n1,Parus,major\n1,Parus,ater\n")
    with pytest.raises(DataError, match="second time"):
        read_collection(tmp_path / "x.csv")
