"""What becomes `vector_similarity`: embedding to ids and scores."""
