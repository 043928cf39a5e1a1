"What the registry lessons leave out: repeated and broken registrations, altered bundles, libraries, MLflow's own loaders."
import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression

from mlops_nb import bundle, cluster, events, registry, tracking
from mlops_nb.bundle import Bundle, BundleError, code_hash, seal
from mlops_nb.candidate import Candidate, TrainingError, fit
from mlops_nb.objective import Objective
from mlops_nb.profiles import profile
from mlops_nb.registry import RegistryError, approval, approve, register, reject, resolve, set_alias, versions
from mlops_nb.settings import create

OBJECTIVE = Objective(name="m", question="?", target="y", positive="Yes", key="id")
ROWS = pl.DataFrame({"id": range(60), "x": [float(i % 7) for i in range(60)], "c": ["a", "b", "c"] * 20,
                     "y": ["Yes" if i % 7 > 3 else "No" for i in range(60)]})
FEATURES = "import polars as pl\ndef features(frame): return frame.with_columns(z=pl.col('x') * {factor})\n"


class Place:
    "A workspace with package `wspkg`, one fitted candidate and its report, ready to register."
    def __init__(self, root: Path):
        self.settings = create(root, workspace={"name": "m", "package": "wspkg"})
        (root / "wspkg").mkdir()
        (root / "wspkg/__init__.py").write_text("")
        self.write_library(2)
        sys.path.insert(0, str(root))
        self.fitted = fit(ROWS, OBJECTIVE, Candidate("logistic", LogisticRegression()), features="wspkg.features.features")
        report = root / "made"
        report.mkdir()
        (report / "report.json").write_text('{"passed": true}')
        (report / "report.html").write_text("<p>passed")
        self.notebook = root / "2_train.ipynb"
        self.notebook.write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["x = 1"], "outputs": []}]}))
        self.profile = profile(ROWS).to_bytes()
        events.record(self.settings.events, "ingested", "m@3", by="test", digest="d1g3st", source="rows.csv")
        with tracking.start_run(self.settings, name="workflow"):
            self.report = tracking.log_folder(report, "report", settings=self.settings)
            self.candidate = self.fitted.save(self.settings)

    def write_library(self, factor: int) -> None:
        (self.settings.root / "wspkg/features.py").write_text(FEATURES.format(factor=factor))

    def register(self, name: str = "m", **changes):
        given = {"report_uri": self.report, "dataset": "m@3", "profile": self.profile, "objective": OBJECTIVE, "by": "ann",
                 "notebooks": [self.notebook], "settings": self.settings}
        return register(name, changes.pop("candidate", self.candidate), **given | changes)


def forget() -> None:
    "As if `wspkg` had never been imported."
    for name in [m for m in sys.modules if m.split(".")[0] == "wspkg"]: del sys.modules[name]


@pytest.fixture
def place(tmp_path, monkeypatch):
    path = list(sys.path)
    yield Place(tmp_path / "ws")
    forget()
    sys.path[:] = path


def test_registering_again_gives_the_same_version_and_one_event(place):
    first, again = place.register(), place.register(by="bob")
    assert first == again and [v.ref for v in versions("m", settings=place.settings)] == ["m/1"]
    assert events.history(place.settings.events, "m/1", "registered").collect().height == 1


def test_other_content_is_another_version(place, tmp_path):
    place.register()
    assert place.register(dataset="m@4").ref == "m/2"
    assert [v.ref for v in versions("m", settings=place.settings)] == ["m/2", "m/1"]


def test_a_registration_cut_off_before_its_event_is_mended(place, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(events, "record", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError): place.register()
    assert events.newest(place.settings.events, "registered", "m/1") is None
    assert place.register().ref == "m/1"
    assert events.newest(place.settings.events, "registered", "m/1")["by"] == "ann"


def test_the_event_and_the_lineage_name_both_sides(place):
    version = place.register()
    details = events.newest(place.settings.events, "registered", version.ref)["details"]
    lineage = version.bundle(place.settings).lineage
    assert details["dataset"] == lineage["dataset"] == {"ref": "m@3", "digest": "d1g3st", "source": "rows.csv"}
    assert details["runs"] == {"candidate": version.run_id, "report": version.run_id}
    assert (details["candidate"], details["report"]) == (place.candidate, place.report)
    assert details["bundle"] == version.tags["bundle"] == version.bundle(place.settings).digest
    assert lineage["notebooks"] == {"2_train.ipynb": code_hash(place.notebook)}
    assert lineage["versions"]["scikit-learn"] and lineage["python"].startswith("3.")


def test_the_commit_says_whether_files_differ_from_it(tmp_path):
    def git(*args): subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *args], cwd=tmp_path, check=True,
                                   capture_output=True)
    git("init")
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-m", "a")
    assert registry.commit(tmp_path)["dirty"] is False and len(registry.commit(tmp_path)["commit"]) == 40
    (tmp_path / "a.py").write_text("2")
    assert registry.commit(tmp_path)["dirty"] is True


def test_a_bundle_holds_everything(place):
    files = place.register().bundle(place.settings).verify().manifest["files"]
    assert set(files) == {"MLmodel", "candidate.json", "lineage.json", "library/wspkg/__init__.py", "model.skops",
                          "library/wspkg/features.py", "notebooks/2_train.ipynb", "objective.json", "profile.bin",
                          "report.html", "report.json", "requirements.txt", "signature.json"}


def test_the_lock_file_is_preferred(place):
    (place.settings.root / "requirements.lock").write_text("polars==9.9\n")
    path = place.register().bundle(place.settings).path
    assert (path / "requirements.txt").read_text() == "polars==9.9\n"


@pytest.mark.parametrize(("name", "says"), [
    ("model.skops", "model.skops was changed"), ("library/wspkg/features.py", "features.py was changed"),
    (None, "evil.py was added"), ("manifest.json", "manifest.json was changed")])
def test_an_altered_bundle_is_refused_before_it_is_read(place, tmp_path, name, says):
    path = tmp_path / "copy"
    shutil.copytree(place.register().bundle(place.settings).path, path)
    if name is None: (path / "library/wspkg/evil.py").write_text("")
    elif name == "manifest.json":
        manifest = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(manifest | {"digest": "0" * 64}))
    else: (path / name).write_bytes((path / name).read_bytes() + b"#")
    with pytest.raises(BundleError, match=says): Bundle(path).pipeline  # noqa: B018


def test_a_removed_file_and_a_resealed_bundle_are_noticed(place):
    version = place.register()
    path = version.bundle(place.settings).path
    (path / "report.html").unlink()
    with pytest.raises(BundleError, match="report.html was removed"): Bundle(path).verify()
    seal(path)
    Bundle(path).verify()
    with pytest.raises(BundleError, match="another was expected"): version.bundle(place.settings).verify()


def test_the_same_library_is_shared_another_is_refused(place):
    built = place.register().bundle(place.settings)
    assert (built.pipeline.predict_proba(built.signature.conform(ROWS))[:, 1] == place.fitted.probability(ROWS)).all()
    assert built.library_digest == cluster.snapshot(place.settings).name
    place.write_library(3)
    with pytest.raises(BundleError, match="needs its own version of package 'wspkg'"):
        Bundle(built.path).pipeline  # noqa: B018


def test_a_process_of_its_own_uses_the_bundles_library_and_never_mlflow(place, tmp_path):
    built = place.register().bundle(place.settings)
    place.write_library(3)
    ROWS.write_parquet(tmp_path / "rows.parquet")
    code = f"""
import json, sys, polars as pl
from mlops_nb.registry import Bundle
b = Bundle({str(built.path)!r})
p = b.pipeline.predict_proba(b.signature.conform(pl.read_parquet({str(tmp_path / "rows.parquet")!r})))[:, 1]
import wspkg
print(json.dumps([wspkg.__file__, "mlflow" in sys.modules, p.tolist()]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    file, with_mlflow, probability = json.loads(done.stdout)
    assert Path(file).is_relative_to(built.path) and not with_mlflow
    assert probability == pytest.approx(list(place.fitted.probability(ROWS)))
    built.verify()  # what Python cached beside the library does not count


def test_mlflow_loads_a_version_by_itself(place):
    place.register()
    model = mlflow.pyfunc.load_model("models:/m/1")
    labels = model.predict(ROWS.drop("y", "id").to_pandas())
    assert list(labels) == place.fitted.predict(ROWS).to_list()
    with pytest.raises(Exception, match="x"): model.predict(ROWS.select("c").to_pandas())


def test_what_cannot_be_loaded_is_not_registered(place, tmp_path):
    with pytest.raises(TrainingError, match="names wspkg.features.features"):
        place.register(settings=place.settings.model_copy(
            update={"workspace": place.settings.workspace.model_copy(update={"package": "other"})}))
    with pytest.raises(RegistryError, match="letters, digits"): place.register("a/b")
    with pytest.raises(RegistryError, match="expected runs:/"): place.register(candidate=str(tmp_path))
    with pytest.raises(tracking.TrackingError, match="no run"): place.register(candidate="runs:/nope/candidate")
    with pytest.raises(BundleError, match="two files are called"):
        place.register(notebooks=[place.notebook, place.notebook])
    assert versions("m", settings=place.settings) == []


@pytest.mark.parametrize(("ref", "says"), [
    ("m/9", "no model m/9: there is m/1 = m@champion"), ("m@challenger", "there is m/1"), ("n/1", "the models are m"),
    ("m", "expected NAME/VERSION or NAME@ALIAS"), ("m@3", "expected NAME/VERSION"), ("m/1/2", "expected NAME")])
def test_a_reference_that_leads_nowhere_says_what_there_is(place, ref, says):
    place.register()
    set_alias("m/1", "champion", settings=place.settings)
    with pytest.raises(RegistryError, match=says): resolve(ref, settings=place.settings)


def test_the_newest_decision_counts_and_needs_a_version(place):
    settings = place.settings
    place.register()
    with pytest.raises(RegistryError, match="there is m/1"): approve("m/2", "ann", settings=settings)
    reject("m/1", "bob", "too old", settings=settings)
    id = approve("model:m/1", "ann", "checked", settings=settings)
    newest = approval("m/1", settings=settings)
    assert (newest["id"], newest["kind"], newest["by"], newest["details"]["note"]) == (id, "approved", "ann", "checked")


def test_an_alias_moves_and_goes(place):
    settings = place.settings
    place.register()
    place.register(dataset="m@4")
    set_alias("m/1", "champion", settings=settings)
    set_alias("m/2", "champion", settings=settings)
    assert resolve("m@champion", settings=settings).ref == "m/2" and resolve("m/1", settings=settings).aliases == ()
    set_alias("m/2", "champion", remove=True, settings=settings)
    with pytest.raises(RegistryError): resolve("m@champion", settings=settings)


def test_outputs_do_not_change_a_notebooks_hash(tmp_path):
    for name, outputs in (("a.ipynb", []), ("b.ipynb", [{"text": "1"}])):
        cells = [{"cell_type": "code", "source": ["x"], "outputs": outputs}, {"cell_type": "markdown", "source": [name]}]
        (tmp_path / name).write_text(json.dumps({"cells": cells}))
    assert code_hash(tmp_path / "a.ipynb") == code_hash(tmp_path / "b.ipynb")
    assert bundle.pins(tmp_path, "no-such-package").count("mlops_nb==") == 1
