"""The site, and the scripts that make its pages and pictures."""

import sys

if sys.argv[:1] == ["-m"]:  # one of them is about to run
    from data.console.command import guard

    guard()
