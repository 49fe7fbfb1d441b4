"""How the page of a scan looks, and what names that look to a browser that runs no style but those it was told of."""

import base64
import hashlib
from importlib.resources import files

STYLE = files("meddelinea.results").joinpath("page.css").read_text(encoding="utf-8")
#: The style in a Content-Security-Policy.
STYLE_SOURCE = f"'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'"
