"""What is said about the images, and what is left out: each finding with and without its cause."""

import shutil

import numpy as np
import pytest
from PIL import ExifTags, Image

from effcnn_helpers.datasets import DataError
from effcnn_helpers.findings import Finding
from effcnn_helpers.own import own_dataset

GREY, COLOUR = (1, 28, 28), (3, 32, 32)
ENOUGH = {"cat": 15, "dog": 15}


def findings(folder, shape=GREY) -> dict[str, str]:
    """Each finding's line, by its kind."""
    return {finding.kind: str(finding) for finding in own_dataset(folder, shape).findings}


def names_in(checked) -> int:
    return len(checked.dataset.train) + len(checked.dataset.test)


def test_a_clean_folder_is_no_finding(picture_folder):
    checked = own_dataset(picture_folder(ENOUGH))
    assert checked.findings == ()
    assert str(checked) == "folder things: 2 classes, 24 training and 6 test images of 1 × 28 × 28\n" \
                           "- nothing to remark"


def test_a_finding_is_one_line_with_a_count_and_three_names():
    assert str(Finding("few", "small classes", ("a", "b"))) == "small classes (2): a, b"
    names = tuple(f"{row}.png" for row in range(1_234))
    assert str(Finding("x", "copies", names)) == "copies (1,234): 0.png, 1.png, 2.png and 1,231 more"
    assert str(Finding("x", "all are 28 × 28")) == "all are 28 × 28"


def test_sizes_that_differ(picture_folder):
    folder = picture_folder(ENOUGH, size=(40, 40))
    assert findings(folder) == {"sizes": "all pictures are now 28 × 28 pixels; they were 40 × 40"}
    for row, size in enumerate([(80, 80), (60, 30), (30, 60)]):
        Image.open(folder / "cat/00.png").resize(size).save(folder / f"cat/x{row}.png")
    assert findings(folder) == {
        "sizes": "all pictures are now 28 × 28 pixels, 2 with bars beside them to keep their proportions; they were "
                 "40 × 40, except (3): cat/x0.png, cat/x1.png, cat/x2.png"}


def test_grey_and_colour_mixed(picture_folder):
    folder = picture_folder(ENOUGH, size=(32, 32), colour=True)
    assert findings(folder, COLOUR) == {}
    assert findings(folder, GREY)["colours"].startswith("pictures in colour, now grey (30): cat/00.png, ")
    Image.open(folder / "dog/03.png").convert("L").save(folder / "dog/03.png")
    assert findings(folder, COLOUR) == {
        "colours": "grey pictures among those in colour, which may give their class away (1): dog/03.png"}
    greys = picture_folder(ENOUGH, "greys", size=(32, 32))
    assert findings(greys, COLOUR) == {}
    shutil.copy(folder / "cat/00.png", greys / "cat/00.png")
    assert findings(greys, COLOUR) == {
        "colours": "pictures in colour among grey ones, which may give their class away (1): cat/00.png"}


def test_what_was_mended_is_said(picture_folder):
    folder = picture_folder(ENOUGH)
    image = Image.open(folder / "cat/00.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.rotate(90).save(folder / "cat/turned.png", exif=exif)
    see_through = image.convert("RGBA")
    see_through.paste((0, 0, 0, 0), (0, 0, 9, 9))
    see_through.save(folder / "cat/seen.png")
    Image.fromarray(np.asarray(image).astype(np.uint16)[::-1] * 257).save(folder / "cat/deep.png")
    image.transpose(Image.Transpose.TRANSPOSE).save(
        folder / "cat/film.png", save_all=True, append_images=[Image.open(folder / "dog/00.png")])
    assert findings(folder) == {
        "turned": "pictures turned upright, as their EXIF data say (1): cat/turned.png",
        "transparent": "pictures transparent in places, now white there (1): cat/seen.png",
        "16 bits": "pictures of 16 bits, now of 8 (1): cat/deep.png",
        "several frames": "files with several frames, of which the first counts (1): cat/film.png",
        "copies": "copies of other images, left out (1): cat/turned.png = cat/00.png"}


def test_a_picture_of_one_colour_is_named_and_stays(picture_folder):
    folder = picture_folder(ENOUGH)
    Image.new("L", (28, 28), 7).save(folder / "cat/even.png")
    assert findings(folder) == {"constant": "pictures of one even colour (1): cat/even.png"}
    assert names_in(own_dataset(folder)) == 31


def test_copies_are_left_out_by_their_pixels_and_not_by_their_bytes(picture_folder):
    folder = picture_folder(ENOUGH)
    shutil.copy(folder / "cat/00.png", folder / "cat/a.png")
    Image.open(folder / "cat/00.png").save(folder / "cat/b.bmp")
    almost = np.array(Image.open(folder / "cat/01.png"))
    almost[0, 0] ^= 1
    Image.fromarray(almost).save(folder / "cat/c.png")
    assert findings(folder) == {
        "copies": "copies of other images, left out (2): cat/a.png = cat/00.png, cat/b.bmp = cat/00.png"}
    assert names_in(own_dataset(folder)) == 31


def test_a_picture_under_two_labels_is_left_out_of_training(picture_folder):
    folder = picture_folder(ENOUGH)
    shutil.copy(folder / "cat/00.png", folder / "dog/a.png")
    shutil.copy(folder / "cat/00.png", folder / "cat/b.png")
    assert findings(folder) == {
        "two labels": "pictures under two labels, left out of training (1): cat/00.png = cat/b.png = dog/a.png"}
    assert names_in(own_dataset(folder)) == 29


def test_a_test_part_stays_whole_and_what_is_in_it_leaves_training(picture_folder, tmp_path):
    train, test = picture_folder(ENOUGH, "things/train"), picture_folder({"cat": 9, "dog": 9}, "things/test")
    shutil.copy(test / "cat/00.png", train / "cat/leak.png")
    shutil.copy(test / "cat/01.png", test / "cat/twice.png")
    shutil.copy(test / "cat/02.png", train / "dog/wrong.png")
    shutil.copy(test / "cat/03.png", test / "dog/both.png")
    checked = own_dataset(tmp_path / "things")
    assert {finding.kind: str(finding) for finding in checked.findings} == {
        "two labels": "pictures under two labels, left out of training (2): train/dog/wrong.png = test/cat/02.png, "
                      "test/cat/03.png = test/dog/both.png",
        "in both parts": "training images that are test images, too, left out of training (1): "
                         "train/cat/leak.png = test/cat/00.png",
        "copies in test": "copies within the test part, which stays as it is (1): test/cat/twice.png = test/cat/01.png",
    }
    assert (len(checked.dataset.train), len(checked.dataset.test)) == (30, 20)


def test_small_and_uneven_classes(picture_folder):
    assert findings(picture_folder({"cat": 50, "dog": 11}, "four times")) == {}
    folder = picture_folder({"cat": 50, "dog": 10, "cow": 9, "bee": 1})
    assert findings(folder) == {
        "few": "classes with fewer than 10 images (2): bee (1), cow (9)",
        "untested": "classes without a test image (1): bee",
        "uneven": "cat (50) has 50 times as many images as bee (1); whoever always answers 'cat' is right in 71 % of "
                  "the tests"}


def test_a_class_without_an_image_or_too_few_in_all_are_refused_with_what_was_found(picture_folder):
    folder = picture_folder({**ENOUGH, "cow": 0})
    with pytest.raises(DataError, match="the class 'cow' of folder things has no image to train on; add some, or "
                                        "remove the class"):
        own_dataset(folder)
    (folder / "cow/a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"remove the class; damaged files, left out \(1\): cow/a\.png"):
        own_dataset(folder)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"the class 'cat' .* damaged files, left out \(31\): cat/00\.png"):
        own_dataset(folder)
    few = picture_folder({"cat": 10, "dog": 9}, "few")
    with pytest.raises(DataError, match="folder few has 19 images to train on; expected 20 or more: add some"):
        own_dataset(few)


def test_a_test_part_without_images_is_refused(picture_folder, tmp_path):
    picture_folder(ENOUGH, "things/train")
    picture_folder({"cat": 0}, "things/test")
    with pytest.raises(DataError, match="folder things has no image left to test on"):
        own_dataset(tmp_path / "things")
