"""The rules: pure functions and frozen records. No I/O, no clock, no asyncio, no logging; time comes in as now_s."""
