"What the registry lessons leave out: repeated and broken registrations, altered bundles, libraries, MLflow's own loaders."
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import mlflow
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression

from mlops_nb import approvals, bundle, cluster, events, pages, registry, roles, tracking
from mlops_nb.bundle import Bundle, BundleError, code_hash, seal
from mlops_nb.candidate import Candidate, TrainingError, fit
from mlops_nb.objective import Objective
from mlops_nb.profiles import profile
from mlops_nb.registry import (
    ApprovalError,
    RegistryError,
    approval,
    approve,
    approve_by_rule,
    register,
    reject,
    resolve,
    set_alias,
    versions,
)
from mlops_nb.settings import create, load

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
    deployed(place.settings, champion="1")
    with pytest.raises(RegistryError, match=says): resolve(ref, settings=place.settings)


def deployed(settings, *, champion, challenger=None, share=10):
    "Record a decision about the endpoint `m`, and do nothing about it."
    shares = {champion: 100} if challenger is None else {champion: 100 - share, challenger: share}
    return events.record(settings.events, "deployed", "m", by="ann", versions=shares, bundles={},
                         champion=champion, challenger=challenger)


def test_a_decision_needs_a_version_and_a_person(place):
    settings = place.settings
    place.register()
    with pytest.raises(RegistryError, match="there is m/1"): approve("m/2", "ann", settings=settings)
    with pytest.raises(ApprovalError, match="name of the person"): approve("m/1", " ", settings=settings)
    with pytest.raises(ApprovalError, match="name of the person"): approve("m/1", "rule", settings=settings)
    id_ = approve("model:m/1", "ann", "checked", settings=settings)
    newest = approval("m/1", settings=settings)
    assert (newest["id"], newest["kind"], newest["by"], newest["details"]["note"]) == (id_, "approved", "ann", "checked")
    assert newest["details"]["user"] == events.user(), "what the operating system says, beside what the person says"


def accepted(settings, ref, *, passed=True, bundle=None):
    "Record acceptance tests of a version."
    checks = [{"check": "latency", "passed": passed, "found": "p95 120 ms", "demanded": "p95 ≤ 100 ms"}]
    digest = bundle or resolve(ref, settings=settings).tags["bundle"]
    return events.record(settings.events, "accepted" if passed else "failed_acceptance", ref, by="workflow",
                         checks=checks, bundle=digest)


def report_of(place, *checks, objective=None):
    "A test report with these checks (name, passed), kept with a run: its address."
    found = [{"name": n, "expected": "at least 0.8", "came": "0.7", "passed": p} for n, p in checks]
    folder = place.settings.root / "report"
    folder.mkdir(exist_ok=True)
    report = {"checks": found, "passed": True} | ({"objective": objective.model_dump(mode="json")} if objective else {})
    (folder / "report.json").write_text(json.dumps(report))
    with tracking.start_run(place.settings, name="workflow"):
        return tracking.log_folder(folder, f"report-{len(checks)}-{all(p for _, p in checks)}", settings=place.settings)


def test_a_rejection_is_final(place):
    "Neither the rule nor a person approves the version again; registering it again gives one that a person may approve."
    settings, report = place.settings, report_of(place, ("roc_auc", True))
    place.register(report_uri=report)
    accepted(settings, "m/1")
    assert approval("m/1", settings=settings) is None
    reject("m/1", "bob", "too old", settings=settings)
    final = r"m/1 was rejected by bob \(too old\), and a rejection is final. To go on, register a new version"
    for decide in (lambda: approve_by_rule("m/1", settings=settings), lambda: approve("m/1", "ann", settings=settings),
                   lambda: approve("m/1", "ann", despite="I know better", settings=settings)):
        with pytest.raises(ApprovalError, match=final): decide()
    assert approval("m/1", settings=settings)["kind"] == "rejected"
    assert place.register(report_uri=report).ref == "m/2", "the same model under a new number"
    assert place.register(report_uri=report).ref == "m/2"
    accepted(settings, "m/2")
    with pytest.raises(ApprovalError, match="m/2 is the same model as m/1, which was rejected by bob: only a person"):
        approve_by_rule("m/2", settings=settings)
    assert place.register(report_uri=report, notebooks=[]).ref == "m/3", "another bundle of the same model"
    accepted(settings, "m/3")
    with pytest.raises(ApprovalError, match="m/3 is the same model as m/1"): approve_by_rule("m/3", settings=settings)
    approve("m/2", "bob", "a slip of the mouse", settings=settings)
    assert approval("m/2", settings=settings)["kind"] == "approved"


def test_a_rejection_after_an_approval_counts_also_if_they_race(place, monkeypatch):
    settings, real = place.settings, approvals.decision
    place.register()
    approve("m/1", "ann", settings=settings)

    def rejected_meanwhile(ref, settings):
        before = real(ref, settings)
        monkeypatch.setattr(approvals, "decision", real)
        reject(ref, "bob", settings=settings)
        return before
    monkeypatch.setattr(approvals, "decision", rejected_meanwhile)
    with pytest.raises(events.Conflict, match="rejected meanwhile by bob"): approve("m/1", "carol", settings=settings)
    assert approval("m/1", settings=settings)["kind"] == "rejected"


@pytest.mark.parametrize(("checks", "trial", "says"), [
    ([("roc_auc", True), ("gap", False)], {}, "m/1 failed: test report, gap: expected at least 0.8, got 0.7"),
    ([], {}, "has no checks"),
    ([("roc_auc", True)], None, "has no acceptance tests"),
    ([("roc_auc", True)], {"passed": False}, "m/1 failed: acceptance, latency: expected p95 ≤ 100 ms, got p95 120 ms"),
    ([("roc_auc", True)], {"bundle": "another"}, "has no acceptance tests")])
def test_the_rule_approves_only_what_was_tested_and_passed(place, checks, trial, says):
    "The report's own word `passed` counts for nothing, and nor do acceptance tests of another bundle."
    settings = place.settings
    place.register(report_uri=report_of(place, *checks))
    if trial is not None: accepted(settings, "m/1", **trial)
    with pytest.raises(ApprovalError, match=says): approve_by_rule("m/1", settings=settings)
    assert approval("m/1", settings=settings) is None


def test_the_rule_approves_once_what_passed(place):
    settings = place.settings
    place.register(report_uri=report_of(place, ("roc_auc", True)))
    trial = accepted(settings, "m/1")
    first = approve_by_rule("m/1", settings=settings)
    assert approve_by_rule("m/1", settings=settings) == first
    decision = approval("m/1", settings=settings)
    assert (decision["by"], decision["details"]["acceptance"]) == ("rule", trial)


@pytest.mark.parametrize(("objective", "setting", "waits"), [
    ("rule", "rule", False), ("person", "rule", True), ("rule", "person", True), ("person", "person", True)])
def test_who_approves_is_what_the_registered_objective_says_or_stricter(place, monkeypatch, objective, setting, waits):
    settings, judged = place.settings, OBJECTIVE.model_copy(update={"approval": objective})
    place.register(report_uri=report_of(place, ("roc_auc", True)), objective=judged)
    accepted(settings, "m/1")
    monkeypatch.setenv("MLOPS_NB__DEPLOY__APPROVAL", setting)
    settings = load(settings.root)
    says = pytest.raises(ApprovalError, match="m/1 waits for a person: `mlops-nb approve m/1 --by NAME`")
    with says if waits else nullcontext(): approve_by_rule("m/1", settings=settings)


def test_an_objective_without_a_policy_reads_as_the_rule():
    old = {k: v for k, v in OBJECTIVE.model_dump(mode="json").items() if k != "approval"}
    assert Objective.model_validate(old).approval == "rule"


def test_a_person_must_say_why_to_approve_what_failed(place):
    settings = place.settings
    place.register(report_uri=report_of(place, ("roc_auc", True), ("gap", False)))
    accepted(settings, "m/1", passed=False)
    with pytest.raises(ApprovalError, match="test report, gap: .*; acceptance, latency: .*--despite REASON"):
        approve("m/1", "ann", settings=settings)
    approve("m/1", "ann", despite="only for the pilot", settings=settings)
    details = approval("m/1", settings=settings)["details"]
    assert details["despite"] == "only for the pilot" and len(details["failed"]) == 2


def test_the_verdict_is_read_from_the_report(place):
    for checks, says in (([("gap", False)], "gap: expected at least 0.8, got 0.7"), ([], "it has no checks")):
        with pytest.raises(RegistryError, match=says):
            registry.tested(report_of(place, *checks), OBJECTIVE, settings=place.settings)
    assert registry.tested(report_of(place, ("gap", True)), OBJECTIVE, settings=place.settings)["checks"]
    laxer = OBJECTIVE.model_copy(update={"accept": {"calibration_error": 0.9}, "approval": "rule"})
    report = report_of(place, ("gap", True), ("roc_auc", True), objective=laxer)
    for use in (lambda: registry.tested(report, OBJECTIVE, settings=place.settings),
                lambda: place.register(report_uri=report)):
        with pytest.raises(RegistryError, match="judges by another objective: accept differ"): use()
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
    assert resolve("m@best", settings=settings).ref == "m/2" and resolve("m/1", settings=settings).aliases == ()
    set_alias("m/2", "best", remove=True, settings=settings)
    with pytest.raises(RegistryError): resolve("m@best", settings=settings)
    with pytest.raises(RegistryError, match="champion is a role at an endpoint"):
        set_alias("m/2", "champion", settings=settings)


def aliases(settings):
    "What those see who read MLflow."
    found = tracking.client(settings).get_registered_model("m").aliases
    return {alias: str(version) for alias, version in found.items()}


def test_the_champion_is_what_the_newest_event_says_not_an_alias(place):
    settings = place.settings
    for dataset in ("m@3", "m@4", "m@5"): place.register(dataset=dataset)
    tracking.client(settings).set_registered_model_alias("m", "champion", "3")
    with pytest.raises(RegistryError, match="no model m@champion"): resolve("m@champion", settings=settings)
    deployed(settings, champion="1", challenger="2", share=60)
    assert resolve("m@champion", settings=settings).ref == "m/1", "the greater share makes no champion"
    assert resolve("m@challenger", settings=settings).ref == "m/2"
    assert resolve("m/3", settings=settings).aliases == ()
    events.record(settings.events, "deployed", "m", by="ann", versions={"1": 40, "3": 60})
    assert resolve("m@champion", settings=settings).ref == "m/3", "an event of an earlier release names no roles"


def test_mlflows_aliases_are_repaired_from_the_events(place):
    settings = place.settings
    for dataset in ("m@3", "m@4"): place.register(dataset=dataset)
    for name, version in (("champion", "2"), ("challenger", "1"), ("best", "1")):
        tracking.client(settings).set_registered_model_alias("m", name, version)
    event = deployed(settings, champion="1", challenger="2")
    assert not roles.mirrored("m", event, settings)
    roles.mirror("m", settings)
    assert aliases(settings) == {"champion": "1", "challenger": "2", "best": "1"}
    assert roles.mirrored("m", event, settings)
    deployed(settings, champion="2")
    roles.mirror("m", settings)
    assert aliases(settings) == {"champion": "2", "best": "1"}, "no challenger, no alias"


def test_a_slow_mirror_does_not_undo_a_later_one(place, monkeypatch):
    "One reads the event, another machine decides and mirrors, and the first one writes what it had read."
    settings, real = place.settings, roles._mirror
    for dataset in ("m@3", "m@4"): place.register(dataset=dataset)
    deployed(settings, champion="1")

    def overtaken(client, name, wanted):
        monkeypatch.setattr(roles, "_mirror", real)
        deployed(settings, champion="2")
        real(client, name, {"champion": "2"})
        real(client, name, wanted)
    monkeypatch.setattr(roles, "_mirror", overtaken)
    roles.mirror("m", settings)
    assert aliases(settings) == {"champion": "2"}


def test_a_death_between_decision_and_alias_is_mended_by_a_look_at_the_status(place):
    settings = place.settings
    for dataset in ("m@3", "m@4"): place.register(dataset=dataset)
    deployed(settings, champion="1", challenger="2")
    roles.mirror("m", settings)
    deployed(settings, champion="2")  # and here the process died
    assert aliases(settings) == {"champion": "1", "challenger": "2"}
    pages.state(settings)
    assert aliases(settings) == {"champion": "2"}


def test_outputs_do_not_change_a_notebooks_hash(tmp_path):
    for name, outputs in (("a.ipynb", []), ("b.ipynb", [{"text": "1"}])):
        cells = [{"cell_type": "code", "source": ["x"], "outputs": outputs}, {"cell_type": "markdown", "source": [name]}]
        (tmp_path / name).write_text(json.dumps({"cells": cells}))
    assert code_hash(tmp_path / "a.ipynb") == code_hash(tmp_path / "b.ipynb")
    assert bundle.pins(tmp_path, "no-such-package").count("mlops_nb==") == 1
