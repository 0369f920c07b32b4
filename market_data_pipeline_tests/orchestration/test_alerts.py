"""Alerts through a real webhook: one for each change, grouped, with a link, without the secret of an address."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from market_data_pipeline.definitions import build_defs
from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.measure.alert_receiver import AlertReceiver as Webhook
from market_data_pipeline.measure.alert_receiver import alert_receiver as webhook
from market_data_pipeline.orchestration.alerts.delivery import Alert, deliver
from market_data_pipeline.orchestration.alerts.failed_runs import alert_runs
from market_data_pipeline.orchestration.alerts.thresholds import alert_thresholds
from market_data_pipeline.reports.freshness import tier_freshness
from market_data_pipeline_tests.orchestration.conftest import NOW, StandIn
from market_data_pipeline_tests.orchestration.mailbox import mailbox

SECRET = "T0SECRETB0SECRETxyz"


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as made:
        yield made


@pytest.fixture
def pipeline(database_url: str, hook: Webhook) -> StandIn:
    return StandIn(url=database_url, alert_urls=[hook.address(SECRET)])


@pytest.fixture
def market(database: sa.Engine) -> sa.Engine:
    """The database with every series computed and its next bar due in five minutes."""
    with database.begin() as connection:
        connection.execute(
            sa.text(
                "update market_data.series_state"
                " set verified_at = :now, features_computed_at = :now, next_due_at = :due"
            ),
            {"now": NOW, "due": NOW + timedelta(minutes=5)},
        )
    return database


@pytest.fixture
def look(market: sa.Engine, pipeline: StandIn) -> Callable[[], None]:
    """A tick of the staleness sensor, as far as threshold alerts go."""
    return lambda: alert_thresholds(market, pipeline.settings(), tier_freshness(market))


def behind(market: sa.Engine, condition: str, by: timedelta) -> None:
    with market.begin() as connection:
        connection.execute(
            sa.text(f"update market_data.series_state set next_due_at = :due where {condition}"), {"due": NOW - by}
        )


def logged(market: sa.Engine, run_id: str, **columns: Any) -> None:
    values = {
        "status": "ok",
        "requests": 0,
        "rate_limited": 0,
        "error_class": None,
        "error": None,
        "symbol": "AAPL",
    } | columns
    with market.begin() as connection:
        connection.execute(
            sa.text("""
                insert into market_data.ingest_log (
                    run_id, symbol, timeframe, started_at, finished_at, status, requests, rate_limited, error_class,
                    error
                )
                values (:run_id, :symbol, '5m', :now, :now, :status, :requests, :rate_limited, :error_class, :error)
            """),
            {"run_id": run_id, "now": NOW, **values},
        )


def test_a_look_at_which_nothing_has_changed_takes_four_transactions(
    market: sa.Engine, pipeline: StandIn, hook: Webhook
) -> None:
    tiers, begun = tier_freshness(market), []
    sa.event.listen(market, "begin", begun.append)
    alert_thresholds(market, pipeline.settings(), tiers)
    assert (len(begun), hook.titles()) == (4, [])


def test_a_whole_tier_that_falls_behind_and_recovers_is_two_messages(
    market: sa.Engine, look: Callable[[], None], hook: Webhook
) -> None:
    look()
    assert hook.titles() == []
    behind(market, "tier = 'critical'", timedelta(minutes=61))
    for _ in range(3):
        look()
    (message,) = hook.received
    assert message["title"] == "15 of 15 critical series are more than 1 hour behind"
    assert message["type"] == "failure"
    assert "No bars from the vendor" in message["message"]
    assert "AAPL|5m" in message["message"]
    assert message["message"].endswith("http://127.0.0.1:3000/assets/critical/features?view=checks")
    hook.titles()

    behind(market, "symbol = 'AAPL'", -timedelta(minutes=5))
    look()
    assert hook.titles() == ["5 critical series are back within 1 hour, 10 are still behind"]
    behind(market, "true", -timedelta(minutes=5))
    look()
    look()
    assert hook.titles() == ["10 critical series are back within 1 hour"]


def test_a_series_that_follows_later_has_an_alert_of_its_own(
    market: sa.Engine, look: Callable[[], None], hook: Webhook
) -> None:
    behind(market, "symbol = 'AAPL' and timeframe = '5m'", timedelta(hours=2))
    look()
    behind(market, "symbol = 'AMD' and timeframe = '1h'", timedelta(hours=5))
    look()
    assert hook.titles() == [
        "1 of 15 critical series are more than 1 hour behind",
        "1 of 10 standard series are more than 4 hours behind",
    ]


def test_a_series_that_seems_late_after_its_symbol_was_delisted_raises_no_alert(
    market: sa.Engine, look: Callable[[], None], hook: Webhook
) -> None:
    with market.begin() as connection:
        ended = "update market_data.series_state set life = 'delisted' where symbol = 'AAPL' and timeframe <> '1d'"
        connection.execute(sa.text(ended))
    look()
    assert len(hook.titles()) == 1
    behind(market, "symbol = 'AAPL' and timeframe = '1d'", timedelta(hours=2))
    look()
    assert hook.titles() == []
    behind(market, "symbol = 'MSFT' and timeframe = '1d'", timedelta(hours=2))
    look()
    assert hook.titles() == ["2 of 11 critical series are more than 1 hour behind"]


def test_a_symbol_that_was_just_added_raises_no_alert_until_its_rpo_has_passed(
    market: sa.Engine, look: Callable[[], None], hook: Webhook
) -> None:
    with market.begin() as connection:
        connection.execute(
            sa.text("update market_data.series_state set features_computed_at = null where symbol = 'F'")
        )
        connection.execute(
            sa.text("update market_data.series_state set features_computed_at = null where symbol = 'KO'")
        )
        connection.execute(
            sa.text("update market_data.symbols set added_at = :then, followed_since = :then where symbol = 'KO'"),
            {"then": NOW - timedelta(hours=5)},
        )
    look()
    assert hook.titles() == ["5 of 10 standard series are more than 4 hours behind"]


def test_an_alert_that_is_not_delivered_is_retried_until_it_is(
    market: sa.Engine, look: Callable[[], None], hook: Webhook
) -> None:
    behind(market, "symbol = 'AAPL'", timedelta(hours=2))
    hook.status = 503
    look()
    look()
    hook.status = 200
    look()
    look()
    assert hook.titles() == ["5 of 15 critical series are more than 1 hour behind"]


def test_more_than_a_twentieth_of_refused_requests_raises_an_alert_and_so_does_its_end(
    market: sa.Engine, look: Callable[[], None], hook: Webhook
) -> None:
    logged(market, "run-1", requests=10, rate_limited=9)
    look()
    assert hook.titles() == []  # too few to mean anything
    logged(market, "run-2", requests=90, rate_limited=0)
    look()
    look()
    assert hook.titles() == ["9.0% of the vendor's 100 answers in the last hour were 429: too many requests"]
    logged(market, "run-3", requests=150)
    look()
    assert hook.titles() == []  # 3.6 %: not yet clearly back to normal
    logged(market, "run-4", requests=150)
    look()
    look()
    assert hook.titles() == ["2.2% of the vendor's 400 answers in the last hour were 429: back to normal"]


def test_a_refused_key_raises_one_alert_with_what_to_do_and_so_does_its_end(
    market: sa.Engine, look: Callable[[], None], hook: Webhook
) -> None:
    refused = {
        "status": "failed",
        "requests": 1,
        "error_class": "VendorRefusedError",
        "error": "Correct POLYGON_API_KEY.",
    }
    logged(market, "run-1", **refused)
    look()
    logged(market, "run-2", **refused)
    look()
    (message,) = hook.received
    assert (message["title"], message["message"]) == (
        "The vendor refuses the key or the plan: nothing can be refreshed",
        "Correct POLYGON_API_KEY.",
    )
    hook.titles()
    logged(market, "run-3", requests=2)
    look()
    assert hook.titles() == ["The vendor accepts the key again"]


def fail(
    market: sa.Engine,
    instance: dg.DagsterInstance,
    pipeline: StandIn,
    symbols: list[str],
    doing: StandIn | None = None,
) -> dg.DagsterRun:
    """Let a refresh fail and pass the failure to the failure sensor, as the daemon would."""
    failing = doing or StandIn(url=pipeline.url, failing=symbols)
    definitions = build_defs(resource_overrides={"pipeline": failing})
    result = definitions.resolve_job_def("critical_refresh").execute_in_process(instance=instance, raise_on_error=False)
    for symbol in symbols:
        logged(
            market, result.run_id, symbol=symbol, status="failed", error_class="RateLimitedError",
            error="The vendor refused five times.",
        )  # fmt: skip
    sensor = definitions.get_repository_def().get_sensor_def("run_failure_alert_sensor")
    context = dg.build_run_status_sensor_context(
        sensor_name=sensor.name,
        dagster_instance=instance,
        dagster_run=result.dagster_run,
        dagster_event=result.get_run_failure_event(),
        resources={"pipeline": pipeline},
    ).for_run_failure()
    sensor(context)
    return result.dagster_run


def succeed(instance: dg.DagsterInstance, pipeline: StandIn) -> None:
    job = build_defs(resource_overrides={"pipeline": pipeline}).resolve_job_def("critical_refresh")
    assert job.execute_in_process(instance=instance).success


def test_a_failed_run_names_each_series_and_its_reason_once_until_it_works_again(
    registered: dg.DagsterInstance, market: sa.Engine, pipeline: StandIn, hook: Webhook
) -> None:
    run = fail(market, registered, pipeline, ["MSFT", "NVDA"])
    fail(market, registered, pipeline, ["MSFT", "NVDA"])  # for the same reasons: nothing new
    (message,) = hook.received
    assert message["title"] == "critical_refresh failed (critical tier)"
    assert message["message"].splitlines() == [
        "MSFT 5m; NVDA 5m: RateLimitedError: The vendor refused five times.",
        f"http://127.0.0.1:3000/runs/{run.run_id}",
    ]
    hook.titles()
    fail(market, registered, pipeline, ["MSFT"])
    assert hook.titles() == ["critical_refresh failed (critical tier)"]

    alert_runs(registered, market, pipeline.settings())
    assert hook.titles() == []
    succeed(registered, pipeline)
    for _ in range(2):
        alert_runs(registered, market, pipeline.settings())
    assert hook.titles() == ["critical_refresh: works again"]


def test_the_alert_of_a_failed_run_that_was_not_delivered_is_retried(
    registered: dg.DagsterInstance, market: sa.Engine, pipeline: StandIn, hook: Webhook
) -> None:
    hook.status = 500
    fail(market, registered, pipeline, ["MSFT"])
    alert_runs(registered, market, pipeline.settings())
    hook.status = 200
    for _ in range(2):
        alert_runs(registered, market, pipeline.settings())
    assert hook.titles() == ["critical_refresh failed (critical tier)"]


class Away(StandIn):
    """The pipeline while its database is lost."""

    def database(self) -> Any:
        raise DatabaseUnavailableError("PostgreSQL at 127.0.0.1:9 cannot be used.")


def test_runs_that_fail_while_the_database_is_lost_make_one_alert_when_it_is_back(
    registered: dg.DagsterInstance, market: sa.Engine, pipeline: StandIn, hook: Webhook
) -> None:
    away = Away(url=pipeline.url, alert_urls=pipeline.alert_urls)
    runs = [fail(market, registered, away, ["MSFT"]) for _ in range(3)]
    assert hook.titles() == []
    for _ in range(2):
        alert_runs(registered, market, pipeline.settings())
    (message,) = hook.received
    assert message["title"] == "3 runs failed because the database was lost"
    assert message["message"].splitlines() == [
        f"critical_refresh, 3 times: http://127.0.0.1:3000/runs/{runs[-1].run_id}",
        "http://127.0.0.1:3000/runs",
    ]
    hook.titles()
    succeed(registered, pipeline)
    alert_runs(registered, market, pipeline.settings())
    assert hook.titles() == ["critical_refresh: works again"]


def test_a_run_that_lost_its_database_is_in_the_alert_with_the_others_even_if_the_database_is_back(
    registered: dg.DagsterInstance, market: sa.Engine, pipeline: StandIn, hook: Webhook
) -> None:
    class Losing(StandIn):
        def refresh(self, *_: Any, **__: Any) -> Any:
            raise DatabaseUnavailableError("The connection to PostgreSQL was lost.")

    fail(market, registered, pipeline, [], doing=Losing(url=pipeline.url))
    assert hook.titles() == []
    hook.status = 503
    alert_runs(registered, market, pipeline.settings())
    hook.status = 200
    for _ in range(2):
        alert_runs(registered, market, pipeline.settings())
    assert hook.titles() == ["1 run failed because the database was lost"]


@pytest.mark.parametrize("kind", ["plain", "html"])
def test_an_e_mail_keeps_its_lines_and_shows_the_vendors_text_as_text(kind: str) -> None:
    lines = ("AAPL 5m", "DataError: <img src=x onerror=alert(1)> & <b>bold</b>")
    address = {"plain": "", "html": "&format=html"}[kind]
    with mailbox() as mail:
        assert deliver(
            [mail.address() + address], Alert("2 series of <AAPL> fail", lines, link="http://127.0.0.1:3000/")
        )
        (message,) = mail.received
    assert message["subject"] == "2 series of <AAPL> fail"
    (text,) = [part.get_content() for part in message.walk() if part.get_content_type() == f"text/{kind}"]
    if kind == "html":
        assert "<img" not in text
        assert "<b>" not in text
        text = html.unescape(re.sub(r"<br\s*/?>", "\n", text)).replace("\xa0", " ")
    shown = [line.strip() for line in text.splitlines() if line.strip()]
    assert "\n".join([*lines, "http://127.0.0.1:3000/"]) in "\n".join(shown)


def test_no_log_shows_the_secret_of_an_address_whether_it_works_or_not(
    hook: Webhook, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(1)
    alert = Alert("Something is wrong", ("for a reason",))
    bad = [
        f"json://user:{SECRET}@127.0.0.1:9/x",
        f"nonsense://{SECRET}",
        f"slack://{SECRET}",
        SECRET,
        f"json://:{SECRET}@",
    ]
    assert deliver([hook.address(SECRET), *bad], alert)
    assert hook.received[0]["path"].endswith(SECRET)
    assert not deliver(bad, alert)
    hook.status = 500
    assert not deliver([hook.address(SECRET)], alert)
    shown = caplog.text + "".join(capfd.readouterr())
    assert SECRET.lower() not in shown.lower()
    assert "address 2 of MARKET_DATA_ALERT_URLS" in shown
    assert "Something is wrong\nfor a reason" in shown
    assert logging.getLogger("apprise").level != logging.CRITICAL + 1
