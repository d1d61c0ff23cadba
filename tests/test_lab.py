"""What a learner moves, moved in a real JupyterLab: the picture follows."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import kernel_environment
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parent.parent
MOVED = ["01_mnist_25k", "06_one_cycle_lr", "14_combinations"]
SECONDS = 240  # at most, for a notebook to run, on a busy machine

OPENED = """
const panel = window.jupyterapp?.shell.currentWidget;
return panel?.context?.isReady && panel.sessionContext?.session?.kernel?.status == "idle";
"""
TO_THE_FIRST_PICTURE = r"""
const panel = window.jupyterapp.shell.currentWidget;
const source = cell => cell.model.type == "code" ? cell.model.sharedModel.source.trim() : "";
const after = panel.content.widgets.findIndex(cell => /^touch\(/m.test(source(cell))) + 1;
"""
RUN = TO_THE_FIRST_PICTURE + """
panel.content.activeCellIndex = after;
window.jupyterapp.commands.execute("notebook:run-all-above");
"""
RAN = TO_THE_FIRST_PICTURE + """
const code = panel.content.widgets.slice(0, after).filter(source);
return code.every(cell => cell.model.executionCount) && panel.sessionContext.session.kernel.status == "idle";
"""
ERRORS = """
return [...document.querySelectorAll(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'], "
    + ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']")].map(e => e.textContent.slice(0, 300));
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab that serves copies of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    for name in MOVED:
        shutil.copy(ROOT / f"notebooks/{name}.ipynb", folder / "notebooks")
    (folder / "effcnn_helpers").symlink_to(ROOT / "effcnn_helpers")
    settings = folder / "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"windowingMode": "none"}))  # cells that are out of sight stay on the page
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = kernel_environment() | {
        "EFFCNN_PROGRESS": "1", "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces")}
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}",
         f"--ServerApp.root_dir={folder}", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api/status", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def moved(page) -> bool:
    """Move the panel's first slider one step, or tick its first box; whether its picture is another one then."""
    wait = WebDriverWait(page, 30, ignored_exceptions=[NoSuchElementException, StaleElementReferenceException])
    before = wait.until(lambda page: page.find_element(By.CSS_SELECTOR, ".widget-html img").get_attribute("src"))
    panel = page.find_element(By.CSS_SELECTOR, ".widget-interact")
    [control, *_] = panel.find_elements(By.CSS_SELECTOR, ".noUi-handle, input[type=checkbox]")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", control)
    control.send_keys(Keys.SPACE if control.tag_name == "input" else Keys.ARROW_LEFT)

    def another_picture(page):
        pictures = page.find_elements(By.CSS_SELECTOR, ".widget-html img")
        return len(pictures) == 1 and pictures[0].get_attribute("src") != before

    wait.until(another_picture)
    return True


@pytest.mark.parametrize("name", MOVED)
def test_the_picture_follows_what_is_moved(name, lab, browser):
    browser.get(f"{lab}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb?reset")
    WebDriverWait(browser, 60).until(lambda page: page.execute_script(OPENED))
    browser.execute_script(RUN)
    WebDriverWait(browser, SECONDS).until(lambda page: page.execute_script(RAN))
    assert browser.execute_script(ERRORS) == []
    for width in (1280, 420):
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
        assert moved(browser), width
