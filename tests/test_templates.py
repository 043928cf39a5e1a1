"HTML comes from templates, and from nothing else; what they are given stays text."

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from mlops_nb.core.settings import create
from mlops_nb.core.templates import render, template_text
from mlops_nb.front import pages
from mlops_nb.models.registry import ModelVersion
from mlops_nb.science.json_rows import InputColumn
from mlops_nb.science.signature import Signature
from mlops_nb.science.task import Binary
from mlops_nb.service.deployment.acceptance import Acceptance, AcceptanceCheck
from mlops_nb.service.serving import guard
from mlops_nb.service.serving.documentation import docs_page

LIBRARY = Path(pages.__file__).parents[1]
TEMPLATES = sorted((LIBRARY / "templates").glob("*.html")) + [LIBRARY / "templates/drawing.svg"]
EVIL = "<script>alert('x\"y')</script>"
TASK = Binary(labels=("No", "Yes"))


class Tags(HTMLParser):
    "The names of a page's tags and attributes, and whether each is closed."

    VOID = {"meta", "img", "br", "input"}

    def __init__(self, html: str):
        super().__init__()
        self.open, self.names, self.attributes = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def state(name: str = EVIL) -> dict:
    "A state of the control room in which every text is one name."
    metric = {"value": 0.84, "low": 0.82, "high": 0.86}
    return {
        "workspace": {"name": name},
        "endpoints": [
            {
                "model": name,
                "framework": [name],
                "url": f"http://h/{name}",
                "state": name,
                "versions": {name: 90.0},
                "champion": name,
                "challenger": None,
                "shadow": [name],
                "proposal": name,
            }
        ],
        "alerts": [
            {
                "model": name,
                "version": name,
                "kind": name,
                "column": name,
                "since": name,
                "message": name,
            }
        ],
        "models": [
            {
                "ref": name,
                "champion": True,
                "candidate": name,
                "metrics": {name: metric},
                "dataset": name,
                "decision": name,
                "decided_by": name,
            }
        ],
        "run": {
            "id": name,
            "state": name,
            "by": name,
            "started": name,
            "stages": [{"name": name, "state": name, "seconds": 1.0}],
            "again": name,
            "waits": [
                {
                    "stage": name,
                    "reason": name,
                    "command": name,
                    "decision": decision,
                    "approved": True,
                }
                for decision in (None, name)
            ],
        },
    }


def shown() -> dict[str, str]:
    "What stands in pages and notebooks for things that somebody named after a script."
    column = InputColumn(name=EVIL, dtype="string", categories=[EVIL])
    signature = Signature(columns=[column], unused={EVIL: EVIL})
    check = AcceptanceCheck(EVIL, False, EVIL, EVIL)
    return {
        "overview": pages.control_page(state()),
        "signature": signature._repr_html_(),
        "documentation": docs_page(EVIL, signature, [TASK]),
        "acceptance": Acceptance(EVIL, (check,))._repr_html_(),
        "version": ModelVersion(EVIL, "1", "", EVIL, {EVIL: EVIL}, (EVIL,))._repr_html_(),
    }


def test_no_module_writes_html():
    "A tag in a string of the library is a template that is still to be written."
    names = "table tr td th div span p b h[1-6] ul li pre code style script svg html body article a"
    tag = re.compile(rf"</?({names.replace(' ', '|')})\b[^<]*>")
    written = {
        str(module.relative_to(LIBRARY)): tag.findall(module.read_text())
        for module in LIBRARY.rglob("*.py")
        if module.name != "forkserver.py"
    }  # a notebook with which nbconvert is warmed up
    assert not {module: tags for module, tags in written.items() if tags}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_every_template_compiles_and_is_used(template):
    from mlops_nb.core.templates import _environment

    _environment().get_template(template.name)
    texts = [path.read_text() for path in [*LIBRARY.rglob("*.py"), *TEMPLATES] if path != template]
    assert any(f'"{template.name}"' in text for text in texts)


@pytest.mark.parametrize("name", list(shown()))
def test_a_name_stays_text(name):
    html = shown()[name]
    tags = Tags(html)
    assert tags.open == [] and "&lt;script&gt;" in html
    assert tags.names.count("script") == (name == "documentation")  # the one that is ours
    assert EVIL not in html and not {a for a in tags.attributes if a.startswith("on")}


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        render("facts.html", facts=[])


def test_the_stylesheet_reaches_nothing_outside():
    "Each rule begins with our class, or is about a page around it."
    css = re.sub(r"/\*.*?\*/", "", template_text("style.css"), flags=re.S)
    depth, selectors = 0, []
    for part in re.split(r"([{}])", css):
        if part == "{":
            depth += 1
        elif part == "}":
            depth -= 1
        elif depth == 0 and part.strip():
            selectors += part.split(",")
    assert depth == 0 and selectors and all(".mlops-nb" in selector for selector in selectors)


def test_outputs_of_notebooks_wear_the_stylesheet_of_today():
    style = " ".join(template_text("style.css").split())
    worn = {}
    for notebook in sorted(LIBRARY.parent.glob("nbs/[1-7]_*/*.ipynb")):
        for cell in json.loads(notebook.read_text())["cells"]:
            for output in cell.get("outputs", []):
                html = "".join(output.get("data", {}).get("text/html", ""))
                if 'class="mlops-nb"' in html:
                    worn[notebook.name, cell["id"]] = style in html
    assert worn and all(worn.values()), [where for where, good in worn.items() if not good]


def test_the_policy_allows_exactly_the_script_of_the_page():
    html = docs_page("churn", Signature(columns=[InputColumn(name="a", dtype="integer")]), [TASK])
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = dict(guard.headers())[b"content-security-policy"].decode()
    assert f"script-src 'sha256-{digest}'" in policy.split("; ")


def test_the_interface_is_described_in_the_house_of_its_pages(tmp_path):
    from starlette.testclient import TestClient

    client = TestClient(pages.control_app(create(tmp_path)), base_url="http://localhost")
    html = client.get("/api/docs").text
    assert Tags(html).open == [] and 'href="/monitor/"' in html and "POST /api/runs" in html


@pytest.mark.browser
def test_pages_fit_a_telephone_and_follow_a_dark_screen(chromium):
    from playwright.sync_api import sync_playwright

    name = "a_model_with_quite_a_long_name"
    signature = Signature(columns=[InputColumn(name=name, dtype="string", categories=[name] * 3)])
    paper = set()
    with sync_playwright() as p:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = p.chromium.launch(executable_path=chromium, args=options)
        for html in (pages.control_page(state(name)), docs_page(name, signature, [TASK])):
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": 360, "height": 640}, color_scheme=scheme)
                page.set_content(html)
                root = "document.documentElement"
                assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
                colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
                paper.add((scheme, colour))
        browser.close()
    assert paper == {("light", "rgb(255, 255, 255)"), ("dark", "rgb(21, 25, 31)")}
