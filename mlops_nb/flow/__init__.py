"Notebooks as a workflow, what starts it, and where everything came from."
