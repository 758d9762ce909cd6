"""What one chapter needs: its apparatus, a module a chapter; in no wheel, imported by chapters."""
