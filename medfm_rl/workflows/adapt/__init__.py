"""`medfm-rl adapt`: fine-tuning, collection, reward networks, PPO, selection, export."""
