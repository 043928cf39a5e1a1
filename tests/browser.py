"""JupyterLab in a real browser: notebooks opened, edited, saved and run as a person does it.

`run_all_in_browser(workspace, notebook)` is all that most tests need. Every wait is for a state of
the page or of a process, never for a time.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

COMMAND = str(Path(sys.executable).with_name("mlops-nb"))
_QUIET = {"fetchNews": "false", "checkForUpdates": False}  # JupyterLab asks nobody for news


def chromium_path() -> str | None:
    "Return the path of a real browser, None if there is none."
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _configuration(folder: Path) -> dict[str, str]:
    "Write a configuration of JupyterLab. Return the variables that name it, and no other."
    (folder / "jupyter_lab_config.json").write_text('{"LabApp": {"expose_app_in_browser": true}}')
    news = folder / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text(json.dumps(_QUIET))
    return {
        "JUPYTER_CONFIG_DIR": str(folder),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "JUPYTER_TOKEN": "sesame",
        "IPYTHONDIR": str(folder / "ipython"),
    }


@contextlib.contextmanager
def running_lab(
    workspace: Path,
    env: dict[str, str] | None = None,  # more variables of JupyterLab and its kernels
) -> Iterator[str]:  # its address
    "Run `mlops-nb lab` on a workspace. It ends with its kernels at the end of the block."
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="mlops_nb-lab-") as folder:
        log = Path(folder, "lab.log")
        variables = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [COMMAND, "lab", "--port", str(port), "--no-browser", "-w", str(workspace)],
                env=variables | _configuration(Path(folder)) | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            _wait(lambda: _answers(url), 60, lambda: log.read_text()[-2000:])
            yield url
        finally:
            _end(process, url)
            sys.stdout.write(log.read_text())  # pytest shows it if the test fails


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/api", timeout=2).is_success
    return False


def _wait(condition, seconds: float, problem=lambda: "") -> None:
    "Wait until a condition holds; raise `TimeoutError` if it takes too long."
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {seconds} s: {problem()}")
        time.sleep(0.1)


def _end(process: subprocess.Popen, url: str) -> None:
    "End JupyterLab: first its kernels as it does itself, then whatever is left of its session."
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(f"{url}/api/shutdown", headers={"Authorization": "token sesame"}, timeout=5)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


# ---- the page

# The notebook that is open, as JupyterLab's own objects have it.
_PANEL = "const panel = window.jupyterapp.shell.currentWidget;"
_READY = f"""() => {{
    if (!window.jupyterapp) return false;
    {_PANEL}
    const session = panel && panel.context && panel.context.sessionContext;
    return Boolean(session && panel.context.isReady && panel.content.model
        && session.session && session.session.kernel && session.session.kernel.status === "idle");
}}"""
_SOURCES = (
    f"() => {{ {_PANEL} return panel.content.widgets.map(c => c.model.sharedModel.source); }}"
)
_SELECT = f"""(i) => {{
    {_PANEL}
    panel.content.activeCellIndex = i;
    panel.content.mode = "command";
    panel.content.activate();
    return panel.content.scrollToItem(i);
}}"""
_EDITING = f"""() => {{
    {_PANEL}
    const cell = panel.content.activeCell;
    return panel.content.mode === "edit" && cell.editor && cell.editor.hasFocus();
}}"""
_COUNT = f"""() => {{
    {_PANEL}
    const counts = panel.content.widgets.map(c => c.model.executionCount || 0);
    return Math.max(0, ...counts);
}}"""
_SHUT_DOWN = f"() => {{ {_PANEL} return panel.context.sessionContext.shutdown(); }}"
_SAVED = f"() => {{ {_PANEL} return !panel.context.model.dirty; }}"
_DONE = f"""(before) => {{
    {_PANEL}
    const kernel = panel.context.sessionContext.session.kernel;
    const code = panel.content.widgets.map(c => c.model)
        .filter(m => m.type === "code" && m.sharedModel.source.trim());
    const ran = m => (m.executionCount || 0) > before;
    const failed = m => ran(m) && m.sharedModel.outputs.some(o => o.output_type === "error");
    const over = code.every(ran) || code.some(failed);
    return kernel.status === "dead" || (over && kernel.status === "idle");
}}"""


@dataclass
class Cell:
    "A code cell of a saved notebook: its number from 1, source, outputs, and error if it failed."

    number: int
    source: str
    outputs: list[dict[str, Any]] = field(repr=False)

    @property
    def error(self) -> str:
        "Return `Type: message` of the error that the cell ended with; empty if it did not fail."
        errors = [o for o in self.outputs if o["output_type"] == "error"]
        return f"{errors[-1]['ename']}: {errors[-1]['evalue']}" if errors else ""

    @property
    def red(self) -> str:
        "Return what the cell wrote to standard error, which JupyterLab shows on red."
        texts = [o["text"] for o in self.outputs if o.get("name") == "stderr"]
        return "".join(t if isinstance(t, str) else "".join(t) for t in texts)

    @property
    def glued(self) -> dict[str, Any]:
        "Return the values that the cell glued, by name."
        kind = "application/vnd.mlops-nb.output+json"
        items = [o["data"][kind] for o in self.outputs if kind in o.get("data", {})]
        return {item["name"]: item.get("value") for item in items}


def saved_cells(notebook: Path) -> list[Cell]:
    "Return the code cells of a notebook file."
    cells = enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"], 1)
    return [
        Cell(number, "".join(c["source"]), c["outputs"])
        for number, c in cells
        if c["cell_type"] == "code"
    ]


class NotebookPage:
    "A notebook that is open in JupyterLab, in a browser."

    def __init__(self, page: Any, file: Path):
        self.page = page
        self.file = file

    def edit(self, old: str, new: str) -> None:
        "Replace a text of one cell with the keyboard, as a person who types it."
        sources = self.page.evaluate(_SOURCES)
        (index,) = [i for i, source in enumerate(sources) if old in source]
        self.page.evaluate(_SELECT, index)
        self.page.keyboard.press("Enter")
        self.page.wait_for_function(_EDITING)
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(sources[index].replace(old, new))
        self.page.wait_for_function(
            "([i, s]) => window.jupyterapp.shell.currentWidget.content.widgets[i]"
            ".model.sharedModel.source === s",
            arg=[index, sources[index].replace(old, new)],
        )
        self.page.keyboard.press("Escape")

    def save(self) -> None:
        "Press Ctrl-S, and wait until the file is written."
        self.page.keyboard.press("Control+s")
        self.page.wait_for_function(_SAVED)

    def run_all(self, seconds: float = 300, *, save: bool = True) -> list[Cell]:
        "Choose Run > Run All Cells, wait for the last cell, save. Return the cells as saved."
        before = self.page.evaluate(_COUNT)
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        self.page.wait_for_function(_DONE, arg=before, timeout=seconds * 1000)
        if not save:
            return self.shown()
        self.save()
        return saved_cells(self.file)

    def close(self) -> None:
        "End the kernel, and close the page."
        self.page.evaluate(_SHUT_DOWN)
        self.page.close()

    def shown(self) -> list[Cell]:
        "Return the code cells as the page has them, saved or not."
        cells = self.page.evaluate(
            f"() => {{ {_PANEL} return panel.content.model.sharedModel.toJSON().cells; }}"
        )
        return [
            Cell(number, "".join(c["source"]), c["outputs"])
            for number, c in enumerate(cells, 1)
            if c["cell_type"] == "code"
        ]


class Browser:
    "A browser with JupyterLab on a workspace."

    def __init__(self, context: Any, url: str, workspace: Path):
        self.context = context
        self.url = url
        self.workspace = workspace

    def open(self, notebook: Path | str) -> NotebookPage:
        "Open a notebook in a page of its own, and wait for its kernel."
        file = self.workspace / notebook
        page = self.context.new_page()
        page.set_default_timeout(60_000)
        path = file.relative_to(self.workspace).as_posix()
        page.goto(f"{self.url}/lab/workspaces/w{time.monotonic_ns()}/tree/{path}?token=sesame")
        page.wait_for_function(_READY, timeout=90_000)
        return NotebookPage(page, file)


@contextlib.contextmanager
def lab_in_browser(workspace: Path, env: dict[str, str] | None = None) -> Iterator[Browser]:
    "Run `mlops-nb lab` on a workspace, with a browser beside it."
    from playwright.sync_api import sync_playwright

    workspace = Path(workspace).resolve()
    with running_lab(workspace, env) as url, sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=chromium_path(), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            context = browser.new_context(viewport={"width": 1400, "height": 1000})
            yield Browser(context, url, workspace)  # pages of one context share what is loaded
        finally:
            browser.close()


def run_all_in_browser(
    workspace: Path,
    notebook: Path | str,  # relative to the workspace
    *,
    seconds: float = 300,  # longest time for all cells
    lab: Browser | None = None,  # from `lab_in_browser`; default: one of its own
) -> list[Cell]:
    "Open a notebook in JupyterLab and choose Run All Cells. Return its code cells as saved."
    with contextlib.ExitStack() as stack:
        lab = lab or stack.enter_context(lab_in_browser(workspace))
        page = lab.open(notebook)
        try:
            return page.run_all(seconds)
        finally:
            page.close()
