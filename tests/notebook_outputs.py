"""What a notebook shows: its outputs compared with another run's, and what no two runs share.

Text is compared as it is. Pictures are decoded: they need the same size and nearly the same pixels.
Two runs on one machine give equal pixels; another processor may shade an edge differently.
"""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
from nbdev.clean import clean_nb
from PIL import Image

Outputs = dict[
    str, str | np.ndarray
]  # what a cell shows, by kind: text, or the pixels of a picture

VOLATILE = {
    "a temporary path": r"/(?:tmp|var/folders|private/var)/\S+|\btmp(?=\w*\d)[a-z0-9_]{8}\b",
    "a person's folder": r"/(?:home|root|Users)/\S+",
    "an address in memory": r"\bat 0x[0-9a-f]{6,}|x[0-9a-f]{10,}(?=&gt;|>)",
    "a network address": r"\b(?!127\.0\.0\.1:8000\b)(?:127\.0\.0\.1|localhost|0\.0\.0\.0):\d{4,5}",
    "an id": r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\bruns:/[0-9a-f]{32}",
    "the time of a run": r"\b20(?:2[6-9]|[3-9]\d)-\d\d-\d\d[T ]\d\d:\d\d:\d\d\.\d{3,6}",
    "seconds since 1970": r"\b1[7-9]\d{8}(?:\d{3}|\d{6}|\d{9})?(?:\.\d+)?\b",
    "a progress bar": r"\d%\|.*?\|.*|\b\d+(?:\.\d+)?(?:it/s|s/it)",
}
VOLATILE_IN_STAGES = {  # where no second run is compared
    "a time of day": r"\b\d\d:\d\d:\d\d\b",
    "a measured time": r"\bp\d\d \d+(?:\.\d+)? ?m?s\b",
    "an id or a digest of a run": r"\b(?=[0-9a-f]*[a-f])[0-9a-f]{32,64}\b",
}
# What depends on the notebooks that ran before in the same process: scikit-learn counts the
# estimators it drew, asyncio reports a task when its memory is freed, Ray warns at its first start.
# A model's digest is the same on every run, but the last bit of a model depends on the processor.
OF_OTHERS = re.compile(
    r"sk-(?:container|estimator)-id-\d+|Task was destroyed but it is pending!\ntask: <Task .*\n"
    r"|(?<=, digest )[0-9a-f]{12}\b"
    r"|SIGTERM handler is not set because current thread is not the main thread\.\n"
)
EMBEDDED = r"data:image/png;base64,([A-Za-z0-9+/=]+)"  # in HTML
TOLERATED_SHADE = 16  # of 255, in any colour of a pixel
TOLERATED_PIXELS = 0.001  # share of a picture's pixels that may differ by more


def _text(value: str | list[str] | dict) -> str:
    "Return what a notebook's file keeps as a string, as lines or as JSON."
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return value if isinstance(value, str) else "".join(value)


def _pixels(encoded: str) -> np.ndarray:
    "Return the pixels of an image in base64: rows, columns, four colours."
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        return np.asarray(image.convert("RGBA"), dtype=np.int16)


def _by_kind(kind: str, text: str) -> Outputs:
    "Return one output: a picture as its pixels, a text apart from the pictures inside it."
    if kind.startswith("image/") and "svg" not in kind:
        return {kind: _pixels(text)}
    inside = re.findall(EMBEDDED, text)
    pictures = {f"{kind}, picture {n}": _pixels(encoded) for n, encoded in enumerate(inside)}
    rest = OF_OTHERS.sub("", re.sub(EMBEDDED, "a picture", text))
    return {kind: rest, **pictures} if rest else pictures


def _shown(outputs: list[dict]) -> Outputs:
    "Return what a cell's outputs show; streams of one name are one text."
    shown: Outputs = {}
    for output in outputs:
        kind = output["output_type"]
        if kind == "stream":
            text = OF_OTHERS.sub("", _text(output["text"]))
            if text:
                shown[output["name"]] = shown.get(output["name"], "") + text
        elif kind == "error":
            shown[f"error {len(shown)}"] = f"{output['ename']}: {output['evalue']}"
        else:
            for mime, value in output["data"].items():
                shown |= _by_kind(f"{mime} {len(shown)}", _text(value))
    return shown


def cells(notebook: Path) -> dict[str, Outputs]:
    "Return what each code cell shows, by the cell's id, without what nbdev-clean removes."
    content = json.loads(notebook.read_text(encoding="utf-8"))
    clean_nb(content, allowed_cell_metadata_keys=["tags"], repair=False)
    code = [c for c in content["cells"] if c["cell_type"] == "code"]
    return {c["id"]: _shown(c["outputs"]) for c in code}


def _picture_differs(one: np.ndarray, other: np.ndarray) -> bool:
    "Return whether two pictures differ by more than the shade of a few pixels."
    if one.shape != other.shape:
        return True
    far = (np.abs(one - other) > TOLERATED_SHADE).any(axis=2)
    return bool(far.mean() > TOLERATED_PIXELS)


def _difference(one: str | np.ndarray, other: str | np.ndarray) -> str:
    "Return how two outputs of one kind differ, or an empty text if they do not."
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if not _picture_differs(one, other):
            return ""
        return f"another picture: {one.shape[1]}x{one.shape[0]}, {other.shape[1]}x{other.shape[0]}"
    lines, others = (text.rstrip().split("\n") for text in (one, other))
    length = max(len(lines), len(others))
    for number in range(length):
        line = lines[number] if number < len(lines) else "nothing"
        got = others[number] if number < len(others) else "nothing"
        if line != got:
            return f"line {number + 1}: committed {line.strip()[:160]!r}, now {got.strip()[:160]!r}"
    return ""


def differences(committed: Path, executed: Path) -> list[str]:
    "Return how a notebook's run shows something else than its file: a line a cell."
    lines = []
    now = cells(executed)
    for cell, shown in cells(committed).items():
        if shown.keys() != now[cell].keys():
            reason = f"committed {sorted(shown)}, now {sorted(now[cell])}"
        else:
            reasons = (_difference(shown[kind], now[cell][kind]) for kind in shown)
            reason = next(filter(None, reasons), "")
        if reason:
            lines.append(f"{committed.name}, cell {cell}: {reason}")
    return lines


def volatile(notebook: Path, kinds: dict[str, str] = VOLATILE) -> list[str]:
    "Return what a notebook's outputs show that another run would not show: a line a cell and kind."
    lines = []
    for cell, shown in cells(notebook).items():
        text = "\n".join(value for value in shown.values() if isinstance(value, str))
        for name, pattern in kinds.items():
            if match := re.search(pattern, text):
                lines.append(f"{notebook.name}, cell {cell}: {name}, {match[0][:100]!r}")
    return lines
