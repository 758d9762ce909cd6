"""How it is shown: one style, tidy tables, sliders; nothing is computed here."""
