"""Numbers as people read them: with a unit and no more digits than they carry."""

from __future__ import annotations

import math

SPACE = "\u00a0"
"""Between number and unit; no line breaks there."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def decimals(reference: float, *, digits: int = 3) -> int:
    """Decimal places that show ``digits`` significant digits of a number.

    Example:
        >>> decimals(0.204), decimals(12.5), decimals(4321.0)
        (3, 1, 0)
    """
    if not reference:
        return 0
    return min(9, max(0, digits - 1 - math.floor(math.log10(abs(reference)))))


def fixed(value: float, places: int) -> str:
    """A number with that many decimal places and a real minus sign."""
    text = f"{value:,.{places}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("-")


def ms(value: float, places: int) -> str:
    """Milliseconds."""
    return fixed(value, places) + SPACE + "ms"


def percent(share: float, places: int = 1) -> str:
    """A share from 0 to 1, in percent."""
    return fixed(100 * share, places) + SPACE + "%"


def scientific(value: float) -> str:
    """Two significant digits and a power of ten.

    Example:
        >>> scientific(3.8147e-06), scientific(0.0)
        ('3.8×10⁻⁶', '0')
    """
    if not value:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.replace('-', '−')}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def large(value: float, unit: str = "") -> str:
    """Three significant digits with a decimal prefix.

    Example:
        >>> large(2142144), large(221430, "B"), large(999)
        ('2.14\\xa0M', '221\\xa0kB', '999')
    """
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return fixed(value / factor, decimals(value / factor)) + SPACE + prefix + unit
    return fixed(value, 0) + (SPACE + unit if unit else "")
