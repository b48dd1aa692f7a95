"""The citations in the code and in the guides, and where they stand.

A citation is "Jabri & Flower 1992", "Ren et al. (2022)" or "seed 003 eq. 8–12, §3.2", in a docstring or a comment.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parent.parent
REPOSITORY = DOCS.parent

_GAP = r"[\s#]+"  # a line may end within a citation, in a comment as well
_NAME = r"[A-ZÀ-Þ](?:[\w-]*\w)?"
_LAST = rf"(?:,?{_GAP}(?:and|&|&amp;){_GAP}{_NAME}|{_GAP}et{_GAP}al\.)"
_PAPER = re.compile(rf"\b({_NAME}(?:(?:,{_GAP}{_NAME})*{_LAST})?)(?:’s|'s)?{_GAP}\(?((?:18|19|20)\d\d)\b")
_PARTS = r"(?:(?:,\s)?(?:§[\d.]+(?:–[\d.]+)?|eq\.\s\d+(?:–\d+)?|(?<=,\s)\d+(?:–\d+)?(?!\d)))"
_SEED = re.compile(rf"\b[Ss]eed{_GAP}(\d{{3}})((?:[\s#]*{_PARTS})*)")


class Citation(NamedTuple):
    """One place that names a source.

    Attributes:
      source: under which `references.toml` has it, such as "Jabri and Flower 1992" or "seed 003".
      equations: of a seed, the numbers of the equations cited.
      where: "nl_jax.rules.oja.oja" of a public function or class of the code, else the module or page.
    """

    source: str
    equations: tuple[int, ...]
    where: str


def cited(text: str) -> Iterator[tuple[re.Match[str], str, tuple[int, ...]]]:
    """(match, source, equations) of every citation in a text."""
    for match in _PAPER.finditer(text):
        yield match, _name_of(match), ()
    for match in _SEED.finditer(text):
        yield match, f"seed {match[1]}", tuple(sorted(set(_equations(match[2]))))


def numbers(span: str) -> Iterable[int]:
    """The numbers of "8–12", or of "8"."""
    first, _, last = span.partition("–")
    return range(int(first), int(last or first) + 1)


def of_code(*packages: str) -> list[Citation]:
    """Every citation in the Python files of packages of the repository."""
    return [
        citation
        for package in packages
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        for citation in _of_module(path)
    ]


def of_guides() -> list[Citation]:
    """Every citation in the pages written by hand."""
    return [
        Citation(source, equations, path.name)
        for path in sorted(DOCS.glob("*.md"))
        for _, source, equations in cited(path.read_text())
    ]


def _name_of(match: re.Match[str]) -> str:
    """The name under which `references.toml` has what `_PAPER` matched."""
    authors = re.sub(r"&amp;|&", "and", re.sub(_GAP, " ", match[1]))
    return f"{re.sub(', and ', ' and ', authors)} {match[2]}"


def _equations(parts: str) -> Iterator[int]:
    """Of "§3.2, eq. 33, 36" all that follows "eq."; a § begins anew."""
    for group in re.findall(r"eq\.([^§]*)", re.sub(r"[\s#]+", " ", parts)):
        for span in re.findall(r"\d+(?:–\d+)?", group):
            yield from numbers(span)


def _of_module(path: Path) -> Iterator[Citation]:
    text = path.read_text()
    module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    tops = [
        (node.lineno, node.end_lineno or node.lineno, node.name)
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    for match, source, equations in cited(text):
        line = text.count("\n", 0, match.start()) + 1
        inside = [name for first, last, name in tops if first <= line <= last]
        yield Citation(source, equations, ".".join([module, *inside]))
