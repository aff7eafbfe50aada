"""What a model is worth: accuracy, what it looks at, and the card that says so."""
