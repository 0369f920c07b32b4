"""The rules of the house that a machine can check: who imports whom, what loads when, and which names stay."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from market_data_pipeline.domain.series import Tier, Timeframe

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, TESTS, BENCHMARKS = (
    ROOT / name for name in ("market_data_pipeline", "market_data_pipeline_tests", "benchmarks")
)

DROPPED_WORDS = """
asking covering crossing crossings demand flights harvest healing lacking perishable portrait portraits renewal renewals
shelf shelves standing stock stocks told turns wish wishes witnesses
"""


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def modules(*folders: Path) -> list[Path]:
    return sorted(file for folder in folders for file in folder.rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Return the names of the modules that `file` imports anywhere, and of what it imports from them."""
    found: set[str] = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def literals(file: Path) -> Iterator[str]:
    """Yield the strings of `file` except docstrings, each f-string as one with `{}` for its values."""
    tree = parsed(file)
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def test_imports_run_one_way() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(file.relative_to(ROOT))
        for file in modules(PACKAGE, TESTS, BENCHMARKS)
        if parsed(file).body and not ast.get_docstring(parsed(file))
    ]
    assert silent == []


def test_benchmarks_and_tests_do_not_import_each_other() -> None:
    def found(files: list[Path], forbidden: str) -> list[str]:
        return [
            f"{file.relative_to(ROOT)}: {name}"
            for file in files
            for name in imported(file)
            if name.partition(".")[0] == forbidden
        ]

    assert found(modules(BENCHMARKS), TESTS.name) == []
    assert found(modules(TESTS), BENCHMARKS.name) == []
    assert found(modules(PACKAGE), BENCHMARKS.name) + found(modules(PACKAGE), TESTS.name) == []


def test_generated_examples_are_the_same_on_every_run_and_have_no_time_limit() -> None:
    """Others fail on a slow machine, or on the day on which an example is drawn that was never tried before."""
    others = []
    for file in modules(TESTS):
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.FunctionDef):
                decorators = [ast.unparse(each) for each in node.decorator_list]
                if any(re.match(r"given\(", each) for each in decorators):
                    others += [f"{file.relative_to(ROOT)}: {node.name}"] * (not re.search(r"\blaws\b", str(decorators)))
    assert others == []


def test_only_the_calendar_knows_the_time_in_new_york() -> None:
    clock = re.compile(r"America/New_York|\bZoneInfo\b|\bNEW_YORK\b")
    elsewhere = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in modules(PACKAGE)
        if file != PACKAGE / "domain" / "calendar.py"
        for match in clock.finditer(file.read_text(encoding="utf-8"))
    ]
    assert elsewhere == []


def test_sql_over_the_market_data_is_only_in_store_and_reports() -> None:
    statement = re.compile(
        r"\b(?:select|insert|update|delete|from|join|into|call|lock|truncate|using)\b[^;]*?(?<!')\bmarket_data\.[a-z]",
        re.I,
    )
    elsewhere = [
        f"{file.relative_to(ROOT)}: {text[:60]!r}"
        for file in modules(PACKAGE)
        if file.relative_to(PACKAGE).parts[0] not in {"store", "reports"}
        for text in literals(file)
        if statement.search(text)
    ]
    assert elsewhere == []


def test_connections_to_the_market_data_are_opened_where_they_are_set_up() -> None:
    """One that is opened elsewhere would have the server's settings instead of ours."""
    opens = re.compile(
        r"\bpsycopg2?\.(?:Async)?(?:Connection\.)?connect\(|\bcreate_(?:async_)?engine\(|AsyncConnection\.connect\("
    )
    elsewhere = {
        str(file.relative_to(PACKAGE)) for file in modules(PACKAGE) if opens.search(file.read_text(encoding="utf-8"))
    }
    assert elsewhere == {
        "store/connection.py",
        "store/pooler.py",  # looks at a server before anything may be set on it
        "runtime/postgres.py",  # asks whether the server that it has started answers
        "orchestration/jobs/prune.py",  # Dagster's storage, whose schema the login's search_path decides
    }


def test_private_names_of_dagster_are_used_in_one_module() -> None:
    private = re.compile(r"\bdagster\w*(?:\.\w+)*\._\w+|\bdg\._\w+|\bfrom dagster[\w.]* import _\w+")
    elsewhere = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in modules(PACKAGE)
        if file != PACKAGE / "orchestration" / "dagster_internals.py"
        for match in private.finditer(file.read_text(encoding="utf-8"))
    ]
    assert elsewhere == []


def test_dropped_words_do_not_come_back() -> None:
    """Names of files, functions, classes, arguments and variables; `stocks` is a word of the vendor's."""
    dropped = set(re.findall(r"\w+", DROPPED_WORDS))

    def names(file: Path) -> set[str]:
        found = {file.stem}
        for node in ast.walk(parsed(file)):
            found |= {
                value for key in ("id", "attr", "name", "arg") if isinstance(value := getattr(node, key, None), str)
            }
        return found

    back = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in modules(PACKAGE)
        for name in sorted(names(file))
        if dropped & set(re.findall(r"[a-z]+", re.sub(r"([A-Z])", r"_\1", name).lower()))
        and not (name == "stocks" and file.is_relative_to(PACKAGE / "sandbox"))
    ]
    assert back == []


def test_the_locks_pin_every_requirement_by_hash_and_name_no_host() -> None:
    for lock in ROOT.glob("requirements*.lock"):
        text = lock.read_text(encoding="utf-8")
        assert "://" not in text, lock.name
        pins = re.findall(
            r"^([a-z0-9.\-]+)==\S+(?: ;.*)? \\\n((?: {4}--hash=sha256:[0-9a-f]{64}.*\n?)+)", text, re.MULTILINE
        )
        named = re.findall(r"^[a-z0-9.\-]+==", text, re.MULTILINE)
        assert len(pins) == len(named) > 0, lock.name


def test_the_locks_hold_what_the_project_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    groups = project["dependency-groups"]
    kubernetes, cluster = extras.pop("kubernetes"), extras.pop("cluster")
    runtime = [*project["project"]["dependencies"], *itertools.chain(*extras.values()), *groups["build"]]
    for lock, asked in {
        "requirements.lock": runtime,
        "requirements-kubernetes.lock": [*runtime, *kubernetes],
        "requirements-cluster.lock": [*runtime, *cluster],
        "requirements-dev.lock": [*runtime, *kubernetes, *cluster, *groups["dev"]],
        "requirements-installer.lock": groups["installer"],
    }.items():
        locked = (ROOT / lock).read_text(encoding="utf-8").lower()
        names = {re.split(r"[\[<>=~!; ]", requirement, maxsplit=1)[0].lower() for requirement in asked}
        for name in names - {project["project"]["name"]}:
            assert re.search(rf"^{re.escape(name)}==", locked, re.MULTILINE), (lock, name)


def test_development_runs_on_the_pins_of_production() -> None:
    def pins(name: str) -> set[str]:
        text = (ROOT / name).read_text(encoding="utf-8")
        return set(re.findall(r"^[a-z0-9.\-]+==[^ ]+", text, re.MULTILINE))

    for of_hosts in ("requirements-kubernetes.lock", "requirements-cluster.lock"):
        assert pins("requirements.lock") <= pins(of_hosts) <= pins("requirements-dev.lock")


def test_the_command_and_the_location_have_their_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    # A script named dagster would replace the dagster package's own in every environment.
    assert project["project"]["scripts"] == {"market-data": "market_data_pipeline.cli:run"}
    assert project["tool"]["dagster"]["module_name"] == "market_data_pipeline.definitions"


def test_partition_names_stay() -> None:
    assert list(Tier) == ["critical", "standard", "low_priority"]
    assert list(Timeframe) == ["5m", "15m", "1h", "4h", "1d"]


def test_no_file_of_the_package_names_a_machine() -> None:
    # Paths and hosts of the machine on which a file was written help no one and may leak something.
    suspicious = re.compile(r"/(?:root|home/\w+)/|pythonhosted|://pypi")
    found = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for folder in ("market_data_pipeline", "sql", "docs")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in {".py", ".sql", ".md", ".yaml"}
        for match in suspicious.finditer(file.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_the_documents_link_to_files_that_exist() -> None:
    broken = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8"))
        if not (document.parent / target).exists() and not target.endswith(".png")
    ]
    assert broken == []


def test_the_names_that_dashboards_and_scripts_rely_on_stay() -> None:
    from market_data_pipeline.definitions import defs

    location = defs.get_repository_def()
    lake = [f"{kind}_{timeframe}" for timeframe in Timeframe for kind in ("bars", "features", "bar_revisions")]
    assert {key.to_user_string() for key in location.assets_defs_by_key} == {
        *(f"{tier}/{asset}" for tier in ("critical", "standard", "low_priority") for asset in ("bars", "features")),
        *(f"lake/{table}" for table in (*lake, "splits", "dividends", "tickers", "series")),
        "storage/records",
    }
    refreshes = {"critical_refresh", "standard_refresh", "low_priority_refresh"}
    assert {job.name for job in location.get_all_jobs()} - {"__ASSET_JOB"} == {
        *refreshes,
        "quality",
        "reconcile",
        "prune",
        "backup",
        "lake",
        "settle",
    }
    crons = {schedule.name: schedule.cron_schedule for schedule in location.schedule_defs}
    assert crons["critical_schedule"] == "*/15 * * * *"
    assert crons["standard_schedule"] == "0 * * * *"
    assert "low_priority_schedule" in crons
    assert {sensor.name for sensor in location.sensor_defs} == {
        "staleness_sensor",
        "backfill_request_sensor",
        "universe_sensor",
        "run_failure_alert_sensor",
    }
    for key, assets in location.assets_defs_by_key.items():
        assert key.path[0] in {"lake", "storage"} or assets.partitions_def.partition_dimension_names == [
            "symbol",
            "timeframe",
        ]


def test_the_addresses_of_the_read_api_stay(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from market_data_pipeline.orchestration.dagster_internals import StoredDagsterState
    from market_data_pipeline.serving.app import create_app
    from market_data_pipeline.settings import load_settings

    monkeypatch.setenv("DATABASE_URL", database_url)
    settings = load_settings()
    dagster = StoredDagsterState(settings.dagster_home, settings.dagster_postgres_url)
    assert create_app(settings, dagster).openapi()["paths"].keys() >= {
        "/health",
        "/api/v1/features/quant/{symbol}",
        "/api/v1/bars/{symbol}",
        "/api/v1/features/quant",
        "/api/v1/bars",
        "/api/v1/symbols",
        "/api/v1/admin/scheduler-health",
        "/api/v1/admin/features/staleness",
        "/api/v1/admin/scheduler/execution-history",
        "/metrics",
    }


def test_the_api_loads_no_heavy_library() -> None:
    # It answers from SQL alone, and pandas would add half to what its start costs.
    heavy = ("dagster", "exchange_calendars", "great_expectations", "numpy", "pandas", "pyarrow", "talib")
    modules = "market_data_pipeline.orchestration.dagster_internals, market_data_pipeline.serving.app"
    code = f"import sys, {modules}; print(sorted(set(sys.modules) & set({heavy!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
