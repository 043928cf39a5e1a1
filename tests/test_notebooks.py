"Every lesson of the library runs, on the cluster if it needs one, and shows what is committed."

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import notebook_outputs
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*_*/*.ipynb"))
STAGES = sorted((ROOT / "nbs" / "churn").glob("*.ipynb"))
ON_RAY = [n for n in NOTEBOOKS if re.search(r"#\|\s*cluster", n.read_text())]
SAVE = "run `nbdev-test NOTEBOOK --save` and `nbdev-clean`, and look at what changes:\n"


def run_lessons(folder: Path, chosen: list[Path], *words: str) -> None:
    "Run nbdev-test on a copy of these notebooks; fail if a lesson fails or a notebook is left out."
    shutil.copytree(
        ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(ROOT / name, folder)
    (folder / "data").symlink_to(ROOT / "data")
    names = "|".join(re.escape(n.name) for n in chosen)
    command = [
        "nbs",
        "--file-re",
        f"^({names})$",
        "--skip-folder-re",
        "churn",
        "--do-print",
        "--save",
    ]
    done = subprocess.run(
        [Path(sys.executable).parent / "nbdev-test", *command, *words],
        cwd=folder,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    # With no match nbdev-test says "No files were eligible" and exits 0: so each one is counted.
    completed = re.findall(r"- Completed (.+?\.ipynb)", done.stdout)
    assert sorted(Path(n).relative_to(folder) for n in completed) == [
        n.relative_to(ROOT) for n in chosen
    ]


def check_lessons(folder: Path, chosen: list[Path], *words: str) -> None:
    "Each lesson of these notebooks runs, and shows what is committed."
    run_lessons(folder, chosen, *words)
    changed = [
        line
        for notebook in chosen
        for line in notebook_outputs.differences(notebook, folder / notebook.relative_to(ROOT))
    ]
    assert not changed, SAVE + "\n".join(changed)


def test_every_library_notebook_has_its_lessons_run():
    tracked = subprocess.run(
        ["git", "ls-files", "nbs"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    library = [
        n for n in tracked.stdout.split() if n.endswith(".ipynb") and not n.startswith("nbs/churn/")
    ]
    assert sorted(ROOT / n for n in library if n != "nbs/index.ipynb") == NOTEBOOKS


def test_lessons_without_a_cluster(tmp_path):
    check_lessons(tmp_path, [n for n in NOTEBOOKS if n not in ON_RAY], "--n-workers", "2")


@pytest.mark.xdist_group("lessons")  # not after the other lessons, but beside them
def test_lessons_on_the_cluster(ray_cluster, tmp_path):
    check_lessons(tmp_path, ON_RAY, "--n-workers", "0", "--flags", "cluster")


@pytest.mark.parametrize(
    "notebook", NOTEBOOKS + STAGES, ids=lambda n: str(n.relative_to(ROOT / "nbs"))
)
def test_outputs_are_the_same_on_every_run(notebook):
    "Stages are not run here, so that nothing of a kind that changes may stand in them."
    kinds = notebook_outputs.VOLATILE
    if notebook in STAGES:
        kinds = kinds | notebook_outputs.VOLATILE_IN_STAGES
    assert not notebook_outputs.volatile(notebook, kinds)


def a_notebook(folder: Path, *outputs: dict) -> Path:
    "A notebook with a cell that shows this."
    cell = {"cell_type": "code", "id": "a", "source": [], "metadata": {}, "outputs": list(outputs)}
    content = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    folder.mkdir()
    (folder / "lesson.ipynb").write_text(json.dumps(content))
    return folder / "lesson.ipynb"


def shown(**data: str) -> dict:
    "The output of a cell: text, or an image in base64."
    mimes = {"text": "text/plain", "html": "text/html", "png": "image/png"}
    named = {mimes[kind]: value for kind, value in data.items()}
    return {"output_type": "execute_result", "data": named, "metadata": {}, "execution_count": 1}


def picture(width: int, *, colour: str = "red", dots: int = 0) -> str:
    "A PNG of one colour, 100 high, with some black pixels."
    image = Image.new("RGB", (width, 100), colour)
    for dot in range(dots):
        image.putpixel((dot, 0), (0, 0, 0))
    stream = io.BytesIO()
    image.save(stream, format="png")
    return base64.b64encode(stream.getvalue()).decode()


PRINTED = {"output_type": "stream", "name": "stdout", "text": ["1\n", "2\n"]}


@pytest.mark.parametrize(
    ("committed", "executed", "reason"),
    [
        ([shown(text="1")], [shown(text="1")], ""),
        ([shown(text="1")], [shown(text="2")], "line 1: committed '1', now '2'"),
        ([shown(text="1\n2")], [shown(text="1")], "line 2: committed '2', now 'nothing'"),
        ([shown(text="1")], [], "committed ['text/plain 0'], now []"),
        ([PRINTED], [PRINTED | {"text": "1\n2\n"}], ""),
        ([PRINTED], [PRINTED | {"name": "stderr"}], "committed ['stdout'], now ['stderr']"),
        ([shown(text="<f at 0x7f743c4f2d40>")], [shown(text="<f at 0x7f0000000000>")], ""),
        ([shown(png=picture(50))], [shown(png=picture(50, dots=1))], ""),
        ([shown(png=picture(50))], [shown(png=picture(50, dots=40))], "another picture"),
        ([shown(png=picture(50))], [shown(png=picture(51))], "another picture: 50x100, 51x100"),
        (
            [shown(html=f'<img src="data:image/png;base64,{picture(50)}">')],
            [shown(html=f'<img src="data:image/png;base64,{picture(50, colour="blue")}">')],
            "another picture",
        ),
    ],
)
def test_differences_between_outputs_are_told(tmp_path, committed, executed, reason):
    pair = (a_notebook(tmp_path / "a", *committed), a_notebook(tmp_path / "b", *executed))
    lines = notebook_outputs.differences(*pair)
    assert bool(lines) == bool(reason) and reason in "".join(lines)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("/tmp/tmpab12cd34/lake", "a temporary path"),
        ("PosixPath('/root/mlops_nb/storage')", "a person's folder"),
        ("function(func=&lt;function f at 0x7f743c4f2d40&gt;)", "an address in memory"),
        ("http://127.0.0.1:45123/models/churn", "a network address"),
        ("http://127.0.0.1:8000/models/churn", None),  # the default of settings.ini
        ("runs:/b85775d6b2a943c1b844f54d233e45a2/candidate", "an id"),
        ("2026-11-27T21:39:55.174656+00:00", "the time of a run"),
        ("1795809477939564960", "seconds since 1970"),
        ("search:  50%|█████     | 12/24 [00:15<00:15,  1.50trial/s]", "a progress bar"),
        ("2024-05-01 10:30:00, digest 1deb1541cc8bdb0a, at most 30 s, 7043 rows", None),
    ],
)
def test_what_changes_from_run_to_run_is_recognised(tmp_path, text, kind):
    lines = notebook_outputs.volatile(a_notebook(tmp_path / "a", shown(text=text)))
    assert [kind in line for line in lines] == ([True] if kind else [])


BAR = """
from mlops_nb.core.progress import progress_bar
with progress_bar(unit="stage") as bar:
    bar.reset(total=3)
    for _ in range(3):
        bar.update()
"""


@pytest.mark.parametrize(
    ("variables", "is_widget"),
    [
        ({"JPY_SESSION_NAME": "lesson.ipynb"}, True),
        ({}, False),
        ({"JPY_SESSION_NAME": "lesson.ipynb", "MLOPS_NB_RUN_ID": "1"}, False),
    ],
    ids=["in JupyterLab", "executed", "a stage that a notebook in JupyterLab started"],
)
def test_progress_is_a_widget_in_jupyterlab_and_text_elsewhere(monkeypatch, variables, is_widget):
    for name in ("JPY_SESSION_NAME", "MLOPS_NB_RUN_ID", "IN_TEST", "PYTEST_CURRENT_TEST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(BAR)])
    [*outputs] = NotebookClient(notebook, kernel_name="python3").execute().cells[0].outputs
    if is_widget:
        [output] = outputs
        assert "application/vnd.jupyter.widget-view+json" in output.data
    else:
        assert {output.output_type for output in outputs} == {"stream"}
        assert "3/3" in "".join(output.text for output in outputs)
