# %% [markdown]
# # The objective: what does a diamond cost?

# %%
#| default_exp objective

# %% tags=["parameters"]
# no parameters

# %%
#| export
import polars as pl

from mlops_nb import Hypothesis, Objective, Rule

# %%
from mlops_nb import glue

# %%
#| export
MEASURED = "measured before the stone is offered, so known when its price is asked"
OBJECTIVE = Objective(
    name="diamonds",
    question="What will this diamond be sold for, in dollars?",
    target="price",
    metric="mae",
    protected=("cut",),
    trusted={column: MEASURED for column in ("carat", "x", "y", "z")},
)
HYPOTHESES = [
    Hypothesis(name="weight", statement="Heavy ones are dear.", column="carat", expect="more"),
    Hypothesis(name="cut", statement="The cut makes the price.", column="cut"),
]
RULE = Rule(name="by weight", expression=pl.col("carat") * 7756 - 2256)

# %%
glue("objective", OBJECTIVE.model_dump(mode="json"))
