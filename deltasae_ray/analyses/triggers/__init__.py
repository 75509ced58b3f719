"""What an adapter learnt, in text that it wrote itself: mined words, and triggers with their replies."""
