"""The whole Azure shape on this machine: what the modules sent comes out at every end, once and unchanged."""

from pathlib import Path

import pytest
from azure_shape import run, shape


@pytest.mark.slow
def test_from_module_to_replay_with_kill_9_in_the_middle(tmp_path: Path) -> None:
    with shape(tmp_path) as world:
        counts = run(world, modules=16, seconds=300.0)
    assert counts.agree, counts
    assert counts.published > 900 and counts.samples > 800 and counts.dead_letters > 0
    assert 0 < counts.hub_events < counts.published  # they were packed
