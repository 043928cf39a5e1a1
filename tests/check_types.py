"""mypy finds at most as many errors in each module as `tests/type_errors.json` allows.

`python tests/check_types.py` fails if a module has more. With `--lower` it writes a new table, and
refuses to if the modules together have more errors than before, so that the sum can only fall.
"""

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLE = (
    ROOT / "tests" / "type_errors.json"
)  # module -> number of errors; those without are left out


def run_mypy() -> str:
    "Return what mypy prints about the library. End here if it could not check it."
    command = [Path(sys.executable).parent / "mypy", "--no-error-summary", "--no-color-output"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 1) or done.stderr:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def errors_by_module(report: str) -> dict[str, list[str]]:
    "Return mypy's lines of errors by the module that has them."
    modules = defaultdict(list)
    for line in report.splitlines():
        if match := re.match(r"(\S+)\.py:\d+: error: ", line):
            modules[match[1].replace("/", ".").removesuffix(".__init__")].append(line)
    return dict(modules)


def risen(errors: dict[str, list[str]], allowed: dict[str, int]) -> list[str]:
    "Return the errors of each module that has more than are allowed, under a line that says so."
    lines = []
    for module, found in sorted(errors.items()):
        if len(found) > allowed.get(module, 0):
            lines.append(f"{module}: expected at most {allowed.get(module, 0)}, got {len(found)}")
            lines += [f"  {line}" for line in found]
    return lines


def lowered(errors: dict[str, list[str]], allowed: dict[str, int]) -> dict[str, int]:
    "Return the new table. End here if its sum is higher than the old one's."
    table = {module: len(lines) for module, lines in sorted(errors.items())}
    if sum(table.values()) > sum(allowed.values()):
        sys.exit(f"expected at most {sum(allowed.values())} errors, got {sum(table.values())}")
    return table


def main(arguments: list[str]) -> int:
    "Check, or with `--lower` write the table. Return the exit status."
    errors = errors_by_module(run_mypy())
    allowed = json.loads(TABLE.read_text())
    if "--lower" in arguments:
        table = lowered(errors, allowed)
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
        print(
            f"{sum(table.values())} errors in {len(table)} modules, before {sum(allowed.values())}"
        )
        return 0
    if lines := risen(errors, allowed):
        print("\n".join(lines))
        return 1
    count = sum(map(len, errors.values()))
    print(f"types: {count} errors are left, at most {sum(allowed.values())} allowed")
    if count < sum(allowed.values()):
        print("now lower what is allowed: python tests/check_types.py --lower")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
