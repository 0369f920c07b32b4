"""The client of flat files, against a real object store, a folder and the sandbox."""

from __future__ import annotations

import io
import traceback
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.errors import ConfigurationError, DataError, TransientError, VendorRefusedError
from market_data_pipeline.polygon.flat_files import Dataset, FileAccess, FlatFiles, key_of
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.settings.sandbox import SANDBOX_KEY
from market_data_pipeline_tests.object_store import KEY_ID, SECRET, Bucket, object_store

DAYS = (date(2026, 2, 27), date(2026, 3, 2), date(2026, 3, 3))


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with object_store() as served:
        for day in DAYS:
            served.put(key_of(Dataset.MINUTES, day), f"minutes of {day}".encode())
        served.put("us_stocks_sip/minute_aggs_v1/2026/03/README.txt", b"no day")
        served.put("us_stocks_sip/minute_aggs_v1/2026/03/2026-03-99.csv.gz", b"no day either")
        yield served


def client(url: str, key_id: str = KEY_ID, secret: str = SECRET) -> FlatFiles:
    return FlatFiles(FileAccess(url, SecretStr(key_id), SecretStr(secret)), retries=0)


def test_a_listing_has_the_days_between_two_dates_whatever_month_they_are_in(bucket: Bucket) -> None:
    found = client(bucket.url).listing(Dataset.MINUTES, DAYS[0], DAYS[1])
    assert list(found) == list(DAYS[:2])
    assert found[DAYS[1]].bytes == len("minutes of 2026-03-02")
    assert found[DAYS[1]].etag
    assert client(bucket.url).listing(Dataset.DAYS, DAYS[0], DAYS[1]) == {}


def test_a_file_arrives_as_it_is(bucket: Bucket) -> None:
    files, into = client(bucket.url), io.BytesIO()
    files.download(files.listing(Dataset.MINUTES, DAYS[2], DAYS[2])[DAYS[2]], into)
    assert into.getvalue() == b"minutes of 2026-03-03"


def test_a_file_that_was_replaced_or_withdrawn_since_it_was_listed_is_not_taken_for_it(bucket: Bucket) -> None:
    files = client(bucket.url)
    (version,) = files.listing(Dataset.MINUTES, DAYS[0], DAYS[0]).values()
    with pytest.raises(DataError, match="was replaced while it was read"):
        files.download(version._replace(etag="of-before"), io.BytesIO())
    with pytest.raises(DataError, match=r"2019-01-02\.csv\.gz is not at http://.* any more"):
        files.download(version._replace(day=date(2019, 1, 2)), io.BytesIO())


def test_a_folder_of_files_is_read_like_a_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="which has no folder us_stocks_sip/"):
        FlatFiles(FileAccess(str(tmp_path)))
    file = tmp_path / key_of(Dataset.DAYS, DAYS[1])
    file.parent.mkdir(parents=True)
    file.write_bytes(b"days")
    files, into = FlatFiles(FileAccess(f"file://{tmp_path}")), io.BytesIO()
    files.download(files.listing(Dataset.DAYS, *DAYS[::2])[DAYS[1]], into)
    assert into.getvalue() == b"days"


def test_a_refused_key_stops_the_run_and_is_shown_nowhere() -> None:
    now = datetime(2026, 3, 10, 12, tzinfo=NEW_YORK)
    with running_server(open_source(None), lambda: now) as url:
        files = client(url, "WRONGKEYID", "wrong-secret")
        with pytest.raises(VendorRefusedError, match="MARKET_DATA_FLAT_FILES_KEY_ID") as refused:
            files.listing(Dataset.MINUTES, DAYS[0], DAYS[1])
    assert refused.value.stops_run
    told = "".join(traceback.format_exception(refused.value)) + repr(files) + repr(files.access)
    assert "WRONGKEYID" not in told
    assert "wrong-secret" not in told


def test_a_store_that_does_not_answer_is_a_transient_failure() -> None:
    with pytest.raises(TransientError, match=r"cannot be read from http://127\.0\.0\.1:9"):
        client("http://127.0.0.1:9").listing(Dataset.MINUTES, DAYS[0], DAYS[0])


def test_the_sandbox_publishes_a_day_at_eleven_of_the_next_one() -> None:
    clock = [datetime(2026, 3, 3, 10, 59, tzinfo=NEW_YORK)]
    with running_server(open_source(None), lambda: clock[0]) as url:
        files = client(url, SANDBOX_KEY, SANDBOX_KEY)
        assert list(files.listing(Dataset.DAYS, *DAYS[::2])) == [DAYS[0]]
        clock[0] = datetime(2026, 3, 3, 11, 0, tzinfo=NEW_YORK)
        listed = files.listing(Dataset.DAYS, *DAYS[::2])
        assert list(listed) == list(DAYS[:2])
        into = io.BytesIO()
        files.download(listed[DAYS[1]], into)
        assert into.getvalue()[:2] == b"\x1f\x8b"


def test_the_basic_plan_has_no_files() -> None:
    now = datetime(2026, 3, 10, 12, tzinfo=NEW_YORK)
    with (
        running_server(open_source(None), lambda: now, plan="basic") as url,
        pytest.raises(VendorRefusedError, match="the plan includes flat files"),
    ):
        client(url, SANDBOX_KEY, SANDBOX_KEY).listing(Dataset.DAYS, DAYS[0], DAYS[1])
