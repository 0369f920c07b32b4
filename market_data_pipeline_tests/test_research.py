"""What the documents for research show is run as it stands: the notebook, and the examples of the pages."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from PIL import Image

from market_data_pipeline import read_bars
from market_data_pipeline.lake.sync import sync
from market_data_pipeline.settings import load_settings
from market_data_pipeline_tests import notebooks
from market_data_pipeline_tests.conftest import copy_database, drop_database, with_database
from market_data_pipeline_tests.ingest.conftest import World
from market_data_pipeline_tests.research import load
from market_data_pipeline_tests.serving.conftest import serve

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
    with notebooks.client(notebook, resources={"metadata": {"path": str(project)}}) as client:
        client.execute()  # raises the first cell's error
    shown = [outputs(cell) for cell in notebook.cells]
    if os.environ.get(UPDATE):
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            if "outputs" in cell:
                cell["outputs"] = lasting(cell)
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


def lasting(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return a cell's outputs but for the line of a read that took more than a second, empty once it is over."""
    return [output for output in cell.get("outputs", ()) if output.get("data") != {"text/plain": ""}]


def outputs(cell: nbformat.NotebookNode) -> list[object]:
    """Return what a cell shows: the texts, and the kinds of its pictures."""
    shown: list[object] = []
    for output in lasting(cell):
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


@pytest.fixture
def lake(project: Path) -> Path:
    """The project, with its lake."""
    sync(load_settings())
    return project


def test_the_examples_of_the_pages_run_as_they_stand(
    lake: Path, loaded: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lake)
    names: dict[str, Any] = {}
    with serve(load_settings()) as api:
        for page in ("README.md", "docs/reading.md", "docs/http.md", "docs/lake.md"):
            text = (DOCS.parent / page).read_text(encoding="utf-8")
            text = text.replace("/lake/vendor/", "/lake/sandbox/").replace("http://127.0.0.1:8000", api.base)
            names |= {"symbols": ["AAPL", "X:BTCUSD"], "noon": loaded.now}
            examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
            assert examples
            for example in examples:
                exec(compile(example, page, "exec"), names)
            if page == "docs/http.md":  # it has followed every page
                assert len(names["bars"]) == len(read_bars("AAPL", "5m", start="2026-11-01")) > 1000
    # DuckDB's prices from the lake, adjusted in SQL, are those of our readers.
    found = names["adjusted"].set_index("symbol").loc["NVDA"].set_index("ts")["close"]
    ours = read_bars("NVDA", "1d", source="database")["close"]
    assert len(found) > 200
    np.testing.assert_allclose(found, ours.reindex(found.index))


def other_environment(project: Path, program: str, *packages: str) -> dict[str, Any]:
    """Run a program of `bridges` where only `packages` and the reading part are installed; return its result."""
    python = project / "other" / "bin" / "python"
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", project / "other"], check=True)
    subprocess.run([uv, "pip", "install", "-q", "--python", python, *packages, f"{DOCS.parent}[lake]"], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    environment |= {"PYTHONPATH": str(DOCS / "examples"), "ZIPLINE_ROOT": str(project / "zipline")}
    done = subprocess.run(
        [python, DOCS.parent / "market_data_pipeline_tests" / "bridges" / program],
        env=environment, cwd=project, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


bridged = pytest.mark.skipif(
    "TEST_BRIDGES" not in os.environ, reason="downloads other frameworks; TEST_BRIDGES=1 runs it"
)


@bridged
def test_the_bridge_to_zipline_has_the_prices_of_our_readers_across_a_split(lake: Path) -> None:
    found = other_environment(lake, "zipline_backtest.py", "zipline-reloaded")
    assert found["sessions"] == 221
    assert found["largest_relative_difference"] < 2e-5  # Zipline keeps three decimals
    assert 0.5 < found["gain"] < 2.0  # a split that is missing would leave a quarter


@bridged
def test_the_bridge_to_nautilus_has_our_bars_labelled_by_their_ends(lake: Path) -> None:
    found = other_environment(lake, "nautilus_read.py", "nautilus_trader")
    assert found["bars"] == found["ours"] == found["written"] / 2 > 1000
    assert found["largest_difference"] < 5e-5
    assert found["minutes_from_start_to_label"] == [5.0]
