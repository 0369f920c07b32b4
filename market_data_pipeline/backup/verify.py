"""Verify what is stored: the audit log, the rules of quality and, against a backup, counts and checksums."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from market_data_pipeline.backup.compare import differences, rounded_of
from market_data_pipeline.backup.make import parts_of
from market_data_pipeline.backup.place import Backup, Place, backup_at
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.reports.audit_chain import audit_problems
from market_data_pipeline.reports.quality import Severity, rule_statement, table_rows
from market_data_pipeline.reports.quality_splits import RULES
from market_data_pipeline.store.calendar import sync_sessions
from market_data_pipeline.store.connection import engine, open_connection, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from market_data_pipeline.reports.quality import Rule
    from market_data_pipeline.settings import Settings


class Verification(BaseModel):
    """What a verification found.

    Attributes:
        backup: the backup that was compared; None when only the database was verified.
        files: its files.
        rows: rows that were compared with it.
        rules: rules of quality that were evaluated.
        problems: what is wrong, a sentence each.
        warnings: what is odd and known to come from the vendor, or could not be compared.
    """

    model_config = ConfigDict(frozen=True)

    backup: str | None = None
    files: int = 0
    rows: int = 0
    rules: int = 0
    problems: list[str] = []
    warnings: list[str] = []


def verify(settings: Settings, place: Place | None, *, files_only: bool = False) -> Verification:
    """Verify the project's database and, when `place` names one, a backup and that the database is equal to it.

    Args:
        settings: of the project.
        place: a backup, or where backups are, of which the newest is meant; None for the database alone.
        files_only: verify only the backup's files, for which no database is needed.

    Raises:
        BackupError: `place` has no backup, or its manifest cannot be read.
        DatabaseUnavailableError: a database cannot be reached.
    """
    backup = None if place is None else backup_at(place, settings)
    found = Verification() if backup is None else _backup(settings, backup, files_only=files_only)
    if files_only:
        return found
    # What a backup did not hold is not there right after its restore.
    rules_of = RULES if backup is None or backup.manifest().features else {"bars": RULES["bars"]}
    source = engine(settings.database_url, as_of=settings.as_of, pool_size=1)
    try:
        sync_sessions(source)  # the rules need the calendar of this version
        with snapshot(source) as connection:
            problems = list(audit_problems(connection))
            rules = list(_broken_rules(connection, rules_of))
    finally:
        source.dispose()
    problems += [sentence for severity, sentence in rules if severity is Severity.ERROR]
    return found.model_copy(
        update={
            "rules": sum(len(rules) for rules in rules_of.values()),
            "problems": [*found.problems, *problems],
            "warnings": [*found.warnings, *(one for severity, one in rules if severity is Severity.WARN)],
        }
    )


def _backup(settings: Settings, backup: Backup, *, files_only: bool) -> Verification:
    manifest = backup.manifest()
    problems = backup.damaged(manifest)
    warnings = []
    rows = 0
    if not files_only:
        for name, part in parts_of(settings).items():
            if dump := manifest.dumps.get(name):
                with closing(open_connection(part.url)) as connection:
                    problems += differences(connection, part.schema, dump)
                    if rounded := rounded_of(connection, part.schema, dump):
                        warnings.append(_of_rounded(rounded))
                rows += sum(table.total[0] for table in dump.tables)
    files = sum(len(dump.files) for dump in manifest.dumps.values())
    return Verification(backup=str(backup), files=files, rows=rows, problems=problems, warnings=warnings)


def _of_rounded(months: set[tuple[str, str]]) -> str:
    series, month = min(months)
    return (
        f"market_data.features of {len(months)} months of series, for example {series} {month}, were compared by their "
        "number and not by their values: the backup has features_computed_at as it was before migration 0050, which "
        "rounds it to whole seconds."
    )


def _broken_rules(connection: sa.Connection, rules_of: Mapping[str, Sequence[Rule]]) -> Iterator[tuple[Severity, str]]:
    """Yield a sentence for each of some tables' rules of quality that rows of a tier break."""
    for table, rules in rules_of.items():
        for tier in Tier:
            for rule in rules:
                statement = rule_statement(rule, tier, 1).replace("{batch}", f"({table_rows(table)})")
                if row := connection.exec_driver_sql(statement.replace("%", "%%")).mappings().first():
                    example = ", ".join(f"{name} {value}" for name, value in list(row.items())[1:])
                    yield (
                        rule.severity,
                        f"{tier}/{table} {rule.name}: {row['rows_in_all']} {rule.broken}; for example {example}.",
                    )
