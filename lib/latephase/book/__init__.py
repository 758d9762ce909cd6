"""The book's wing: claims, ledger, gate, provenance. It knows notebooks, nothing of the science."""
