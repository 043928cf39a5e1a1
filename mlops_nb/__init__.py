"MLOps for people who work in notebooks: the whole machine-learning life cycle on one Ray cluster."

from importlib import import_module
from typing import TYPE_CHECKING

from mlops_nb.core import library as _library

__version__ = "0.2.0"

# The public names, lowest folder first: what a stage notebook needs.
__all__ = [
    "Column",
    "Contract",
    "Source",
    "dataset",
    "ingest",
    "Costs",
    "Hypothesis",
    "Objective",
    "Rule",
    "explore",
    "check_hypotheses",
    "Candidate",
    "search",
    "load_candidate",
    "evaluate",
    "champion_scores",
    "register",
    "stage",
    "accept",
    "approve",
    "promote",
    "rollback",
    "monitor",
    "glue",
    "workflow",
]

if TYPE_CHECKING:
    from mlops_nb.data.contracts import Column, Contract
    from mlops_nb.data.ingest import ingest
    from mlops_nb.data.sources import Source
    from mlops_nb.data.versions import dataset
    from mlops_nb.flow import workflow
    from mlops_nb.flow.workflow.outputs import glue
    from mlops_nb.models.champion import champion_scores
    from mlops_nb.models.registry import approve, register
    from mlops_nb.science.candidates import Candidate
    from mlops_nb.science.evaluation import evaluate
    from mlops_nb.science.exploration import explore
    from mlops_nb.science.hypotheses import Hypothesis, check_hypotheses
    from mlops_nb.science.objective import Objective
    from mlops_nb.science.pipeline import load_candidate
    from mlops_nb.science.rules import Rule
    from mlops_nb.science.search import search
    from mlops_nb.science.statement import Costs
    from mlops_nb.service.deployment import promote, rollback, stage
    from mlops_nb.service.deployment.acceptance import accept
    from mlops_nb.service.monitoring import monitor

# Where each of them is defined, as `module:name`. It is imported on first use (PEP 562), so
# that importing this package does nothing.
_HOMES = {
    "Column": "data.contracts:Column",
    "Contract": "data.contracts:Contract",
    "Source": "data.sources:Source",
    "dataset": "data.versions:dataset",
    "ingest": "data.ingest:ingest",
    "Costs": "science.statement:Costs",
    "Hypothesis": "science.hypotheses:Hypothesis",
    "Objective": "science.objective:Objective",
    "Rule": "science.rules:Rule",
    "check_hypotheses": "science.hypotheses:check_hypotheses",
    "Candidate": "science.candidates:Candidate",
    "search": "science.search:search",
    "explore": "science.exploration:explore",
    "load_candidate": "science.pipeline:load_candidate",
    "evaluate": "science.evaluation:evaluate",
    "champion_scores": "models.champion:champion_scores",
    "register": "models.registry:register",
    "stage": "service.deployment:stage",
    "accept": "service.deployment.acceptance:accept",
    "approve": "models.registry:approve",
    "promote": "service.deployment:promote",
    "rollback": "service.deployment:rollback",
    "monitor": "service.monitoring:monitor",
    "glue": "flow.workflow.outputs:glue",
    "workflow": "flow.workflow",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = import_module(f"{__name__}.{module}")
    globals()[name] = value = getattr(value, attribute) if attribute else value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_library.prepare_imports()  # imports the workflow's package from where the environment says
