"""Reverse image search served by NVIDIA Triton."""
