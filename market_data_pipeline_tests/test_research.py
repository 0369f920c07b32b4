"""What the documents for research show is run as it stands: the notebook, and the examples of the pages."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import nbclient
import nbformat
import pytest
from PIL import Image

from market_data_pipeline_tests.conftest import copy_database, drop_database, with_database
from market_data_pipeline_tests.ingest.conftest import World
from market_data_pipeline_tests.research import load

DOCS = Path(__file__).resolve().parent.parent / "docs"
NOTEBOOK = DOCS / "research.ipynb"
UPDATE = "UPDATE_NOTEBOOK"  # set it to write the outputs of a run into the notebook
LARGEST = 150_000  # bytes with all pictures: a page that a browser shows at once


@pytest.fixture(scope="module")
def loaded(postgres_url: str, migrated_template: str) -> Iterator[World]:
    name = copy_database(postgres_url, migrated_template)
    yield load(with_database(postgres_url, name))
    drop_database(postgres_url, name)


@pytest.fixture
def project(loaded: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project's folder, with the database and the noon of the loaded world."""
    monkeypatch.setenv("DATABASE_URL", loaded.database_url)
    monkeypatch.setenv("MARKET_DATA_AS_OF", loaded.now.isoformat())
    for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    return tmp_path


def test_the_notebook_runs_from_its_first_cell_to_its_last(project: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    written = [cell["source"] for cell in notebook.cells]
    nbclient.NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(project)}}
    ).execute()  # raises the first cell's error
    shown = [outputs(cell) for cell in notebook.cells]
    if os.environ.get(UPDATE):
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            for output in cell.get("outputs", ()):
                if picture := output.get("data", {}).get("image/png"):
                    output["data"]["image/png"] = smaller(picture)
        nbformat.write(notebook, NOTEBOOK)
    kept = nbformat.read(NOTEBOOK, as_version=4)
    assert [cell["source"] for cell in kept.cells] == written
    assert [outputs(cell) for cell in kept.cells] == shown, f"its outputs are old: run with {UPDATE}=1"


def smaller(picture: str) -> str:
    """Return a PNG of few colours, in Base64."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").quantize(32)
    image.save(file := io.BytesIO(), "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def outputs(cell: nbformat.NotebookNode) -> list[object]:
    """Return what a cell shows: the texts, and the kinds of its pictures."""
    shown: list[object] = []
    for output in cell.get("outputs", ()):
        data = output.get("data", {"text/plain": output.get("text", "")})
        kinds = sorted(data)
        shown.append((output["output_type"], kinds, "" if "image/png" in data else data["text/plain"]))
    return shown


def test_the_notebook_has_all_its_outputs_and_names_no_machine() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"]
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < LARGEST
    without_pictures = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(r"/(?:root|home|tmp|work|usr|Users)/|postgres(?:ql)?://", without_pictures)
    assert json.loads(text)["metadata"]["kernelspec"]["name"] == "python3"
