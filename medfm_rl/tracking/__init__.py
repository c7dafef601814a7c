"""What made a mask: data, rewards, weights and settings, logged to MLflow behind a small protocol."""

from medfm_rl.tracking.tracker import (
    DataRecord,
    NullTracker,
    Tracker,
    open_tracker,
    open_within,
    read_run_id,
    require_store,
)

__all__ = ["DataRecord", "NullTracker", "Tracker", "open_tracker", "open_within", "read_run_id", "require_store"]
