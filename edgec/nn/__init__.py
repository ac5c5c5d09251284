"""torch modules of edgec's own."""
