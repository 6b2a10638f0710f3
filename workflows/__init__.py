"""Temporal workflows (decide), activities (act, through daemon.pipeline), worker and schedules."""
