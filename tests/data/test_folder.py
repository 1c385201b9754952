"""Folders of images: layouts, sizes, modes, and every promised refusal."""

import os
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from offramp.data import load

LAYOUT = {"train/cat": 12, "train/dog": 12, "test/cat": 2, "test/dog": 2}


def sizes(data):
    return {name: len(split) for name, split in data.splits.items()}


def test_train_and_test(tmp_path, write):
    data = load(f"folder:{write.image_folder(tmp_path, LAYOUT)}", holdout=0.4)
    assert data.classes == ("cat", "dog")
    assert data.shape == (3, 32, 32)
    assert sizes(data) == {"train": 14, "val": 5, "cal": 5, "test": 4}
    assert data.augmentation == "crop-flip"


def test_a_val_that_came_with_the_data_is_halved(tmp_path, write):
    write.image_folder(tmp_path, LAYOUT | {"val/cat": 5, "val/dog": 4})
    for holdout in (0.1, 0):
        data = load(f"folder:{tmp_path}", holdout=holdout)
        assert sizes(data) == {"train": 24, "val": 5, "cal": 4, "test": 4}


def test_val_without_test_is_what_is_reported_on(tmp_path, write):
    write.image_folder(tmp_path, {"train/a": 10, "train/b": 10, "validation/a": 3, "validation/b": 3})
    assert sizes(load(f"folder:{tmp_path}", holdout=0.2)) == {"train": 16, "val": 2, "cal": 2, "test": 6}


def test_undivided_folders_are_cut_80_10_10(tmp_path, write):
    write.image_folder(tmp_path, {"cat": 40, "dog/brown": 20, "dog/white": 20})
    data = load(f"folder:{tmp_path}")
    assert sizes(data) == {"train": 64, "val": 4, "cal": 4, "test": 8}
    assert data.classes == ("cat", "dog")
    for split in data.splits.values():
        assert np.bincount(split.labels).tolist() == [len(split) // 2] * 2
    other = load(f"folder:{tmp_path}", split_seed=1)
    assert not np.array_equal(data.splits["test"].ids, other.splits["test"].ids)


def test_within_data_dir(tmp_path, write):
    write.image_folder(tmp_path / "pets", LAYOUT)
    assert len(load("folder:pets", data_dir=tmp_path, holdout=0).splits["train"]) == 24


@pytest.mark.parametrize(("size", "expected"), [((48, 60), 32), ((49, 200), 224)])
def test_size_follows_the_median_shorter_side(tmp_path, write, size, expected):
    write.image_folder(tmp_path, LAYOUT, size)
    assert load(f"folder:{tmp_path}", holdout=0).shape == (3, expected, expected)


def test_shorter_side_is_resized_and_the_centre_cropped(tmp_path):
    for part in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / part).mkdir(parents=True)
        image = Image.new("RGB", (120, 60), (255, 0, 0))
        image.paste((0, 255, 0), (45, 15, 75, 45))  # the inner half of the centre square
        image.save(tmp_path / part / "0.png")
    for resize, border in ((None, 8), (32, 8), (64, 0), ("64", 0)):  # text is what the command line hands over
        data = load(f"folder:{tmp_path}", holdout=0, image_size=32, resize=resize)
        green = data.splits["train"].source.batch(np.arange(4))[:, 1] > 127
        expected = np.zeros((32, 32), dtype=bool)
        expected[border : 32 - border, border : 32 - border] = True
        assert (green == expected).all()
    with pytest.raises(ValueError, match=r"images of 32 pixels need a data.resize of at least that, got 31"):
        load(f"folder:{tmp_path}", image_size=32, resize=31)


@pytest.mark.parametrize("streaming", [False, True])
def test_other_modes_become_rgb_and_are_counted(tmp_path, write, streaming):
    write.image_folder(tmp_path, LAYOUT)
    image = Image.linear_gradient("L").resize((40, 40))
    for place, mode, name in (
        ("train/cat", "L", "g.png"),
        ("train/cat", "1", "h.png"),
        ("train/dog", "P", "p.png"),
        ("train/dog", "CMYK", "c.jpg"),
        ("test/dog", "RGBA", "t.png"),
        ("test/cat", "LA", "u.png"),
    ):
        image.convert("RGB").convert(mode).save(tmp_path / place / name)
    Image.fromarray(np.full((40, 40), 40000, dtype=np.uint16)).save(tmp_path / "test/cat/w.png")
    Image.new("P", (40, 40), 3).save(tmp_path / "test/dog/v.png", transparency=b"\x00\x7f\xff")
    for _ in range(2):  # the second time from the cache
        data = load(f"folder:{tmp_path}", holdout=0, streaming=streaming)
        name = f"folder:{tmp_path}"
        assert data.notes[0] == f"{name}: 1 CMYK, 3 grey, 2 palette, 2 transparent images became RGB"
        if not streaming:  # the files differ
            assert data.notes[1].startswith(f"{name}: 2 of 8 test images are in train too: what is measured")
    place = sorted((tmp_path / "test/cat").iterdir()).index(tmp_path / "test/cat/w.png")
    deep = data.splits["test"].source.batch(data.splits["test"].ids[place : place + 1])
    assert (deep == 40000 >> 8).all()


def test_upright_by_exif(tmp_path, write):
    write.image_folder(tmp_path, LAYOUT)
    image = Image.new("RGB", (40, 40), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 20, 40))  # the left half black
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: the left half is the top half
    image.save(tmp_path / "train/cat/000.jpg", exif=exif, quality=95)
    data = load(f"folder:{tmp_path}", holdout=0)
    pixels = data.splits["train"].source.batch(np.array([0]))[0, 0]
    assert pixels[:12].max() < 50 and pixels[20:].min() > 200


def test_files_that_are_no_images_are_told_and_hidden_ones_are_not(tmp_path, write):
    write.image_folder(tmp_path, LAYOUT)
    (tmp_path / "train/cat/notes.txt").write_text("x")
    (tmp_path / "train/labels.csv").write_text("x")
    (tmp_path / "train/cat/.DS_Store").write_text("x")
    (tmp_path / ".git").mkdir()
    write.image_folder(tmp_path, {"train/cat/.thumbnails": 2})
    data = load(f"folder:{tmp_path}", holdout=0)
    assert data.notes == (
        f"{tmp_path}: 2 files were left out: their names do not end like those of images (labels.csv, …)",
    )
    assert len(data.splits["train"]) == 24


def test_circular_links_end(tmp_path, write):
    write.image_folder(tmp_path, LAYOUT)
    (tmp_path / "train/cat/again").symlink_to(tmp_path / "train/cat")
    assert len(load(f"folder:{tmp_path}", holdout=0).splits["train"]) == 24


def assert_refused(tmp_path, error, message, **options):
    with pytest.raises(error, match=message):
        load(f"folder:{tmp_path}", **options)


def test_missing_and_empty(tmp_path):
    assert_refused(tmp_path / "nowhere", FileNotFoundError, "nowhere does not exist: check folder:")
    assert_refused(tmp_path, FileNotFoundError, "is empty: it should contain train/ and test/")
    (tmp_path / "train/cat").mkdir(parents=True)
    (tmp_path / "test/cat").mkdir(parents=True)
    assert_refused(tmp_path, ValueError, "train contains no images")
    (tmp_path / "file").write_text("x")
    assert_refused(tmp_path / "file", FileNotFoundError, "is not a folder")


def test_split_without_samples(tmp_path, write):
    write.image_folder(tmp_path, LAYOUT | {"test/cat": 0, "test/dog": 0})
    assert_refused(tmp_path, ValueError, "test contains no images")


def test_class_in_one_split_only(tmp_path, write):
    write.image_folder(tmp_path, LAYOUT | {"train/owl": 5})
    assert_refused(tmp_path, ValueError, r"class 2 \(owl\) is in train but not in test: every class needs")


def test_class_without_val(tmp_path, write):
    write.image_folder(tmp_path, LAYOUT | {"val/cat": 3})
    assert_refused(tmp_path, ValueError, r"class 1 \(dog\) is in train and cal and test but not in val|class 1 \(dog\)")


def test_one_class(tmp_path, write):
    write.image_folder(tmp_path, {"train/cat": 9, "test/cat": 3})
    assert_refused(tmp_path, ValueError, "has one class only")


def test_too_few_images_to_hold_out(tmp_path, write):
    write.image_folder(tmp_path, {"train/a": 2, "train/b": 9, "test/a": 1, "test/b": 1})
    assert_refused(tmp_path, ValueError, r"class 0 \(a\) has 2 images, too few to set 2 of them aside")
    assert sizes(load(f"folder:{tmp_path}", holdout=0)) == {"train": 11, "test": 2}


def test_stray_image_and_stray_folder(tmp_path, write):
    write.image_folder(tmp_path, LAYOUT)
    stray = tmp_path / "train/x.png"
    stray.write_bytes(b"")
    assert_refused(tmp_path, ValueError, "x.png is in no class folder")
    stray.unlink()
    (tmp_path / "extra").mkdir()
    assert_refused(tmp_path, ValueError, "has extra/ beside train/")
    (tmp_path / "extra").rename(tmp_path / "validation")
    (tmp_path / "val").mkdir()
    assert_refused(tmp_path, ValueError, "has both va.*/ and va.*/: keep one")


@pytest.mark.parametrize("streaming", [False, True])
def test_undecodable_image(tmp_path, write, streaming):
    write.image_folder(tmp_path, LAYOUT)
    bad = tmp_path / "train/dog/003.png"
    bad.write_bytes(bad.read_bytes()[:200])
    assert_refused(tmp_path, ValueError, rf"1 of 28 images cannot be decoded: {bad} \(", streaming=streaming)
    shutil.copy(tmp_path / "train/cat/000.png", tmp_path / "train/cat/001.png")
    for _ in range(2):  # the second time from the cache
        data = load(f"folder:{tmp_path}", holdout=0, streaming=streaming, skip_damaged=True)
        assert data.notes[0].startswith(f"folder:{tmp_path}: without 1 of 28 images, which cannot be decoded: {bad} (")
        assert len(data.splits["train"]) == 23


def test_a_check_of_headers_finds_what_headers_show(tmp_path, write):
    write.image_folder(tmp_path, LAYOUT)
    bad = tmp_path / "train/dog/003.png"
    bad.write_bytes(bad.read_bytes()[:200])
    load(f"folder:{tmp_path}", streaming=True, check="headers", holdout=0)
    bad.write_bytes(b"GIF")
    assert_refused(tmp_path, ValueError, "1 of 28 images cannot be decoded", streaming=True, check="headers")
    assert_refused(tmp_path, ValueError, "data.check takes one of full, headers, got 'none'", check="none")


def test_image_bomb(tmp_path, write):
    write.image_folder(tmp_path, LAYOUT)
    bad = tmp_path / "train/dog/bomb.png"
    Image.new("1", (8001, 8000)).save(bad)
    assert bad.stat().st_size < 100_000
    message = rf"1 of 29 images cannot be decoded: {bad} \(it is 8001x8000"
    assert_refused(tmp_path, ValueError, message)
    assert_refused(tmp_path, ValueError, message, streaming=True)
    Image.new("1", (30001, 8000)).save(bad)  # beyond what Pillow itself allows
    assert_refused(tmp_path, ValueError, "megapixels allowed")


def test_a_disguised_program_is_not_started(tmp_path, write):
    write.image_folder(tmp_path, LAYOUT)
    (tmp_path / "train/dog/003.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    assert_refused(tmp_path, ValueError, r"003.png \(no PNG, JPEG")


def test_nothing_is_written_beside_the_data(tmp_path, write):
    root = write.image_folder(tmp_path / "data", LAYOUT)
    before = sorted(root.rglob("*"))
    load(f"folder:{root}", holdout=0)
    load(f"folder:{root}", holdout=0, streaming=True)
    assert sorted(root.rglob("*")) == before


def test_folders_that_are_no_classes_are_named(tmp_path, write):
    write.image_folder(tmp_path / "holes", {"a": 0, "b": 0, "bad/cats": 5, "bad/dogs": 5, "bad/owls": 5})
    with pytest.raises(ValueError) as caught:
        load(f"folder:{tmp_path / 'holes'}")
    deep = tmp_path / "holes/bad"
    assert str(caught.value).startswith(
        f"{deep / 'cats/000.png'} is nested too deep: no folder in {tmp_path / 'holes'} holds"
    )
    assert str(caught.value).endswith(f"name the folder whose folders are the classes, such as {deep}")
    assert load(f"folder:{deep}", holdout=0).classes == ("cats", "dogs", "owls")


def test_empty_classes_are_named(tmp_path, write):
    write.image_folder(tmp_path, {"a": 20, "b": 20, "c": 0, "d": 0, "e": 0, "f": 0})
    with pytest.raises(
        ValueError, match=r"has class folders without images, c/, d/, e/ \(and 1 more\): fill or remove"
    ):
        load(f"folder:{tmp_path}")


def test_one_class_is_not_the_folder_of_classes(tmp_path, write):
    write.image_folder(tmp_path, {"cats": 8, "dogs": 8})
    with pytest.raises(FileNotFoundError, match=r"cats contains images but no class folders \(000.png, …\): name the"):
        load(f"folder:{tmp_path / 'cats'}")


def test_one_stranger_is_one_file(tmp_path, write):
    write.image_folder(tmp_path, LAYOUT)
    (tmp_path / "train/notes.txt").write_text("mine")
    assert load(f"folder:{tmp_path}", holdout=0).notes == (
        f"{tmp_path}: notes.txt was left out: its name does not end like that of an image",
    )


def test_a_path_that_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("OFFRAMP_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"^nope does not exist: check folder:nope"):
        load("folder:nope")
    with pytest.raises(FileNotFoundError, match=rf"^neither nope nor {tmp_path}/nope exists: correct folder:nope"):
        load("folder:nope", data_dir=tmp_path)


def notes(root, **options):
    return load(f"folder:{root}", holdout=0, **options).notes


def test_links_to_a_parent_are_left_out(tmp_path, write):
    write.image_folder(tmp_path / "p", LAYOUT)
    (tmp_path / "p/train/cat/up").symlink_to(tmp_path / "p/train")
    (tmp_path / "p/train/everything").symlink_to(tmp_path / "p")
    data = load(f"folder:{tmp_path / 'p'}", holdout=0)
    assert data.classes == ("cat", "dog") and sizes(data) == {"train": 24, "test": 4}
    assert data.notes == (
        f"{tmp_path / 'p'}: 2 links to folders that contain them or were read already were left out (everything, …)",
    )


def test_broken_links_and_formats_that_are_not_read(tmp_path, write):
    write.image_folder(tmp_path, LAYOUT)
    (tmp_path / "train/cat/gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "train/owl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "train/cat/phone.HEIC").write_bytes(b"x")
    (tmp_path / "train/dog/a.avif").write_bytes(b"x")
    assert notes(tmp_path) == (
        f"{tmp_path}: 2 images were left out: AVIF, HEIC is not read, convert them to JPEG or PNG (phone.HEIC, …)",
        f"{tmp_path}: 2 links lead nowhere and were left out (owl, …)",
    )


def test_pipes_are_left_out_instead_of_waited_for(tmp_path, write):
    write.image_folder(tmp_path, LAYOUT)
    os.mkfifo(tmp_path / "train/cat/pipe.png")
    assert notes(tmp_path) == (f"{tmp_path}: pipe.png is a pipe, socket or device and was left out",)


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path, write):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write.image_folder(tmp_path, {f"train/{composed}": 9, "train/dog": 9, f"test/{decomposed}": 2, "test/dog": 2})
    data = load(f"folder:{tmp_path}", holdout=0)
    assert data.classes == (composed, "dog") and sizes(data) == {"train": 18, "test": 4}
    assert len(data.notes) == 1 and "in another Unicode form (NFC, NFD): taken as one class" in data.notes[0]


def test_a_class_name_that_is_not_utf8(tmp_path, write):
    write.image_folder(tmp_path, {"x": 12, "y": 12})
    os.rename(os.fsencode(tmp_path / "x"), os.fsencode(tmp_path) + b"/caf\xe9")
    data = load(f"folder:{tmp_path}", holdout=0)
    assert data.classes == ("caf\\xe9", "y")
    assert data.notes == (f"{tmp_path}: the class name caf\\xe9 is not UTF-8, its bytes are written in hexadecimal",)


def test_a_class_that_is_called_train(tmp_path, write):
    write.image_folder(tmp_path, {"bus": 10, "car": 10, "train": 10})
    assert_refused(
        tmp_path,
        ValueError,
        r"has bus/ beside train/: only train/, val/ and test/ belong there; if train/ is a class like bus/, add "
        r"data.layout=classes",
    )
    data = load(f"folder:{tmp_path}", layout="classes")
    assert data.classes == ("bus", "car", "train") and sizes(data)["train"] == 21
    write.image_folder(tmp_path / "two", {"train": 10, "test": 10})
    assert load(f"folder:{tmp_path / 'two'}", layout="classes").classes == ("test", "train")


@pytest.mark.parametrize("streaming", [False, True])
def test_duplicates_across_splits_and_classes(tmp_path, write, streaming):
    write.image_folder(tmp_path, LAYOUT)
    shutil.copy(tmp_path / "train/cat/000.png", tmp_path / "test/cat/copy.png")
    shutil.copy(tmp_path / "train/cat/001.png", tmp_path / "train/dog/copy.png")
    for _ in range(2):  # the second time from the cache
        assert notes(tmp_path, streaming=streaming) == (
            f"folder:{tmp_path}: 1 of 5 test images are in train too: what is measured on them is too good, remove the "
            "duplicates",
            f"folder:{tmp_path}: 1 image is in more than one class: correct their labels or remove the duplicates",
        )


def test_unbalanced_classes(tmp_path, write):
    write.image_folder(tmp_path, LAYOUT | {"train/cat": 120})
    assert notes(tmp_path) == (
        f"folder:{tmp_path}: the classes of train are unbalanced: 120 images of cat, 12 of dog; accuracy says little "
        "about the small classes",
    )


def test_damaged_exif_is_said(tmp_path, write):
    write.image_folder(tmp_path, LAYOUT)
    exif = b"Exif\0\0" + bytes.fromhex("0008000201120003")
    for name in ("bad.png", "bad.webp"):
        Image.linear_gradient("L").convert("RGB").rotate(len(name)).save(tmp_path / "train/cat" / name, exif=exif)
    assert notes(tmp_path)[0] == (
        f"folder:{tmp_path}: 2 images with damaged EXIF data, read without turning them upright"
    )
