"""The asset of the table of bars: what has settled is put in order and packed at night."""

from __future__ import annotations

import dagster as dg
import psycopg
import pytest

from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.settled import PACKED_CHECK, settled_records

ROWS = """
insert into market_data.records (series, codes, ts, open, high, low, close, volume, ingested_at)
select market_data.series_id('AAPL', '5m'), 5, t, 1, 2, 0.5, 1.5, 10, t
from generate_series('2026-01-05 14:30Z'::timestamptz, '2026-01-07 21:00Z', interval '5 minutes') as t
"""


def materialized() -> tuple[dict[str, object], bool]:
    """The metadata of a materialization, and whether what is packed equals its rows."""
    result = dg.materialize([settled_records], resources={"pipeline": PipelineResource()})
    assert result.success
    (made,) = result.asset_materializations_for_node("storage__records")
    (check,) = [each for each in result.get_asset_check_evaluations() if each.check_name == PACKED_CHECK]
    return {name: value.value for name, value in made.metadata.items()}, check.passed


def test_a_night_packs_what_has_settled_and_removes_it_when_it_is_not_wanted(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("MARKET_DATA_AS_OF", "2026-03-20T05:30:00-04:00")
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("select market_data.make_partitions('5m', '2026-01-01', '2026-01-02')")
        rows = owner.execute(ROWS).rowcount
        found, equal = materialized()
        assert (found["rows_packed_now"], found["packed_rows"], equal) == (rows, rows, True)
        found, equal = materialized()
        assert (found["rows_packed_now"], found["packed_rows"], equal) == (0, rows, True)

        owner.execute("alter table market_data.records_5m_2026_01 disable trigger all")
        owner.execute("update market_data.records_5m_2026_01 set close = 3")
        found, equal = materialized()
        assert (found["packed_rows"], equal) == (0, False)

        owner.execute("alter table market_data.records_5m_2026_01 enable trigger all")
        found, equal = materialized()
        assert (found["packed_rows"], equal) == (rows, True)
        monkeypatch.setenv("MARKET_DATA_PACKED", "off")
        found, equal = materialized()
        assert (found["packed_rows"], equal) == (0, True)
