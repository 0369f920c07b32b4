"""The environment, read and typed in one place: when a command starts, never when a module is imported.

Add here: a variable with an example and a parser whose error completes the sentence "VARIABLE …"; document it in
`.env.example` too. Keep out: what the values mean (polygon.plans, domain).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast
from urllib.parse import parse_qs, urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticUseDefault
from pydantic_settings import BaseSettings, DotEnvSettingsSource, NoDecode, SettingsConfigDict

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.settings import project
from market_data_pipeline.settings.addresses import is_loopback, local_url, names_this_machine

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from pydantic_settings import InitSettingsSource, PydanticBaseSettingsSource

VENDOR_URL: Final = "https://api.polygon.io"
PLAN_NAMES: Final = ("basic", "starter", "developer", "advanced")
PACKAGED_UNIVERSE: Final = project.PACKAGE / "universe.yaml"

# There are more days than this from 1990, where the calendars begin, to today.
_LONGEST_HISTORY_DAYS: Final = 13_000
# A symbol that is being refreshed holds a database connection, and the embedded server allows 200 in all.
_MOST_CONCURRENT_SYMBOLS: Final = 50
_SCHEMES: Final = {"postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"}


# Parsers: each raises ValueError with a message that completes the sentence "VARIABLE …"; it shows the given text
# unless that may hold a secret.


def _whole_number(low: int, high: int) -> Callable[[Any], int]:
    """Return a parser of whole numbers from `low` to `high`, both included."""

    def parse(given: Any) -> int:
        text = str(given).strip()
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise ValueError(f"is {given!r}, which is not a whole number")
        if not low <= (number := int(text)) <= high:
            raise ValueError(f"is {number}, which is not between {low} and {high}")
        return number

    return parse


def _one_of(what: str, names: Collection[str]) -> Callable[[Any], str]:
    """Return a parser of one of `names`, ignoring case."""

    def parse(given: Any) -> str:
        name = str(given).strip().lower()
        if name not in names:
            raise ValueError(f"is {given!r}, which is not a {what}: use one of {', '.join(names)}")
        return name

    return parse


def _instant(given: Any) -> datetime:
    """Return an ISO 8601 instant with its offset as aware UTC."""
    try:
        moment = given if isinstance(given, datetime) else datetime.fromisoformat(str(given).strip())
    except ValueError:
        raise ValueError(f"is {given!r}, which is not an ISO 8601 instant") from None
    if moment.tzinfo is None:
        raise ValueError(f"is {given!r}, which has no offset from UTC")
    return moment.astimezone(UTC)


def _existing_path(given: Any) -> Path:
    """Return the absolute path of a file or folder that exists."""
    path = Path(given).expanduser().absolute()
    if not path.exists():
        raise ValueError(f"is {str(given)!r}, and there is no such file or folder")
    return path


def _module(given: Any) -> str:
    """Return the name of an importable module, or of a file that ends in `.py`."""
    text = str(given).strip()
    if not text.endswith(".py") and not all(part.isidentifier() for part in text.split(".")):
        raise ValueError(f"is {text!r}, which is neither a module's name nor a .py file")
    return text


def _file_of_module(named: str | None, root: Path) -> str | None:
    """Return the absolute path of a `.py` file, a relative one taken from `root`; other names as they are."""
    if named is None or not named.endswith(".py"):
        return named
    file = root / Path(named).expanduser()
    if not file.is_file():
        raise ValueError(f"is {named!r}, and there is no such file")
    return str(file)


def _api_key(given: Any) -> SecretStr:
    """Return a key that can be sent in a header."""
    text = given.get_secret_value() if isinstance(given, SecretStr) else str(given)
    if not re.fullmatch(r"[!-~]+", text := text.strip()):
        raise ValueError("contains a blank or a character that no key has (its value is not shown)")
    return SecretStr(text)


def _base_url(given: Any) -> str:
    """Return the address of a Polygon-compatible server, without a slash at its end."""
    text = str(given).strip()
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("is not an address that starts with https:// or http:// and names a host")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("must not contain a key, a login or anything after a ? (its value is not shown)")
    return text.rstrip("/")


def _listening_address(given: Any) -> str:
    """Return an address of this machine to listen on: an IP address, or localhost."""
    text = str(given).strip().strip("[]").lower()
    try:
        return "127.0.0.1" if text == "localhost" else str(ip_address(text))
    except ValueError:
        raise ValueError(f"is {str(given)!r}, which is neither an IP address nor localhost") from None


def _database_url(given: Any) -> str:
    """Return a libpq URL, `postgresql://…`, of a server and a database; the driver of an SQLAlchemy URL is dropped."""
    text = str(given).strip()
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError("does not start with postgresql:// (its value is not shown)")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or parts.fragment:
        raise ValueError("is not a well-formed URL: write @ : / ? # in the password as %40 %3A %2F %3F %23")
    if not parts.path.strip("/") and "dbname" not in parse_qs(parts.query):
        raise ValueError("does not name a database (its value is not shown)")
    return f"postgresql://{rest}"


def _alert_urls(given: Any) -> list[str]:
    """Return comma-separated Apprise URLs; a comma inside one, as between mail recipients, is part of it."""
    if isinstance(given, list):
        return given
    urls = [url.strip() for url in re.split(r"[,\s]+(?=[A-Za-z][A-Za-z0-9+.-]*://)", str(given).strip(", "))]
    for number, url in enumerate(urls, start=1):
        if "://" not in url:
            raise ValueError(f"has no :// in address number {number} (its value is not shown)")
    return urls


def _default_base_url(values: dict[str, Any]) -> str | None:
    return VENDOR_URL if values.get("api_key") else None


def _default_plan(values: dict[str, Any]) -> str:
    return "basic" if values.get("base_url") else "advanced"


def _default_database_url(values: dict[str, Any]) -> str:
    """Return the database for this kind of bars on the project's server."""
    kind = "vendor" if values.get("base_url") else "replay" if values.get("sandbox_replay") else "sandbox"
    return project.local_url(project.state_dir(values["project_root"]), project.DATABASES[kind][0])


def _default_owner_url(values: dict[str, Any]) -> str:
    """Return the login that owns the project's database; on the user's server that of DATABASE_URL."""
    url: str = values.get("database_url", "")
    state = project.state_dir(values["project_root"])
    if url and project.is_local(url, state):
        url = project.local_url(state, urlsplit(url).path.strip("/"), role=project.OWNER)
    return url


def _default_dagster_url(values: dict[str, Any]) -> str:
    """Return Dagster's database on the project's server; on the user's server, which may refuse a new one, our own."""
    url: str = values.get("database_url", "")
    state = project.state_dir(values["project_root"])
    if url and project.is_local(url, state):
        market_data = urlsplit(url).path.strip("/")
        url = project.local_url(state, project.DAGSTER_DATABASES.get(market_data, project.DAGSTER_DATABASE))
    return _psycopg2(url)


def _psycopg2(url: str) -> str:
    """Return `url` for dagster-postgres, which supports only psycopg2, where SQLAlchemy 2.1 would choose psycopg 3."""
    return "postgresql+psycopg2" + url[url.index("://") :] if url else url


def _known(default: Any, variable: str, example: str, parse: Callable[[Any], Any] | None = None, **more: Any) -> Any:
    """Return a field read from `variable`; `default` is a value or a function of the preceding fields."""
    more |= {"default_factory": default} if callable(default) else {"default": default}
    return Field(validation_alias=variable, examples=[example], validate_default=False, **more)


class Settings(BaseSettings):
    """The values of the environment and `.env`, validated; the environment wins, and an empty value counts as not set.

    Secrets are SecretStr or left out of the representation. Times are aware UTC.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", case_sensitive=True, populate_by_name=True, env_prefix="MARKET_DATA_FIELD_"
    )

    project_root: Annotated[Path, BeforeValidator(_existing_path)] = _known(
        lambda: project_root(), "MARKET_DATA_PROJECT_ROOT", "/srv/market-data"
    )
    api_key: Annotated[SecretStr | None, BeforeValidator(_api_key)] = _known(None, "POLYGON_API_KEY", "your-key")
    base_url: Annotated[str | None, BeforeValidator(_base_url)] = _known(
        _default_base_url, "POLYGON_BASE_URL", VENDOR_URL
    )
    plan: Annotated[str, BeforeValidator(_one_of("plan", PLAN_NAMES))] = _known(
        _default_plan, "POLYGON_PLAN", "starter"
    )
    calls_per_minute: Annotated[int | None, BeforeValidator(_whole_number(0, 100_000))] = _known(
        None, "POLYGON_CALLS_PER_MINUTE", "100 (0 lifts the limit)"
    )
    sandbox_replay: Annotated[Path | None, BeforeValidator(_existing_path)] = _known(
        None, "MARKET_DATA_SANDBOX_REPLAY", "recorded/"
    )
    database_url: Annotated[str, BeforeValidator(_database_url)] = _known(
        _default_database_url, "DATABASE_URL", "postgresql://user:password@localhost:5432/market_data", repr=False
    )
    owner_url: Annotated[str, BeforeValidator(_database_url)] = _known(
        _default_owner_url,
        "MARKET_DATA_OWNER_URL",
        "postgresql://owner:password@localhost:5432/market_data",
        repr=False,
    )
    dagster_postgres_url: Annotated[str, BeforeValidator(lambda url: _psycopg2(_database_url(url)))] = _known(
        _default_dagster_url,
        "DAGSTER_POSTGRES_URL",
        "postgresql+psycopg2://user:password@localhost:5432/dagster",
        repr=False,
    )
    dagster_home: Annotated[Path, BeforeValidator(_existing_path)] = _known(
        lambda values: values.get("project_root"), "DAGSTER_HOME", "/srv/market-data"
    )
    universe_file: Annotated[Path, BeforeValidator(_existing_path)] = _known(
        PACKAGED_UNIVERSE, "MARKET_DATA_UNIVERSE", "universe.yaml"
    )
    history_days: Annotated[int, BeforeValidator(_whole_number(1, _LONGEST_HISTORY_DAYS))] = _known(
        365, "MARKET_DATA_HISTORY_DAYS", "365"
    )
    max_concurrent_symbols: Annotated[int, BeforeValidator(_whole_number(1, _MOST_CONCURRENT_SYMBOLS))] = _known(
        3, "MARKET_DATA_MAX_CONCURRENT_SYMBOLS", "3"
    )
    as_of: Annotated[datetime | None, BeforeValidator(_instant)] = _known(
        None, "MARKET_DATA_AS_OF", "2025-03-14T15:30:00-04:00"
    )
    api_token: SecretStr | None = _known(None, "MARKET_DATA_API_TOKEN", "a-long-random-text")
    alert_urls: Annotated[list[str], NoDecode, BeforeValidator(_alert_urls)] = _known(
        list, "MARKET_DATA_ALERT_URLS", "json://alerts.example/market-data", repr=False
    )
    features_module: Annotated[str | None, BeforeValidator(_module)] = _known(
        None, "MARKET_DATA_FEATURES_MODULE", "my_features.py"
    )
    api_port: Annotated[int, BeforeValidator(_whole_number(1, 65_535))] = _known(8000, "MARKET_DATA_API_PORT", "8000")
    ui_port: Annotated[int, BeforeValidator(_whole_number(1, 65_535))] = _known(3000, "MARKET_DATA_UI_PORT", "3000")
    api_host: Annotated[str, BeforeValidator(_listening_address)] = _known(
        "127.0.0.1", "MARKET_DATA_API_HOST", "127.0.0.1"
    )
    ui_host: Annotated[str, BeforeValidator(_listening_address)] = _known(
        "127.0.0.1", "MARKET_DATA_UI_HOST", "127.0.0.1"
    )
    api_url: Annotated[str, BeforeValidator(_base_url)] = _known(
        lambda values: local_url(values.get("api_host", "127.0.0.1"), values.get("api_port", 8000)),
        "MARKET_DATA_API_URL",
        "https://example.org/market-data",
    )
    ui_url: Annotated[str, BeforeValidator(_base_url)] = _known(
        lambda values: local_url(values.get("ui_host", "127.0.0.1"), values.get("ui_port", 3000)),
        "MARKET_DATA_UI_URL",
        "https://example.org/dagster",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments first, then the environment, then `.env` of the project root, wherever the command runs."""
        given = cast("InitSettingsSource", init_settings).init_kwargs  # by the variables' names
        root = given.get("MARKET_DATA_PROJECT_ROOT") or project_root()
        return init_settings, env_settings, DotEnvSettingsSource(settings_cls, env_file=root / ".env")

    @field_validator("*", mode="before")
    @classmethod
    def _empty_counts_as_not_set(cls, value: Any) -> Any:
        if value is None or (isinstance(value, str) and not value.strip()):
            raise PydanticUseDefault
        return value

    @field_validator("features_module")
    @classmethod
    def _beside_the_project(cls, value: str | None, info: ValidationInfo) -> str | None:
        return _file_of_module(value, info.data.get("project_root", Path()))

    @field_validator("api_host", "api_url")
    @classmethod
    def _needs_a_token(cls, value: str, info: ValidationInfo) -> str:
        """Refuse to be reached by other machines without the token that tells their operators from everyone else."""
        local = (
            names_this_machine(urlsplit(value).hostname or "") if info.field_name == "api_url" else is_loopback(value)
        )
        if not local and info.data.get("api_token", True) is None:
            raise ValueError(f"is {value!r}, which other machines can reach: set MARKET_DATA_API_TOKEN too")
        return value

    @field_validator("dagster_postgres_url", mode="before")
    @classmethod
    def _follows_the_bars(cls, value: Any, info: ValidationInfo) -> Any:
        """Ignore a `.env` that names the project's Dagster database for another kind of bars."""
        root, bars = info.data.get("project_root"), info.data.get("database_url")
        if root is not None and bars and isinstance(value, str):
            state = project.state_dir(root)
            ours = urlsplit(value).path.strip("/") in project.DAGSTER_DATABASES.values()
            if ours and project.is_local(value, state) and project.is_local(bars, state):
                raise PydanticUseDefault
        return value

    @property
    def state_dir(self) -> Path:
        """The folder for the project's own files at run time; only its owner can read it."""
        return project.state_dir(self.project_root)

    @property
    def embedded_database(self) -> bool:
        """True when market data is on the project's own server, which is then started on demand."""
        return project.is_local(self.database_url, self.state_dir)

    @property
    def uses_sandbox(self) -> bool:
        """True when bars come from the sandbox server, which is then started on demand."""
        return self.base_url is None

    @property
    def api_prefix(self) -> str:
        """The path below which people reach the API, such as `/market-data`; empty for none."""
        return urlsplit(self.api_url).path

    @property
    def ui_prefix(self) -> str:
        """The path below which people reach Dagster's UI, such as `/dagster`; empty for none."""
        return urlsplit(self.ui_url).path

    @property
    def local_api_url(self) -> str:
        """The API's address for programs on this machine."""
        return local_url(self.api_host, self.api_port)

    @property
    def local_ui_url(self) -> str:
        """The address of Dagster's UI for programs on this machine."""
        return local_url(self.ui_host, self.ui_port, self.ui_prefix)

    def clock(self) -> datetime:
        """Return the pipeline's current instant, aware UTC: `as_of` if set, else the real time."""
        return self.as_of or datetime.now(UTC)


def load_settings(**given: Any) -> Settings:
    """Return the settings of the environment and the project's `.env`; fields `given` by the caller win over both.

    Raises:
        ConfigurationError: a value is bad; one sentence per bad value, on a line of its own, without secrets.
    """
    root = given.pop("project_root", None) or project_root()
    try:
        return Settings(project_root=root, **given)
    except ValidationError as error:
        # A default that depends on another variable is unknown while that variable is bad.
        bad = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
        raise ConfigurationError("\n".join(map(_sentence, bad))) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{root / '.env'} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from None


def project_root() -> Path:
    """Return MARKET_DATA_PROJECT_ROOT, else the project's folder around the working directory or the package."""
    named = os.environ.get("MARKET_DATA_PROJECT_ROOT", "").strip()
    return Path(named).expanduser().resolve() if named else project.find_project_root(Path.cwd().resolve())


def _sentence(problem: ErrorDetails) -> str:
    """Return a sentence about a bad value: the variable, what is wrong with it, and an example."""
    name = str(problem["loc"][0])
    field = next(f for n, f in Settings.model_fields.items() if name in (n, f.validation_alias))
    cause = problem.get("ctx", {}).get("error", problem["msg"])
    return f"{field.validation_alias} {cause}; for example {field.validation_alias}={(field.examples or [''])[0]}"
