"""${message}"""

from alembic import op
import sqlalchemy as sa
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    ${upgrades if upgrades else "raise RuntimeError('an empty migration')"}


def downgrade() -> None:
    raise RuntimeError("the state cannot be taken back to an older release; restore a backup instead")
