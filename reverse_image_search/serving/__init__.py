"""Export to Triton, publishing, and the local server."""
