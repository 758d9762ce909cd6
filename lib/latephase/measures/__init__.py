"""What a state says: diagnosis, alignment, layers, settling, the maximum margin."""
