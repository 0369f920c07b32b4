"""The environment, read and typed in one place: when a command starts, never when a module is imported.

Add here: a variable with an example and one of `parsers`; document it in `.env.example` too. Keep out: what the values
mean (polygon.plans, domain).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Secret,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticUseDefault

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.settings import env_file, parsers, project
from market_data_pipeline.settings.addresses import is_loopback, local_url, names_this_machine
from market_data_pipeline.settings.database_urls import postgres_url, psycopg2_url
from market_data_pipeline.settings.sandbox import SANDBOX_KEY
from market_data_pipeline.settings.variables import file_variable, refuse_misnamed_key, with_files

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

VENDOR_URL: Final = "https://api.polygon.io"
MASSIVE_URL: Final = "https://api.massive.com"  # the vendor's name since October 2025; both answer
FLAT_FILES_URL: Final = "https://files.massive.com"  # files.polygon.io is the same
PLAN_NAMES: Final = ("basic", "starter", "developer", "advanced")
# In `.env` a relative one begins where that file lies, elsewhere at the working directory. The other paths begin at the
# project's folder anyway, and Dagster wants DAGSTER_HOME to be absolute.
_PATHS: Final = ("sandbox_replay", "universe_file", "lake_url", "flat_files_url")
TIER_NAMES: Final = ("critical", "standard", "low_priority")
PACKAGED_UNIVERSE: Final = project.PACKAGE / "universe.yaml"

# There are more days than this from 1990, where the calendars begin, to today.
_LONGEST_HISTORY_DAYS: Final = 13_000
# A symbol that is being refreshed holds a database connection, and the embedded server allows 200 in all.
_MOST_CONCURRENT_SYMBOLS: Final = 50
_MOST_WORKER_RUNS: Final = 200  # of one host; each takes memory and ten database connections
# The command's own values of variables that `.env` sets otherwise, as JSON, for the processes that it starts: Dagster's
# let `.env` win over the environment.
_OVERRIDES: Final = "MARKET_DATA_OVERRIDES"
KEY_VARIABLES: Final = ("POLYGON_API_KEY", "MASSIVE_API_KEY")
# What only those who fetch need.
FETCHING_VARIABLES: Final = (*KEY_VARIABLES, "MARKET_DATA_FLAT_FILES_KEY_ID", "MARKET_DATA_FLAT_FILES_SECRET")
_WITHHELD: Final = "withheld-from-this-process"
_CONTRADICTION: Final = "Dagster's own processes read {0} from .env, where it is not what this command uses: {1}."


def _default_base_url(values: dict[str, Any]) -> str | None:
    key = values.get("api_key")
    if key is None:
        return None
    return MASSIVE_URL if key is values.get("massive_api_key") else VENDOR_URL


def _other_name_of_key(values: dict[str, Any]) -> SecretStr | None:
    return values.get("massive_api_key")


def _default_plan(values: dict[str, Any]) -> str:
    return "basic" if values.get("base_url") else "advanced"


def _default_database_url(values: dict[str, Any]) -> str:
    """Return the database for this kind of bars on the project's server."""
    kind = _kind_of_bars(values.get("base_url"), values.get("api_key"), values.get("sandbox_replay"))
    return project.local_url(project.state_dir(values["project_root"]), project.DATABASES[kind][0])


def _kind_of_bars(base_url: str | None, key: SecretStr | None, replay: Path | None) -> project.Kind:
    if base_url is None:
        return "replay" if replay else "sandbox"
    # A server on this machine that needs no key, or the sandbox's, is a sandbox that the user started.
    needs_none = key is None or key.get_secret_value() == SANDBOX_KEY
    return "sandbox" if needs_none and names_this_machine(urlsplit(base_url).hostname or "") else "vendor"


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
    return psycopg2_url(url)


def _default_lake_url(values: dict[str, Any]) -> str:
    """Return the folder for this kind of bars: a lake holds bars of one source, like a database."""
    kind = _kind_of_bars(values.get("base_url"), values.get("api_key"), values.get("sandbox_replay"))
    return str(project.state_dir(values["project_root"]) / "lake" / kind)


def _known(default: Any, variable: str, example: str, parse: Callable[[Any], Any] | None = None, **more: Any) -> Any:
    """Return a field read from `variable`; `default` is a value or a function of the preceding fields."""
    more |= {"default_factory": default} if callable(default) else {"default": default}
    return Field(validation_alias=variable, examples=[example], validate_default=False, **more)


class Settings(BaseModel):
    """The values of the environment and `.env`, validated; the environment wins, and an empty value counts as not set.

    `NAME_FILE` in either names a file with the value of NAME.
    Secrets are SecretStr or left out of the representation. Times are aware UTC.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    project_root: Annotated[Path, BeforeValidator(parsers.existing_path)] = _known(
        lambda: project_root(), "MARKET_DATA_PROJECT_ROOT", "/srv/market-data"
    )
    massive_api_key: Annotated[SecretStr | None, BeforeValidator(parsers.api_key)] = _known(
        None, "MASSIVE_API_KEY", "your-key"
    )
    api_key: Annotated[SecretStr | None, BeforeValidator(parsers.api_key)] = _known(
        _other_name_of_key, "POLYGON_API_KEY", "your-key"
    )
    base_url: Annotated[str | None, BeforeValidator(parsers.base_url)] = _known(
        _default_base_url, "POLYGON_BASE_URL", VENDOR_URL
    )
    plan: Annotated[str, BeforeValidator(parsers.one_of("plan", PLAN_NAMES))] = _known(
        _default_plan, "POLYGON_PLAN", "starter"
    )
    calls_per_minute: Annotated[int | None, BeforeValidator(parsers.whole_number(0, 100_000))] = _known(
        None, "POLYGON_CALLS_PER_MINUTE", "100 (0 lifts the limit)"
    )
    flat_files_url: Annotated[str | None, BeforeValidator(parsers.files_url)] = _known(
        None, "MARKET_DATA_FLAT_FILES_URL", "https://files.massive.com"
    )
    flat_files_key_id: Annotated[SecretStr | None, BeforeValidator(parsers.api_key)] = _known(
        None, "MARKET_DATA_FLAT_FILES_KEY_ID", "your-key-id"
    )
    flat_files_secret: Annotated[SecretStr | None, BeforeValidator(parsers.api_key)] = _known(
        None, "MARKET_DATA_FLAT_FILES_SECRET", "your-secret"
    )
    vwap_tiers: Annotated[tuple[str, ...], BeforeValidator(parsers.some_of("tier", TIER_NAMES))] = _known(
        (), "MARKET_DATA_FLAT_FILES_VWAP_TIERS", "critical"
    )
    sandbox_replay: Annotated[Path | None, BeforeValidator(parsers.existing_path)] = _known(
        None, "MARKET_DATA_SANDBOX_REPLAY", "recorded/"
    )
    database_url: Annotated[str, BeforeValidator(postgres_url)] = _known(
        _default_database_url, "DATABASE_URL", "postgresql://user:password@localhost:5432/market_data", repr=False
    )
    standby_url: Annotated[str | None, BeforeValidator(postgres_url)] = _known(
        None, "MARKET_DATA_READER_URL", "postgresql://user:password@standby:5432/market_data", repr=False
    )
    owner_url: Annotated[str, BeforeValidator(postgres_url)] = _known(
        _default_owner_url,
        "MARKET_DATA_OWNER_URL",
        "postgresql://owner:password@localhost:5432/market_data",
        repr=False,
    )
    dagster_postgres_url: Annotated[str, BeforeValidator(lambda url: psycopg2_url(postgres_url(url)))] = _known(
        _default_dagster_url,
        "DAGSTER_POSTGRES_URL",
        "postgresql+psycopg2://user:password@localhost:5432/dagster",
        repr=False,
    )
    dagster_home: Annotated[Path, BeforeValidator(parsers.existing_path)] = _known(
        lambda values: values.get("project_root"), "DAGSTER_HOME", "/srv/market-data"
    )
    universe_file: Annotated[Path, BeforeValidator(parsers.existing_path)] = _known(
        PACKAGED_UNIVERSE, "MARKET_DATA_UNIVERSE", "universe.yaml"
    )
    history_days: Annotated[int, BeforeValidator(parsers.whole_number(1, _LONGEST_HISTORY_DAYS))] = _known(
        365, "MARKET_DATA_HISTORY_DAYS", "365"
    )
    max_concurrent_symbols: Annotated[int, BeforeValidator(parsers.whole_number(1, _MOST_CONCURRENT_SYMBOLS))] = _known(
        3, "MARKET_DATA_MAX_CONCURRENT_SYMBOLS", "3"
    )
    shard_symbols: Annotated[int | None, BeforeValidator(parsers.whole_number(1, 10_000))] = _known(
        None, "MARKET_DATA_SHARD_SYMBOLS", "125"
    )
    keep_log_days: Annotated[int, BeforeValidator(parsers.whole_number(2, _LONGEST_HISTORY_DAYS))] = _known(
        7, "MARKET_DATA_KEEP_LOG_DAYS", "7"
    )
    keep_event_days: Annotated[int, BeforeValidator(parsers.whole_number(1, _LONGEST_HISTORY_DAYS))] = _known(
        7, "MARKET_DATA_KEEP_EVENT_DAYS", "7"
    )
    keep_run_days: Annotated[int, BeforeValidator(parsers.whole_number(2, _LONGEST_HISTORY_DAYS))] = _known(
        90, "MARKET_DATA_KEEP_RUN_DAYS", "90"
    )
    as_of: Annotated[datetime | None, BeforeValidator(parsers.instant)] = _known(
        None, "MARKET_DATA_AS_OF", "2025-03-14T15:30:00-04:00"
    )
    api_token: SecretStr | None = _known(None, "MARKET_DATA_API_TOKEN", "a-long-random-text")
    cors_origins: Annotated[list[str], BeforeValidator(parsers.origins)] = _known(
        list, "MARKET_DATA_API_CORS_ORIGINS", "https://notebooks.example.org"
    )
    alert_urls: Annotated[list[str], BeforeValidator(parsers.alert_urls)] = _known(
        list, "MARKET_DATA_ALERT_URLS", "json://alerts.example/market-data", repr=False
    )
    features_module: Annotated[str | None, BeforeValidator(parsers.module_name)] = _known(
        None, "MARKET_DATA_FEATURES_MODULE", "my_features.py"
    )
    definitions_module: Annotated[str | None, BeforeValidator(parsers.module_name)] = _known(
        None, "MARKET_DATA_DEFINITIONS_MODULE", "my_assets.py"
    )
    lake_url: Annotated[str, BeforeValidator(parsers.lake_url)] = _known(
        _default_lake_url, "MARKET_DATA_LAKE_URL", "s3://research/market-data"
    )
    lake_options: Annotated[Secret[dict[str, str]] | None, BeforeValidator(parsers.store_options)] = _known(
        None, "MARKET_DATA_LAKE_OPTIONS", '{"AWS_REGION": "eu-west-1"}'
    )
    backup_dir: Annotated[Path | str | None, BeforeValidator(parsers.backup_place)] = _known(
        None, "MARKET_DATA_BACKUP_DIR", "/srv/backups"
    )
    backup_options: Annotated[Secret[dict[str, str]] | None, BeforeValidator(parsers.store_options)] = _known(
        None, "MARKET_DATA_BACKUP_OPTIONS", '{"AWS_REGION": "eu-west-1"}'
    )
    backups_kept: Annotated[int, BeforeValidator(parsers.whole_number(1, 1000))] = _known(
        7, "MARKET_DATA_BACKUPS_KEPT", "7"
    )
    packed: Annotated[str, BeforeValidator(parsers.one_of("choice", ("on", "off")))] = _known(
        "on", "MARKET_DATA_PACKED", "off"
    )
    broker_url: Annotated[str | None, BeforeValidator(parsers.broker_url)] = _known(
        None, "MARKET_DATA_BROKER_URL", "redis://:password@broker:6379/0", repr=False
    )
    worker_runs: Annotated[int, BeforeValidator(parsers.whole_number(1, _MOST_WORKER_RUNS))] = _known(
        3, "MARKET_DATA_WORKER_RUNS", "3"
    )
    api_port: Annotated[int, BeforeValidator(parsers.whole_number(1, 65_535))] = _known(
        8000, "MARKET_DATA_API_PORT", "8000"
    )
    ui_port: Annotated[int, BeforeValidator(parsers.whole_number(1, 65_535))] = _known(
        3000, "MARKET_DATA_UI_PORT", "3000"
    )
    api_host: Annotated[str, BeforeValidator(parsers.listening_address)] = _known(
        "127.0.0.1", "MARKET_DATA_API_HOST", "127.0.0.1"
    )
    ui_host: Annotated[str, BeforeValidator(parsers.listening_address)] = _known(
        "127.0.0.1", "MARKET_DATA_UI_HOST", "127.0.0.1"
    )
    api_url: Annotated[str, BeforeValidator(parsers.base_url)] = _known(
        lambda values: local_url(values.get("api_host", "127.0.0.1"), values.get("api_port", 8000)),
        "MARKET_DATA_API_URL",
        "https://example.org/market-data",
    )
    ui_url: Annotated[str, BeforeValidator(parsers.base_url)] = _known(
        lambda values: local_url(values.get("ui_host", "127.0.0.1"), values.get("ui_port", 3000)),
        "MARKET_DATA_UI_URL",
        "https://example.org/dagster",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_the_environment(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Add to the arguments the environment, and to both `.env` of the project root, wherever the command runs."""
        variables = {name: str(field.validation_alias) for name, field in cls.model_fields.items()}
        given = {variables.get(name, name): value for name, value in arguments.items()}
        root = given.get("MARKET_DATA_PROJECT_ROOT") or project_root()
        lines, found = _lines_of(root), dict[str, Any]()
        for source in (lines, environment_variables()):
            known = with_files(source, variables.values(), root)
            found |= {name: known[name] for name in variables.values() if known.get(name) is not None}
        # Dagster's processes and some shells copy the lines of `.env` into their environment.
        for name in {variables[field] for field in _PATHS} & lines.keys():
            if found.get(name) == lines[name]:
                found[name] = parsers.path_from(Path(root), found[name])
        return found | given

    @field_validator("*", mode="before")
    @classmethod
    def _empty_counts_as_not_set(cls, value: Any) -> Any:
        if value is None or (isinstance(value, str) and not value.strip()):
            raise PydanticUseDefault
        return value

    @field_validator("features_module", "definitions_module")
    @classmethod
    def _beside_the_project(cls, value: str | None, info: ValidationInfo) -> str | None:
        return parsers.file_of_module(value, info.data.get("project_root", Path()))

    @field_validator("backup_dir")
    @classmethod
    def _in_the_project(cls, value: Path | str | None, info: ValidationInfo) -> Path | str | None:
        return info.data.get("project_root", Path()) / value if isinstance(value, Path) else value

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

    @field_validator("api_key")
    @classmethod
    def _is_the_only_key(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        other: SecretStr | None = info.data.get("massive_api_key")
        if value and other and value.get_secret_value() != other.get_secret_value():
            raise ValueError("and MASSIVE_API_KEY are two names of one key and differ: remove one")
        return value

    @field_validator("dagster_postgres_url", mode="before")
    @classmethod
    def _is_derived_unless_the_users_own(cls, value: Any) -> Any:
        """Ignore a URL that this project once derived, for example one that a shell read from `.env`."""
        if isinstance(value, str) and env_file.names_own_dagster_database(value):
            raise PydanticUseDefault
        return value

    @property
    def backup_store_options(self) -> dict[str, str]:
        """The options of the object store that holds backups; they may hold secrets."""
        return self.backup_options.get_secret_value() if self.backup_options else {}

    @property
    def state_dir(self) -> Path:
        """The folder for the project's own files at run time; only its owner can read it."""
        return project.state_dir(self.project_root)

    @property
    def embedded_database(self) -> bool:
        """True when market data is on the project's own server, which is then started on demand."""
        return project.is_local(self.database_url, self.state_dir)

    @property
    def reads_elsewhere(self) -> bool:
        """True when the API and the readers read from another server than runs write to."""
        return self.reader_url != self.database_url

    @property
    def reader_url(self) -> str:
        """Where the API and the readers read."""
        return self.standby_url or self.database_url

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

    @property
    def kind_of_bars(self) -> project.Kind:
        """Whether bars are a vendor's, synthetic, or recorded."""
        return _kind_of_bars(self.base_url, self.api_key, self.sandbox_replay)

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
        settings = Settings(project_root=root, **given)
    except ValidationError as error:
        # A default that depends on another variable is unknown while that variable is bad.
        bad = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
        raise ConfigurationError("\n".join(map(_sentence, bad))) from None
    if settings.uses_sandbox and settings.sandbox_replay is None:
        known = known_variables()
        named = {*known, *map(file_variable, known)}
        refuse_misnamed_key({**_lines_of(root), **environment_variables()}, named)
    return settings


def known_variables() -> tuple[str, ...]:
    """Return the names of the variables that the settings are read from."""
    return tuple(str(field.validation_alias) for field in Settings.model_fields.values())


def environment_variables() -> dict[str, str]:
    """Return the environment as the command has it that started this process, Dagster's commands among them."""
    return {**os.environ, **json.loads(os.environ.get(_OVERRIDES) or "{}")}


def process_environment(settings: Settings, *, vendor_key: bool = True) -> dict[str, str]:
    """Return the variables by which `dagster.yaml` and every process that a command starts find this project.

    With `vendor_key=False`, for a process that requests nothing, they replace the key where the environment has it: by
    a word, because some settings follow from whether there is a key.

    Raises:
        ConfigurationError: `.env`, which Dagster's processes prefer, contradicts them.
    """
    lines, ours = _lines_of(settings.project_root), environment_variables()
    home, storage = lines.get("DAGSTER_HOME"), (lines.get("DAGSTER_POSTGRES_URL") or "").strip()
    if home and Path(home).expanduser() != settings.dagster_home:
        raise ConfigurationError(_CONTRADICTION.format("DAGSTER_HOME", "remove it there or in the environment"))
    if storage and storage != settings.dagster_postgres_url:
        same = storage.partition("://")[2] == settings.dagster_postgres_url.partition("://")[2]
        advice = "let it begin with postgresql+psycopg2://" if same else "remove it there or in the environment"
        raise ConfigurationError(_CONTRADICTION.format("DAGSTER_POSTGRES_URL", advice))
    overrides: dict[str, str] = {}
    for name in known_variables():
        both = (name, file_variable(name))
        if any(each in ours for each in both):  # what the environment sets in one way, `.env` does not in the other
            overrides |= {
                each: value for each in both if each in lines and (value := ours.get(each, "")) != lines[each]
            }
    given = with_files(lines, FETCHING_VARIABLES, settings.project_root) | with_files(
        ours, FETCHING_VARIABLES, settings.project_root
    )
    keys = {name: (given.get(name) or "").strip() for name in FETCHING_VARIABLES}
    secret = [name for name, key in keys.items() if key not in {"", SANDBOX_KEY} and not vendor_key]
    withheld = dict.fromkeys(secret, _WITHHELD)
    overrides |= {name: word for name, word in withheld.items() if name in overrides}
    return {
        **withheld,
        "DAGSTER_HOME": str(settings.dagster_home),
        "DAGSTER_POSTGRES_URL": settings.dagster_postgres_url,
        # `deploy/cluster/dagster.yaml` names it; Dagster's other instance files do not.
        **({"MARKET_DATA_BROKER_URL": settings.broker_url} if settings.broker_url else {}),
        "MARKET_DATA_PROJECT_ROOT": str(settings.project_root),
        _OVERRIDES: json.dumps(overrides) if overrides else "",
        **project.STORAGE_ENVIRONMENT,
    }


def _lines_of(root: Path) -> dict[str, str | None]:
    text = env_file.read(root / ".env")
    return text.values if text else {}


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
