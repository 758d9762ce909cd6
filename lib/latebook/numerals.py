"""Numbers as a book sets them: 2.1e-07 is 2.1 × 10 to the power of −7, on every page.

What is for machines stays as it was: code, attributes, what is offered for download.
"""

import re
from decimal import Decimal

# Of at most three digits before the point and four in the exponent: a hash of ten can have more.
_POWER = re.compile(
    r"(?<![\w.#/])(?<![A-Za-z_]-)"
    r"(?P<sign>(?<![\w)])[-−+])?(?P<digits>\d{1,3}(?:\.\d+)?)"
    r"[eE](?P<down>[-−+]?)(?P<padded>0*)(?P<power>\d{1,4})(?![\w.]\w|\w)"
)
_SIGN = {"-": "−", "−": "−", "+": "+"}
_INFINITE = re.compile(r"(?<![\w.])[-−+]inf(?!\w)")
# What fills a table's cell, or a place in a sentence that a chapter left open.
_ALONE = {"inf": "infinite", "nan": "undefined", "-inf": "−∞", "+inf": "+∞"}
_NEGATIVE = re.compile(r"-(?=[\d.]+(?: |$))")
# A page in parts: what is not text as a whole, a tag, text.
_PART = re.compile(
    r"<(?P<kind>script|style|pre|code|title|textarea|svg|math)\b.*?</(?P=kind)>"
    r'|<dt class="sig\b.*?</dt>|<!--.*?-->|<[^>"]*(?:"[^"]*"[^>"]*)*>|(?P<text>[^<]+)',
    re.DOTALL,
)
_HIGH = str.maketrans("0123456789−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def on_page(html: str) -> str:
    """A page, or a piece of one, with its numbers set; TeX and code stay as they are."""

    def part(found: re.Match) -> str:
        text = found["text"]
        return found[0] if not text or r"\(" in text or r"\[" in text else in_html(text)

    return _PART.sub(part, html)


def in_html(text: str) -> str:
    """Text between two tags with its numbers set."""
    return _set(text, lambda power: f"<sup>{power}</sup>")


def in_text(text: str) -> str:
    """The same where no tag can stand, in superscripts of Unicode."""
    return _set(text, lambda power: power.translate(_HIGH))


def _set(text: str, raised) -> str:
    def number(found: re.Match) -> str:
        sign = _SIGN.get(found["sign"], "")
        power = ("−" if found["down"] in ("-", "−") else "") + found["power"]
        if not float(found["digits"]):
            return "0"
        exponent = int(power.replace("−", "-"))
        if found["padded"] and -2 <= exponent <= 3:  # as a program writes 0.045, or 990
            return f"{sign}{Decimal(found['digits']).scaleb(exponent):f}"
        ten = f"10{raised(power)}"
        return sign + (ten if found["digits"] == "1" else f"{found['digits']}\u00a0×\u00a0{ten}")

    bare = text.strip()
    if bare in _ALONE:
        return text.replace(bare, _ALONE[bare])
    text = _INFINITE.sub(lambda found: _ALONE[found[0].replace("−", "-")], text)
    return _POWER.sub(number, _NEGATIVE.sub("−", text, 1) if bare[:1] == "-" else text)
