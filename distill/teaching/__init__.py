"""What a student is taught: losses, soft labels read from stores, and whether they can be trusted."""
