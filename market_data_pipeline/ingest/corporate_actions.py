"""What a reviewed file says of securities where the vendor's reference data are wrong: `corporate_actions.yaml`.

The packaged file has what is known of the vendor; one in the project's folder adds to it and takes precedence. The
packaged one does not apply to synthetic and recorded bars, of which it knows nothing.
"""

from __future__ import annotations

from datetime import date
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.domain.identity import Identity, Tenure
from market_data_pipeline.domain.series import parse_symbol
from market_data_pipeline.settings.project import PACKAGE

if TYPE_CHECKING:
    from pathlib import Path

    from market_data_pipeline.settings import Settings

NAME: Final = "corporate_actions.yaml"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Ticker(_Part):
    ticker: str
    start: date | None = Field(default=None, alias="from")
    end: date | None = Field(default=None, alias="until")

    _parsed = field_validator("ticker")(parse_symbol)


class _Security(_Part):
    reason: str = Field(min_length=1)
    figi: str = ""
    tickers: tuple[_Ticker, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for each in self.tickers:
            if each.start is not None and each.end is not None and each.end <= each.start:
                raise ValueError(f"{each.ticker} ends on {each.end}, which is not after {each.start}")
        for one, following in pairwise(self.tickers):
            if one.end is None or following.start is None or following.start < one.end:
                raise ValueError(f"{following.ticker} must begin when {one.ticker} has ended: write both days")
        return self


class _File(_Part):
    securities: dict[str, _Security] = Field(default_factory=dict)


def load_overrides(settings: Settings) -> dict[str, Identity]:
    """Return which security a symbol is according to the files, by symbol; an empty `security` leaves its id open.

    Raises:
        ConfigurationError: a file cannot be read or is wrong; the message names it and the place.
    """
    files = [settings.project_root / NAME]
    if settings.kind_of_bars == "vendor":
        files.insert(0, PACKAGE / NAME)
    found: dict[str, Identity] = {}
    for file in files:
        if file.exists():
            found |= read_overrides(file)
    return found


def read_overrides(file: Path) -> dict[str, Identity]:
    """Return what one file says, as `load_overrides`."""
    import yaml

    try:
        # Every scalar is a text: YAML would read the ticker ON as true.
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506 - makes nothing else
        parsed = _File.model_validate(content or {})
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigurationError(f"{file} line {line}: this is not YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{file}: this is not YAML: {error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigurationError(f"{file} has a mistake in {where}: {first['msg']}.") from None
    return {
        parse_symbol(symbol): Identity(
            said.figi,
            tuple(Tenure(each.ticker, each.start, each.end) for each in said.tickers),
            "override",
            said.reason,
        )
        for symbol, said in parsed.securities.items()
    }
