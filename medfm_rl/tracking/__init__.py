"""What made a mask: data, rewards, weights and settings, logged to MLflow behind a small protocol."""

from medfm_rl.tracking.tracker import NullTracker, Tracker, open_tracker, require_store

__all__ = ["NullTracker", "Tracker", "open_tracker", "require_store"]
