"""The gallery's page: plain HTML that depends on nothing but the folders beside it."""

import html
import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from experiments.gallery.exhibits import Exhibit
from experiments.gallery.outcome import LOG, RECORD, Outcome
from experiments.harness.failure import ExperimentError
from experiments.harness.results import page_style

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>nl_jax: theory beside measurement</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>Theory beside measurement</h1>
<p>Neuron learning in JAX: what every experiment of nl_jax found, the equation it tests, and how far the two are
apart.</p>
<p class="faint">{summary}</p>
</header>
<nav aria-label="Experiments"><ol>
{contents}
</ol></nav>
<main>
{sections}
</main>
<footer class="faint">Made by <code>python -m experiments.gallery</code>. A deviation is the largest difference of a
measurement from its theory.</footer>
</body>
</html>
"""

SECTION = """<section id="{name}">
<h2><a href="#{name}">{title}</a></h2>
{status}
<p>{claim}</p>
<div class="equation" tabindex="0">{equation}</div>
{figures}
<dl>
{facts}
</dl>
{log}
</section>"""

STATUS = {
    "agrees": ("agrees with theory", "good"),
    "illustration": ("illustration", "open"),
    "not run": ("not run", "open"),
    "interrupted": ("interrupted", "bad"),
    "disagrees": ("disagrees with theory", "bad"),
    "failed": ("failed", "bad"),
    "printed a NaN": ("printed a NaN", "bad"),
}
"""By status: words, which suffice alone, and the class of a colour."""


def write(exhibits: Sequence[Exhibit], out: Path) -> Path:
    """Writes `index.html` with the exhibits' results in `out`; returns its path."""
    outcomes = [Outcome.read(exhibit, out) for exhibit in exhibits]
    pairs = list(zip(exhibits, outcomes, strict=True))
    counts = Counter(outcome.status for outcome in outcomes)
    summary = ", ".join(f"{words} {counts[status]}" for status, (words, _) in STATUS.items() if counts[status])
    path = out / "index.html"
    path.write_text(
        PAGE.format(
            style=page_style(),
            summary=f"{len(exhibits)} experiments: {summary}.",
            contents="\n".join(_entry(*pair) for pair in pairs),
            sections="\n".join(_section(*pair) for pair in pairs),
        ),
        encoding="utf-8",
    )
    return path


def _status(outcome: Outcome) -> str:
    words, look = STATUS[outcome.status]
    return f'<span class="status {look}">{words}</span>'


def _entry(exhibit: Exhibit, outcome: Outcome) -> str:
    thumbnail = '<div class="none"></div>'
    if outcome.pictures:
        thumbnail = f'<img src="{exhibit.name}/{outcome.pictures[0]}" alt="" loading="lazy">'
    title = html.escape(exhibit.title)
    return f'<li><a href="#{exhibit.name}">{thumbnail}{title}<br>{_status(outcome)}</a></li>'


def _section(exhibit: Exhibit, outcome: Outcome) -> str:
    figures = [
        f'<figure tabindex="0"><a href="{exhibit.name}/{picture}"><img src="{exhibit.name}/{picture}" '
        f'alt="{html.escape(exhibit.figures[picture.removesuffix(".png")])}" {_size(outcome.folder / picture)} '
        'loading="lazy"></a></figure>'
        for picture in outcome.pictures
    ]
    log = ""
    if outcome.log:
        opened = " open" if outcome.status in ("failed", "disagrees", "printed a NaN") else ""
        text = html.escape(outcome.log.strip())
        log = f'<details{opened}><summary>what it printed</summary><pre tabindex="0">{text}</pre></details>'
    return SECTION.format(
        name=exhibit.name,
        title=html.escape(exhibit.title),
        status=_status(outcome),
        claim=exhibit.claim,
        equation=exhibit.equation,
        figures="\n".join(figures),
        facts="\n".join(f"<dt>{term}</dt><dd>{text}</dd>" for term, text in _facts(exhibit, outcome).items()),
        log=log,
    )


def _size(picture: Path) -> str:
    """Returns a picture's size as attributes, so that the page keeps its place while pictures load."""
    with Image.open(picture) as image:
        return f'width="{image.width}" height="{image.height}"'


def _facts(exhibit: Exhibit, outcome: Outcome) -> dict[str, str]:
    """Terms and their descriptions, as HTML."""
    facts = {}
    if outcome.verdict:
        off, allowed, unit = outcome.verdict
        facts["largest deviation"] = f"<strong>{off:.2f} {html.escape(unit)}</strong>; {allowed:.3g} allowed"
    command, took = f"python -m {exhibit.module} --help", ""
    if outcome.record:
        command, seconds = shlex.join(outcome.record["command"]), outcome.record["seconds"]
        took = f" in {seconds:.0f} s" if seconds < 100 else f" in {seconds / 60:.0f} min"
    facts["made by"] = f"<code>{html.escape(command)}</code>{took}"
    if outcome.data:
        facts["data"] = " · ".join(f'<a href="{exhibit.name}/{name}">{name}</a>' for name in outcome.data)
    if outcome.about:
        versions = ", ".join(f"{name} {version}" for name, version in outcome.about["versions"].items())
        devices = ", ".join(outcome.about["devices"])
        made = f"{versions}, Python {outcome.about['python']}, on {devices}, {outcome.about['date']}"
        facts["made with"] = html.escape(made)
    return facts


def publish(exhibits: Sequence[Exhibit], out: Path, to: Path) -> Path:
    """Writes a light copy of the page: figures in 256 colours, verdicts and printed text, without other data.

    Raises:
      ExperimentError: if there are no figures.
    """
    outcomes = {exhibit.name: Outcome.read(exhibit, out) for exhibit in exhibits}
    if not any(outcome.pictures for outcome in outcomes.values()):
        raise ExperimentError(f"there are no figures in {out} to publish")
    for name, outcome in outcomes.items():
        folder = to / name
        shutil.rmtree(folder, ignore_errors=True)
        for kept in {f"{name}.json", "config.json", RECORD, LOG}:
            if (outcome.folder / kept).exists():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(outcome.folder / kept, folder)
        for picture in outcome.pictures:
            with Image.open(outcome.folder / picture) as image:
                light = image.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE)  # which keeps rare hues
                light.save(folder / picture, optimize=True)
    return write(exhibits, to)
