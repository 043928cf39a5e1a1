# %% [markdown]
# # The model

# %%
#| default_exp train

# %% tags=["parameters"]
from penguins.objective import OBJECTIVE

dataset_version = "penguins"
objective: dict = OBJECTIVE.model_dump(mode="json")
warranted = True
trials = 6
seed = 0

# %%
#| export
import polars as pl

from mlops_nb import Candidate

# %%
from mlops_nb import Objective, dataset, glue, search

# %%
#| export
def features(penguins: pl.DataFrame) -> pl.DataFrame:
    "What the models see of a penguin."
    ratio = pl.col("bill_length_mm") / pl.col("bill_depth_mm")
    return penguins.with_columns(bill_ratio=ratio)


def candidates() -> list[Candidate]:
    "The estimators worth trying."
    from ray import tune
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    boosting = HistGradientBoostingClassifier(max_iter=40, early_stopping=False)
    return [
        Candidate("logistic", LogisticRegression(max_iter=1000), {"C": tune.loguniform(0.01, 10)}),
        Candidate("boosting", boosting, {"max_leaf_nodes": tune.randint(4, 16)}),
    ]


# %%
version = dataset(dataset_version)
result = search(
    version, Objective(**objective), candidates(), features=features, trials=trials, seed=seed
)
result

# %%
glue("candidate", result.best.save())
