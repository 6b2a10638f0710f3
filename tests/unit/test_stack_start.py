"""When a server has taken too long to start, and how its failure is shown."""

from daemon.cli import console
from daemon.cli.console import Steps
from deploy.local.watch import START_S_MAX, StartLimit


def test_a_server_that_logs_may_start_for_longer_than_one_that_is_silent() -> None:
    limit = StartLimit(started_s=100.0, quiet_s_max=90.0)
    assert limit.exceeded(185.0, log_bytes=10) is None
    assert limit.exceeded(275.0, log_bytes=10) is None
    assert limit.exceeded(276.0, log_bytes=10) == "does not work, and has logged nothing for 90 s"


def test_a_server_that_logs_nothing_is_given_up_after_its_quiet_time() -> None:
    limit = StartLimit(started_s=100.0, quiet_s_max=90.0, log_bytes=500)
    assert limit.exceeded(190.0, log_bytes=500) is None
    assert limit.exceeded(191.0, log_bytes=500) is not None


def test_a_server_that_logs_for_ever_is_given_up_in_the_end() -> None:
    limit = StartLimit(started_s=0.0, quiet_s_max=90.0)
    ends_s = next(second for second in range(10_000) if limit.exceeded(second, log_bytes=second))
    assert ends_s == START_S_MAX + 1


def test_a_failed_step_has_no_tick() -> None:
    with Steps() as steps, console.err.capture() as shown:
        steps.news("stack", "starting")
        steps.news("stack", "triton does not work", end=True, failed=True)
    assert "✗ stack triton does not work" in shown.get()
    assert "✓" not in shown.get()
    assert steps.seconds == {}
