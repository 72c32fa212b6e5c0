"""Scripts that print the figures of README, the pages and the tables beside them."""

import sys

if sys.argv[:1] == ["-m"]:  # one of them is about to run
    from data.console.command import guard

    guard()
