"""How fast the served search is, next to the machine's limit and to what else one could pick."""
