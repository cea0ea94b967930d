"""A small cluster to try the data plane on: nodes that really play and really write databases."""
