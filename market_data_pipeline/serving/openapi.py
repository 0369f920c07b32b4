"""The responses as the OpenAPI page describes them: headers, an example of each, and every problem."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson
from fastapi.security import HTTPBearer
from pydantic.json_schema import models_json_schema

from market_data_pipeline.reports.series_records import BAR_COLUMNS, Column, Watermarks
from market_data_pipeline.serving.formats import Media, instant
from market_data_pipeline.serving.freshness import freshness_at
from market_data_pipeline.serving.models import Answers, OfBars, ProblemDocument
from market_data_pipeline.serving.problem_types import ProblemType
from market_data_pipeline.serving.problems import DATABASE_UNAVAILABLE, PROBLEM, Problem, problem_document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

Responses = dict[int | str, dict[str, Any]]

_SCHEMAS: Final = "#/components/schemas/"


def _schema(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _SCHEMAS + model.__name__}


def _header(description: str, kind: str = "string", *, required: bool = False) -> dict[str, Any]:
    return {"description": description, "required": required, "schema": {"type": kind}}


_NO_STORE: Final = {"Cache-Control": _header("`no-store`", required=True)}
_RETRY_AFTER: Final = {"Retry-After": _header("Seconds after which to ask again.", "integer")}
_LINK: Final = {"Link": _header('The address of the next page, with `rel="next"`; absent on the last one.')}
_ETAG: Final = {
    "ETag": _header("Weak; identifies records and freshness status, for `If-None-Match`.", required=True),
    "Cache-Control": _header("`no-cache`: revalidate before reuse.", required=True),
    "Vary": _header("What else the answer depends on.", required=True),
    "X-Freshness": _header("FRESH, AGING, STALE or MISSING.", required=True),
    "X-Staleness-Seconds": _header("How long the first missing bar has been due; 0 when none is.", "number"),
    "X-Age-Seconds": _header("Seconds since the series was last verified.", "number"),
    "X-Verified-At": _header("When the series was last verified, ISO 8601, UTC."),
    "X-Settled-Until": _header("Bars from here on may still change, ISO 8601, UTC."),
    "X-Life": _header("Only when it does not trade: silent, halted, delisted or unknown."),
    "X-Freshness-Warning": _header("A sentence about records that are not fresh."),
    "X-Cache-Lifespan": _header("Seconds for which stale records remain of use.", "number"),
}


def _problem(
    description: str, detail: str, *kinds: ProblemType, headers: dict[str, Any] | None = None, **members: Any
) -> Responses:
    """Return the response of the status that all `kinds` have, with an example of the last one."""
    kind = kinds[-1]
    example = orjson.loads(problem_document(Problem(kind.status, detail, kind=kind, **members), "/…"))
    return {
        kind.status.value: {
            "description": description,
            "headers": _NO_STORE | (headers or {}),
            "content": {PROBLEM: {"schema": _schema(ProblemDocument), "example": example}},
            "x-problem-types": [one.uri for one in kinds],
        }
    }


UNPROCESSABLE: Final = _problem(
    "A parameter is wrong",
    "limit: must be at most 10000; '20000' is not.",
    ProblemType.INVALID_PARAMETER,
    errors=[{"parameter": "limit", "detail": "must be at most 10000; '20000' is not."}],
)
_UNAVAILABLE: Final = _problem(
    "The database is unavailable; Retry-After says when to try again",
    DATABASE_UNAVAILABLE,
    ProblemType.DATABASE_UNAVAILABLE,
    ProblemType.BUSY,
    headers=_RETRY_AFTER,
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
    "truncated": True,
    "next": "/api/v1/…/AAPL?timeframe=5m&limit=1&cursor=eNrbqJ6k6vKbAwAKkwLW",
    "cursor": "eNrbqJ6k6vKbAwAKkwLW",
    "date_range": {"start": _BAR["ts"], "end": _BAR["ts"]},
    "freshness": orjson.loads(freshness_at(_WATERMARKS, _SENT).to_json()),
    "timestamp": instant(_SENT),
}
_ANY: Final = {"instant": _BAR["ts"], "float": 0.5, "integer": 1, "boolean": True, "text": "text"}
_OF_BARS: Final = {"adjusted": True, "adjustment": "splits", "as_of": "2026-01-31T21:00:00Z"}
_BAR_ANSWERS: Final = Answers("Bar", "bars", BAR_COLUMNS, OfBars)


def bars_responses() -> Responses:
    """Return the responses of the bars of a series."""
    return _series_responses({**_HEAD, **_OF_BARS, "bars": [_BAR]}, _BAR_ANSWERS.one, _BAR_ANSWERS.one_by_column)


def several_bars_responses() -> Responses:
    """Return the responses of the bars of several symbols."""
    example = _of_several({"bars": [_BAR]}, _OF_BARS)
    return _several_responses(example, _BAR_ANSWERS.several, _BAR_ANSWERS.several_by_column)


def feature_answers(columns: Sequence[Column]) -> Answers:
    """Return the models of the answers of features, whose records have these columns."""
    return Answers("Feature", "features", columns)


def features_responses(columns: Sequence[Column], answers: Answers) -> Responses:
    """Return the responses of the features of a series."""
    example = {**_HEAD, "features": [_feature_record(columns)]}
    return _series_responses(example, answers.one, answers.one_by_column)


def several_features_responses(columns: Sequence[Column], answers: Answers) -> Responses:
    """Return the responses of the features of several symbols."""
    example = _of_several({"features": [_feature_record(columns)]}, {})
    return _several_responses(example, answers.several, answers.several_by_column)


def _feature_record(columns: Sequence[Column]) -> dict[str, Any]:
    """Return an example record; a feature without an example above shows a value of its type."""
    known = _BAR | _FEATURES
    return {column.name: known.get(column.name, next(iter(column.labels), _ANY[column.kind])) for column in columns}


def _of_several(records: dict[str, Any], members: dict[str, Any]) -> dict[str, Any]:
    of_one = ("symbol", "timeframe", "records_returned", "truncated", "date_range", "freshness")
    of_all = ("records_returned", "truncated", "next", "cursor", "timestamp")
    each = {name: _HEAD[name] for name in of_one} | {"problem": None} | records
    return {**members, **{name: _HEAD[name] for name in of_all}, "series": [each]}


def _series_responses(example: dict[str, Any], model: type[BaseModel], by_column: type[BaseModel]) -> Responses:
    return _records_responses(
        example,
        model,
        by_column,
        _ETAG | _LINK,
        _problem(
            "Not tracked; or tracked but never computed, and a backfill is queued",
            "AAPL is tracked, but its 5m features have never been computed. A backfill was queued just now, at "
            "2026-01-05T14:37:43Z: ask again in a minute.",
            ProblemType.NOT_FOUND,
            ProblemType.NOT_TRACKED,
            ProblemType.NO_BARS,
            ProblemType.NEVER_COMPUTED,
            headers=_RETRY_AFTER,
            backfill_request={
                "id": 7,
                "status": "queued",
                "requested_at": "2026-01-05T14:37:43Z",
                "already_requested": False,
            },
        ),
    )


def _several_responses(example: dict[str, Any], model: type[BaseModel], by_column: type[BaseModel]) -> Responses:
    missing = _header("In a table: the symbols of which nothing is stored, separated by commas.")
    shared = {name: _ETAG[name] for name in ("ETag", "Cache-Control", "Vary")}
    return _records_responses(
        example,
        model,
        by_column,
        shared | _LINK | {"X-Missing": missing},
        _problem(
            "Symbols are not tracked; `symbols` names them", "Not tracked here: 'AAPM'. …", ProblemType.NOT_TRACKED,
            symbols=["AAPM"],
        ),
    )  # fmt: skip


def _records_responses(
    example: dict[str, Any],
    model: type[BaseModel],
    by_column: type[BaseModel],
    headers: dict[str, Any],
    not_found: Responses,
) -> Responses:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        200: {
            "description": "The records; tables carry in headers what JSON has beside them",
            "model": model,
            "headers": headers,
            "content": {
                Media.JSON.value: {"example": example},
                Media.COLUMNS.value: {"schema": _schema(by_column)},
                Media.CSV.value: {"schema": {"type": "string"}},
                Media.ARROW.value: binary,
                Media.PARQUET.value: binary,
            },
        },
        304: {"description": "Records and freshness status still match the ETag in If-None-Match", "headers": headers},
        **not_found,
        **_problem("None of the representations is acceptable", "This endpoint offers …", ProblemType.NOT_ACCEPTABLE),
        **UNPROCESSABLE,
        **_UNAVAILABLE,
    }


def with_schemas(document: dict[str, Any], features: Answers) -> dict[str, Any]:
    """Return FastAPI's document with the schemas that responses refer to by name; it knows only those of JSON."""
    by_column = (each for of in (_BAR_ANSWERS, features) for each in (of.one_by_column, of.several_by_column))
    models: Any = [(one, "serialization") for one in (ProblemDocument, *by_column)]
    _, found = models_json_schema(models, ref_template=_SCHEMAS + "{model}")
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in found["$defs"].items():
        schemas.setdefault(name, schema)
    return document


# Where a document names this API: relative, so that it holds under any host and path prefix.
SERVERS: Final = [{"url": "./", "description": "This server"}]

BEARER: Final = HTTPBearer(
    scheme_name="token",
    description="MARKET_DATA_API_TOKEN. If none is set, only the API's own machine has access, without a token.",
    auto_error=False,
)


def admin_responses(model: type[BaseModel]) -> Responses:
    """Return the responses of an admin endpoint."""
    return {
        200: {"description": "The report", "model": model, "headers": _NO_STORE},
        **_problem(
            "A token is set, and the request does not carry it",
            "Send the API's token …",
            ProblemType.TOKEN_REQUIRED,
            headers={"WWW-Authenticate": _header("`Bearer` and a realm.", required=True)},
        ),
        **_problem(
            "No token is set, and the request does not come from this machine",
            "Without MARKET_DATA_API_TOKEN …",
            ProblemType.LOCAL_ONLY,
        ),
        **UNPROCESSABLE,
        **_UNAVAILABLE,
    }


def symbols_responses(model: type[BaseModel]) -> Responses:
    """Return the responses of the list of symbols."""
    ok = {"description": "The symbols", "model": model, "headers": _NO_STORE | _LINK}
    return {200: ok, **UNPROCESSABLE, **_UNAVAILABLE}


def problem_list() -> str:
    """Return the types of problems as a list in Markdown, with links to their pages."""
    lines = (f"- [`{kind.uri}`](.{kind.uri}): {kind.status.value}, {kind.title}." for kind in ProblemType)
    return "The `type` of a problem is one of these; compare it as text.\n\n" + "\n".join(lines)


def health_responses(model: type[BaseModel]) -> Responses:
    """Return the responses of the health endpoint."""
    return {
        200: {"description": "Every dependency answers", "model": model, "headers": _NO_STORE},
        **_problem(
            "A dependency is down",
            "PostgreSQL cannot be reached.",
            ProblemType.DATABASE_UNAVAILABLE,
            ProblemType.UNHEALTHY,
            headers=_RETRY_AFTER,
        ),
    }


METRICS_RESPONSES: Final[Responses] = {
    200: {
        "description": "The text format",
        "headers": _NO_STORE,
        "content": {"text/plain": {"schema": {"type": "string"}}},
    },
}
