"""The site: reference pages and list of papers, made of docstrings; `mkdocs build -f docs/handbook/mkdocs.yml`."""
