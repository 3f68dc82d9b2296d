"""How good the search is: metrics, disturbed copies of images, and the report on a served build."""
