"""Any source of rows, read strictly into one row table; a format is a file."""
