# %% [markdown]
# # The data

# %% tags=["parameters"]
from penguins.objective import OBJECTIVE

source = "data/penguins.csv"
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
