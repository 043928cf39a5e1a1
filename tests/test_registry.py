"What the registry lessons leave out: repeated and broken registrations, altered bundles, libraries, MLflow's own loaders."
import json
import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import polars as pl
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from mlops_nb import bundle, cluster, events, registry, tracking
from mlops_nb.bundle import Bundle, BundleError, code_hash, seal
from mlops_nb.candidate import Candidate, TrainingError, fit
from mlops_nb.deployment import applications
from mlops_nb.objective import Objective
from mlops_nb.profiles import profile
from mlops_nb.registry import RegistryError, approval, approve, register, reject, resolve, set_alias, versions
from mlops_nb.serving.versions import Desired, ServingError, Versions
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
        Bundle(built.path, digest=built.digest).pipeline  # noqa: B018


def test_a_process_of_its_own_uses_the_bundles_library_and_never_mlflow(place, tmp_path):
    built = place.register().bundle(place.settings)
    place.write_library(3)
    ROWS.write_parquet(tmp_path / "rows.parquet")
    code = f"""
import json, pathlib, sys, polars as pl
from mlops_nb.registry import Bundle
b = Bundle({str(built.path)!r})
p = b.pipeline.predict_proba(b.signature.conform(pl.read_parquet({str(tmp_path / "rows.parquet")!r})))[:, 1]
import wspkg
mode = pathlib.Path(wspkg.__file__).parents[1].stat().st_mode & 0o777
print(json.dumps([wspkg.__file__, mode, "mlflow" in sys.modules, p.tolist()]))
"""
    private = tmp_path / "tmp"
    private.mkdir()
    env = os.environ | {"MLOPS_NB_BUNDLE_DIGEST": built.digest, "TMPDIR": str(private)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True, env=env)
    file, mode, with_mlflow, probability = json.loads(done.stdout)
    assert Path(file).is_relative_to(private) and mode == 0o700 and not with_mlflow
    assert probability == pytest.approx(list(place.fitted.probability(ROWS)))
    assert not list(private.iterdir()), "a private folder was left behind"
    assert not list(built.path.rglob("__pycache__")), "something was written beside the bundle"


def test_mlflow_loads_a_version_by_itself(place, monkeypatch):
    monkeypatch.chdir(place.settings.root)
    place.register()
    model = mlflow.pyfunc.load_model("models:/m/1")
    labels = model.predict(ROWS.drop("y", "id").to_pandas())
    assert list(labels) == place.fitted.predict(ROWS).to_list()
    with pytest.raises(Exception, match="x"): model.predict(ROWS.select("c").to_pandas())


# -- bundles that somebody changed --------------------------------------------------------------------------------

EVIL = "from pathlib import Path\nPath({mark!r}).touch()\ndef features(frame): return frame\n"


@pytest.fixture
def attacked(place, tmp_path):
    "A registered version whose files were replaced by those of a bundle with a package of its own, and sealed again."
    version = place.register()
    digest, path = version.tags["bundle"], version.bundle(place.settings).path
    mark = tmp_path / "evil code ran"
    (path / "library/evil").mkdir()
    lineage = json.loads((path / "lineage.json").read_text())
    (path / "lineage.json").write_text(json.dumps(lineage | {"package": "evil"}))
    sys.path.insert(0, str(path / "library"))
    (path / "library/evil/__init__.py").write_text("def features(frame): return frame\n")
    import evil
    skops.io.dump(make_pipeline(FunctionTransformer(evil.features), LogisticRegression()), path / "model.skops")
    sys.path.remove(str(path / "library"))
    del sys.modules["evil"]
    shutil.rmtree(path / "library/evil/__pycache__", ignore_errors=True)
    (path / "library/evil/__init__.py").write_text(EVIL.format(mark=str(mark)))
    yield SimpleNamespace(version=version, path=path, digest=digest, resealed=seal(path), mark=mark)
    sys.modules.pop("evil", None)


def desired(path: Path, library: str) -> Desired: return Desired({"1": 100}, {"1": str(path)}, library)


def replica(place, attacked) -> None:
    library = bundle.library_digest(attacked.path / "library")
    Versions(place.settings, "m", library, fixed=desired(attacked.path, library))


LOADS = {
    "the registry": lambda place, attacked: attacked.version.bundle(place.settings).pipeline,
    "a reference": lambda place, attacked: resolve("m/1", settings=place.settings).bundle(place.settings).report,
    "the folder": lambda place, attacked: Bundle(attacked.path).pipeline,
    "the folder's library": lambda place, attacked: Bundle(attacked.path).library,
    "MLflow, by reference": lambda place, attacked: mlflow.pyfunc.load_model("models:/m/1"),
    "MLflow, by folder": lambda place, attacked: mlflow.pyfunc.load_model(str(attacked.path)),
    "a replica": replica,
    "a replica's path": lambda place, attacked: applications.run(place.settings, "m", desired(attacked.path, "any")),
    "a deployment": lambda place, attacked: applications.target("m/1", place.settings),
}


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
def test_the_code_of_a_resealed_bundle_never_runs(place, attacked, monkeypatch, tmp_path, inside):
    tracking.client(place.settings)  # MLflow's addresses
    monkeypatch.setattr("ray.serve.run", lambda *a, **k: pytest.fail("served"))
    outside, path = tmp_path / "elsewhere", list(sys.path)
    outside.mkdir()
    monkeypatch.chdir(place.settings.root if inside else outside)
    loaded = []
    for name, load in LOADS.items():
        try: load(place, attacked)
        except (BundleError, ServingError): pass
        else: loaded.append(name)
        assert not attacked.mark.exists() and "evil" not in sys.modules and sys.path == path, name
    assert loaded == []


def test_mlflows_own_record_of_the_digest_is_not_believed(place, attacked):
    client = tracking.client(place.settings)
    client.set_model_version_tag("m", "1", "bundle", attacked.resealed)
    found = resolve("m/1", settings=place.settings)
    assert found.tags["bundle"] == attacked.resealed
    with pytest.raises(BundleError, match="another was expected"): found.bundle(place.settings).pipeline  # noqa: B018
    assert not attacked.mark.exists()


@pytest.mark.parametrize("how", ["environment", "file"])
def test_outside_a_workspace_the_digest_comes_from_the_environment(place, monkeypatch, tmp_path, how):
    built = place.register().bundle(place.settings)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="code of its own .wspkg.features.features., and nothing says which digest"):
        Bundle(built.path).pipeline  # noqa: B018
    (tmp_path / "digest").write_text(f"{built.digest}\n")
    if how == "file": monkeypatch.setenv("MLOPS_NB_BUNDLE_DIGEST_FILE", str(tmp_path / "digest"))
    else: monkeypatch.setenv("MLOPS_NB_BUNDLE_DIGEST", built.digest)
    assert (Bundle(built.path).pipeline.predict_proba(built.signature.conform(ROWS))[:, 1]
            == place.fitted.probability(ROWS)).all()
    monkeypatch.setenv("MLOPS_NB_BUNDLE_DIGEST", "0" * 64)
    monkeypatch.delenv("MLOPS_NB_BUNDLE_DIGEST_FILE", raising=False)
    with pytest.raises(BundleError, match=f"has digest {built.digest}, expected 0000"):
        Bundle(built.path).pipeline  # noqa: B018


def test_a_library_that_others_can_write_to_is_not_used(place):
    built = place.register().bundle(place.settings)
    folder = built.library
    folder.chmod(0o770)
    with pytest.raises(BundleError, match="was altered, or others can write to it"):
        resolve("m/1", settings=place.settings).bundle(place.settings).library  # noqa: B018
    folder.chmod(0o700)
    (folder / "wspkg/features.py").write_text("changed = True")
    with pytest.raises(BundleError, match="was altered, or others can write to it"):
        resolve("m/1", settings=place.settings).bundle(place.settings).library  # noqa: B018


def test_the_probability_of_a_label_follows_the_label_not_the_column(place):
    "A champion may have been trained with the other label as positive."
    built = place.register().bundle(place.settings)
    positive = place.fitted.probability(ROWS)
    assert (built.probability(ROWS, "Yes") == positive).all()
    assert built.probability(ROWS, "No") == pytest.approx(1 - positive)
    with pytest.raises(BundleError, match="has the labels No and Yes, expected 1 among them"): built.probability(ROWS, 1)


def test_a_bundle_without_code_of_its_own_needs_no_digest(place, tmp_path, monkeypatch):
    with tracking.start_run(place.settings, name="plain"):
        plain = fit(ROWS, OBJECTIVE, Candidate("logistic", LogisticRegression())).save(place.settings)
    built = place.register(candidate=plain).bundle(place.settings)
    monkeypatch.chdir(tmp_path)
    assert Bundle(built.path).pipeline.predict_proba(built.signature.conform(ROWS)).shape == (60, 2)


def test_a_version_without_its_event_is_not_loaded(place, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(events, "record", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError): place.register()
    found = resolve("m/1", settings=place.settings)
    with pytest.raises(BundleError, match="m/1 has no `registered` event"): found.bundle(place.settings)
    place.register()
    assert found.bundle(place.settings).verify().digest == found.tags["bundle"]


def test_planted_bytecode_beside_the_library_never_runs(place, tmp_path):
    "Python runs a compiled file whose time and size are those of its source, whatever is in it."
    built = place.register().bundle(place.settings)
    source = built.path / "library/wspkg/features.py"
    original, times = source.read_text(), (source.stat().st_atime, source.stat().st_mtime)
    mark = tmp_path / "evil code ran"
    evil = f"open({str(mark)!r}, 'w')\ndef features(frame): return frame\n"
    source.write_text(evil)
    os.utime(source, times)
    compiled = Path(py_compile.compile(str(source)))
    data = bytearray(compiled.read_bytes())
    data[12:16] = len(original).to_bytes(4, "little")
    compiled.write_bytes(data)
    source.write_text(original)
    os.utime(source, times)
    code = f"""
import sys
from mlops_nb.bundle import Bundle
Bundle({str(built.path)!r}, digest={built.digest!r}).verify().pipeline
import wspkg.features
print(wspkg.features.__file__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert not mark.exists() and not done.stdout.startswith(str(built.path))
    shutil.rmtree(place.settings.state / "libraries")  # as on another machine
    library = resolve("m/1", settings=place.settings).bundle(place.settings).library
    assert library.is_relative_to(place.settings.state) and library.stat().st_mode & 0o777 == 0o700
    assert sorted(p.name for p in library.rglob("*")) == ["__init__.py", "features.py", "wspkg"]


@pytest.mark.parametrize("what", ["a file", "a folder", "a pipe"])
def test_links_and_special_files_in_a_bundle_are_refused(place, tmp_path, what):
    version = place.register()
    path = version.bundle(place.settings).path
    if what == "a file":
        (path / "report.html").rename(tmp_path / "report.html")
        (path / "report.html").symlink_to(tmp_path / "report.html")
    elif what == "a folder":
        (tmp_path / "extra").mkdir()
        (tmp_path / "extra/__init__.py").write_text("")
        (path / "library/extra").symlink_to(tmp_path / "extra")
    else: os.mkfifo(path / "library/pipe.py")
    with pytest.raises(BundleError, match="is a link or a special file, expected plain files only"):
        version.bundle(place.settings).verify()


def test_what_was_checked_is_what_is_used(place):
    "No file is read again after its hash was taken."
    built = place.register().bundle(place.settings).verify()
    for name in ("model.skops", "objective.json", "candidate.json", "lineage.json", "library/wspkg/features.py"):
        (built.path / name).write_bytes(b"changed after the check")
    assert (built.pipeline.predict_proba(built.signature.conform(ROWS))[:, 1] == place.fitted.probability(ROWS)).all()
    assert built.objective == OBJECTIVE and built.labels == ("No", "Yes")
    assert "changed" not in (built.library / "wspkg/features.py").read_text()


def test_a_bundle_sealed_again_under_our_hands_is_refused(place, monkeypatch):
    "Whoever vouched for the first manifest did not vouch for the second."
    monkeypatch.chdir(place.settings.root)
    built = Bundle(place.register().bundle(place.settings).path)
    assert built.trusted
    (built.path / "lineage.json").write_text('{"package": "evil"}')
    seal(built.path)
    with pytest.raises(BundleError, match="lineage.json was changed"): built.verify()


@pytest.mark.parametrize(("text", "says"), [
    ("{", "is not JSON"), ("[]", "has no digest and files"), ('{"digest": "0", "files": []}', "has no digest and files")])
def test_a_manifest_that_is_none_is_refused_in_words(place, text, says):
    version = place.register()
    (version.bundle(place.settings).path / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=says): version.bundle(place.settings).verify()


def test_a_replica_loads_what_was_registered(place):
    version = place.register()
    found, state = applications.target(version.ref, place.settings)
    served = Versions(place.settings, "m", state.library, fixed=state).traffic.champion
    assert served.predict(served.signature.frame(ROWS.select("x", "c").to_dicts()))[1] == pytest.approx(
        place.fitted.probability(ROWS).tolist())
    assert Versions(place.settings, "m", state.library, fixed=state).traffic.labels == ["No", "Yes"]


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
