"""How the `fashion` encoder is trained."""
