"""New rows predicted: in shards, by cascades, from merged weights; an export's model card."""
