"""The answers about series as pydantic models, from which the OpenAPI document and its tests derive.

They describe what `answers` and `several` write; no request is validated or serialized by them.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from market_data_pipeline.domain.adjustments import Adjustment
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.serving.freshness import AnswerFreshness

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.reports.series_records import Column

_TYPES: Final[dict[str, type]] = {"instant": datetime, "float": float, "integer": int, "boolean": bool, "text": str}


def _kind(column: Column) -> Any:
    if column.kind == "instant":
        return datetime | int  # milliseconds since 1970, with `timestamps=ms`
    kind: Any = Literal[column.labels] if column.labels else _TYPES[column.kind]
    return kind | None if column.nullable else kind


def _record(name: str, columns: Sequence[Column]) -> Any:
    fields: dict[str, Any] = {c.name: (_kind(c), Field(description=c.description)) for c in columns}
    return create_model(name, **fields)


def _columns(name: str, columns: Sequence[Column]) -> Any:
    fields: dict[str, Any] = {c.name: (list[_kind(c)], Field(description=c.description)) for c in columns}  # type: ignore[misc]
    return create_model(name, **fields)


class DateRange(BaseModel):
    """The starts of the first and the last record."""

    start: datetime
    end: datetime


class ProblemDocument(BaseModel):
    """An RFC 9457 problem document."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[dict[str, str]] | None = Field(None, description="Each wrong parameter, with a sentence about it.")


class Paged(BaseModel):
    """What every answer of records holds."""

    records_returned: int
    truncated: bool = Field(description="Whether the range has older records than these.")
    next: str | None = Field(description="Where the next older ones are: a path from the host on; null without any.")
    cursor: str | None = Field(description="The parameter `cursor` of that address.")
    timestamp: datetime = Field(description="When this answer was sent.")


class SeriesAnswer(Paged):
    """What every answer about a series holds."""

    symbol: str
    timeframe: Timeframe
    date_range: DateRange | None
    freshness: AnswerFreshness


class OneOfSeveral(BaseModel):
    """What an answer about several series holds of each."""

    symbol: str
    timeframe: Timeframe
    records_returned: int
    truncated: bool = Field(description="Whether the range has older records of this series.")
    date_range: DateRange | None
    freshness: AnswerFreshness | None = Field(None, description="Null when nothing of the series is stored.")
    problem: ProblemDocument | None = Field(None, description="Why nothing of the series is stored.")


class OfBars(BaseModel):
    """What only answers of bars hold."""

    adjusted: bool = Field(description="Whether bars are adjusted at all.")
    adjustment: Adjustment
    as_of: datetime | None


class Answers:
    """The models of the answers of one kind of records.

    Args:
        what: the name of the kind, in the singular.
        records_key: the member that holds records.
        columns: of a record.
        more: has further members of an answer.
    """

    def __init__(
        self, what: str, records_key: str, columns: Sequence[Column], more: type[BaseModel] | None = None
    ) -> None:
        name = records_key.capitalize()
        extra = () if more is None else (more,)
        record = _record(f"{what}Record", columns)
        records: Any = {records_key: (list[record], ...)}  # type: ignore[valid-type]
        arrays: Any = {"columns": (_columns(f"{what}Columns", columns), ...)}
        self.one = create_model(f"{name}Answer", __base__=(SeriesAnswer, *extra), **records)
        self.one_by_column = create_model(f"{name}ByColumn", __base__=(SeriesAnswer, *extra), **arrays)
        each = create_model(f"{name}OfSeries", __base__=OneOfSeveral, **records)
        each_by_column = create_model(f"{name}OfSeriesByColumn", __base__=OneOfSeveral, **arrays)
        of_each: Any = {"series": (list[each], ...)}
        of_each_by_column: Any = {"series": (list[each_by_column], ...)}
        self.several = create_model(f"Several{name}Answer", __base__=(Paged, *extra), **of_each)
        self.several_by_column = create_model(f"Several{name}ByColumn", __base__=(Paged, *extra), **of_each_by_column)
