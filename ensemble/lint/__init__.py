"""Members that look as if they had seen the labels they are scored on."""
