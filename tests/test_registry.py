"Repeated and broken registrations, altered bundles, libraries, MLflow's own loaders."

import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import mlflow
import numpy as np
import polars as pl
import pytest
import skops.io
from conftest import aliases
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from starlette.testclient import TestClient

from mlops_nb.core import cluster, events, library, tracking
from mlops_nb.core.errors import (
    ApprovalError,
    BundleError,
    EventConflict,
    MlopsError,
    OutdatedBundle,
    RegistryError,
    ServingError,
    TrackingError,
    TrainingError,
    WaitingForPerson,
)
from mlops_nb.core.settings import create, load_settings
from mlops_nb.data.ingest import ingest
from mlops_nb.data.profiles.profiling import profile
from mlops_nb.front import cli, overview, pages
from mlops_nb.models import approvals, bundle, origin, packing, registry, roles
from mlops_nb.models.bundle import Bundle
from mlops_nb.models.champion import champion_scores
from mlops_nb.models.packing import code_hash
from mlops_nb.models.registry import (
    approval,
    approve,
    register,
    reject,
    resolve,
    set_alias,
    versions,
)
from mlops_nb.models.sealing import seal
from mlops_nb.science.candidates import Candidate
from mlops_nb.science.objective import Objective
from mlops_nb.science.pipeline import fit
from mlops_nb.science.task import Binary, Multiclass, Regression
from mlops_nb.service import deployment
from mlops_nb.service.deployment import applications
from mlops_nb.service.serving import Handlers, application_of
from mlops_nb.service.serving.log import PredictionLog
from mlops_nb.service.serving.versions import Desired, Versions

OBJECTIVE = Objective(name="m", question="?", target="y", positive="Yes", key="id")
ROWS = pl.DataFrame(
    {
        "id": range(60),
        "x": [float(i % 7) for i in range(60)],
        "c": ["a", "b", "c"] * 20,
        "y": ["Yes" if i % 7 > 3 else "No" for i in range(60)],
    }
)
FEATURES = """import polars as pl
def features(frame): return frame.with_columns(z=pl.col('x') * {factor})
"""


class Place:
    "A workspace with package `wspkg`, one fitted candidate and its report, ready to register."

    def __init__(self, root: Path):
        self.settings = create(root, workspace={"name": "m", "package": "wspkg"})
        (root / "wspkg").mkdir()
        (root / "wspkg/__init__.py").write_text("")
        self.write_library(2)
        sys.path.insert(0, str(root))
        self.fitted = fit(
            ROWS,
            OBJECTIVE,
            Candidate("logistic", LogisticRegression()),
            features="wspkg.features.features",
        )
        report = root / "made"
        report.mkdir()
        (report / "report.json").write_text('{"passed": true}')
        (report / "report.html").write_text("<p>passed")
        self.notebook = root / "2_train.ipynb"
        self.notebook.write_text(
            json.dumps({"cells": [{"cell_type": "code", "source": ["x = 1"], "outputs": []}]})
        )
        self.profile = profile(ROWS).to_bytes()
        events.record(
            self.settings.events, "ingested", "m@3", by="test", digest="d1g3st", source="rows.csv"
        )
        with tracking.start_run(self.settings, name="workflow"):
            self.report = tracking.log_folder(report, "report", settings=self.settings)
            self.candidate = self.fitted.save(self.settings)

    def write_library(self, factor: int) -> None:
        (self.settings.root / "wspkg/features.py").write_text(FEATURES.format(factor=factor))

    def register(self, name: str = "m", **changes):
        given = {
            "report_uri": self.report,
            "dataset": "m@3",
            "profile": self.profile,
            "objective": OBJECTIVE,
            "by": "ann",
            "notebooks": [self.notebook],
            "settings": self.settings,
        }
        return register(name, changes.pop("candidate", self.candidate), **given | changes)


def forget() -> None:
    "As if `wspkg` had never been imported."
    for name in [m for m in sys.modules if m.split(".")[0] == "wspkg"]:
        del sys.modules[name]


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


def test_by_default_the_reference_profile_is_of_the_dataset_and_the_candidate(place):
    "Inputs of the training split, predictions on the test split, and the run's executed notebooks."
    ROWS.write_parquet(place.settings.root / "rows.parquet")
    data = ingest("rows", "rows.parquet", key="id", settings=place.settings)
    executed = Path(place.settings.runs, "1a2b") / "1_ingest.ipynb"
    executed.parent.mkdir(parents=True)
    shutil.copy(place.notebook, executed)
    bundle = place.register(dataset=data.ref, profile=None, run="1a2b").bundle(place.settings)
    test = data.scan("test").collect()
    assert {"x", "c", "prediction"} == set(bundle.profile.columns)
    predictions = pl.DataFrame({"prediction": place.fitted.probability(test)})
    for expected in (profile(data.scan("train").select("x", "c").collect()), profile(predictions)):
        assert bundle.profile.select(expected.columns).summary().equals(expected.summary())
    assert set(bundle.lineage["notebooks"]) == {"1_ingest.ipynb", "2_train.ipynb"}


def test_the_champions_view_is_that_of_the_version_in_production(place):
    view = partial(champion_scores, frame=ROWS, objective=OBJECTIVE, settings=place.settings)
    place.register()
    assert view("m@champion") is None  # registered, and not in production
    events.record(
        place.settings.events, "deployed", "m", by="ann", versions={"1": 100}, champion="1"
    )
    assert np.abs(view("m@champion").positive - place.fitted.probability(ROWS)).max() < 1e-12
    for other in ("nobody@champion", "m@challenger", "m/1"):
        with pytest.raises(RegistryError, match=f"champion = {other}: expected m@champion"):
            view(other)


def test_a_model_of_another_candidate_is_refused_though_the_bundle_is_sealed(place, tmp_path):
    "The manifest is right, and the model is not the one that candidate.json was saved with."
    version = place.register()
    path = tmp_path / "mixed"
    shutil.copytree(version.bundle(place.settings).path, path)
    about = json.loads((path / "candidate.json").read_text())
    recorded = about["digest"]
    event = events.newest(place.settings.events, "registered", version.ref)
    assert event["details"]["model_digest"] == version.tags["model_digest"] == recorded
    other = "0" * 64
    (path / "candidate.json").write_text(json.dumps(about | {"digest": other}))
    mixed = Bundle(path, digest=seal(path), settings=place.settings)
    message = f"expected the model with digest {other} .*, got {recorded} .*: train the candidate"
    with pytest.raises(BundleError, match=message):
        mixed.predict(ROWS)
    about.pop("digest")  # as earlier releases have it
    (path / "candidate.json").write_text(json.dumps(about))
    old = Bundle(path, digest=seal(path), settings=place.settings)
    assert len(old.predict(ROWS)) == ROWS.height


def test_other_content_is_another_version(place, tmp_path):
    place.register()
    assert place.register(dataset="m@4").ref == "m/2"
    assert [v.ref for v in versions("m", settings=place.settings)] == ["m/2", "m/1"]


def test_a_registration_cut_off_before_its_event_is_mended(place, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(events, "record", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError):
            place.register()
    assert events.newest(place.settings.events, "registered", "m/1") is None
    assert place.register().ref == "m/1"
    assert events.newest(place.settings.events, "registered", "m/1")["by"] == "ann"


def test_the_event_and_the_lineage_name_both_sides(place):
    version = place.register()
    details = events.newest(place.settings.events, "registered", version.ref)["details"]
    lineage = version.bundle(place.settings).lineage
    assert (
        details["dataset"]
        == lineage["dataset"]
        == {"ref": "m@3", "digest": "d1g3st", "source": "rows.csv"}
    )
    assert details["runs"] == {"candidate": version.run_id, "report": version.run_id}
    assert (details["candidate"], details["report"]) == (place.candidate, place.report)
    assert details["bundle"] == version.tags["bundle"] == version.bundle(place.settings).digest
    assert lineage["notebooks"] == {"2_train.ipynb": code_hash(place.notebook)}
    assert lineage["versions"]["scikit-learn"] and lineage["python"].startswith("3.")


def test_the_commit_says_whether_files_differ_from_it(tmp_path):
    def git(*args):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *args],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    git("init")
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-m", "a")
    assert (
        origin.git_commit(tmp_path)["dirty"] is False
        and len(origin.git_commit(tmp_path)["commit"]) == 40
    )
    (tmp_path / "a.py").write_text("2")
    assert origin.git_commit(tmp_path)["dirty"] is True


def test_a_bundle_holds_everything(place):
    files = place.register().bundle(place.settings).verify().manifest["files"]
    assert set(files) == {
        "MLmodel",
        "candidate.json",
        "lineage.json",
        "library/wspkg/__init__.py",
        "model.skops",
        "library/wspkg/features.py",
        "notebooks/2_train.ipynb",
        "objective.json",
        "profile.bin",
        "report.html",
        "report.json",
        "requirements.txt",
        "signature.json",
    }


def test_the_lock_file_is_preferred(place):
    (place.settings.root / "requirements.lock").write_text("polars==9.9\n")
    path = place.register().bundle(place.settings).path
    assert (path / "requirements.txt").read_text() == "polars==9.9\n"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.skops", "model.skops was changed"),
        ("library/wspkg/features.py", "features.py was changed"),
        (None, "evil.py was added"),
        ("manifest.json", "manifest.json was changed"),
    ],
)
def test_an_altered_bundle_is_refused_before_it_is_read(place, tmp_path, name, says):
    path = tmp_path / "copy"
    shutil.copytree(place.register().bundle(place.settings).path, path)
    if name is None:
        (path / "library/wspkg/evil.py").write_text("")
    elif name == "manifest.json":
        manifest = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(manifest | {"digest": "0" * 64}))
    else:
        (path / name).write_bytes((path / name).read_bytes() + b"#")
    with pytest.raises(BundleError, match=says):
        Bundle(path).pipeline  # noqa: B018


def test_a_removed_file_and_a_resealed_bundle_are_noticed(place):
    version = place.register()
    path = version.bundle(place.settings).path
    (path / "report.html").unlink()
    with pytest.raises(BundleError, match="report.html was removed"):
        Bundle(path).verify()
    seal(path)
    Bundle(path).verify()
    with pytest.raises(BundleError, match="another was expected"):
        version.bundle(place.settings).verify()


def test_the_same_library_is_shared_another_is_refused(place):
    built = place.register().bundle(place.settings)
    assert (
        built.pipeline.predict_proba(built.signature.conform(ROWS))[:, 1]
        == place.fitted.probability(ROWS)
    ).all()
    assert built.library_digest == cluster.snapshot(place.settings).name
    place.write_library(3)
    with pytest.raises(BundleError, match="needs its own version of package 'wspkg'"):
        Bundle(built.path, digest=built.digest).pipeline  # noqa: B018


def test_a_champion_of_earlier_code_answers_from_a_process_of_its_own(place):
    "A person edits a feature: the champion still computes it as it did when it was trained."
    place.register()
    events.record(
        place.settings.events, "deployed", "m", by="ann", versions={"1": 100}, champion="1"
    )
    expected = place.fitted.predict(ROWS).scores
    place.write_library(3)
    answers = champion_scores("m@champion", ROWS, OBJECTIVE, settings=place.settings)
    assert (answers.scores == expected).all()
    with pytest.raises(MlopsError, match="'x'"):
        champion_scores("m@champion", ROWS.drop("x"), OBJECTIVE, settings=place.settings)


def test_a_library_is_what_the_pipeline_needs(place):
    "An edit of a feature makes another library; an edit of an unrelated module does not."
    (place.settings.root / "wspkg/monitor.py").write_text("RULE = 1\n")
    first = place.register()
    assert not any("monitor" in name for name in first.bundle(place.settings).manifest["files"])
    (place.settings.root / "wspkg/monitor.py").write_text("RULE = 2\n")
    assert place.register() == first
    place.write_library(3)
    assert place.register().tags["library"] != first.tags["library"]


def test_a_pipeline_without_functions_has_no_library(place):
    plain = fit(ROWS, OBJECTIVE, Candidate("logistic", LogisticRegression()))
    with tracking.start_run(place.settings, name="plain"):
        report = tracking.log_folder(
            place.settings.root / "made", "report", settings=place.settings
        )
        version = place.register(candidate=plain.save(place.settings), report_uri=report)
    built = version.bundle(place.settings)
    assert built.library is None and not any(
        name.startswith("library/") for name in built.manifest["files"]
    )
    assert built.pipeline.predict_proba(built.signature.conform(ROWS))[:, 1] == pytest.approx(
        plain.probability(ROWS)
    )


# -- the framework beside it -----------------------------------------------------------------------

OTHER = {"version": "9.9", "digest": "0123456789abcdef"}


def test_a_bundle_pins_the_framework(place):
    version = place.register()
    framework = library.framework("wspkg")
    assert version.bundle(place.settings).lineage["framework"] == framework
    assert (
        events.newest(place.settings.events, "registered", "m/1")["details"]["framework"]
        == framework
    )
    assert version.bundle(place.settings).other_framework == {}


def test_another_framework_when_serving_is_reported_and_serves(place, monkeypatch, capsys):
    "In the endpoint's metadata, on the page, and by `mlops-nb status`."
    version = place.register()
    here, (_, state) = (
        library.framework("wspkg"),
        applications.target(version.ref, settings=place.settings),
    )
    monkeypatch.setattr(library, "framework", lambda package="": OTHER)
    served = Versions(place.settings, "m", state.library, fixed=state)
    log = PredictionLog(place.settings, "m")
    app = application_of(Handlers(served, log, PredictionLog(place.settings, "m", "_feedback")))
    answer = TestClient(app, base_url="http://localhost").get("/healthz").json()
    assert answer["framework"] == {"1": {"registered": here, "here": OTHER}}
    assert served.traffic.champion.predict(
        served.traffic.champion.signature.frame(ROWS.select("x", "c").to_dicts())
    )
    event = deployed(place.settings, champion="1")
    monkeypatch.setattr(applications, "health", lambda *_, **__: answer | {"event": event})
    note = (
        f"m/1 was registered with mlops_nb {here['version']} ({here['digest'][:8]}) and is "
        "served by mlops_nb 9.9 (01234567)"
    )
    now = overview.state(place.settings)
    assert (now["endpoints"][0]["state"], now["endpoints"][0]["framework"]) == ("ready", [note])
    assert note in pages.control_page(now)
    cli.status_command(as_json=True, workspace=place.settings.root)
    assert json.loads(capsys.readouterr().out)["endpoints"][0]["framework"] == [note]
    cli.status_command(workspace=place.settings.root)
    assert f"framework of m  {note}" in capsys.readouterr().out


# -- bundles of an earlier release -----------------------------------------------------------------


@pytest.fixture
def whole(place):
    "A bundle as an earlier release made it: its library is the framework, with the workflow in it."
    path = place.settings.root / "whole"
    shutil.copytree(place.register().bundle(place.settings).path, path)
    shutil.rmtree(path / "library")
    (path / "library/mlops_nb/shop").mkdir(parents=True)
    for name in ("__init__", "registry", "shop/__init__"):
        (path / f"library/mlops_nb/{name}.py").write_text("")
    (path / "library/mlops_nb/shop/features.py").write_text(FEATURES.format(factor=2))
    for name in ("mlops_nb.shop", "mlops_nb.shop.features"):
        sys.modules[name] = ModuleType(name)
    exec(FEATURES.format(factor=2), vars(sys.modules["mlops_nb.shop.features"]))
    skops.io.dump(
        make_pipeline(
            FunctionTransformer(sys.modules["mlops_nb.shop.features"].features),
            LogisticRegression(),
        ),
        path / "model.skops",
    )
    for name in ("mlops_nb.shop", "mlops_nb.shop.features"):
        del sys.modules[name]
    lineage = json.loads((path / "lineage.json").read_text())
    lineage.pop("framework")
    (path / "lineage.json").write_text(json.dumps(lineage | {"package": "mlops_nb"}))
    model = (path / "MLmodel").read_text()
    (path / "MLmodel").write_text(model.replace(".models.registry", ".registry"))
    return path


REFUSED = (
    "was registered with an earlier release of mlops_nb, and mlops_nb .* cannot load it, for its "
    "library is the whole framework of that time. Train the model and register it again"
)


def test_a_bundle_whose_library_is_the_framework_is_refused_in_one_sentence(
    place, whole, monkeypatch
):
    digest = seal(whole)
    with pytest.raises(OutdatedBundle, match=REFUSED):
        Bundle(whole, digest=digest).pipeline  # noqa: B018
    assert Bundle(whole, digest=digest).report == {"passed": True}
    monkeypatch.setenv("MLOPS_NB_BUNDLE_DIGEST", digest)
    with pytest.raises(OutdatedBundle, match=REFUSED):
        mlflow.pyfunc.load_model(str(whole))


def test_a_champion_of_an_earlier_release_is_not_compared_with(place, whole, monkeypatch):
    "Nothing serves it either, and its model is to be trained again. A warning says so."
    built = Bundle(whole, digest=seal(whole), settings=place.settings)
    deployed(place.settings, champion="1")
    monkeypatch.setattr(registry.ModelVersion, "bundle", lambda self, settings=None: built)
    with pytest.warns(UserWarning, match="the champion is not compared with: .*Train the model"):
        assert champion_scores("m@champion", ROWS, OBJECTIVE, settings=place.settings) is None


def test_an_endpoint_that_cannot_be_brought_back_holds_up_nothing(place, whole, monkeypatch):
    "So that its model can be trained again."
    digest = seal(whole)
    for model in ("m", "n"):
        events.record(
            place.settings.events,
            "deployed",
            model,
            by="ann",
            versions={"1": 100},
            bundles={"1": str(whole)},
            champion="1",
            challenger=None,
            library="",
        )
        if model == "m":
            continue
        events.record(place.settings.events, "registered", "n/1", by="ann", bundle=digest)
    started = []

    def realize(model, *, settings):
        if model == "n":
            applications.run_application(
                model, Desired({"1": 100}, {"1": str(whole)}), settings=settings
            )
        started.append(model)

    monkeypatch.setattr(deployment, "realize", realize)
    monkeypatch.setattr(roles, "mirror", lambda model, settings: None)
    one, other = deployment.restore(place.settings)
    assert started == ["m"] and one.problem is None and not other.ready
    assert re.search(REFUSED, other.problem)


def test_a_library_that_does_not_import_any_more_is_refused_in_one_sentence(place):
    (place.settings.root / "wspkg/features.py").write_text(
        "from mlops_nb.gone import Contract\n" + FEATURES.format(factor=2)
    )
    built = place.register().bundle(place.settings)
    forget()
    with pytest.raises(
        OutdatedBundle,
        match="its library cannot be imported: No module named 'mlops_nb.gone'. Train",
    ):
        built.pipeline  # noqa: B018


def test_a_process_of_its_own_uses_the_bundles_library_and_never_mlflow(place, tmp_path):
    built = place.register().bundle(place.settings)
    place.write_library(3)
    ROWS.write_parquet(tmp_path / "rows.parquet")
    code = f"""
import json, pathlib, sys, polars as pl
from mlops_nb.models.bundle import Bundle
b = Bundle({str(built.path)!r})
rows = pl.read_parquet({str(tmp_path / "rows.parquet")!r})
p = b.pipeline.predict_proba(b.signature.conform(rows))[:, 1]
import wspkg
mode = pathlib.Path(wspkg.__file__).parents[1].stat().st_mode & 0o777
print(json.dumps([wspkg.__file__, mode, "mlflow" in sys.modules, p.tolist()]))
"""
    private = tmp_path / "tmp"
    private.mkdir()
    env = os.environ | {"MLOPS_NB_BUNDLE_DIGEST": built.digest, "TMPDIR": str(private)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
        env=env,
    )
    file, mode, with_mlflow, probability = json.loads(done.stdout)
    assert Path(file).is_relative_to(private) and mode == 0o700 and not with_mlflow
    assert probability == pytest.approx(list(place.fitted.probability(ROWS)))
    assert not list(private.iterdir()), "a private folder was left behind"
    assert not list(built.path.rglob("__pycache__")), "something was written beside the bundle"


def test_mlflow_loads_a_version_by_itself(place, monkeypatch):
    monkeypatch.chdir(place.settings.root)
    place.register()
    model = mlflow.pyfunc.load_model("models:/m/1")
    answer = model.predict(ROWS.drop("y", "id").to_pandas())
    assert list(answer["prediction"]) == place.fitted.predict(ROWS).labels
    assert list(answer["probability"]) == pytest.approx(place.fitted.probability(ROWS).tolist())
    outputs = model.metadata.get_output_schema().to_dict()
    assert [(o["name"], o["type"]) for o in outputs] == [
        ("prediction", "string"),
        ("probability", "double"),
    ]
    with pytest.raises(Exception, match="x"):
        model.predict(ROWS.select("c").to_pandas())


# -- bundles that somebody changed -----------------------------------------------------------------

EVIL = "from pathlib import Path\nPath({mark!r}).touch()\ndef features(frame): return frame\n"


@pytest.fixture
def attacked(place, tmp_path):
    "A registered version whose files were replaced by another bundle's, and sealed again."
    version = place.register()
    digest, path = version.tags["bundle"], version.bundle(place.settings).path
    mark = tmp_path / "evil code ran"
    (path / "library/evil").mkdir()
    lineage = json.loads((path / "lineage.json").read_text())
    (path / "lineage.json").write_text(json.dumps(lineage | {"package": "evil"}))
    sys.path.insert(0, str(path / "library"))
    (path / "library/evil/__init__.py").write_text("def features(frame): return frame\n")
    import evil

    skops.io.dump(
        make_pipeline(FunctionTransformer(evil.features), LogisticRegression()),
        path / "model.skops",
    )
    sys.path.remove(str(path / "library"))
    del sys.modules["evil"]
    shutil.rmtree(path / "library/evil/__pycache__", ignore_errors=True)
    (path / "library/evil/__init__.py").write_text(EVIL.format(mark=str(mark)))
    yield SimpleNamespace(version=version, path=path, digest=digest, resealed=seal(path), mark=mark)
    sys.modules.pop("evil", None)


def desired(path: Path, library: str) -> Desired:
    return Desired({"1": 100}, {"1": str(path)}, library)


def replica(place, attacked) -> None:
    library = bundle.library_digest(attacked.path / "library")
    Versions(place.settings, "m", library, fixed=desired(attacked.path, library))


LOADS = {
    "the registry": lambda place, attacked: attacked.version.bundle(place.settings).pipeline,
    "a reference": lambda place, attacked: (
        resolve("m/1", settings=place.settings).bundle(place.settings).report
    ),
    "the folder": lambda place, attacked: Bundle(attacked.path).pipeline,
    "the folder's library": lambda place, attacked: Bundle(attacked.path).library,
    "MLflow, by reference": lambda place, attacked: mlflow.pyfunc.load_model("models:/m/1"),
    "MLflow, by folder": lambda place, attacked: mlflow.pyfunc.load_model(str(attacked.path)),
    "a replica": replica,
    "a replica's path": lambda place, attacked: applications.run_application(
        "m", desired(attacked.path, "any"), settings=place.settings
    ),
    "a deployment": lambda place, attacked: applications.target("m/1", settings=place.settings),
}


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
def test_the_code_of_a_resealed_bundle_never_runs(place, attacked, monkeypatch, tmp_path, inside):
    tracking.mlflow_client(place.settings)  # MLflow's addresses
    monkeypatch.setattr("ray.serve.run", lambda *a, **k: pytest.fail("served"))
    outside, path = tmp_path / "elsewhere", list(sys.path)
    outside.mkdir()
    monkeypatch.chdir(place.settings.root if inside else outside)
    loaded = []
    for name, way in LOADS.items():
        try:
            way(place, attacked)
        except (BundleError, ServingError):
            pass
        else:
            loaded.append(name)
        assert not attacked.mark.exists() and "evil" not in sys.modules and sys.path == path, name
    assert loaded == []


def test_mlflows_own_record_of_the_digest_is_not_believed(place, attacked):
    client = tracking.mlflow_client(place.settings)
    client.set_model_version_tag("m", "1", "bundle", attacked.resealed)
    version = resolve("m/1", settings=place.settings)
    assert version.tags["bundle"] == attacked.resealed
    with pytest.raises(BundleError, match="another was expected"):
        version.bundle(place.settings).pipeline  # noqa: B018
    assert not attacked.mark.exists()


@pytest.mark.parametrize("how", ["environment", "file"])
def test_outside_a_workspace_the_digest_comes_from_the_environment(
    place, monkeypatch, tmp_path, how
):
    built = place.register().bundle(place.settings)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        BundleError,
        match="code of its own .wspkg.features.features., and nothing says which digest",
    ):
        Bundle(built.path).pipeline  # noqa: B018
    (tmp_path / "digest").write_text(f"{built.digest}\n")
    if how == "file":
        monkeypatch.setenv("MLOPS_NB_BUNDLE_DIGEST_FILE", str(tmp_path / "digest"))
    else:
        monkeypatch.setenv("MLOPS_NB_BUNDLE_DIGEST", built.digest)
    assert (
        Bundle(built.path).pipeline.predict_proba(built.signature.conform(ROWS))[:, 1]
        == place.fitted.probability(ROWS)
    ).all()
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


def test_the_champions_probabilities_are_in_the_candidates_order_of_the_labels(place):
    "A champion may have been trained with the other label as positive."
    place.register()
    deployed(place.settings, champion="1")
    other = OBJECTIVE.model_copy(update={"positive": "No"})
    view = partial(champion_scores, "m@champion", ROWS, settings=place.settings)
    positive = place.fitted.probability(ROWS)
    turned = Binary(labels=("Yes", "No"))
    for predictions in (view(other), view(other, task=turned)):
        assert predictions.positive == pytest.approx(1 - positive)
        assert predictions.labels == place.fitted.predict(ROWS).labels


@pytest.mark.parametrize(
    "task, objective, sentence",
    [
        (Binary(labels=("stays", "leaves")), {}, "expected binary of stays or leaves, got binary"),
        (Multiclass(labels=("No", "Yes", "Perhaps")), {}, "expected multiclass of No or Yes or P"),
        (Regression(), {"positive": None, "task": "regression"}, "expected regression of a finite"),
        (None, {"positive": None, "task": "regression"}, "got binary of No or Yes"),
    ],
)
def test_a_champion_of_another_task_is_not_compared_with(place, task, objective, sentence):
    place.register()
    deployed(place.settings, champion="1")
    now = OBJECTIVE.model_copy(update=objective)
    with pytest.warns(UserWarning, match=f"the champion is not compared with: .*{sentence}"):
        view = champion_scores("m@champion", ROWS, now, task=task, settings=place.settings)
    assert view is None


def test_a_champion_without_a_label_of_the_target_is_not_compared_with(place):
    place.register()
    deployed(place.settings, champion="1")
    rows = ROWS.with_columns(y=pl.lit("Perhaps"))
    now = OBJECTIVE.model_copy(update={"positive": None, "task": None})
    with pytest.warns(UserWarning, match="not compared with: .*expected No or Yes, got 'Perhaps'"):
        assert champion_scores("m@champion", rows, now, settings=place.settings) is None


# -- tasks -----------------------------------------------------------------------------------------

ISLANDS = ROWS.with_columns(
    y=pl.Series(["A" if i % 7 < 2 else "B" if i % 7 < 5 else "C" for i in range(60)])
)
PRICES = ROWS.with_columns(y=pl.col("x") * 100.0 + pl.col("id"))
COSTS = {"B": {"A": 100.0, "C": 100.0}}


def of_task(place, rows, estimator, **fields):
    "Register a candidate of another task. Return its version, and what was fitted."
    question = {"name": "m", "question": "?", "target": "y", "key": "id"}
    objective = Objective(**question, **fields)
    fitted = fit(rows, objective, Candidate("other", estimator), features="wspkg.features.features")
    with tracking.start_run(place.settings, name="workflow"):
        report = tracking.log_folder(
            place.settings.root / "made", "report", settings=place.settings
        )
        candidate = fitted.save(place.settings)
    version = place.register(candidate=candidate, report_uri=report, objective=objective)
    return version, fitted


def test_a_multiclass_bundle_has_its_labels_costs_and_predictions(place, monkeypatch):
    version, fitted = of_task(place, ISLANDS, LogisticRegression(), task="multiclass", costs=COSTS)
    built = version.bundle(place.settings)
    predictions = built.predict(ISLANDS)
    assert (built.task.kind, built.labels) == ("multiclass", ("A", "B", "C"))
    assert predictions.scores == pytest.approx(fitted.predict(ISLANDS).scores)
    assert set(predictions.labels) == {"B"}, "a missed B costs more than any other mistake"
    details = events.newest(place.settings.events, "registered", version.ref)["details"]
    assert (details["task"], details["labels"]) == ("multiclass", ["A", "B", "C"])
    monkeypatch.chdir(place.settings.root)
    answer = mlflow.pyfunc.load_model("models:/m/1").predict(ISLANDS.drop("y", "id").to_pandas())
    assert list(answer) == [
        "prediction",
        "probability",
        "probability_A",
        "probability_B",
        "probability_C",
    ]
    assert (answer["probability"] == answer["probability_B"]).all()
    assert set(answer["prediction"]) == {"B"}


def test_a_regression_bundle_predicts_numbers_with_intervals(place, monkeypatch):
    version, fitted = of_task(place, PRICES, LinearRegression(), task="regression")
    built = version.bundle(place.settings)
    predictions = built.predict(PRICES)
    assert (built.task.kind, built.labels) == ("regression", ())
    assert predictions.numbers == pytest.approx(fitted.predict(PRICES).numbers)
    assert (predictions.low < predictions.numbers).all()
    monkeypatch.chdir(place.settings.root)
    answer = mlflow.pyfunc.load_model("models:/m/1").predict(PRICES.drop("y", "id").to_pandas())
    assert list(answer) == ["prediction", "low", "high"]
    assert list(answer["high"]) == pytest.approx(predictions.high.tolist())


def test_mlflow_predicts_classes_in_a_clean_process(place, tmp_path):
    version, fitted = of_task(place, ISLANDS, LogisticRegression(), task="multiclass")
    built = version.bundle(place.settings)
    ISLANDS.drop("y", "id").write_parquet(tmp_path / "rows.parquet")
    code = f"""
import json, mlflow, pandas as pd
rows = pd.read_parquet({str(tmp_path / "rows.parquet")!r})
answer = mlflow.pyfunc.load_model({str(built.path)!r}).predict(rows)
print(json.dumps(answer.to_dict("list")))
"""
    env = os.environ | {"MLOPS_NB_BUNDLE_DIGEST": built.digest}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["prediction"] == fitted.predict(ISLANDS).labels


def test_a_bundle_without_code_of_its_own_needs_no_digest(place, tmp_path, monkeypatch):
    with tracking.start_run(place.settings, name="plain"):
        plain = fit(ROWS, OBJECTIVE, Candidate("logistic", LogisticRegression())).save(
            place.settings
        )
    built = place.register(candidate=plain).bundle(place.settings)
    monkeypatch.chdir(tmp_path)
    assert Bundle(built.path).pipeline.predict_proba(built.signature.conform(ROWS)).shape == (60, 2)


def test_a_version_without_its_event_is_not_loaded(place, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(events, "record", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError):
            place.register()
    version = resolve("m/1", settings=place.settings)
    with pytest.raises(BundleError, match="m/1 has no `registered` event"):
        version.bundle(place.settings)
    place.register()
    assert version.bundle(place.settings).verify().digest == version.tags["bundle"]


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
from mlops_nb.models.bundle import Bundle
Bundle({str(built.path)!r}, digest={built.digest!r}).verify().pipeline
import wspkg.features
print(wspkg.features.__file__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
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
    else:
        os.mkfifo(path / "library/pipe.py")
    with pytest.raises(BundleError, match="is a link or a special file, expected plain files only"):
        version.bundle(place.settings).verify()


def test_what_was_checked_is_what_is_used(place):
    "No file is read again after its hash was taken."
    built = place.register().bundle(place.settings).verify()
    for name in (
        "model.skops",
        "objective.json",
        "candidate.json",
        "lineage.json",
        "library/wspkg/features.py",
    ):
        (built.path / name).write_bytes(b"changed after the check")
    assert (
        built.pipeline.predict_proba(built.signature.conform(ROWS))[:, 1]
        == place.fitted.probability(ROWS)
    ).all()
    assert built.objective == OBJECTIVE and built.labels == ("No", "Yes")
    assert "changed" not in (built.library / "wspkg/features.py").read_text()


def test_a_bundle_that_is_resealed_while_it_is_read_is_refused(place, monkeypatch):
    "Whoever vouched for the first manifest did not vouch for the second."
    monkeypatch.chdir(place.settings.root)
    built = Bundle(place.register().bundle(place.settings).path)
    assert built.trusted
    (built.path / "lineage.json").write_text('{"package": "evil"}')
    seal(built.path)
    with pytest.raises(BundleError, match="lineage.json was changed"):
        built.verify()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "has no digest and files"),
        ('{"digest": "0", "files": []}', "has no digest and files"),
    ],
)
def test_a_manifest_that_is_none_is_refused_in_words(place, text, says):
    version = place.register()
    (version.bundle(place.settings).path / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=says):
        version.bundle(place.settings).verify()


def test_a_replica_loads_what_was_registered(place):
    version = place.register()
    desired_state, state = applications.target(version.ref, settings=place.settings)
    served = Versions(place.settings, "m", state.library, fixed=state).traffic.champion
    predictions = served.predict(served.signature.frame(ROWS.select("x", "c").to_dicts()))
    assert predictions.positive == pytest.approx(place.fitted.probability(ROWS))
    assert Versions(place.settings, "m", state.library, fixed=state).traffic.labels == ["No", "Yes"]


def test_what_cannot_be_loaded_is_not_registered(place, tmp_path):
    with pytest.raises(TrainingError, match="names wspkg.features.features"):
        place.register(
            settings=place.settings.model_copy(
                update={
                    "workspace": place.settings.workspace.model_copy(update={"package": "other"})
                }
            )
        )
    with pytest.raises(RegistryError, match="letters, digits"):
        place.register("a/b")
    with pytest.raises(RegistryError, match="expected runs:/"):
        place.register(candidate=str(tmp_path))
    with pytest.raises(TrackingError, match="no run"):
        place.register(candidate="runs:/nope/candidate")
    with pytest.raises(BundleError, match="two files are called"):
        place.register(notebooks=[place.notebook, place.notebook])
    assert versions("m", settings=place.settings) == []


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("m/9", "no model m/9: there is m/1 = m@champion"),
        ("m@challenger", "there is m/1"),
        ("n/1", "the models are m"),
        ("m", "expected NAME/VERSION or NAME@ALIAS"),
        ("m@3", "expected NAME/VERSION"),
        ("m/1/2", "expected NAME"),
    ],
)
def test_a_reference_that_leads_nowhere_says_what_there_is(place, ref, says):
    place.register()
    deployed(place.settings, champion="1")
    with pytest.raises(RegistryError, match=says):
        resolve(ref, settings=place.settings)


def deployed(settings, *, champion, challenger=None, share=10):
    "Record a decision about the endpoint `m`, and do nothing about it."
    shares = {champion: 100} if challenger is None else {champion: 100 - share, challenger: share}
    return events.record(
        settings.events,
        "deployed",
        "m",
        by="ann",
        versions=shares,
        bundles={},
        champion=champion,
        challenger=challenger,
    )


def test_a_decision_needs_a_version_and_a_person(place):
    settings = place.settings
    place.register()
    with pytest.raises(RegistryError, match="there is m/1"):
        approve("m/2", settings=settings, by="ann")
    with pytest.raises(ApprovalError, match="name of the person"):
        approve("m/1", settings=settings, by=" ")
    with pytest.raises(ApprovalError, match="name of the person"):
        approve("m/1", settings=settings, by="rule", despite="the rule has no reasons")
    with pytest.raises(ApprovalError, match="name of the person"):
        approve("m/1", settings=settings, by=" Rule ")
    decided = approve("model:m/1", note="checked", settings=settings, by="ann")
    newest = approval("m/1", settings=settings)
    assert newest == decided
    assert (newest.kind, newest.by, newest.note) == ("approved", "ann", "checked")
    event = events.newest(settings.events, "approved", "m/1")
    assert (event["id"], event["details"]["note"]) == (newest.id, "checked")
    assert "<h4>m/1 approved</h4>" in newest._repr_html_()
    assert newest.user == events.user(), (
        "what the operating system says, beside what the person says"
    )


def accepted(settings, ref, *, passed=True, bundle=None):
    "Record acceptance tests of a version."
    checks = [
        {"check": "latency", "passed": passed, "found": "p95 120 ms", "demanded": "p95 ≤ 100 ms"}
    ]
    digest = bundle or resolve(ref, settings=settings).tags["bundle"]
    return events.record(
        settings.events,
        "accepted" if passed else "failed_acceptance",
        ref,
        by="workflow",
        checks=checks,
        bundle=digest,
    )


def report_of(place, *checks, objective=None):
    "A test report with these checks (name, passed), kept with a run: its address."
    rows = [{"name": n, "expected": "at least 0.8", "came": "0.7", "passed": p} for n, p in checks]
    folder = place.settings.root / "report"
    folder.mkdir(exist_ok=True)
    report = {"checks": rows, "passed": True} | (
        {"objective": objective.model_dump(mode="json")} if objective else {}
    )
    (folder / "report.json").write_text(json.dumps(report))
    with tracking.start_run(place.settings, name="workflow"):
        return tracking.log_folder(
            folder, f"report-{len(checks)}-{all(p for _, p in checks)}", settings=place.settings
        )


def test_a_rejection_is_final(place):
    "Nobody approves the version again. The same model, registered again, needs a person."
    settings, report = place.settings, report_of(place, ("roc_auc", True))
    place.register(report_uri=report)
    accepted(settings, "m/1")
    assert approval("m/1", settings=settings) is None
    reject("m/1", note="too old", settings=settings, by="bob")
    final = (
        r"m/1 was rejected by bob \(too old\), and a rejection is final. To go on, "
        "register a new version"
    )
    for decide in (
        lambda: approve("m/1", settings=settings),
        lambda: approve("m/1", settings=settings, by="ann"),
        lambda: approve("m/1", despite="I know better", settings=settings, by="ann"),
    ):
        with pytest.raises(ApprovalError, match=final):
            decide()
    assert approval("m/1", settings=settings).kind == "rejected"
    assert place.register(report_uri=report).ref == "m/2", "the same model under a new number"
    assert place.register(report_uri=report).ref == "m/2"
    accepted(settings, "m/2")
    with pytest.raises(
        ApprovalError,
        match="m/2 is the same model as m/1, which was rejected by bob: only a person",
    ):
        approve("m/2", settings=settings)
    assert place.register(report_uri=report, notebooks=[]).ref == "m/3", (
        "another bundle of the same model"
    )
    accepted(settings, "m/3")
    with pytest.raises(ApprovalError, match="m/3 is the same model as m/1"):
        approve("m/3", settings=settings)
    approve("m/2", note="a slip of the mouse", settings=settings, by="bob")
    assert approval("m/2", settings=settings).kind == "approved"


@pytest.mark.parametrize("seed", ["5", "6"])
def test_a_rejected_model_that_is_trained_again_alike_waits_for_a_person(place, seed):
    "`mlops-nb run --force` gives the same model as another candidate in another run."
    settings, report = place.settings, report_of(place, ("roc_auc", True))
    for n, value in enumerate(("5", seed), 1):
        with tracking.start_run(settings, name="again") as run:
            tracking.mlflow_client(settings).log_param(run.info.run_id, "seed", value)
            place.candidate = place.fitted.save(settings)
        assert place.register(report_uri=report).ref == f"m/{n}"
        accepted(settings, f"m/{n}")
        if n == 1:
            reject("m/1", settings=settings, by="bob")
    if seed == "6":  # another model
        approve("m/2", settings=settings)
        return
    with pytest.raises(
        ApprovalError, match="m/2 is the same model as m/1, which was rejected by bob"
    ):
        approve("m/2", settings=settings)


@pytest.mark.parametrize("decide", [approve, partial(approve, by="ann")])
def test_acceptance_tests_that_fail_while_somebody_approves_are_not_overlooked(
    place, monkeypatch, decide
):
    settings, real = place.settings, approvals.acceptance
    place.register(report_uri=report_of(place, ("roc_auc", True)))
    accepted(settings, "m/1")

    def failed_meanwhile(ref, digest, *, settings):
        trial = real(ref, digest, settings=settings)
        events.record(
            settings.events, "failed_acceptance", ref, by="test", bundle=digest, checks=[]
        )
        return trial

    monkeypatch.setattr(approvals, "acceptance", failed_meanwhile)
    with pytest.raises(EventConflict, match="m/1 was failed_acceptance meanwhile"):
        decide("m/1", settings=settings)
    assert approval("m/1", settings=settings) is None


def test_a_rejection_after_an_approval_counts_also_if_they_race(place, monkeypatch):
    settings, real = place.settings, approvals.decision
    place.register()
    approve("m/1", settings=settings, by="ann")

    def rejected_meanwhile(ref, *, settings):
        before = real(ref, settings=settings)
        monkeypatch.setattr(approvals, "decision", real)
        reject(ref, settings=settings, by="bob")
        return before

    monkeypatch.setattr(approvals, "decision", rejected_meanwhile)
    with pytest.raises(EventConflict, match="rejected meanwhile by bob"):
        approve("m/1", settings=settings, by="carol")
    assert approval("m/1", settings=settings).kind == "rejected"


def test_a_report_of_another_candidate_registers_nothing(place):
    report = report_of(place, ("roc_auc", True))
    run = origin.run_of(report)
    tracking.mlflow_client(place.settings).log_param(run, "candidate", "runs:/0ther/candidate")
    with pytest.raises(
        RegistryError,
        match=f"{report} is of runs:/0ther/candidate, expected one of {place.candidate}",
    ):
        place.register(report_uri=report)
    assert versions("m", settings=place.settings) == []


@pytest.mark.parametrize(
    ("checks", "trial", "says"),
    [
        (
            [("roc_auc", True), ("gap", False)],
            {},
            "m/1 failed: test report, gap: expected at least 0.8, got 0.7",
        ),
        ([], {}, "has no checks"),
        ([("roc_auc", True)], None, "has no acceptance tests"),
        (
            [("roc_auc", True)],
            {"passed": False},
            "m/1 failed: acceptance, latency: expected p95 ≤ 100 ms, got p95 120 ms",
        ),
        ([("roc_auc", True)], {"bundle": "another"}, "has no acceptance tests"),
    ],
)
def test_the_rule_approves_only_what_was_tested_and_passed(place, checks, trial, says):
    "What the report says under `passed` does not count, nor do tests of another bundle."
    settings = place.settings
    place.register(report_uri=report_of(place, *checks), despite="to see what the rule does")
    if trial is not None:
        accepted(settings, "m/1", **trial)
    with pytest.raises(ApprovalError, match=says):
        approve("m/1", settings=settings)
    assert approval("m/1", settings=settings) is None


def test_the_rule_approves_once_what_passed(place):
    settings = place.settings
    place.register(report_uri=report_of(place, ("roc_auc", True)))
    trial = accepted(settings, "m/1")
    first = approve("m/1", settings=settings)
    assert approve("m/1", settings=settings) == first
    decision = approval("m/1", settings=settings)
    assert (decision.by, decision.acceptance) == ("rule", trial)


@pytest.mark.parametrize(
    ("objective", "setting", "waits"),
    [
        ("rule", "rule", False),
        ("person", "rule", True),
        ("rule", "person", True),
        ("person", "person", True),
    ],
)
def test_who_approves_is_what_the_registered_objective_says_or_stricter(
    place, monkeypatch, objective, setting, waits
):
    settings, judged = place.settings, OBJECTIVE.model_copy(update={"approval": objective})
    place.register(report_uri=report_of(place, ("roc_auc", True)), objective=judged)
    accepted(settings, "m/1")
    monkeypatch.setenv("MLOPS_NB__DEPLOY__APPROVAL", setting)
    settings = load_settings(settings.root)
    says = pytest.raises(
        WaitingForPerson, match="m/1 waits for a person, as .*, then `mlops-nb run`"
    )
    with says if waits else nullcontext() as error:
        approve("m/1", settings=settings)
    if waits:
        assert error.value.command == "mlops-nb approve m/1 --by NAME"
        approve("m/1", by="ann", settings=settings)
        assert approve("m/1", settings=settings).by == "ann", "the run goes on"


def test_an_approval_by_the_rule_waits_if_a_person_has_to_decide_since(place, monkeypatch):
    settings = place.settings
    place.register(report_uri=report_of(place, ("roc_auc", True)))
    accepted(settings, "m/1")
    approve("m/1", settings=settings)
    monkeypatch.setenv("MLOPS_NB__DEPLOY__APPROVAL", "person")
    strict = load_settings(settings.root)
    with pytest.raises(WaitingForPerson, match="as .deploy. approval in settings.ini says"):
        approve("m/1", settings=strict)


def test_failed_acceptance_tests_are_no_reason_to_wait(place):
    "There is nothing to decide, unless a person wants it in spite of them."
    settings, judged = place.settings, OBJECTIVE.model_copy(update={"approval": "person"})
    place.register(report_uri=report_of(place, ("roc_auc", True)), objective=judged)
    accepted(settings, "m/1", passed=False)
    with pytest.raises(ApprovalError, match="m/1 failed: acceptance, latency") as error:
        approve("m/1", settings=settings)
    assert not isinstance(error.value, WaitingForPerson)


def test_a_check_that_could_not_decide_waits_for_a_person(place):
    settings = place.settings
    place.register(report_uri=report_of(place, ("roc_auc", True), ("gap", None)))
    registered = events.newest(settings.events, "registered", "m/1")["details"]
    assert registered["passed"] is False, "nobody may read it as passed"
    accepted(settings, "m/1")
    with pytest.raises(WaitingForPerson, match="its test could not decide .gap: expected at least"):
        approve("m/1", settings=settings)
    assert approval("m/1", settings=settings) is None
    decision = approve("m/1", by="ann", settings=settings)
    assert (decision.despite, decision.failed) == ("", ())
    assert decision.undecided == ("gap: expected at least 0.8, got 0.7",)
    assert approve("m/1", settings=settings) == decision


def test_what_failed_needs_a_reason_also_beside_what_is_undecided(place):
    settings = place.settings
    report = report_of(place, ("roc_auc", False), ("gap", None))
    with pytest.raises(RegistryError, match="failed its test.*roc_auc") as error:
        place.register(report_uri=report)
    assert "gap" not in str(error.value)
    place.register(report_uri=report, despite="a pilot")
    accepted(settings, "m/1")
    with pytest.raises(ApprovalError, match="m/1 failed: test report, roc_auc.*--despite REASON"):
        approve("m/1", by="ann", settings=settings)
    decision = approve("m/1", by="ann", despite="a pilot", settings=settings)
    assert len(decision.failed) == len(decision.undecided) == 1


def test_the_objective_may_say_that_what_is_undecided_passes(place, monkeypatch):
    monkeypatch.setattr(approvals, "undecided_policy", lambda objective: "pass")
    settings = place.settings
    place.register(report_uri=report_of(place, ("roc_auc", True), ("gap", None)))
    accepted(settings, "m/1")
    decision = approve("m/1", settings=settings)
    assert decision.by == "rule" and len(decision.undecided) == 1


def test_the_objective_may_say_that_what_is_undecided_fails(place, monkeypatch):
    monkeypatch.setattr(approvals, "undecided_policy", lambda objective: "fail")
    settings = place.settings
    report = report_of(place, ("roc_auc", True), ("gap", None))
    with pytest.raises(RegistryError, match="failed its test.*gap"):
        place.register(report_uri=report)
    with pytest.raises(RegistryError, match="failed its test.*gap"):
        registry.tested(report, OBJECTIVE, settings=settings)
    place.register(report_uri=report, despite="a pilot")
    accepted(settings, "m/1")
    for options in ({}, {"by": "ann"}):
        with pytest.raises(ApprovalError, match="m/1 failed: test report, gap") as error:
            approve("m/1", settings=settings, **options)
        assert not isinstance(error.value, WaitingForPerson)


def test_an_objective_without_a_policy_reads_as_the_rule():
    old = {k: v for k, v in OBJECTIVE.model_dump(mode="json").items() if k != "approval"}
    assert Objective.model_validate(old).approval == "rule"


def test_a_person_must_say_why_to_approve_what_failed(place):
    settings = place.settings
    report = report_of(place, ("roc_auc", True), ("gap", False))
    with pytest.raises(RegistryError, match="failed its test.*gap: expected at least 0.8, got 0.7"):
        place.register(report_uri=report)
    assert versions("m", settings=settings) == []
    place.register(report_uri=report, despite="to compare the pilot with it")
    event = events.newest(settings.events, "registered", "m/1")["details"]
    assert (event["passed"], event["despite"]) == (False, "to compare the pilot with it")
    accepted(settings, "m/1", passed=False)
    with pytest.raises(
        ApprovalError, match="test report, gap: .*; acceptance, latency: .*--despite REASON"
    ):
        approve("m/1", settings=settings, by="ann")
    approve("m/1", despite="only for the pilot", settings=settings, by="ann")
    decision = approval("m/1", settings=settings)
    assert decision.despite == "only for the pilot" and len(decision.failed) == 2


def test_the_verdict_is_read_from_the_report(place):
    for checks, says in (
        ([("gap", False)], "gap: expected at least 0.8, got 0.7"),
        ([], "it has no checks"),
    ):
        with pytest.raises(RegistryError, match=says):
            registry.tested(report_of(place, *checks), OBJECTIVE, settings=place.settings)
    assert registry.tested(report_of(place, ("gap", True)), OBJECTIVE, settings=place.settings)[
        "checks"
    ]
    laxer = OBJECTIVE.model_copy(update={"accept": {"calibration_error": 0.9}, "approval": "rule"})
    report = report_of(place, ("gap", True), ("roc_auc", True), objective=laxer)
    for use in (
        lambda: registry.tested(report, OBJECTIVE, settings=place.settings),
        lambda: place.register(report_uri=report),
    ):
        with pytest.raises(RegistryError, match="judges by another objective: accept differ"):
            use()
    assert versions("m", settings=place.settings) == []


def test_a_version_with_an_empty_report_is_not_announced_as_passed(place):
    place.register()
    assert events.newest(place.settings.events, "registered", "m/1")["details"]["passed"] is False


def test_an_alias_moves_and_goes(place):
    settings = place.settings
    place.register()
    place.register(dataset="m@4")
    set_alias("m/1", "best", settings=settings)
    set_alias("m/2", "best", settings=settings)
    assert (
        resolve("m@best", settings=settings).ref == "m/2"
        and resolve("m/1", settings=settings).aliases == ()
    )
    set_alias("m/2", "best", remove=True, settings=settings)
    with pytest.raises(RegistryError):
        resolve("m@best", settings=settings)
    with pytest.raises(RegistryError, match="champion is a role at an endpoint"):
        set_alias("m/2", "champion", settings=settings)


def test_the_champion_is_what_the_newest_event_says_not_an_alias(place):
    settings = place.settings
    for dataset in ("m@3", "m@4", "m@5"):
        place.register(dataset=dataset)
    tracking.mlflow_client(settings).set_registered_model_alias("m", "champion", "3")
    with pytest.raises(RegistryError, match="no model m@champion"):
        resolve("m@champion", settings=settings)
    deployed(settings, champion="1", challenger="2", share=60)
    assert resolve("m@champion", settings=settings).ref == "m/1", (
        "the greater share makes no champion"
    )
    assert resolve("m@challenger", settings=settings).ref == "m/2"
    assert resolve("m/3", settings=settings).aliases == ()
    events.record(settings.events, "deployed", "m", by="ann", versions={"1": 40, "3": 60})
    assert resolve("m@champion", settings=settings).ref == "m/3", (
        "an event of an earlier release names no roles"
    )


def test_mlflows_aliases_are_repaired_from_the_events(place):
    settings = place.settings
    for dataset in ("m@3", "m@4"):
        place.register(dataset=dataset)
    for name, version in (("champion", "2"), ("challenger", "1"), ("best", "1")):
        tracking.mlflow_client(settings).set_registered_model_alias("m", name, version)
    event = deployed(settings, champion="1", challenger="2")
    assert not roles.mirrored("m", event, settings=settings)
    roles.mirror("m", settings=settings)
    assert aliases(settings, "m") == {"champion": "1", "challenger": "2", "best": "1"}
    assert roles.mirrored("m", event, settings=settings)
    deployed(settings, champion="2")
    roles.mirror("m", settings=settings)
    assert aliases(settings, "m") == {"champion": "2", "best": "1"}, "no challenger, no alias"


def test_a_slow_mirror_does_not_undo_a_later_one(place, monkeypatch):
    "Another machine decides and mirrors between the reading and the writing of this one."
    settings, real = place.settings, roles._set_aliases
    for dataset in ("m@3", "m@4"):
        place.register(dataset=dataset)
    deployed(settings, champion="1")

    def overtaken(client, name, wanted):
        monkeypatch.setattr(roles, "_set_aliases", real)
        deployed(settings, champion="2")
        real(client, name, {"champion": "2"})
        real(client, name, wanted)

    monkeypatch.setattr(roles, "_set_aliases", overtaken)
    roles.mirror("m", settings=settings)
    assert aliases(settings, "m") == {"champion": "2"}


def test_a_death_between_decision_and_alias_is_mended_by_a_look_at_the_status(place):
    settings = place.settings
    for dataset in ("m@3", "m@4"):
        place.register(dataset=dataset)
    deployed(settings, champion="1", challenger="2")
    roles.mirror("m", settings=settings)
    deployed(settings, champion="2")  # and here the process died
    assert aliases(settings, "m") == {"champion": "1", "challenger": "2"}
    overview.state(settings)
    assert aliases(settings, "m") == {"champion": "2"}


def test_outputs_do_not_change_a_notebooks_hash(tmp_path):
    for name, outputs in (("a.ipynb", []), ("b.ipynb", [{"text": "1"}])):
        cells = [
            {"cell_type": "code", "source": ["x"], "outputs": outputs},
            {"cell_type": "markdown", "source": [name]},
        ]
        (tmp_path / name).write_text(json.dumps({"cells": cells}))
    assert code_hash(tmp_path / "a.ipynb") == code_hash(tmp_path / "b.ipynb")
    assert packing.pins(tmp_path, "no-such-package").count("mlops_nb==") == 1
