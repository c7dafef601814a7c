"""The stages of a run that learn: fine-tuning, collection, reward networks, PPO."""
