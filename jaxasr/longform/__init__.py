"""Long recordings: from probabilities of speech to segments, and from recordings to what is heard at once."""
