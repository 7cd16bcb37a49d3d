"""Backups that were killed: where the file of one is, if it got its name."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("backups", sa.Column("target", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    raise RuntimeError("the state cannot be taken back to an older release; restore a backup instead")
