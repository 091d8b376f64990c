"""
The fault: a row was saved, and then a message was sent to a queue. Between the two there was room
for a crash, and a batch whose message was never sent was pending for ever.

Here the position in the log, what follows from it and its job are one transaction: whatever the
moment of the crash, either all of it happened or none of it did, and it happens then.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.end_to_end.conftest import MakeCluster
from tests.fault_injection import COUNT_KILLS, KILLS, end_sessions, spare_sessions
from tests.server_process import Cluster, steps, wait_for

SETTINGS = {"pipelines": {"default": steps("checksum")}}
FILES = {f"{number}.txt": b"x" * number for number in range(30)}


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
    cluster: Cluster, table: str, moment: str
) -> None:
    cluster.execute(end_sessions("uptrail-orchestrator", table, moment))

    batch = cluster.admin.send_batch(FILES)
    wait_for(lambda: cluster.admin.batch(batch)["outcome"] == "succeeded")

    cluster.execute(spare_sessions(table))
    assert cluster.fetch(COUNT_KILLS)[0][0] >= KILLS
    everything_happened_once(cluster, batch)


def test_a_cut_connection_is_never_reported_as_an_internal_error(
    cluster: Cluster,
) -> None:
    """A transient error is a warning without a stack trace."""
    assert cluster.output().count("part_waits") >= 12
    assert "Traceback" not in cluster.output()


def test_an_event_recorded_while_no_orchestrator_ran_is_not_missed(
    make_cluster: MakeCluster,
) -> None:
    """The API alone takes a batch in and is killed; the others come later."""
    cluster = make_cluster(**SETTINGS)
    api = cluster.start("api")
    batch = cluster.admin.send_batch(FILES)
    cluster.kill(api)
    assert cluster.fetch("SELECT count(*) FROM procrastinate_jobs") == [(0,)]

    cluster.start()
    wait_for(lambda: cluster.admin.batch(batch)["outcome"] == "succeeded")

    everything_happened_once(cluster, batch)


def test_a_job_that_vanishes_never_leaves_a_batch_pending(
    make_cluster: MakeCluster,
) -> None:
    """The queue is emptied with SQL."""
    cluster = make_cluster(**SETTINGS)
    cluster.start("api", "orchestrator")
    batch = cluster.admin.send_batch(FILES)
    wait_for(lambda: cluster.fetch("SELECT count(*) FROM procrastinate_jobs")[0][0])
    cluster.execute("DELETE FROM procrastinate_jobs")

    cluster.start_worker()
    wait_for(lambda: cluster.admin.batch(batch)["outcome"] == "succeeded")

    everything_happened_once(cluster, batch)


def everything_happened_once(cluster: Cluster, batch: str) -> None:
    events = cluster.admin.history(f"/v1/batches/{batch}")
    counted = Counter(event["type"] for event in events)
    for kind in ("file_received", "queued", "attempt_started", "completed"):
        assert counted[f"upload.{kind}"] == len(FILES), kind
    assert counted["batch.completed"] == 1
