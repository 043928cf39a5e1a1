"""The search of the Telco workflow against scikit-learn's own search and FLAML.

The task: three families (logistic regression, boosting, forest), 24 parameter sets, three folds of
four fifths of the rows, ROC AUC, then the best model fitted on all of them; judged on the last
fifth. All use two processes, and the clock starts once everything is imported. scikit-learn runs
`RandomizedSearchCV` with eight parameter sets for each family over a pipeline that a careful user
would write. FLAML runs in an environment of its own, over the same three families, and may use as
many seconds as our search took. The median of three runs, each with another seed.
`--quick`: one run of each.
"""

import json
import sys
import time
from statistics import median

import harness
import numpy as np
import polars as pl

DATA = harness.ROOT / "data" / "telco_churn.parquet"
TRIALS, FOLDS = 24, 3
FAMILIES = ("logistic", "boosting", "forest")


def telco() -> tuple[pl.DataFrame, pl.DataFrame]:
    "The rows to learn from, and those that judge."
    frame = pl.read_parquet(DATA)
    held_out = pl.int_range(len(frame)) % 5 == 0
    return frame.filter(~held_out), frame.filter(held_out)


def estimators(seed: int | None = None) -> dict:
    "The estimator of each family."
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    return {
        "logistic": LogisticRegression(max_iter=1000),
        "boosting": HistGradientBoostingClassifier(early_stopping=False, random_state=seed),
        "forest": RandomForestClassifier(n_estimators=150, random_state=seed),
    }


def ours(folder: str, seed: str) -> dict:
    "Seconds of `search` on a running cluster, and the ROC AUC of its model."
    from ray import tune
    from sklearn.metrics import roc_auc_score

    from mlops_nb import Candidate, Objective, search
    from mlops_nb.core.cluster import connect
    from mlops_nb.core.settings import load_settings

    spaces = {
        "logistic": {"C": tune.loguniform(1e-3, 1e2)},
        "boosting": {
            "learning_rate": tune.loguniform(0.02, 0.2),
            "max_iter": tune.randint(50, 200),
            "max_leaf_nodes": tune.randint(4, 32),
            "l2_regularization": tune.loguniform(1e-3, 10),
        },
        "forest": {"max_depth": tune.randint(4, 14), "min_samples_leaf": tune.randint(2, 30)},
    }
    candidates = [Candidate(name, model, spaces[name]) for name, model in estimators().items()]
    objective = Objective(
        name="churn",
        question="Which customers will leave?",
        target="churn",
        positive="Yes",
        key="customer_id",
        metric="roc_auc",
    )
    settings = load_settings(folder)
    connect(settings)
    train, test = telco()
    began = time.perf_counter()
    options = {"folds": FOLDS, "trials": TRIALS, "seed": int(seed), "settings": settings}
    result = search(train, objective, candidates, **options)
    seconds = time.perf_counter() - began
    auc = roc_auc_score(test["churn"] == "Yes", result.best.probability(test))
    fits = sum(len(scores) for scores in result.trials["scores"])
    return {"seconds": seconds, "auc": auc, "fits": fits}


def pandas_parts():
    "The same rows as pandas frames, without the key, and the target as 0 and 1."
    parts = []
    for frame in telco():
        inputs = frame.drop("churn", "customer_id").to_pandas()
        texts = inputs.select_dtypes(exclude="number").columns
        inputs[texts] = inputs[texts].astype("category")
        parts += [inputs, (frame["churn"] == "Yes").to_numpy().astype(int)]
    return parts


def scikit_learn(seed: str) -> dict:
    "Seconds of `RandomizedSearchCV` over the three families, and the ROC AUC of the best model."
    from scipy.stats import loguniform, randint
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import RandomizedSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    spaces = {
        "logistic": {"model__C": loguniform(1e-3, 1e2)},
        "boosting": {
            "model__learning_rate": loguniform(0.02, 0.2),
            "model__max_iter": randint(50, 200),
            "model__max_leaf_nodes": randint(4, 32),
            "model__l2_regularization": loguniform(1e-3, 10),
        },
        "forest": {"model__max_depth": randint(4, 14), "model__min_samples_leaf": randint(2, 30)},
    }
    texts = make_column_selector(dtype_include="category")
    numbers = make_column_selector(dtype_include="number")
    scaled = make_pipeline(SimpleImputer(), StandardScaler())
    one_hot = OneHotEncoder(handle_unknown="ignore")
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    preparation = {
        "logistic": make_column_transformer((one_hot, texts), (scaled, numbers)),
        "boosting": make_column_transformer((codes, texts), remainder="passthrough"),
        "forest": make_column_transformer((codes, texts), (SimpleImputer(), numbers)),
    }
    train, labels, test, actual = pandas_parts()
    began = time.perf_counter()
    searches = []
    for name, model in estimators(int(seed)).items():
        pipeline = make_pipeline(preparation[name], model)
        pipeline.steps[1] = ("model", model)
        search = RandomizedSearchCV(
            pipeline,
            spaces[name],
            n_iter=TRIALS // len(FAMILIES),
            scoring="roc_auc",
            n_jobs=2,
            refit=False,
            cv=StratifiedKFold(FOLDS, shuffle=True, random_state=int(seed)),
            random_state=int(seed),
        )
        searches.append(search.fit(train, labels))
    best = max(searches, key=lambda search: search.best_score_)
    fitted = best.estimator.set_params(**best.best_params_).fit(train, labels)
    seconds = time.perf_counter() - began
    auc = roc_auc_score(actual, fitted.predict_proba(test)[:, 1])
    return {"seconds": seconds, "auc": auc, "fits": TRIALS * FOLDS}


def flaml(seed: str, budget: str) -> dict:
    "The ROC AUC of the model that FLAML has after so many seconds."
    from flaml import AutoML
    from sklearn.metrics import roc_auc_score

    train, labels, test, actual = pandas_parts()
    automl = AutoML()
    began = time.perf_counter()
    automl.fit(
        train,
        labels,
        task="classification",
        metric="roc_auc",
        time_budget=float(budget),
        estimator_list=["lrl1", "histgb", "rf"],
        eval_method="cv",
        n_splits=FOLDS,
        n_jobs=2,
        seed=int(seed),
        verbose=0,
    )
    seconds = time.perf_counter() - began
    auc = roc_auc_score(actual, automl.predict_proba(test)[:, 1])
    return {"seconds": seconds, "auc": auc}


def timed(start: list[str], *words: object) -> dict:
    "What a process of this script measured."
    return json.loads(harness.run([*start, __file__, *map(str, words)]).out.splitlines()[-1])


def main() -> None:
    asked = harness.options(__doc__, leaves_out="two runs of three")
    runs = {"ours": [], "scikit-learn": [], "FLAML": []}
    flaml_python = harness.peer(
        "flaml[automl]==2.3.5", "scikit-learn<1.8", "pandas<3", "polars", "pyarrow"
    )
    with harness.workspace() as folder:
        for seed in range(1 if asked.quick else 3):
            us = timed([sys.executable], "ours", folder, seed)
            runs["ours"].append(us)
            runs["scikit-learn"].append(timed([sys.executable], "scikit_learn", seed))
            runs["FLAML"].append(timed(flaml_python, "flaml", seed, us["seconds"]))
    seconds = {name: median(run["seconds"] for run in runs[name]) for name in runs}
    auc = {name: float(np.mean([run["auc"] for run in runs[name]])) for name in runs}
    sklearn, flaml_ = "scikit-learn", "FLAML"
    harness.report(
        [
            harness.Result("search time", seconds["ours"] / seconds[sklearn], 1),
            harness.Result("search auc", auc["ours"] / auc[sklearn], 0.995, higher=True),
            harness.Result("search auc, FLAML", auc["ours"] / auc[flaml_], 0.995, higher=True),
        ],
        asked=asked,
        **{f"{name}, s": value for name, value in seconds.items()},
        **{f"{name}, ROC AUC": value for name, value in auc.items()},
        **{"fits of ours": runs["ours"][0]["fits"], "fits of theirs": TRIALS * FOLDS},
    )


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("ours", "scikit_learn", "flaml"):
        print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
    else:
        main()
