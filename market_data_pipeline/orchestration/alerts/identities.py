"""Alerts on symbols that were renamed, or became another security: one for each change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.orchestration.alerts.delivery import Alert, Tone, alert_once
from market_data_pipeline.orchestration.metadata import WORST_SHOWN
from market_data_pipeline.store.alerts import note_alerted

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from market_data_pipeline.settings import Settings


def alert_identities(engine: Engine, settings: Settings) -> None:
    """Alert on what became known of followed symbols since the last alert."""
    alert_once(engine, settings.alert_urls, lambda connection: _changes(connection, settings.ui_url))


def _changes(connection: Connection, ui_url: str) -> Alert | None:
    from market_data_pipeline.reports.securities import new_changes

    found = new_changes(connection)
    if not found:
        return None
    note_alerted(connection, [each.id for each in found])
    said = [f"{each.symbol} {each.change}" for each in found]
    symbols = len({each.symbol for each in found})
    title = (
        said[0] if len(said) == 1 else f"{symbols} symbols were renamed or listed, or are other securities than before"
    )
    kept = "A mistake of the vendor is corrected by corporate_actions.yaml; docs/securities.md says how."
    return Alert(title, (*(said[:WORST_SHOWN] if len(said) > 1 else ()), kept), Tone.WARNING, ui_url)
