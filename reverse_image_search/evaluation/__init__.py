"""How good the search is: metrics, perturbed copies, and the report on a served build."""
