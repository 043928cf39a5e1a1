"From a source to a dataset version that can be trusted and found again."
