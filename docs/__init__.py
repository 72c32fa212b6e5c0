"""The site, and the scripts that make its pages and pictures."""
