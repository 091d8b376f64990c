from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from domain.retry import GiveUp, RetryAt, RetryPolicy
from tests.builders import NOON


@given(
    failures=st.integers(min_value=1, max_value=10_000),
    random=st.floats(min_value=0, max_value=1, exclude_max=True),
)
def test_a_wait_is_never_longer_than_the_longest_delay(failures: int, random: float) -> None:
    policy = RetryPolicy(attempts=100_000, first_delay=1.0, longest_delay=300.0)

    decision = policy.decide(failures, permanent=False, at=NOON, random=random)

    assert isinstance(decision, RetryAt)
    assert NOON <= decision.at <= NOON + timedelta(seconds=300)


def test_the_ceiling_doubles_until_the_longest_delay() -> None:
    policy = RetryPolicy(first_delay=1.0, longest_delay=10.0)

    assert [policy.ceiling(failures) for failures in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_the_allowance_is_the_number_of_attempts() -> None:
    policy = RetryPolicy(attempts=3)

    decisions = [policy.decide(n, permanent=False, at=NOON, random=0.5) for n in (1, 2, 3)]

    assert [type(decision) for decision in decisions] == [RetryAt, RetryAt, GiveUp]


def test_a_permanent_error_gives_up_at_once() -> None:
    assert RetryPolicy().decide(1, permanent=True, at=NOON, random=0.5) == GiveUp(
        "the error is permanent"
    )


def test_the_delay_is_spread_over_everything_up_to_the_ceiling() -> None:
    policy = RetryPolicy(attempts=9, first_delay=8.0)

    delays = [policy.decide(2, permanent=False, at=NOON, random=r) for r in (0.0, 0.25, 0.75)]

    assert delays == [RetryAt(NOON + timedelta(seconds=seconds)) for seconds in (0, 4, 12)]
