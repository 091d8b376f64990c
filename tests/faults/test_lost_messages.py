"""
The fault: a row was saved, and then a message was sent to a queue. Between the two there was room
for a crash, and a batch whose message was never sent was pending for ever.

Here the position in the log, what follows from it and its job are one transaction: whatever the
moment of the crash, either all of it happened or none of it did, and it happens then.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.conftest import MakeSite
from tests.faults.site import Site, eventually, steps

SETTINGS = {"pipelines": {"default": steps("checksum")}}
FILES = {f"{number}.txt": b"x" * number for number in range(30)}

# Ends the session of the orchestrator, from within, the first three times it gets here.
KILLER = """
CREATE SEQUENCE kills;
CREATE FUNCTION kill_the_orchestrator() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF current_setting('application_name') = 'uptrail-orchestrator' THEN
    IF nextval('kills') <= 3 THEN
      PERFORM pg_terminate_backend(pg_backend_pid());
    END IF;
  END IF;
  RETURN NULL;
END $$"""

# Deferred constraint triggers run in COMMIT itself: there is no later moment.
TRIGGER = """
CREATE CONSTRAINT TRIGGER killer AFTER INSERT OR UPDATE ON {table}
DEFERRABLE INITIALLY {moment} FOR EACH ROW EXECUTE FUNCTION kill_the_orchestrator()"""


@pytest.fixture(scope="module")
def deadly_site(site: Site) -> Site:
    site.execute(KILLER)
    return site


@pytest.mark.parametrize(
    ("table", "moment"),
    [
        ("stored_events", "IMMEDIATE"),  # the event, and no job yet
        ("procrastinate_jobs", "IMMEDIATE"),  # the job, and no commit yet
        ("procrastinate_jobs", "DEFERRED"),
        ("notification_tracking", "DEFERRED"),
    ],
)
def test_a_lost_message_never_leaves_a_batch_pending(
    deadly_site: Site, table: str, moment: str
) -> None:
    site = deadly_site
    site.execute("ALTER SEQUENCE kills RESTART")
    site.execute(TRIGGER.format(table=table, moment=moment))

    batch = site.admin.send_batch(FILES)
    eventually(lambda: site.admin.batch(batch)["outcome"] == "succeeded")

    site.execute(f"DROP TRIGGER killer ON {table}")
    assert site.fetch("SELECT last_value FROM kills")[0][0] >= 3
    everything_happened_once(site, batch)


def test_a_cut_connection_is_never_reported_as_a_bug_of_ours(deadly_site: Site) -> None:
    """What passes by itself is a warning without a stack trace."""
    assert deadly_site.said().count("part_waits") >= 12
    assert "Traceback" not in deadly_site.said()


def test_an_event_that_nobody_was_there_to_see_is_never_missed(make_site: MakeSite) -> None:
    """The API alone takes a batch in and is killed; the others come later."""
    site = make_site(**SETTINGS)
    api = site.start("api")
    batch = site.admin.send_batch(FILES)
    site.kill(api)
    assert site.fetch("SELECT count(*) FROM procrastinate_jobs") == [(0,)]

    site.start()
    eventually(lambda: site.admin.batch(batch)["outcome"] == "succeeded")

    everything_happened_once(site, batch)


def test_a_job_that_vanishes_never_leaves_a_batch_pending(make_site: MakeSite) -> None:
    """Somebody empties the queue behind our back."""
    site = make_site(**SETTINGS)
    site.start("api", "orchestrator")
    batch = site.admin.send_batch(FILES)
    eventually(lambda: site.fetch("SELECT count(*) FROM procrastinate_jobs")[0][0])
    site.execute("DELETE FROM procrastinate_jobs")

    site.start_worker()
    eventually(lambda: site.admin.batch(batch)["outcome"] == "succeeded")

    everything_happened_once(site, batch)


def everything_happened_once(site: Site, batch: str) -> None:
    events = site.admin.history(f"/v1/batches/{batch}")
    counted = Counter(event["type"] for event in events)
    for kind in ("file_received", "queued", "attempt_started", "completed"):
        assert counted[f"upload.{kind}"] == len(FILES), kind
    assert counted["batch.completed"] == 1
