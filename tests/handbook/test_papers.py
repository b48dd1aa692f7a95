"""Every citation has its paper, and every paper its place in the code."""

import pytest
from handbook import citations, papers, reference

CITATIONS = [*citations.of_code("nl_jax", "experiments", "benchmarks"), *citations.of_guides()]


def test_every_source_cited_has_an_entry():
    in_readme = [
        citations.Citation(source, equations, "README.md")
        for _, source, equations in citations.cited((citations.REPOSITORY / "README.md").read_text())
    ]
    missing = papers.missing([*CITATIONS, *in_readme])
    assert not missing, f"add to docs/references.toml:\n\n{missing}"


def test_what_is_missing_is_said_ready_to_be_filled_in():
    text = papers.missing([citations.Citation("Nobody 1900", (), "nl_jax.rules.nothing")])
    assert text.startswith('["Nobody 1900"]  # cited in nl_jax.rules.nothing\nauthors = ')


@pytest.mark.parametrize(
    ("cited", "meant"),
    [
        ("Lillicrap et al. 2016", "Lillicrap et al. 2016"),
        ("Lillicrap, Cownden, Tweed and Akerman 2016", "Lillicrap et al. 2016"),
        ("Lillicrap 2016", None),
        ("Lillicrap and Cownden 2016", None),
        ("Lillicrap et al. 2017", None),
        ("Jabri and Flower 1992", "Jabri and Flower 1992"),
        ("Jabri et al. 1992", None),
        ("Sarkar et al. 2025", "Sarkar et al. 2025"),
        ("seed 003", "seed 003"),
        ("seed 999", None),
    ],
)
def test_an_entry_is_known_by_its_authors_and_year(cited, meant):
    assert papers.known(cited) == meant


def test_every_equation_of_a_seed_is_used_once_somewhere():
    for name, seed in papers.references().items():
        elsewhere = [n for span in seed.elsewhere for n in citations.numbers(span)]
        here = {n for citation in CITATIONS if citation.source == name for n in citation.equations}
        assert sorted([*here, *elsewhere]) == list(range(1, seed.equations + 1)), (
            f"each equation of {name} must be cited in the code, or be `elsewhere` in docs/references.toml"
        )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(seed 000; Jabri & Flower 1992)", {("Jabri and Flower 1992", ()), ("seed 000", ())}),
        ("uSF of Liao et al. 2016", {("Liao et al. 2016", ())}),
        ("as\n    Intrator and\n    Cooper (1992) do", {("Intrator and Cooper 1992", ())}),
        ("Belkin,\n    # Hsu, & Xu 2020", {("Belkin, Hsu and Xu 2020", ())}),
        ("Oja's rule; Oja’s 1982 rule", {("Oja 1982", ())}),
        ("seed 003 §3.2, eq. 8–10, 12; seed 001 §1", {("seed 003", (8, 9, 10, 12)), ("seed 001", ())}),
        ("seed 003 eq. 6, with examples as rows, 3 of them", {("seed 003", (6,))}),
        ("in 1992, of 2048 units, K = 1500, key(2000)", set()),
    ],
)
def test_citations_are_read_as_they_are_written(text, found):
    assert {(source, equations) for _, source, equations in citations.cited(text)} == found


def test_a_citation_belongs_to_the_function_around_it():
    where = {(c.source, c.where) for c in CITATIONS}
    assert ("Novikoff 1962", "nl_jax.theory.perceptron.mistake_bound") in where
    assert ("Williams 1992", "nl_jax.estimators.noise.reinforce") in where
    spread = {(c.source, c.where) for c in papers.spread(CITATIONS, reference.names())}
    assert (
        "Williams 1992",
        "nl_jax.estimators.noise.reinforce.reinforce",
    ) in spread  # of a file, of what it makes public
    assert ("Oja 1982", "nl_jax.theory.hebbian.oja_flow") in spread  # the function says so itself, the others do not
    assert ("Oja 1982", "nl_jax.theory.hebbian.hebb_flow") not in spread


@pytest.mark.slow
def test_the_page_holds_every_citation_both_ways():
    page = papers.page(reference.names())
    to_functions, to_papers = page.split("## From function to paper")
    for name in {papers.known(citation.source) for citation in CITATIONS}:
        assert f"{{#{papers.anchor(name)}}}" in to_functions
        assert papers.references()[name].title in to_functions
        assert f"[{name}](#{papers.anchor(name)})" in to_papers
    for path in {c.where for c in CITATIONS} & set(reference.names()):
        assert f"[`{reference.names()[path]}`][{path}]" in to_functions
        assert f"[`{reference.names()[path]}`][{path}]" in to_papers
    assert len({papers.anchor(name) for name in papers.references()}) == len(papers.references())


def test_every_entry_is_in_the_bibtex_file():
    entries = papers.bibtex().split("\n\n")
    assert len(entries) == len(papers.references())
    (oja,) = [entry for entry in entries if entry.startswith("@misc{oja-1982,")]
    assert "author = {E. Oja}" in oja
    assert "year = {1982}" in oja
    (several,) = [entry for entry in entries if "lillicrap-et-al-2016" in entry]
    assert several.count(" and ") == 3  # four authors
    assert all(entry.count("{") == entry.count("}") for entry in entries)
