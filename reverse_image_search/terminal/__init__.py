"""Commands that search from the terminal, through the running server."""
