"""Where it goes: the gradient flow to any smoothed margin, and its `Trajectory`."""
