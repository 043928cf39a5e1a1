"""How often does a quiet window raise an alarm? Simulated where chance is hardest to judge.

`sparse`: windows of 100 to 1,000 rows whose six columns (numbers and categories) are 90, 98 and
99.5 % null, against a reference of 3,000 rows of the same kind; the chance of any alarm is to be at
most 1 %. `new categories`: the question of unknown categories alone, for equally frequent and for
Zipf-like categories, at p < 0.01 and at p < 0.00025. The ratio of a line is the lower end of the
rate's 99 % interval (Clopper-Pearson) to the promised rate, so that a line is above 1 only if more
than chance speaks against it. `power`: the share of windows in which a real change is found: a
column of 90 % nulls that has none, or only nulls, any more, and 5 % of 200 rows in a new category.
`binary`, `multiclass`, `regression`: whole windows of 300 rows, all labelled, judged against a
model's reference profile and test report (2,000 rows each): the chance of any alarm is to be at
most 1 %; and the power for a model whose answers are a coin's, or whose errors have doubled.
`--quick`: a tenth of the draws.
"""

import harness

SIGNIFICANCE = 0.01
NULLS, WINDOWS = (0.9, 0.98, 0.995), (100, 300, 1000)
KINDS = {"200 alike": 200, "2000 alike": 2000, "300, Zipf": 300, "2000, Zipf": 2000}


def sparse(rng, rows: int):
    "Rows of two columns for each share of nulls."
    import numpy as np
    import polars as pl

    columns = {}
    for share in NULLS:
        words = rng.choice(["a", "b", "c"], rows, p=[0.7, 0.2, 0.1])
        for name, values in {"number": rng.normal(size=rows), "word": words}.items():
            kept = pl.Series(rng.random(rows) >= share)
            columns[f"{name} {share}"] = pl.select(
                pl.when(kept).then(pl.Series(np.asarray(values)))
            ).to_series()
    return pl.DataFrame(columns)


def alarms(window, reference) -> list[dict]:
    "What a window's questions about its inputs answer."
    from mlops_nb.data.profiles.comparison import drift
    from mlops_nb.data.profiles.profiling import profile
    from mlops_nb.service.monitoring import inputs
    from mlops_nb.service.monitoring.questions import corrected

    questions = [
        *inputs.drifting(drift(profile(window), reference)),
        *inputs.missing(window, reference),
        *inputs.outside(window, reference),
        *inputs.unseen(window, reference),
    ]
    return corrected(questions, SIGNIFICANCE).filter("alarm").to_dicts()


def sparse_rates(rng, draws: int) -> dict[str, tuple[int, int]]:
    "False alarms and windows, by rows of the window."
    from mlops_nb.data.profiles.profiling import profile

    counts = {}
    for rows in WINDOWS:
        false = sum(
            bool(alarms(sparse(rng, rows), profile(sparse(rng, 3000)))) for _ in range(draws)
        )
        counts[f"sparse, {rows} rows"] = (false, draws)
    return counts


def categories(rng, kind: str, rows: int) -> dict[str, int]:
    "Rows by category."
    import numpy as np

    number = KINDS[kind]
    weights = 1 / np.arange(1, number + 1) ** 1.1 if "Zipf" in kind else np.ones(number)
    values, counts = np.unique(
        rng.choice(number, rows, p=weights / weights.sum()), return_counts=True
    )
    return dict(zip(map(str, values), map(int, counts), strict=True))


def category_rates(rng, draws: int) -> dict[str, tuple[float, int, int]]:
    "The promised rate, false alarms and windows, by kind of categories."
    from mlops_nb.service.monitoring.novelty import newness

    lines = {}
    for kind in KINDS:
        p = [
            newness(categories(rng, kind, 300), categories(rng, kind, 3000), 3000)
            for _ in range(draws)
        ]
        for level in (0.01, 0.00025):
            lines[f"new categories, {kind}, {level:g}"] = (level, sum(x < level for x in p), draws)
    return lines


def power(rng, draws: int) -> dict[str, float]:
    "Shares of windows in which a real change is an alarm, or its p-value below 0.00025."
    import polars as pl

    from mlops_nb.data.profiles.profiling import profile
    from mlops_nb.service.monitoring.novelty import newness

    found = {"power, no nulls": 0, "power, only nulls": 0, "power, a new category": 0}
    column = "number 0.9"
    for _ in range(draws):
        window, reference = sparse(rng, 300), profile(sparse(rng, 3000))
        full = window.with_columns(pl.lit(0.5).alias(column))
        none = window.with_columns(pl.lit(None, pl.Float64).alias(column))
        found["power, no nulls"] += any(a["column"] == column for a in alarms(full, reference))
        found["power, only nulls"] += any(a["column"] == column for a in alarms(none, reference))
        here = categories(rng, "300, Zipf", 190) | {"new": 10}
        found["power, a new category"] += (
            newness(here, categories(rng, "300, Zipf", 3000), 3000) < 0.00025
        )
    return {name: count / draws for name, count in found.items()}


TASKS = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "rmse"}


def answered(rng, kind: str, rows: int, *, worse: bool = False):
    "A window of a model that is as good as it says, or, if it is worse, one that is not."
    import numpy as np
    import polars as pl

    from mlops_nb.science.task import Binary, Multiclass, Regression
    from mlops_nb.service.monitoring.window import Window

    x = rng.normal(size=rows)
    inputs = pl.DataFrame({"x": x, "group": rng.choice(["a", "b", "c"], rows)})
    if kind == "regression":
        task = Regression(half_width=1.645)
        truth = 10 * x + (2 if worse else 1) * rng.normal(size=rows)
        return Window(task, inputs, task.with_intervals(10 * x), truth)
    labels = ("No", "Yes") if kind == "binary" else ("A", "B", "C", "D")
    task = (Binary if kind == "binary" else Multiclass)(labels=labels)
    raw = np.exp(np.outer(x, np.linspace(-1.5, 1.5, len(labels))))
    scores = raw / raw.sum(axis=1, keepdims=True)
    truth = (scores.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    return Window(task, inputs, task.decided(scores), rng.permutation(truth) if worse else truth)


def verdict_alarms(rng, kind: str, *, worse: bool = False) -> list[dict]:
    "What a window of 300 labelled rows alarms about, for a model and a test split of its own."
    from mlops_nb.data.profiles.profiling import profile
    from mlops_nb.science.objective import Objective
    from mlops_nb.service.monitoring.checks import judge
    from mlops_nb.service.monitoring.fairness import group_values
    from mlops_nb.service.monitoring.performance import measured

    train, test = (answered(rng, kind, 2000) for _ in range(2))
    window, metric = answered(rng, kind, 300, worse=worse), TASKS[kind]
    objective = Objective(
        name="m", question="?", target="y", task=kind, metric=metric, protected=["group"]
    )
    report = {
        "rows": 2000,
        "metrics": {metric: measured(test, metric).model_dump()},
        "fairness": group_values(test, test, ("group",)).to_dicts(),
    }
    reference = profile(train.inputs).merge(profile(test.watched))
    return judge(window, window, reference, objective, report, significance=SIGNIFICANCE).alarms


def task_rates(rng, draws: int) -> dict[str, tuple[int, int]]:
    "False alarms and windows, by task."
    return {
        f"{kind}, whole windows": (
            sum(bool(verdict_alarms(rng, kind)) for _ in range(draws)),
            draws,
        )
        for kind in TASKS
    }


def task_power(rng, draws: int) -> dict[str, float]:
    "Shares of windows in which a worse model is an alarm of performance, by task."
    return {
        f"power, a worse model, {kind}": sum(
            any(a["kind"] == "performance" for a in verdict_alarms(rng, kind, worse=True))
            for _ in range(draws)
        )
        / draws
        for kind in TASKS
    }


def least(false: int, draws: int) -> float:
    "The lower end of the 99 % interval of a rate."
    from scipy.stats import binomtest

    return binomtest(false, draws).proportion_ci(0.99).low


def main() -> None:
    import numpy as np

    asked = harness.options(__doc__, leaves_out="nine tenths of the draws")
    rng, draws = np.random.default_rng(0), 200 if asked.quick else 2000
    rates = {name: (SIGNIFICANCE, *counts) for name, counts in sparse_rates(rng, draws).items()}
    rates |= category_rates(rng, draws * 5)
    tasks = task_rates(rng, draws)
    rates |= {name: (SIGNIFICANCE, *counts) for name, counts in tasks.items()}
    results = [
        harness.Result(f"false_alarms, {name}", least(false, n) / level, 1.0)
        for name, (level, false, n) in rates.items()
    ]
    results += [
        harness.Result(f"false_alarms, {name}", share, 0.9, higher=True)
        for name, share in (power(rng, draws // 4) | task_power(rng, draws // 10)).items()
    ]
    facts = {name: f"{false} of {n}" for name, (_, false, n) in rates.items()}
    harness.report(results, asked=asked, **facts)


if __name__ == "__main__":
    main()
