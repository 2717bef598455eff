"""Predictions, labels, and the classes of versions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    identifier = sa.Text().with_variant(postgresql.UUID(), "postgresql")
    json = sa.Text().with_variant(postgresql.JSON(), "postgresql")
    op.create_table(
        "ledger_predictions",
        sa.Column("prediction_id", identifier, primary_key=True),
        sa.Column("row", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text()),
        sa.Column("features", json),
        sa.Column("output", json),
        sqlite_with_rowid=False,
    )
    op.create_index("ledger_predictions_by_version", "ledger_predictions", ["model", "version", "at"])
    op.create_table(
        "ledger_labels",
        sa.Column("prediction_id", identifier, primary_key=True),
        sa.Column("row", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("label", json, nullable=False),
        sa.Column("observed_at", moment, nullable=False),
        sa.Column("received_at", moment, nullable=False),
        sa.Column("model", sa.Text()),
        sa.Column("version", sa.Text()),
        sa.Column("predicted_at", moment),
        sa.Column("delay_s", sa.Double()),
        sa.Column("class_name", sa.Text()),
        sa.Column("correct", sa.Double()),
        sa.Column("brier", sa.Double()),
        sa.Column("log_loss", sa.Double()),
        sa.Column("absolute_error", sa.Double()),
        sqlite_with_rowid=False,
    )
    op.create_index("ledger_labels_by_version", "ledger_labels", ["model", "version", "predicted_at"])
    op.create_table(
        "ledger_versions",
        sa.Column("model", sa.Text(), primary_key=True),
        sa.Column("version", sa.Text(), primary_key=True),
        sa.Column("digest", sa.Text(), primary_key=True),
        sa.Column("classes", json),
    )


def downgrade() -> None:
    for table in ("ledger_labels", "ledger_predictions", "ledger_versions"):
        op.drop_table(table)
