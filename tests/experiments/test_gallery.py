"""The gallery, of experiments that take no time."""

import ast
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.gallery import __main__ as gallery
from experiments.gallery import exhibits
from experiments.gallery.outcome import Outcome

# What stands in for an experiment; how it ends is in its name.
STUB = """
import json, os, pathlib, signal, sys, time
name = sys.argv[0].rpartition("/")[2].removesuffix(".py")
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
print(f"{name} <printed> this, TQDM_DISABLE={os.environ['TQDM_DISABLE']}")
with (out.parent / "runs").open("a") as runs:
    runs.write(name + "\\n")
if name == "broken":
    sys.exit("error: it broke")
about = {"config": {"quick": "--quick" in sys.argv}, "versions": {"jax": "0.10"}, "python": "3.11", "devices": ["cpu"]}
(out / "config.json").write_text(json.dumps(about | {"date": "today"}))
(out / f"{name}.png").write_bytes(pathlib.Path(__file__).with_name("figure.png").read_bytes())
off = {"agreeing": 0.5, "off": 7.25, "lost": None}
if name in off:
    judged = {"largest_deviation": off[name], "allowed": 5.0, "unit": "standard errors"}
    (out / f"{name}.json").write_text(json.dumps(judged))
if name == "pressed":
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(0.2)
if name == "numberless":
    print("never  f = nan  rate 1")
if name == "nanotechnology":
    print("nanometres, and what is said of NaN")
sys.exit({"off": 1, "lost": 1, "stopped": 130}.get(name, 0))
"""


@pytest.fixture
def out(tmp_path, monkeypatch):
    """Where results go, with stubs to be named by `show`."""
    (tmp_path / "stubs").mkdir()
    Image.fromarray(np.full((30, 90, 3), 200, np.uint8)).save(tmp_path / "stubs" / "figure.png")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stubs"))
    return tmp_path / "results"


@pytest.fixture
def show(out, monkeypatch):
    """`show(*names)` makes experiments of these names all there are."""

    def show(*names):
        for name in names:
            (out.parent / "stubs" / f"{name}.py").write_text(STUB)
        shown = [
            exhibits.Exhibit(n, f"The {n} one", "<i>a</i> = 1", "A claim.", {n: f"a picture of {n}"}) for n in names
        ]
        monkeypatch.setattr(exhibits, "EXHIBITS", tuple(shown))

    return show


class Page(HTMLParser):
    """Checks that tags close in order, and gathers links, pictures, ids and the text of each section."""

    def __init__(self, out):
        super().__init__()
        self.open, self.links, self.pictures, self.ids, self.text = [], [], [], set(), {}
        self.feed((out / "index.html").read_text())
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.links += [attributes["href"]] if "href" in attributes else []
        if tag == "img":
            self.pictures.append((attributes["src"], attributes["alt"]))
        self.ids |= {attributes["id"]} if "id" in attributes else set()
        if tag == "section":
            self.section = attributes["id"]
            self.text[self.section] = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "section" in self.open:
            self.text[self.section] += data


def run(out, *arguments):
    return gallery.main(["--out", str(out), *arguments])


def test_the_page_shows_every_experiment(out, show, capsys):
    show("agreeing", "plain")
    assert run(out, "--quick") == 0
    page = Page(out)
    assert page.ids == {"agreeing", "plain"}
    assert ("agreeing/agreeing.png", "a picture of agreeing") in page.pictures
    for target in [*page.links, *(source for source, _ in page.pictures)]:
        assert target[1:] in page.ids if target.startswith("#") else (out / target).is_file(), target
    assert {"agreeing/agreeing.json", "agreeing/config.json", "plain/log.txt"} <= set(page.links)
    shown = page.text["agreeing"]
    assert "\nagrees with theory\n" in shown
    assert "0.50 standard errors; 5 allowed" in shown
    assert f"python -m agreeing --out {out / 'agreeing'} --quick" in shown
    assert "jax 0.10, Python 3.11, on cpu, today" in shown
    assert "agreeing <printed> this, TQDM_DISABLE=1" in shown
    assert "illustration" in page.text["plain"]
    assert "2 experiments: agrees with theory 1, illustration 1." in (out / "index.html").read_text()
    assert json.loads((out / "agreeing" / "gallery.json").read_text())["seconds"] < 10
    assert str(out / "index.html") in capsys.readouterr().out


def test_a_table_with_a_nan_is_not_good(out, show):
    show("nanotechnology", "numberless")
    assert run(out, "--quick") == 1
    page = Page(out)
    assert "printed a NaN" in page.text["numberless"]
    assert "illustration" in page.text["nanotechnology"]


def test_no_experiment_prints_a_nan_in_its_own_test():
    """What conftest.py holds all of them to."""
    print("nanometres, and what is said of NaN")
    for table in ("loss   nan", "0.5 ±nan", "-nan", "nan%"):
        with pytest.raises(AssertionError, match="a table has a NaN"):
            print("loss", table)


def test_the_page_needs_no_network(out, show):
    show("plain")
    run(out)
    text = (out / "index.html").read_text()
    assert not re.search(r"https?:|//|@import|<script|<link|url\(", text)
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_failures_are_shown_after_all_have_run(out, show, capsys):
    show("broken", "off", "lost", "agreeing")
    assert run(out) == 1
    shown = capsys.readouterr().err
    assert "error: some experiments did not succeed: broken (failed), off (disagrees), lost (disagrees); see" in shown
    page = Page(out)
    assert "error: it broke" in page.text["broken"]
    assert "failed" in page.text["broken"]
    assert "disagrees with theory" in page.text["off"]
    assert "7.25 standard errors; 5 allowed" in page.text["off"]
    assert "nan standard errors" in page.text["lost"]
    assert "\nagrees with theory\n" in page.text["agreeing"]


def test_a_failure_is_not_judged_by_what_an_earlier_run_left(out, show):
    show("broken")
    (out / "broken").mkdir(parents=True)
    for name in ("broken.png", "broken.json", "config.json", "old.npz", "notes.txt"):
        (out / "broken" / name).write_text('{"largest_deviation": 0.1, "allowed": 1.0}')
    assert run(out) == 1
    assert not Page(out).pictures
    assert "largest deviation" not in Page(out).text["broken"]
    assert {path.name for path in (out / "broken").iterdir()} == {"gallery.json", "log.txt", "notes.txt"}


@pytest.mark.parametrize("stopped", ["stopped", "pressed"])  # heard by the experiment, or by the gallery
def test_ctrl_c_keeps_what_is_done(stopped, out, show, capsys):
    show("agreeing", stopped, "plain")
    assert run(out) == 130
    assert "what had been written is kept" in capsys.readouterr().err
    page = Page(out)
    assert "\nagrees with theory\n" in page.text["agreeing"]
    assert "interrupted" in page.text[stopped]
    assert f"{stopped}/{stopped}.png" in page.links
    assert "not run" in page.text["plain"]


def test_keep_runs_only_what_is_not_there(out, show):
    show("agreeing", "off", "plain")
    assert run(out, "--only", "agreeing", "off") == 1
    assert run(out, "--keep") == 1
    assert (out / "runs").read_text().split() == ["agreeing", "off", "off", "plain"]
    assert run(out, "--keep", "--quick", "--only", "plain") == 0  # another command
    (out / "agreeing" / "config.json").write_text("{}")  # by another run there
    assert run(out, "--keep", "--only", "agreeing") == 0
    assert (out / "runs").read_text().split()[4:] == ["plain", "agreeing"]
    assert run(out, "--only", "agreeing") == 0
    assert (out / "runs").read_text().split()[6:] == ["agreeing"]


def test_a_light_copy_is_published(out, show, tmp_path):
    show("agreeing", "broken", "plain")
    copy = tmp_path / "docs" / "gallery"
    assert run(out, "--only", "agreeing", "plain", "--publish", str(copy)) == 0
    there = lambda folder: {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there(copy) < there(out) | {"index.html"}
    assert len(Page(copy).pictures) == 4  # with their thumbnails
    assert all((copy / link).is_file() for link in Page(copy).links if not link.startswith("#"))
    for exhibit in exhibits.EXHIBITS:
        before, after = Outcome.read(exhibit, out), Outcome.read(exhibit, copy)
        assert (after.status, after.pictures, after.verdict) == (before.status, before.pictures, before.verdict)
    with Image.open(out / "plain" / "plain.png") as drawn, Image.open(copy / "plain" / "plain.png") as light:
        assert light.mode == "P"
        difference = np.asarray(light.convert("RGB"), int) - np.asarray(drawn.convert("RGB"), int)
    assert np.abs(difference).max() <= 16


def test_nothing_is_published_of_nothing(out, show, tmp_path, capsys):
    show("broken")
    assert run(out, "--publish", str(tmp_path / "gallery")) == 1
    assert "error: there are no figures" in capsys.readouterr().err


def test_unknown_names_are_one_line(out, show, capsys):
    show("plain")
    assert run(out, "--only", "plane") == 1
    assert capsys.readouterr().err == "error: --only: no experiment plane; there are plain\n"
    assert not out.exists()


def test_an_outcome_half_written_is_none(out, show):
    show("agreeing")
    (exhibit,) = exhibits.EXHIBITS
    assert Outcome.read(exhibit, out).status == "not run"
    (out / "agreeing").mkdir(parents=True)
    (out / "agreeing" / "agreeing.json").write_text('{"largest_deviation": 0.')
    (out / "agreeing" / "config.json").write_text("{}")
    assert Outcome.read(exhibit, out).verdict is None
    assert Outcome.read(exhibit, out).status == "not run"


def test_what_was_run_by_hand_is_shown(out, show):
    show("agreeing")
    (out / "agreeing").mkdir(parents=True)
    (out / "agreeing" / "agreeing.json").write_text('{"largest_deviation": 2.0, "allowed": 1.0, "unit": "error bars"}')
    (out / "agreeing" / "agreeing.png").touch()
    assert Outcome.read(*exhibits.EXHIBITS, out).status == "disagrees"


def test_every_experiment_is_an_exhibit():
    folder = Path(exhibits.__file__).parent.parent
    scripts = {path.parent.name: path for path in folder.glob("*/__main__.py")}
    for name, path in scripts.items():
        defined = {node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")}
        if {"main", "Config"} <= defined and name != "gallery":
            assert f"experiments.{name}" in [exhibit.module for exhibit in exhibits.EXHIBITS], path
    for exhibit in exhibits.EXHIBITS:
        assert exhibit.name in scripts
        assert Path(__file__).with_name(f"test_{exhibit.name}.py").is_file()  # where its tables are held to have no NaN
        assert exhibit.figures
