"""HTML from Python values: whatever is not markup yet is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Markup(str):
    """Text that is HTML already; every other string is escaped where it enters the page."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str | float) -> Markup:
    """One element.

    Args:
        name: Of the element; not escaped, so never from a file.
        children: Markup as it is, other strings escaped.
        attributes: ``class_`` becomes ``class``, other underscores hyphens.

    Example:
        >>> print(tag("p", "1 < 2", tag("b", "so"), class_="note"))
        <p class="note">1 &lt; 2<b>so</b></p>
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


def join(children: Iterable[str]) -> Markup:
    """Pieces one after another, escaped unless they are markup."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in children))


def exact(value: float | str, text: str) -> Markup:
    """A number as people read it, with its unrounded value for machines."""
    return tag("data", text, value=value)


def facts(title: str, rows: Iterable[tuple[str, str]]) -> Markup:
    """A titled list of names and values."""
    pairs = (tag("div", tag("dt", name), tag("dd", value)) for name, value in rows)
    return tag("div", tag("h3", title), tag("dl", *pairs), class_="facts")


def table(label: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, class_: str = "") -> Markup:
    """A table that scrolls inside its own container; the first column names the rows."""
    head = tag("tr", *(tag("th", name, scope="col") for name in header))
    body = (tag("tr", tag("th", row[0], scope="row"), *map(cell, row[1:])) for row in rows)
    whole = tag("table", tag("thead", head), tag("tbody", *body), class_=class_)
    return tag("div", whole, class_="scroll", role="region", tabindex=0, aria_label=label)


def cell(content: str) -> Markup:
    """A table cell; one that is a cell already stays."""
    return content if isinstance(content, Markup) and content.startswith("<td") else tag("td", content)


def figure(drawing: Markup, title: str, *caption: str) -> Markup:
    """A drawing under its title, over its caption."""
    below = [tag("figcaption", *caption)] if caption else []
    return tag("figure", tag("h3", title), drawing, *below)


def legend(*entries: tuple[str, str]) -> Markup:
    """Swatches, each of a tone and with its name."""
    return tag("div", *(tag("span", name, class_=f"key {tone}") for tone, name in entries))


def section(title: str, intro: str, *content: Markup) -> Markup:
    """A titled part of the page with a sentence or two about it."""
    about = [tag("p", intro, class_="muted")] if intro else []
    return tag("section", tag("h2", title), *about, *content)


def command_lines(lines: Iterable[str]) -> Markup:
    """Commands, one a line; a long one goes on indented, broken between its words only."""
    words = ([join([" ", tag("span", word)]) for word in line.split(" ")] for line in lines)
    return tag("pre", *(tag("code", *line) for line in words))


def commands_of(words: str, lines: Iterable[str]) -> Markup:
    """What to run, and why."""
    return tag("div", tag("p", words), command_lines(lines), class_="todo")
