"""NiiVue, the viewer of the 3-D page (BSD-2): taken out of the package that carries it, so that we carry none of it."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from kits_cascade.errors import EnvironmentNotReadyError, MissingExtraError

_CARRIER: Final = "ipyniivue"
_WIDGET: Final = "static/widget.js"
# The widget saves scenes as pages of their own, and for that holds NiiVue's module as one long URL-encoded text.
_ENCODED: Final = re.compile(r"""["'`]([A-Za-z0-9%\-_.!~*'()]{500000,})["'`]""")
_EXPORTS: Final = re.compile(r"export\s*\{([^{}]*\bNiivue\b[^{}]*)\};?\s*$")
_NEEDED: Final = ("Niivue", "NVImage", "NVMesh")


@cache
def niivue_script() -> str:
    """NiiVue as the text of a module that sets ``globalThis.niivue``; safe inside a script element."""
    found = _ENCODED.search(_widget().read_text(encoding="utf-8"))
    module = unquote(found[1]) if found else ""
    exports = _EXPORTS.search(module)
    if exports is None:
        raise EnvironmentNotReadyError(
            f"the installed {_CARRIER} does not hold NiiVue where it is expected; install the version that "
            "kits-cascade names: pip install 'kits-cascade[viewer]'"
        )
    body = module[: exports.start()] + f"globalThis.niivue={{{_as_object(exports[1])}}};"
    return body.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def niivue_licence() -> str:
    """The licence that goes with it."""
    from importlib import metadata

    files = [path for path in metadata.files(_CARRIER) or () if path.name.startswith("LICENSE")]
    return files[0].read_text(encoding="utf-8") if files else "BSD-2-Clause"


def _widget() -> Path:
    # Found, not imported: importing it would start half of Jupyter.
    spec = importlib.util.find_spec(_CARRIER)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    paths = [Path(folder) / _WIDGET for folder in folders]
    if not paths or not paths[0].is_file():
        raise MissingExtraError(_CARRIER, "viewer")
    return paths[0]


def _as_object(exports: str) -> str:
    """``a, b as c`` as ``a:a,c:b``, of what the page needs."""
    names = {}
    for entry in exports.split(","):
        inner, _, outer = entry.strip().partition(" as ")
        names[outer or inner] = inner
    return ",".join(f"{name}:{names[name]}" for name in _NEEDED)
