# %% [markdown]
# # The model

# %%
#| default_exp train

# %% tags=["parameters"]
from diamonds.objective import OBJECTIVE

dataset_version = "diamonds"
objective: dict = OBJECTIVE.model_dump(mode="json")
warranted = True
trials = 4
seed = 0

# %%
#| export
import polars as pl

from mlops_nb import Candidate

# %%
from mlops_nb import Objective, dataset, glue, search

# %%
#| export
def features(diamonds: pl.DataFrame) -> pl.DataFrame:
    "What the models see of a diamond."
    return diamonds.with_columns(volume=pl.col("x") * pl.col("y") * pl.col("z"))


def candidates() -> list[Candidate]:
    "The estimators worth trying."
    from ray import tune
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import Ridge

    boosting = HistGradientBoostingRegressor(max_iter=60, early_stopping=False)
    return [
        Candidate("ridge", Ridge(), {"alpha": tune.loguniform(0.01, 10)}),
        Candidate("boosting", boosting, {"learning_rate": tune.loguniform(0.05, 0.3)}),
    ]


# %%
version = dataset(dataset_version)
result = search(
    version, Objective(**objective), candidates(), features=features, trials=trials, seed=seed
)
result

# %%
glue("candidate", result.best.save())
