"""What an adapter does to the loss on evaluation documents."""
