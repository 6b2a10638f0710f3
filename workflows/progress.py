"""How far a workflow is, as its `progress` query answers it and the command line and the UI show it."""

from pydantic import BaseModel, ConfigDict, Field

ENDED = "ended"
"""The last phase of every workflow that ends well."""


class Contract(BaseModel):
    """Base of what crosses Temporal: frozen values of keys and positions, never the text of a row."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Progress(Contract):
    """What one looks at while a workflow runs."""

    phase: str = Field(description="What it is doing, in a word or two; `paused` while it is.")
    done: int = Field(0, description="Rows (or keys) dealt with.")
    total: int | None = Field(None, description="Of how many, estimated; None: not known.")
    rate_per_s: float | None = Field(None, description="Lately.")
    left_s: float | None = Field(None, description="Time that the rest takes at this rate.")
    note: str = Field("", description="What else a person should know: what it waits for, what failed.")

    @property
    def percent(self) -> int | None:
        """How much of the estimate is done; 100 at the end alone."""
        if self.phase == ENDED:
            return 100
        return min(99, 100 * self.done // self.total) if self.total else None


class Beat(Contract):
    """The second detail of an activity's heartbeat: what it has done since the workflow last heard from it."""

    done: int
    rate_per_s: float | None = None


def beating(progress: Progress, beat: Beat | None) -> Progress:
    """Return the workflow's answer with what its running activity has done since."""
    if beat is None or progress.phase == "paused":
        return progress
    done, rate = progress.done + beat.done, beat.rate_per_s or progress.rate_per_s
    return estimated(progress.phase, done, progress.total, rate, progress.note)


def estimated(phase: str, done: int, total: int | None, rate_per_s: float | None, note: str) -> Progress:
    """Return the progress with the time that the rest takes at this rate, where rate and total are known."""
    left_s = max(0, total - done) / rate_per_s if total is not None and rate_per_s else None
    return Progress(phase=phase, done=done, total=total, rate_per_s=rate_per_s, left_s=left_s, note=note)


def markdown(progress: Progress, **facts: object) -> str:
    """Return current details for Temporal's UI. `facts` are more lines; those that are None or empty are left out."""
    lines = [f"**{progress.phase}**"]
    if progress.total:
        lines.append(f"{progress.done:,} of about {progress.total:,} ({progress.percent} %)")
    elif progress.done:
        lines.append(f"{progress.done:,} done")
    if progress.rate_per_s:
        lines.append(f"{progress.rate_per_s:,.0f} a second")
    if progress.left_s is not None:
        lines.append(f"about {duration(progress.left_s)} left")
    if progress.note:
        lines.append(progress.note)
    lines += [
        f"{name.replace('_', ' ')}: {value}" for name, value in facts.items() if value not in (None, "", 0)
    ]
    return "\n".join(f"- {line}" if number else line + "\n" for number, line in enumerate(lines))


def duration(seconds: float) -> str:
    """Return a duration for a person: `42 s`, `7 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
