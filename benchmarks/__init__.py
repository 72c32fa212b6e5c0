"""Scripts that print the figures of README, the pages and the tables beside them."""
