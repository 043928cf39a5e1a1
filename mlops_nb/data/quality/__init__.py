"Is a dataset version fit to train and judge a model by, and what changed in it?"
