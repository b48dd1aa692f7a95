"""Completes the package's metadata: README as its page, with links and images that work there, and its addresses."""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LOCAL = re.compile(r"(!?)(\[[^\]]*\])\((?!\w+:|#)([^)\s]+)\)")


class Metadata(MetadataHookInterface):
    """Reads the address of the repository from `NL_JAX_REPOSITORY`; without one, README is left as it is."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Adds `readme` and `urls`."""
        text, address = (Path(self.root) / "README.md").read_text(encoding="utf-8"), os.environ.get("NL_JAX_REPOSITORY")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, address) if address else text}
        if address:
            seen = f"{address}/blob/main/docs"
            metadata["urls"] = {"Source": address, "Documentation": seen, "Changelog": f"{seen}/CHANGELOG.md"}


def absolute(text: str, address: str) -> str:
    """Makes links and images of Markdown absolute, for pages outside of the repository."""
    return _LOCAL.sub(lambda at: f"{at[1]}{at[2]}({address}/{'raw' if at[1] else 'blob'}/main/{at[3]})", text)
