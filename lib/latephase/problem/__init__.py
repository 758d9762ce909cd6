"""What is minimized: losses, margins and their gradients, kinks, degree, checks of input."""
