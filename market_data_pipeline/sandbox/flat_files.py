"""The vendor's flat files as a sandbox serves them: the list of a bucket and its files, read-only, as S3 answers.

`GET /flatfiles?list-type=2&prefix=…` lists, `GET` and `HEAD /flatfiles/<key>` give a file. The access key is the
sandbox's word, and signatures are not checked. A file is made when it is requested; its ETag says of what it is made,
and sizes in lists are guesses, because a file's size is not known before it is made.
"""

from __future__ import annotations

import datetime as dt
import gzip
import io
import re
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple
from xml.sax.saxutils import escape

from market_data_pipeline.domain.calendar import END_DATE, FIRST_DATE, calendar_for
from market_data_pipeline.domain.freshness import settled_at
from market_data_pipeline.domain.series import AssetClass, asset_class_of
from market_data_pipeline.polygon.flat_files import BUCKET, MARKET, Dataset, key_of
from market_data_pipeline.sandbox.bars import MINUTE_MS
from market_data_pipeline.sandbox.view import to_ms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.sandbox.bars import Bars
    from market_data_pipeline.sandbox.view import Source, View

PATH: Final = f"/{BUCKET}"

_NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
_KEY: Final = re.compile(rf"{MARKET}/({'|'.join(Dataset)})/\d{{4}}/\d{{2}}/(\d{{4}}-\d{{2}}-\d{{2}})\.csv\.gz")
_MONTH: Final = re.compile(rf"{MARKET}/({'|'.join(Dataset)})/(\d{{4}})/(\d{{2}})(/.*)?")
_BYTES: Final = {Dataset.MINUTES: 14_000, Dataset.DAYS: 30}  # a liquid ticker's rows of a day, compressed
_CREDENTIAL: Final = re.compile(r"Credential=([^/,\s]+)/")


class StoreAnswer(NamedTuple):
    """An HTTP answer of the store."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


def answer(view: View, path: str, query: Mapping[str, str], authorization: str, key: str) -> StoreAnswer:
    """Return the answer to `GET path?query`; that to HEAD is the same without its body.

    Args:
        view: the source, the plan and now.
        path: `PATH`, or that and a key.
        query: decoded.
        authorization: the header.
        key: the only access key that is accepted.
    """
    credential = _CREDENTIAL.search(authorization)
    if credential is None or credential[1] != key:
        return _refused(403, "InvalidAccessKeyId", "The access key id does not exist.")
    if view.plan.end_of_day:
        return _refused(403, "AccessDenied", "The plan does not include flat files.")
    name = path.removeprefix(PATH).strip("/")
    if not name:
        return _listed(view, query.get("prefix", ""))
    match = _KEY.fullmatch(name)
    session = _published(view, match[2]) if match else None
    if (
        match is None
        or session is None
        or name != key_of(Dataset(match[1]), session.date)
        or not _has_bars(view.source, Dataset(match[1]), session)  # type: ignore[arg-type]
    ):
        return _refused(404, "NoSuchKey", "The specified key does not exist.")
    dataset = Dataset(match[1])
    return StoreAnswer(
        200,
        _content(view.source, dataset, session),  # type: ignore[arg-type]
        (
            (b"etag", f'"{_etag(view, dataset, session.date)}"'.encode()),
            (b"last-modified", f"{settled_at(session):%a, %d %b %Y %H:%M:%S} GMT".encode()),
            (b"content-type", b"application/gzip"),
        ),
    )


def _listed(view: View, prefix: str) -> StoreAnswer:
    rows = []
    if match := _MONTH.match(prefix):
        dataset, year, month = Dataset(match[1]), int(match[2]), int(match[3])
        size = _BYTES[dataset] * len(view.source.tickers())
        for session in _sessions(year, month):
            key = key_of(dataset, session.date)
            if settled_at(session) <= view.now and key.startswith(prefix) and _has_bars(view.source, dataset, session):  # type: ignore[arg-type]
                rows.append(
                    f"<Contents><Key>{escape(key)}</Key>"
                    f"<LastModified>{settled_at(session):%Y-%m-%dT%H:%M:%S}.000Z</LastModified>"
                    f"<ETag>&quot;{_etag(view, dataset, session.date)}&quot;</ETag><Size>{size}</Size>"
                    "<StorageClass>STANDARD</StorageClass></Contents>"
                )
    text = (
        f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="{_NAMESPACE}"><Name>{BUCKET}</Name>'
        f"<Prefix>{escape(prefix)}</Prefix><KeyCount>{len(rows)}</KeyCount><MaxKeys>1000</MaxKeys>"
        f"<IsTruncated>false</IsTruncated>{''.join(rows)}</ListBucketResult>"
    )
    return StoreAnswer(200, text.encode(), ((b"content-type", b"application/xml"),))


def _refused(status: int, code: str, text: str) -> StoreAnswer:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{text}</Message></Error>'
    return StoreAnswer(status, body.encode(), ((b"content-type", b"application/xml"),))


def _published(view: View, text: str) -> Session | None:
    """Return the session of a day whose files are published, None for any other text."""
    try:
        day = dt.date.fromisoformat(text)
    except ValueError:
        return None
    if not FIRST_DATE <= day < END_DATE:
        return None
    session = calendar_for(AssetClass.US_EQUITY).session_on(day)
    return session if session is not None and settled_at(session) <= view.now else None


def _sessions(year: int, month: int) -> tuple[Session, ...]:
    if not (1 <= month <= 12 and FIRST_DATE.year <= year < END_DATE.year):
        return ()
    first = dt.date(year, month, 1)
    return calendar_for(AssetClass.US_EQUITY).sessions(
        max(first, FIRST_DATE), (first + dt.timedelta(days=32)).replace(day=1)
    )


def _etag(view: View, dataset: Dataset, day: dt.date) -> str:
    return blake2b(f"{view.source.description} {dataset} {day}".encode(), digest_size=16).hexdigest()


# A source is one object for as long as the server runs, and is hashed as such.
@lru_cache(maxsize=4096)
def _has_bars(source: Source, dataset: Dataset, session: Session) -> bool:
    return any(len(bars) for ticker in _tickers(source) for bars in _pieces(source, dataset, session, ticker))


def _tickers(source: Source) -> list[str]:
    return sorted(each for each in source.tickers() if asset_class_of(each) is AssetClass.US_EQUITY)


def _pieces(source: Source, dataset: Dataset, session: Session, ticker: str) -> Iterator[Bars]:
    if dataset is Dataset.DAYS:
        yield source.days(ticker, to_ms(session.day_start), to_ms(session.day_end))
    else:
        yield from source.intraday(ticker, MINUTE_MS, to_ms(session.day_start), to_ms(session.day_end))


@lru_cache(maxsize=8)
def _content(source: Source, dataset: Dataset, session: Session) -> bytes:
    """Return a file: the market's raw bars of a day, by ticker and time."""
    import pyarrow as pa
    from pyarrow import csv

    tables = []
    for ticker in _tickers(source):
        tables += [
            pa.table(
                {
                    "ticker": pa.array([ticker] * len(bars), pa.string()),
                    "volume": bars.v,
                    "open": bars.o,
                    "close": bars.c,
                    "high": bars.h,
                    "low": bars.low,
                    "window_start": bars.t * 1_000_000,
                    "transactions": pa.array(bars.n, pa.float64(), from_pandas=True).cast(pa.int64()),
                }
            )
            for bars in _pieces(source, dataset, session, ticker)
            if len(bars)
        ]
    text = io.BytesIO()
    csv.write_csv(pa.concat_tables(tables), text, csv.WriteOptions(quoting_style="none"))
    return gzip.compress(text.getvalue(), compresslevel=1, mtime=0)
