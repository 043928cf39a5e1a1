# %% [markdown]
# # The data

# %% tags=["parameters"]
from churn.objective import OBJECTIVE

source = "data/churn.csv"
objective: dict = OBJECTIVE.model_dump(mode="json")

# %%
from mlops_nb import Objective, glue, ingest

# %%
objective = Objective(**objective)
version = ingest(objective.name, source)
version

# %%
version.balance(objective.target)

# %%
glue("dataset_version", version.ref)
