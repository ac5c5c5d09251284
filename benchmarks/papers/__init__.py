"""The effects that the papers report, on real data, at a size that two cores can train."""
