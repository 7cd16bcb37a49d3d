"""Steering, over-sampling, retention: what an operator forgives, when a round has enough, which files are gone."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("experiments", sa.Column("forgiven", sa.Integer(), server_default="0", nullable=False))
    op.add_column("rounds", sa.Column("enough", sa.Integer(), server_default="0", nullable=False))
    op.add_column("models", sa.Column("removed_at", sa.Text(), nullable=True))
    # retention asks at the end of every round: it must not read through the whole past
    op.create_index("ix_models_removed_at", "models", ["removed_at"])
    op.create_index("ix_updates_round", "updates", ["experiment", "round"])
    op.create_index("ix_events_round", "events", ["experiment", "round"])
    op.drop_index("ix_events_experiment", "events")


def downgrade() -> None:
    raise RuntimeError("the state cannot be taken back to an older release; restore a backup instead")
