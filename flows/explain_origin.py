"""Where the rows lie that stored predictions were made from, telemetry or sessions, and how they were read."""

from datetime import timedelta
from typing import NamedTuple

import msgspec

from voltmill.connectors.lake import LakeSettings
from voltmill.connectors.lake_range import EventRange
from voltmill.flows.config import Config
from voltmill.flows.forms import Replayable
from voltmill.flows.replay_plan import FOLDER, REPORT, Plan, plan_of


class Origin(NamedTuple):
    """What predictions were made from."""

    lake: LakeSettings
    """Holds the rows."""
    replay: Plan | None
    """The replay that made them; None: a live flow, or it left no report."""

    @property
    def table(self) -> Replayable:
        """Which rows they are."""
        return self.replay.table if self.replay else "telemetry"

    @property
    def times(self) -> EventRange:
        """The event times that were read."""
        if self.replay is None:
            return EventRange()
        start, warm_up = self.replay.start, timedelta(seconds=self.replay.warm_up_seconds)
        return EventRange(start - warm_up if start else None, self.replay.stop)

    def differences(self, config: Config) -> list[str]:
        """What the replay that made them had otherwise than this configuration; models are not looked at."""
        plan = self.replay
        if plan is None:
            return []
        now = plan_of(
            config,
            plan.lake,
            start=plan.start,
            stop=plan.stop,
            warm_up_seconds=plan.warm_up_seconds,
            devices=plan.devices,
            table=plan.table,
            telemetry=plan.telemetry,
            models=(),
        )
        return plan.differences(msgspec.structs.replace(now, models=plan.models, shards=plan.shards))


def origin_of(predictions: LakeSettings, telemetry: str = "") -> Origin:
    """Where the rows lie.

    Args:
        predictions: The lake that holds ``predictions/``: of a live flow, or the outputs of a replay.
        telemetry: Folder or URL; empty: what the replay read, else the same lake.
    """
    plan = _plan_in(predictions)
    url = telemetry or (plan.lake if plan else predictions.url)
    return Origin(msgspec.structs.replace(predictions, url=url), plan)


def _plan_in(settings: LakeSettings) -> Plan | None:
    """What a replay says of its outputs, when it is done or while it is not."""
    files = settings.open()
    for path in (REPORT, f"{FOLDER}/plan.json"):
        try:
            return msgspec.json.decode(files.read(path), type=Plan)
        except (FileNotFoundError, msgspec.MsgspecError):
            continue
    return None
