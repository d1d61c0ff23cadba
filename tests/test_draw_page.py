"""The page to draw on, in a real browser, opened from a file: the networks' answers, the pen, the shift."""

import base64
import re
import shutil
import tomllib
from pathlib import Path

import nbconvert
import nbformat
import numpy as np
import pytest
import torch
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from effcnn_helpers import draw_page as module
from effcnn_helpers.batches import normalise
from effcnn_helpers.draw_page import NETWORKS, draw_page, missing_runs, runs_shown, show_draw_page
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.maintain.figures import figures
from effcnn_helpers.records import RunRecord, read_network, read_run, recorded_dir

ROOT = Path(__file__).parent.parent
RECORDED = ROOT / "effcnn_helpers/recorded"
SECONDS = 60  # at most, for an answer on a busy machine
COUNT = 100

LOGITS = """
const bytes = Uint8Array.from(atob(arguments[1]), letter => letter.charCodeAt(0)), answers = [];
for (let from = 0; from < bytes.length; from += 784)
    answers.push(logitsOf(networks[arguments[0]], Float32Array.from(bytes.subarray(from, from + 784))));
return answers;
"""
# Digits as drawings of 280 x 280 pixels, each of which is 10 x 10 pixels large.
PREPARED = """
const bytes = Uint8Array.from(atob(arguments[0]), letter => letter.charCodeAt(0)), images = [];
for (let from = 0; from < bytes.length; from += 784) {
    const ink = new Float32Array(280 * 280);
    for (let at = 0; at < ink.length; at++)
        ink[at] = bytes[from + 28 * Math.floor(at / 2800) + Math.floor(at % 280 / 10)] / 255;
    images.push(Array.from(prepare(ink, 280).image));
}
return images;
"""
# The red of each pixel; of a copy, as Chromium has advice for whoever reads a canvas twice.
PIXELS = """
const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
copy.drawImage(find(arguments[0]), 0, 0);
return [...copy.getImageData(0, 0, 28, 28).data].filter((_, at) => at % 4 == 0);
"""
WIDTHS = "return [...document.querySelectorAll(arguments[0] + ' .bar')].map(bar => bar.style.width)"
CUT_OFF = """
return [...document.querySelectorAll("main *:not(.unseen)")]
    .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth)
    .map(e => e.outerHTML.slice(0, 80));
"""
NAMELESS = """
return [...document.querySelectorAll("button, input, canvas[tabindex], [role=img]")]
    .filter(e => !(e.ariaLabel || e.labels?.[0]?.textContent.trim() || e.textContent.trim()
                   || document.getElementById(e.getAttribute("aria-labelledby"))))
    .map(e => e.outerHTML);
"""


def recorded_runs() -> list[RunRecord]:
    """Those of the networks on the page."""
    return [read_run(RECORDED / config.name) for config in runs_shown()]


def sent(x: torch.Tensor) -> str:
    return base64.b64encode(x.numpy().tobytes()).decode()


@pytest.fixture(scope="module")
def html() -> str:
    return draw_page(RECORDED)


@pytest.fixture(scope="module")
def opened(html, browser, tmp_path_factory):
    """The browser, and the address of the page's file."""
    path = tmp_path_factory.mktemp("page") / "draw.html"
    path.write_text(html, encoding="utf-8")
    return browser, path.as_uri()


@pytest.fixture
def page(opened):
    """The page, just opened, 1280 pixels wide. At the end: no complaint in the console, nothing was loaded."""
    browser, address = opened
    open_wide(browser, address)
    yield browser
    assert_quiet(browser)


def open_wide(browser, address: str) -> None:
    wide(browser, 1280)
    browser.get_log("browser")  # what earlier pages left
    browser.get(address)


def assert_quiet(browser) -> None:
    """No complaint in the console, and nothing was loaded."""
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


def wide(browser, width: int) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})


def wait_for(page, condition) -> None:
    WebDriverWait(page, SECONDS).until(condition)


def text(page, selector: str) -> str:
    return page.find_element(By.CSS_SELECTOR, selector).text


def bars(page, selector: str = "#answer") -> list[str]:
    return page.execute_script(WIDTHS, selector)


def press(page, name: str) -> None:
    page.execute_script("document.getElementById(arguments[0]).click()", name)


def draw_a_one(page) -> None:
    """With the mouse: a line downwards."""
    canvas = page.find_element(By.ID, "drawing")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    actions = ActionChains(page, duration=50).move_to_element_with_offset(canvas, 5, -100).click_and_hold()
    for _ in range(4):
        actions.move_by_offset(-2, 50)
    actions.release().perform()


# The network


@pytest.mark.parametrize("number", range(len(NETWORKS)))
def test_answers_are_pytorchs(number, page, digits):
    x = digits.test.x[:COUNT]
    found = torch.tensor(page.execute_script(LOGITS, number, sent(x)))
    with torch.inference_mode():
        wanted = read_network(recorded_runs()[number], RECORDED)(normalise(x, "mnist"))
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
    assert (found.argmax(dim=1) == wanted.argmax(dim=1)).all()
    assert (found.argmax(dim=1) == digits.test.y[:COUNT]).float().mean() > 0.9


# From drawing to image


def test_a_digit_of_mnist_drawn_large_comes_back(page, digits):
    """As it was, where its box is 20 pixels long, as nearly all are: by MNIST's own rule."""
    x = digits.test.x[:COUNT]
    found = np.array(page.execute_script(PREPARED, sent(x))).reshape(-1, 28, 28)
    same = (found == x.squeeze(1).numpy()).all(axis=(1, 2))
    assert same.mean() > 0.95
    for image in found:
        rows, columns = (np.average(np.arange(28), weights=image.sum(axis=axis)) for axis in (1, 0))
        assert abs(rows - 14) <= 0.5 and abs(columns - 14) <= 0.5


@pytest.mark.parametrize("left, top, width, height, expected", [
    (40, 30, 30, 120, (5, 20)),    # high: the aspect ratio stays
    (200, 10, 70, 35, (20, 10)),   # wide, in a corner
    (10, 10, 3, 3, (20, 20)),      # tiny: made larger
    (0, 0, 280, 2, (20, 1)),       # hardly any height
])
def test_a_box_is_scaled_to_20_pixels_and_centred(left, top, width, height, expected, page):
    image = np.array(page.execute_script("""
        const [left, top, width, height] = arguments, ink = new Float32Array(280 * 280);
        for (let row = top; row < top + height; row++) ink.fill(1, row * 280 + left, row * 280 + left + width);
        return Array.from(prepare(ink, 280).image)""", left, top, width, height)).reshape(28, 28)
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    assert (len(columns), len(rows)) == expected
    assert (image[image > 0] == 255).all(), "the box is filled"
    for places in (rows, columns):
        assert abs(places.mean() - 14) <= 0.5


def test_edges_become_grey_by_the_ink_that_they_cover(page):
    """A bar of 30 x 100 and another of 15 x 50 below its left half: 6 and 3 of 20 pixels, the latter whole."""
    image = np.array(page.execute_script("""
        const ink = new Float32Array(280 * 280);
        for (let row = 0; row < 100; row++) ink.fill(1, row * 280 + 20, row * 280 + 20 + (row < 50 ? 30 : 18));
        return Array.from(prepare(ink, 280).image)""")).reshape(28, 28)
    lower = image[np.flatnonzero(image.any(axis=1))[-1]]
    assert lower[lower > 0].tolist() == [255, 255, 255, round(255 * 3 / 5)]


def test_without_ink_there_is_no_image(page):
    assert page.execute_script("return prepare(new Float32Array(280 * 280), 280)") is None
    wait_for(page, lambda page: "nothing drawn" in text(page, "#answer"))


def test_moved_image_comes_back_but_for_its_edge(page):
    found = np.array(page.execute_script("""
        const image = Float32Array.from({ length: 784 }, (_, at) => at + 1);
        return [Array.from(moved(image, 3, -2)), Array.from(moved(moved(image, 3, -2), -3, 2))]""")).reshape(2, 28, 28)
    image = np.arange(1, 785).reshape(28, 28)
    assert (found[0, :26, 3:] == image[2:, :25]).all() and not found[0, 26:].any() and not found[0, :, :3].any()
    assert (found[1, 2:, :25] == image[2:, :25]).all()


# The page


def test_a_line_drawn_by_mouse_is_answered_and_taken_back(page):
    wait_for(page, lambda page: "nothing drawn" in text(page, "#answer"))
    draw_a_one(page)
    wait_for(page, lambda page: text(page, "#answer .best-class").startswith("1 "))
    shares = [float(width.removesuffix("%")) for width in bars(page)]
    assert sum(shares) == pytest.approx(100) and max(shares) == shares[1]
    assert "An answer takes " in text(page, "#time")
    assert 20 < sum(value > 128 for value in page.execute_script(PIXELS, "seen")) < 200
    assert page.find_element(By.ID, "box-seen").get_attribute("height") == "20"
    wait_for(page, lambda page: text(page, "#said").startswith("The answer is 1"))
    press(page, "undo")
    wait_for(page, lambda page: "nothing drawn" in text(page, "#answer"))
    assert set(bars(page)) == {"0px"} and page.find_element(By.ID, "hint").is_displayed()


def test_a_finger_draws_on_a_phone_a_second_one_does_not_and_the_page_stays_where_it_is(page):
    canvas = page.find_element(By.ID, "drawing")
    wide(page, 360)
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    left, top, width, height = page.execute_script(
        "const at = arguments[0].getBoundingClientRect(); return [at.left, at.top, at.width, at.height]", canvas)
    scrolled = page.execute_script("return scrollY")

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": left + x * width, "y": top + y * height, "id": number} for number, (x, y) in enumerate(places)]
        page.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    try:
        touch("touchStart", (0.5, 0.2))
        for step in range(1, 7):
            touch("touchMove", (0.5 - 0.01 * step, 0.2 + 0.1 * step))
            if step == 2:
                touch("touchStart", (0.48, 0.4), (0.9, 0.9))  # the heel of a hand, lifted with the next move
        touch("touchEnd")
        wait_for(page, lambda page: text(page, "#answer .best-class").startswith("1 "))
        [line] = page.execute_script("return lines")
        assert line[-1]["y"] - line[0]["y"] == pytest.approx(0.6 * 560, abs=3)
        assert page.execute_script("return scrollY") == scrolled
    finally:
        wide(page, 1280)


def test_a_line_drawn_by_keys_is_answered_and_cleared(page):
    keys = ActionChains(page).send_keys(Keys.TAB, Keys.TAB)
    keys.perform()
    assert page.switch_to.active_element.get_attribute("id") == "drawing"
    outline = "return getComputedStyle(find('pad')).outlineStyle"
    assert page.execute_script(outline) == "solid"
    ActionChains(page).send_keys(Keys.ARROW_UP * 3, Keys.SPACE, Keys.ARROW_DOWN * 22, Keys.SPACE,
                                 Keys.ARROW_LEFT * 5).perform()
    wait_for(page, lambda page: text(page, "#answer .best-class").startswith("1 "))
    assert page.find_element(By.ID, "pen").is_displayed()
    [line] = page.execute_script("return lines")
    assert len(line) == 23 and line[-1]["y"] - line[0]["y"] == 22 * 14 and line[-1]["x"] == line[0]["x"]
    ActionChains(page).send_keys(Keys.TAB, Keys.ENTER).perform()
    wait_for(page, lambda page: "nothing drawn" in text(page, "#answer"))
    assert not page.find_element(By.ID, "pen").is_displayed()


def test_slider_moves_the_image_and_both_networks_answer(page):
    press(page, "example")
    wait_for(page, lambda page: text(page, "#without .kept").startswith("The same answer at "))
    before = {id: bars(page, id) for id in ("#without", "#with")}
    image = np.array(page.execute_script(PIXELS, "shifted")).reshape(28, 28)
    slider = page.find_element(By.ID, "right")
    slider.send_keys(Keys.ARROW_RIGHT * 4)
    page.find_element(By.ID, "down").send_keys(Keys.ARROW_LEFT)
    assert text(page, "#right-by") == "4 pixels" and text(page, "#down-by") == "−1 pixel"
    after = np.array(page.execute_script(PIXELS, "shifted")).reshape(28, 28)
    assert image.any() and (after == np.roll(image, (-1, 4), axis=(0, 1))).all()
    changed = {id: bars(page, id) for id in before}
    assert all(changed[id] != before[id] for id in before) and changed["#without"] != changed["#with"]
    # The bars and the squares are of the network that is named above them.
    for number, id in enumerate(before):
        shares = page.execute_script(
            "return softmax(logitsOf(networks[arguments[0]], moved(digit.image, 4, -1)))", number)
        assert [float(width.removesuffix("%")) for width in changed[id]] == pytest.approx(
            [100 * share for share in shares], abs=1e-3)
        here = page.find_elements(By.CSS_SELECTOR, f"{id} .here")
        assert [place.text for place in here] == [str(int(np.argmax(shares)))]
    index = "return [...document.querySelectorAll('#with .places span')].findIndex(e => e.className.includes('here'))"
    assert page.execute_script(index) == 3 * 9 + 8


def test_squares_are_the_answers_at_all_places(page):
    press(page, "example")
    wait_for(page, lambda page: text(page, "#with .kept"))
    squares, doubts = page.execute_script("""
        const places = [...document.querySelectorAll("#with .places span")];
        return [places.map(place => Number(place.textContent)),
                places.map(place => Number(place.style.getPropertyValue("--doubt")))]""")
    shares = np.array(page.execute_script("""
        return PLACES.flatMap(down => PLACES.map(right =>
            softmax(logitsOf(networks[1], moved(digit.image, right, down)))))"""))
    assert squares == shares.argmax(axis=1).tolist() and len(squares) == 81
    assert doubts == pytest.approx(1 - shares[:, squares[40]], abs=1e-9)
    # The answers may all be the same; how sure they are tells right from down.
    assert not np.allclose(shares.reshape(9, 9, 10), shares.reshape(9, 9, 10).transpose(1, 0, 2), atol=1e-6)
    same = sum(square == squares[40] for square in squares)
    assert text(page, "#with .kept") == f"The same answer at {same} of 81 places"


def test_another_network_answers_when_it_is_chosen(page):
    draw_a_one(page)
    wait_for(page, lambda page: text(page, "#answer .best-class").startswith("1 "))
    seen = []
    for number, run in enumerate(recorded_runs()):
        radio = page.find_elements(By.CSS_SELECTOR, "#choice input")[number]
        page.execute_script("arguments[0].click()", radio)
        wait_for(page, lambda page, run=run: text(page, "#facts").startswith(f"{run.parameters:,} parameters"))
        assert f"{run.accuracy_percent:.1f} %" in text(page, "#facts")
        shares = page.execute_script("return softmax(logitsOf(networks[arguments[0]], digit.image))", number)
        wait_for(page, lambda page, shares=shares: [float(width.removesuffix("%")) for width in bars(page)]
                 == pytest.approx([100 * share for share in shares], abs=1e-3))
        rows = page.find_elements(By.CSS_SELECTOR, "#layers .layer")
        names = page.execute_script("return networks[arguments[0]].steps.slice(1, -1).map(step => step.name)", number)
        assert [row.find_element(By.TAG_NAME, "strong").text for row in rows] == names
        seen.append((names, shares))
    assert "maxpool1.1" in seen[1][0] and seen[0][1] != seen[1][1] != seen[2][1]


def test_maps_show_what_the_layer_computed(page):
    press(page, "example")
    wait_for(page, lambda page: ">" in text(page, "#answer .best-class") or "%" in text(page, "#answer .best-class"))
    shown, values = page.execute_script("""
        const { step, canvases } = layers[1];  // depthwise: some of its numbers are negative
        logitsOf(shown, digit.image);
        return [canvases.map(canvas => [...canvas.getContext("2d").getImageData(0, 0, 28, 28).data]),
                Array.from(step.result)]""")
    shown = np.array(shown).reshape(8, 784, 4).astype(int)
    values = np.array(values).reshape(8, 784)
    size = np.abs(values) / np.abs(values).max()
    white = values > 0
    assert white.any() and not white.all()
    assert np.abs(shown[..., 2] - 255 * size).max() <= 1
    assert np.abs(shown[white][:, 0] - 255 * size[white]).max() <= 1
    assert np.abs(shown[~white][:, 0] - 48 * size[~white]).max() <= 1


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window_and_all_controls_have_names(width, page):
    wide(page, width)
    press(page, "example")
    for radio in page.find_elements(By.CSS_SELECTOR, "#choice input"):
        page.execute_script("arguments[0].click()", radio)
        wait_for(page, lambda page: text(page, "#with .kept"))
        assert page.execute_script("return [innerWidth, document.documentElement.scrollWidth <= innerWidth]") == [
            width, True]
        assert page.execute_script(CUT_OFF) == []
    assert page.execute_script(NAMELESS) == []


def test_page_says_its_size_and_what_is_in_it(html):
    bytes_of = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) bytes", html)]
    assert bytes_of[0] == len(html.encode())
    weights = re.findall(r'"weights": "([A-Za-z0-9+/=]+)"', html)
    assert bytes_of[1] == sum(len(base64.b64decode(part)) for part in weights) and len(weights) == len(NETWORKS)
    assert f"{sum(map(len, weights)):,} as text" in re.sub(r"\s+", " ", html)
    assert all(config.name in html for config in runs_shown())
    assert "{{" not in html and "://" not in html


def test_committed_page_is_the_one_that_the_records_give(html):
    assert (ROOT / "figures/draw.html").read_text(encoding="utf-8") == html, "make figures"


def test_missing_runs_are_named(write_record):
    assert missing_runs() == [config.name for config in runs_shown()]
    write_record("25k")
    assert [name.split("/")[1] for name in missing_runs()] == ["1.5k-dw", "1.5k-dw"] and missing_runs(RECORDED) == []
    with pytest.raises(EffcnnError, match="1.5k-dw/.*/run.json"):
        draw_page()


def test_figures_write_the_page_or_name_the_runs_that_it_waits_for(html, tmp_path, monkeypatch, capsys):
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "notebooks/00_any.ipynb")
    monkeypatch.chdir(tmp_path)
    for config in runs_shown()[:2]:
        shutil.copytree(RECORDED / config.name, recorded_dir() / config.name)
    assert figures(tmp_path) == 0
    assert f"waits for its runs: {runs_shown()[2].name}" in capsys.readouterr().out
    assert not (tmp_path / "draw.html").exists()
    shutil.copytree(RECORDED / runs_shown()[2].name, recorded_dir() / runs_shown()[2].name)
    assert figures(tmp_path) == 0
    assert (tmp_path / "draw.html").read_text(encoding="utf-8") == html


def test_parts_of_the_page_come_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["effcnn_helpers"]
    files = {path for pattern in patterns for path in (ROOT / "effcnn_helpers").glob(pattern)}
    parts = set(module.PARTS.iterdir())
    assert len(parts) == 11 and parts <= files


# In a notebook


def test_notebook_shows_the_page_in_a_frame_of_its_height(opened, html, monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(module, "display", shown.append)
    show_draw_page(RECORDED)
    [output] = [nbformat.v4.new_output("display_data", {"text/html": part.data}) for part in shown]
    cell = nbformat.v4.new_code_cell("show_draw_page()", outputs=[output])
    exported, _ = nbconvert.HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    (tmp_path / "notebook.html").write_text(exported, encoding="utf-8")
    browser, _ = opened
    wide(browser, 1280)
    browser.get((tmp_path / "notebook.html").as_uri())
    frame = browser.find_element(By.TAG_NAME, "iframe")
    assert frame.get_attribute("title") == "Draw a digit"
    wait_for(browser, lambda browser: frame.size["height"] > 2000)
    browser.switch_to.frame(frame)
    press(browser, "example")
    wait_for(browser, lambda browser: text(browser, "#answer .best-class").startswith("5 "))
    assert browser.execute_script("return document.documentElement.scrollHeight <= innerHeight")
    browser.switch_to.default_content()
