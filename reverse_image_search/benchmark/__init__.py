"""How fast the served search is, next to the machine's limit and to other servers."""
