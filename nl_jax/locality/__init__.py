"""What an update was made of: the locality audit."""
