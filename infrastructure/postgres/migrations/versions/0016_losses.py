"""Number of workers lost while they processed an upload: it fails after a maximum.

Counted from the log for uploads that have not ended; of the others it is not kept.
"""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

# A worker that stops in good order abandons its attempts itself, which is no loss.
_COUNT = """
UPDATE orchestration.members m SET losses = counted.losses
FROM orchestration.members n CROSS JOIN LATERAL (
  SELECT count(*) AS losses
  FROM stored_events e CROSS JOIN LATERAL (
    SELECT convert_from(e.state, 'UTF8')::jsonb -> 'event' AS event OFFSET 0) decoded
  WHERE e.originator_id = n.upload AND e.topic = 'upload.attempt_abandoned'
    AND decoded.event ->> 'by' <> 'worker:' || (decoded.event ->> 'worker')
    AND e.originator_version > coalesce((
      SELECT max(r.originator_version) FROM stored_events r
      WHERE r.originator_id = n.upload AND r.topic = 'upload.retry_requested'), 0)) counted
WHERE n.upload = m.upload AND counted.losses > 0 AND n.attempt > 0
  AND n.state IN ('received', 'queued', 'processing', 'retry_scheduled')"""


def upgrade() -> None:
    op.execute("ALTER TABLE orchestration.members ADD losses integer NOT NULL DEFAULT 0")
    op.execute(_COUNT)
