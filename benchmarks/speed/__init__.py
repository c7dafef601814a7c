"""The time of one PPO update and of a whole adaptation."""
