"""What the OpenAPI page shows of the answers: schemas made from the columns, examples, and every problem.

Add here: the description of an answer. Keep out: making one.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from market_data_pipeline.reports.series_records import BAR_COLUMNS, Column
from market_data_pipeline.serving.formats import Media
from market_data_pipeline.serving.problems import PROBLEM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import FastAPI

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


class FreshnessMember(BaseModel):
    """How fresh the series is."""

    status: Literal["FRESH", "AGING", "STALE"] = Field(description="Up to 1 h of staleness, up to 6 h, beyond.")
    staleness_seconds: float = Field(description="For how long the first bar that is missing has been due; 0 for none.")
    age_seconds: float = Field(description="Since `updated_at`.")
    verified_at: datetime | None = Field(description="When the vendor was last asked and everything due taken in.")
    next_due_at: datetime | None = Field(description="When the first bar that is missing falls, or fell, due.")
    updated_at: datetime = Field(description="When the features were last computed; for bars, when last verified.")
    settled_until: datetime | None = Field(
        description="Bars that start before have settled; later ones may still change."
    )
    warning: str | None = Field(None, description="Absent while FRESH.")
    cache_lifespan: str | None = Field(None, description="Only when STALE: what is left of 24 h, in words.")
    cache_lifespan_seconds: float | None = Field(None, description="The same in seconds; 0 when it has passed.")


class SeriesAnswer(BaseModel):
    """What both answers about a series hold."""

    symbol: str
    timeframe: Literal["5m", "15m", "1h", "4h", "1d"]
    records_returned: int
    date_range: DateRange | None
    freshness: FreshnessMember
    timestamp: datetime = Field(description="When this answer was given.")


def features_answer(columns: Sequence[Column]) -> type[BaseModel]:
    """Return the schema of an answer of bars with features, each record holding `columns`."""
    records: Any = list[_record("FeatureRecord", columns)]  # type: ignore[misc]
    return create_model("FeaturesAnswer", __base__=SeriesAnswer, __doc__="Bars with features.", features=(records, ...))


class BarsAnswer(SeriesAnswer):
    """Bars."""

    adjusted: bool
    as_of: datetime | None
    bars: list[_record("BarRecord", BAR_COLUMNS)]  # type: ignore[valid-type]


class ParameterError(BaseModel):
    """One parameter that is wrong."""

    parameter: str
    detail: str


class ProblemDocument(BaseModel):
    """An RFC 9457 problem document."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[ParameterError] | None = None


def _problem(description: str, status: int, title: str, detail: str, **members: Any) -> dict[str, Any]:
    example = {"type": "about:blank", "title": title, "status": status, "detail": detail, "instance": "/…", **members}
    schema = {"$ref": "#/components/schemas/ProblemDocument"}
    return {"description": description, "content": {PROBLEM: {"schema": schema, "example": example}}}


_UNPROCESSABLE: Final = _problem(
    "A parameter is wrong",
    422,
    "Unprocessable Entity",
    "limit: must be at most 10000; '20000' is not.",
    errors=[{"parameter": "limit", "detail": "must be at most 10000; '20000' is not."}],
)
_UNAVAILABLE: Final = _problem(
    "The database is unavailable; Retry-After says when to ask again",
    503,
    "Service Unavailable",
    "The database cannot be used at the moment; the API reconnects by itself.",
)

_BAR: Final = {
    "ts": "2026-01-05T14:30:00Z",
    "open": 243.61,
    "high": 244.02,
    "low": 243.4,
    "close": 243.9,
    "volume": 181502.0,
    "vwap": 243.74,
    "trades": 2104,
}
_FEATURES: Final = {
    "log_return": 0.00119,
    "return_1h": 0.0021,
    "return_1d": 0.0042,
    "volatility_20": 0.214,
    "volatility_50": 0.231,
    "atr": 0.61,
    "rolling_volume_20": 164210.5,
    "volume_ratio": 1.105,
    "hh": True,
    "hl": True,
    "lh": False,
    "ll": False,
    "trend_direction": "neutral",
    "structure_label": "bullish",
    "volatility_regime": "medium",
    "trend_regime": "uptrend",
    "compression_regime": "expanded",
}
_HEAD: Final = {
    "symbol": "AAPL",
    "timeframe": "5m",
    "records_returned": 1,
    "date_range": {"start": "2026-01-05T14:30:00Z", "end": "2026-01-05T14:30:00Z"},
    "freshness": {
        "status": "FRESH",
        "staleness_seconds": 0.0,
        "age_seconds": 41.2,
        "verified_at": "2026-01-05T14:37:02Z",
        "next_due_at": "2026-01-05T14:42:00Z",
        "updated_at": "2026-01-05T14:37:02Z",
        "settled_until": "2026-01-05T05:00:00Z",
    },
    "timestamp": "2026-01-05T14:37:43.200000Z",
}
BARS_EXAMPLE: Final = {**_HEAD, "adjusted": True, "as_of": "2026-01-31T21:00:00Z", "bars": [_BAR]}


def features_example(columns: Sequence[Column]) -> dict[str, Any]:
    """Return an answer of bars with features; own features, whose values nobody here knows, are null."""
    known = _BAR | _FEATURES
    return {**_HEAD, "features": [{column.name: known.get(column.name) for column in columns}]}


def series_responses(example: dict[str, Any], model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
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
        304: {"description": "Records and freshness status are those of the ETag in If-None-Match"},
        404: _problem(
            "Not tracked, or tracked and never computed; then a backfill is queued",
            404,
            "Not Found",
            "AAPL is tracked, but its 5m features have never been computed. A backfill was queued just now, at "
            "2026-01-05T14:37:43Z: ask again in a minute.",
            backfill_request={
                "id": 7,
                "status": "queued",
                "requested_at": "2026-01-05T14:37:43Z",
                "already_requested": False,
            },
        ),
        406: _problem("None of the representations is acceptable", 406, "Not Acceptable", "Offered are …"),
        422: _UNPROCESSABLE,
        503: _UNAVAILABLE,
    }


def admin_responses(model: Any) -> dict[int | str, dict[str, Any]]:
    """Return the responses of an admin endpoint."""
    return {
        200: {"description": "The report", "model": model},
        401: _problem("Not from this machine, and without the token", 401, "Unauthorized", "Send the API's token …"),
        403: _problem("Not from this machine, and no token is set", 403, "Forbidden", "Only from this machine."),
        422: _UNPROCESSABLE,
        503: _UNAVAILABLE,
    }


def health_responses(model: Any) -> dict[int | str, dict[str, Any]]:
    """Return the responses of the health endpoint."""
    return {
        200: {"description": "Every dependency answers", "model": model},
        503: _problem("A dependency is down", 503, "Service Unavailable", "PostgreSQL cannot be reached."),
    }


def complete_schema(app: FastAPI) -> None:
    """Make the OpenAPI document name the problem document where the framework would name its own error."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = made()
            schemas = schema["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            schemas["ParameterError"] = ParameterError.model_json_schema()
            schemas["ProblemDocument"] = ProblemDocument.model_json_schema(
                ref_template="#/components/schemas/{model}"
            ) | {"$defs": None}
            del schemas["ProblemDocument"]["$defs"]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to change the document
