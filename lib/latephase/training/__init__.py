"""Where steps go: discrete time, with checkpoints and exact resume."""
