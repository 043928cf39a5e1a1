"A model in production: served, deployed, watched."
