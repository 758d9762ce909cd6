"""The book's wing: claims, ledger, gate, provenance. It knows notebooks, nothing of the science."""


class BookError(Exception):
    """Something the reader of one line can mend: what was expected, what came, where."""
