"MLOps for people who work in notebooks: the whole machine-learning life cycle on one Ray cluster."

__version__ = "0.1.0"
