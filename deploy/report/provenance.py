"""Where the numbers come from, and how to get them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .markup import Markup, command_lines, facts, section, tag
from .numbers import ms, percent

Document = Mapping[str, Any]


def provenance(report: Document) -> Markup:
    """Device, table, versions, seed, data, dates and commands."""
    found, origin = report["provenance"], report["provenance"]["search"]["origin"]
    search, begun = found["search"], "adoption" if report["adopted"] else "search"
    groups = [
        facts("Device", _device(found["environment"])),
        facts("Latency table", _table(found["table"])),
        facts(
            begun.capitalize(),
            [
                ("date", origin["date"]),
                ("command", origin["command"]),
                *([] if report["adopted"] else [("recipe", _call(search["recipe"]))]),
                ("data", search["data"]),
                ("seed", str(search["seed"])),
                ("space", f"{_call({**report['space'], 'arguments': report['space']['options']})}"),
                ("space fingerprint", report["space"]["fingerprint"]),
            ],
        ),
        facts(f"Software of the {begun}", _software(origin)),
        *(_step(name, found[name]) for name in ("training", "verification", "report") if found[name]),
    ]
    return section("Provenance", "", tag("div", *groups, class_="pages"))


def reproduction(commands: Mapping[str, str]) -> Markup:
    """The commands that repeat the run."""
    words = "The same steps with this run's arguments. Latency needs the same device; the rest is seeded."
    return section("Reproduce", words, command_lines(commands.values()))


def _device(environment: Document | None) -> list[tuple[str, str]]:
    if not environment:
        return [("device", "unknown: the latency table could not be read")]
    fields = ("device", "runtime", "runtime_version", "precision", "batch", "threads", "mode")
    given = {name: environment[name] for name in fields} | dict(environment["details"])
    return [(name.replace("_", " "), str(value)) for name, value in given.items()]


def _table(table: Document) -> list[tuple[str, str]]:
    rows = [("file", table["path"]), ("SHA-256", table["sha256"])]
    if "rows" in table:
        counts = f"{table['rows']} ({table['unstable']} unstable, {table['failed']} failed)"
        rows += [("entries", counts), *((name, table[name]) for name in ("date", "command") if name in table)]
    reference = table.get("reference")
    if reference:
        spread = f"{ms(reference['ms'], 4)}, spread {percent(reference['spread'], 0)}"
        rows.append(("reference operator", spread))
    return [(name, str(value)) for name, value in rows]


def _software(origin: Document) -> list[tuple[str, str]]:
    own = [("hwnas", origin["hwnas"]), ("Python", origin["python"]), ("system", origin["system"])]
    return [*own, *_gpu(origin), *origin["packages"].items()]


def _gpu(origin: Document) -> list[tuple[str, str]]:
    names = {"gpu": "GPU", "driver": "driver", "cuda": "CUDA"}
    return [(title, origin[name]) for name, title in names.items() if name in origin]


def _step(name: str, origin: Document) -> Markup:
    return facts(
        name.capitalize(),
        [("date", origin["date"]), ("command", origin["command"]), ("hwnas", origin["hwnas"]), *_gpu(origin)],
    )


def _call(recipe: Document) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in recipe["arguments"].items())
    return f"{recipe['name']}({arguments})" if arguments else str(recipe["name"])
