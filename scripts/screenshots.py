"""Pictures of what a person sees of a job: MLflow's pages of it, and its report.

    python scripts/screenshots.py --uri sqlite:///mlflow.db --output screenshots

Starts `mlflow server` on a tracking database and opens its pages in a headless Chromium; the report
narrow and wide, light and dark. A page that lacks its words, shows a broken picture, is wider than
the window or logs an error ends it. A few seconds a page.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from selenium import webdriver
from selenium.common.exceptions import TimeoutException, WebDriverException
from selenium.webdriver.support.wait import WebDriverWait

DRIVERS = ("chromedriver", "chromium.chromedriver")
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SIZE = (1400, 1400)
REPORT = "report.html"
# The server by a name that is not this machine's own: there, MLflow opens its assistant unasked.
_HOST = "tracking.test"
_SERVER_SECONDS, _PAGE_SECONDS = 120, 60
# Errors of MLflow's own: it asks for a user where nobody can log in, and lays out tables twice.
_KNOWN = ("/mlflow/users/current", "ResizeObserver loop")
# Requests that a page waits for are counted, since MLflow draws it before it knows everything.
_COUNTING = """window.pending = 0;
const ask = window.fetch, send = XMLHttpRequest.prototype.send;
window.fetch = (...given) => { pending++; return ask(...given).finally(() => pending--); };
XMLHttpRequest.prototype.send = function (...given) {
  pending++; this.addEventListener("loadend", () => pending--); return send.apply(this, given);
};"""
_LOADED = (
    "return document.readyState == 'complete' && !window.pending "
    "&& [...document.images].every(one => one.complete)"
)
_BROKEN = "return [...document.images].filter(i => !i.naturalWidth).length"
_TOO_WIDE = "return document.documentElement.scrollWidth > window.innerWidth"
_TALL = "return document.documentElement.scrollHeight"
_ON_REPORT = ("Result", "Plan and time", "Confusion", "Load, serve, roll back")
_WIDTHS = (400, 1200)


@dataclass(frozen=True)
class Page:
    """A page: its address behind the server's, and words that stand on it."""

    address: str
    words: tuple[str, ...]


def chromium() -> tuple[str, str]:
    """Return the browser's program, and the one that steers it.

    Raises:
        FileNotFoundError: One is missing.
    """
    found = [next(filter(None, map(shutil.which, one)), None) for one in (CHROMIUMS, DRIVERS)]
    if None in found:
        raise FileNotFoundError(
            f"Expected one of {', '.join(CHROMIUMS)} on PATH, and {DRIVERS[0]}. Received: a PATH "
            "without. Install them, on Debian and Ubuntu by apt-get install chromium "
            "chromium-driver."
        )
    return tuple(found)


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Run a headless Chromium while the context lasts.

    Raises:
        FileNotFoundError: There is none.
    """
    options = webdriver.ChromeOptions()
    options.binary_location, driver = chromium()
    for said in (
        *("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "hide-scrollbars"),
        f"host-resolver-rules=MAP {_HOST} 127.0.0.1",
    ):
        options.add_argument(f"--{said}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(driver))
    made.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _COUNTING})
    try:
        yield made
    finally:
        made.quit()


@contextmanager
def server(uri: str) -> Iterator[str]:
    """Run a tracking server of its own on a database while the context lasts.

    Args:
        uri: The database, such as `sqlite:///mlflow.db`.

    Yields:
        Its address.

    Raises:
        RuntimeError: It ended, or did not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", f"127.0.0.1:{port},{_HOST}:{port}"]
    command += ["--cors-allowed-origins", f"http://{_HOST}:{port}"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            if not _answers(address, process):
                said.seek(0)
                raise RuntimeError(
                    f"Expected mlflow server to answer on {uri}. Received: {said.read()[-2000:]}"
                )
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # its workers, too
            process.wait()


def _answers(address: str, process: subprocess.Popen) -> bool:
    end = time.monotonic() + _SERVER_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            return requests.get(f"{address}/health", timeout=5).ok
        except requests.ConnectionError:
            time.sleep(0.2)
    return False


def on_server(page: Page, address: str) -> Page:
    """Return a page with its whole address, on the server of an address."""
    # MLflow has one face for models and one for chat bots, and shows the latter unless asked.
    parameters = ("&" if "?" in page.address else "?") + "workflowType=machine_learning"
    return Page(address.replace("127.0.0.1", _HOST) + page.address + parameters, page.words)


def newest_run(client: MlflowClient) -> Run:
    """Return the newest pipeline run that has finished.

    Raises:
        LookupError: No pipeline has run.
    """
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(
        experiments,
        "tags.`reusekit.kind` = 'pipeline' AND attributes.status = 'FINISHED'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    if not runs:
        raise LookupError(
            "Expected a finished pipeline. Received: none. Run one first, such as make demo."
        )
    return runs[0]


def pages(client: MlflowClient, run: Run) -> dict[str, Page]:
    """Return MLflow's pages of a pipeline run and its results, by picture name.

    Args:
        client: Of the tracking server.
        run: The run.
    """
    info = run.info
    of_experiment = f"/#/experiments/{info.experiment_id}"
    of_run = f"{of_experiment}/runs/{info.run_id}"
    # Sorted by a metric, since runs sorted by time are hidden below their parents.
    trials = urlencode(
        {
            "searchFilter": "tags.`reusekit.kind` = 'trial'",
            "orderByKey": "metrics.`best_val_accuracy`",
            "orderByAsc": "false",
        },
        quote_via=quote,
    )
    found = {
        "runs": Page(f"{of_experiment}/runs", (info.run_name,)),
        "run": Page(of_run, (info.run_name, "Description", info.run_id)),
    }
    inside = f"tags.`mlflow.parentRunId` = '{info.run_id}' AND tags.`reusekit.kind` = "
    for kind, order in (("trial", ""), ("evaluation", "attributes.start_time ASC")):
        runs = client.search_runs(
            [info.experiment_id], f"{inside}'{kind}'", max_results=1, order_by=[order] * bool(order)
        )
        if runs and kind == "trial":
            found["trials"] = Page(f"{of_experiment}/runs?{trials}", ("trial 0", "matching runs"))
        elif runs:
            address = f"{of_experiment}/runs/{runs[0].info.run_id}"
            found["evaluation"] = Page(address, (runs[0].info.run_name, "Metrics"))
    for artifact in client.list_artifacts(info.run_id):
        if artifact.path.endswith(".png"):
            page = Page(f"{of_run}/artifacts/{artifact.path}", (artifact.path,))
            found[f"run_{Path(artifact.path).stem}"] = page
    models = client.search_logged_models(
        [info.experiment_id], f"source_run_id = '{info.run_id}'", max_results=10
    )
    if models:
        names = tuple(model.name for model in models)
        found["models"] = Page(f"{of_experiment}/models", names)
    for model in models:
        role = model.tags.get("reusekit.role", model.name)
        page = Page(f"{of_experiment}/models/{model.model_id}", (model.name, "Description"))
        found[f"model_{role}"] = page
    for version in client.search_model_versions(f"run_id = '{info.run_id}'"):
        if version.tags.get("reusekit.role") == "whole":
            name, number = version.name, version.version
            found["registered_model"] = Page(f"/#/models/{name}", (name, f"Version {number}"))
            words = (f"Version {number}", "How to load it", "Lineage")
            found["version"] = Page(f"/#/models/{name}/versions/{number}", words)
    return found


def take(driver: webdriver.Chrome, page: Page, file: Path, width: int = 0, dark: bool = False):
    """Write a picture of a page, once all of it is there.

    Args:
        driver: The browser.
        page: The page, with its whole address.
        file: Where the PNG is written.
        width: Of the window, which is then as high as the page; 0 for that of MLflow's pages.
        dark: Whether the browser asks for dark pages.

    Raises:
        RuntimeError: Words or pictures are missing, it is too wide, or an error was logged.
    """
    _resize(driver, *((width, 900) if width else SIZE))
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get("about:blank")  # else another fragment of the same page loads nothing
    driver.get_log("browser")
    driver.get(page.address)
    missing = list(page.words)
    try:
        for word in page.words:
            WebDriverWait(driver, _PAGE_SECONDS).until(lambda _, word=word: word in _text(driver))
            missing.remove(word)
        WebDriverWait(driver, _PAGE_SECONDS).until(lambda _: driver.execute_script(_LOADED))
    except TimeoutException:
        what = f"the words {missing!r}" if missing else "pictures"
        raise RuntimeError(
            f"Expected {page.address} to be whole. Received: it does not show {what}."
        ) from None
    if width:
        _resize(driver, width, driver.execute_script(_TALL))
    driver.save_screenshot(str(file))
    faults = {
        f"shows {driver.execute_script(_BROKEN)} broken pictures": driver.execute_script(_BROKEN),
        f"is wider than {width} pixels": width and driver.execute_script(_TOO_WIDE),
    }
    for one in driver.get_log("browser"):
        is_known = any(known in one["message"] for known in _KNOWN)
        faults[f"logs {one['message']}"] = one["level"] == "SEVERE" and not is_known
    for fault in filter(faults.get, faults):
        raise RuntimeError(f"Expected {page.address} to be whole. Received: it {fault}.")


def _text(driver: webdriver.Chrome) -> str:
    return driver.execute_script("return document.body.innerText")


def _resize(driver: webdriver.Chrome, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def take_report(driver: webdriver.Chrome, report: Path, folder: Path) -> Iterator[Path]:
    """Write pictures of a report, narrow and wide, light and dark; yield where each is.

    Raises:
        RuntimeError: See `take`.
    """
    for width in _WIDTHS:
        for dark in (False, True):
            file = folder / f"report_{'dark' if dark else 'light'}_{width}.png"
            take(driver, Page(report.resolve().as_uri(), _ON_REPORT), file, width, dark)
            yield file


def main() -> None:
    """Take a picture of every page, and print where each is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uri", default="sqlite:///mlflow.db", help="the tracking database")
    parser.add_argument("--output", type=Path, default=Path("screenshots"), help="folder for PNGs")
    parser.add_argument(
        "--only", nargs="*", help="names of pictures, such as run or report; all by default"
    )
    options = parser.parse_args()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        with server(options.uri) as address, browser() as driver:
            client = MlflowClient(address)
            run = newest_run(client)
            options.output.mkdir(parents=True, exist_ok=True)
            for name, page in pages(client, run).items():
                if options.only and name not in options.only:
                    continue
                file = options.output / f"{name}.png"
                take(driver, on_server(page, address), file)
                print(f"{file}  {page.address}")
            names = [one.path for one in client.list_artifacts(run.info.run_id)]
            if REPORT in names and (not options.only or "report" in options.only):
                report = client.download_artifacts(run.info.run_id, REPORT, str(options.output))
                for file in take_report(driver, Path(report), options.output):
                    print(f"{file}  {report}")
    except (OSError, RuntimeError, LookupError, MlflowException, WebDriverException) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
