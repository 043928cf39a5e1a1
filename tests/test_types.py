"What is left of type errors may fall and not rise."

import json

import check_types
import pytest

REPORT = """mlops_nb/core/lake.py:5: error: Incompatible return value type  [return-value]
mlops_nb/core/lake.py:9: note: a hint
mlops_nb/flow/workflow/__init__.py:7: error: "X" not callable  [operator]
"""


def test_errors_are_counted_by_module():
    errors = check_types.errors_by_module(REPORT)
    assert {module: len(lines) for module, lines in errors.items()} == {
        "mlops_nb.core.lake": 1,
        "mlops_nb.flow.workflow": 1,
    }


def test_a_module_with_more_errors_than_before_is_refused():
    errors = check_types.errors_by_module(REPORT)
    assert not check_types.risen(errors, {"mlops_nb.core.lake": 1, "mlops_nb.flow.workflow": 2})
    lines = check_types.risen(errors, {"mlops_nb.core.lake": 3})
    assert lines[0] == "mlops_nb.flow.workflow: expected at most 0, got 1" and len(lines) == 2


def test_the_table_is_only_ever_lowered():
    errors = check_types.errors_by_module(REPORT)
    renamed = {"mlops_nb.core.tables": 3, "mlops_nb.flow.workflow": 1}
    assert sum(check_types.lowered(errors, renamed).values()) == 2
    with pytest.raises(SystemExit, match="expected at most 1 errors, got 2"):
        check_types.lowered(errors, {"mlops_nb.core.lake": 1})


def test_the_table_names_modules_that_exist():
    for module, count in json.loads(check_types.TABLE.read_text()).items():
        path = check_types.ROOT / module.replace(".", "/")
        assert count > 0 and (path.with_suffix(".py").exists() or (path / "__init__.py").exists())
