"""One module a task: from a request to rows, and from the graph's outputs to an answer."""
