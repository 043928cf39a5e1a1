# %% [markdown]
# # The objective: which penguin is it?

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
OBJECTIVE = Objective(
    name="penguins",
    question="Which species is this penguin?",
    target="species",
    protected=("sex",),
    ignore={"year": "when it was measured says nothing of the species"},
)
HYPOTHESES = [
    Hypothesis(
        name="flippers",
        statement="Gentoo penguins have longer flippers.",
        column="flipper_length_mm",
        label="Gentoo",
        expect="more",
    ),
    Hypothesis(name="island", statement="Species live on different islands.", column="island"),
]
RULE = Rule(
    name="flippers and island",
    expression=pl.when(pl.col("flipper_length_mm") > 205)
    .then(pl.lit("Gentoo"))
    .when(pl.col("island") == "Dream")
    .then(pl.lit("Chinstrap"))
    .otherwise(pl.lit("Adelie")),
)

# %%
glue("objective", OBJECTIVE.model_dump(mode="json"))
