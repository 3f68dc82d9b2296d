"""What becomes `image_encoder`: image to embedding."""
