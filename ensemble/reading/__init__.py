"""Members, labels and row features, read, aligned and refused where they cannot be joined."""
