"""What a user of the `market-data` command relies on: exit codes, sentences, JSON, and a quick `--help`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from market_data_pipeline.cli import main as cli
from market_data_pipeline.cli import spellings
from market_data_pipeline.cli.console import print_table
from market_data_pipeline.domain.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    DataError,
    UsageError,
    VendorRefusedError,
)
from market_data_pipeline.domain.objectives import RECOVERY_OBJECTIVES, TIER_OBJECTIVES
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.scenario import Delisting, Scenario
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.sandbox.staged import StagedMarket

SECRET = "pk-very-secret"


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command with arguments and return its exit code and what it printed."""

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["market-data", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        cli.console.cache_clear()
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        printed = capsys.readouterr()
        return Result(int(exit_info.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def project(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A project on a migrated database of its own, at an instant after a session."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("MARKET_DATA_AS_OF", "2025-03-15T12:00:00Z")
    return database_url


COMMANDS = [
    "up", "down", "init", "sandbox", "migrate", "backfill", "plan", "staleness", "gaps", "health", "history",
    "objectives", "backup", "restore", "verify", "baseline", "drill", "universe list", "universe add",
    "universe remove", "universe import",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(run, command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.code == 0
    assert f"market-data {command}" in result.out
    assert "Example: market-data" in result.out


def test_the_help_lists_every_command(run) -> None:
    out = run("--help").out
    assert all(f" {command.split()[0]} " in out for command in COMMANDS)


def test_help_loads_nothing_heavy() -> None:
    heavy = (
        "dagster",
        "fastapi",
        "great_expectations",
        "numpy",
        "pandas",
        "psycopg",
        "pyarrow",
        "pydantic",
        "sqlalchemy",
    )
    code = (
        "import sys; sys.argv = ['market-data', '--help']\n"
        "from market_data_pipeline.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print(sorted(set(sys.modules) & set({heavy!r})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["backfill", "--timeframes", "7m"], "Unknown timeframe '7m'; known are 5m, 15m, 1h, 4h, 1d."),
        (["backfill", "--symbols", "A B"], "'A B' is not a ticker"),
        (["backfill", "--days", "0"], "--days"),
        (["frobnicate"], "No such command 'frobnicate'."),
        (["universe", "add"], "Missing argument"),
        (["universe", "add", "AAPL", "--tier", "gold"], "low_priority"),
        (["universe", "import"], "universe import --market stocks"),
        (["universe", "import", "a.yaml", "--market", "stocks"], "do not go together"),
        (["universe", "import", "a.yaml", "--type", "CS"], "--type goes with --market"),
        (["universe", "import", "--market", "crypto", "--type", "CS"], "go with --market stocks"),
    ],
)
def test_bad_usage_is_a_sentence_and_exit_code_2(run, arguments: list[str], sentence: str) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert sentence in result.err
    assert "Traceback" not in result.err


def test_a_bad_setting_names_the_variable_and_an_example(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGON_PLAN", "gold")
    result = run("plan")
    assert result.code == 2
    assert "POLYGON_PLAN" in result.err
    assert "POLYGON_PLAN=starter" in result.err


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UsageError("No such thing."), 2, "No such thing."),
        (ConfigurationError("The file is wrong."), 2, "The file is wrong."),
        (DatabaseUnavailableError("PostgreSQL is down."), 1, "PostgreSQL is down."),
        (VendorRefusedError("The key is refused."), 1, "The key is refused."),
        (DataError("[red]not markup[/red]"), 1, "[red]not markup[/red]"),
        (OSError(28, "No space left on device", "/var/x"), 1, "The disk is full (/var/x)"),
        (PermissionError(13, "Permission denied", "/var/x"), 1, "/var/x cannot be used: Permission denied."),
        (
            RuntimeError(f"with {SECRET}"),
            1,
            "The command failed unexpectedly (RuntimeError); run it again with --debug",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_a_failure_becomes_a_sentence_and_an_exit_code(
    run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, sentence: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli_module("reports.objectives"), "objectives_document", fail)
    result = run("objectives")
    assert result.code == code
    assert sentence in result.err
    assert "Traceback" not in result.err
    assert SECRET not in result.err


def test_debug_shows_the_traceback_from_anywhere_in_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UsageError("No such thing.")

    monkeypatch.setattr(cli_module("reports.objectives"), "objectives_document", fail)
    for arguments in (["--debug", "objectives"], ["objectives", "--debug"]):
        monkeypatch.setattr(sys, "argv", ["market-data", *arguments])
        with pytest.raises(UsageError):
            cli.main()


def cli_module(name: str):
    return __import__(f"market_data_pipeline.{name}", fromlist=["*"])


def test_the_objectives_document_states_every_tier_and_failure(run, tmp_path: Path) -> None:
    file = tmp_path / "objectives.json"
    assert run("objectives", "--output", str(file)).code == 0
    document = json.loads(file.read_text())
    assert document == json.loads(run("objectives", "--json").out)
    assert {name: tier["rpo_seconds"] for name, tier in document["tiers"].items()} == {
        "critical": 3600,
        "standard": 4 * 3600,
        "low_priority": 24 * 3600,
    }
    assert document["tiers"].keys() == set(TIER_OBJECTIVES)
    assert document["recovery"].keys() == set(RECOVERY_OBJECTIVES)
    assert document["recovery"]["SCHEDULER_CRASH"]["rto_seconds"] == 300
    assert document["freshness"]["AGING"]["up_to_seconds"] == 6 * 3600
    assert document["freshness"]["STALE"]["cache_lifespan_seconds"] == 24 * 3600


def test_objectives_are_readable_without_a_database_or_settings(run) -> None:
    out = run("objectives").out
    assert "critical" in out
    assert "DATABASE_CONNECTION_LOSS" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--symbol-count", "99"),
            "The universe has 25 symbols, not 99; MARKET_DATA_UNIVERSE names its file.",
        ),
        (("--symbols", "AAPL,ZZZZ"), "Not in the universe: ZZZZ; MARKET_DATA_UNIVERSE names its file."),
        (("--picture", "x.pdf"), "A chart's name ends in .png, .svg or .html; x.pdf does not."),
        (("--output", "nowhere/x.json"), "The folder "),
        (("--timeframes", "2h"), "Unknown timeframe '2h'"),
    ],
)
def test_a_baseline_that_cannot_be_taken_is_refused_before_anything_starts(run, arguments, said: str) -> None:
    result = run("baseline", *arguments)
    assert result.code == 2
    assert said in result.err


def test_migrate_says_what_it_applied_and_then_that_nothing_is_left(
    run, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    assert "applied 0001_" in run("migrate").out
    assert run("migrate").out.strip() == "The schema is up to date."


def test_the_packaged_universe_is_loaded_on_first_use(run, project: str) -> None:
    symbols = json.loads(run("universe", "list", "--json").out)
    assert len(symbols) == 25
    assert {"symbol": "AAPL", "tier": "critical", "asset_class": "us_equity"} in symbols


def test_the_universe_changes_by_add_remove_and_import(run, project: str, tmp_path: Path) -> None:
    assert run("universe", "add", "X:BTCUSD", "BRK/B").out == "added BRK.B, X:BTCUSD\n"
    assert run("universe", "add", "X:BTCUSD", "--tier", "critical").out == "moved X:BTCUSD\n"
    assert run("universe", "remove", "BRK.B").out == "removed BRK.B\n"
    file = tmp_path / "universe.yaml"
    file.write_text("tiers: {critical: [AAPL], standard: [KIMpL]}\n")
    assert run("universe", "import", str(file)).out.startswith("added KIMpL\nremoved AMD, AMZN, ")
    assert [one["symbol"] for one in json.loads(run("universe", "list", "--json").out)] == ["AAPL", "KIMpL"]
    assert run("universe", "import", str(file)).out == "Nothing changed.\n"


def test_an_import_shows_what_it_would_remove_and_asks_on_a_terminal(
    run, project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "universe.yaml"
    file.write_text("tiers: {critical: [AAPL, NFLX], standard: []}\n")
    followed = run("universe", "list", "--json").out
    planned = run("universe", "import", str(file), "--dry-run").out
    assert "would be removed AMD, AMZN, " in planned
    assert run("universe", "list", "--json").out == followed
    terminal, keyboard = os.openpty()
    for answer, code, left in (("n", 1, 25), ("y", 0, 2)):
        os.write(terminal, f"{answer}\n".encode())
        with monkeypatch.context() as patch, os.fdopen(os.dup(keyboard)) as stdin:
            patch.setattr(sys, "stdin", stdin)
            assert run("universe", "import", str(file)).code == code
        assert len(json.loads(run("universe", "list", "--json").out)) == left


def test_a_symbol_that_is_not_followed_is_refused_with_the_ones_that_are(run, project: str) -> None:
    for arguments in (
        ("backfill", "AAPL", "ZZZZ"), ("plan", "--symbols", "AAPL,ZZZZ"), ("plan", "AAPL,ZZZZ"), ("staleness", "ZZZZ"),
    ):  # fmt: skip
        result = run(*arguments)
        assert result.code == 2
        assert "Not followed: ZZZZ." in result.err
        assert "AAPL, " in result.err
    assert run("universe", "remove", "ZZZZ").code == 2


def test_a_ticker_that_the_vendor_does_not_know_is_only_added_by_force(
    run, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2025, 3, 15, 12, tzinfo=UTC)
    events = {"delistings": [Delisting(ticker="KIMpL", last=date(2025, 3, 12))]}
    source = StagedMarket(open_source(None), Scenario.model_validate(events), lambda: now)
    with running_server(source, lambda: now) as address:
        monkeypatch.setenv("POLYGON_BASE_URL", address)
        monkeypatch.setenv("POLYGON_PLAN", "advanced")
        refused = run("universe", "add", "X:BTCUSD", "NOSUCH")
        assert refused.code == 2
        assert "The vendor knows no ticker NOSUCH; nothing was added." in refused.err
        assert run("universe", "add", "X:BTCUSD").out == "added X:BTCUSD\n"
        assert run("universe", "add", "KIMpL").out.startswith(
            "KIMpL has been delisted since 2025-03-13, according to the vendor.\n"
        )
        assert run("universe", "add", "NOSUCH", "--force").out == "added NOSUCH\n"
    away = run("universe", "add", "X:ETHUSD")  # the server is gone
    assert away.code == 0
    assert "The vendor could not be asked about them" in away.out
    assert away.out.endswith("added X:ETHUSD\n")


def test_the_symbols_of_a_market_are_shown_with_their_cost_and_followed_once(
    run, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2025, 3, 15, 12, tzinfo=UTC)
    source = open_source(None, 1_100)  # two pages of the vendor's list
    with running_server(source, lambda: now) as address:
        monkeypatch.setenv("POLYGON_BASE_URL", address)
        monkeypatch.setenv("POLYGON_PLAN", "advanced")
        shown = run("universe", "import", "--market", "stocks", "--type", "CS,ETF", "--limit", "3")
        assert (shown.code, shown.err) == (0, "")
        assert "; 25 of them are followed." in shown.out
        assert "To follow in low_priority: 3 (" in shown.out
        assert "Their history: By " in shown.out
        assert "follow them with --yes" in shown.out
        assert len(json.loads(run("universe", "list", "--json").out)) == 25

        everything = json.loads(run("universe", "import", "--market", "stocks", "--dry-run", "--json").out)
        assert everything["listed"] > 1_100 > everything["requests"] > 1
        assert (everything["followed"], everything["added"]) == (25, [])
        assert run("universe", "import", "--market", "stocks", "--yes").code == 0
        followed = json.loads(run("universe", "list", "--json").out)
        assert {one["symbol"] for one in followed} >= {*everything["to_add"]}
        assert len(followed) == 25 + len(everything["to_add"]) == everything["listed"]
        assert {one["tier"] for one in followed if one["symbol"] == "AAPL"} == {"critical"}, "its tier stays"
        again = run("universe", "import", "--market", "stocks", "--yes")
        assert (again.code, again.out.splitlines()[-1]) == (0, "Nothing would change.")

        unknown = run("universe", "import", "--market", "stocks", "--type", "CS,NOSUCH")
        assert (unknown.code, "lists no US stocks of NOSUCH." in unknown.err) == (2, True)
        funds = run("universe", "import", "--market", "stocks", "--type", "ETF", "--exchange", "ARCX")
        assert "of them are followed" in funds.out
        coins = run("universe", "import", "--market", "crypto", "--tier", "standard", "--yes")
        assert coins.out.splitlines()[-1].endswith("symbols added to standard; the next refresh loads their history.")


def test_a_delisted_stock_is_followed_from_its_past(run, project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2025, 3, 15, 12, tzinfo=UTC)
    with running_server(open_source(None), lambda: now) as address:
        monkeypatch.setenv("POLYGON_BASE_URL", address)
        monkeypatch.setenv("POLYGON_PLAN", "advanced")
        added = run("universe", "add", "LEH", "--delisted")
        assert (added.code, added.err) == (0, "")
        assert added.out.startswith("LEH is LEH (synthetic), delisted on 2008-09-17, FIGI BBG")
        assert added.out.endswith("added LEH\n")
        planned = run("plan", "--symbols", "LEH", "--json")
        assert [each["sessions"] for each in json.loads(planned.out)["series"]] == [
            253,
            253,
        ]  # of the 365 days before it
        assert run("universe", "add", "LEH", "--delisted", "--delisted-on", "2008-09-17").out.endswith(
            "Nothing changed.\n"
        )
        refused = run("universe", "add", "KO", "--delisted")
        assert (refused.code, refused.err.strip()) == (
            2, "KO is not delisted: follow it without --delisted. Nothing was added.",
        )  # fmt: skip
    for arguments, what in (
        (("LEH", "--figi", "BBG000BM1VH8"), "add --delisted"),
        (("LEH", "KO", "--delisted", "--figi", "BBG000BM1VH8"), "about one symbol"),
        (("LEH", "--delisted", "--force"), "--force does not go with --delisted"),
    ):
        refused = run("universe", "add", *arguments)
        assert refused.code == 2
        assert what in refused.err


def test_a_wrong_universe_file_is_refused_with_its_line(run, project: str, tmp_path: Path) -> None:
    file = tmp_path / "universe.yaml"
    file.write_text("tiers:\n  gold: [AAPL]\n")
    result = run("universe", "import", str(file))
    assert result.code == 2
    assert "line 2" in result.err


def test_a_plan_counts_the_calls_and_the_time_they_take(run, project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGON_API_KEY", SECRET)
    monkeypatch.setenv("POLYGON_BASE_URL", "http://127.0.0.1:9")  # where nothing answers: nothing may be sent
    plan = json.loads(run("plan", "--symbols", "AAPL,MSFT", "--days", "5", "--json").out)
    # 2025-03-10 to 14 are five sessions: a page for the 5m bars of each symbol, one for its security, and one each for
    # splits and dividends; the five day bars come from one request a day for the whole market, fewer than one for each
    # symbol of the universe.
    assert [(one["symbol"], one["timeframe"], one["sessions"], one["calls"]) for one in plan["series"]] == [
        ("AAPL", "5m", 5, 1),
        ("MSFT", "5m", 5, 1),
    ]
    assert plan["calls"] == 11
    assert plan["calls_per_minute"] == 5
    assert plan["seconds"] == pytest.approx(10 * 12, rel=0.1)
    said = run("plan", "--symbols", "AAPL,MSFT", "--days", "5").out
    assert "11 calls" in said
    assert "basic plan" in said
    assert said.index("11 calls") < said.index("MSFT")  # the sum comes first


def test_a_plan_of_a_resampled_timeframe_counts_its_base(run, project: str) -> None:
    plan = json.loads(run("plan", "--symbols", "AAPL", "--timeframes", "4h", "--days", "5", "--json").out)
    assert [one["timeframe"] for one in plan["series"]] == ["5m"]


def test_gaps_explains_what_is_missing_to_people_and_programs(run, project: str, monkeypatch) -> None:
    monkeypatch.setenv("MARKET_DATA_HISTORY_DAYS", "365")
    document = json.loads(run("gaps", "AAPL", "--json").out)
    assert [one["timeframe"] for one in document["timeframes"]] == ["5m", "1d"]
    # From 2024-03-15 to 2025-03-14 there were 250 sessions; the holidays are the NYSE's list.
    assert document["timeframes"][1]["summary"]["never_asked"] == {"stretches": 1, "bars": 250}
    holidays = [one for one in document["timeframes"][1]["stretches"] if one["reason"] == "no_session"]
    assert [one["start"][:10] for one in holidays] == [
        "2024-03-29", "2024-05-27", "2024-06-19", "2024-07-04", "2024-09-02", "2024-11-28", "2024-12-25",
        "2025-01-01", "2025-01-09", "2025-01-20", "2025-02-17",
    ]  # fmt: skip
    said = run("gaps", "AAPL", "--timeframe", "5m").out
    assert "early close" in said
    assert "never asked" in said
    assert "0 bars held" in said
    assert "America/New_York" in said


def test_gaps_refuses_what_it_cannot_explain_with_a_sentence(run, project: str) -> None:
    unknown = run("gaps", "ZZZZ")
    assert (unknown.code, unknown.out) == (2, "")
    assert "Not followed: ZZZZ" in unknown.err
    resampled = run("gaps", "AAPL", "--timeframe", "1h")
    assert resampled.code == 2
    assert "1h bars are made of 5m ones" in resampled.err


def test_staleness_lists_what_was_never_computed(run, project: str) -> None:
    run("universe", "list")
    report = json.loads(run("staleness", "--json").out)
    assert report["summary"] == {
        "fresh_count": 0,
        "aging_count": 0,
        "stale_count": 0,
        "missing_count": 125,
        "silent_count": 0,
        "not_expected_count": 0,
        "total_monitored": 125,
    }
    assert len(report["by_status"]["missing"]) == 125
    assert (report["truncated"], report["next"]) == (False, None)
    assert report["timestamp"] == "2025-03-15T12:00:00Z"
    said = run("staleness", "--limit", "3").out
    assert said.count("MISSING") == 3
    assert said.startswith("0 fresh, 0 aging, 0 stale, 125 missing")
    assert said.rstrip().endswith("122 more are no further behind than these; --all shows every one.")
    assert run("staleness").out.count("MISSING") == 50
    every = run("staleness", "--all").out
    assert every.count("MISSING") == 125
    assert "--all" not in every


def test_staleness_is_narrowed_to_symbols_timeframes_and_a_tier(run, project: str) -> None:
    run("universe", "list")
    every = json.loads(run("staleness", "--json", "--limit", "200").out)
    for arguments, column, values in (
        (("AAPL", "TSLA"), "symbol", {"AAPL", "TSLA"}),
        (("--symbols", "AAPL,TSLA"), "symbol", {"AAPL", "TSLA"}),
        (("--timeframes", "5m,1d"), "timeframe", {"5m", "1d"}),
        (("--tier", "standard"), "tier", {"standard"}),
    ):
        report = json.loads(run("staleness", *arguments, "--json", "--limit", "200").out)
        assert report["by_status"]["missing"] == [one for one in every["by_status"]["missing"] if one[column] in values]
        assert report["summary"]["total_monitored"] == report["summary"]["missing_count"] > 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["objectives", "--json", "-"], ["objectives", "--json"]),
        (["baseline", "--json=x.json", "--symbols", "5"], ["baseline", "--output", "x.json", "--symbol-count", "5"]),
        (["gaps", "AAPL", "--timeframe", "5m"], ["gaps", "AAPL", "--timeframes", "5m"]),
    ],
)
def test_an_old_spelling_is_understood_and_its_successor_named(old: list[str], new: list[str]) -> None:
    arguments, notices = spellings.present(old)
    assert arguments == new
    assert notices


@pytest.mark.parametrize(
    "arguments",
    [
        ["drill", "--json", "SCHEDULER_CRASH"],
        ["baseline", "--symbols", "AAPL,MSFT", "--json", "--days", "5"],
        ["staleness", "--json", "AAPL"],
        ["plan", "--symbols", "600", "--json"],
    ],
)
def test_present_spellings_stay_as_they_are(arguments: list[str]) -> None:
    assert spellings.present(arguments) == (arguments, [])


def test_an_old_spelling_still_writes_its_file(run, tmp_path: Path) -> None:
    file = tmp_path / "objectives.json"
    result = run("objectives", "--json", str(file))
    assert result.code == 0
    assert "--output" in result.err
    assert json.loads(file.read_text())["tiers"].keys() == set(TIER_OBJECTIVES)


def test_a_table_shows_a_control_character_instead_of_sending_it(capsys: pytest.CaptureFixture[str]) -> None:
    cli.console.cache_clear()
    print_table(("error",), [("gone\x1b]0;owned\x07",)])
    assert r"gone\x1b]0;owned\x07" in capsys.readouterr().out


def test_a_table_in_a_file_is_not_cut_to_the_width_of_a_terminal(project: str) -> None:
    code = "from market_data_pipeline.cli.main import main; main()"
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-c", code, "objectives"], capture_output=True, text=True, check=True, env=environment
    )
    assert "…" not in done.stdout
    assert 80 < max(len(line.rstrip()) for line in done.stdout.splitlines()) <= 160


@pytest.mark.parametrize("command", ["staleness", "history", "health", "plan", "migrate"])
def test_an_unreachable_database_is_one_sentence(run, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://someone:{SECRET}@127.0.0.1:9/nowhere")
    result = run(command)
    assert result.code == 1
    assert len(result.err.strip().splitlines()) == 1
    assert SECRET not in result.err


def test_a_report_leaves_a_database_without_our_schema_alone(
    run, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    result = run("staleness")
    assert result.code == 1
    assert "market-data migrate" in result.err


def test_init_writes_a_private_file_once(run, project: str, tmp_path: Path) -> None:
    assert "Wrote" in run("init").out
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert "Nothing to change" in run("init").out


def test_the_sandbox_answers_with_its_key_until_it_is_interrupted() -> None:
    import signal

    import requests

    from market_data_pipeline.measure.scratch import free_ports

    [port] = free_ports(1)
    code = "from market_data_pipeline.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "sandbox", "--port", str(port), "--as-of", "2025-03-15T12:00Z"]
    )
    try:
        patience = time.monotonic() + 60
        while True:
            try:
                answer = requests.get(
                    f"http://127.0.0.1:{port}/v2/aggs/ticker/AAPL/range/1/day/2025-03-10/2025-03-14",
                    params={"adjusted": "false"},
                    headers={"Authorization": "Bearer sandbox"},
                    timeout=30,
                )
                break
            except requests.ConnectionError:
                assert process.poll() is None, "the sandbox ended on its own"
                assert time.monotonic() < patience, "the sandbox does not answer"
                time.sleep(0.05)
        assert answer.status_code == 200
        assert answer.json()["resultsCount"] == 5
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(30)
    assert code in (0, 130)
