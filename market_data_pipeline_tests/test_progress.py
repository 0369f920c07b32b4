"""How far a long read is: shown in a notebook's kernel and removed at the end, quiet elsewhere."""

from __future__ import annotations

import nbformat
import pytest

from market_data_pipeline.reading import progress
from market_data_pipeline_tests import notebooks

READ = """
from market_data_pipeline.reading import progress

progress._AFTER_SECONDS = progress._EVERY_SECONDS = 0.0
with progress.shown("bars", 3) as show:
    show(1, 50_000)
    show(2, 100_000)
    if END: raise SystemError("the server went away")
"""


@pytest.mark.parametrize("fails", [False, True])
def test_a_notebook_shows_one_line_that_vanishes_at_the_end(fails: bool) -> None:
    seen: list[str] = []
    cell = nbformat.v4.new_code_cell(READ.replace("END", str(fails)))
    with notebooks.client(nbformat.v4.new_notebook(cells=[cell]), allow_errors=True) as client:
        shows = client.process_message

        def noted(message: dict, *arguments: object) -> object:  # type: ignore[type-arg]
            if message["msg_type"] in {"display_data", "update_display_data"}:
                seen.append(message["content"]["data"]["text/plain"])
            return shows(message, *arguments)

        client.process_message = noted  # type: ignore[method-assign,assignment]
        notebook = client.execute()
    assert seen == [
        "Reading bars: 1 of 3 series, 50,000 rows",
        "Reading bars: 2 of 3 series, 100,000 rows",
        "",
    ]
    shown, *others = notebook.cells[0].outputs
    assert shown["data"] == {"text/plain": ""}
    assert [output["output_type"] for output in others] == ["error"] * fails


def test_it_is_quiet_outside_of_a_notebook(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_AFTER_SECONDS", 0.0)
    with progress.shown("bars", 3) as show:
        show(1, 50_000)
    assert capsys.readouterr() == ("", "")
