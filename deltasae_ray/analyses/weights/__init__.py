"""What an adapter's weights alone show."""
