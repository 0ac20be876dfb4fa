"""PPO-max on step rewards: rollouts, credit assignment, updates, checkpoints and the command line."""
