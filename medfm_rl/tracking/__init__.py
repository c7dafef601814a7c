"""The chain from data over rewards to weights and masks, logged to MLflow behind a small protocol."""

from medfm_rl.tracking.opening import open_tracker, open_within, require_store
from medfm_rl.tracking.tracker import DataRecord, NullTracker, Tracker, read_run_id

__all__ = ["DataRecord", "NullTracker", "Tracker", "open_tracker", "open_within", "read_run_id", "require_store"]
