"""Libraries are quieted before they are imported, whichever part of the project is asked for first."""

import subprocess
import sys

import pytest

CODE = """
import logging
import sys

class Watch:
    def find_spec(self, name, *_):
        if name == "bitsandbytes":
            assert logging.getLogger(name).getEffectiveLevel() == logging.ERROR, "it may speak"

sys.meta_path.insert(0, Watch())
import {first}
import bitsandbytes
"""


@pytest.mark.parametrize("first", ["distill.race.race", "distill.training.keep_best"])
def test_bitsandbytes_is_quieted_before_it_is_imported(first):
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(first=first)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
