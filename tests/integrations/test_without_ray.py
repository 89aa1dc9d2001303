"""Without Ray, its integration says what to install, and asyncsync itself does not miss it."""

from __future__ import annotations

import subprocess
import sys

HIDDEN = """
import sys
sys.modules["pyarrow"] = sys.modules["ray"] = None
import asyncsync, asyncsync.integrations
try:
    import asyncsync.integrations.ray
except asyncsync.ConfigError as error:
    print(error)
"""


def test_a_missing_ray_names_the_extra_to_install():
    done = subprocess.run([sys.executable, "-c", HIDDEN], capture_output=True, text=True, check=True)
    assert "pip install 'asyncsync[ray]'" in done.stdout


def test_asyncsync_does_not_import_ray():
    code = "import sys, asyncsync, asyncsync.integrations; print({'ray', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
