"""Features: encoders of text and images, video decoding, feature files, and the memory."""
