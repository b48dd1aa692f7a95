"""The page of papers: from each to the functions that use it, and back.

`references.toml` says what is cited, under the names it is cited by, with "and" for "&".
"""

import functools
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from handbook.citations import DOCS, Citation, numbers, of_code, of_guides


class Reference(NamedTuple):
    """What a source is.

    Attributes:
      authors: "Initials Surname, … and Initials Surname", as printed; empty of a seed whose author is not known.
      title: without quotation marks.
      venue: journal, volume and pages, or publisher.
      elsewhere: of a seed, equations that are another library's, {"38–43": "`optax.adam`"}.
      equations: of a seed, how many it numbers.
    """

    authors: str
    title: str
    venue: str
    elsewhere: Mapping[str, str] = MappingProxyType({})
    equations: int = 0


@functools.cache
def references() -> dict[str, Reference]:
    """All entries of `docs/references.toml`."""
    return {name: Reference(**entry) for name, entry in tomllib.loads((DOCS / "references.toml").read_text()).items()}


@functools.cache
def known(source: str) -> str | None:
    """The entry that a citation means, if there is one: of its year and authors, written out or "et al."."""
    if source.startswith("seed "):
        return source if source in references() else None
    *cited, year = re.split(r", | and | (?=et al\.)| (?=\d{4}$)", source)
    for name, reference in references().items():
        listed = reference.authors.removesuffix(" et al.")
        surnames = [author.rpartition(" ")[2] for author in re.split(r", | and ", listed)]
        shortened = [surnames[0], "et al."] if len(surnames) > 2 or listed != reference.authors else surnames
        if name.endswith(f" {year}") and cited in (surnames, shortened):
            return name
    return None


def page(names: Mapping[str, str]) -> str:
    """The list of papers with the functions that use them, and of functions with their papers, as Markdown.

    Args:
      names: {path: name} of what the reference lists, as of `reference.names`.
    """
    written = [*of_code("nl_jax", "experiments", "benchmarks"), *of_guides()]
    citations = spread([c._replace(source=known(c.source) or c.source) for c in written], names)

    def link(where: str) -> str:
        if where.endswith(".md"):
            return f"[{Path(where).stem}]({where})"
        return f"[`{names[where]}`][{where}]" if where in names else f"`{where}`"

    used = {citation.source for citation in citations}
    papers: list[str] = []
    seeds: list[str] = []
    for name, reference in references().items():
        if name in used:
            users = ", ".join(map(link, _users(citations, name)))
            (seeds if name.startswith("seed ") else papers).append(_entry(name, reference, users))
        if reference.equations:
            seeds.append(_table(("equation", "used in"), _by_equation(citations, name, reference, link)))
    of = [(link(where), ", ".join(map(_linked, sources))) for where, sources in _sources(citations)]
    back = _table(("function", "sources"), of)
    return "\n\n".join([_INTRODUCTION, *seeds, "## Papers", *papers, "## From function to paper", back])


_INTRODUCTION = """\
# Papers and what uses them

[All as BibTeX](references.bib). Every citation in the code, both ways: [from paper to function](#papers), and [from
function to paper](#from-function-to-paper). The equations called "seed" are numbered as in the documents the project
grew from.

## Seeds"""


def spread(citations: list[Citation], names: Mapping[str, str]) -> list[Citation]:
    """What is said of a whole file, said of all it makes public instead, unless some of it says so itself."""
    spread: list[Citation] = []
    for citation in citations:
        source, equations, where = citation
        of_members = [c for c in citations if c.source == source and c.where.startswith(f"{where}.")]
        if of_members and set(equations) <= {n for c in of_members for n in c.equations}:
            continue
        members = [path for path in names if path.rpartition(".")[0] == where]
        spread += [Citation(source, equations, path) for path in members] or [citation]
    return spread


def anchor(source: str) -> str:
    """The fragment of a source on the page."""
    return re.sub(r"\W+", "-", source.lower()).strip("-")


def missing(citations: Iterable[Citation]) -> str:
    """What is to be added to `references.toml`, ready to be filled in; empty if nothing is."""
    unknown = {c.source: c.where for c in reversed([*citations]) if not known(c.source)}
    return "\n\n".join(
        f'["{source}"]  # cited in {where}\nauthors = "…"\ntitle = "…"\nvenue = "…"'
        for source, where in sorted(unknown.items())
    )


def bibtex() -> str:
    """All papers as BibTeX entries, keyed as the page's fragments are."""
    entries = []
    for name, reference in references().items():
        fields = {
            "author": re.sub(r",? et al\.$", " and others", re.sub(", ", " and ", reference.authors)),
            "title": f"{{{reference.title}}}",
            "howpublished": reference.venue,
            "year": name.rpartition(" ")[2] if not name.startswith("seed ") else "",
        }
        lines = [f"  {key} = {{{value}}}" for key, value in fields.items() if value]
        entries.append(f"@misc{{{anchor(name)},\n" + ",\n".join(lines) + "\n}")
    return "\n\n".join(entries) + "\n"


def _users(citations: Iterable[Citation], source: str) -> list[str]:
    return sorted({citation.where for citation in citations if citation.source == source})


def _sources(citations: Iterable[Citation]) -> list[tuple[str, list[str]]]:
    by_place: dict[str, set[str]] = {}
    for citation in citations:
        by_place.setdefault(citation.where, set()).add(citation.source)
    return [(where, sorted(sources)) for where, sources in sorted(by_place.items())]


def _by_equation(
    citations: list[Citation], seed: str, reference: Reference, link: Callable[[str], str]
) -> Iterator[tuple[str, str]]:
    """Rows of the table; equations that follow each other share one where they are used in the same places."""
    elsewhere = {n: there for span, there in reference.elsewhere.items() for n in numbers(span)}

    def used(n: int) -> str:
        return ", ".join(map(link, _users((c for c in citations if n in c.equations), seed))) or elsewhere[n]

    for users, run in groupby(range(1, reference.equations + 1), key=used):
        first, *rest = run
        yield f"{first}–{rest[-1]}" if rest else f"{first}", users


def _entry(name: str, reference: Reference, users: str) -> str:
    what = ", ".join(part for part in (reference.authors, f"*{reference.title}*", reference.venue) if part)
    return f"### {name} {{#{anchor(name)}}}\n\n{what}.\n\nIn {users}."


def _linked(source: str) -> str:
    return f"[{source}](#{anchor(source)})"


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
