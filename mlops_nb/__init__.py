"MLOps for people who work in notebooks: the whole machine-learning life cycle on one Ray cluster."

from importlib import import_module
from typing import TYPE_CHECKING

from mlops_nb.core import library as _library

__version__ = "0.1.0"

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
    "test_hypotheses",
    "warranted",
    "Candidate",
    "search",
    "load_candidate",
    "evaluate",
    "champions_view",
    "tested",
    "register",
    "stage",
    "accept",
    "approve",
    "promote",
    "rollback",
    "monitor",
    "open_alerts",
    "glue",
    "workflow",
]

if TYPE_CHECKING:
    from mlops_nb.data.contracts import Column, Contract
    from mlops_nb.data.ingest import ingest
    from mlops_nb.data.sources import Source
    from mlops_nb.data.versions import get as dataset
    from mlops_nb.flow import workflow
    from mlops_nb.flow.workflow.outputs import glue
    from mlops_nb.models.registry import champions_view, register, tested
    from mlops_nb.science.evaluation import evaluate
    from mlops_nb.science.exploration import explore
    from mlops_nb.science.objective import Costs, Hypothesis, Objective, Rule, warranted
    from mlops_nb.science.objective import test as test_hypotheses
    from mlops_nb.science.pipeline import Candidate
    from mlops_nb.science.pipeline import load as load_candidate
    from mlops_nb.science.search import search
    from mlops_nb.service.deployment import promote, rollback, stage
    from mlops_nb.service.deployment.acceptance import accept, approve
    from mlops_nb.service.monitoring import check as monitor
    from mlops_nb.service.monitoring import open_alerts

# Where each of them is defined, as `module:name`. It is imported when it is first used (PEP 562), so
# that importing this package does nothing.
_HOMES = {
    "Column": "data.contracts:Column",
    "Contract": "data.contracts:Contract",
    "Source": "data.sources:Source",
    "dataset": "data.versions:get",
    "ingest": "data.ingest:ingest",
    "Costs": "science.objective:Costs",
    "Hypothesis": "science.objective:Hypothesis",
    "Objective": "science.objective:Objective",
    "Rule": "science.objective:Rule",
    "test_hypotheses": "science.objective:test",
    "warranted": "science.objective:warranted",
    "Candidate": "science.pipeline:Candidate",
    "search": "science.search:search",
    "explore": "science.exploration:explore",
    "load_candidate": "science.pipeline:load",
    "evaluate": "science.evaluation:evaluate",
    "champions_view": "models.registry:champions_view",
    "tested": "models.registry:tested",
    "register": "models.registry:register",
    "stage": "service.deployment:stage",
    "accept": "service.deployment.acceptance:accept",
    "approve": "service.deployment.acceptance:approve",
    "promote": "service.deployment:promote",
    "rollback": "service.deployment:rollback",
    "monitor": "service.monitoring:check",
    "open_alerts": "service.monitoring:open_alerts",
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


_library.begin()  # imports the workflow's package from where the environment says
