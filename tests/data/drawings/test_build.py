"""Building the folder of drawings: what is in it, resuming, missing packages, licences."""

import json

import pytest
from drawings_packages import ICONS, iconify, package_files

from dalle.data.drawings.build import build
from dalle.data.drawings.extract import ATTRIBUTIONS
from dalle.data.drawings.folder import SOURCES, SUBJECTS
from dalle.data.drawings.packages import FLUENT_3D, ICONIFY, OPENMOJI, PackageError
from dalle.data.drawings.render import Drawings
from dalle.data.drawings.sets import SETS


@pytest.fixture
def opened(drawings):
    return Drawings(drawings, 40)


def named(opened, name):
    return {picture.key: picture for picture in opened.pictures if picture.drawing_set.name == name}


def test_emojis_are_matched_by_code_point_with_their_skin_tones(opened):
    found = named(opened, "openmoji")
    assert found["openmoji/1F34E"].subject.labels == {"en": "red apple", "fr": "pomme rouge"}
    assert (found["openmoji/1F44B"].tone, found["openmoji/1F44B-1F3FF"].tone) == ("", "dark")
    assert found["openmoji/1F44B-1F3FF"].subject is found["openmoji/1F44B"].subject
    assert {emoji.subject.labels["en"] for emoji in named(opened, "twemoji").values()} >= {"owl", "umbrella"}


def test_icons_are_matched_by_name_without_brands_and_commands(opened):
    found = {icon.subject.labels["en"] for icon in named(opened, "lucide").values()}
    assert found == {"umbrella", "owl", "rocket", "dumbbell"}
    assert {"apple", "settings"} < set(ICONS)


def test_sets_of_a_single_colour_have_no_skin_tones_and_nothing_named_by_a_colour(opened):
    assert set(named(opened, "openmoji")) - {
        f"openmoji/{name.split('/')[1]}" for name in named(opened, "openmoji-black")
    } == {
        "openmoji/1F34E",  # a red apple
        "openmoji/1F44B-1F3FF",  # dark skin
        "openmoji/1F1EB-1F1F7",  # a flag
    }
    assert "fluent-high-contrast/drawing-0" not in named(opened, "fluent-high-contrast")
    assert "twemoji/drawing-0" in named(opened, "twemoji")


def test_names_with_other_spellings_are_found(opened):
    assert {emoji.subject.labels["en"] for emoji in named(opened, "emojione").values()} == {"red apple", "flag: France"}


def test_weights_of_one_icon_set_are_sets_of_their_own(opened):
    assert list(named(opened, "phosphor-fill")) == ["phosphor-fill/umbrella"]
    assert list(named(opened, "phosphor")) == ["phosphor/umbrella"]


def test_every_set_has_its_licence_and_author(drawings):
    sets = json.loads((drawings / SOURCES).read_text())["sets"]
    assert set(sets) == {drawing_set.name for drawing_set in SETS}
    assert all(entry["licence"] and entry["author"] and entry["sha256"] for entry in sets.values())
    assert sets["openmoji"]["licence"] == ATTRIBUTIONS[OPENMOJI]["licence"] == "CC-BY-SA-4.0"


def test_a_licence_that_forbids_it_stops_the_build(registry, tmp_path):
    registry.files[ICONIFY]["json/twemoji.json"] = iconify((), licence="CC-BY-NC-4.0")
    with pytest.raises(ValueError, match="twemoji has the licence CC-BY-NC-4.0"):
        build(tmp_path / "built", tmp_path / "packages", registry.fetch)


def test_a_missing_package_is_named_and_the_others_are_built(registry, tmp_path):
    def fetch(package, folder):
        if package is OPENMOJI:
            raise PackageError("the npm registry did not give openmoji@17.0.0: ENOTFOUND")
        return registry.fetch(package, folder)

    (problem,) = build(tmp_path / "built", tmp_path / "packages", fetch)
    assert problem.startswith("openmoji, openmoji-black: ") and "ENOTFOUND" in problem
    sources = json.loads((tmp_path / "built" / SOURCES).read_text())
    assert sources["missing"] == [problem] and "twemoji" in sources["sets"] and "openmoji" not in sources["sets"]
    assert build(tmp_path / "built", tmp_path / "packages", registry.fetch) == []  # later it can be had
    assert "openmoji" in json.loads((tmp_path / "built" / SOURCES).read_text())["sets"]


def test_without_any_set_the_error_names_all_reasons(registry, tmp_path):
    def fetch(package, folder):
        if package in (OPENMOJI, FLUENT_3D, ICONIFY):
            raise PackageError(f"no {package}")
        return registry.fetch(package, folder)

    with pytest.raises(PackageError, match="no openmoji@.*no @lobehub.*no @iconify"):
        build(tmp_path / "built", tmp_path / "packages", fetch)


def test_a_half_written_archive_is_built_again_and_finished_ones_are_kept(registry, tmp_path):
    out, downloads = tmp_path / "built", tmp_path / "packages"
    build(out, downloads, registry.fetch)
    contents = {path.name: path.read_bytes() for path in out.iterdir()}
    damaged, kept = out / "twemoji.tar.xz", out / "noto.tar.xz"
    damaged.write_bytes(contents[damaged.name][:100])
    before = kept.stat().st_mtime_ns
    build(out, downloads, registry.fetch)
    assert kept.stat().st_mtime_ns == before
    assert {path.name: path.read_bytes() for path in out.iterdir()} == contents


def test_a_finished_folder_needs_no_package(registry, tmp_path):
    out, downloads = tmp_path / "built", tmp_path / "packages"
    build(out, downloads, registry.fetch)
    contents = {path.name: path.read_bytes() for path in out.iterdir()}

    def fetch(package, folder):
        raise PackageError(f"no {package}")

    assert build(out, downloads, fetch) == []
    assert {path.name: path.read_bytes() for path in out.iterdir()} == contents


def test_finished_sets_stay_when_the_package_of_an_unfinished_one_is_missing(registry, tmp_path):
    out, downloads = tmp_path / "built", tmp_path / "packages"
    build(out, downloads, registry.fetch)
    (out / "openmoji.tar.xz").unlink()

    def fetch(package, folder):
        if package is OPENMOJI:
            raise PackageError(f"no {package}")
        return registry.fetch(package, folder)

    assert build(out, downloads, fetch) == [f"openmoji: no {OPENMOJI}"]
    sets = json.loads((out / SOURCES).read_text())["sets"]
    assert "openmoji" not in sets and "openmoji-black" in sets


def test_subjects_that_an_interrupted_build_left_out_are_added(registry, tmp_path):
    out, downloads = tmp_path / "built", tmp_path / "packages"
    build(out, downloads, registry.fetch)
    subjects = (out / SUBJECTS).read_bytes()
    (out / SUBJECTS).write_text(json.dumps(json.loads(subjects)[:2]))
    build(out, downloads, registry.fetch)
    assert (out / SUBJECTS).read_bytes() == subjects


def test_two_builds_give_the_same_bytes(registry, drawings, tmp_path):
    build(tmp_path / "built", tmp_path / "packages", registry.fetch)
    for path in (tmp_path / "built").glob("*.tar.xz"):
        assert path.read_bytes() == (drawings / path.name).read_bytes()


def test_hidden_icons_are_left_out(registry, tmp_path):
    hidden = json.loads(package_files()[ICONIFY]["json/lucide.json"])
    hidden["icons"]["owl"]["hidden"] = True
    registry.files[ICONIFY]["json/lucide.json"] = json.dumps(hidden).encode()
    build(tmp_path / "built", tmp_path / "packages", registry.fetch)
    assert "lucide/owl" not in named(Drawings(tmp_path / "built", 16), "lucide")
