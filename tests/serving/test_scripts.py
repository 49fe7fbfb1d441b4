"""The page's modules as a browser reads them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import meddelinea.serving

STATIC = Path(meddelinea.serving.__file__).parent / "static"


@pytest.mark.parametrize("script", sorted(path.name for path in STATIC.glob("*.js")))
def test_a_module_can_be_read(script: str, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is absent: apt-get install nodejs")
    module = tmp_path / "module.mjs"  # a name declared twice is an error in a module alone
    module.write_text((STATIC / script).read_text())
    read = subprocess.run([node, "--check", module], capture_output=True, text=True, timeout=60)
    assert read.returncode == 0, read.stderr
