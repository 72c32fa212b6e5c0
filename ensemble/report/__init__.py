"""``report.html``: one page, drawn from a stack's results."""
