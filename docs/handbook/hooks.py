"""What mkdocs is told beyond `mkdocs.yml`: the pages that are made, the navigation, and a link for every citation."""

import inspect
import os
import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent.parent))

from handbook import papers, prose, reference
from handbook.citations import DOCS, REPOSITORY, cited

_LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
_UNTOUCHED = re.compile(r"(<(?:pre|code|a|h[1-6])\b.*?</(?:pre|code|a|h[1-6])>|<[^>]+>)", re.DOTALL)


class Made(NamedTuple):
    """A page that is made.

    Attributes:
      text: its Markdown.
      source: the file to edit in order to change it.
    """

    text: str
    source: Path


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation: README, the guides (the tutorial first), the reference by rooms, the papers."""
    guides = sorted((path.name for path in DOCS.glob("*.md")), key=lambda name: (name != "tutorial.md", name))
    rooms: list[Any] = []
    for _, group in groupby(reference.pages(), key=lambda page: page.room):
        first, *rest = ({page.title: f"reference/{page.key}.md"} for page in group)
        rooms.append({next(iter(first)): [first, *rest]} if rest else first)
    config.edit_uri = "edit/main/" if config.repo_url else None
    if "MIKE_DOCS_VERSION" in os.environ:  # `mike` is building one of several versions
        config.extra["version"] = {"provider": "mike"}
    config.nav = [{"Overview": "index.md"}, *guides, {"Reference": rooms}, {"Papers": "papers.md"}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is made: README as the first page, the reference, the papers, and files beside `docs/` linked to."""
    made = {
        f"reference/{page.key}.md": Made(prose.markdown(page.markdown()), Path(inspect.getfile(page.module)))
        for page in reference.pages()
    }
    made["papers.md"] = Made(papers.page(reference.names()), DOCS / "references.toml")
    beside: dict[str, Path] = {}
    for source in [REPOSITORY / "README.md", *DOCS.glob("*.md")]:
        text = source.read_text()
        for link in set(_LINK.findall(text)):
            target = (source.parent / link).resolve()
            if target.is_file():
                beside[_uri(target)] = target
                text = text.replace(f"]({link}", f"]({_uri(target)}")
        made[_uri(source)] = Made(text.replace("```python\n>>>", "```pycon\n>>>"), source)
    for uri, (text, source) in made.items():
        file = File.generated(config, uri, content=text)
        file.edit_uri = source.relative_to(REPOSITORY).as_posix()
        _replace(files, file)
    files.append(File.generated(config, "references.bib", content=papers.bibtex()))
    for uri, path in beside.items():
        if uri not in files.src_uris:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Makes a link to the papers of every citation, but on their own page."""
    if page.file.src_uri == "papers.md":
        return html
    there = "../" * page.file.src_uri.count("/") + "papers.html"
    parts = _UNTOUCHED.split(html)
    return "".join(part if i % 2 else _linked(part, there) for i, part in enumerate(parts))


def _linked(text: str, there: str) -> str:
    for match, source, _ in sorted(cited(text), key=lambda citation: -citation[0].start()):
        name = papers.known(source)
        link = f'<a href="{there}#{papers.anchor(name)}">{match[0]}</a>' if name else match[0]
        text = text[: match.start()] + link + text[match.end() :]
    return text


def _uri(path: Path) -> str:
    """Where a file of the repository is on the site."""
    if path == REPOSITORY / "README.md":
        return "index.md"
    return str(path.relative_to(DOCS if path.is_relative_to(DOCS) else REPOSITORY))


def _replace(files: Files, file: File) -> None:
    if (old := files.get_file_from_path(file.src_uri)) is not None:
        files.remove(old)
    files.append(file)
