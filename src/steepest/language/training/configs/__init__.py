"""Settings of the trainers, apart from the training: showing and checking them loads neither torch nor models."""
