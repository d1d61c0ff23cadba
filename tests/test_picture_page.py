"""The page for pictures, in a real browser, opened from a file: a folder of images becomes a page that answers."""

import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from test_draw_page import CUT_OFF, NAMELESS, assert_quiet, bars, open_wide, text, wide

from effcnn_helpers.cli import main
from effcnn_helpers.datasets import load_images
from effcnn_helpers.export import compiler, export
from effcnn_helpers.own import Trained, load_trained, own_dataset, train_within, write_example
from effcnn_helpers.picture_page import EXAMPLES, picture_page, rows_shown
from effcnn_helpers.pictures import read_picture
from effcnn_helpers.records import recorded_dir
from effcnn_helpers.training import predict

SECONDS = 60  # at most, for an answer on a busy machine
STACK = "mnist/1.5k-dw/settled/blurpool+squeeze_excite+swa/seed0"
RECORDED = recorded_dir()  # before a test takes another
LOGITS = "return network.examples.map((_, at) => logitsOf(network, examples[at].image))"
SHOWN = "return Array.from(image)"
SAID = f"{{}} of the {EXAMPLES} test images on this page are answered here as in PyTorch."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_example(tmp_path_factory.mktemp("images") / "shapes", images=200)


@pytest.fixture(scope="module")
def shapes(folder):
    """(a network for images in colour with sums of branches and BlurPool, its dataset)"""
    data = own_dataset(folder, (3, 32, 32)).dataset
    return train_within("143k", data, epochs=1, better=True), data


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens a page 1280 pixels wide. At the end: no complaint in the console, nothing was loaded."""
    def open_page(page: str):
        (tmp_path / "model.html").write_text(page, encoding="utf-8")
        open_wide(browser, (tmp_path / "model.html").as_uri())
        return browser
    yield open_page
    assert_quiet(browser)


def choose(page, *files) -> None:
    """Choose files, as by the system's dialog, and wait for the answer to the last one."""
    before = len(page.find_elements(By.CSS_SELECTOR, "#gallery button"))
    page.find_element(By.ID, "file").send_keys("\n".join(map(str, files)))
    WebDriverWait(page, SECONDS).until(
        lambda page: len(page.find_elements(By.CSS_SELECTOR, "#gallery button")) == before + len(files))


@pytest.mark.parametrize("network", ["sums and BlurPool, in colour", "gates, grey"])
def test_page_answers_its_test_images_as_pytorch_does_and_says_so(network, shapes, opened):
    trained, data = shapes if "sums" in network else (load_trained(RECORDED / STACK), load_images("mnist"))
    page = opened(picture_page(trained, data))
    rows = rows_shown(data)
    wanted = predict(trained.network, replace(data.test, x=data.test.x[rows], y=data.test.y[rows]), trained.spec)
    np.testing.assert_allclose(page.execute_script(LOGITS), wanted.numpy(), atol=2e-4 * wanted.abs().max().item())
    assert text(page, "#same") == SAID.format(EXAMPLES)
    captions = [button.text for button in page.find_elements(By.CSS_SELECTOR, "#gallery button")]
    assert captions == [data.classes[label] for label in data.test.y[rows]]
    page.find_elements(By.CSS_SELECTOR, "#gallery button")[5].click()
    assert page.execute_script(SHOWN) == data.test.x[rows[5]].flatten().tolist()
    shares = wanted[5].softmax(dim=0).numpy()
    assert [float(width.removesuffix("%")) for width in bars(page)] == pytest.approx(100 * shares, abs=0.05)
    assert text(page, "#answer .best-class").startswith(f"{data.classes[shares.argmax()]} ")
    assert page.execute_script(NAMELESS) == []
    for width in (360, 1280):
        wide(page, width)
        page.execute_script("find('gallery').hidden = arguments[0]", width == 360)  # there one scrolls it
        assert page.execute_script(CUT_OFF) == []
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_page_that_computes_something_else_says_so(shapes, opened):
    html = picture_page(*shapes)
    [bias] = set(re.findall(r'"logits": \[(-?[\d.]+), ', html)[:1])
    page = opened(html.replace(f'"logits": [{bias}, ', f'"logits": [{float(bias) + 1}, ', 1))
    assert text(page, "#same") == SAID.format(EXAMPLES - 1) + " So do not trust this page in this browser."


def pictures(folder) -> list:
    """Files of all kinds: large, small, wide, high, turned, transparent, grey, with a palette."""
    random = np.random.default_rng(0)
    smooth = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
    made = {
        "large.png": smooth.resize((640, 480), Image.Resampling.BICUBIC),
        "small.png": smooth.resize((20, 20), Image.Resampling.BICUBIC),
        "exact.png": smooth.resize((32, 32), Image.Resampling.BICUBIC),
        "wide.png": smooth.resize((301, 35), Image.Resampling.BICUBIC),
        "line.png": smooth.resize((1, 90), Image.Resampling.BICUBIC),
        "grey.png": smooth.resize((100, 77), Image.Resampling.BICUBIC).convert("L"),
        "palette.png": smooth.resize((64, 64), Image.Resampling.NEAREST).quantize(16),
    }
    glass = made["large.png"].convert("RGBA")
    glass.putalpha(Image.linear_gradient("L").resize(glass.size))
    made["glass.png"] = glass
    for name, image in made.items():
        image.save(folder / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    made["large.png"].resize((120, 90)).save(folder / "turned.jpg", exif=turned, quality=98, subsampling=0)
    return [folder / name for name in (*made, "turned.jpg")]


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)], ids=["colour", "grey"])
def test_files_become_the_images_that_python_makes_of_them(shape, shapes, opened, tmp_path):
    trained, data = shapes if shape[0] == 3 else (load_trained(RECORDED / STACK), load_images("mnist"))
    page = opened(picture_page(trained, data))
    for path in pictures(tmp_path):
        choose(page, path)
        found = np.array(page.execute_script(SHOWN)).reshape(shape)
        wanted = read_picture(path, shape).pixels.reshape(*shape[1:], -1).transpose(2, 0, 1)
        difference = np.abs(found - wanted)
        most = 6 if path.suffix == ".jpg" else 1  # decoders of JPEG differ
        assert difference.max() <= most and difference.mean() < 0.6, f"{path.name}: {difference.max()}"
        assert page.find_element(By.CSS_SELECTOR, "[aria-pressed=true]").text == path.name
    notes = tmp_path / "notes.txt"
    notes.write_text("no picture")
    page.find_element(By.ID, "file").send_keys(str(notes))
    WebDriverWait(page, SECONDS).until(lambda page: "notes.txt is no picture" in text(page, "#answer .best-class"))
    assert set(bars(page)) == {"0px"}


def test_names_are_text_whatever_they_hold(shapes, opened):
    trained, data = shapes
    names = ("</script><b>", "{{title}}", "&amp;", *trained.spec.classes[3:])
    spec = replace(trained.spec, classes=names, label="<i>shapes</i> & {{facts}}")
    page = opened(picture_page(Trained(trained.record, trained.network, spec), data))
    assert text(page, "h1") == "<i>shapes</i> & {{facts}}: what is in a picture?"
    assert [name.text for name in page.find_elements(By.CSS_SELECTOR, "#answer .name")][:3] == list(names[:3])
    assert page.find_elements(By.CSS_SELECTOR, "#gallery button")[0].text == names[0]


def test_rows_shown_are_as_many_of_each_class(shapes):
    data = shapes[1]
    labels = data.test.y[rows := rows_shown(data)].tolist()
    counts = np.bincount(labels, minlength=10)
    assert len(rows) == len(set(rows)) == EXAMPLES and counts.max() - counts.min() <= 1
    assert labels == sorted(labels)
    few = replace(data, test=data.test.first(7))
    assert sorted(rows_shown(few)) == list(range(7))


@pytest.mark.skipif(not compiler(), reason="needs a C compiler")
def test_folder_goes_to_a_c_program_and_a_page_in_one_sitting(folder, opened, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(folder), "--budget", "25k", "--epochs", "8", "--out", "run"]) == 0
    for to in ("c-int8", "page"):
        assert main(["export", "run", "--to", to, "--out", "device", "--images", str(folder)]) == 0
    assert "compares its answers to some test images with PyTorch's" in capsys.readouterr().out
    path = next(folder.glob("disc/*.png"))
    assert main(["predict", "run", str(path)]) == 0
    answer = capsys.readouterr().out.split()[1]

    pixels = ", ".join(map(str, read_picture(path, (1, 28, 28)).pixels.flatten()))
    (tmp_path / "device/main.c").write_text(
        '#include <stdio.h>\n#include "model.h"\n'
        f"static const uint8_t image[784] = {{{pixels}}};\n"
        'int main(void) { printf("%d", model_classify(image)); return 0; }\n')
    subprocess.run([compiler(), "-std=c99", "-Wall", "-Wextra", "-Werror", "main.c", "model.c", "-o", "program"],
                   check=True, cwd=tmp_path / "device")
    number = int(subprocess.check_output([tmp_path / "device/program"], text=True))
    assert load_trained("run").spec.classes[number] == answer

    page = opened((tmp_path / "device/model.html").read_text(encoding="utf-8"))
    assert "shapes: what is in a picture?" in text(page, "h1")
    shutil.copy(path, tmp_path / "photo.png")
    choose(page, tmp_path / "photo.png")
    assert text(page, "#answer .best-class").startswith(f"{answer} ")


def test_export_writes_the_page(shapes, tmp_path):
    trained, data = shapes
    done = export(trained, "page", tmp_path, data)
    assert [path.name for path in done.files] == ["model.html"] and done.images == 0
    assert done.files[0].read_text(encoding="utf-8") == picture_page(trained, data)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3_072, 10), torch.nn.GELU())
    with pytest.raises(ValueError, match="GELU.*C and pages can be written of Conv2d"):
        export(Trained(trained.record, network, trained.spec), "page", tmp_path, data)
    assert done.files[0].exists()
