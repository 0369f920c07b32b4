"""The answers as the OpenAPI page describes them: a model and an example of each, and every problem."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, create_model

from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.reports.series_records import BAR_COLUMNS, Column, Watermarks
from market_data_pipeline.serving.formats import Media, instant
from market_data_pipeline.serving.freshness import AnswerFreshness, freshness_at
from market_data_pipeline.serving.problems import DATABASE_UNAVAILABLE, PROBLEM, Problem, problem_document

if TYPE_CHECKING:
    from collections.abc import Sequence

Responses = dict[int | str, dict[str, Any]]

_TYPES: Final[dict[str, type]] = {"instant": datetime, "float": float, "integer": int, "boolean": bool, "text": str}


def _record(name: str, columns: Sequence[Column]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for column in columns:
        kind: Any = Literal[column.labels] if column.labels else _TYPES[column.kind]
        fields[column.name] = (kind | None if column.nullable else kind, Field(description=column.description))
    return create_model(name, **fields)


class DateRange(BaseModel):
    """The starts of the first and the last record."""

    start: datetime
    end: datetime


class SeriesAnswer(BaseModel):
    """What both answers about a series hold."""

    symbol: str
    timeframe: Timeframe
    records_returned: int
    date_range: DateRange | None
    freshness: AnswerFreshness
    timestamp: datetime = Field(description="When this answer was sent.")


def features_answer(columns: Sequence[Column]) -> type[BaseModel]:
    """Return the model of an answer of bars with features, each record holding `columns`."""
    records: Any = list[_record("FeatureRecord", columns)]  # type: ignore[misc]
    return create_model("FeaturesAnswer", __base__=SeriesAnswer, __doc__="Bars with features.", features=(records, ...))


class BarsAnswer(SeriesAnswer):
    """Bars."""

    adjusted: bool
    as_of: datetime | None
    bars: list[_record("BarRecord", BAR_COLUMNS)]  # type: ignore[valid-type]


class ProblemDocument(BaseModel):
    """An RFC 9457 problem document."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[dict[str, str]] | None = Field(None, description="Each wrong parameter, with a sentence about it.")


_PROBLEM_SCHEMA: Final = ProblemDocument.model_json_schema()


def _problem(status: HTTPStatus, description: str, detail: str, **members: Any) -> Responses:
    example = orjson.loads(problem_document(Problem(status, detail, **members), "/…"))
    return {
        status.value: {
            "description": description,
            "content": {PROBLEM: {"schema": _PROBLEM_SCHEMA, "example": example}},
        }
    }


_UNPROCESSABLE: Final = _problem(
    HTTPStatus.UNPROCESSABLE_ENTITY,
    "A parameter is wrong",
    "limit: must be at most 10000; '20000' is not.",
    errors=[{"parameter": "limit", "detail": "must be at most 10000; '20000' is not."}],
)
_UNAVAILABLE: Final = _problem(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The database is unavailable; Retry-After says when to try again",
    DATABASE_UNAVAILABLE,
)

_BAR: Final = {
    "ts": "2026-01-05T14:30:00Z", "open": 243.61, "high": 244.02, "low": 243.4, "close": 243.9, "volume": 181502.0,
    "vwap": 243.74, "trades": 2104,
}  # fmt: skip
_FEATURES: Final = {
    "log_return": 0.00119, "return_1h": 0.0021, "return_1d": 0.0042, "volatility_20": 0.214, "volatility_50": 0.231,
    "atr": 0.61, "rolling_volume_20": 164210.5, "volume_ratio": 1.105, "hh": True, "hl": True, "lh": False,
    "ll": False, "trend_direction": "neutral", "structure_label": "bullish", "volatility_regime": "medium",
    "trend_regime": "uptrend", "compression_regime": "expanded",
}  # fmt: skip
_VERIFIED: Final = datetime(2026, 1, 5, 14, 37, 2, tzinfo=UTC)
_SENT: Final = datetime(2026, 1, 5, 14, 37, 43, 200_000, tzinfo=UTC)
_WATERMARKS: Final = Watermarks(
    verified_at=_VERIFIED,
    next_due_at=datetime(2026, 1, 5, 14, 42, tzinfo=UTC),
    updated_at=_VERIFIED,
    settled_until=datetime(2026, 1, 5, 5, 0, tzinfo=UTC),
)
_HEAD: Final = {
    "symbol": "AAPL",
    "timeframe": "5m",
    "records_returned": 1,
    "date_range": {"start": _BAR["ts"], "end": _BAR["ts"]},
    "freshness": orjson.loads(freshness_at(_WATERMARKS, _SENT).to_json()),
    "timestamp": instant(_SENT),
}
_ANY: Final = {"instant": _BAR["ts"], "float": 0.5, "integer": 1, "boolean": True, "text": "text"}
BARS_EXAMPLE: Final = {**_HEAD, "adjusted": True, "as_of": "2026-01-31T21:00:00Z", "bars": [_BAR]}


def features_example(columns: Sequence[Column]) -> dict[str, Any]:
    """Return an answer of bars with features; a feature without an example above shows a value of its type."""
    known = _BAR | _FEATURES
    record = {column.name: known.get(column.name, next(iter(column.labels), _ANY[column.kind])) for column in columns}
    return {**_HEAD, "features": [record]}


def series_responses(example: dict[str, Any], model: type[BaseModel]) -> Responses:
    """Return the responses of an endpoint of a series."""
    return {
        200: {
            "description": "The records; CSV and Arrow carry the freshness in X-Freshness headers",
            "model": model,
            "content": {
                Media.JSON.value: {"example": example},
                Media.CSV.value: {"schema": {"type": "string"}},
                Media.ARROW.value: {"schema": {"type": "string", "format": "binary"}},
            },
        },
        304: {"description": "Records and freshness status still match the ETag in If-None-Match"},
        **_problem(
            HTTPStatus.NOT_FOUND,
            "Not tracked; or tracked but never computed, and a backfill is queued",
            "AAPL is tracked, but its 5m features have never been computed. A backfill was queued just now, at "
            "2026-01-05T14:37:43Z: ask again in a minute.",
            backfill_request={
                "id": 7,
                "status": "queued",
                "requested_at": "2026-01-05T14:37:43Z",
                "already_requested": False,
            },
        ),
        **_problem(HTTPStatus.NOT_ACCEPTABLE, "None of the representations is acceptable", "This endpoint offers …"),
        **_UNPROCESSABLE,
        **_UNAVAILABLE,
    }


def admin_responses(model: type[BaseModel]) -> Responses:
    """Return the responses of an admin endpoint."""
    return {
        200: {"description": "The report", "model": model},
        **_problem(HTTPStatus.UNAUTHORIZED, "From another machine, without the token", "Send the API's token …"),
        **_problem(HTTPStatus.FORBIDDEN, "From another machine, and no token is set", "Only from this machine."),
        **_UNPROCESSABLE,
        **_UNAVAILABLE,
    }


def health_responses(model: type[BaseModel]) -> Responses:
    """Return the responses of the health endpoint."""
    return {
        200: {"description": "Every dependency answers", "model": model},
        **_problem(HTTPStatus.SERVICE_UNAVAILABLE, "A dependency is down", "PostgreSQL cannot be reached."),
    }
