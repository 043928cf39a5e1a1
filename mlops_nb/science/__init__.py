"From a dataset version to a tested pipeline."
